//go:build gpu

package driver_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
	"loratrain/kernels/cuda/driver"
)

// The tests of this file need a GPU.

func open(t *testing.T) cuda.Device {
	t.Helper()
	d, err := driver.Open(0)
	need(t, err)
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return d
}

func alloc(t *testing.T, d cuda.Device, bytes int) cuda.Address {
	t.Helper()
	at, err := d.Alloc(bytes)
	if err != nil {
		t.Fatal(err)
	}
	if at%256 != 0 {
		t.Errorf("%d bytes lie at %#x, expected a multiple of 256", bytes, uint64(at))
	}
	return at
}

func syncWell(t *testing.T, d cuda.Device) {
	t.Helper()
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
}

func TestGPUTransfers(t *testing.T) {
	d := open(t)
	const most = 80<<20 + 13
	at := alloc(t, d, most)
	got := make([]byte, most)
	d.Download(got, at)
	if !bytes.Equal(got, make([]byte, most)) {
		t.Error("fresh memory is not zero")
	}
	for i, n := range []int{1, 3, 64 << 10, 64<<10 + 1, 1 << 20, 16<<20 + 1, most} {
		src := noise(n, uint64(i))
		want := bytes.Clone(src)
		d.Upload(at, src)
		clear(src)
		first, second := make([]byte, n), make([]byte, n)
		wait := d.Fetch(first, at)
		d.Download(second, at)
		d.Clear(at, n)
		wait()
		if !bytes.Equal(first, want) || !bytes.Equal(second, want) {
			t.Errorf("%d bytes there and back are not the same", n)
		}
	}
	syncWell(t, d)
}

// sumOf launches the kernel sum: y ← xs[0] + xs[1] + …, n elements.
func sumOf(d cuda.Device, y cuda.Address, n int, xs ...cuda.Address) {
	var ts terms
	copy(ts.at[:], xs)
	d.Launch("sum_f32", cuda.Launch{Grid: [3]int{(n + 2047) / 2048}, Block: [3]int{256}}, y, ts, int32(len(xs)), int64(n))
}

func upload(d cuda.Device, at cuda.Address, x []float32) {
	b := make([]byte, 0, 4*len(x))
	for _, v := range x {
		b = binary.NativeEndian.AppendUint32(b, math.Float32bits(v))
	}
	d.Upload(at, b)
}

func download(d cuda.Device, at cuda.Address, n int) []float32 {
	b := make([]byte, 4*n)
	d.Download(b, at)
	x := make([]float32, n)
	for i := range x {
		x[i] = math.Float32frombits(binary.NativeEndian.Uint32(b[4*i:]))
	}
	return x
}

