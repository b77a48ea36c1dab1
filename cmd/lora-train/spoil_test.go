package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strconv"
)

// spoil overwrites one element of a tensor in a safetensors file. Arguments are the tensor, the element's index and its new value.
func spoil(path string, args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: spoil FILE TENSOR INDEX VALUE")
	}
	index, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	value, err := strconv.ParseFloat(args[2], 64)
	if err != nil {
		return err
	}
	file, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	start := 8 + int(binary.LittleEndian.Uint64(file))
	var header map[string]struct {
		Type    string `json:"dtype"`
		Offsets [2]int `json:"data_offsets"`
	}
	if err := json.Unmarshal(file[8:start], &header); err != nil {
		return err
	}
	tensor, ok := header[args[0]]
	if !ok {
		return fmt.Errorf("%s: no tensor %q", path, args[0])
	}
	data := file[start+tensor.Offsets[0] : start+tensor.Offsets[1]]
	switch tensor.Type {
	case "BF16":
		binary.LittleEndian.PutUint16(data[2*index:], uint16(math.Float32bits(float32(value))>>16))
	case "F32":
		binary.LittleEndian.PutUint32(data[4*index:], math.Float32bits(float32(value)))
	case "I32":
		binary.LittleEndian.PutUint32(data[4*index:], uint32(int32(value)))
	default:
		return fmt.Errorf("%s: tensor %q is %s", path, args[0], tensor.Type)
	}
	return os.WriteFile(path, file, 0o666)
}
