package cuda

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"loratrain/kernels"
)

// The shape of a block of stream_sm90.cu.
const (
	streamBlockThreads    = 32 * (streamWarps + 4)
	streamMaxStages       = 13
	streamMinStages       = 3
	streamUnderWay        = 4 // stages that are being copied at a time: more of them delay what blocks tell each other
	streamUnderWayFilling = 2 // the same while a block of several sequences waits for what others tell
	streamMaps            = 3*kernels.Targets + 2
	streamScores          = 72  // of 64 keys, with a gap
	streamGroup           = 8   // query heads to a key-value head
	streamAdditions       = 511 // numbers that a sum can count
	mapBytes              = 128
)

// streamKernels are the sequences that kernels are made for, at most.
var streamKernels = []int{1, 8, 16, 64}

// streamLayer is StreamLayer of stream.cuh.
type streamLayer struct {
	InputNorm, PostNorm, QNorm, KNorm Address
	Bias                              [kernels.Targets]Address
	Keys, Values                      Address
}

// streamModel is StreamModel of stream.cuh.
type streamModel struct {
	Maps, Layer, Runs, Parts, Blocks, Embed, Norm, Rope, Sums, Logits                                   Address
	Squares, SquaresMLP, LogitSquares, PartScale, PartSums, Adds                                        Address
	Tokens, Pos, IDs, Weights, Turn, Bad                                                                Address
	XAt                                                                                                 [streamPhases]int64
	SlotSize, EarlySize                                                                                 int64
	Layers, Width, Heads, KVHeads, Group, Positions, Sequences, Window                                  int32
	Experts, Rank, Chosen, MostRanks, Adapted, Slices, SliceWidth, SquaresOfOne, DownBox, UpBox, Panels int32
	Stages, UnderWay, UnderWayFilling, XSize, GatedSize, PartsOfBlock, ItemsOfBlock                     int32
	Eps, Scale, SoftmaxScale                                                                            float32
	Target                                                                                              [streamTargets]streamTarget
}

// stream is a [kernels.Step] as one kernel.
type stream struct {
	b      *Backend
	m      kernels.StepModel
	vocab  int
	args   streamModel
	kernel string
	launch Launch
	own    []kernels.Tensor
}

// NewStep implements [kernels.Stepper], on Hopper and in bf16.
func (b *Backend) NewStep(m kernels.StepModel) (kernels.Step, error) {
	shape, err := b.streamTakes(m)
	if err != nil {
		return nil, err
	}
	s := &stream{b: b, m: m, vocab: shape.vocab}
	if err := s.prepare(shape); err != nil {
		s.Close()
		return nil, fmt.Errorf("decoding step: %w", err)
	}
	return s, nil
}

// streamTakes is the shape of a model, if stream_sm90.cu takes it.
func (b *Backend) streamTakes(m kernels.StepModel) (s streamShape, err error) {
	const op = "NewStep"
	if b.info.Major != 9 || b.info.Minor != 0 || b.float != kernels.BF16 {
		return s, errors.New("a step as one kernel needs a Hopper card (compute capability 9.0) and bf16")
	}
	vocab, width := matrixShape(op, "Embed", m.Embed)
	mlp, _ := matrixShape(op, "a gate's weight", m.Layers[0].W[streamGate])
	s = streamShape{
		width: width, mlp: mlp, vocab: vocab, heads: m.Heads, chosen: m.Chosen, sequences: m.Sequences, blocks: b.info.Multiprocessors,
	}
	for t, a := range m.Layers[0].A {
		if !a.None() && m.Chosen > 0 {
			s.experts, s.rank, _ = cubeShape(op, "A", a)
			s.adapted[t] = true
		}
	}
	group := s.heads.Query / s.heads.KV
	switch {
	case s.heads.Dim != 64 && s.heads.Dim != 128:
		err = fmt.Errorf("heads of %d elements: there are kernels for 64 and 128", s.heads.Dim)
	case group > streamGroup:
		err = fmt.Errorf("%d query heads to a key-value head: up to %d are taken", group, streamGroup)
	case width%streamCols != 0 || mlp%streamCols != 0 || s.heads.Query*s.heads.Dim%streamCols != 0:
		err = fmt.Errorf("widths of %d and %d: whole multiples of %d are taken", width, mlp, streamCols)
	case m.Sequences > streamSequences:
		err = fmt.Errorf("%d sequences: up to %d are taken", m.Sequences, streamSequences)
	case s.chosen*s.sequences > streamChoices || s.experts > streamExperts || s.rank%8 != 0 || min(s.experts, s.chosen*s.sequences) > streamActive:
		err = fmt.Errorf("%d experts of rank %d: up to %d of ranks that 8 divides are taken", s.experts, s.rank, streamExperts)
	}
	for l, layer := range m.Layers {
		for t, w := range layer.W {
			for _, x := range []kernels.Tensor{w, layer.A[t], layer.B[t]} {
				if err == nil && !x.None() && (x.Type != kernels.BF16 || at(x)%16 != 0 || x.Shape[len(x.Shape)-1]%8 != 0) {
					err = fmt.Errorf("a weight %v of layer %d: bf16 in rows of whole 16 bytes is taken", x, l)
				}
			}
			if err == nil && s.adapted[t] == (m.Chosen == 0 || layer.A[t].None()) {
				err = fmt.Errorf("experts in other linear layers of layer %d than of layer 0", l)
			}
		}
	}
	if err == nil && (m.Embed.Type != kernels.BF16 || m.Head.Type != kernels.BF16) {
		err = fmt.Errorf("an embedding of %v and an output projection of %v: bf16 is taken", m.Embed.Type, m.Head.Type)
	}
	return s, err
}

