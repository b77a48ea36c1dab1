package graph

import (
	"math/rand/v2"

	"loratrain/kernels"
)

// activation and parameter are leaves of normal numbers.
func activation(name string, shape ...int) leaf {
	return leaf{name: name, shape: shape, data: normal("leaf "+name, kernels.Len(shape...))}
}

func parameter(name string, shape ...int) leaf {
	l := activation(name, shape...)
	l.trainable = true
	return l
}

// logitsOf is rows in which no two logits are near each other: a gate jumps where second and third place swap.
func logitsOf(name string, rows, experts int) leaf {
	r := random(name)
	l := leaf{name: name, shape: []int{rows, experts}}
	for range rows {
		for _, place := range r.Perm(experts) {
			l.data = append(l.data, 0.6*float64(place)-1+0.2*r.Float64())
		}
	}
	return l
}

func gradientRows() []gradientRow {
	var rows []gradientRow
	for _, list := range [][]gradientRow{layerRows(), attentionRows(), elementRows(), switchRows(), routingRows(), plusRows()} {
		rows = append(rows, list...)
	}
	return rows
}

func layerRows() []gradientRow {
	return []gradientRow{
		{"RMSNorm", []leaf{activation("h", 3, 5)}, func(p *pass) V {
			return RMSNorm(p, p.leaf["h"], p.fixed("w", 5), 1e-5)
		}},
		{"RMSNorm of heads", []leaf{activation("h", 3, 8)}, func(p *pass) V {
			return RMSNorm(p, p.leaf["h"], p.fixed("w", 4), 1e-2)
		}},
		{"Linear", []leaf{activation("h", 3, 4)}, func(p *pass) V {
			return Linear(p, p.leaf["h"], p.fixed("w", 5, 4), V{}, V{})
		}},
		{"Linear with bias", []leaf{activation("h", 3, 4)}, func(p *pass) V {
			return Linear(p, p.leaf["h"], p.fixed("w", 5, 4), p.fixed("bias", 5), V{})
		}},
		{"Rotary", []leaf{activation("h", 4, 8)}, func(p *pass) V {
			return Rotary(p, p.leaf["h"], p.fixed("table", 6, 4), p.ints("positions", []int32{0, 5, 2, 2}, 4))
		}},
		{"CrossEntropy, rows without a target", []leaf{activation("h", 5, 4)}, func(p *pass) V {
			return CrossEntropy(p, p.leaf["h"], p.fixed("w", 7, 4), p.ints("targets", []int32{2, -1, 6, 0, -1}, 5))
		}},
		{"CrossEntropy, no target at all", []leaf{activation("h", 2, 4)}, func(p *pass) V {
			return CrossEntropy(p, p.leaf["h"], p.fixed("w", 7, 4), p.ints("targets", []int32{-1, -1}, 2))
		}},
		{"a block of five operations", []leaf{activation("h", 4, 6)}, func(p *pass) V {
			h := p.leaf["h"]
			n := RMSNorm(p, h, p.fixed("norm", 6), 1e-5)
			f := SwiGLU(p, Linear(p, n, p.fixed("gate", 8, 6), V{}, V{}), Linear(p, n, p.fixed("up", 8, 6), V{}, V{}))
			return Sum(p, h, Linear(p, f, p.fixed("down", 6, 8), V{}, V{}))
		}},
	}
}

