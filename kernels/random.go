package kernels

// Stream is the random numbers of one site of the program, a layer's dropout for example, in one step: splitmix64 (Steele, Lea
// and Flood, OOPSLA 2014), the same on every backend.
type Stream uint64

// Random is the stream of a site for a seed and a step.
func Random(seed, step int32, site int) Stream {
	return Stream(mix(mix(uint64(uint32(seed))<<32|uint64(uint32(step))) ^ uint64(site)*0xd1342543de82ef95))
}

// At is the 64 random bits of element i.
func (s Stream) At(i int) uint64 { return mix(uint64(s) + uint64(i)) }

// Uniform is the upper 24 of them as a number in [0, 1).
func (s Stream) Uniform(i int) float64 { return float64(s.At(i)>>40) * 0x1p-24 }

// mix is the output function of splitmix64.
func mix(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
