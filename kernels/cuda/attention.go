package cuda

import (
	"fmt"
	"math"

	"loratrain/kernels"
)

// attentionTile is attention_tile of attention.cuh: the tokens whose ranges are put together for the gradient.
const attentionTile = 64

// attentionFew is up to how many tokens are done each by itself in bf16: those that are decoded together see keys far apart, and a block goes
// through all keys between those that its tokens see.
const attentionFew = 64

// attentionSize is how the kernels in bf16 are made for heads of up to dim elements: 64·forward, 64·queries tokens or 64 keys to a
// block, with tiles of so many keys or, for the gradient of keys, queries, of which as many as stages are in shared memory. It
// must agree with the last lines of attention.cu and attention_grad.cu.
type attentionSize struct {
	dim                      int
	forward, forwardTile     int
	gradTile, stages, chunks int // chunks of 8 columns to a block
	queries, queryTile       int
}

var attentionSizes = []attentionSize{
	{16, 2, 64, 64, 2, 2, 2, 32},
	{32, 2, 64, 64, 2, 4, 2, 32},
	{64, 2, 64, 64, 2, 8, 2, 32},
	{96, 2, 32, 64, 2, 12, 2, 32},
	{128, 2, 32, 64, 2, 16, 2, 32},
	{256, 1, 32, 32, 1, 16, 1, 32},
}

// attentionHopper is the size of heads that kernels for Hopper in bf16 are made for, each block 64 tokens or keys of one, or 0 if none
// of them serves.
type attentionHopper int

func (b *Backend) attentionHopper(h kernels.Heads, aligned bool) attentionHopper {
	switch {
	case b.info.Major != 9 || b.info.Minor != 0 || !aligned || h.Dim <= 32 || h.Dim > 128:
		return 0
	case h.Dim <= 64:
		return 64
	}
	return 128
}

// attentionHeads is the struct Heads of attention.cuh.
type attentionHeads struct {
	tokens, keys, query, kv, dim, aligned int32
	scale, scale2                         float32
}

// attention is the operands of an attention operation, checked.
type attention struct {
	tokens, keys int
	heads        kernels.Heads
	size         attentionSize   // of bf16
	hopper       attentionHopper // of bf16
	args         attentionHeads
}

// attentionIn checks what Attention and its gradient have in common. others are further arrays that the kernels read or write.
func (b *Backend) attentionIn(op string, q, k, v, spans kernels.Tensor, h kernels.Heads, others ...kernels.Tensor) attention {
	if h.KV <= 0 || h.Dim <= 0 || h.Query <= 0 || h.Query%h.KV != 0 {
		fail(op, "%v, expected query heads in equal groups for the key-value heads", h)
	}
	a := attention{heads: h}
	a.tokens, _ = matrixShape(op, "q", q)
	a.keys, _ = matrixShape(op, "k", k)
	need(op, "q", q, b.Float(), a.tokens, h.Query*h.Dim)
	need(op, "k", k, b.Float(), a.keys, h.KV*h.Dim)
	need(op, "v", v, b.Float(), a.keys, h.KV*h.Dim)
	need(op, "spans", spans, kernels.I32, a.tokens, 4)
	aligned := int32(1)
	for _, t := range append([]kernels.Tensor{q, k, v}, others...) {
		if at(t)%16 != 0 || h.Dim%8 != 0 {
			aligned = 0
		}
	}
	scale := 1 / math.Sqrt(float64(h.Dim))
	a.args = attentionHeads{
		tokens: int32(a.tokens), keys: int32(a.keys), query: int32(h.Query), kv: int32(h.KV), dim: int32(h.Dim),
		aligned: aligned, scale: float32(scale), scale2: float32(scale * math.Log2E),
	}
	if b.Float() != kernels.BF16 {
		return a
	}
	a.hopper = b.attentionHopper(h, aligned == 1)
	for _, s := range attentionSizes {
		if h.Dim <= s.dim {
			a.size = s
			return a
		}
	}
	fail(op, "%v, expected at most %d elements in bf16", h, attentionSizes[len(attentionSizes)-1].dim)
	return a
}

// shared is the bytes of shared memory for so many tiles' rows of bf16, for the ranges of some of them, and others.
func (s attentionSize) shared(rows, ranges, others int) int { return rows*s.dim*2 + ranges*16 + others }

// launch is a block of four warps for each head and as many rows as a block takes, and shared memory for it.
func (s attentionSize) launch(heads, rows, perBlock, shared int) Launch {
	return Launch{Grid: [3]int{heads, ceil(rows, perBlock)}, Block: [3]int{128}, Shared: shared}
}

// launch is a block of a warpgroup for each head and 64 of rows, with so many tiles in shared memory and other bytes.
func (s attentionHopper) launch(heads, rows, tiles, others int) Launch {
	return Launch{Grid: [3]int{heads, ceil(rows, attentionTile)}, Block: [3]int{128}, Shared: tiles*attentionTile*int(s)*2 + others}
}

