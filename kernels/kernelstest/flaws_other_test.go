package kernelstest

import (
	"math"
	"slices"
	"unsafe"

	"loratrain/kernels"
)

var otherFlaws = []flaw{
	{"Alloc gives used memory", "Storage", `Alloc: element 0 is`, func(n naive) kernels.Backend { return dirty{n} }},
	{"Alloc panics", "Storage", `too_much_memory`, func(n naive) kernels.Backend { return greedyAlloc{n} }},
	{"Zero clears too much", "Storage", `Zero of a part`, func(n naive) kernels.Backend { return clearsMore{n} }},
	{"Fetch reads late", "Storage", `Fetch what was there: host\[1\] is`, func(n naive) kernels.Backend { return fetchesLate{n} }},
	{"Fetch gives more than was asked for", "Storage", `Fetch of a part: host\[.*\] is .*, want 7`, func(n naive) kernels.Backend { return fetchesMore{n} }},
	{"Norm forgets the last", "Norm", `norm\[0\]`, func(n naive) kernels.Backend { return shortNorm{n} }},
	{"Step counts from zero", "Step", `first_step(?s:.*)p is`, func(n naive) kernels.Backend { return fromZero{n} }},
	{"Step couples decay", "Step", `decay_is_decoupled`, func(n naive) kernels.Backend { return coupled{n} }},
	{"Step always clips", "Step", `short_enough(?s:.*)m is`, func(n naive) kernels.Backend { return alwaysClips{n} }},
	{"Step scales the gradient in place", "Step", `g\[0\]: an input was modified`, func(n naive) kernels.Backend { return scalesGradient{n} }},
	{"Step goes on without a norm", "Step", `norm_NaN_clip_0(?s:.*)m\[0\] moved`, func(n naive) kernels.Backend { return neverStops{n} }},
	{"Step stops at large norms", "Step", `large_but_finite`, func(n naive) kernels.Backend { return stopsEarly{n} }},
	{"Round rounds twice", "Round", `f64_to_bf16(?s:.*)becomes dst`, func(n naive) kernels.Backend { return roundsTwice{n} }},
	{"Round truncates", "Round", `f32_to_bf16(?s:.*)becomes dst`, func(n naive) kernels.Backend { return truncates{n} }},
	{"Round flushes what is small", "Round", `becomes dst\[.*\] = 0, want`, func(n naive) kernels.Backend { return flushes{n} }},
	{"Round saturates", "Round", `want \+Inf`, func(n naive) kernels.Backend { return saturates{n} }},
	{"Round makes NaN infinite", "Round", `NaN becomes dst\[0\] = \+Inf`, func(n naive) kernels.Backend { return nanIsInfinite{n} }},
	{"Experts overwrites", "Experts", `y\[`, func(n naive) kernels.Backend { return overwritesY{n} }},
	{"Experts takes the first alone", "Experts", `y\[`, func(n naive) kernels.Backend { return firstExpert{n} }},
	{"Merge takes one layer", "Merge", `layers\[1\]\.Dst\[0 0\] is NaN`, func(n naive) kernels.Backend { return oneLayer{n} }},
	{"Merge does it again", "Merge", `layers\[1\]\.Dst\[0 0\] was written`, func(n naive) kernels.Backend { return mergesAlways{n} }},
	{"Merge compares ids alone", "Merge", `weight_differs_in_a_bit(?s:.*)Dst are wrong`, func(n naive) kernels.Backend { return comparesIDs{n} }},
	{"Merge compares numbers", "Merge", `minus_zero_is_not_zero(?s:.*)Dst are wrong`, func(n naive) kernels.Backend { return comparesNumbers{n} }},
	{"Merge forgets what it merged", "Merge", `force\[0\] is -1, want 2`, func(n naive) kernels.Backend { return forgetsForce{n} }},
	{"Merge starts from what it merged", "Merge", `Dst has other bits than a fresh merge`, func(n naive) kernels.Backend { return mergesOnto{n} }},
	{"PrepareMerge keeps one layer", "PrepareMerge", `1 layers, prepared were 2`, func(n naive) kernels.Backend { return keepsOne{n} }},
	{"Append puts padding in row 0", "Append", `padding_stays_out`, func(n naive) kernels.Backend { return appendsPadding{n} }},
	{"Spread keeps the last of equals", "Spread", `twice(?s:.*)gates\[`, func(n naive) kernels.Backend { return lastGate{n} }},
	{"Spread leaves other gates", "Spread", `gates\[`, func(n naive) kernels.Backend { return leavesGates{n} }},
	{"Advance runs what is stopped", "Advance", `stopped`, func(n naive) kernels.Backend { return startsAll{n} }},
	{"Advance goes on behind the end", "Advance", `full`, func(n naive) kernels.Backend { return roomForMore{n} }},
	{"Advance forgets the window", "Advance", `out_of_the_window(?s:.*)spans\[`, func(n naive) kernels.Backend { return noWindow{n} }},
	{"Advance sees one position less", "Advance", `window_of_one|within_the_window(?s:.*)spans\[`, func(n naive) kernels.Backend { return nearWindow{n} }},
	{"Advance takes what is stopped for live", "Advance", `live\[`, func(n naive) kernels.Backend { return livesOn{n} }},
	{"Advance leaves the length", "Advance", `length\[`, func(n naive) kernels.Backend { return leavesLength{n} }},
	{"Advance takes the first key for all", "Advance", `u is`, func(n naive) kernels.Backend { return firstKey{n} }},
	{"Advance leaves weights of what is stopped", "Advance", `weights is`, func(n naive) kernels.Backend { return leavesWeights{n} }},
	{"Sample takes the last of equals", "Sample", `greedy_tie_goes_low`, func(n naive) kernels.Backend { return lastOfEquals{n} }},
	{"Sample drops what reaches top-p", "Sample", `top-p_takes_the_one_that_reaches_it`, func(n naive) kernels.Backend { return dropsReaching{n} }},
	{"Sample ignores top-k", "Sample", `top-k_of_one`, func(n naive) kernels.Backend { return ignoresTopK{n} }},
	{"Sample multiplies by the temperature", "Sample", `hot|cold`, func(n naive) kernels.Backend { return multiplies{n} }},
}

