//go:build gpu

package driver

// #include "queue.h"
import "C"

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// code is an answer of the driver that is not success.
type code C.CUresult

func (c code) Error() string {
	r := C.CUresult(c)
	return C.GoString(C.error_name(r)) + ": " + C.GoString(C.error_text(r))
}

func result(r C.CUresult) error {
	if r == C.CUDA_SUCCESS {
		return nil
	}
	return code(r)
}

// named is err with the driver's own words for it if it is a bare answer that package cu passed on: cu knows few of them.
func named(err error) error {
	if v := reflect.ValueOf(err); err != nil && v.Kind() == reflect.Int && v.Type().PkgPath() == "gorgonia.org/cu" {
		return code(v.Int())
	}
	return err
}

// blasStatus is an answer of cuBLAS that is not success.
type blasStatus int

var blasStatusNames = map[blasStatus]string{
	1: "NOT_INITIALIZED", 3: "ALLOC_FAILED", 7: "INVALID_VALUE", 8: "ARCH_MISMATCH", 11: "MAPPING_ERROR", 13: "EXECUTION_FAILED",
	14: "INTERNAL_ERROR", 15: "NOT_SUPPORTED",
}

func (s blasStatus) Error() string {
	if name, ok := blasStatusNames[s]; ok {
		return "CUBLAS_STATUS_" + name
	}
	return fmt.Sprintf("cuBLAS status %d", int(s))
}

// faults are the answers after which a context no longer works.
var faults = map[code]bool{
	C.CUDA_ERROR_ILLEGAL_ADDRESS: true, C.CUDA_ERROR_LAUNCH_TIMEOUT: true, C.CUDA_ERROR_ASSERT: true, C.CUDA_ERROR_HARDWARE_STACK_ERROR: true,
	C.CUDA_ERROR_ILLEGAL_INSTRUCTION: true, C.CUDA_ERROR_MISALIGNED_ADDRESS: true, C.CUDA_ERROR_INVALID_ADDRESS_SPACE: true,
	C.CUDA_ERROR_INVALID_PC: true, C.CUDA_ERROR_LAUNCH_FAILED: true, C.CUDA_ERROR_ECC_UNCORRECTABLE: true, C.CUDA_ERROR_NVLINK_UNCORRECTABLE: true,
	C.CUDA_ERROR_CONTEXT_IS_DESTROYED: true, C.CUDA_ERROR_EXTERNAL_DEVICE: true, C.CUDA_ERROR_UNKNOWN: true,
}

func isFault(err error) bool {
	c, ok := err.(code)
	return ok && faults[c]
}

// remembered is how many names of queued work an error may list.
const remembered = 8

// history is the names of what was queued since the device was last known to be well.
type history struct {
	names [remembered]string
	count int
}

func (h *history) add(name string) {
	h.names[h.count%remembered] = name
	h.count++
}

func (h *history) String() string {
	n := min(h.count, remembered)
	last := make([]string, n)
	for i := range last {
		last[i] = h.names[(h.count-n+i)%remembered]
	}
	if h.count > remembered {
		return fmt.Sprintf("%d launches were queued, the last of them %s", h.count, strings.Join(last, ", "))
	}
	return "queued were " + strings.Join(last, ", ")
}

// fail keeps the first failure for Sync; after a fault the device does nothing more. what names the work, none if it is not known.
func (d *device) fail(what string, err error) {
	if d.fault != nil {
		return
	}
	if _, ok := err.(blasStatus); ok && d.recording == nil {
		if waited := result(C.queue_sync(d.q)); waited != nil {
			what, err = "", waited // a fault of earlier work, which cuBLAS met
		}
	}
	if !isFault(err) {
		if d.failed == nil {
			d.failed = refusal(what, err)
		}
		return
	}
	if what != "" && d.trace {
		d.fault = fmt.Errorf("GPU %d: kernel %s faulted: %w\n"+
			"that is a mistake in the kernel or in what it was given; what was saved before is whole", d.index, what, err)
		return
	}
	d.fault = fmt.Errorf("GPU %d: a kernel faulted: %w; %v\n"+
		"run it again with LORA_CUDA_TRACE=1 in the environment to see which kernel; what was saved before is whole", d.index, err, &d.history)
}

// refusal is the error of work that was not taken.
func refusal(what string, err error) error {
	if _, ok := err.(blasStatus); ok {
		return fmt.Errorf("%s: %w\ninstall a cuBLAS of CUDA 12 or 13 that is not newer than the driver", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// failure is err, which a call returned for what, or the fault that it comes of.
func (d *device) failure(what string, err error) error {
	if isFault(err) {
		d.fail("", err)
		return d.fault
	}
	return refusal(what, err)
}

// forbidden reports a call that a capture cannot record.
func (d *device) forbidden(call string) bool {
	if d.recording == nil {
		return false
	}
	if d.recording.err == nil {
		d.recording.err = fmt.Errorf("%s cannot be recorded", call)
	}
	return true
}

var errClosed = errors.New("the device is closed")
