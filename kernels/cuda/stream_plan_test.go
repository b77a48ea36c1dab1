package cuda

import (
	"slices"
	"testing"

	"loratrain/kernels"
)

// streamShapes are models whose schedules are tested.
var streamShapes = map[string]streamShape{
	"llama2-7b":                  {width: 4096, mlp: 11008, vocab: 32000, heads: kernels.Heads{Query: 32, KV: 32, Dim: 128}, blocks: 132, sequences: 1},
	"llama2-7b experts":          {width: 4096, mlp: 11008, vocab: 32000, heads: kernels.Heads{Query: 32, KV: 32, Dim: 128}, blocks: 132, sequences: 1, experts: 8, rank: 8, chosen: 2},
	"llama2-7b batch":            {width: 4096, mlp: 11008, vocab: 32000, heads: kernels.Heads{Query: 32, KV: 32, Dim: 128}, blocks: 132, sequences: 16, experts: 8, rank: 8, chosen: 2},
	"llama3-8b one sequence":     {width: 4096, mlp: 14336, vocab: 128256, heads: kernels.Heads{Query: 32, KV: 8, Dim: 128}, blocks: 132, sequences: 1, experts: 8, rank: 8, chosen: 2},
	"llama3-8b":                  {width: 4096, mlp: 14336, vocab: 128256, heads: kernels.Heads{Query: 32, KV: 8, Dim: 128}, blocks: 114, sequences: 64, experts: 4, rank: 16, chosen: 2},
	"qwen2.5-32b batch":          {width: 5120, mlp: 27648, vocab: 152064, heads: kernels.Heads{Query: 40, KV: 8, Dim: 128}, blocks: 132, sequences: 64, experts: 8, rank: 8, chosen: 2},
	"qwen2.5-1.5b of high ranks": {width: 1536, mlp: 8960, vocab: 151936, heads: kernels.Heads{Query: 12, KV: 2, Dim: 128}, blocks: 132, sequences: 1, experts: 8, rank: 64, chosen: 2},
	"smollm2-135m":               {width: 576, mlp: 1536, vocab: 49152, heads: kernels.Heads{Query: 9, KV: 3, Dim: 64}, blocks: 132, sequences: 1, experts: 8, rank: 8, chosen: 2},
	"tiny":                       {width: 64, mlp: 64, vocab: 130, heads: kernels.Heads{Query: 1, KV: 1, Dim: 64}, blocks: 132, sequences: 3, experts: 4, rank: 8, chosen: 2},
	"few blocks":                 {width: 256, mlp: 384, vocab: 256, heads: kernels.Heads{Query: 2, KV: 2, Dim: 128}, blocks: 3, sequences: 16, experts: 64, rank: 8, chosen: 2},
}

func TestStreamPlan(t *testing.T) {
	for name, s := range streamShapes {
		for i := range s.adapted {
			s.adapted[i] = s.experts > 0 && (name != "tiny" || i == 1 || i == 6)
		}
		t.Run(name, func(t *testing.T) { checkStreamPlan(t, s, planStream(s)) })
	}
}