// beyond is the bytes of one element behind the end of a view, which its memory is not to give.
func beyond(t kernels.Tensor) []byte {
	mem := hostBytes(t)
	return unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(mem)), len(mem))), t.Type.Size())
}

type dirty struct{ naive }

func (b dirty) Alloc(t kernels.Type, shape ...int) (kernels.Tensor, error) {
	x, err := b.naive.Alloc(t, shape...)
	if err == nil {
		edit(x, func(int, float64) float64 { return 1 })
	}
	return x, err
}

type greedyAlloc struct{ naive }

func (b greedyAlloc) Alloc(t kernels.Type, shape ...int) (kernels.Tensor, error) {
	return kernels.NewHost(t, shape...), nil
}

type clearsMore struct{ naive }

func (b clearsMore) Zero(t kernels.Tensor) {
	b.naive.Zero(t)
	if n := len(t.Shape); n == 1 && t.Len()%2 == 1 && t.Len() > 1 && t.Len() < 4000 {
		clear(beyond(t))
	}
}

type fetchesLate struct{ naive }

func (b fetchesLate) Fetch(host, t kernels.Tensor) func() { return func() { b.Read(host, t) } }

type fetchesMore struct{ naive }

func (b fetchesMore) Fetch(host, t kernels.Tensor) func() {
	copy(beyond(host), hostBytes(t))
	return b.naive.Fetch(host, t)
}

type shortNorm struct{ naive }

func (b shortNorm) Norm(y, g kernels.Tensor) { b.naive.Norm(y, g.View(0, max(1, g.Len()-1))) }

