package kernels

// Profiler is a backend that can say how long each of its kernels took.
type Profiler interface {
	// Profile runs what f queues and waits for it. The launches are in the order in which they were queued.
	Profile(f func()) ([]Took, error)
}

// Took is the time of one launch of a kernel, or of one product of matrices.
type Took struct {
	Name    string // of the kernel; a product's is its shape
	Seconds float64
}

// Accountant is a backend that counts the memory that it gives.
type Accountant interface {
	// PeakBytes is the most that Alloc had given and Free not taken back at any time.
	PeakBytes() int
}

// Account counts memory for an [Accountant].
type Account struct{ now, peak int }

// Gave notes memory that Alloc gave.
func (a *Account) Gave(bytes int) {
	a.now += bytes
	a.peak = max(a.peak, a.now)
}

// Took notes memory that Free took back.
func (a *Account) Took(bytes int) { a.now -= bytes }

// PeakBytes implements [Accountant].
func (a *Account) PeakBytes() int { return a.peak }
