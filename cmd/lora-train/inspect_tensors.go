package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"loratrain/checkpoints"
)

// tensorInfo is one tensor of a file.
type tensorInfo struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Shape []int  `json:"shape"`
	Bytes int64  `json:"bytes"`
}

// elements is how many numbers there are.
func (t tensorInfo) elements() int {
	n := 1
	for _, d := range t.Shape {
		n *= d
	}
	return n
}

func tensorInfos(tensors []checkpoints.Tensor) []tensorInfo {
	list := make([]tensorInfo, len(tensors))
	for i, t := range tensors {
		list[i] = tensorInfo{Name: t.Name, Type: string(t.Type), Shape: t.Shape, Bytes: int64(len(t.Data))}
	}
	return list
}

func totalBytes(list []tensorInfo) (n int64) {
	for _, t := range list {
		n += t.Bytes
	}
	return n
}

func totalElements(list []tensorInfo) (n int) {
	for _, t := range list {
		n += t.elements()
	}
	return n
}

// typesOf is the types of a list of tensors and what each takes, the largest first.
func typesOf(list []tensorInfo) string {
	sizes := map[string]int64{}
	for _, t := range list {
		sizes[t.Type] += t.Bytes
	}
	names := slices.Sorted(maps.Keys(sizes))
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(sizes[b], sizes[a]) })
	for i, name := range names {
		if len(names) > 1 {
			names[i] = fmt.Sprintf("%s %s", name, bytesText(sizes[name]))
		}
	}
	return strings.Join(names, ", ")
}

// inLayer is where tensors of transformer blocks have the block's number, in the names of transformers and of llama.cpp.
var inLayer = regexp.MustCompile(`\b(layers|blk)\.\d+\.`)

// printTensors lists tensors; unless all, those that differ in their layer alone are one line.
func printTensors(w io.Writer, list []tensorInfo, all bool) {
	type line struct {
		tensorInfo
		times int
	}
	var lines []line
	index := map[string]int{}
	for _, t := range list {
		name := t.Name
		if !all {
			name = inLayer.ReplaceAllString(name, "$1.*.")
		}
		key := fmt.Sprint(name, t.Type, t.Shape)
		if i, ok := index[key]; ok {
			lines[i].times++
			lines[i].Bytes += t.Bytes
			continue
		}
		index[key] = len(lines)
		t.Name = name
		lines = append(lines, line{t, 1})
	}
	var rows [][]string
	for _, l := range lines {
		times := ""
		if l.times > 1 {
			times = fmt.Sprintf("\t%d ×", l.times)
		}
		rows = append(rows, []string{times, l.Name, l.Type, shapeText(l.Shape), "\t" + bytesText(l.Bytes)})
	}
	if len(lines) == len(list) {
		for i := range rows {
			rows[i] = rows[i][1:]
		}
	}
	fmt.Fprintf(w, "\n%s, %s, %s\n", plural(len(list), "tensor"), bytesText(totalBytes(list)), typesOf(list))
	printTable(w, rows)
}

// shapeText writes a shape as documentation does: (8, 4, 576).
func shapeText(shape []int) string {
	return "(" + strings.Trim(strings.ReplaceAll(fmt.Sprint(shape), " ", ", "), "[]") + ")"
}

// tensorsReport is a safetensors file.
type tensorsReport struct {
	Kind     string            `json:"kind"`
	Path     string            `json:"path"`
	Digest   string            `json:"digest"` // of the tensors
	Metadata map[string]string `json:"metadata,omitempty"`
	Tensors  []tensorInfo      `json:"tensors"`
}

func inspectTensors(path string) (report, error) {
	f, err := checkpoints.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return tensorsReport{
		Kind: "safetensors", Path: path, Metadata: f.Metadata(), Tensors: tensorInfos(f.Tensors()), Digest: checkpoints.Digest(f.Tensors()),
	}, nil
}

func (r tensorsReport) print(w io.Writer, all bool) {
	fmt.Fprintf(w, "%s: a safetensors file\n\n", r.Path)
	rows := [][]string{{"elements", count(totalElements(r.Tensors))}, {"digest", r.Digest}}
	for _, key := range slices.Sorted(maps.Keys(r.Metadata)) {
		rows = append(rows, []string{"metadata", key + " = " + shorten(r.Metadata[key], 80)})
	}
	printTable(w, rows)
	printTensors(w, r.Tensors, all)
}
