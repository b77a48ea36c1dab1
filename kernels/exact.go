package kernels

// Exacter is a backend that computes in less than float32 and can also compute in float32, for checks.
type Exacter interface {
	// Exact is a backend in float32 on the tensors of this one, which is in use until the other is closed.
	Exact() (Backend, error)
	// ExactBytes is the memory that Exact takes.
	ExactBytes() int
}