// prepare plans the step and brings what the kernel reads to the device.
func (s *stream) prepare(shape streamShape) error {
	b, m, heads := s.b, s.m, shape.heads
	plan := planStream(shape)
	a := &s.args
	*a = streamModel{
		Layers: int32(len(m.Layers)), Width: int32(shape.width), Heads: int32(heads.Query), KVHeads: int32(heads.KV), Group: int32(heads.Query / heads.KV),
		Positions: int32(m.Positions), Sequences: int32(m.Sequences), Window: int32(m.Window),
		Experts: int32(shape.experts), Rank: int32(shape.rank), Chosen: int32(shape.chosen), MostRanks: int32(shape.ranks()),
		Slices: int32(plan.slices), SliceWidth: int32(shape.sliceWidth()), SquaresOfOne: int32(shape.squaresOfOne(plan.slices)),
		DownBox: int32(shape.boxRows(16)), UpBox: int32(shape.boxRows(64)),
		Panels: plan.targets[streamHead].Panel, XAt: plan.xAt, SlotSize: plan.slotSize, EarlySize: plan.earlySize,
		Eps: float32(m.Eps), Scale: float32(m.Scale), SoftmaxScale: float32(math.Log2E / math.Sqrt(float64(heads.Dim))), Target: plan.targets,
	}
	for t := range kernels.Targets {
		if shape.adapts(t) {
			a.Adapted |= 1 << t
		}
	}
	if most := slices.Max(plan.adds[:plan.targets[streamHead].Panel]); most > streamAdditions {
		return fmt.Errorf("%d blocks add to one sum, %d can", most, streamAdditions)
	}
	for _, x := range plan.targets {
		if x.HiddenAdds > streamAdditions {
			return fmt.Errorf("%d parts of x·A add to one sum, %d can", x.HiddenAdds, streamAdditions)
		}
	}
	if err := s.divide(shape, plan); err != nil {
		return err
	}

	var failed error
	take := func(t kernels.Type, shape ...int) Address {
		x, err := b.Alloc(t, shape...)
		if err != nil {
			failed = errors.Join(failed, err)
			return 0
		}
		s.own = append(s.own, x)
		return at(x)
	}
	floats := func(x kernels.Tensor) Address { // norms and biases, as float32
		if x.None() || failed != nil {
			return 0
		}
		to := take(kernels.F32, x.Len())
		if failed == nil {
			b.Round(s.own[len(s.own)-1], x.Reshape(x.Len()))
		}
		return to
	}
	upload := func(data any) Address {
		bytes, err := binary.Append(nil, binary.LittleEndian, data)
		failed = errors.Join(failed, err)
		to := take(kernels.I32, max(1, len(bytes)/4))
		if failed == nil && len(bytes) > 0 {
			b.dev.Upload(to, bytes)
		}
		return to
	}
	a.Runs, a.Parts, a.Blocks, a.Adds = upload(plan.runs), upload(plan.parts), upload(plan.blocks), upload(plan.adds)
	layers := make([]streamLayer, len(m.Layers))
	var boxes []Box
	for l, from := range m.Layers {
		to := &layers[l]
		to.InputNorm, to.PostNorm = floats(from.InputNorm), floats(from.PostNorm)
		to.QNorm, to.KNorm = floats(from.QNorm), floats(from.KNorm)
		for t := range from.Bias {
			to.Bias[t] = floats(from.Bias[t])
		}
		to.Keys, to.Values = at(from.Keys), at(from.Values)
		boxes = append(boxes, layerBoxes(from, shape)...)
	}
	boxes = append(boxes, make([]Box, streamHead)...)
	boxes = append(boxes, Box{Of: dense(m.Head, shape.vocab, shape.width), Rows: streamRows})
	a.Layer = upload(layers)
	a.Embed, a.Norm, a.Rope = at(m.Embed), floats(m.Norm), at(m.Rope)
	a.Maps = take(kernels.F64, len(boxes)*mapBytes/8)
	a.Sums = take(kernels.F64, int(3*plan.slotSize))
	a.Logits = take(kernels.F64, m.Sequences*shape.vocab)
	said := func(n int) Address { return take(kernels.F64, n) } // numbers with a mark of when
	squares := int(a.SquaresOfOne) * streamSequences
	a.Squares, a.SquaresMLP, a.LogitSquares = said(squares), said(squares), said(squares)
	parts := m.Sequences * heads.Query * streamSplits
	a.PartScale, a.PartSums = said(2*parts), said(parts*heads.Dim)
	a.Turn, a.Bad = take(kernels.I32, 1), take(kernels.I32, 1)
	if failed == nil {
		b.dev.Boxes(a.Maps, boxes)
		failed = b.Sync()
	}
	return failed
}

