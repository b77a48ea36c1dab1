package cuda

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"loratrain/kernels"
)

// The shape of merge.cu's blocks, and how many there are for a multiprocessor.
const (
	mergeRows, mergeColumns = 64, 128
	mergeThreads            = 256
	mergeBlocks             = 8
)

// merging implements [kernels.Merging].
type merging struct {
	b      *Backend
	layers []kernels.Merge
	table  kernels.Tensor // of mergeLayer
	tiles  int            // of merge.cu
	rank   int            // the largest
	ring   mergeRing
}

// mergeLayer is a line of the table that the kernels read.
type mergeLayer struct {
	Dst, Src, A, B            Address
	Experts, Rank, Width, Out int32
	Types                     [3]int32 // of Src, A and B
	Tile                      int32
	RingTile, RingColumns     int32
}

// PrepareMerge is the layers, of any shapes, as Merge takes them. Their tensors must stay where they are until it is
// closed, and no Dst may overlap another. The error says how much memory was asked for and how much there is.
func (b *Backend) PrepareMerge(layers []kernels.Merge) (kernels.Merging, error) {
	const op = "PrepareMerge"
	m := &merging{b: b, layers: layers}
	lines := make([]mergeLayer, len(layers))
	for i, l := range layers {
		e := expertsOf(fmt.Sprintf("%s: layers[%d]", op, i), l.A, l.B)
		need(op, "Dst", l.Dst, b.Float(), e.out, e.width)
		needWeight(op, "Src", l.Src, e.out, e.width)
		lines[i] = mergeLayer{
			Dst: at(l.Dst), Src: at(l.Src), A: at(l.A), B: at(l.B),
			Experts: int32(e.count), Rank: int32(e.rank), Width: int32(e.width), Out: int32(e.out),
			Types: [3]int32{int32(l.Src.Type), int32(l.A.Type), int32(l.B.Type)}, Tile: int32(m.tiles),
		}
		m.tiles += ceil(e.out, mergeRows) * ceil(e.width, mergeColumns)
		m.rank = max(m.rank, e.rank)
	}
	if mergesByRing(layers) {
		m.ring = b.divide(lines)
	}
	var table []byte
	for _, l := range lines {
		var err error
		if table, err = binary.Append(table, binary.LittleEndian, l); err != nil {
			fail(op, "%v", err)
		}
	}
	var err error
	if m.table, err = b.Alloc(kernels.I32, len(table)/4); err != nil {
		return nil, fmt.Errorf("the table of %d layers: %w", len(layers), err)
	}
	b.dev.Upload(at(m.table), table)
	return m, nil
}

// Layers implements [kernels.Merging].
func (m *merging) Layers() []kernels.Merge { return m.layers }

// Close implements [kernels.Merging].
func (m *merging) Close() { m.b.Free(m.table) }

// mergeChoice is what is to be merged, as the kernels take it.
type mergeChoice struct {
	ids, weights, force, counters Address
	n                             int32
	scale                         float32
}

// Merge is dst = src + s·Σ_k weights[k]·B[i]ᵀ·A[i], i = ids[k], for every layer of m in one call, unless force says
// that this is what they hold. ids (n) i32, weights (n), force (2n) i32 or none: the ids that were merged last with
// this m and scale and, behind them, the bits of their weights as float32. The call compares it with ids and weights,
// and leaves it as they are. An id below 0 and a weight that float32 does not hold are never in force; so a force of
// -1 throughout says that nothing was merged yet.
func (b *Backend) Merge(m kernels.Merging, ids, weights, force kernels.Tensor, scale float64) {
	const op = "Merge"
	p, ok := m.(*merging)
	if !ok || p.b != b {
		fail(op, "m is %T, expected what PrepareMerge of this backend gave", m)
	}
	n := ids.Len()
	need(op, "ids", ids, kernels.I32, n)
	need(op, "weights", weights, b.Param(), n)
	maybe(op, "force", force, kernels.I32, 2*n)
	c := mergeChoice{at(ids), at(weights), at(force), at(b.counters), int32(n), float32(scale)}
	if b.mergeByRing(p, c) {
		return
	}
	b.dev.Launch("merge"+suffix(b.Float()),
		Launch{Grid: [3]int{max(1, min(p.tiles, mergeBlocks*b.info.Multiprocessors))}, Block: [3]int{mergeThreads}},
		at(p.table), int32(len(p.layers)), int32(p.tiles), c)
}

// The shape of merge_ring.cu's blocks, and how many there are for a multiprocessor.
const (
	mergeRingThreads   = 256
	mergeRingWidth     = 512
	mergeRingPiece     = 16 * (2*mergeRingWidth + 32) // bytes
	mergeRingStages    = 5
	mergeRingBlocks    = 2
	mergeRingMostDepth = 128
)

// mergeRing is how merge_ring.cu divides layers.
type mergeRing struct {
	tiles int // 0: it does not take them
	rows  int // of a tile
}

// mergesByRing says whether merge_ring.cu takes layers: bf16 whose rows can be copied by 16 bytes.
func mergesByRing(layers []kernels.Merge) bool {
	for _, l := range layers {
		for _, t := range []kernels.Tensor{l.Dst, l.Src, l.A, l.B} {
			if t.Type != kernels.BF16 || at(t)%16 != 0 {
				return false
			}
		}
		if l.Dst.Shape[1]%8 != 0 {
			return false
		}
	}
	return len(layers) > 0
}

// divide gives each line its tiles. Tall ones read less of A; there must be so many that blocks which take them in turn end together.
func (b *Backend) divide(lines []mergeLayer) (r mergeRing) {
	const tallest, least, enough = 512, 64, 128 // rows, and tiles for a multiprocessor
	for r.rows = tallest; ; r.rows /= 2 {
		tiles := 0
		for i := range lines {
			l := &lines[i]
			across := ceil(int(l.Width), mergeRingWidth)
			l.RingTile, l.RingColumns = int32(tiles), int32(ceil(ceil(int(l.Width), across), 64)*64)
			tiles += ceil(int(l.Out), r.rows) * ceil(int(l.Width), int(l.RingColumns))
		}
		if r.tiles = tiles; r.rows == least || tiles >= enough*b.info.Multiprocessors {
			return r
		}
	}
}

// mergeByRing queues merge_ring.cu's kernel, if there is one for that depth.
func (b *Backend) mergeByRing(m *merging, c mergeChoice) bool {
	if m.ring.tiles == 0 || int(c.n)*m.rank > mergeRingMostDepth {
		return false
	}
	depth, upRows := 1, 128
	for 16*depth < int(c.n)*m.rank {
		depth *= 2
	}
	switch depth {
	case 4:
		upRows = 96
	case 8:
		upRows = 48
	}
	shared := mergeRingStages*(mergeRingPiece+8) + 8 + upRows*depth*32 + depth*16*8
	b.dev.Launch("merge_ring_"+strconv.Itoa(depth),
		Launch{Grid: [3]int{min(m.ring.tiles, mergeRingBlocks*b.info.Multiprocessors)}, Block: [3]int{mergeRingThreads}, Shared: shared},
		struct {
			layers             Address
			count, tiles, rows int32
			_                  int32
		}{layers: at(m.table), count: int32(len(m.layers)), tiles: int32(m.ring.tiles), rows: int32(m.ring.rows)}, c)
	return true
}
