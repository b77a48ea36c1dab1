package graph

import "slices"

// Block is f, a part of a forward pass that a Recorder may be told to compute twice: what f makes does then not stay in
// memory until the backward pass needs it.
func Block(x Exec, f func() V) V {
	r, ok := x.(*Recorder)
	if !ok {
		return f()
	}
	r.blocks++
	r.block = r.blocks
	defer func() { r.block = 0 }()
	return f()
}

// Recompute makes the backward pass compute each Block again before it goes through it, from what comes from outside the
// block. It changes no bit of any result.
func (r *Recorder) Recompute() { r.recompute = true }

// alive is the inputs and results of an operation as its gradient shall use them: as they are, or computed again. A machine
// runs operations in the order of their making, so they are computed when the backward pass has come to n.
func (r *Recorder) alive(n *node) (in, out []V) {
	if n.Linear {
		return n.in, n.out
	}
	return r.allAgain(n.in, n.block), r.allAgain(n.out, n.block)
}

func (r *Recorder) allAgain(vs []V, block int) []V {
	same := make([]V, len(vs))
	for i, v := range vs {
		same[i] = r.again(v, block)
	}
	return same
}

// again is v for a gradient in a block: v itself, or what computes the same again.
func (r *Recorder) again(v V, block int) V {
	if v.None() {
		return v
	}
	res, made := resultOf(v)
	if !made || !r.repeats(res, block) {
		return v
	}
	n := res.of
	if n.again == nil {
		n.again = r.Apply(n.Op, r.allAgain(n.in, n.block)...)
	}
	return n.again[res.i]
}

// repeats reports whether a gradient in a block has a result computed again.
func (r *Recorder) repeats(res result, block int) bool {
	n := res.of
	if n.Cheap {
		return true
	}
	if !r.recompute || block == 0 || n.block != block {
		return false
	}
	// Where nothing needs the first result again, computing all of them for the sake of another would be dear.
	return res.i == 0 || !r.ends(n)
}

// ends reports whether the first result of n does nothing in its block but go into the block's result.
func (r *Recorder) ends(n *node) bool {
	inBlock := func(u *node) bool { return u.block == n.block }
	for _, u := range r.users[n] {
		if inBlock(u) && (!u.Linear || slices.ContainsFunc(r.users[u], inBlock)) {
			return false
		}
	}
	return true
}

// findUsers notes which operations use the first result of which.
func (r *Recorder) findUsers() {
	r.users = map[*node][]*node{}
	for _, m := range r.made {
		u, ok := m.Op().(*node)
		if !ok {
			continue
		}
		for _, i := range u.present {
			if res, ok := resultOf(u.in[i]); ok && res.i == 0 {
				r.users[res.of] = append(r.users[res.of], u)
			}
		}
	}
}