type fromZero struct{ naive }

func (b fromZero) Step(p, g, m, v, norm, hyper kernels.Tensor, c kernels.AdamW) {
	later := changed(hyper, func(i int, v float64) float64 { return v + float64(i) })
	b.naive.Step(p, g, m, v, norm, later, c)
}

type coupled struct{ naive }

func (b coupled) Step(p, g, m, v, norm, hyper kernels.Tensor, c kernels.AdamW) {
	ps := decode(p)
	decayed := changed(g, func(i int, v float64) float64 { return v + c.Decay*ps[i] })
	c.Decay = 0
	b.naive.Step(p, decayed, m, v, norm, hyper, c)
}

type alwaysClips struct{ naive }

func (b alwaysClips) Step(p, g, m, v, norm, hyper kernels.Tensor, c kernels.AdamW) {
	if c.Clip > 0 {
		length := decode(norm)[0]
		g = changed(g, func(_ int, v float64) float64 { return v * c.Clip / (length + 1e-6) })
		c.Clip = 0
	}
	b.naive.Step(p, g, m, v, norm, hyper, c)
}

type scalesGradient struct{ naive }

func (b scalesGradient) Step(p, g, m, v, norm, hyper kernels.Tensor, c kernels.AdamW) {
	b.naive.Step(p, g, m, v, norm, hyper, c)
	edit(g, func(_ int, v float64) float64 { return v / 2 })
}

type neverStops struct{ naive }

func (b neverStops) Step(p, g, m, v, norm, hyper kernels.Tensor, c kernels.AdamW) {
	b.naive.Step(p, g, m, v, changed(norm, finite), hyper, c)
}

type stopsEarly struct{ naive }

func (b stopsEarly) Step(p, g, m, v, norm, hyper kernels.Tensor, c kernels.AdamW) {
	if decode(norm)[0] < 1e20 {
		b.naive.Step(p, g, m, v, norm, hyper, c)
	}
}

type roundsTwice struct{ naive }

func (b roundsTwice) Round(dst, src kernels.Tensor) {
	b.naive.Round(dst, changed(src, func(_ int, v float64) float64 { return float64(float32(v)) }))
}

type truncates struct{ naive }

func (b truncates) Round(dst, src kernels.Tensor) {
	if dst.Type == kernels.BF16 {
		src = changed(src, func(_ int, v float64) float64 {
			return float64(math.Float32frombits(math.Float32bits(float32(v)) &^ 0xffff))
		})
	}
	b.naive.Round(dst, src)
}

// roundAnd is Round, and then something done to each result.
func (b naive) roundAnd(dst, src kernels.Tensor, then func(v float64) float64) {
	b.Round(dst, src)
	edit(dst, func(_ int, v float64) float64 { return then(v) })
}

type flushes struct{ naive }

func (b flushes) Round(dst, src kernels.Tensor) {
	b.roundAnd(dst, src, func(v float64) float64 {
		if math.Abs(v) < 0x1p-126 {
			return math.Copysign(0, v)
		}
		return v
	})
}

type saturates struct{ naive }

func (b saturates) Round(dst, src kernels.Tensor) {
	b.roundAnd(dst, src, func(v float64) float64 { return math.Max(-0x1.fep127, math.Min(0x1.fep127, v)) })
}

type nanIsInfinite struct{ naive }

func (b nanIsInfinite) Round(dst, src kernels.Tensor) {
	b.roundAnd(dst, src, func(v float64) float64 {
		if math.IsNaN(v) {
			return math.Inf(1)
		}
		return v
	})
}

type overwritesY struct{ naive }

func (b overwritesY) Experts(y, x, a, up, ids, weights kernels.Tensor, scale float64) {
	b.Zero(y)
	b.naive.Experts(y, x, a, up, ids, weights, scale)
}

type firstExpert struct{ naive }

