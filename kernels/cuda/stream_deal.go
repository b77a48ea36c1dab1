package cuda

import (
	"cmp"
	"slices"
	"sort"
)

// planner deals work to blocks.
type planner struct {
	streamShape
	plan *streamPlan
	load []int // bytes that a block copies for a layer
	work [][streamPhases][]streamRun
}

// planStream makes a schedule. Every stage of every weight is in exactly one run, and blocks copy about the same number of bytes.
func planStream(s streamShape) *streamPlan {
	p := planner{streamShape: s, plan: &streamPlan{blocks: make([]streamBlock, s.blocks)}, load: make([]int, s.blocks), work: make([][streamPhases][]streamRun, s.blocks)}
	p.place()
	p.plan.slices = p.slicesOf(s.width / streamCols)
	if p.shared() {
		p.plan.slices = ceil(s.width, p.sliceWidth())
	}
	// What leaves least choice comes first: phases with few rows.
	for _, phase := range []int{outOfAttention, outOfMLP, intoAttention, intoMLP} {
		p.deal(phase)
	}
	p.load = make([]int, s.blocks) // behind the last layer all begin alike
	p.deal(intoLogits)
	p.collect()
	return p.plan
}

// place lays out the sums of a layer. Those of attention and of its output projection come first: they are cleared a layer earlier.
func (p *planner) place() {
	sums, panels := int64(0), 0
	for t := range streamTargets {
		x := &p.plan.targets[t]
		rows := p.rows(t)
		*x = streamTarget{
			Rows: int32(rows), Stride: int32(rows), Panel: int32(panels), Place: int32(slices.Index(phaseTargets[phaseOf(t)], t)), SumsAt: sums,
		}
		panels += ceil(rows, streamRows)
		if t == streamHead {
			x.SumsAt = 0 // they lie apart
			break
		}
		sums += int64(rows * p.sequences)
		if p.adapts(t) && !p.local() {
			x.HiddenAt = sums
			sums += int64(p.ranks() * p.sequences)
		}
		sums += sums % 2 // pairs are read together
		if t == streamO {
			p.plan.earlySize = sums
		}
	}
	if p.shared() {
		for phase := range streamPhases {
			p.plan.xAt[phase] = sums
			sums += int64(ceil(p.columns(phase)*p.sequences/4, 2) * 2)
		}
	}
	p.plan.slotSize = sums
	p.plan.adds = make([]int32, panels)
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

// deal gives a phase's work to the blocks, so that all come to copy as much. Its stages are in order of slices, in a slice of panels, and each
// block has some that follow each other.
func (p *planner) deal(phase int) {
	stages, panels := p.columns(phase)/streamCols, p.panels(phase)
	n := p.slicesOf(stages)
	edge := func(slice int) int { return stages * slice / n }
	if !p.local() {
		p.dealDown(phase, n, edge)
	}
	at := 0 // counts stages: those of all panels in the slices before, then panel by panel
	slice, panelAt := 0, 0
	for b, left := range p.shares(len(panels) * stages) {
		for left > 0 {
			width := edge(slice+1) - edge(slice)
			count := min(left, width-at)
			x := panels[panelAt]
			p.give(b, phase, streamRun{runWeights, int32(x.target), int32(x.row), int32((edge(slice) + at) * streamCols), int32(count)}, count*streamStage)
			left -= count
			if at += count; at == width {
				at, panelAt = 0, panelAt+1
				if panelAt == len(panels) {
					slice, panelAt = slice+1, 0
				}
			}
		}
	}
	if p.local() {
		p.addExperts(phase)
		return
	}
	p.dealUp(phase, panels)
	p.order(phase)
}

// shares divides stages so that the blocks' loads come as near to each other as they can.
func (p *planner) shares(stages int) []int {
	list, order := make([]int, p.blocks), make([]int, p.blocks)
	for i := range order {
		order[i] = i
	}
	load := func(i int) int { return p.load[i] + list[i]*streamStage }
	for stages > 0 {
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(load(a), load(b)) })
		low, n := load(order[0]), 1
		for n < len(order) && load(order[n]) < low+streamStage {
			n++
		}
		// The lowest n rise together to the next one, as far as there is for all; then some of them get one more.
		rise := max(1, stages/n)
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

// dealDown deals the experts' A: 16 rows of them and up to streamDownCols stages of columns at a time, to those blocks of the ones that will have these
// columns that have least to do.
func (p *planner) dealDown(phase, n int, edge func(int) int) {
	for slice := range n {
		from, to := p.blocks*slice/n, max(p.blocks*slice/n+1, p.blocks*(slice+1)/n)
		if to-from > 2 { // those at the ends may come to this slice behind another
			from, to = from+1, to-1
		}
		for group := range p.ranks() / 16 {
			for _, t := range phaseTargets[phase] {
				for c := edge(slice); p.adapts(t) && c < edge(slice+1); c += streamDownCols {
					count, least := min(streamDownCols, edge(slice+1)-c), from
					for b := from; b < to; b++ {
						if p.load[b] < p.load[least] {
							least = b
						}
					}
					p.give(least, phase, streamRun{runDown, int32(t), int32(group), int32(c * streamCols), int32(count)}, count*2048)
					if group == 0 {
						p.plan.targets[t].HiddenAdds += int32(min(count, streamWarps)) // of each warp that has columns
					}
				}
			}
		}
	}
}

// dealUp lets one of each panel's runs add what the experts' B gives, that of a block which has least to do.
func (p *planner) dealUp(phase int, panels []panel) {
	runs := map[panel][]int{} // blocks
	for b := range p.blocks {
		last := p.lastSlice(b, phase)
		for _, r := range p.work[b][phase] {
			// What needs A's products waits for all parts of them. Only what is behind all of a block's own may.
			if r.Kind == runWeights && p.sliceOf(phase, r) == last {
				x := panel{int(r.Target), int(r.Row)}
				runs[x] = append(runs[x], b)
			}
		}
	}
	ups := make([]int, p.blocks)
	for _, x := range panels {
		if !p.adapts(x.target) {
			continue
		}
		b := slices.MinFunc(runs[x], func(a, b int) int {
			return cmp.Or(cmp.Compare(ups[a], ups[b]), cmp.Compare(p.load[a], p.load[b]))
		})
		ups[b]++
		work := p.work[b][phase]
		i := slices.IndexFunc(work, func(r streamRun) bool {
			return r.Kind == runWeights && int(r.Target) == x.target && int(r.Row) == x.row && p.sliceOf(phase, r) == p.lastSlice(b, phase)
		})
		work[i].Kind = runWeightsAndUp
		p.splitUp(b, phase, i)
		p.load[b] += p.ranks() * streamRows * 2
	}
}

// addExperts lets every run have what A and B make of its columns.
func (p *planner) addExperts(phase int) {
	for b := range p.blocks {
		work := p.work[b][phase]
		for i, r := range work {
			if p.adapts(int(r.Target)) {
				work[i].Kind = runWeightsAndExperts
				p.load[b] += p.ranks() * (int(r.Count)*streamCols*2 + streamRows*2)
			}
		}
	}
}

// splitUp makes two of a run that is all of a block's weights in its last slice, so that there is something behind what waits for A's products. The
// second adds to the same sums, which for many sequences takes longer than the wait.
func (p *planner) splitUp(block, phase, run int) {
	work := p.work[block][phase]
	rest := work[run]
	if p.sequences > 8 || rest.Count < 2*streamUpBehind ||
		slices.ContainsFunc(work, func(r streamRun) bool {
			return r.Kind == runWeights && p.sliceOf(phase, r) == p.lastSlice(block, phase)
		}) {
		return
	}
	work[run].Count -= rest.Count / 2
	rest.Kind, rest.Column, rest.Count = runWeights, rest.Column+work[run].Count*streamCols, rest.Count/2
	p.work[block][phase] = append(work, rest)
}

// sliceOf is the slice of columns that a run is of.
func (p *planner) sliceOf(phase int, r streamRun) int {
	stages := p.columns(phase) / streamCols
	n := p.slicesOf(stages)
	return sort.Search(n, func(i int) bool { return stages*(i+1)/n > int(r.Column)/streamCols })
}

func (p *planner) lastSlice(block, phase int) int {
	last := -1
	for _, r := range p.work[block][phase] {
		last = max(last, p.sliceOf(phase, r))
	}
	return last
}

// order puts a block's runs in order of slices, and of a slice those of A first, for others wait for them. What needs A's products comes behind other
// weights, its own or those of a run, by which time they are there, but not last, where all would wait for it.
func (p *planner) order(phase int) {
	for b := range p.blocks {
		work := p.work[b][phase]
		last := p.lastSlice(b, phase)
		ups := slices.IndexFunc(work, func(r streamRun) bool { return r.Kind == runWeightsAndUp && r.Count >= streamUpBehind })
		place := make(map[streamRun]int, len(work))
		first := ups < 0 // whether a run of weights alone comes before
		for _, r := range work {
			switch r.Kind {
			case runWeights:
				place[r] = 4
				if first && p.sliceOf(phase, r) == last {
					place[r], first = 1, false
				}
			case runWeightsAndUp:
				if place[r] = 3; ups >= 0 && r == work[ups] {
					place[r] = 2
				}
			}
		}
		slices.SortStableFunc(work, func(x, y streamRun) int {
			return cmp.Or(cmp.Compare(p.sliceOf(phase, x), p.sliceOf(phase, y)), cmp.Compare(place[x], place[y]))
		})
	}
}

// collect lays the blocks' work end to end as parts, names who keeps what of the residual stream, counts what is added to each panel, and names
// those who clear sums and those who share the making of activations: what they add next must be what others wait for, whatever experts are in use.
func (p *planner) collect() {
	var clearers, sharers []int
	kept := [streamPhases]map[int]bool{}
	for b := range p.blocks {
		runs, parts, block := len(p.plan.runs), len(p.plan.parts), &p.plan.blocks[b]
		for phase := range streamPhases {
			block.FirstPart[phase] = int32(len(p.plan.parts))
			p.collectPhase(b, phase, &kept[phase])
			if phase == intoMLP && hasWeights(p.work[b][phase]) {
				clearers = append(clearers, b)
			}
		}
		if slices.ContainsFunc(p.work[b][:intoLogits], hasWeights) {
			sharers = append(sharers, b)
		}
		block.FirstPart[streamPhases] = int32(len(p.plan.parts))
		p.plan.longest, p.plan.most = max(p.plan.longest, len(p.plan.runs)-runs), max(p.plan.most, len(p.plan.parts)-parts)
	}
	for _, t := range []int{streamO, streamDown} {
		for row := 0; row < p.rows(t); row += streamRows {
			p.plan.adds[int(p.plan.targets[t].Panel)+row/streamRows]++
		}
	}
	for i, b := range clearers {
		p.plan.blocks[b].Clear, p.plan.blocks[b].Clearers = int32(i), int32(len(clearers))
	}
	for i, b := range sharers {
		p.plan.blocks[b].Share, p.plan.blocks[b].Sharers = int32(i), int32(len(sharers))
	}
}

// hasWeights says whether there are other runs than those of A, which may be of experts that a step does not use.
func hasWeights(work []streamRun) bool {
	return slices.ContainsFunc(work, func(r streamRun) bool { return r.Kind != runDown })
}

// collectPhase is collect of a block's runs in a phase.
func (p *planner) collectPhase(block, phase int, kept *map[int]bool) {
	if *kept == nil {
		*kept = map[int]bool{}
	}
	stages := p.columns(phase) / streamCols
	n, before := p.slicesOf(stages), -1
	for _, r := range p.work[block][phase] {
		if slice := p.sliceOf(phase, r); slice != before {
			first, end := stages*slice/n, stages*(slice+1)/n
			x := streamPart{FirstRun: int32(len(p.plan.runs)), FirstColumn: int32(first * streamCols), Columns: int32((end - first) * streamCols), KeepSlice: -1}
			weights := slices.ContainsFunc(p.work[block][phase], func(r streamRun) bool { return r.Kind != runDown && p.sliceOf(phase, r) == slice })
			if weights && !(*kept)[slice] { // A alone may be of experts that are not in use
				(*kept)[slice], x.KeepSlice = true, int32(slice)
			}
			p.plan.parts = append(p.plan.parts, x)
			p.plan.columns, before = max(p.plan.columns, int(x.Columns)), slice
		}
		p.plan.parts[len(p.plan.parts)-1].Runs++
		p.plan.runs = append(p.plan.runs, r)
		if r.Kind != runDown {
			p.plan.adds[p.plan.targets[r.Target].Panel+r.Row/streamRows]++
		}
	}
}
