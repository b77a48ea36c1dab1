//go:build gpu

package driver_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
	"loratrain/kernels/cuda/driver"
)

func mustOpen() cuda.Device {
	d, err := driver.Open(0)
	if err != nil {
		panic(err)
	}
	return d
}

func mustAlloc(d cuda.Device, bytes int) cuda.Address {
	at, err := d.Alloc(bytes)
	if err != nil {
		panic(err)
	}
	return at
}

func noise(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// expectQuiet fails for every line that a scene printed.
func expectQuiet(t *testing.T, out string) {
	t.Helper()
	if out != "" {
		t.Error(out)
	}
}

func TestTransfers(t *testing.T) {
	out, _ := play(t, "transfers")
	expectQuiet(t, out)
}

// transfersScene copies there and back, in sizes around those of the slots, from several goroutines in turn.
func transfersScene() {
	d := mustOpen()
	const most = 70<<20 + 13
	at := mustAlloc(d, most)
	zeros := make([]byte, most)
	got := make([]byte, most)
	d.Download(got, at)
	if !bytes.Equal(got, zeros) {
		fmt.Println("fresh memory is not zero")
	}
	for i, n := range []int{1, 7, 64 << 10, 64<<10 + 1, 1 << 20, 16 << 20, 16<<20 + 1, most} {
		src := noise(n, uint64(i))
		want := slices.Clone(src)
		var wg sync.WaitGroup
		wg.Go(func() { // another thread
			d.Upload(at, src)
			clear(src)
		})
		wg.Wait()
		got := make([]byte, n)
		if i%2 == 0 {
			d.Download(got, at)
		} else {
			d.Fetch(got, at)()
		}
		if !bytes.Equal(got, want) {
			fmt.Printf("%d bytes there and back are not the same\n", n)
		}
	}
	// More small uploads than slots, and none waits for the card.
	var all []byte
	for i := range 100 {
		part := noise(1000, uint64(i))
		d.Upload(at+cuda.Address(1000*i), part)
		all = append(all, part...)
		clear(part)
	}
	// A fetch sees what was there when it was asked for.
	first, second := make([]byte, len(all)), make([]byte, len(all))
	waitFirst := d.Fetch(first, at)
	d.Clear(at, 500)
	d.Copy(at+1000, at, 1000)
	waitSecond := d.Fetch(second, at)
	d.Clear(at, len(all))
	waitSecond()
	waitFirst()
	waitFirst()
	if !bytes.Equal(first, all) {
		fmt.Println("the first fetch does not hold what was uploaded")
	}
	clear(all[:500])
	copy(all[1000:2000], all[:1000])
	if !bytes.Equal(second, all) {
		fmt.Println("the second fetch does not hold the copy")
	}
	closeWell(d)
}

func closeWell(d cuda.Device) {
	if err := d.Sync(); err != nil {
		fmt.Println("Sync:", err)
	}
	if err := d.Close(); err != nil {
		fmt.Println("Close:", err)
	}
	if err := d.Close(); err != nil {
		fmt.Println("second Close:", err)
	}
	if _, err := d.Alloc(1); err == nil {
		fmt.Println("a closed device allocates")
	}
}

// terms is an argument of the kernel sum, which is why the tests launch it.
type terms struct{ at [16]cuda.Address }

func launchSum(d cuda.Device, l cuda.Launch) {
	d.Launch("sum_f32", l, cuda.Address(0x1122334455667788), terms{[16]cuda.Address{1, 15: 2}}, int32(-2), int64(77))
}

// sumArguments is how C sees them.
func sumArguments() string {
	b := binary.LittleEndian.AppendUint64(nil, 0x1122334455667788)
	for i := range 16 {
		b = binary.LittleEndian.AppendUint64(b, map[int]uint64{0: 1, 15: 2}[i])
	}
	b = binary.LittleEndian.AppendUint32(b, math.MaxUint32-1)
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, 77)
	return fmt.Sprintf("%x", b)
}

