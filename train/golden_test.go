package train

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"loratrain/checkpoints"
	"loratrain/datasets"
	"loratrain/internal/testgpu"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/model"
	"loratrain/router"
)

var golden = flag.String("golden", "../testdata/golden", "folder of the golden files")

// goldenStep is what the reference reports of a step.
type goldenStep struct{ Total, CE, Balance, Norm float64 }

// trajectory is an entry of traj.json, or smol.json.
type trajectory struct {
	Model       string
	Granularity string
	Experts     int
	Rank        int
	Shared      int
	Alpha       float64
	Balance     float64 `json:"balance_coefficient"`
	LR          float64
	Warmup      int
	Clip        float64
	Betas       [2]float64
	Eps         float64
	Decay       float64 `json:"weight_decay"`
	Steps       []goldenStep

	GradientNorms map[string]float64 `json:"first_step_gradient_norms"`
}

func (c trajectory) spec() model.AdapterSpec {
	return model.AdapterSpec{
		Granularity: router.Granularity(c.Granularity), Experts: c.Experts, Rank: c.Rank, Shared: c.Shared, Alpha: c.Alpha,
		Targets: model.AllTargets(),
	}
}

func (c trajectory) objective() Objective {
	return Objective{Balance: c.Balance, AdamW: kernels.AdamW{
		Beta1: c.Betas[0], Beta2: c.Betas[1], Eps: c.Eps, Decay: c.Decay, Clip: c.Clip,
	}}
}

func (c trajectory) rate(step int) float64 {
	if c.Warmup == 0 {
		return c.LR
	}
	return c.LR * min(1, float64(step)/float64(c.Warmup))
}

