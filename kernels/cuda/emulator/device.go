//go:build linux && (amd64 || arm64)

package emulator

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"loratrain/kernels"
	"loratrain/kernels/cuda"
)

// Device implements [cuda.Device].
type Device struct {
	lib       *emulation
	known     map[string]*kernel
	broken    error // what did not compile
	order     Order
	heap      heap
	failure   error // the first since the last Sync
	recording *[]func()
	hopper    bool
	profile   *[]cuda.Took
}

var _ cuda.Device = (*Device)(nil)

// Open compiles what has changed and is an empty device. The error says why there is none: no compiler, for example.
func Open(o Options) (*Device, error) {
	d := &Device{known: map[string]*kernel{}, hopper: o.Hopper}
	var err error
	if d.order, err = o.order(); err != nil {
		return nil, err
	}
	if d.lib, err = theRuntime(); err != nil {
		return nil, err
	}
	b, err := newBuild()
	if err != nil {
		return nil, err
	}
	jobs, err := kernelJobs(cmp.Or(o.Sources, filepath.Dir(here())), o.Hopper)
	if err != nil {
		return nil, err
	}
	files, broken := b.all(jobs)
	d.broken = broken
	for _, file := range files {
		if file != "" {
			if err := d.add(file); err != nil {
				return nil, err
			}
		}
	}
	return d, nil
}

// add makes the kernels of a library known.
func (d *Device) add(file string) error {
	list, err := d.lib.open(file)
	if err != nil {
		return err
	}
	for _, k := range list {
		if d.known[k.name] != nil {
			return fmt.Errorf("kernels/cuda/emulator: %s: kernel %s is in another file too", file, k.name)
		}
		d.known[k.name] = k
	}
	return nil
}

// Broken is what the compiler said about files that it could not compile.
func (d *Device) Broken() error { return d.broken }

