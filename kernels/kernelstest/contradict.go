package kernelstest

import (
	"slices"

	"loratrain/kernels"
)

// contradict checks that op panics when any one operand has another type, or a last dimension shorter by one. free
// names operands whose last dimension nothing else fixes.
func (c *call) contradict(op func(), free ...string) {
	c.t.Helper()
	for _, o := range c.args {
		if o.idle {
			continue
		}
		right := o.view
		for _, typ := range c.wrongTypes(o) {
			wrong, err := c.b.Alloc(typ, right.Shape...)
			if err != nil {
				c.t.Fatalf("memory for %s: %v", o.name, err)
			}
			o.view = wrong
			c.mustPanic(o, op)
			c.b.Free(wrong)
		}
		if !slices.Contains(free, o.name) {
			shape := slices.Clone(right.Shape)
			shape[len(shape)-1]--
			o.view = right.View(0, shape...)
			c.mustPanic(o, op)
		}
		o.view = right
	}
}

func (c *call) mustPanic(o *operand, op func()) {
	c.t.Helper()
	if p, _ := caught(op); p == nil {
		c.t.Errorf("no panic though %s is %v", o.name, o.view)
	}
	if err := c.b.Sync(); err != nil {
		c.t.Fatalf("Sync after a contradiction: %v", err)
	}
}

// wrongTypes is types that o cannot have on any backend.
func (c *call) wrongTypes(o *operand) []kernels.Type {
	switch {
	case o.view.Type == kernels.I32:
		return []kernels.Type{kernels.F32}
	case o.role == isWeight:
		return []kernels.Type{kernels.I32}
	case o.view.Type == kernels.F64:
		return []kernels.Type{kernels.I32, kernels.F32}
	}
	return []kernels.Type{kernels.I32, kernels.F64}
}
