package checkpoints

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary runs itself as the process that gets killed or has no room.
const (
	childMode = "CHECKPOINTS_TEST_CHILD"
	childDir  = "CHECKPOINTS_TEST_DIR"
)

func TestMain(m *testing.M) {
	switch os.Getenv(childMode) {
	case "save":
		saveForever(os.Getenv(childDir))
	case "full":
		saveWithoutRoom(os.Getenv(childDir))
	default:
		os.Exit(m.Run())
	}
}

func child(t *testing.T, mode, dir string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childMode+"="+mode, childDir+"="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// bigState is large enough that a kill hits the writing itself now and then.
func bigState(step int) State {
	s := State{Step: step, Meta: fmt.Appendf(nil, `{"step":%d}`, step)}
	for i := range 4 {
		data := bytes.Repeat([]byte(strconv.Itoa(step)+"."), 1<<18)[:1<<18]
		s.Tensors = append(s.Tensors, Tensor{Name: fmt.Sprint(i), Type: U8, Shape: []int{1 << 18}, Data: data})
	}
	return s
}

// saveForever goes on where the folder left off and tells each step it finished.
func saveForever(dir string) {
	step := 0
	if l, err := LatestState(dir); err == nil {
		step = l.Step
	}
	fmt.Println("ready")
	for {
		step++
		if err := SaveState(dir, bigState(step)); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(step)
		if err := Reap(dir, step); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
}

// A process killed at any instant leaves the state it said it had saved or a
// later one, whole, and the next process clears away the rest.
func TestKilledAtAnyInstant(t *testing.T) {
	dir := t.TempDir()
	leftovers, acknowledged := 0, 0
	// 30 kills, and more where a busy machine has not yet let one hit a save.
	for kills := 0; kills < 30 || kills < 500 && (leftovers == 0 || acknowledged == 0); kills++ {
		cmd := child(t, "save", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		lines.Scan() // it is about to save
		time.AfterFunc(time.Duration(rand.IntN(40_000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
		for lines.Scan() {
			step, err := strconv.Atoi(lines.Text())
			if err != nil {
				t.Errorf("child: %s", lines.Text())
				continue
			}
			acknowledged = step
		}
		_ = cmd.Wait() // killed
		l, err := LatestState(dir)
		if err != nil && acknowledged == 0 {
			continue
		}
		if err != nil || len(l.Skipped) > 0 || l.Step < acknowledged {
			t.Fatalf("step %d was saved, found %d, skipped %v, %v", acknowledged, l.Step, l.Skipped, err)
		}
		sameTensors(t, l.Tensors, bigState(l.Step).Tensors)
		if want := fmt.Sprintf(`{"step":%d}`, l.Step); string(l.Meta) != want {
			t.Errorf("step %d: meta %s, want %s", l.Step, l.Meta, want)
		}
		if strings.Contains(strings.Join(names(t, dir), " "), tempPrefix) {
			leftovers++
		}
	}
	if acknowledged == 0 || leftovers == 0 {
		t.Errorf("step %d was the last, %d kills left a temporary folder: this test did not reach what it is for", acknowledged, leftovers)
	}
	l, err := LatestState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := Reap(dir, l.Step); err != nil {
		t.Fatal(err)
	}
	wantNames(t, "after the last Reap", dir, filepath.Base(l.Path))
}

// saveWithoutRoom may write files of 64 kB and no larger, as on a disk that fills up.
func saveWithoutRoom(dir string) {
	signal.Ignore(syscall.SIGXFSZ) // so that write returns an error
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 1 << 16, Max: 1 << 16}); err != nil {
		fmt.Println("cannot limit:", err)
		return
	}
	fmt.Println(SaveState(dir, bigState(2)))
}

func TestFullDiskLeavesThePreviousState(t *testing.T) {
	dir := t.TempDir()
	if err := SaveState(dir, bigState(1)); err != nil {
		t.Fatal(err)
	}
	out, err := child(t, "full", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"save checkpoint " + filepath.Join(dir, "step-2"), "state.safetensors: file too large\n", "free space"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the child said %q, want %q in it", out, want)
		}
	}
	wantNames(t, "after the full disk", dir, "step-1")
	l, err := LatestState(dir)
	if err != nil || l.Step != 1 {
		t.Fatalf("step %d, %v; want step 1", l.Step, err)
	}
	sameTensors(t, l.Tensors, bigState(1).Tensors)
}