func attentionRows() []gradientRow {
	qkv := func(tokens int, heads kernels.Heads) []leaf {
		return []leaf{
			activation("q", tokens, heads.Query*heads.Dim), activation("k", tokens, heads.KV*heads.Dim),
			activation("v", tokens, heads.KV*heads.Dim),
		}
	}
	row := func(name string, heads kernels.Heads, spans ...int32) gradientRow {
		tokens := len(spans) / 4
		return gradientRow{name, qkv(tokens, heads), func(p *pass) V {
			return Attention(p, p.leaf["q"], p.leaf["k"], p.leaf["v"], p.ints("spans", spans, tokens, 4), heads)
		}}
	}
	return []gradientRow{
		row("Attention, one sequence", kernels.Heads{Query: 2, KV: 2, Dim: 3},
			0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0),
		row("Attention, a window of two and grouped heads", kernels.Heads{Query: 4, KV: 2, Dim: 2},
			0, 1, 0, 0, 0, 2, 0, 0, 1, 3, 0, 0, 2, 4, 0, 0, 3, 5, 0, 0),
		row("Attention, one prompt of two continuations, padding, one key head", kernels.Heads{Query: 3, KV: 1, Dim: 2},
			0, 1, 0, 0, 0, 2, 0, 0, // the prompt
			0, 2, 2, 3, 0, 2, 2, 4, // the first continuation
			0, 2, 4, 5, 0, 2, 4, 6, // the second
			0, 0, 0, 0),
		{"Attention, one value as query, key and value", []leaf{activation("h", 3, 4)}, func(p *pass) V {
			h := p.leaf["h"]
			spans := p.ints("spans", []int32{0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0}, 3, 4)
			return Attention(p, h, h, h, spans, kernels.Heads{Query: 2, KV: 2, Dim: 2})
		}},
	}
}

func elementRows() []gradientRow {
	return []gradientRow{
		{"SwiGLU", []leaf{activation("g", 3, 5), activation("u", 3, 5)}, func(p *pass) V {
			return SwiGLU(p, p.leaf["g"], p.leaf["u"])
		}},
		{"SwiGLU of one value", []leaf{activation("g", 2, 3)}, func(p *pass) V {
			return SwiGLU(p, p.leaf["g"], p.leaf["g"])
		}},
		{"Sum", []leaf{activation("x", 2, 3), activation("y", 2, 3), activation("z", 2, 3)}, func(p *pass) V {
			return Sum(p, p.leaf["x"], p.leaf["y"], p.leaf["z"])
		}},
		{"Sum of four", []leaf{activation("x", 2, 3), activation("y", 2, 3)}, func(p *pass) V {
			return Sum(p, p.leaf["x"], p.leaf["y"], p.leaf["y"], p.leaf["y"])
		}},
		{"Sum of a value and itself", []leaf{activation("x", 2, 3), activation("y", 2, 3)}, func(p *pass) V {
			return Sum(p, p.leaf["x"], p.leaf["y"], p.leaf["x"])
		}},
		{"Scale", []leaf{activation("x", 2, 3)}, func(p *pass) V {
			return Scale(p, p.leaf["x"], p.numbers("factor", []float64{-1.75}, 1))
		}},
		{"Dropout", []leaf{activation("x", 4, 8)}, func(p *pass) V {
			return Dropout(p, p.leaf["x"], p.ints("key", []int32{7, 3}, 2), 11, 0.4)
		}},
	}
}

// adapted is a switch linear layer of width 5 to 4 over the leaves A and B.
func adapted(p *pass, h, z, bias, gates V, rank int) V {
	bank := Bank{A: p.leaf["A"], B: p.leaf["B"], Gates: gates, Rank: rank, Scale: 1.5}
	return SwitchLinear(p, h, z, p.fixed("w", 4, 5), bias, V{}, bank)
}

