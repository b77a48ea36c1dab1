//go:build linux && (amd64 || arm64)

package emulator

import (
	"fmt"
	"slices"
	"sort"
	"syscall"
	"unsafe"

	"loratrain/kernels/cuda"
)

// memoryBytes is what the device is said to have.
const memoryBytes = 8 << 30

// guardBytes before and behind every block cannot be touched.
const guardBytes = 64 << 10

// alignment of what Alloc gives.
const alignment = 256

// red fills the bytes around a block, which nobody may write: NaN, for those who read them.
const red = 0xff

// block is what one Alloc gave, as close to the page behind it as its alignment allows.
type block struct {
	mapping []byte // with guards on either side
	inner   []byte // the pages that can be
	offset  int    // of the block in inner
	bytes   int
	start   cuda.Address
}

func (b *block) data() []byte { return b.inner[b.offset : b.offset+b.bytes] }

// heap is the device's memory.
type heap struct {
	blocks []*block // by address
	used   int
}

func (h *heap) alloc(bytes int) (*block, error) {
	if bytes < 0 || bytes > memoryBytes-h.used {
		return nil, fmt.Errorf("emulator: %d bytes asked for, %d free", bytes, memoryBytes-h.used)
	}
	page := syscall.Getpagesize()
	room := (bytes + alignment - 1) / alignment * alignment
	pages := max((room+page-1)/page*page, page)
	m, err := syscall.Mmap(-1, 0, pages+2*guardBytes, syscall.PROT_NONE, syscall.MAP_PRIVATE|syscall.MAP_ANON|syscall.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("emulator: %d bytes asked for, %d free: %w", bytes, memoryBytes-h.used, err)
	}
	b := &block{mapping: m, inner: m[guardBytes : guardBytes+pages], offset: pages - room, bytes: bytes}
	if err := syscall.Mprotect(b.inner, syscall.PROT_READ|syscall.PROT_WRITE); err != nil {
		return nil, fmt.Errorf("emulator: %d bytes asked for: %w", bytes, err)
	}
	fill(b.inner[:b.offset])
	fill(b.inner[b.offset+bytes:])
	b.start = cuda.Address(uintptr(unsafe.Pointer(unsafe.SliceData(b.inner)))) + cuda.Address(b.offset)
	h.blocks = slices.Insert(h.blocks, h.after(b.start), b)
	h.used += bytes
	return b, nil
}

func fill(p []byte) {
	for i := range p {
		p[i] = red
	}
}

// after is the index of the first block that starts behind a.
func (h *heap) after(a cuda.Address) int {
	return sort.Search(len(h.blocks), func(i int) bool { return h.blocks[i].start > a })
}

// find is the block that a lies in, or nil.
func (h *heap) find(a cuda.Address) *block {
	if i := h.after(a); i > 0 && a-h.blocks[i-1].start < cuda.Address(max(h.blocks[i-1].bytes, 1)) {
		return h.blocks[i-1]
	}
	return nil
}

// at is n bytes from a on.
func (h *heap) at(a cuda.Address, n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	b := h.find(a)
	if b == nil || n < 0 || int(a-b.start) > b.bytes-n {
		return nil, fmt.Errorf("%d bytes at %s", n, h.where(a))
	}
	return b.data()[a-b.start:][:n], nil
}

// where describes an address.
func (h *heap) where(a cuda.Address) string {
	if a < 1<<16 {
		return fmt.Sprintf("address %#x, near none", uint64(a))
	}
	if b := h.find(a); b != nil {
		return fmt.Sprintf("byte %d of memory of %d bytes", a-b.start, b.bytes)
	}
	i := h.after(a)
	if i > 0 {
		if b := h.blocks[i-1]; a-b.start-cuda.Address(b.bytes) < guardBytes {
			return fmt.Sprintf("%d bytes behind the end of memory of %d bytes", a-b.start-cuda.Address(b.bytes), b.bytes)
		}
	}
	if i < len(h.blocks) && h.blocks[i].start-a < guardBytes {
		return fmt.Sprintf("%d bytes before the start of memory of %d bytes", h.blocks[i].start-a, h.blocks[i].bytes)
	}
	return fmt.Sprintf("address %#x, far from all memory", uint64(a))
}

func (h *heap) free(a cuda.Address) error {
	i := h.after(a) - 1
	if i < 0 || h.blocks[i].start != a {
		return fmt.Errorf("free of %s, which Alloc did not give", h.where(a))
	}
	b := h.blocks[i]
	err := b.check()
	h.blocks = slices.Delete(h.blocks, i, i+1)
	h.used -= b.bytes
	if e := syscall.Munmap(b.mapping); err == nil {
		err = e
	}
	return err
}

// check looks for what was written around b, and makes it good.
func (b *block) check() error {
	before, behind := b.inner[:b.offset], b.inner[b.offset+b.bytes:]
	for i := len(before) - 1; i >= 0; i-- {
		if before[i] != red {
			fill(before)
			return fmt.Errorf("written %d bytes before the start of memory of %d bytes", len(before)-i, b.bytes)
		}
	}
	for i, x := range behind {
		if x != red {
			fill(behind)
			return fmt.Errorf("written %d bytes behind the end of memory of %d bytes", i, b.bytes)
		}
	}
	return nil
}