// Unused is the names of the kernels that no device has launched while the process has run, sorted.
func (d *Device) Unused() []string {
	var names []string
	for name, k := range d.known {
		if !k.launched.Load() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// blocksAtATime is the workers of runtime.
const blocksAtATime = 4

// Info implements [cuda.Device]. The number of multiprocessors is odd on purpose, and the card is none that has kernels of its own; but for Hopper
// it is that of blocks that can wait for each other.
func (d *Device) Info() cuda.Info {
	if d.hopper {
		return cuda.Info{Name: "emulated Hopper GPU", Memory: memoryBytes, Major: 9, Multiprocessors: blocksAtATime}
	}
	return cuda.Info{Name: "emulated GPU", Memory: memoryBytes, Major: 8, Multiprocessors: 3}
}

// fail keeps the first failure for Sync.
func (d *Device) fail(what string, err error) {
	if err != nil && d.failure == nil {
		d.failure = fmt.Errorf("kernels/cuda/emulator: %s: %w", what, err)
	}
}

// queue runs f at once, or keeps it for a recording.
func (d *Device) queue(name string, f func()) {
	if d.recording != nil {
		*d.recording = append(*d.recording, f)
		return
	}
	start := time.Now()
	f()
	if d.profile != nil && name != "" {
		*d.profile = append(*d.profile, cuda.Took{Name: name, Seconds: time.Since(start).Seconds()})
	}
}

// now fails if a recording is being made, of which what can be no part.
func (d *Device) now(what string) bool {
	if d.recording != nil {
		d.fail(what, errors.New("not possible while a recording is made"))
	}
	return d.recording == nil
}

// Alloc implements [cuda.Device].
func (d *Device) Alloc(bytes int) (cuda.Address, error) {
	d.now("Alloc")
	b, err := d.heap.alloc(bytes)
	if err != nil {
		return 0, err
	}
	return b.start, nil
}

// Free implements [cuda.Device].
func (d *Device) Free(a cuda.Address) {
	d.now("Free")
	d.fail("Free", d.heap.free(a))
}

// FreeMemory implements [cuda.Device].
func (d *Device) FreeMemory() (bytes int, ok bool) { return memoryBytes - d.heap.used, true }

// Upload implements [cuda.Device].
func (d *Device) Upload(dst cuda.Address, src []byte) {
	if d.now("Upload") {
		to, err := d.heap.at(dst, len(src))
		d.fail("Upload", err)
		copy(to, src)
	}
}

// Download implements [cuda.Device].
func (d *Device) Download(dst []byte, src cuda.Address) {
	if d.now("Download") {
		from, err := d.heap.at(src, len(dst))
		d.fail("Download", err)
		copy(dst, from)
	}
}

// Fetch implements [cuda.Device]: dst stays as it is until the wait.
func (d *Device) Fetch(dst []byte, src cuda.Address) (wait func()) {
	got := make([]byte, len(dst))
	d.Download(got, src)
	return func() { copy(dst, got) }
}

// Copy implements [cuda.Device].
func (d *Device) Copy(dst, src cuda.Address, bytes int) {
	d.queue("", func() {
		to, err := d.heap.at(dst, bytes)
		d.fail("Copy", err)
		from, err := d.heap.at(src, bytes)
		d.fail("Copy", err)
		copy(to, from)
	})
}

// Clear implements [cuda.Device].
func (d *Device) Clear(dst cuda.Address, bytes int) {
	d.queue("", func() {
		to, err := d.heap.at(dst, bytes)
		d.fail("Clear", err)
		clear(to)
	})
}

// Capture implements [cuda.Device].
func (d *Device) Capture(f func()) (kernels.Recording, error) {
	if d.recording != nil {
		return nil, errors.New("kernels/cuda/emulator: a recording in a recording")
	}
	before := d.failure
	d.failure = nil
	var steps []func()
	d.recording = &steps
	func() {
		defer func() { d.recording = nil }()
		f()
	}()
	err := d.failure
	d.failure = before
	if err != nil {
		return nil, err
	}
	return recording{steps}, nil
}

type recording struct{ steps []func() }

// Run implements [kernels.Recording].
func (r recording) Run() {
	for _, f := range r.steps {
		f()
	}
}

// Close implements [kernels.Recording].
func (r recording) Close() {}

// Profile implements [cuda.Device].
func (d *Device) Profile(f func()) ([]cuda.Took, error) {
	var took []cuda.Took
	d.profile = &took
	func() {
		defer func() { d.profile = nil }()
		f()
	}()
	return took, d.Sync()
}

// Sync implements [cuda.Device].
func (d *Device) Sync() error {
	for _, b := range d.heap.blocks {
		d.fail("Sync", b.check())
	}
	err := d.failure
	d.failure = nil
	return err
}

// Close implements [cuda.Device].
func (d *Device) Close() error {
	err := d.Sync()
	for len(d.heap.blocks) > 0 {
		if e := d.heap.free(d.heap.blocks[0].start); err == nil {
			err = e
		}
	}
	return err
}

// box is runtime's Map.
type box struct {
	At                                    cuda.Address
	Stride                                int64
	Rows, Cols, BoxRows, BoxCols, Swapped int32
	_                                     [23]int32
}

// Boxes implements [cuda.Device].
func (d *Device) Boxes(dst cuda.Address, list []cuda.Box) {
	for i, b := range list {
		if b.Of.At == 0 {
			continue
		}
		if _, err := d.heap.at(b.Of.At, extent(b.Of)); err != nil {
			d.fail(fmt.Sprintf("box %d", i), err)
			return
		}
		x := box{
			At: b.Of.At, Stride: int64(b.Of.Stride * b.Of.Type.Size()), Rows: int32(b.Of.Rows), Cols: int32(b.Of.Cols),
			BoxRows: int32(b.Rows), BoxCols: int32(b.Cols),
		}
		if b.Cols == 0 {
			x.BoxCols, x.Swapped = 64, 1
		}
		data := bytesOf(x)
		d.Upload(dst+cuda.Address(i*len(data)), data)
	}
}