// TestGPUCapture makes every first use, of a kernel and of a product's shape, within the capture.
func TestGPUCapture(t *testing.T) {
	d := open(t)
	const n = 64
	x, y, z := alloc(t, d, 4*n*n), alloc(t, d, 4*n*n), alloc(t, d, 4*n*n)
	ones := make([]float32, n*n)
	for i := range ones {
		ones[i] = 1
	}
	upload(d, x, ones)
	square := func(at cuda.Address) cuda.Matrix {
		return cuda.Matrix{At: at, Type: kernels.F32, Rows: n, Cols: n, Stride: n}
	}
	r, err := d.Capture(func() {
		done := make(chan bool)
		go func() {
			sumOf(d, y, n*n, x, y)
			d.Multiply(cuda.Product{C: square(z), A: square(x), B: square(y), Alpha: 1})
			done <- true
		}()
		<-done
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got := download(d, y, 1)[0]; got != 0 {
		t.Errorf("the recording ran while it was made: y is %g, expected 0", got)
	}
	for range 5 {
		r.Run()
	}
	if got := download(d, y, 1)[0]; got != 5 {
		t.Errorf("after five runs y is %g, expected 5", got)
	}
	if got := download(d, z, n*n)[n*n-1]; got != 5*n {
		t.Errorf("after five runs z is %g, expected %d", got, 5*n)
	}
	syncWell(t, d)
	if _, err := d.Capture(func() { d.Upload(x, make([]byte, 4)) }); err == nil || !strings.Contains(err.Error(), "Upload") {
		t.Errorf("an upload was recorded: %v", err)
	}
	syncWell(t, d)
}

// TestGPUProducts compares products with plain loops, in all transpositions and types, on odd shapes and addresses, and asks for the
// same bits twice.
func TestGPUProducts(t *testing.T) {
	d := open(t)
	for _, shape := range [][3]int{{1, 1, 1}, {3, 5, 7}, {64, 33, 129}, {17, 128, 1000}} {
		for mask := range 8 {
			for _, types := range [][2]kernels.Type{{kernels.F32, kernels.F32}, {kernels.BF16, kernels.F32}, {kernels.BF16, kernels.BF16}} {
				m, n, k := shape[0], shape[1], shape[2]
				a, aAt := testMatrix(d, m, k, mask&1 != 0, types[0], mask)
				b, bAt := testMatrix(d, k, n, mask&2 != 0, types[0], 3)
				c, cAt := testMatrix(d, m, n, mask&4 != 0, types[1], 1)
				name := fmt.Sprintf("%v, transposed %03b, %v to %v", shape, mask, types[0], types[1])
				was := cAt(m-1, n-1)
				want, size := float64(was)/2, math.Abs(float64(was))
				for p := range k {
					x := float64(aAt(m-1, p)) * float64(bAt(p, n-1))
					want, size = want+x, size+math.Abs(x)
				}
				d.Multiply(cuda.Product{C: c, A: a, B: b, Alpha: 1, Beta: 0.5})
				tolerance := 1e-6 * size
				if types[1] == kernels.BF16 {
					tolerance += math.Abs(want) / 256
				}
				if got := float64(cAt(m-1, n-1)); math.Abs(got-want) > tolerance || math.IsNaN(got) {
					t.Errorf("%s: last element is %g, expected %g", name, got, want)
				}
				for _, x := range []cuda.Matrix{a, b, c} {
					d.Free(x.At)
				}
			}
		}
	}
	syncWell(t, d)
}

func TestGPUProductsRepeat(t *testing.T) {
	d := open(t)
	const m, n, k = 64, 96, 8192
	a, _ := testMatrix(d, m, k, false, kernels.BF16, 0)
	b, _ := testMatrix(d, n, k, false, kernels.BF16, 0)
	c := cuda.Matrix{At: alloc(t, d, 4*m*n), Type: kernels.F32, Rows: m, Cols: n, Stride: n}
	var first []float32
	for range 20 {
		d.Multiply(cuda.Product{C: c, A: a, B: b.T(), Alpha: 1})
		got := download(d, c.At, m*n)
		if first == nil {
			first = got
		}
		for i := range got {
			if got[i] != first[i] {
				t.Fatalf("element %d is %g and was %g", i, got[i], first[i])
			}
		}
	}
	syncWell(t, d)
}

func TestGPUProfile(t *testing.T) {
	d := open(t)
	const n = 1 << 20
	x, y := alloc(t, d, 4*n), alloc(t, d, 4*n)
	took, err := d.Profile(func() {
		for range 300 {
			sumOf(d, y, n, x, y)
		}
		d.Clear(y, 4)
	})
	if err != nil || len(took) != 301 {
		t.Fatalf("%d times (%v), expected 301", len(took), err)
	}
	for i, k := range took[:300] {
		if k.Name != "sum_f32" || k.Seconds <= 0 || k.Seconds > 0.01 {
			t.Errorf("%d: %+v, expected sum_f32 and a time", i, k)
		}
	}
	if took[300].Name != "clear" {
		t.Errorf("last: %+v, expected clear", took[300])
	}
}

func TestGPUMemoryRunsOut(t *testing.T) {
	d := open(t)
	_, err := d.Alloc(d.Info().Memory + 1<<30)
	if err == nil || !strings.Contains(err.Error(), "of GPU memory wanted") || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("%v, expected a line with what was wanted and what is free, and one of advice", err)
	}
	alloc(t, d, 1<<20)
	syncWell(t, d)
}

// faultVariable is set in the process that faults.
const faultVariable = "LORA_DRIVER_FAULT"

// TestGPUFault reads where there is no memory, in a process of its own, since a fault may spoil one.
func TestGPUFault(t *testing.T) {
	if os.Getenv(faultVariable) != "" {
		d, err := driver.Open(0)
		if err != nil {
			t.Fatal(err)
		}
		x := alloc(t, d, 4096)
		sumOf(d, x, 1024, x)
		sumOf(d, x, 1024, 16)
		d.Clear(x, 4096)
		first := d.Sync()
		sumOf(d, x, 1024, x)
		if again := d.Sync(); first == nil || again != first {
			t.Errorf("Sync gave %v and then %v", first, again)
		}
		fmt.Println(first)
		if err := d.Close(); err != nil {
			fmt.Println("Close:", err)
		}
		return
	}
	open(t)
	for trace, want := range map[string]string{"0": "queued were clear, sum_f32, sum_f32, clear", "1": "kernel sum_f32 faulted"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestGPUFault$")
		cmd.Env = append(os.Environ(), faultVariable+"=1", "LORA_CUDA_TRACE="+trace)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) || !strings.Contains(string(out), "CUDA_ERROR_ILLEGAL_ADDRESS") ||
			strings.Contains(string(out), "Close:") {
			t.Errorf("trace %s (%v): expected %q in\n%s", trace, err, want, out)
		}
	}
}

