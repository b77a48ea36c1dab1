package cuda

import "loratrain/kernels"

// CrossEntropy is loss = Σ_t log Σ_v exp(h[t]·w[v]) - h[t]·w[targets[t]] over the tokens with a target ≥ 0,
// and, unless dh is none, its gradient towards h, zero in the other rows. Never more than a chunk of the
// logits is in memory. loss (1), dh, h (T, D), w (V, D), targets (T) i32.
func (b *Backend) CrossEntropy(loss, dh, h, w, targets kernels.Tensor) {
	const op = "CrossEntropy"
	x := b.headIn(op, h, w, targets)
	need(op, "loss", loss, b.Param(), 1)
	maybe(op, "dh", dh, b.Float(), x.tokens, x.width)
	if !dh.None() {
		b.Zero(dh)
	}
	x.place(b, !dh.None())
	x.list(b)
	for from := 0; from < x.tokens; from += x.chunk {
		rows := min(x.chunk, x.tokens-from)
		x.logits(b, from, rows)
		if dh.None() {
			x.losses(b, "loss_rows", from, rows, at(x.terms), 0)
			continue
		}
		x.losses(b, "loss_rows_gradient"+suffix(b.Float()), from, rows, at(x.terms), 0)
		x.gradient(b, dh, from, rows)
	}
	b.dev.Launch("loss_sum", Launch{Block: [3]int{256}}, at(loss), at(x.terms), at(x.count))
}

// LogProb is lp[t] = h[t]·w[targets[t]] - log Σ_v exp(h[t]·w[v]) for the tokens with a target ≥ 0, zero for
// the others. lp (T), otherwise as CrossEntropy.
func (b *Backend) LogProb(lp, h, w, targets kernels.Tensor) {
	const op = "LogProb"
	x := b.headIn(op, h, w, targets)
	need(op, "lp", lp, b.Param(), x.tokens)
	b.Zero(lp)
	x.place(b, false)
	x.list(b)
	for from := 0; from < x.tokens; from += x.chunk {
		rows := min(x.chunk, x.tokens-from)
		x.logits(b, from, rows)
		x.losses(b, "loss_rows", from, rows, 0, at(lp))
	}
}

// head is the inputs of a loss, and the parts of the workspace that it computes with.
type head struct {
	h, w, targets             kernels.Tensor
	tokens, width, vocabulary int

	indices, count, terms kernels.Tensor // the tokens with a target, how many they are, and their losses
	chunk                 int            // how many of them are worked on at a time
	hidden, grad          kernels.Tensor // their rows of h and dh (chunk, hiddenStride)
	scores                kernels.Tensor // their logits (chunk, scoresStride), float32; then the gradient's in place

	hiddenStride, scoresStride int
	used                       int // bytes of the workspace
}

func (b *Backend) headIn(op string, h, w, targets kernels.Tensor) *head {
	x := &head{h: h, w: w, targets: targets}
	x.tokens, x.width = matrixShape(op, "h", h)
	x.vocabulary, _ = matrixShape(op, "w", w)
	need(op, "h", h, b.Float(), x.tokens, x.width)
	needWeight(op, "w", w, x.vocabulary, x.width)
	need(op, "targets", targets, kernels.I32, x.tokens)
	return x
}

// chunkRows is what the number of rows of a chunk is a multiple of, if it is not smaller: the tiles of a product.
const chunkRows = 128