func TestLaunches(t *testing.T) {
	out, notes := play(t, "launches")
	expectQuiet(t, out)
	var ran, attributes []string
	for _, n := range notes {
		if strings.HasPrefix(n, "ran ") {
			ran = append(ran, n)
		}
		if strings.Contains(n, "attribute") {
			attributes = append(attributes, n)
		}
	}
	want := []string{"grid 3x1x1 block 256x1x1 shared 0", "grid 1x2x3 block 4x5x6 shared 49152", "shared 100000", "shared 60000", "shared 120000"}
	if len(ran) != len(want) {
		t.Fatalf("%d launches ran, expected %d: %q", len(ran), len(want), ran)
	}
	for i := range want {
		if !strings.Contains(ran[i], want[i]) {
			t.Errorf("launch %d: %q, expected %q in it", i, ran[i], want[i])
		}
	}
	// The fake cuts the line.
	_, arguments, _ := strings.Cut(ran[0], "arguments ")
	if !strings.HasPrefix(sumArguments(), arguments) || len(arguments) < 40 {
		t.Errorf("arguments %s, expected %s", arguments, sumArguments())
	}
	if want := []string{"sum_f32 attribute 8 = 49152", "sum_f32 attribute 8 = 100000", "sum_f32 attribute 8 = 120000"}; !slices.Equal(attributes, want) {
		t.Errorf("attributes set: %q, expected %q", attributes, want)
	}
}

func launchesScene() {
	d := mustOpen()
	launchSum(d, cuda.Launch{Grid: [3]int{3}, Block: [3]int{256}})
	launchSum(d, cuda.Launch{Grid: [3]int{1, 2, 3}, Block: [3]int{4, 5, 6}, Shared: 48 << 10})
	for _, shared := range []int{100000, 60000, 120000} {
		launchSum(d, cuda.Launch{Shared: shared})
	}
	closeWell(d)
}

// TestBoxes makes boxes on a thread that the driver has not seen.
func TestBoxes(t *testing.T) {
	out, notes := play(t, "boxes")
	expectQuiet(t, out)
	for _, want := range []string{"box of 8 rows and 64 columns", "box of 64 rows and 128 columns"} {
		if !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, want) }) {
			t.Errorf("no %s in %q", want, notes)
		}
	}
}

func boxesScene() {
	runtime.LockOSThread() // so that a goroutine is on another
	d := mustOpen()
	to, err := d.Alloc(3 * 128)
	if err != nil {
		fmt.Println(err)
		return
	}
	matrix := cuda.Matrix{At: to, Type: kernels.BF16, Rows: 8, Cols: 128, Stride: 128}
	done := make(chan struct{})
	go func() {
		d.Boxes(to, []cuda.Box{{Of: matrix, Rows: 8}, {}, {Of: matrix, Rows: 64, Cols: 128}})
		close(done)
	}()
	<-done
	d.Free(to)
	closeWell(d)
}

func TestMistakes(t *testing.T) {
	out, _ := play(t, "mistakes")
	sayInLines(t, out, []string{
		"there is no kernel nonsense",
		"kernel sum_f32 takes 4 arguments, not 1",
		"argument 2 of kernel sum_f32 has 4 bytes, not 8 (int64)",
		"an argument of type int",
		"2 x 3 times 4 x 5 into 2 x 5",
		"bf16 times f32 into f32",
		"with rows 2 apart",
		"Free of 0x7, which Alloc did not give",
		"sum_f32: launch of [1 1 1] blocks of [2000 1 1] threads and 0 bytes of shared memory: CUDA_ERROR_",
		"<nil>",
		"sum_f32 with 999999 bytes of shared memory: CUDA_ERROR_",
		"2.0 GB of GPU memory wanted, 1.0 GB of 1.1 GB free",
		"lower the batch or the length",
	})
}

