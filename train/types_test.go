package train

import (
	"fmt"
	"path/filepath"
	"reflect"
	"testing"

	"loratrain/internal/graph"
	"loratrain/internal/testgpu"
	"loratrain/kernels"
	"loratrain/kernels/cpu"
	"loratrain/router"
)

// noRecording hides that a backend can record.
type noRecording struct{ kernels.Backend }

// TestStepsInTwoTypes takes steps in bf16, where activations and trainable tensors differ in type: near those in float32, and
// the same to the bit recorded, one operation after the other, and with blocks recomputed.
func TestStepsInTwoTypes(t *testing.T) {
	for _, gpu := range testgpu.All() {
		t.Run(gpu.Name, func(t *testing.T) {
			o := randomObjective()
			exact := randomStepper(t, openBackend(t, cpu.Options{}), router.Layer, o)
			b := gpu.Open(t, false)
			recorded, plain := randomStepper(t, b, router.Layer, o), randomStepper(t, noRecording{b}, router.Layer, o)
			o.Recompute = true
			again := randomStepper(t, b, router.Layer, o)
			for i, batches := range randomSteps(t, 4) {
				var results []StepResult
				before := hostCopy(b, recorded.Params)
				for _, s := range []*Stepper{exact, recorded, plain, again} {
					r, err := s.Step(batches, i+1, 1e-3)
					if err != nil {
						t.Fatal(err)
					}
					results = append(results, r)
				}
				near(t, fmt.Sprintf("step %d: loss", i+1), results[1].Loss, results[0].Loss, 0.02)
				near(t, fmt.Sprintf("step %d: norm", i+1), results[1].Norm, results[0].Norm, 0.1)
				for k, how := range []string{"one by one", "recomputed"} {
					if !reflect.DeepEqual(results[1], results[2+k]) {
						t.Errorf("step %d: recorded %+v, %s %+v", i+1, results[1], how, results[2+k])
					}
				}
				used := kernels.Slice[kernels.BFloat16](hostCopy(b, recorded.rounded))
				for k, x := range kernels.Slice[float32](before) {
					if used[k] != kernels.ToBFloat16(x) {
						t.Fatalf("step %d: trainable element %d was used as %v, it is %v", i+1, k, used[k].Float32(), x)
					}
				}
			}
			recorded.Adapter(graph.NewImmediate(b)) // what an evaluation uses
			used := kernels.Slice[kernels.BFloat16](hostCopy(b, recorded.rounded))
			for k, x := range kernels.Slice[float32](hostCopy(b, recorded.Params)) {
				if used[k] != kernels.ToBFloat16(x) {
					t.Fatalf("evaluated: trainable element %d is used as %v, it is %v", k, used[k].Float32(), x)
				}
			}
			sameTrainables(t, "one by one", recorded, plain)
			sameTrainables(t, "recomputed", recorded, again)
		})
	}
}

// TestExportOfBF16 trains in bf16 and far enough that merging experts in bf16 would round noticeably: the export is verified in float32.
func TestExportOfBF16(t *testing.T) {
	for _, gpu := range onGPUs("", false, true, tolerances{}) {
		t.Run(gpu.name, func(t *testing.T) {
			settings := append(resumedRun(), "adapter.granularity=token", "train.lr=0.05", "train.max_steps=3")
			out, err := trainAt(t.Context(), gpu.open(t), filepath.Join(t.TempDir(), "run"), false, silent{}, func(*run) {}, settings...)
			if err != nil {
				t.Fatal(err)
			}
			if a := out.Agreement; !(a.Between <= 1e-4) || !(a.Rounding > 1e-3) || len(a.Modes) != 3 {
				t.Errorf("modes %v differ by %g and rounding changes by %g; expected three modes, at most 1e-4 and more than 1e-3", a.Modes, a.Between, a.Rounding)
			}
		})
	}
}