// place divides the workspace. Rows are padded, so that each starts at a multiple of 16 bytes.
func (x *head) place(b *Backend, gradient bool) {
	var room layout
	x.count = room.take(b, kernels.I32, 1)
	x.indices, x.terms = room.take(b, kernels.I32, x.tokens), room.take(b, kernels.F32, x.tokens)
	x.hiddenStride, x.scoresStride = ceil(x.width, 8)*8, ceil(x.vocabulary, 8)*8
	hidden := x.hiddenStride * b.Float().Size()
	row := hidden + 4*x.scoresStride
	if gradient {
		row += hidden
	}
	free := workspaceBytes - room.used - 3*256
	if x.w.Type != b.Float() {
		free /= 2 // the rest is for panels of w in type Float
	}
	most := free / row
	if most > chunkRows {
		most -= most % chunkRows
	}
	// Chunks of about one size: the last is not a small rest.
	x.chunk = ceil(x.tokens, ceil(x.tokens, max(1, most)))
	if rounded := ceil(x.chunk, chunkRows) * chunkRows; rounded <= most {
		x.chunk = rounded
	}
	x.chunk = min(x.chunk, x.tokens)
	x.hidden = room.take(b, b.Float(), x.chunk, x.hiddenStride)
	if gradient {
		x.grad = room.take(b, b.Float(), x.chunk, x.hiddenStride)
	}
	x.scores = room.take(b, kernels.F32, x.chunk, x.scoresStride)
	x.used = room.used
}

// list finds the tokens with a target.
func (x *head) list(b *Backend) {
	b.dev.Launch("loss_list", Launch{Block: [3]int{1024}}, at(x.indices), at(x.count), at(x.targets), int32(x.tokens))
}

// logits computes the logits of so many tokens of the list. What stands in the workspace in the place of those that are not on
// it yields rows that nobody reads.
func (x *head) logits(b *Backend, from, rows int) {
	b.dev.Launch("loss_gather"+suffix(b.Float()), x.perRow(rows), at(x.hidden), int32(x.hiddenStride), at(x.h),
		at(x.indices), at(x.count), int32(from), int32(x.width))
	b.panels(x.w, x.used, func(first int, panel Matrix) {
		x.product(b, x.scoresMatrix(kernels.F32, rows, first, panel.Rows), x.hiddenMatrix(x.hidden, rows), panel.T(), 0)
	})
}

// losses computes the loss of each token, into terms or lp.
func (x *head) losses(b *Backend, kernel string, from, rows int, terms, lp Address) {
	// A thread keeps up to eight times four logits.
	threads := min(1024, max(32, ceil(x.vocabulary, 4*8*32)*32))
	b.dev.Launch(kernel, Launch{Grid: [3]int{rows}, Block: [3]int{threads}}, at(x.scores), int32(x.scoresStride),
		int32(x.vocabulary), at(x.indices), at(x.count), int32(from), at(x.targets), terms, lp)
}

// gradient writes their rows of dh, given the gradient towards the logits.
func (x *head) gradient(b *Backend, dh kernels.Tensor, from, rows int) {
	beta := float32(0)
	b.panels(x.w, x.used, func(first int, panel Matrix) {
		x.product(b, x.hiddenMatrix(x.grad, rows), x.scoresMatrix(b.Float(), rows, first, panel.Rows), panel, beta)
		beta = 1
	})
	b.dev.Launch("loss_scatter"+suffix(b.Float()), x.perRow(rows), at(dh), at(x.grad), int32(x.hiddenStride),
		at(x.indices), at(x.count), int32(from), int32(x.width))
}

// product is c = a·m + beta·c for the rows of a chunk: all of them, since how many are on the list only the device knows.
func (x *head) product(b *Backend, c, a, m Matrix, beta float32) {
	b.product(Product{C: c, A: a, B: m, Alpha: 1, Beta: beta})
}

func (x *head) hiddenMatrix(t kernels.Tensor, rows int) Matrix {
	return Matrix{At: at(t), Type: t.Type, Rows: rows, Cols: x.width, Stride: x.hiddenStride}
}

// scoresMatrix is columns of the logits, or of the gradient that took their place: rows of any type start where those of the logits do.
func (x *head) scoresMatrix(t kernels.Type, rows, first, cols int) Matrix {
	start := at(x.scores) + Address(first*t.Size())
	return Matrix{At: start, Type: t, Rows: rows, Cols: cols, Stride: x.scoresStride * 4 / t.Size()}
}

// perRow is a block for each row of a chunk.
func (x *head) perRow(rows int) Launch {
	return Launch{Grid: [3]int{rows}, Block: [3]int{min(256, ceil(x.width, 256)*32)}}
}
