package model

import (
	"fmt"
	"math"
	"slices"

	"loratrain/checkpoints"
	"loratrain/kernels"
)

// naive is a second reader of the serving format: the base's and the adapter's tensors by name, one number after the
// other, as the format's description and the golden reference define it.
type naive struct {
	arch  Arch
	c     checkpoints.Config
	base  map[string]kernels.Tensor
	e     *checkpoints.Serving // nil: the base alone
	table bool                 // take the experts of a token-wise router from the table

	gates      [][]float64 // (T, E), in force
	tokenGates [][]float64 // (T, E), of a token-wise router
	choices    [][][]int32 // a router: (T, 2)
}

func newNaive(m Adapted, e *checkpoints.Serving, table bool) *naive {
	n := &naive{arch: m.Base.Arch, base: slotsOf(m.Base), e: e, table: table}
	if e != nil {
		n.c = e.Config
	}
	return n
}

// adapter is a tensor of the export; ok is false if it has none of that name.
func (n *naive) adapter(name string) (get func(i int) float64, ok bool) {
	if n.e == nil {
		return nil, false
	}
	t, ok := n.e.Tensor(name)
	if !ok {
		return nil, false
	}
	host, err := fromFile(t)
	if err != nil {
		panic(err)
	}
	return getter(host), true
}

func (n *naive) norm(x [][]float64, name string) [][]float64 {
	get := getter(n.base[name])
	out := make([][]float64, len(x))
	for t, row := range x {
		width, mean := n.base[name].Shape[0], 0.0
		out[t] = make([]float64, len(row))
		for from := 0; from < len(row); from += width {
			mean = 0
			for _, v := range row[from : from+width] {
				mean += v * v / float64(width)
			}
			for i := range width {
				out[t][from+i] = row[from+i] / math.Sqrt(mean+n.arch.Eps) * get(i)
			}
		}
	}
	return out
}

// decide sets the gates by a router, if the export has one of that name.
func (n *naive) decide(x [][]float64, name string) {
	get, ok := n.adapter(name)
	if !ok {
		return
	}
	n.gates = nil
	var chosen [][]int32
	for _, h := range x {
		logits, order := make([]float64, n.c.Experts), make([]int32, n.c.Experts)
		for e := range logits {
			order[e] = int32(e)
			for j, v := range h {
				logits[e] += get(e*len(h)+j) * v
			}
		}
		slices.SortStableFunc(order, func(a, b int32) int {
			if logits[a] > logits[b] {
				return -1
			} else if logits[a] < logits[b] {
				return 1
			}
			return 0
		})
		i, k := order[0], order[1]
		g := make([]float64, n.c.Experts)
		g[i] = 1 / (1 + math.Exp(logits[k]-logits[i]))
		g[k] = 1 - g[i]
		n.gates, chosen = append(n.gates, g), append(chosen, []int32{i, k})
	}
	n.choices = append(n.choices, chosen)
}

// lookUp sets the gates by the routing table.
func (n *naive) lookUp(ids []int32) {
	weights, _ := n.adapter("model.table.weights")
	t, _ := n.e.Tensor("model.table.ids")
	host, _ := fromFile(t)
	table := kernels.Slice[int32](host)
	var chosen [][]int32
	n.gates = nil
	for _, id := range ids {
		g, places := make([]float64, n.c.Experts), table[2*id:2*id+2]
		for k, e := range places {
			g[e] = weights(2*int(id) + k)
		}
		n.gates, chosen = append(n.gates, g), append(chosen, slices.Clone(places))
	}
	n.choices = append(n.choices, chosen)
}

// linear is y[o] = Σ_j W[o,j] x[j] + b[o] and what the adapter adds.
func (n *naive) linear(x [][]float64, layer int, t Target) [][]float64 {
	in, out := n.arch.Shape(t)
	m := Module(layer, t)
	w := getter(n.base[m+".weight"])
	bias := func(int) float64 { return 0 }
	if b, ok := n.base[m+".bias"]; ok {
		bias = getter(b)
	}
	n.decide(x, m+".router")
	y := make([][]float64, len(x))
	for i, h := range x {
		y[i] = make([]float64, out)
		for o := range y[i] {
			y[i][o] = bias(o)
			for j, v := range h {
				y[i][o] += w(o*in+j) * v
			}
		}
		add := func(kind string, first, rank int, gate float64) {
			a, ok := n.adapter(m + "." + kind + "_A")
			if !ok || gate == 0 {
				return
			}
			b, _ := n.adapter(m + "." + kind + "_B")
			for r := range rank {
				u := 0.0
				for j, v := range h {
					u += a((first+r)*in+j) * v
				}
				for o := range y[i] {
					y[i][o] += n.c.Alpha / float64(n.c.Rank) * gate * u * b((first+r)*out+o)
				}
			}
		}
		add("shared", 0, n.c.SharedRank, 1)
		for e := range n.c.Experts {
			gate := 1.0
			if n.c.Granularity != checkpoints.Unrouted {
				gate = n.gates[i][e]
			}
			add("lora", e*n.c.Rank, n.c.Rank, gate)
		}
	}
	return y
}