// checkStreamPlan holds that every stage is in one run, that counters come to what is waited for, and that blocks have the columns they need.
func checkStreamPlan(t *testing.T, s streamShape, p *streamPlan) {
	type place struct{ target, row, column int32 }
	stages, counted, down := map[place]int{}, map[panel]int32{}, map[place]int{}
	load, bytes := make([][streamPhases]int, s.blocks), make([]int, s.blocks)
	keeps, downs := map[[2]int32]int{}, map[int32]int32{}
	for b := range s.blocks {
		for phase := range streamPhases {
			waits := false // for A's products
			var list []streamRun
			for _, part := range p.partsOf(b, phase) {
				all := p.runs[part.FirstRun : part.FirstRun+part.Runs]
				if part.KeepSlice >= 0 {
					keeps[[2]int32{int32(phase), part.KeepSlice}]++
					if !hasWeights(all) {
						t.Errorf("block %d is to keep slice %d of phase %d, where it has %v", b, part.KeepSlice, phase, all)
					}
				}
				if last := all[len(all)-1]; s.sequences <= 8 && !s.local() && last.Kind == runWeightsAndUp && last.Count >= 2*streamUpBehind {
					t.Errorf("block %d ends phase %d with %+v, which waits for A", b, phase, last)
				}
				for _, r := range all {
					if phaseOf(int(r.Target)) != phase {
						t.Errorf("block %d has %+v in phase %d", b, r, phase)
					}
					// Otherwise blocks would wait for each other.
					if waits = waits || r.Kind == runWeightsAndUp; waits && r.Kind == runDown {
						t.Errorf("block %d does %+v of A behind what waits for all of A", b, r)
					}
					if r.Column < part.FirstColumn || r.Column+64*r.Count > part.FirstColumn+part.Columns {
						t.Errorf("block %d has columns [%d, +%d) in phase %d, not those of %+v", b, part.FirstColumn, part.Columns, phase, r)
					}
					list = append(list, r)
				}
			}
			for _, r := range list {
				for j := range r.Count {
					at := place{r.Target, r.Row, r.Column + 64*j}
					if r.Kind == runDown {
						down[at]++
					} else {
						stages[at]++
					}
				}
				if r.Kind == runDown && r.Row == 0 {
					downs[r.Target] += min(r.Count, streamWarps)
				}
				switch {
				case phase == intoLogits:
				case r.Kind == runDown:
					bytes[b] += int(r.Count) * 2048
				case r.Kind == runWeightsAndUp:
					bytes[b] += int(r.Count)*streamStage + s.ranks()*streamRows*2
				case r.Kind == runWeightsAndExperts:
					bytes[b] += int(r.Count)*streamStage + s.ranks()*(int(r.Count)*streamCols+streamRows)*2
				default:
					bytes[b] += int(r.Count) * streamStage
				}
				if r.Kind != runDown {
					load[b][phase] += int(r.Count)
					counted[panel{int(r.Target), int(r.Row)}]++
				}
			}
		}
	}
	for target := range streamTargets {
		phase := phaseOf(target)
		for row := int32(0); int(row) < s.rows(target); row += streamRows {
			for c := int32(0); int(c) < s.columns(phase); c += streamCols {
				if n := stages[place{int32(target), row, c}]; n != 1 {
					t.Errorf("target %d, rows from %d, columns from %d: in %d runs", target, row, c, n)
				}
			}
			if target == streamO || target == streamDown {
				counted[panel{target, int(row)}]++ // the residual stream
			}
			if got, want := counted[panel{target, int(row)}], p.adds[int(p.targets[target].Panel)+int(row)/streamRows]; got != want {
				t.Errorf("target %d, rows from %d: %d runs add to them, %d are waited for", target, row, got, want)
			}
		}
		for group := int32(0); s.adapts(target) && !s.local() && int(group) < s.ranks()/16; group++ {
			for c := int32(0); int(c) < s.columns(phase); c += streamCols {
				if n := down[place{int32(target), group, c}]; n != 1 {
					t.Errorf("A of target %d, group %d, columns from %d: in %d runs", target, group, c, n)
				}
			}
		}
	}
	total := 0
	for _, n := range bytes {
		total += n
	}
	if most, average := slices.Max(bytes), total/s.blocks; most-average > max(4*streamStage, average/40) {
		t.Errorf("blocks copy %d to %d bytes for a layer, %d on average", slices.Min(bytes), most, average)
	}
	for target := range kernels.Targets {
		if n := p.targets[target].HiddenAdds; n > streamAdditions {
			t.Errorf("target %d: %d numbers are added to x·A, %d can be counted", target, n, streamAdditions)
		}
		if got, want := downs[int32(target)], p.targets[target].HiddenAdds; !s.local() && got != want {
			t.Errorf("target %d: %d numbers are added to x·A, %d are waited for", target, got, want)
		}
	}
	clearers, sharers := int32(0), int32(0)
	for b, x := range p.blocks {
		layer := slices.Max(load[b][:intoLogits])
		// Others would not wait for blocks without weights, whose experts may not be in use.
		if (load[b][intoMLP] > 0) != (x.Clearers > 0) || (layer > 0) != (x.Sharers > 0) {
			t.Errorf("block %d has %v stages of weights and is one of %d that clear, one of %d that share work", b, load[b], x.Clearers, x.Sharers)
		}
		if x.Clearers > 0 && x.Clear != clearers || x.Sharers > 0 && x.Share != sharers {
			t.Errorf("block %d is number %d of those that clear and %d of those that share work, not %d and %d", b, x.Clear, x.Share, clearers, sharers)
		}
		clearers, sharers = clearers+min(1, x.Clearers), sharers+min(1, x.Sharers)
	}
	for phase := range streamPhases {
		least, most := load[0][phase], 0
		for b := range s.blocks {
			least, most = min(least, load[b][phase]), max(most, load[b][phase])
		}
		if s.experts == 0 && most-least > 2 {
			t.Errorf("phase %d: blocks have %d to %d stages", phase, least, most)
		}
		for slice := range s.slicesOf(s.columns(phase) / streamCols) {
			if n := keeps[[2]int32{int32(phase), int32(slice)}]; n != 1 {
				t.Errorf("phase %d: slice %d is kept by %d blocks", phase, slice, n)
			}
		}
	}
}