func readJSON(t *testing.T, name string, v any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(*golden, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func openBackend(t testing.TB, o cpu.Options) kernels.Backend {
	t.Helper()
	b, err := cpu.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func placeBase(t *testing.T, b kernels.Backend, path string, positions int) (*model.Base, *model.Placed) {
	t.Helper()
	base, err := model.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { base.Close() })
	placed, err := model.Place(b, base.Arch, base.Weights, positions)
	if err != nil {
		t.Fatal(err)
	}
	return base, placed
}

func openTensors(t *testing.T, name string) *checkpoints.File {
	t.Helper()
	f, err := checkpoints.Open(filepath.Join(*golden, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// group is the tensors of a trajectory file whose names begin with prefix, in our file layout: PyTorch's B is (out, R).
func group(t *testing.T, f *checkpoints.File, prefix string) []checkpoints.Tensor {
	t.Helper()
	var list []checkpoints.Tensor
	for _, x := range f.Tensors() {
		name, ok := strings.CutPrefix(x.Name, prefix)
		if !ok {
			continue
		}
		values, err := x.Float32s()
		if err != nil {
			t.Fatal(err)
		}
		shape := slices.Clone(x.Shape)
		if strings.HasSuffix(name, "_B") {
			values, shape = swapLast(values, shape)
		}
		list = append(list, checkpoints.Float32Tensor(name, shape, values))
	}
	return list
}

// swapLast transposes the last two dimensions.
func swapLast(values []float32, shape []int) ([]float32, []int) {
	n := len(shape)
	rows, cols := shape[n-2], shape[n-1]
	out := make([]float32, len(values))
	for i, x := range values {
		block, r, c := i/(rows*cols), i/cols%rows, i%cols
		out[block*rows*cols+c*rows+r] = x
	}
	shape = slices.Clone(shape)
	shape[n-2], shape[n-1] = cols, rows
	return out, shape
}

// batchOf is step i of a trajectory file, whose batches hold no padding.
func batchOf(t *testing.T, f *checkpoints.File, i int) datasets.Batch {
	t.Helper()
	row := func(name string) []int32 {
		all := int32s(t, f, name)
		x, _ := f.Tensor(name)
		n := x.Shape[1]
		return all[i*n : (i+1)*n]
	}
	b := datasets.Batch{IDs: row("ids"), Pos: row("pos"), Seq: row("seq"), Targets: row("target")}
	b.Tokens = len(b.IDs)
	b.PrefixFrom, b.PrefixTo = make([]int32, b.Tokens), make([]int32, b.Tokens)
	for t := range b.IDs {
		b.OwnFrom = append(b.OwnFrom, int32(t)-b.Pos[t])
		if b.Targets[t] >= 0 {
			b.TargetCount++
		}
	}
	return b
}

// hostCopy is a buffer of the stepper in host memory.
func hostCopy(b kernels.Backend, t kernels.Tensor) kernels.Tensor {
	host := kernels.NewHost(t.Type, t.Shape...)
	b.Read(host, t)
	return host
}

// compareTensors names the first tensor that differs by more than tol of its largest value, or by more than floor.
func compareTensors(t *testing.T, what string, got []checkpoints.Tensor, want []checkpoints.Tensor, tol float64) {
	t.Helper()
	byName := map[string]checkpoints.Tensor{}
	for _, x := range want {
		byName[x.Name] = x
	}
	if len(got) != len(want) {
		t.Errorf("%s: %d tensors, golden has %d", what, len(got), len(want))
	}
	for _, g := range got {
		w, ok := byName[g.Name]
		if !ok {
			t.Errorf("%s: golden has no %s", what, g.Name)
			continue
		}
		gf, wf := float64s(g), float64s(w)
		largest, worst, at := 0.0, 0.0, 0
		for i := range wf {
			largest = max(largest, math.Abs(wf[i]))
			if d := math.Abs(gf[i] - wf[i]); d > worst || math.IsNaN(d) {
				worst, at = d, i
			}
		}
		if !(worst <= tol*largest) {
			t.Errorf("%s of %s: element %d is %.9g, golden %.9g; largest value %.3g", what, g.Name, at, gf[at], wf[at], largest)
		}
	}
}

func float64s(t checkpoints.Tensor) []float64 {
	list := make([]float64, t.Len())
	for i := range list {
		if t.Type == "F64" {
			var bits uint64
			for k := range 8 {
				bits |= uint64(t.Data[8*i+k]) << (8 * k)
			}
			list[i] = math.Float64frombits(bits)
			continue
		}
		var bits uint32
		for k := range 4 {
			bits |= uint32(t.Data[4*i+k]) << (8 * k)
		}
		list[i] = float64(math.Float32frombits(bits))
	}
	return list
}

func near(t *testing.T, what string, got, want, rel float64) {
	t.Helper()
	if !(math.Abs(got-want) <= rel*math.Abs(want)) {
		t.Errorf("%s is %.12g, golden %.12g (relative difference %.2g)", what, got, want, math.Abs(got-want)/math.Abs(want))
	}
}

// nearStep compares a step's losses and gradient norm, both to a relative tolerance.
func nearStep(t *testing.T, i int, r StepResult, want goldenStep, loss, norm float64) {
	t.Helper()
	near(t, fmt.Sprintf("step %d: total", i), r.Loss, want.Total, loss)
	near(t, fmt.Sprintf("step %d: cross-entropy", i), r.CE, want.CE, loss)
	near(t, fmt.Sprintf("step %d: balance", i), r.Balance, want.Balance, loss)
	near(t, fmt.Sprintf("step %d: gradient norm", i), r.Norm, want.Norm, norm)
}

// tolerances are how far a backend may be from golden's steps.
type tolerances struct {
	loss float64 // relative
	norm float64 // relative: of the whole gradient's and of each tensor's
	grad float64 // of each tensor's largest value
	end  float64 // of how far each tensor moved, both as root mean squares
}

// compared is a backend and its tolerances.
type compared struct {
	name string
	open func(t testing.TB) kernels.Backend
	tol  tolerances
}

func onCPU(o cpu.Options) func(testing.TB) kernels.Backend {
	return func(t testing.TB) kernels.Backend { return openBackend(t, o) }
}

// onGPUs are the backends of package testgpu, the emulator only if it is asked for.
func onGPUs(name string, float32, emulator bool, tol tolerances) []compared {
	var list []compared
	for _, g := range testgpu.All() {
		if emulator || !g.Emulated() {
			list = append(list, compared{g.Name + name, func(t testing.TB) kernels.Backend { return g.Open(t, float32) }, tol})
		}
	}
	return list
}

// follow takes golden's steps with the adapter that start makes, and compares what they report, the gradients of the first, and
// where the adapter ends if golden says that.
func (c trajectory) follow(t *testing.T, b kernels.Backend, path, tensors string, start func(model.Arch) []checkpoints.Tensor, tol tolerances) {
	t.Helper()
	_, placed := placeBase(t, b, path, 256)
	f := openTensors(t, tensors)
	bank := model.NewBank(placed.Arch, c.spec())
	params := kernels.NewHost(b.Param(), bank.Size())
	if err := bank.Load(params, start(placed.Arch)); err != nil {
		t.Fatal(err)
	}
	s, err := NewStepper(placed, bank, params, c.objective())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range c.Steps {
		r, err := s.Step([]datasets.Batch{batchOf(t, f, i)}, i+1, c.rate(i+1))
		if err != nil {
			t.Fatal(err)
		}
		nearStep(t, i, r, want, tol.loss, tol.norm)
		if i == 0 {
			c.compareGradients(t, bank.Tensors(hostCopy(b, s.grads)), group(t, f, "grad."), tol)
		}
	}
	if end := group(t, f, "end."); len(end) > 0 {
		compareMoved(t, bank.Tensors(params), bank.Tensors(hostCopy(b, s.Params)), end, tol.end)
	}
}

// compareGradients compares those that golden has, all of them or the norms of all.
func (c trajectory) compareGradients(t *testing.T, grads, want []checkpoints.Tensor, tol tolerances) {
	t.Helper()
	if len(c.GradientNorms) > 0 {
		if len(grads) != len(c.GradientNorms) {
			t.Errorf("%d gradients, golden has %d", len(grads), len(c.GradientNorms))
		}
		for _, g := range grads {
			near(t, "gradient norm of "+g.Name, norm(float64s(g)), c.GradientNorms[g.Name], tol.norm)
		}
		grads = slices.DeleteFunc(grads, func(g checkpoints.Tensor) bool {
			return !slices.ContainsFunc(want, func(w checkpoints.Tensor) bool { return w.Name == g.Name })
		})
	}
	compareTensors(t, "gradient", grads, want, tol.grad)
}

func norm(xs []float64) float64 {
	sum := 0.0
	for _, x := range xs {
		sum += x * x
	}
	return math.Sqrt(sum)
}

// compareMoved names the tensors whose end is further from golden's than tol of the way from the start, in root mean squares.
func compareMoved(t *testing.T, start, got, want []checkpoints.Tensor, tol float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d tensors at the end, golden has %d", len(got), len(want))
	}
	for i, g := range got {
		k := slices.IndexFunc(want, func(w checkpoints.Tensor) bool { return w.Name == g.Name })
		if k < 0 {
			t.Errorf("golden has no end of %s", g.Name)
			continue
		}
		from, is, to := float64s(start[i]), float64s(g), float64s(want[k])
		moved := make([]float64, len(is))
		for j := range is {
			moved[j], is[j] = to[j]-from[j], is[j]-to[j]
		}
		if d, way := norm(is), norm(moved); !(d <= tol*way) {
			t.Errorf("end of %s is %.3g away from golden's, %.2g of the %.3g that it moved", g.Name, d, d/way, way)
		}
	}
}

// TestGoldenTrajectories trains a tiny Llama for ten steps with every granularity through Gorgonia's graph.
func TestGoldenTrajectories(t *testing.T) {
	var all map[string]trajectory
	readJSON(t, "traj.json", &all)
	// AdamW divides a gradient by its own size: an error of δ of a tensor's largest gradient becomes δ/ρ of the step where the
	// gradient is ρ of it, and the smallest of N is about 1/N. In root mean squares that is some δ·√N, of the first step most,
	// which is a part of the way: 20·δ in these tensors, where gradients were off by 2e-6 and ends by 4e-5.
	f32 := tolerances{1e-5, 1e-4, 1e-4, 20 * 1e-4}
	backends := append([]compared{
		{"f64", onCPU(cpu.Options{Float64: true}), tolerances{1e-9, 1e-9, 1e-6, 1e-6}},
		{"f32", onCPU(cpu.Options{}), f32},
		{"f32 without a BLAS", onCPU(cpu.Options{Matrix: "go"}), f32},
	}, onGPUs("", true, true, f32)...)
	for _, kind := range []string{"token", "block", "layer", "none", "shared"} {
		for _, p := range backends {
			t.Run(kind+"/"+p.name, func(t *testing.T) {
				c, name := all["traj-"+kind], "traj-"+kind+".safetensors"
				start := func(model.Arch) []checkpoints.Tensor { return group(t, openTensors(t, name), "start.") }
				c.follow(t, p.open(t), filepath.Join(*golden, c.Model), name, start, p.tol)
			})
		}
	}
}
