package main

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
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
			return nil
		},
	})
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
