package cuda

import (
	"fmt"
	"slices"
	"strconv"

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
	streamCols       = 64 // of a stage of weights
	streamRows       = 128
	streamWarps      = 8
	streamStage      = streamCols * streamRows * 2
	streamStepBytes  = 6144
	streamSequences  = 64
	streamExperts    = 256
	streamActive     = 128
	streamChoices    = 128
	streamSplits     = 16
	streamLocalRanks = 32
	streamSlices     = 32 // of a phase's columns, at most
	streamItems      = 4  // of attention, whose queries a block reads at once
	streamDownCols   = 16 // stages of columns of a run of A, at most
	streamUpBehind   = 3  // stages, at least, behind which B is multiplied
)

// streamRun, streamPart, streamBlock and streamTarget are those of stream.cuh.
type streamRun struct{ Kind, Target, Row, Column, Count int32 }

// The kinds of runs.
const (
	runWeights = iota
	runWeightsAndUp
	runDown
	runWeightsAndExperts
)

type streamPart struct {
	FirstRun, Runs, FirstColumn, Columns, KeepSlice int32
}

type streamBlock struct {
	FirstPart       [streamPhases + 1]int32
	Clear, Clearers int32
	Share, Sharers  int32
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

// most is how many sequences the kernel takes that takes these.
func (s streamShape) most() int {
	for _, n := range streamKernels {
		if s.sequences <= n {
			return n
		}
	}
	panic(fmt.Sprintf("kernels/cuda: a decoding step of %d sequences", s.sequences))
}

// kernel is that kernel in stream_sm90.cu, but for the elements of a head.
func (s streamShape) kernel() string {
	if s.local() {
		return "local"
	}
	return strconv.Itoa(s.most())
}

// ranks is the most rows of A that a step uses, rounded up to the 16 that tensor cores take.
func (s streamShape) ranks() int {
	return ceil(min(s.experts, s.chosen*s.sequences)*s.rank, 16) * 16
}

func (s streamShape) adapts(target int) bool {
	return target < kernels.Targets && s.experts > 0 && s.adapted[target]
}

// streamPlan is which block multiplies what, where sums and words are, and how many numbers are added to a sum.
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
	xAt                 [streamPhases]int64
	slotSize, earlySize int64 // in sums
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
	if s.shared() {
		return min(streamSlices, ceil(stages, min(16, max(4, s.width/streamCols/4), 256/s.sequences)))
	}
	return min(streamSlices, ceil(stages, 16))
}

// local says whether each run of weights also has what A and B make of its columns: small models have no time to wait for others' parts of x·A, and their
// runs are few.
func (s streamShape) local() bool {
	return s.sequences == 1 && s.ranks() <= streamLocalRanks && max(s.width, s.mlp, s.heads.Query*s.heads.Dim) <= 2048
}

// shared says whether blocks share the work of making what they multiply with.
func (s streamShape) shared() bool { return s.sequences > 1 }

// sliceWidth is the columns of the residual stream whose squares are added up by one warp.
func (s streamShape) sliceWidth() int { return max(128, ceil(ceil(s.width, streamSlices), 64)*64) }

// squaresOfOne is how many sums of squares the blocks tell each other of a sequence's residual stream in so many slices.
func (s streamShape) squaresOfOne(slices int) int {
	if s.shared() {
		return slices
	}
	return slices * streamWarps
}

// rowsOfX is how many sequences' activations a block keeps.
func (s streamShape) rowsOfX() int {
	if !s.shared() {
		return 1
	}
	return ceil(s.most(), 8) * 8
}

// boxRows is how many rows of an expert are copied at a time, at most `most`.
func (s streamShape) boxRows(most int) int {
	n := 8
	for 2*n <= most && s.rank%(2*n) == 0 {
		n *= 2
	}
	return n
}
