//go:build linux && (amd64 || arm64)

package emulator

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"loratrain/kernels/cuda"
)

// TestFaults launches kernels that are wrong, or right ones in a wrong way: Sync must say so once, with the kernel's name,
// and the device must work after it.
func TestFaults(t *testing.T) {
	one := cuda.Launch{}
	for _, order := range orders {
		d := open(t, order)
		y := alloc(t, d, 400)
		fault := func(kernel string, l cuda.Launch, want string, args ...any) {
			t.Helper()
			d.Launch(kernel, l, args...)
			err := d.Sync()
			if err == nil || !strings.Contains(err.Error(), "kernel "+kernel) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s of order %d: %v, want %q", kernel, order, err, want)
			}
			d.Launch("store", one, y, int64(0))
			if err := d.Sync(); err != nil {
				t.Fatalf("after %s: %v", kernel, err)
			}
		}
		fault("early_return", warps(2), "24 of 64 threads, thread 0 first, wait at __syncthreads; thread 24 has returned", int32(24))
		fault("lane_missing", warps(2), "waits in a shuffle of mask 0xffffffff for lane 5, which has returned", y)
		fault("lane_at_barrier", warps(2), "for lane 8, which waits at __syncthreads")
		fault("part_of_a_warp", cuda.Launch{Block: [3]int{40}}, "for lane 8, which does not exist")
		fault("two_masks", warps(1), "waits in", y)
		fault("not_in_the_mask", warps(1), "leaves it out")
		fault("from_outside_the_mask", warps(1), "from lane 8, which is not in mask 0xff", y)
		fault("two_operations", warps(1), "different operations", y)

		fault("store", one, "behind the end of memory of 400 bytes", y, int64(1000))
		fault("store", one, "written 0 bytes behind the end of memory of 400 bytes", y, int64(100))
		fault("store", one, "before the start of memory of 400 bytes", y, int64(-2000))
		fault("store", one, "far from all memory", y, int64(-1)<<40)
		fault("store", one, "near none", cuda.Address(0), int64(3))
		fault("load", one, "behind the end of memory of 400 bytes", y, y, int64(1000))
		fault("load16", one, "wrong.cu:", y, y, int32(1))
		fault("load16", one, "not aligned to 16 bytes", y, y, int32(2))
		fault("store_bf16", one, "not aligned to 2 bytes", y, int32(1))
		fault("copy16", one, "not aligned to 16 bytes", y, int32(1), int32(0))
		fault("copy16", one, "not aligned to 16 bytes", y, int32(0), int32(1))
		fault("copy_to_global", one, "outside of shared memory", y, y)
		fault("copy_not_waited_for", one, "returned with 1 asynchronous copies under way", y)
		fault("ldmatrix_row", warps(1), "not aligned to 16 bytes", cuda.Address(0), int32(3))
		fault("ldmatrix_row", warps(1), "outside of shared memory", y, int32(0))
		fault("array_index", one, "index 8 outside of an array", y, int32(8))
		fault("behind_shared", cuda.Launch{Shared: 40}, "written 0 bytes behind the 40 of dynamic shared memory", int32(10))
		fault("behind_shared", cuda.Launch{Shared: 1024}, "access outside of memory", int32(256))
		fault("divide", one, "wrong.cu:", y, int32(0))
		fault("divide", one, "division by 0", y, int32(0))
		fault("shift", one, "shift by 32 bits", y, int32(32))
		fault("trap", cuda.Launch{Grid: [3]int{50, 2}}, "block (49, ", int32(49))
		fault("stack_overflow", cuda.Launch{Block: [3]int{64}}, "access outside of memory", y, int32(1000))

		fault("store", cuda.Launch{Block: [3]int{32, 33}}, "1056 threads", y, int64(0))
		fault("store", cuda.Launch{Block: [3]int{1, 1, 65}}, "65 threads", y, int64(0))
		fault("store", cuda.Launch{Grid: [3]int{1, 1 << 16}}, "blocks", y, int64(0))
		fault("store", cuda.Launch{Shared: 227<<10 + 1}, "232449 bytes of shared memory", y, int64(0))
		fault("store", one, "1 arguments, expected 2", y)
		fault("store", one, "argument 1 is int32, an integer of 4 bytes, expected an integer of 8 bytes", y, int32(0))
		fault("store", one, "argument 0 is int64, an integer of 8 bytes, expected a pointer of 8 bytes", int64(0), int64(0))
		fault("divide", one, "argument 1 is float32, a float of 4 bytes, expected an integer of 4 bytes", y, float32(1))
		fault("divide", one, "argument 1 is int,", y, 1)
		fault("divide", one, "argument 1 is <nil>,", y, nil)
		fault("no_such_kernel", one, "no file has it", y)
	}
}

func TestFirstFailureIsReported(t *testing.T) {
	d := open(t, Forward)
	y := alloc(t, d, 4)
	d.Launch("trap", cuda.Launch{}, int32(0))
	d.Launch("divide", cuda.Launch{}, y, int32(0))
	if err := d.Sync(); err == nil || !strings.Contains(err.Error(), "kernel trap") {
		t.Errorf("%v, want the failure of trap", err)
	}
	if err := d.Sync(); err != nil {
		t.Errorf("reported again: %v", err)
	}
}

