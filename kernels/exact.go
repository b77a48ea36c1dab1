package kernels

// Exacter is a backend that computes in less than float32 and can also compute in float32, for checks.
type Exacter interface {
	// Exact is a backend in float32 on the tensors of this one. The two must not compute at the same time; closing it leaves this one open.
	Exact() Backend
}