// mistakesScene prints what comes of a program's mistakes and of too large wishes.
func mistakesScene() {
	d := mustOpen()
	matrix := func(rows, cols int, typ kernels.Type) cuda.Matrix {
		return cuda.Matrix{Type: typ, Rows: rows, Cols: cols, Stride: cols}
	}
	narrow := matrix(2, 3, kernels.F32)
	narrow.Stride = 2
	for _, f := range []func(){
		func() { d.Launch("nonsense", cuda.Launch{}) },
		func() { d.Launch("sum_f32", cuda.Launch{}, int32(1)) },
		func() { d.Launch("sum_f32", cuda.Launch{}, cuda.Address(0), terms{}, int64(0), int64(0)) },
		func() { d.Launch("sum_f32", cuda.Launch{}, cuda.Address(0), terms{}, 0, int64(0)) },
		func() {
			d.Multiply(cuda.Product{C: matrix(2, 5, kernels.F32), A: matrix(2, 3, kernels.F32), B: matrix(4, 5, kernels.F32)})
		},
		func() {
			d.Multiply(cuda.Product{C: matrix(2, 5, kernels.F32), A: matrix(2, 3, kernels.BF16), B: matrix(3, 5, kernels.F32)})
		},
		func() {
			d.Multiply(cuda.Product{C: matrix(2, 5, kernels.F32), A: narrow, B: matrix(3, 5, kernels.F32)})
		},
		func() { d.Free(7) },
	} {
		func() {
			defer func() { fmt.Println(recover()) }()
			f()
		}()
	}
	launchSum(d, cuda.Launch{Block: [3]int{2000}})
	fmt.Println(d.Sync())
	fmt.Println(d.Sync())
	launchSum(d, cuda.Launch{Shared: 999999})
	fmt.Println(d.Sync())
	before, ok := d.FreeMemory()
	at := mustAlloc(d, 1000)
	if after, _ := d.FreeMemory(); !ok || before-after != 1000 {
		fmt.Printf("%d bytes are free, %d after 1000 were taken\n", before, after)
	}
	d.Free(at)
	_, err := d.Alloc(2e9)
	fmt.Println(err)
	closeWell(d)
}

func TestProducts(t *testing.T) {
	out, notes := play(t, "products")
	expectQuiet(t, out)
	if !slices.Contains(notes, "math mode 16") {
		t.Errorf("cuBLAS may sum in reduced precision: %q", notes)
	}
}

// productsScene compares products of all transpositions with plain loops.
func productsScene() {
	d := mustOpen()
	const m, n, k = 3, 5, 7
	for mask := range 16 {
		types := map[bool]kernels.Type{false: kernels.F32, true: kernels.BF16}
		typ := types[mask&8 != 0]
		c, cAt := testMatrix(d, m, n, mask&1 != 0, kernels.F32, 2)
		a, aAt := testMatrix(d, m, k, mask&2 != 0, typ, 3)
		b, bAt := testMatrix(d, k, n, mask&4 != 0, typ, 1)
		for _, beta := range []float32{0, 0.5} {
			want := map[[2]int]float32{}
			for i := range m {
				for j := range n {
					s := float64(beta) * float64(cAt(i, j))
					for p := range k {
						s += 2 * float64(aAt(i, p)) * float64(bAt(p, j))
					}
					want[[2]int{i, j}] = float32(s)
				}
			}
			d.Multiply(cuda.Product{C: c, A: a, B: b, Alpha: 2, Beta: beta})
			for at, w := range want {
				if got := cAt(at[0], at[1]); math.Abs(float64(got-w)) > 1e-4 {
					fmt.Printf("%04b, beta %g: element %v is %g, expected %g\n", mask, beta, at, got, w)
				}
			}
		}
	}
	closeWell(d)
}

// testMatrix is a rows x cols matrix of random numbers with gaps between the rows in memory, turned there or not, and a way to read it.
func testMatrix(d cuda.Device, rows, cols int, turned bool, typ kernels.Type, gap int) (cuda.Matrix, func(i, j int) float32) {
	m := cuda.Matrix{Type: typ, Rows: rows, Cols: cols, Transposed: turned}
	if turned {
		m.Rows, m.Cols = cols, rows
	}
	m.Stride = m.Cols + gap
	size := typ.Size()
	data := make([]byte, m.Rows*m.Stride*size)
	for i := range m.Rows * m.Stride {
		x := rand.Float32() - 0.5
		if typ == kernels.BF16 {
			binary.NativeEndian.PutUint16(data[2*i:], uint16(kernels.ToBFloat16(x)))
		} else {
			binary.NativeEndian.PutUint32(data[4*i:], math.Float32bits(x))
		}
	}
	m.At = mustAlloc(d, len(data))
	d.Upload(m.At, data)
	return m, func(i, j int) float32 {
		if turned {
			i, j = j, i
		}
		var e [4]byte
		d.Download(e[:size], m.At+cuda.Address((i*m.Stride+j)*size))
		if typ == kernels.BF16 {
			return kernels.BFloat16(binary.NativeEndian.Uint16(e[:])).Float32()
		}
		return *(*float32)(unsafe.Pointer(&e))
	}
}
