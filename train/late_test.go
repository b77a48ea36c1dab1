package train

import (
	"errors"
	"slices"
	"testing"

	"loratrain/kernels"
)

// late is a backend that works like a device: what it is asked for is queued, and done when somebody waits; nothing that was
// not waited for has reached the host. It can record. It may fail at one call of an operation, from which on it does nothing.
type late struct {
	kernels.Backend
	t testing.TB

	pending   []func()
	recording *recording // what is recorded now
	counts    map[string]int
	failing   string // operation
	failAt    int    // its call, from 1
	err       error
}

// errFault is what the device says of its failure.
var errFault = errors.New("the device fell over")

var (
	_ kernels.Backend  = (*late)(nil)
	_ kernels.Capturer = (*late)(nil)
)

func newLate(t testing.TB, b kernels.Backend) *late {
	return &late{Backend: b, t: t, counts: map[string]int{}}
}

// queue asks for an operation.
func (l *late) queue(name string, f func()) {
	work := func() {
		l.counts["done "+name]++
		if name == l.failing && l.counts["done "+name] == l.failAt {
			l.err = errFault
		}
		if l.err == nil {
			f()
		}
	}
	if l.recording != nil {
		l.recording.work = append(l.recording.work, work)
		return
	}
	l.counts[name]++
	l.pending = append(l.pending, work)
}

// finish does the first n of what was asked for.
func (l *late) finish(n int) {
	now := l.pending[:n]
	l.pending = slices.Clone(l.pending[n:])
	for _, f := range now {
		f()
	}
}

// outside fails the test if something is recorded.
func (l *late) outside(what string) {
	if l.recording != nil {
		l.t.Errorf("%s while operations are recorded", what)
	}
}

// recording is operations that late was asked for in Capture.
type recording struct {
	of     *late
	work   []func()
	closed bool
}

func (l *late) Capture(f func()) (kernels.Recording, error) {
	l.outside("Capture")
	r := &recording{of: l}
	l.recording = r
	f()
	l.recording = nil
	l.counts["Capture"]++
	l.counts["open"]++
	return r, nil
}

func (r *recording) Run() {
	if r.closed {
		r.of.t.Error("a recording is run after Close")
	}
	r.of.counts["Run"]++
	r.of.pending = append(r.of.pending, r.work...)
}

func (r *recording) Close() {
	if r.closed {
		r.of.t.Error("a recording is closed twice")
	}
	r.closed = true
	r.of.counts["open"]--
}

func (l *late) Alloc(t kernels.Type, shape ...int) (kernels.Tensor, error) {
	l.outside("Alloc")
	l.counts["Alloc"]++
	return l.Backend.Alloc(t, shape...)
}

func (l *late) Write(t, host kernels.Tensor) {
	l.outside("Write")
	copied := kernels.NewHost(host.Type, host.Shape...)
	copy(copied.Mem.(kernels.Host), host.Mem.(kernels.Host))
	l.queue("Write", func() { l.Backend.Write(t, copied) })
}

func (l *late) Read(host, t kernels.Tensor) {
	l.outside("Read")
	l.queue("Read", func() { l.Backend.Read(host, t) })
	l.finish(len(l.pending))
}

func (l *late) Fetch(host, t kernels.Tensor) func() {
	l.outside("Fetch")
	done := false
	l.queue("Fetch", func() { l.Backend.Fetch(host, t)() })
	l.pending = append(l.pending, func() { done = true })
	return func() {
		for !done {
			l.finish(1)
		}
	}
}

func (l *late) Sync() error {
	l.outside("Sync")
	l.finish(len(l.pending))
	return l.err
}

func (l *late) Copy(dst, src kernels.Tensor) {
	l.queue("Copy", func() { l.Backend.Copy(dst, src) })
}

func (l *late) Zero(t kernels.Tensor) { l.queue("Zero", func() { l.Backend.Zero(t) }) }

func (l *late) Embed(y, table, ids kernels.Tensor) {
	l.queue("Embed", func() { l.Backend.Embed(y, table, ids) })
}

func (l *late) RMSNorm(y, x, w kernels.Tensor, eps float64) {
	l.queue("RMSNorm", func() { l.Backend.RMSNorm(y, x, w, eps) })
}

func (l *late) Linear(y, x, w, bias, plus kernels.Tensor) {
	l.queue("Linear", func() { l.Backend.Linear(y, x, w, bias, plus) })
}

func (l *late) SwitchLinear(y, u, x, z, w, bias, plus kernels.Tensor, sw kernels.Switch) {
	l.queue("SwitchLinear", func() { l.Backend.SwitchLinear(y, u, x, z, w, bias, plus, sw) })
}

func (l *late) Rotary(y, x, table, pos kernels.Tensor, backwards bool) {
	l.queue("Rotary", func() { l.Backend.Rotary(y, x, table, pos, backwards) })
}

func (l *late) Attention(o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	l.queue("Attention", func() { l.Backend.Attention(o, lse, q, k, v, spans, heads) })
}

func (l *late) SwiGLU(y, g, u kernels.Tensor) {
	l.queue("SwiGLU", func() { l.Backend.SwiGLU(y, g, u) })
}

func (l *late) Sum(y kernels.Tensor, xs ...kernels.Tensor) {
	l.queue("Sum", func() { l.Backend.Sum(y, xs...) })
}

func (l *late) Scale(y, x, factor kernels.Tensor) {
	l.queue("Scale", func() { l.Backend.Scale(y, x, factor) })
}

