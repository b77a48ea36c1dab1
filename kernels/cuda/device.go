package cuda

import "loratrain/kernels"

// Address is where something lies in a device's memory.
type Address uint64

// Info is what a device is.
type Info struct {
	Name            string
	Memory          int // bytes in all
	Major, Minor    int // compute capability
	Multiprocessors int
}

// Device runs kernels and holds memory. All work is queued in one order; what goes wrong in it shows at Sync, Download or the
// wait of a Fetch. One goroutine at a time uses a Device.
type Device interface {
	Info() Info

	// Alloc is memory of zeros, aligned to 256 bytes. The error says how much was asked for and how much is free.
	Alloc(bytes int) (Address, error)
	Free(Address)
	// FreeMemory is the bytes that Alloc can still give; ok is false if nobody can say.
	FreeMemory() (bytes int, ok bool)
	// Upload copies src, which may be changed when it returns.
	Upload(dst Address, src []byte)
	// Download copies to dst when all before it is done.
	Download(dst []byte, src Address)
	// Fetch is Download that does not wait; dst holds the bytes when the function that it returns has returned.
	Fetch(dst []byte, src Address) (wait func())
	Copy(dst, src Address, bytes int)
	Clear(dst Address, bytes int)

	// Launch queues a kernel by name. Each argument is an Address, int32, uint32, int64, uint64, float32, a struct of
	// those, laid out as C does, or, for kernels for Hopper, a Box.
	Launch(kernel string, l Launch, args ...any)
	// Boxes writes boxes to memory, as kernels for Hopper read them there; those of nothing are left out.
	Boxes(dst Address, list []Box)
	// Multiply queues a product.
	Multiply(p Product)

	// Capture records what f queues instead of running it, to be run many times. Memory that it uses must stay where it
	// is.
	Capture(f func()) (kernels.Recording, error)

	// Profile runs what f queues and says what each kernel and product took.
	Profile(f func()) ([]Took, error)

	// Sync waits for everything and reports the first failure since the last call.
	Sync() error
	Close() error
}

// Launch is the shape of a kernel's threads.
type Launch struct {
	Grid, Block [3]int // 0 counts as 1
	Shared      int    // bytes of dynamic shared memory
}

// Matrix is a row-major matrix in a device's memory whose rows start Stride elements apart.
type Matrix struct {
	At         Address
	Type       kernels.Type // F32 or BF16
	Rows, Cols int
	Stride     int
	Transposed bool // stands for its transpose; Rows and Cols are those in memory
}

// T is the transpose of m.
func (m Matrix) T() Matrix { m.Transposed = !m.Transposed; return m }

// Box is how a kernel for Hopper copies a matrix of BF16: by boxes of Rows rows and 64 columns, see hopper.cuh, or of Cols columns that
// come to lie as they are. The matrix lies at a multiple of 16 bytes, and so do its rows.
type Box struct {
	Of         Matrix
	Rows, Cols int
}

// Product is C ← Alpha·A·B + Beta·C with sums in float32. A and B have the same type, C is F32 or of that type.
type Product struct {
	C, A, B     Matrix
	Alpha, Beta float32
}

// Took is the time of one launch or product.
type Took = kernels.Took
