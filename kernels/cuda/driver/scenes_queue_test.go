//go:build gpu

package driver_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"testing"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
)

func TestCaptures(t *testing.T) {
	for _, trace := range []string{"", "LORA_CUDA_TRACE=1"} {
		out, notes := play(t, "captures", trace)
		sayInLines(t, out, []string{
			"capture of 1 operations: Alloc cannot be recorded", "capture of 0 operations: Upload cannot be recorded",
			"capture of 0 operations: Download cannot be recorded", "capture of 0 operations: Fetch cannot be recorded",
			"capture of 0 operations: Sync cannot be recorded", "capture of 0 operations: Free cannot be recorded",
			"a capture within a capture", "panic: f",
		})
		count := map[string]int{}
		for _, n := range notes {
			count[n]++
		}
		if trace == "" && count["graph of 3"] != 5 || trace != "" && count["graph of 3"] != 0 {
			t.Errorf("%s: the graph was run %d times", trace, count["graph of 3"])
		}
		if count["allocation in a capture"] != 0 {
			t.Errorf("%s: memory was allocated in a capture", trace)
		}
	}
}

// capturesScene records y ← x + y on a fake that can copy, clear and multiply: y ← 1·x + 1·y.
func capturesScene() {
	d := mustOpen()
	x, y, z := mustAlloc(d, 4), mustAlloc(d, 4), mustAlloc(d, 4)
	one := func(at cuda.Address) cuda.Matrix {
		return cuda.Matrix{At: at, Type: kernels.F32, Rows: 1, Cols: 1, Stride: 1}
	}
	float := func(v float32) []byte { return binary.NativeEndian.AppendUint32(nil, math.Float32bits(v)) }
	read := func(at cuda.Address) float32 {
		b := make([]byte, 4)
		d.Download(b, at)
		return math.Float32frombits(binary.NativeEndian.Uint32(b))
	}
	d.Upload(x, float(3))
	d.Upload(y, float(10))
	unit := mustAlloc(d, 4)
	d.Upload(unit, float(1))
	r, err := d.Capture(func() {
		done := make(chan bool)
		go func() { // as the tape machine's goroutine does
			d.Multiply(cuda.Product{C: one(y), A: one(x), B: one(unit), Alpha: 1, Beta: 1})
			d.Copy(z, y, 4)
			launchSum(d, cuda.Launch{})
			done <- true
		}()
		<-done
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	if got := read(y); got != 10 {
		fmt.Printf("the recording ran while it was made: y is %g, expected 10\n", got)
	}
	for i := range 5 {
		r.Run()
		if i == 2 {
			d.Upload(x, float(100))
		}
	}
	if gotY, gotZ := read(y), read(z); gotY != 219 || gotZ != 219 {
		fmt.Printf("after five runs y is %g and z %g, expected 219\n", gotY, gotZ)
	}
	r.Close()
	r.Run() // nothing
	if got := read(y); got != 219 {
		fmt.Printf("a closed recording ran: y is %g\n", got)
	}
	for _, f := range []func(){
		func() { launchSum(d, cuda.Launch{}); d.Alloc(4) },
		func() { d.Upload(x, make([]byte, 4)) },
		func() { d.Download(make([]byte, 4), x) },
		func() { d.Fetch(make([]byte, 4), x)() },
		func() { d.Sync() },
		func() { d.Free(x) },
	} {
		_, err := d.Capture(f)
		fmt.Println(err)
	}
	d.Capture(func() {
		_, err := d.Capture(func() {})
		fmt.Println(err)
	})
	func() {
		defer func() { fmt.Println("panic:", recover()) }()
		d.Capture(func() { panic("f") })
	}()
	closeWell(d)
}

func TestProfile(t *testing.T) {
	out, _ := play(t, "profile")
	expectQuiet(t, out)
}

func profileScene() {
	d := mustOpen()
	x := mustAlloc(d, 4)
	one := cuda.Matrix{At: x, Type: kernels.F32, Rows: 1, Cols: 1, Stride: 1}
	r, err := d.Capture(func() {
		launchSum(d, cuda.Launch{})
		d.Clear(x, 4)
	})
	if err != nil {
		fmt.Println(err)
	}
	took, err := d.Profile(func() {
		for range 300 { // more than a window
			launchSum(d, cuda.Launch{})
		}
		d.Upload(x, make([]byte, 4))
		d.Multiply(cuda.Product{C: one, A: one, B: one.T(), Alpha: 1})
		d.Download(make([]byte, 4), x)
		r.Run()
	})
	if err != nil || len(took) != 303 {
		fmt.Printf("%d times (%v), expected 303\n", len(took), err)
		return
	}
	for i, t := range took {
		want := cuda.Took{Name: "sum_f32", Seconds: 0.001} // the fake's times
		switch i {
		case 300:
			want = cuda.Took{Name: "A·Bᵀ f32→f32 1x1x1", Seconds: 0.002}
		case 302:
			want = cuda.Took{Name: "clear"}
		}
		if t.Name != want.Name || math.Abs(t.Seconds-want.Seconds) > 1e-9 {
			fmt.Printf("%d: %+v, expected %+v\n", i, t, want)
		}
	}
	closeWell(d)
}

func TestFault(t *testing.T) {
	const advice = "run it again with LORA_CUDA_TRACE=1 in the environment to see which kernel; what was saved before is whole"
	for _, c := range []struct {
		trace string
		want  []string
	}{
		{"", []string{
			"GPU 0: a kernel faulted: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered; queued were clear, sum_f32, sum_bf16, clear",
			advice, "again: the same", "Alloc: the same", "Capture: the same", "Profile: the same", "Close: <nil>",
		}},
		{"LORA_CUDA_TRACE=1", []string{
			"GPU 0: kernel sum_bf16 faulted: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered",
			"that is a mistake in the kernel or in what it was given",
			"again: the same", "Alloc: the same", "Capture: the same", "Profile: the same", "Close: <nil>",
		}},
	} {
		out, notes := play(t, "fault", c.trace, "FAKE_FAULT=sum_bf16")
		sayInLines(t, out, c.want)
		if notes[len(notes)-1] != "reset" {
			t.Errorf("the driver noted %q last, expected the context's reset", notes[len(notes)-1])
		}
	}
}

// TestFaultThatShowsLate: whatever is called first after a kernel faulted says that one did, and not that its own work failed.
func TestFaultThatShowsLate(t *testing.T) {
	for _, first := range []string{"Alloc", "Capture", "Free", "Upload", "Download", "Launch", "Multiply", "Fetch"} {
		out, _ := play(t, "late fault", "FAKE_FAULT=sum_bf16", "FAKE_EAGER=1", "FIRST="+first)
		sayInLines(t, out, []string{
			"GPU 0: a kernel faulted: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered; queued were clear, clear, sum_bf16",
			"run it again with LORA_CUDA_TRACE=1",
		})
	}
}

func lateFaultScene() {
	d := mustOpen()
	x, y := mustAlloc(d, 8), mustAlloc(d, 8)
	d.Launch("sum_bf16", cuda.Launch{}, cuda.Address(0), terms{}, int32(0), int64(0))
	var err error
	switch os.Getenv("FIRST") {
	case "Alloc":
		_, err = d.Alloc(8)
	case "Capture":
		_, err = d.Capture(func() {})
	case "Free":
		d.Free(y)
	case "Upload":
		d.Upload(x, make([]byte, 8))
	case "Download":
		d.Download(make([]byte, 8), x)
	case "Launch":
		launchSum(d, cuda.Launch{})
	case "Multiply":
		one := cuda.Matrix{At: x, Type: kernels.F32, Rows: 1, Cols: 1, Stride: 1}
		d.Multiply(cuda.Product{C: one, A: one, B: one.T(), Alpha: 1})
	case "Fetch":
		d.Fetch(make([]byte, 8), x)()
	}
	fault := d.Sync()
	if err != nil && err != fault {
		fmt.Println("the call itself:", err)
	}
	fmt.Println(fault)
	d.Close()
}

func faultScene() {
	d := mustOpen()
	if err := d.Sync(); err != nil {
		fmt.Println(err)
	}
	x := mustAlloc(d, 8)
	launchSum(d, cuda.Launch{})
	d.Launch("sum_bf16", cuda.Launch{}, cuda.Address(0), terms{}, int32(0), int64(0))
	d.Clear(x, 8)
	before := []byte("unread..")
	d.Fetch(before, x)()
	if string(before) != "unread.." {
		fmt.Printf("a fetch after the fault gave %q\n", before)
	}
	fault := d.Sync()
	fmt.Println(fault)
	launchSum(d, cuda.Launch{})
	d.Upload(x, make([]byte, 8))
	d.Download(before, x)
	d.Free(x)
	d.Copy(x, x, 1)
	same := func(what string, err error) {
		if err != nil && err == fault {
			fmt.Println(what + ": the same")
		} else {
			fmt.Println(what+":", err)
		}
	}
	same("again", d.Sync())
	_, err := d.Alloc(1)
	same("Alloc", err)
	_, err = d.Capture(func() {})
	same("Capture", err)
	_, err = d.Profile(func() {})
	same("Profile", err)
	fmt.Println("Close:", d.Close())
}