func (b firstExpert) Experts(y, x, a, up, ids, weights kernels.Tensor, scale float64) {
	n := weights.Shape[1]
	first := changed(weights, func(i int, v float64) float64 {
		if i%n > 0 {
			return 0
		}
		return v
	})
	b.naive.Experts(y, x, a, up, ids, first, scale)
}

type oneLayer struct{ naive }

func (b oneLayer) Merge(m kernels.Merging, ids, weights, force kernels.Tensor, scale float64) {
	b.naive.Merge(naiveMerging(m.Layers()[:1]), ids, weights, force, scale)
}

type mergesAlways struct{ naive }

func (b mergesAlways) Merge(m kernels.Merging, ids, weights, force kernels.Tensor, scale float64) {
	b.naive.Merge(m, ids, weights, force, scale)
	b.naive.Merge(m, ids, weights, kernels.Tensor{}, scale)
}

type comparesIDs struct{ naive }

func (b comparesIDs) Merge(m kernels.Merging, ids, weights, force kernels.Tensor, scale float64) {
	if !force.None() {
		if last, is := kernels.Slice[int32](force), kernels.Slice[int32](ids); slices.Equal(last[:len(is)], is) {
			copy(last, forceOf(ids, weights))
			return
		}
	}
	b.naive.Merge(m, ids, weights, force, scale)
}

func forceOf(ids, weights kernels.Tensor) []int32 {
	return force(kernels.Slice[int32](ids), numbers(decode(weights)))
}

type comparesNumbers struct{ naive }

func (b comparesNumbers) Merge(m kernels.Merging, ids, weights, force kernels.Tensor, scale float64) {
	if !force.None() {
		last, asked := kernels.Slice[int32](force), forceOf(ids, weights)
		same := true
		for i := range asked {
			x, y := math.Float32frombits(uint32(last[i])), math.Float32frombits(uint32(asked[i]))
			same = same && (last[i] == asked[i] || x == y)
		}
		if same {
			copy(last, asked)
			return
		}
	}
	b.naive.Merge(m, ids, weights, force, scale)
}

type forgetsForce struct{ naive }

func (b forgetsForce) Merge(m kernels.Merging, ids, weights, force kernels.Tensor, scale float64) {
	if !force.None() {
		force = kernels.FromSlice(slices.Clone(kernels.Slice[int32](force)), force.Shape...)
	}
	b.naive.Merge(m, ids, weights, force, scale)
}

type mergesOnto struct{ naive }

func (b mergesOnto) Merge(m kernels.Merging, ids, weights, force kernels.Tensor, scale float64) {
	layers := slices.Clone(m.Layers())
	if !force.None() && kernels.Slice[int32](force)[0] > 0 {
		for i := range layers {
			layers[i].Src = layers[i].Dst
		}
	}
	b.naive.Merge(naiveMerging(layers), ids, weights, force, scale)
}

type keepsOne struct{ naive }

func (b keepsOne) PrepareMerge(layers []kernels.Merge) (kernels.Merging, error) {
	return b.naive.PrepareMerge(layers[:1])
}

type appendsPadding struct{ naive }

func (b appendsPadding) Append(cache, x, at kernels.Tensor) {
	b.naive.Append(cache, x, everybody(at))
}

type startsAll struct{ naive }

func (b startsAll) Advance(q kernels.Sequences, ids, gates kernels.Tensor) {
	edit(q.Length, func(_ int, v float64) float64 { return max(v, 0) })
	b.naive.Advance(q, ids, gates)
}

type roomForMore struct{ naive }

func (b roomForMore) Advance(q kernels.Sequences, ids, gates kernels.Tensor) {
	edit(q.Length, func(_ int, v float64) float64 { return min(v, float64(q.Room-1)) })
	b.naive.Advance(q, ids, gates)
}

type lastGate struct{ naive }

