package cuda

import (
	"math"

	"loratrain/kernels"
)

// Sample chooses a token for each row of logits: the temperature divides the logits, TopK and then TopP leave
// some of them, and the token is the first whose cumulative probability, largest first, exceeds u[t], which is
// uniform in [0, 1). ids (T) i32, logits (T, V) of type Float or Param, u (T) of type Param. A NaN is never chosen; a
// row of nothing else gives 0. Equal logits are in the order of their ids.
func (b *Backend) Sample(ids, logits, u kernels.Tensor, rule kernels.Sampling) {
	const op = "Sample"
	rows, vocabulary := matrixShape(op, "logits", logits)
	need(op, "ids", ids, kernels.I32, rows)
	typ := b.Float()
	if logits.Type == b.Param() {
		typ = b.Param()
	}
	need(op, "logits", logits, typ, rows, vocabulary)
	need(op, "u", u, b.Param(), rows)
	if !(rule.Temperature > 0) || rule.TopK == 1 {
		l := Launch{Grid: [3]int{rows}, Block: [3]int{min(1024, ceil(vocabulary, 8*32)*32)}}
		b.dev.Launch("greedy"+suffix(typ), l, at(ids), at(logits), int32(vocabulary))
		return
	}
	l := Launch{Grid: [3]int{rows}, Block: [3]int{min(512, ceil(vocabulary, 8*32)*32)}}
	b.dev.Launch("sample"+suffix(typ), l, at(ids), at(logits), at(u), int32(vocabulary), sampleRuleOf(rule, vocabulary))
}

// sampleRule is a [kernels.Sampling] as sample.cu takes it.
type sampleRule struct {
	topP               uint64 // the bits of a float64
	inverseTemperature float32
	topK, _            int32
}

func sampleRuleOf(rule kernels.Sampling, vocabulary int) sampleRule {
	r := sampleRule{inverseTemperature: float32(1 / rule.Temperature)}
	if rule.TopK > 0 && rule.TopK < vocabulary {
		r.topK = int32(rule.TopK)
	}
	if rule.TopP > 0 && rule.TopP < 1 {
		r.topP = math.Float64bits(rule.TopP)
	}
	return r
}
