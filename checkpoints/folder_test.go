package checkpoints

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func wantNames(t *testing.T, when, dir string, want ...string) {
	t.Helper()
	if got := names(t, dir); !slices.Equal(got, append([]string{}, want...)) {
		t.Errorf("%s: the folder has %q, want %q", when, got, want)
	}
}

func TestWriteFileReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run.json")
	for _, want := range []string{"first", "the second is longer", ""} {
		if err := WriteFile(path, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	wantNames(t, "after three writes", filepath.Dir(path), "run.json")
	if err := WriteFile(filepath.Join(path, "x"), nil); err == nil || !strings.HasPrefix(err.Error(), path) {
		t.Errorf("below a file: got %v, want an error that names the path", err)
	}
}

// A link stays a link, and what is no file is written to, not replaced.
func TestWriteFileFollows(t *testing.T) {
	dir := t.TempDir()
	link, target, pipe := filepath.Join(dir, "link"), filepath.Join(dir, "target"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.WriteFile(target, []byte("old"), 0o666), os.Symlink("target", link), syscall.Mkfifo(pipe, 0o666)); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(link, []byte("new")); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(target); err != nil || string(data) != "new" {
		t.Errorf("behind the link is %q, %v; want \"new\"", data, err)
	}
	is := func(path string, want fs.FileMode) {
		t.Helper()
		if info, err := os.Lstat(path); err != nil {
			t.Fatal(err)
		} else if got := info.Mode().Type(); got != want {
			t.Fatalf("%s is now of type %v, want %v", filepath.Base(path), got, want)
		}
	}
	is(link, fs.ModeSymlink)
	read := make(chan string)
	go func() {
		data, err := os.ReadFile(pipe)
		read <- fmt.Sprintf("%s %v", data, err)
	}()
	if err := WriteFile(pipe, []byte("said")); err != nil {
		t.Fatal(err)
	}
	is(pipe, fs.ModeNamedPipe) // else its reader waits for ever
	if got := <-read; got != "said <nil>" {
		t.Errorf("the pipe's reader got %q", got)
	}
}

func TestFolderAppearsComplete(t *testing.T) {
	dir := t.TempDir()
	final := filepath.Join(dir, "a", "b")
	f, err := NewFolder(final)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.WriteFile("x", []byte("1")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(f.Path(), "sub"), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(final); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before Commit: %v, want nothing at the final name", err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	wantNames(t, "parent after Commit", filepath.Dir(final), "b")
	wantNames(t, "folder after Commit", final, "sub", "x")
	if err := f.Abort(); err != nil {
		t.Errorf("Abort after Commit: %v", err)
	}
	wantNames(t, "folder after a deferred Abort", final, "sub", "x")
	if err := f.Commit(); err == nil {
		t.Error("a second Commit succeeded")
	}
}

func TestFolderAbortLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	f, err := NewFolder(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.WriteFile("x", []byte("1")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Abort(), f.Abort()); err != nil {
		t.Error(err)
	}
	wantNames(t, "after Abort", dir)
}

func TestFolderRefusesWhatExists(t *testing.T) {
	dir := t.TempDir()
	final := filepath.Join(dir, "a")
	first, err1 := NewFolder(final)
	second, err2 := NewFolder(final)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if err := first.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := second.Commit(); !errors.Is(err, ErrExists) { // although first is an empty folder, which rename would replace
		t.Errorf("second Commit: got %v, want ErrExists", err)
	}
	if err := second.Abort(); err != nil {
		t.Error(err)
	}
	if _, err := NewFolder(final); !errors.Is(err, ErrExists) || !strings.HasPrefix(err.Error(), final+": already exists\n") {
		t.Errorf("NewFolder: got %v, want ErrExists with the path and advice", err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := NewFolder(filepath.Join(dir, "link")); !errors.Is(err, ErrExists) {
		t.Errorf("dangling link: got %v, want ErrExists", err)
	}
	wantNames(t, "at the end", dir, "a", "link")
}

func TestFolderBelowAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := NewFolder(filepath.Join(path, "a")); err == nil || !strings.HasPrefix(err.Error(), path+": ") {
		t.Errorf("got %v, want an error that names %s", err, path)
	}
}

// Only folders of our own whose process is gone are deleted.
func TestReapSparesTheLiving(t *testing.T) {
	dir := t.TempDir()
	live, err := NewFolder(filepath.Join(dir, "live"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{tempPrefix + "dead-1", ".tmp-of-somebody-else", "step-1x"} {
		if err := os.MkdirAll(filepath.Join(dir, name, "sub"), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := Reap(dir); err != nil {
		t.Fatal(err)
	}
	wantNames(t, "after Reap", dir, filepath.Base(live.Path()), ".tmp-of-somebody-else", "step-1x")
	if err := live.Commit(); err != nil {
		t.Fatal(err)
	}
	wantNames(t, "after Commit", dir, ".tmp-of-somebody-else", "live", "step-1x")
}

// Many folders made, reaped and committed at once: none is lost.
func TestFoldersAtOnce(t *testing.T) {
	dir := t.TempDir()
	const n = 24
	errs := make([]error, n)
	inParallel(n, func(i int) {
		f, err := NewFolder(filepath.Join(dir, string(rune('a'+i))))
		if err == nil {
			err = errors.Join(f.WriteFile("x", []byte{byte(i)}), Reap(dir), f.Commit())
		}
		errs[i] = err
	})
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if got := len(names(t, dir)); got != n {
		t.Errorf("%d folders, want %d: %q", got, n, names(t, dir))
	}
}