// TestGPUFromPTX has the driver compile the kernels.
func TestGPUFromPTX(t *testing.T) {
	t.Setenv("LORA_CUDA_PTX", "1")
	d := open(t)
	x, y := alloc(t, d, 16), alloc(t, d, 16)
	upload(d, x, []float32{1, 2, 3, 4})
	sumOf(d, y, 4, x, x, x)
	if got := download(d, y, 4); got[3] != 12 {
		t.Errorf("3·[1 2 3 4] = %v", got)
	}
	syncWell(t, d)
}

// BenchmarkUpload copies a gigabyte.
func BenchmarkUpload(b *testing.B) {
	d, err := driver.Open(0)
	need(b, err)
	defer d.Close()
	const bytes = 1 << 30
	at, err := d.Alloc(bytes)
	if err != nil {
		b.Fatal(err)
	}
	src := make([]byte, bytes)
	for i := 0; i < bytes; i += 4096 {
		src[i] = byte(rand.Uint32())
	}
	b.SetBytes(bytes)
	for b.Loop() {
		d.Upload(at, src)
		d.Sync()
	}
}

func BenchmarkLaunch(b *testing.B) {
	d, err := driver.Open(0)
	need(b, err)
	defer d.Close()
	x, err := d.Alloc(64)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		sumOf(d, x, 1, x)
	}
	d.Sync()
}

func BenchmarkProduct(b *testing.B) {
	d, err := driver.Open(0)
	need(b, err)
	defer d.Close()
	const n = 4096
	var at [3]cuda.Address
	for i := range at {
		if at[i], err = d.Alloc(2 * n * n); err != nil {
			b.Fatal(err)
		}
	}
	m := func(i int) cuda.Matrix {
		return cuda.Matrix{At: at[i], Type: kernels.BF16, Rows: n, Cols: n, Stride: n}
	}
	for b.Loop() {
		for range 20 {
			d.Multiply(cuda.Product{C: m(0), A: m(1), B: m(2).T(), Alpha: 1})
		}
		d.Sync()
	}
	b.ReportMetric(20*2*n*n*n*float64(b.N)/b.Elapsed().Seconds()/1e12, "TFLOP/s")
}