func (l *late) Dropout(y, x, key kernels.Tensor, site int, rate float64) {
	l.queue("Dropout", func() { l.Backend.Dropout(y, x, key, site, rate) })
}

func (l *late) Route(logits, h, router kernels.Tensor) {
	l.queue("Route", func() { l.Backend.Route(logits, h, router) })
}

func (l *late) Gate(gates, logits kernels.Tensor) {
	l.queue("Gate", func() { l.Backend.Gate(gates, logits) })
}

func (l *late) Balance(loss, loads, logits, gates, seq kernels.Tensor) {
	l.queue("Balance", func() { l.Backend.Balance(loss, loads, logits, gates, seq) })
}

func (l *late) CrossEntropy(loss, dh, h, w, targets kernels.Tensor) {
	l.queue("CrossEntropy", func() { l.Backend.CrossEntropy(loss, dh, h, w, targets) })
}

func (l *late) LogProb(lp, h, w, targets kernels.Tensor) {
	l.queue("LogProb", func() { l.Backend.LogProb(lp, h, w, targets) })
}

func (l *late) RMSNormGrad(dx, x, w, dy, plus kernels.Tensor, eps float64) {
	l.queue("RMSNormGrad", func() { l.Backend.RMSNormGrad(dx, x, w, dy, plus, eps) })
}

func (l *late) LinearGrad(dx, dy, w, plus kernels.Tensor) {
	l.queue("LinearGrad", func() { l.Backend.LinearGrad(dx, dy, w, plus) })
}

func (l *late) SwitchGradHidden(du, dg, dy, u kernels.Tensor, sw kernels.Switch) {
	l.queue("SwitchGradHidden", func() { l.Backend.SwitchGradHidden(du, dg, dy, u, sw) })
}

func (l *late) SwitchGradInput(dx, dy, w, du, a, plus kernels.Tensor) {
	l.queue("SwitchGradInput", func() { l.Backend.SwitchGradInput(dx, dy, w, du, a, plus) })
}

func (l *late) SwitchGradA(da, z, du kernels.Tensor) {
	l.queue("SwitchGradA", func() { l.Backend.SwitchGradA(da, z, du) })
}

func (l *late) SwitchGradB(db, u, dy kernels.Tensor, sw kernels.Switch) {
	l.queue("SwitchGradB", func() { l.Backend.SwitchGradB(db, u, dy, sw) })
}

func (l *late) AttentionGrad(dq, dk, dv, do, o, lse, q, k, v, spans kernels.Tensor, heads kernels.Heads) {
	l.queue("AttentionGrad", func() { l.Backend.AttentionGrad(dq, dk, dv, do, o, lse, q, k, v, spans, heads) })
}

func (l *late) SwiGLUGrad(dg, du, g, u, dy kernels.Tensor) {
	l.queue("SwiGLUGrad", func() { l.Backend.SwiGLUGrad(dg, du, g, u, dy) })
}

func (l *late) RouteGradInput(dh, dlogits, router kernels.Tensor) {
	l.queue("RouteGradInput", func() { l.Backend.RouteGradInput(dh, dlogits, router) })
}

func (l *late) RouteGradWeight(dr, dlogits, h kernels.Tensor) {
	l.queue("RouteGradWeight", func() { l.Backend.RouteGradWeight(dr, dlogits, h) })
}

func (l *late) GateGrad(dlogits, gates, dg kernels.Tensor) {
	l.queue("GateGrad", func() { l.Backend.GateGrad(dlogits, gates, dg) })
}

func (l *late) BalanceGrad(dlogits, dloss, logits, loads, seq kernels.Tensor) {
	l.queue("BalanceGrad", func() { l.Backend.BalanceGrad(dlogits, dloss, logits, loads, seq) })
}

func (l *late) Norm(norm, g kernels.Tensor) {
	l.queue("Norm", func() { l.Backend.Norm(norm, g) })
}

func (l *late) Step(p, g, m, v, norm, hyper kernels.Tensor, c kernels.AdamW) {
	l.queue("Step", func() { l.Backend.Step(p, g, m, v, norm, hyper, c) })
}

func (l *late) Round(dst, src kernels.Tensor) {
	l.queue("Round", func() { l.Backend.Round(dst, src) })
}

func (l *late) Top2(ids, weights, logits kernels.Tensor) {
	l.queue("Top2", func() { l.Backend.Top2(ids, weights, logits) })
}

func (l *late) Experts(y, x, a, b, ids, weights kernels.Tensor, scale float64) {
	l.queue("Experts", func() { l.Backend.Experts(y, x, a, b, ids, weights, scale) })
}

func (l *late) Merge(m kernels.Merging, ids, weights, force kernels.Tensor, scale float64) {
	l.queue("Merge", func() { l.Backend.Merge(m, ids, weights, force, scale) })
}

func (l *late) Transpose(y, x kernels.Tensor) {
	l.queue("Transpose", func() { l.Backend.Transpose(y, x) })
}

func (l *late) Append(cache, x, at kernels.Tensor) {
	l.queue("Append", func() { l.Backend.Append(cache, x, at) })
}

func (l *late) Advance(q kernels.Sequences, ids, gates kernels.Tensor) {
	l.queue("Advance", func() { l.Backend.Advance(q, ids, gates) })
}

func (l *late) Sample(ids, logits, u kernels.Tensor, rule kernels.Sampling) {
	l.queue("Sample", func() { l.Backend.Sample(ids, logits, u, rule) })
}
