//go:build linux && (amd64 || arm64)

package emulator

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// commonFlags are how both the kernels and the runtime are compiled. No product is fused with a sum, nor is any processor
// assumed, so that results are the same everywhere.
var commonFlags = []string{
	"-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-ffp-contract=off", "-fno-math-errno",
	"-pthread", "-U_FORTIFY_SOURCE",
}

// kernelFlags make C++ as lenient as CUDA's about aliasing and overflow, and check what runtime/checks.cpp reports.
var kernelFlags = []string{
	"-DEMULATED", "-fno-strict-aliasing", "-fwrapv", "-Wno-unknown-pragmas",
	"-fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero", "-fno-sanitize-recover=all",
}

// here is the folder of this package.
func here() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(file)
}

// build compiles sources to shared libraries that are kept until one of their sources changes.
type build struct {
	compiler string
	version  []byte
	folder   string // where they are kept
}

func newBuild() (*build, error) {
	b := &build{compiler: cmp.Or(os.Getenv("CXX"), "g++")}
	var err error
	if b.version, err = exec.Command(b.compiler, "--version").Output(); err != nil {
		return nil, fmt.Errorf("kernels/cuda/emulator: %s: %w\ninstall g++, or set CXX to what it is called here", b.compiler, err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	b.folder = filepath.Join(cache, "lora-train", "emulator")
	return b, os.MkdirAll(b.folder, 0o755)
}

// job is one library.
type job struct {
	name    string
	sources []string
	headers []string
	flags   []string
}

// library is the file of j, compiled if it is not there.
func (b *build) library(j job) (string, error) {
	digest := sha256.New()
	fmt.Fprintf(digest, "%s%q", b.version, j.flags)
	for _, file := range slices.Concat(j.sources, j.headers) {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(digest, "%s %d\n%s", filepath.Base(file), len(text), text)
	}
	out := filepath.Join(b.folder, fmt.Sprintf("%s-%x.so", j.name, digest.Sum(nil)[:12]))
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	// Test binaries of several packages run side by side. One compiles, the others wait for it.
	unlock, err := lock(filepath.Join(b.folder, j.name+".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	temp, err := os.MkdirTemp(b.folder, j.name)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	made := filepath.Join(temp, "lib.so")
	if err := b.compile(made, j, temp); err != nil {
		return "", err
	}
	// Versions of old sources are of no more use.
	old, _ := filepath.Glob(filepath.Join(b.folder, j.name+"-*.so"))
	err = os.Rename(made, out)
	removeStale(old)
	return out, err
}

// lock holds a file that one process can hold at a time, or one caller in it. What dies gives it back.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for err = syscall.EINTR; errors.Is(err, syscall.EINTR); {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// compile does not link with a flag -fsanitize: the compiler would add its own library of checks.
func (b *build) compile(out string, j job, temp string) error {
	var objects []string
	for _, source := range j.sources {
		object := filepath.Join(temp, filepath.Base(source)+".o")
		objects = append(objects, object)
		if err := b.command(slices.Concat(j.flags, []string{"-x", "c++", "-c", source, "-o", object})); err != nil {
			return err
		}
	}
	return b.command(slices.Concat([]string{"-shared", "-pthread", "-o", out}, objects))
}

func (b *build) command(args []string) error {
	text, err := exec.Command(b.compiler, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", b.compiler, err, firstLines(text))
	}
	return nil
}

// firstLines is where a compiler says what matters.
func firstLines(text []byte) []byte {
	const lines = 12
	return bytes.Join(bytes.SplitN(text, []byte("\n"), lines+1)[:min(lines, bytes.Count(text, []byte("\n")))], []byte("\n"))
}

// runtimeJob is the emulator itself.
func runtimeJob() (job, error) {
	folder := filepath.Join(here(), "runtime")
	sources, err := filepath.Glob(filepath.Join(folder, "*.cpp"))
	if err == nil && len(sources) == 0 {
		err = fmt.Errorf("kernels/cuda/emulator: no sources in %s\nrun where the repository is, built without -trimpath", folder)
	}
	if err != nil {
		return job{}, err
	}
	headers, err := filepath.Glob(filepath.Join(folder, "*.h"))
	return job{"runtime", sources, headers, commonFlags}, err
}

// kernelJobs is a library of each .cu file in folder; of those for Hopper alone, if hopper, of each that enters its kernels.
func kernelJobs(folder string, hopper bool) ([]job, error) {
	sources, err := filepath.Glob(filepath.Join(folder, "*.cu"))
	sources = slices.DeleteFunc(sources, func(s string) bool {
		if !strings.HasSuffix(s, "_sm90.cu") {
			return false
		}
		text, _ := os.ReadFile(s)
		return !hopper || !bytes.Contains(text, []byte("KERNEL("))
	})
	if err == nil && len(sources) == 0 {
		err = fmt.Errorf("kernels/cuda/emulator: no .cu file in %s", folder)
	}
	if err != nil {
		return nil, err
	}
	common := filepath.Dir(here()) // common.cuh
	include := filepath.Join(here(), "runtime")
	headers := map[string]bool{}
	for _, pattern := range []string{filepath.Join(common, "*.cuh"), filepath.Join(folder, "*.cuh"), filepath.Join(include, "*.h")} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			headers[f] = true
		}
	}
	flags := slices.Concat(commonFlags, kernelFlags, []string{"-I" + include, "-I" + common})
	var jobs []job
	for _, s := range sources {
		name := strings.TrimSuffix(filepath.Base(s), ".cu")
		jobs = append(jobs, job{name, []string{s}, slices.Sorted(maps.Keys(headers)), flags})
	}
	return jobs, nil
}

// all compiles jobs side by side. The files are in the order of jobs, empty where the compiler failed.
func (b *build) all(jobs []job) ([]string, error) {
	files, errs := make([]string, len(jobs)), make([]error, len(jobs))
	var wait sync.WaitGroup
	free := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i, j := range jobs {
		wait.Go(func() {
			free <- struct{}{}
			files[i], errs[i] = b.library(j)
			<-free
		})
	}
	wait.Wait()
	return files, errors.Join(errs...)
}

// staleAfter is how long a library is kept after it was made from sources that have changed since: another copy of the
// repository may have them still.
const staleAfter = 7 * 24 * time.Hour

func removeStale(files []string) {
	for _, f := range files {
		if i, err := os.Stat(f); err == nil && time.Since(i.ModTime()) > staleAfter {
			os.Remove(f) // in use or gone, it does not matter
		}
	}
}