func switchRows() []gradientRow {
	const rows, width, out, experts, rank = 6, 5, 4, 3, 2
	h, z := activation("h", rows, width), activation("z", rows, width)
	gates := leaf{name: "gates", shape: []int{rows, experts}}
	r := rand.New(rand.NewPCG(5, 5))
	for range rows * experts {
		gates.data = append(gates.data, r.Float64())
	}
	bank := func(columns int) []leaf { return []leaf{parameter("A", width, columns), parameter("B", columns, out)} }
	return []gradientRow{
		{"SwitchLinear", append(bank(experts*rank), h, gates), func(p *pass) V {
			return adapted(p, p.leaf["h"], p.leaf["h"], V{}, p.leaf["gates"], rank)
		}},
		{"SwitchLinear, shared columns, bias", append(bank(experts*rank+2), h, gates), func(p *pass) V {
			return adapted(p, p.leaf["h"], p.leaf["h"], p.fixed("bias", out), p.leaf["gates"], rank)
		}},
		{"SwitchLinear, no gates", append(bank(3), h), func(p *pass) V {
			return adapted(p, p.leaf["h"], p.leaf["h"], V{}, V{}, rank)
		}},
		{"SwitchLinear, no gates, bias, another adapter input", append(bank(3), h, z), func(p *pass) V {
			return adapted(p, p.leaf["h"], p.leaf["z"], p.fixed("bias", out), V{}, rank)
		}},
		{"SwitchLinear, another adapter input", append(bank(experts*rank), h, z, gates), func(p *pass) V {
			return adapted(p, p.leaf["h"], p.leaf["z"], V{}, p.leaf["gates"], rank)
		}},
		{"SwitchLinear, dropout, shared columns", append(bank(experts*rank+1), h, gates), func(p *pass) V {
			z := Dropout(p, p.leaf["h"], p.ints("key", []int32{1, 2}, 2), 3, 0.3)
			return adapted(p, p.leaf["h"], z, V{}, p.leaf["gates"], rank)
		}},
		{"two SwitchLinear of one bank and one decision", append(bank(experts*rank), h, gates), func(p *pass) V {
			first := adapted(p, p.leaf["h"], p.leaf["h"], V{}, p.leaf["gates"], rank)
			wide := Linear(p, first, p.fixed("widen", width, out), V{}, V{})
			return adapted(p, wide, wide, V{}, p.leaf["gates"], rank)
		}},
	}
}

func routingRows() []gradientRow {
	const rows, experts = 6, 4
	seq := []int32{0, 0, 1, -1, 1, -1}
	places := make([]float64, rows*experts)
	for t := range rows {
		places[t*experts+t%experts], places[t*experts+(t+1)%experts] = 0.75, 0.25
	}
	return []gradientRow{
		{"Route", []leaf{activation("h", rows, 5), parameter("router", experts, 5)}, func(p *pass) V {
			return Route(p, p.leaf["h"], p.leaf["router"])
		}},
		{"Gate", []leaf{logitsOf("logits", rows, experts)}, func(p *pass) V { return Gate(p, p.leaf["logits"]) }},
		{"Gate of two experts", []leaf{activation("logits", rows, 2)}, func(p *pass) V { return Gate(p, p.leaf["logits"]) }},
		{"Balance, padding", []leaf{logitsOf("logits", rows, experts)}, func(p *pass) V {
			loss, _ := Balance(p, p.leaf["logits"], p.numbers("gates", places, rows, experts), p.ints("seq", seq, rows))
			return loss
		}},
		{"Balance and SwitchLinear of one decision", []leaf{
			logitsOf("logits", rows, experts), activation("h", rows, 5), parameter("A", 5, 2*experts), parameter("B", 2*experts, 4),
		}, func(p *pass) V {
			logits := p.leaf["logits"]
			gates := Gate(p, logits)
			balance, _ := Balance(p, logits, gates, p.ints("seq", seq, rows))
			ce := CrossEntropy(p, adapted(p, p.leaf["h"], p.leaf["h"], V{}, gates, 2), p.fixed("head", 7, 4),
				p.ints("targets", []int32{1, -1, 3, -1, 0, 6}, rows))
			return Sum(p, Scale(p, ce, p.numbers("a third", []float64{1. / 3}, 1)), balance)
		}},
		{"a router's own gradient", []leaf{activation("h", rows, 5), parameter("router", experts, 5)}, func(p *pass) V {
			return Gate(p, Route(p, p.leaf["h"], p.leaf["router"]))
		}},
	}
}
