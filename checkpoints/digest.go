package checkpoints

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"iter"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// Digest is the identity of a set of tensors, "sha256:" and 64 hexadecimal
// digits: SHA-256 over the tensors' own hashes, sorted as bytes, so that the
// order of the tensors does not matter. The hash of one tensor is SHA-256 over
//
//	len(name) name len(type) type len(shape) shape[0] … shape[n-1] data
//
// every number an unsigned 64-bit little-endian integer. Tensors are hashed in
// parallel.
func Digest(tensors []Tensor) string {
	return DigestOf(tensors, func(i int) iter.Seq[[]byte] { return slices.Values([][]byte{tensors[i].Data}) })
}

// DigestOf is Digest of tensors whose data, in pieces, a function gives.
func DigestOf(tensors []Tensor, data func(i int) iter.Seq[[]byte]) string {
	hashes := make([][]byte, len(tensors))
	inParallel(len(tensors), func(i int) { hashes[i] = tensorHash(tensors[i], data(i)) })
	slices.SortFunc(hashes, slices.Compare[[]byte])
	all := sha256.New()
	for _, h := range hashes {
		all.Write(h)
	}
	return "sha256:" + hex.EncodeToString(all.Sum(nil))
}

func tensorHash(t Tensor, data iter.Seq[[]byte]) []byte {
	var head []byte
	for _, s := range []string{t.Name, string(t.Type)} {
		head = binary.LittleEndian.AppendUint64(head, uint64(len(s)))
		head = append(head, s...)
	}
	head = binary.LittleEndian.AppendUint64(head, uint64(len(t.Shape)))
	for _, d := range t.Shape {
		head = binary.LittleEndian.AppendUint64(head, uint64(d))
	}
	h := sha256.New()
	h.Write(head)
	for piece := range data {
		h.Write(piece)
	}
	return h.Sum(nil)
}

// inParallel calls f(0) … f(n-1) on as many goroutines as Go runs at once.
func inParallel(n int, f func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				f(i)
			}
		})
	}
	wg.Wait()
}