// rotate turns the pairs (i, i+d/2) of each head.
func (n *naive) rotate(x [][]float64) {
	d, freq := n.arch.HeadDim, n.arch.Frequencies()
	for pos, row := range x {
		for from := 0; from < len(row); from += d {
			for i, f := range freq {
				s, c := math.Sincos(float64(pos) * f)
				a, b := row[from+i], row[from+i+d/2]
				row[from+i], row[from+i+d/2] = a*c-b*s, b*c+a*s
			}
		}
	}
}

func (n *naive) attention(q, k, v [][]float64) [][]float64 {
	d, group := n.arch.HeadDim, n.arch.Heads/n.arch.KVHeads
	out := make([][]float64, len(q))
	for t := range q {
		out[t] = make([]float64, len(q[t]))
		for h := range n.arch.Heads {
			var p []float64
			sum, kv := 0.0, h/group*d
			first := 0
			if n.arch.Window > 0 {
				first = max(0, t-n.arch.Window+1)
			}
			for s := first; s <= t; s++ {
				score := 0.0
				for i := range d {
					score += q[t][h*d+i] * k[s][kv+i]
				}
				p = append(p, math.Exp(score/math.Sqrt(float64(d))))
				sum += p[len(p)-1]
			}
			for j, w := range p {
				for i := range d {
					out[t][h*d+i] += w / sum * v[first+j][kv+i]
				}
			}
		}
	}
	return out
}

// logits is those of every token of one sequence (T, V).
func (n *naive) logits(ids []int32) [][]float64 {
	n.choices, n.gates = nil, nil
	embed := getter(n.base["model.embed_tokens.weight"])
	x := make([][]float64, len(ids))
	for t, id := range ids {
		for j := range n.arch.Width {
			x[t] = append(x[t], embed(int(id)*n.arch.Width+j))
		}
	}
	add := func(y [][]float64) {
		for t := range x {
			for j := range x[t] {
				x[t][j] += y[t][j]
			}
		}
	}
	for l := range n.arch.Layers {
		name := fmt.Sprintf("model.layers.%d.", l)
		h := n.norm(x, name+"input_layernorm.weight")
		n.decide(h, name+"router")
		if l == 0 && n.c.Granularity == checkpoints.PerToken && n.table {
			n.lookUp(ids)
		} else if l == 0 {
			n.decide(h, tokenRouter)
			n.tokenGates = n.gates
		}
		q, k, v := n.linear(h, l, QProj), n.linear(h, l, KProj), n.linear(h, l, VProj)
		if n.arch.QKNorm {
			q, k = n.norm(q, name+"self_attn.q_norm.weight"), n.norm(k, name+"self_attn.k_norm.weight")
		}
		n.rotate(q)
		n.rotate(k)
		add(n.linear(n.attention(q, k, v), l, OProj))
		h = n.norm(x, name+"post_attention_layernorm.weight")
		g, u := n.linear(h, l, GateProj), n.linear(h, l, UpProj)
		for t := range g {
			for j, v := range g[t] {
				g[t][j] = v / (1 + math.Exp(-v)) * u[t][j]
			}
		}
		add(n.linear(g, l, DownProj))
	}
	head := n.base["model.embed_tokens.weight"]
	if !n.arch.Tied {
		head = n.base["lm_head.weight"]
	}
	get, out := getter(head), make([][]float64, len(ids))
	for t, h := range n.norm(x, "model.norm.weight") {
		out[t] = make([]float64, n.arch.Vocab)
		for v := range out[t] {
			for j := range h {
				out[t][v] += get(v*n.arch.Width+j) * h[j]
			}
		}
	}
	return out
}

// experts is the choice of every router for token t: as [Decoder.Experts].
func (n *naive) experts(t int) [][]int32 {
	var list [][]int32
	for _, c := range n.choices {
		list = append(list, c[t])
	}
	return list
}