// Attention is o[t] = Σ_j softmax_j(q[t]·k[j]/√d)·v[j] for each head, over the keys j that token t sees:
// spans[t] = (a, b, c, e) makes them the rows [a, b) and [c, e) of k and v, two ranges that do not meet. A
// token that sees nothing gets zeros. lse[t, h] is the logarithm of the softmax's denominator, kept for the
// gradient, or none. o, q (T, H·d), k, v (N, K·d), spans (T, 4) i32, lse (T, H).
//
// Rows of k and v are the batch's own tokens in training, where one range is the token's sequence up to
// itself and the other a prompt shared by several continuations; or a cache that holds them.
func (b *Backend) Attention(o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	const op = "Attention"
	a := b.attentionIn(op, q, k, v, spans, heads, o)
	need(op, "o", o, b.Float(), a.tokens, heads.Query*heads.Dim)
	maybe(op, "lse", lse, b.Param(), a.tokens, heads.Query)
	few := a.tokens <= attentionFew
	if s := a.hopper; s > 0 && !few {
		// Tiles of q, k and v; ranges; and what attention_bf16 needs.
		l := s.launch(heads.Query, a.tokens, 3, attentionTile*16+4*32+2*16)
		b.dev.Launch(fmt.Sprintf("attention_hopper_%d", s), l, at(o), at(lse), at(q), at(k), at(v), at(spans), a.args)
		return
	}
	if b.Float() != kernels.BF16 {
		b.dev.Launch("attention_f32", rowWarps(a.tokens*heads.Query), at(o), at(lse), at(q), at(k), at(v), at(spans), a.args)
		return
	}
	s, rows := a.size, 64*a.size.forward
	each := a.tokens
	if few {
		each = min(each, 1)
	}
	// Tiles of q, and two of k and of v; bounds of four warps, and two marks of each.
	l := s.launch(heads.Query, each, rows, s.shared(rows+4*s.forwardTile, rows, 4*32+2*16))
	l.Grid[2] = a.tokens / max(each, 1)
	a.args.tokens = int32(each)
	b.dev.Launch(fmt.Sprintf("attention_bf16_%d", s.dim), l, at(o), at(lse), at(q), at(k), at(v), at(spans), a.args)
}

// AttentionGrad is the gradient of Attention, given its inputs and outputs. dq as q, dk and dv as k and v.
func (b *Backend) AttentionGrad(dq, dk, dv, do, o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	const op = "AttentionGrad"
	a := b.attentionIn(op, q, k, v, spans, heads, dq, dk, dv, do, o)
	for _, x := range []struct {
		name    string
		t, like kernels.Tensor
	}{{"dq", dq, q}, {"dk", dk, k}, {"dv", dv, v}, {"do", do, q}, {"o", o, q}} {
		need(op, x.name, x.t, b.Float(), x.like.Shape...)
	}
	need(op, "lse", lse, b.Param(), a.tokens, heads.Query)

	from := b.attentionPrepared(a)
	if s := a.hopper; s > 0 {
		// Tiles of q and do, or k and v, and two of each of the others; ranges and sums, of two tiles for keys; bounds of four warps.
		queries := s.launch(heads.Query, a.tokens, 6, attentionTile*(16+8)+4*32)
		keys := s.launch(heads.KV, a.keys, 6, 2*attentionTile*(16+8))
		b.dev.Launch(fmt.Sprintf("attention_grad_queries_hopper_%d", s), queries,
			at(dq), at(do), at(o), at(lse), at(q), at(k), at(v), at(spans), from, a.args)
		b.dev.Launch(fmt.Sprintf("attention_grad_keys_hopper_%d", s), keys,
			at(dk), at(dv), at(do), at(q), at(k), at(v), from, a.args)
		return
	}
	typ := suffix(b.Float())
	l := Launch{Grid: [3]int{heads.Query, ceil(a.tokens, attentionTile)}, Block: [3]int{256}}
	b.dev.Launch("attention_prepare"+typ, l, from, at(do), at(o), at(lse), at(spans), a.args)

	keys, queries := rowWarps(a.keys*heads.KV), rowWarps(a.tokens*heads.Query)
	if b.Float() == kernels.BF16 {
		s := a.size
		typ = fmt.Sprintf("%s_%d", typ, s.dim)
		// Tiles of k and v, and of q and do with their tokens' ranges and sums.
		n := s.stages * s.gradTile
		keys = s.launch(heads.KV, a.keys, 64, s.shared(2*64+2*n, n, n*8))
		keys.Grid[2] = s.dim / 8 / s.chunks
		// Tiles of q and do with their tokens' ranges and sums, and of k and v.
		rows := 64 * s.queries
		queries = s.launch(heads.Query, a.tokens, rows, s.shared(2*rows+2*s.stages*s.queryTile, rows, rows*8))
	}
	b.dev.Launch("attention_grad_keys"+typ, keys, at(dk), at(dv), at(do), at(q), at(k), at(v), from, a.args)
	b.dev.Launch("attention_grad_queries"+typ, queries, at(dq), at(do), at(q), at(k), at(v), from, a.args)
}

// attentionPrepared is the struct Prepared of attention_backward.cuh: the lse and Σ do·o of each head and token, the tokens' ranges,
// and those of tiles of tokens, in the workspace.
func (b *Backend) attentionPrepared(a attention) struct{ rows, seen, tiles Address } {
	tiles := ceil(a.tokens, attentionTile)
	tokens := tiles * attentionTile
	rows := b.scratch(kernels.F32, 0, a.heads.Query, tokens, 2)
	seen := b.scratch(kernels.I32, rows.Bytes(), tokens, 4)
	all := b.scratch(kernels.I32, rows.Bytes()+seen.Bytes(), tiles, 8)
	return struct{ rows, seen, tiles Address }{at(rows), at(seen), at(all)}
}
