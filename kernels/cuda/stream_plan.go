package cuda

import (
	"fmt"
	"slices"

	"loratrain/kernels"
)

// The phases of a transformer block in stream_sm90.cu, and that of the logits.
const (
	intoAttention = iota
	outOfAttention
	intoMLP
	outOfMLP
	intoLogits
	streamPhases
)

// The linear layers of a block, and the output projection behind them.
const (
	streamQ = iota
	streamK
	streamV
	streamO
	streamGate
	streamUp
	streamDown
	streamHead
	streamTargets
)

// phaseTargets are the linear layers that a phase computes.
var phaseTargets = [streamPhases][]int{{streamQ, streamK, streamV}, {streamO}, {streamGate, streamUp}, {streamDown}, {streamHead}}

// phaseOf is the phase that computes a linear layer.
func phaseOf(target int) int {
	return slices.IndexFunc(phaseTargets[:], func(l []int) bool { return slices.Contains(l, target) })
}

// The shape of stream_sm90.cu's stages.
const (
	streamCols      = 64 // of a stage of weights
	streamRows      = 128
	streamWarps     = 8
	streamStage     = streamCols * streamRows * 2
	streamStepBytes = 6144
	streamSequences = 64
	streamExperts   = 256
	streamActive    = 128
	streamChoices   = 128
	streamSplits    = 16
	streamSlices    = 32 // of the width, a lane for each
	streamItems     = 4  // of attention, whose queries a block reads at once
	streamUpBehind  = 3  // stages, at least, behind which B is multiplied
)

// streamRun, streamPart, streamBlock and streamTarget are those of stream.cuh.
type streamRun struct{ Kind, Target, Row, Column, Count int32 }

// The kinds of runs.
const (
	runWeights = iota
	runWeightsAndUp
	runDown
)

type streamPart struct {
	FirstRun, Runs, FirstColumn, Columns, KeepSlice int32
}

type streamBlock struct {
	FirstPart       [streamPhases + 1]int32
	Clear, Clearers int32
}

type streamTarget struct {
	Rows, Stride, Panel, HiddenAdds, Place, _ int32
	SumsAt, HiddenAt                          int64
}

// streamShape is what a schedule depends on.
type streamShape struct {
	width, mlp, vocab int
	heads             kernels.Heads
	experts, rank     int // 0: none
	chosen, sequences int
	adapted           [kernels.Targets]bool // which linear layers have experts
	blocks            int
}

// rows and columns are the extents of a linear layer's weight.
func (s streamShape) rows(target int) int {
	switch target {
	case streamQ:
		return s.heads.Query * s.heads.Dim
	case streamK, streamV:
		return s.heads.KV * s.heads.Dim
	case streamO, streamDown:
		return s.width
	case streamHead:
		return s.vocab
	default:
		return s.mlp
	}
}

func (s streamShape) columns(phase int) int {
	switch phase {
	case outOfAttention:
		return s.heads.Query * s.heads.Dim
	case outOfMLP:
		return s.mlp
	default:
		return s.width
	}
}

// tiles is how many times eight sequences a kernel takes.
func (s streamShape) tiles() int {
	for _, t := range streamTiles {
		if s.sequences <= 8*t {
			return t
		}
	}
	panic(fmt.Sprintf("kernels/cuda: a decoding step of %d sequences", s.sequences))
}

// ranks is the most rows of A that a step uses, rounded up to the 16 that tensor cores take.
func (s streamShape) ranks() int {
	return ceil(min(s.experts, s.chosen*s.sequences)*s.rank, 16) * 16
}

func (s streamShape) adapts(target int) bool {
	return target < kernels.Targets && s.experts > 0 && s.adapted[target]
}

// streamPlan is which block multiplies what, and where sums and counters are.
type streamPlan struct {
	runs    []streamRun
	parts   []streamPart
	blocks  []streamBlock
	targets [streamTargets]streamTarget
	slices  int // of the width
	columns int // of the widest part
	longest int // runs of a block
	most    int // parts of a block

	adds                []int32 // to each row of a panel, target by target; to those of the residual stream's width, the stream itself is one
	slotSize, earlySize int64   // in sums
}

// partsOf is a block's parts of a phase.
func (p *streamPlan) partsOf(block, phase int) []streamPart {
	x := &p.blocks[block]
	return p.parts[x.FirstPart[phase]:x.FirstPart[phase+1]]
}

// slicesOf divides stages of 64 columns, so that what a block reads and keeps of the activations is little. Its sums are then those of
// several blocks.
func (s streamShape) slicesOf(stages int) int {
	if s.local() {
		return 1
	}
	return min(streamSlices, ceil(stages, min(16, max(4, 64/s.sequences))))
}

// local says whether a block multiplies with all of A that it needs by itself: small models have no time to wait for others.
func (s streamShape) local() bool {
	return s.tiles() == 1 && s.ranks() <= 32 && max(s.width, s.mlp, s.heads.Query*s.heads.Dim) <= 2048
}