func (b lastGate) Spread(gates, ids, ws kernels.Tensor) {
	b.naive.Spread(gates, ids, ws)
	n, experts, values := ids.Shape[1], gates.Shape[1], decode(gates)
	weights := decode(ws)
	for i, id := range kernels.Slice[int32](ids) {
		values[i/n*experts+int(id)] = weights[i]
	}
	edit(gates, func(i int, _ float64) float64 { return values[i] })
}

type leavesGates struct{ naive }

func (b leavesGates) Spread(gates, ids, ws kernels.Tensor) {
	before := decode(gates)
	b.naive.Spread(gates, ids, ws)
	edit(gates, func(i int, v float64) float64 {
		if v == 0 {
			return before[i]
		}
		return v
	})
}

type livesOn struct{ naive }

func (b livesOn) Advance(q kernels.Sequences, ids, gates kernels.Tensor) {
	b.naive.Advance(q, ids, gates)
	pos := decode(q.Pos)
	edit(q.Live, func(i int, _ float64) float64 { return pos[i] })
}

type noWindow struct{ naive }

func (b noWindow) Advance(q kernels.Sequences, ids, gates kernels.Tensor) {
	q.Window = 0
	b.naive.Advance(q, ids, gates)
}

type nearWindow struct{ naive }

func (b nearWindow) Advance(q kernels.Sequences, ids, gates kernels.Tensor) {
	q.Window = max(q.Window-1, 0)
	b.naive.Advance(q, ids, gates)
}

type leavesLength struct{ naive }

func (b leavesLength) Advance(q kernels.Sequences, ids, gates kernels.Tensor) {
	before := decode(q.Length)
	b.naive.Advance(q, ids, gates)
	edit(q.Length, func(i int, _ float64) float64 { return before[i] })
}

type firstKey struct{ naive }

func (b firstKey) Advance(q kernels.Sequences, ids, gates kernels.Tensor) {
	keys := decode(q.Keys)
	q.Keys = changed(q.Keys, func(i int, _ float64) float64 { return keys[i%2] })
	b.naive.Advance(q, ids, gates)
}

type leavesWeights struct{ naive }

func (b leavesWeights) Advance(q kernels.Sequences, ids, gates kernels.Tensor) {
	b.naive.Advance(q, ids, gates)
	if ids.None() {
		return
	}
	rows := decode(q.Rows)
	edit(q.Weights, func(i int, v float64) float64 {
		if rows[i/q.Weights.Shape[1]] < 0 {
			return 0.5
		}
		return v
	})
}

type lastOfEquals struct{ naive }

func (b lastOfEquals) Sample(ids, logits, u kernels.Tensor, rule kernels.Sampling) {
	if rule.Temperature > 0 {
		b.naive.Sample(ids, logits, u, rule)
		return
	}
	b.naive.Sample(ids, reversed(logits), u, rule)
	edit(ids, func(_ int, v float64) float64 { return float64(logits.Shape[1]-1) - v })
}

type dropsReaching struct{ naive }

func (b dropsReaching) Sample(ids, logits, u kernels.Tensor, rule kernels.Sampling) {
	if rule.TopP > 0 && rule.TopP < 1 {
		row := matrix{1, logits.Shape[1], load(logits, b.float).row(0)}.values()
		rule.TopK = max(1, len(choices(row, rule))-1)
		rule.TopP = 0
	}
	b.naive.Sample(ids, logits, u, rule)
}

type ignoresTopK struct{ naive }

func (b ignoresTopK) Sample(ids, logits, u kernels.Tensor, rule kernels.Sampling) {
	rule.TopK = 0
	b.naive.Sample(ids, logits, u, rule)
}

type multiplies struct{ naive }

func (b multiplies) Sample(ids, logits, u kernels.Tensor, rule kernels.Sampling) {
	if rule.Temperature > 0 {
		rule.Temperature = math.Min(1/rule.Temperature, math.MaxFloat64)
	}
	b.naive.Sample(ids, logits, u, rule)
}
