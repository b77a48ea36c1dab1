package cuda

import (
	"cmp"
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
	streamSplits    = 16
)

// streamRun, streamPart and streamTarget are those of stream.cuh.
type streamRun struct{ Kind, Target, Row, Column, Count int32 }

// The kinds of runs.
const (
	runWeights = iota
	runDown
	runUp
)

type streamPart struct{ FirstRun, Runs, FirstColumn, Columns, Slice, Keeps int32 }

type streamTarget struct {
	Rows, Stride, Complete, CounterAt, HiddenCounter, DownStages int32
	SumsAt, HiddenAt                                             int64
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
	t := 1
	for 8*t < s.sequences {
		t *= 2
	}
	return t
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
	parts   []streamPart // streamPhases for each block
	targets [streamTargets]streamTarget
	slices  int // of the width
	columns int // of the widest part

	slotSize, earlySize                 int64 // in sums of 8 bytes
	squaresAt, squaresMLPAt, attendedAt int32
}

// slicesOf divides stages of 64 columns among groups of blocks, so that what a block keeps of the activations fits beside its ring.
func (s streamShape) slicesOf(stages int) int {
	most := 46 << 10
	if s.tiles() > 1 {
		most = 90 << 10
	}
	least := min(stages, s.blocks, ceil(stages*streamCols*8*s.tiles()*2, most))
	for n := least; n <= min(stages, s.blocks, 2*least); n++ {
		if stages%n == 0 && s.blocks%n == 0 {
			return n
		}
	}
	return least
}

// planner deals work to blocks.
type planner struct {
	streamShape
	plan *streamPlan
	load []int // bytes that a block copies for a layer
	work [][streamPhases][]streamRun
}

// planStream makes a schedule. Every stage of every weight is in exactly one run, and blocks copy about the same number of bytes.
func planStream(s streamShape) *streamPlan {
	p := planner{streamShape: s, plan: &streamPlan{}, load: make([]int, s.blocks), work: make([][streamPhases][]streamRun, s.blocks)}
	p.place()
	p.plan.slices = p.slicesOf(s.width / streamCols)
	// What leaves least choice comes first: phases with few rows.
	for _, phase := range []int{outOfAttention, outOfMLP, intoAttention, intoMLP} {
		p.deal(phase)
	}
	p.load = make([]int, s.blocks) // behind the last layer all begin alike
	p.deal(intoLogits)
	p.collect()
	return p.plan
}

// place lays out the sums and counters of a layer. Those of attention and of its output projection come first: they are cleared
// a layer earlier.
func (p *planner) place() {
	sums, counters := int64(0), int32(0)
	target := func(t int) {
		x := &p.plan.targets[t]
		rows := p.rows(t)
		x.Rows, x.Stride, x.SumsAt = int32(rows), int32(rows), sums
		sums += int64(rows * p.sequences)
		if p.adapts(t) {
			x.HiddenAt = sums
			sums += int64(p.ranks() * p.sequences)
		}
	}
	count := func(t int) {
		x := &p.plan.targets[t]
		phase := slices.IndexFunc(phaseTargets[:], func(l []int) bool { return slices.Contains(l, t) })
		stages := p.columns(phase) / streamCols
		x.CounterAt, x.Complete = counters, int32(streamWarps*stages)
		counters += int32(ceil(p.rows(t), streamRows))
		if p.adapts(t) {
			x.Complete += streamWarps
			x.HiddenCounter = counters
			counters++
		}
	}
	half := func(targets []int, more func()) {
		for _, t := range targets {
			target(t)
		}
		counters = int32(2 * sums) // a sum has two numbers of 4 bytes
		for _, t := range targets {
			count(t)
		}
		more()
		sums = int64(ceil(int(counters), 4)) * 2 // of 16 bytes, as they are cleared
	}
	half([]int{streamQ, streamK, streamV, streamO}, func() {
		p.plan.squaresAt, p.plan.attendedAt = counters, counters+1
		counters += 1 + int32(p.heads.KV)
	})
	p.plan.earlySize = sums
	half([]int{streamGate, streamUp, streamDown}, func() {
		p.plan.squaresMLPAt = counters
		counters++
	})
	p.plan.slotSize = sums
	head := &p.plan.targets[streamHead]
	head.Rows, head.Stride = int32(p.vocab), int32(p.vocab)
}

// panel is 128 rows of a linear layer.
type panel struct{ target, row int }

// panels are those of a phase; linear layers that are used together take turns.
func (p *planner) panels(phase int) []panel {
	var list []panel
	for _, t := range phaseTargets[phase] {
		for r := 0; r < p.rows(t); r += streamRows {
			list = append(list, panel{t, r})
		}
	}
	if phase == intoMLP {
		slices.SortStableFunc(list, func(a, b panel) int { return cmp.Compare(a.row, b.row) })
	}
	return list
}

