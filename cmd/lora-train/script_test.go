package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	enough = time.Millisecond // the scripts' programs are this one
	testscript.Main(m, map[string]func(){"lora-train": main})
}

// TestScripts runs the program as people do. The scripts' own commands, see makers_test.go, make what it is run on.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"status":      status,
			"make-model":  maker(makeModel),
			"make-export": maker(makeExport),
			"make-run":    maker(makeRun),
			"make-peft":   maker(makePEFT),
			"cut":         maker(cut),
			"spoil":       maker(spoil),
		},
		Condition: func(name string) (bool, error) {
			switch name {
			case "smollm2":
				return os.Getenv("LORA_SMOLLM2") != "", nil
			case "gpu": // the program was built for one
				return openCUDA != nil, nil
			default:
				return false, errors.New("unknown condition " + name)
			}
		},
		Setup: func(env *testscript.Env) error {
			env.Setenv("LORA_SMOLLM2", os.Getenv("LORA_SMOLLM2"))
			dir, err := fakeDriver(t)
			env.Setenv("FAKE", dir)
			return err
		},
	})
}

// fakeDriver is a folder with what plays NVIDIA's driver and cuBLAS, for a program that looks for them; empty without a C compiler.
func fakeDriver(t *testing.T) (string, error) {
	if _, err := exec.LookPath("cc"); err != nil || openCUDA == nil {
		return "", nil
	}
	dir := t.TempDir()
	library := filepath.Join(dir, "libcuda.so.1")
	if out, err := exec.Command("cc", "-shared", "-fPIC", "-O1", "-o", library, "../../kernels/cuda/driver/testdata/fake.c").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return dir, os.Symlink("libcuda.so.1", filepath.Join(dir, "libcublas.so.13"))
}

// status runs a program and holds its exit status against the first argument.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N command...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status is %d, want %d", got, want)
	}
}

// maker makes a script's command of a function that works in a folder given by its absolute path.
func maker(f func(path string, args []string) error) func(ts *testscript.TestScript, neg bool, args []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) == 0 {
			ts.Fatalf("usage: COMMAND path [argument...]")
		}
		ts.Check(f(ts.MkAbs(args[0]), args[1:]))
	}
}
