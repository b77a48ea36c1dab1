package model

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/bits"
	"os"
	"slices"

	"github.com/edsrzf/mmap-go"
	"github.com/gomlx/go-huggingface/models/gguf"

	"loratrain/kernels"
	"loratrain/model/tokenizer"
)

// mapping is a mapped file that [Base.Close] gives back.
type mapping struct{ mmap.MMap }

func (m mapping) Close() error { return m.Unmap() }

// openGGUF opens a GGUF file of llama.cpp.
func openGGUF(path string) (_ *Base, err error) {
	data, err := mapFile(path)
	if err != nil {
		return nil, err
	}
	b := &Base{Name: nameOf(path), Path: path, mappings: []io.Closer{mapping{data}}}
	if err := b.readGGUF(data); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func mapFile(path string) (mmap.MMap, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, refuse("check its permissions", "%s: %w", path, bare(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, refuse("check the disk", "%s: %w", path, bare(err))
	}
	if !info.Mode().IsRegular() || info.Size() == 0 {
		return nil, refuse("fetch the file again", "%s: an empty file, or none at all", path)
	}
	data, err := mmap.Map(f, mmap.RDONLY, 0)
	if err != nil {
		return nil, refuse("check the disk and the limits on memory", "%s: cannot be mapped: %w", path, err)
	}
	return data, nil
}

func (b *Base) readGGUF(data []byte) error {
	if err := checkGGUF(b.Path, data); err != nil {
		return err
	}
	file, err := gguf.Open(b.Path)
	if err != nil {
		return refuse(adviceGGUF, "%s: %w", b.Path, err)
	}
	f := metadata(b.Path, file)
	p := ggufPlan(f)
	if f.err != nil {
		return f.err
	}
	r := &ggufTensors{file: file, data: data, infos: map[string]gguf.TensorInfo{}}
	if err := r.check(); err != nil {
		return refuse(adviceGGUF, "%s: %w", b.Path, err)
	}
	if err := r.complete(&p, f); err != nil {
		return refuse(adviceGGUF, "%s: %w", b.Path, err)
	}
	b.Arch, b.EOS = p.arch, f.ggufEOS(p.arch.Vocab)
	f.rest(p.ggufNote)
	if f.err != nil {
		return f.err
	}
	all := b.Weights.slots(p.arch, p.bias)
	if err := r.fill(all, p.arch.Family == "llama"); err != nil {
		return refuse(adviceGGUF, "%s: %w", b.Path, err)
	}
	b.finish(all)
	b.setTokenizer(tokenizer.FromGGUF(ggufTokenizer(b.Path, file)))
	return nil
}

// ggufTensors is the tensors of a file. Its errors leave out the path.
type ggufTensors struct {
	file  *gguf.File
	data  []byte // the whole file
	infos map[string]gguf.TensorInfo
}

// ggufTypes are the storage types that can be read.
var ggufTypes = []gguf.TensorType{
	gguf.TensorTypeF32, gguf.TensorTypeF16, gguf.TensorTypeBF16,
	gguf.TensorTypeQ4_0, gguf.TensorTypeQ4_1, gguf.TensorTypeQ5_0, gguf.TensorTypeQ5_1, gguf.TensorTypeQ8_0,
	gguf.TensorTypeQ2_K, gguf.TensorTypeQ3_K, gguf.TensorTypeQ4_K, gguf.TensorTypeQ5_K, gguf.TensorTypeQ6_K,
}

// check holds the tensors' types, shapes and places against the file.
func (r *ggufTensors) check() error {
	if kv, ok := r.file.GetKeyValue(gguf.KeyGeneralAlignment); ok {
		if a, isSize := kv.Raw().(uint32); !isSize || bits.OnesCount32(a) != 1 {
			return fmt.Errorf("general.alignment is %v, want a power of two", kv.Raw())
		}
	}
	start := r.file.DataOffset()
	end, before := uint64(0), "the header"
	for _, info := range r.file.TensorInfos { // by their offsets
		size, err := ggufBytes(info)
		if err != nil {
			return err
		}
		// The library finds tensors by name wrongly if the header does not list them by their places.
		if listed, _ := r.file.GetTensorInfo(info.Name); listed.Name != info.Name {
			return fmt.Errorf("tensor %q is not listed in the order of its place in the file", info.Name)
		}
		if info.Offset < end {
			return fmt.Errorf("tensor %q overlaps %s", info.Name, before)
		}
		if left := uint64(max(int64(len(r.data))-start, 0)); info.Offset > left || size > left-info.Offset {
			return fmt.Errorf("truncated: tensor %q of %d bytes begins at byte %d, file has %d", info.Name, size, uint64(start)+info.Offset, len(r.data))
		}
		end, before = info.Offset+size, fmt.Sprintf("tensor %q", info.Name)
		r.infos[info.Name] = info
	}
	return nil
}

// ggufBytes is the bytes of a tensor's elements.
func ggufBytes(info gguf.TensorInfo) (uint64, error) {
	if !slices.Contains(ggufTypes, info.Type) {
		return 0, fmt.Errorf("tensor %q has type %s, only %v are supported", info.Name, info.Type, ggufTypes)
	}
	n := uint64(1)
	for _, d := range info.Shape {
		if d == 0 || d > maxSize || n > math.MaxInt64/16/d {
			return 0, fmt.Errorf("tensor %q has an impossible shape %v", info.Name, info.Shape)
		}
		n *= d
	}
	block := uint64(info.Type.BlockSize())
	if info.Shape[0]%block != 0 {
		return 0, fmt.Errorf("tensor %q of type %s has rows of %d, want a multiple of %d", info.Name, info.Type, info.Shape[0], block)
	}
	return n / block * uint64(info.Type.TypeSize()), nil
}

// complete adds to the plan what only the tensors tell: the vocabulary, which layers have a bias, whether the output
// projection is the embedding, and factors of the rotary embedding.
func (r *ggufTensors) complete(p *plan, f *fields) error {
	a := &p.arch
	if a.Layers > len(r.infos) { // before there is room made for them
		return fmt.Errorf("block_count is %d, but there are %d tensors", a.Layers, len(r.infos))
	}
	if embed, ok := r.infos["token_embd.weight"]; ok && len(embed.Shape) == 2 && !f.has(a.Family+".vocab_size") {
		a.Vocab = int(embed.Shape[1])
	}
	_, hasHead := r.infos["output.weight"]
	a.Tied = !hasHead
	for _, t := range AllTargets() {
		_, p.bias[t] = r.infos["blk.0."+ggufTargets[t]+".bias"]
	}
	if a.Family == "qwen2" {
		p.bias[QProj], p.bias[KProj], p.bias[VProj] = true, true, true
	}
	const factors = "rope_freqs.weight"
	if info, ok := r.infos[factors]; ok {
		if info.Type != gguf.TensorTypeF32 || !slices.Equal(info.Shape, []uint64{uint64(a.HeadDim / 2)}) {
			return fmt.Errorf("tensor %q is %s %v, want F32 [%d]", factors, info.Type, info.Shape, a.HeadDim/2)
		}
		for _, x := range kernels.Slice[float32](view(r.raw(info), kernels.F32, []int{a.HeadDim / 2})) {
			if !(x > 0 && x <= math.MaxFloat32) {
				return fmt.Errorf("tensor %q holds %v, want numbers above 0", factors, x)
			}
			a.FreqFactors = append(a.FreqFactors, float64(x))
		}
		delete(r.infos, factors)
	}
	return nil
}

// raw is a tensor's bytes in the file.
func (r *ggufTensors) raw(info gguf.TensorInfo) []byte {
	from := uint64(r.file.DataOffset()) + info.Offset
	to := from + uint64(info.NumBytes())
	return r.data[from:to:to]
}

// fill gives every slot its tensor, and refuses what is missing, mis-shaped or left over. interleaved says that the
// rows of q and k are in llama.cpp's order.
func (r *ggufTensors) fill(all []slot, interleaved bool) error {
	unused := maps.Clone(r.infos)
	for _, s := range all {
		info, ok := r.infos[s.gguf]
		if !ok {
			return fmt.Errorf("tensor %q is missing", s.gguf)
		}
		want := make([]uint64, len(s.shape)) // innermost first
		for i, d := range s.shape {
			want[len(want)-1-i] = uint64(d)
		}
		if !slices.Equal(info.Shape, want) {
			return fmt.Errorf("tensor %q has shape %v, want %v", s.gguf, info.Shape, want)
		}
		delete(unused, s.gguf)
	}
	if len(unused) > 0 {
		return fmt.Errorf("unexpected tensor %q", slices.Min(slices.Collect(maps.Keys(unused))))
	}
	reader, err := gguf.NewReader(r.file)
	if err != nil {
		return err
	}
	defer reader.Close()
	return inParallel(len(all), func(i int) error {
		s := all[i]
		t, err := r.tensor(reader, r.infos[s.gguf], s.shape)
		if interleaved && s.heads > 0 && err == nil {
			t = halves(widened(t), s.heads)
		}
		*s.dst = t
		return err
	})
}

// tensor is one tensor for kernels, or F16 that becomes one: a view of the file, or F32 on the heap.
func (r *ggufTensors) tensor(reader *gguf.Reader, info gguf.TensorInfo, shape []int) (kernels.Tensor, error) {
	switch info.Type {
	case gguf.TensorTypeF32:
		return view(r.raw(info), kernels.F32, shape), nil
	case gguf.TensorTypeBF16:
		return view(r.raw(info), kernels.BF16, shape), nil
	case gguf.TensorTypeF16:
		return kernels.Tensor{Type: kernels.F32, Shape: shape, Mem: f16(r.raw(info))}, nil
	}
	t, err := reader.ReadTensor(nil, info.Name)
	if err != nil {
		return kernels.Tensor{}, err
	}
	var values []float32
	// The slice is the collector's like any other, so that it may outlive t.
	err = t.ConstFlatData(func(flat any) { values, _ = flat.([]float32) })
	if err != nil || len(values) != kernels.Len(shape...) {
		return kernels.Tensor{}, fmt.Errorf("tensor %q: %d values of %d: %w", info.Name, len(values), kernels.Len(shape...), err)
	}
	return kernels.FromSlice(values, shape...), nil
}

// halves undoes what llama.cpp does to the rows of q and k: within a head it interleaves the two halves, so that the
// pairs which the rotary embedding turns lie side by side (convert_hf_to_gguf.py, permute).
func halves(t kernels.Tensor, heads int) kernels.Tensor {
	out := kernels.NewHost(t.Type, t.Shape...)
	src, dst := t.Mem.(kernels.Host), out.Mem.(kernels.Host)
	dim, row := t.Shape[0]/heads, len(src)/t.Shape[0]
	for to := range t.Shape[0] {
		head, i := to/dim*dim, to%dim
		from := head + i%(dim/2)*2 + i/(dim/2)
		copy(dst[to*row:][:row], src[from*row:])
	}
	return out
}