// deal gives a phase's work to the blocks, to those first that have least.
func (p *planner) deal(phase int) {
	stages, panels := p.columns(phase)/streamCols, p.panels(phase)
	n := p.slicesOf(stages)
	for slice := range n {
		first, end := stages*slice/n, stages*(slice+1)/n
		var blocks []int
		for b := slice; b < p.blocks; b += n {
			blocks = append(blocks, b)
		}
		p.dealDown(phase, blocks, first, end)
		shares := p.shares(blocks, len(panels)*(end-first))
		at := 0
		for i, b := range blocks {
			for left := shares[i]; left > 0; {
				x, stage := panels[at/(end-first)], at%(end-first)
				count := min(left, end-first-stage)
				p.give(b, phase, streamRun{runWeights, int32(x.target), int32(x.row), int32((first + stage) * streamCols), int32(count)}, count*streamStage)
				at, left = at+count, left-count
			}
		}
		p.columnsOf(phase, slice, first, end, blocks)
	}
	p.dealUp(phase, panels)
}

// shares divides stages so that loads come as near to each other as they can.
func (p *planner) shares(blocks []int, stages int) []int {
	list := make([]int, len(blocks))
	order := make([]int, len(blocks))
	for i := range order {
		order[i] = i
	}
	load := func(i int) int { return p.load[blocks[i]] + list[i]*streamStage }
	for stages > 0 {
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(load(a), load(b)) })
		low, n := load(order[0]), 1
		for n < len(order) && load(order[n]) < low+streamStage {
			n++
		}
		// The lowest n rise together to the next one.
		rise := ceil(stages, n)
		if n < len(order) {
			rise = min(rise, max(1, (load(order[n])-low)/streamStage))
		}
		for _, i := range order[:n] {
			k := min(rise, stages)
			list[i], stages = list[i]+k, stages-k
		}
	}
	return list
}

// give adds a run to a block's work.
func (p *planner) give(block, phase int, r streamRun, bytes int) {
	p.work[block][phase] = append(p.work[block][phase], r)
	p.load[block] += bytes
}

// least is the block among some that has least to do.
func (p *planner) least(blocks []int) int {
	return slices.MinFunc(blocks, func(a, b int) int { return cmp.Compare(p.load[a], p.load[b]) })
}

// usual is how many rows of A a step uses as a rule.
func (p *planner) usual() int {
	return min(p.ranks(), ceil(min(p.experts, p.chosen*p.sequences)*p.rank, 16)*16)
}

// dealDown deals the experts' A: 16 rows of them and eight stages' columns at a time.
func (p *planner) dealDown(phase int, blocks []int, first, end int) {
	for group := range p.ranks() / 16 {
		for _, t := range phaseTargets[phase] {
			if !p.adapts(t) {
				continue
			}
			for c := first; c < end; c += streamWarps {
				bytes := min(streamWarps, end-c) * 2048
				if 16*group >= p.usual() {
					bytes = 0
				}
				p.give(p.least(blocks), phase, streamRun{runDown, int32(t), int32(group), int32(c * streamCols), 1}, bytes)
				if group == 0 {
					p.plan.targets[t].DownStages++
				}
			}
		}
	}
}

// dealUp deals the experts' B, for 128 rows of the output at a time.
func (p *planner) dealUp(phase int, panels []panel) {
	var busy []int
	for b := range p.blocks {
		if len(p.work[b][phase]) > 0 {
			busy = append(busy, b)
		}
	}
	for _, x := range panels {
		if p.adapts(x.target) {
			p.give(p.least(busy), phase, streamRun{Kind: runUp, Target: int32(x.target), Row: int32(x.row)}, p.usual()*streamRows*2)
		}
	}
}

// columnsOf notes which columns the blocks of a slice need; the first that has work keeps the stream for others.
func (p *planner) columnsOf(phase, slice, first, end int, blocks []int) {
	if p.plan.parts == nil {
		p.plan.parts = make([]streamPart, p.blocks*streamPhases)
	}
	keeps := int32(1)
	for _, b := range blocks {
		x := &p.plan.parts[b*streamPhases+phase]
		*x = streamPart{FirstColumn: int32(first * streamCols), Columns: int32((end - first) * streamCols), Slice: int32(slice)}
		if len(p.work[b][phase]) > 0 {
			x.Keeps, keeps = keeps, 0
		}
		p.plan.columns = max(p.plan.columns, int(x.Columns))
	}
}

// collect lays the blocks' work end to end.
func (p *planner) collect() {
	for b := range p.blocks {
		for phase := range streamPhases {
			x := &p.plan.parts[b*streamPhases+phase]
			x.FirstRun, x.Runs = int32(len(p.plan.runs)), int32(len(p.work[b][phase]))
			p.plan.runs = append(p.plan.runs, p.work[b][phase]...)
		}
	}
}
