package kernels

// Limited is a backend that knows how much memory it has left.
type Limited interface {
	// FreeMemory is the bytes that Alloc and Place can still give; ok is false if nobody can say.
	FreeMemory() (bytes int, ok bool)
}