// TestBrokenFile checks that a file that does not compile hinders only its own kernels.
func TestBrokenFile(t *testing.T) {
	d := ForTest(t, Options{Sources: "testdata/broken"})
	const want = "broken.cu:4"
	if err := d.Broken(); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want the compiler's message", err)
	}
	y := alloc(t, d, 4)
	d.Launch("whole", cuda.Launch{}, y)
	equal(t, "the other file's kernel", get[float32](t, d, y, 1), []float32{1})
	d.Launch("broken", cuda.Launch{}, y)
	if err := d.Sync(); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want the compiler's message", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenFails(t *testing.T) {
	if _, err := Open(Options{Sources: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "no .cu file") {
		t.Errorf("%v, want an error", err)
	}
	twice := t.TempDir()
	for _, name := range []string{"a.cu", "b.cu"} {
		text := "#include \"common.cuh\"\nextern \"C\" void same(int) {}\nKERNEL(same)\n"
		if err := os.WriteFile(filepath.Join(twice, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(Options{Sources: twice}); err == nil || !strings.Contains(err.Error(), "kernel same is in another file too") {
		t.Errorf("%v, want an error", err)
	}
	t.Setenv("CXX", "no-such-compiler")
	if _, err := newBuild(); err == nil || !strings.Contains(err.Error(), "no-such-compiler") {
		t.Errorf("%v, want an error that names the compiler", err)
	}
}

func TestMemory(t *testing.T) {
	d := open(t, Forward)
	for _, n := range []int{0, 1, 255, 256, 257, 4096, 5000} {
		a := alloc(t, d, n)
		if a%256 != 0 {
			t.Errorf("%d bytes at %#x, not aligned to 256", n, a)
		}
		data := make([]byte, n)
		d.Download(data, a)
		for i, x := range data {
			if x != 0 {
				t.Fatalf("%d bytes: byte %d is %d, want 0", n, i, x)
			}
		}
		d.Free(a)
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{-1, math.MaxInt, 1 << 61} {
		if a, err := d.Alloc(n); err == nil {
			t.Errorf("%d bytes were given at %#x", n, a)
		}
	}
	y := alloc(t, d, 100)
	for what, f := range map[string]func(){
		"Upload: 101 bytes": func() { d.Upload(y, make([]byte, 101)) },
		"Download: 2 bytes": func() { d.Download(make([]byte, 2), y+99) },
		"Copy: 60 bytes":    func() { d.Copy(y, y+50, 60) },
		"Clear: 1 bytes":    func() { d.Clear(y+100, 1) },
		"Free: free":        func() { d.Free(y + 1) },
	} {
		f()
		if err := d.Sync(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
	used := d.heap.used
	d.Free(alloc(t, d, 77))
	if d.heap.used != used {
		t.Errorf("%d bytes in use, want %d", d.heap.used, used)
	}
}

func TestFetchDoesNotWait(t *testing.T) {
	d := open(t, Forward)
	y := put[int32](t, d, 5)
	got := []int32{-1}
	wait := d.Fetch(asBytes(got), y)
	d.Launch("count_up", cuda.Launch{}, y, int32(1))
	if got[0] != -1 {
		t.Errorf("%d before the wait", got[0])
	}
	wait()
	if got[0] != 5 {
		t.Errorf("%d, want 5, from before the kernel", got[0])
	}
}

func TestRecordings(t *testing.T) {
	d := open(t, Forward)
	n, copied := put[int32](t, d, 0), put[int32](t, d, -1)
	r, err := d.Capture(func() {
		d.Launch("count_up", cuda.Launch{Grid: [3]int{10}}, n, int32(3))
		d.Copy(copied, n, 4)
		d.Clear(n, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "while recorded", get[int32](t, d, n, 1), []int32{0})
	for i := range int32(3) {
		r.Run()
		equal(t, "after a run", get[int32](t, d, copied, 1), []int32{30 * (i + 1)})
	}
	r.Close()
	for what, f := range map[string]func(){
		"Alloc":    func() { alloc(t, d, 4) },
		"Upload":   func() { d.Upload(n, make([]byte, 4)) },
		"Download": func() { d.Download(make([]byte, 4), n) },
		"argument": func() { d.Launch("count_up", cuda.Launch{}, n) },
	} {
		if _, err := d.Capture(f); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("Capture of %s: %v, want an error", what, err)
		}
	}
	if err := d.Sync(); err != nil {
		t.Errorf("what could not be recorded is left for Sync: %v", err)
	}
}

func TestProfile(t *testing.T) {
	d := open(t, Forward)
	n := put[int32](t, d, 0)
	took, err := d.Profile(func() {
		d.Launch("count_up", cuda.Launch{}, n, int32(3))
		d.Clear(n, 4)
		d.Launch("divide", cuda.Launch{}, n, int32(2))
	})
	if err != nil || len(took) != 2 || took[0].Name != "count_up" || took[1].Name != "divide" || took[0].Seconds <= 0 {
		t.Errorf("%+v, %v", took, err)
	}
}

// TestLock wants one holder at a time, also of those in one process.
func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var holders, most atomic.Int32
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			unlock, err := lock(path)
			if err != nil {
				t.Error(err)
				return
			}
			if n := holders.Add(1); n > 1 {
				most.Store(n)
			}
			time.Sleep(time.Millisecond)
			holders.Add(-1)
			unlock()
		})
	}
	wait.Wait()
	if n := most.Load(); n > 0 {
		t.Errorf("%d hold the lock at once", n)
	}
	if _, err := lock(filepath.Join(t.TempDir(), "missing", "lock")); err == nil {
		t.Error("a lock in a folder that is not there is held")
	}
}