// divide gives each part of a block's shared memory its size: what no other needs is the ring's.
func (s *stream) divide(shape streamShape, plan *streamPlan) error {
	a, dim, group := &s.args, shape.heads.Dim, int(s.args.Group)
	columns := ceil(shape.most(), 8) * 8 // of sequences, as tensor cores take them
	attention := (4*group*streamScores+2*group*dim+4*group)*4 + streamItems*(group+2)*(dim+8)*2
	a.XSize = int32(ceil(max(shape.rowsOfX()*(plan.columns+8)*2, attention), 16) * 16)
	if !shape.local() {
		a.GatedSize = int32(3 * columns * (shape.ranks() + 8) * 2)
	}
	a.PartsOfBlock, a.ItemsOfBlock = int32(plan.most), int32(ceil(max(shape.sequences*shape.heads.KV, shape.blocks), shape.blocks))
	// Behind these: a block's items, three barriers, eights of experts' rows, numbers of additions, parts and runs; a stage has two barriers.
	fixed := int(a.XSize+a.GatedSize) + streamStepBytes + int(a.ItemsOfBlock)*16 + 3*8 + shape.ranks() + int(a.Panels)*4 + plan.most*20 + plan.longest*20
	a.Stages = int32(min(streamMaxStages, (226<<10-fixed)/(streamStage+16)))
	if a.Stages < streamMinStages {
		return fmt.Errorf("%d sequences of %d columns with %d rows of experts leave no room in shared memory", shape.sequences, plan.columns, shape.ranks())
	}
	a.UnderWay = min(a.Stages, streamUnderWay)
	a.UnderWayFilling = a.UnderWay
	if shape.shared() {
		a.UnderWayFilling = streamUnderWayFilling
	}
	// Its blocks wait for each other, so all must be on the card at once: one for each multiprocessor, and nothing else runs meanwhile in a device's queue.
	s.kernel = fmt.Sprintf("stream_%s_%d", shape.kernel(), dim)
	s.launch = Launch{Grid: [3]int{shape.blocks}, Block: [3]int{streamBlockThreads}, Shared: int(a.Stages)*(streamStage+16) + fixed}
	return nil
}

// layerBoxes is how a layer's weights, experts, keys and values are copied, in the order of stream.cuh.
func layerBoxes(l kernels.StepLayer, shape streamShape) []Box {
	boxes := make([]Box, streamMaps)
	for t, w := range l.W {
		boxes[t] = Box{Of: dense(w, w.Shape[0], w.Shape[1]), Rows: streamRows}
		for i, x := range []kernels.Tensor{l.A[t], l.B[t]} {
			if !x.None() {
				boxes[(i+1)*kernels.Targets+t] = Box{Of: dense(x, x.Shape[0]*x.Shape[1], x.Shape[2]), Rows: shape.boxRows([]int{16, 64}[i])}
			}
		}
	}
	for i, x := range []kernels.Tensor{l.Keys, l.Values} {
		boxes[3*kernels.Targets+i] = Box{Of: dense(x, x.Shape[0], x.Shape[1]), Rows: streamCols}
	}
	return boxes
}

// Run is logits[s] of the token that follows tokens[s], at position pos[s] of sequence s, and appends its keys and values to the cache: one
// decoding step of a whole model. Sequences with pos[s] < 0 are skipped, their logits are left as they are. In every linear layer that has
// experts, those of ids[s] are added with weights[s], as Experts does. logits (S, V) of type Param, tokens, pos (S) i32, ids (S, n) i32,
// weights (S, n); ids and weights none if the model has no experts.
func (s *stream) Run(logits, tokens, pos, ids, weights kernels.Tensor) {
	const op = "Step.Run"
	n := s.m.Sequences
	need(op, "logits", logits, kernels.F32, n, s.vocab)
	need(op, "tokens", tokens, kernels.I32, n)
	need(op, "pos", pos, kernels.I32, n)
	a := s.args
	a.Tokens, a.Pos = at(tokens), at(pos)
	if s.m.Chosen > 0 {
		need(op, "ids", ids, kernels.I32, n, s.m.Chosen)
		need(op, "weights", weights, s.b.Param(), n, s.m.Chosen)
		a.IDs, a.Weights = at(ids), at(weights)
	}
	s.b.dev.Launch(s.kernel, s.launch, a)
	s.b.dev.Launch("stream_logits", Launch{Grid: [3]int{ceil(s.vocab, 4*256), n}, Block: [3]int{256}},
		at(logits), a.Logits, a.LogitSquares, a.Pos, a.Turn, a.Bad, int32(s.vocab), a.Width, a.SquaresOfOne, a.Layers, a.Eps)
}

// Close gives memory back.
func (s *stream) Close() {
	for _, t := range s.own {
		s.b.Free(t)
	}
	s.own = nil
}
