package checkpoints

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/gofrs/flock"
	"github.com/google/renameio/v2"
)

// ErrExists is what [NewFolder] and [Folder.Commit] return, with the path,
// when something is already at the place that the folder is for.
var ErrExists = errors.New("already exists")

// tempPrefix begins the names of folders that are being written. It names the
// program, because stale folders that begin so are deleted.
const tempPrefix = ".tmp-lora-train-"

// WriteFile replaces a file as a whole: whoever reads path, also after a crash,
// finds the old content or the new one. A link stays, what it leads to is
// replaced; a device or a pipe is written to.
func WriteFile(path string, data []byte) error {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		if err := writeInto(path, data); err != nil {
			return located(path, err)
		}
		return nil
	}
	if err := renameio.WriteFile(path, data, 0o666); err != nil {
		return located(path, err)
	}
	return syncPath(filepath.Dir(path))
}

// writeInto writes to what is there.
func writeInto(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// Folder is a folder that appears under its final name complete or not at all.
// It is filled under a temporary name beside that place, [Folder.Commit] moves
// it there and [Folder.Abort] removes it. While it is open it is locked; the
// next NewFolder or [Reap] in the same parent deletes those whose process died.
type Folder struct {
	path, final string
	lock        *flock.Flock
	closed      bool
}

// NewFolder begins a folder that will be called final, making its parents. It
// returns [ErrExists] when something is there already. Abort may be deferred:
// after Commit it does nothing.
func NewFolder(final string) (*Folder, error) {
	final = filepath.Clean(final)
	parent := filepath.Dir(final)
	if err := os.MkdirAll(parent, 0o777); err != nil {
		return nil, located(parent, err)
	}
	unlock, err := lockFolder(parent)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := refuseExisting(final); err != nil {
		return nil, err
	}
	_ = reapStale(parent) // another run's leftovers are no reason to fail this one; Reap reports them
	f := &Folder{path: tempName(final), final: final}
	if err := os.Mkdir(f.path, 0o777); err != nil {
		return nil, located(f.path, err)
	}
	f.lock = folderLock(f.path)
	// The parent is still locked, so nobody can take this folder for a stale one before its own lock holds.
	if err := f.lock.Lock(); err != nil {
		return nil, errors.Join(located(f.path, err), os.Remove(f.path))
	}
	return f, nil
}

// Path is where files go until Commit.
func (f *Folder) Path() string { return f.path }

// WriteFile writes a file inside of the folder.
func (f *Folder) WriteFile(name string, data []byte) error {
	path := filepath.Join(f.path, name)
	if err := os.WriteFile(path, data, 0o666); err != nil {
		return located(path, err)
	}
	return nil
}

// Commit syncs everything in the folder, moves it to its final name and syncs
// the parent. On an error other than one from that last sync, nothing is at the
// final name and Abort still has to be called.
func (f *Folder) Commit() error {
	if f.closed {
		return fmt.Errorf("%s: committed or aborted before", f.final)
	}
	if err := syncTree(f.path); err != nil {
		return err
	}
	parent := filepath.Dir(f.final)
	unlock, err := lockFolder(parent)
	if err != nil {
		return err
	}
	defer unlock()
	if err := refuseExisting(f.final); err != nil { // rename would replace an empty folder
		return err
	}
	if err := os.Rename(f.path, f.final); err != nil {
		return located(f.final, err)
	}
	f.closed = true
	return errors.Join(syncPath(parent), f.lock.Close())
}

// Abort removes the folder with all that is in it, unless it was committed.
func (f *Folder) Abort() error {
	if f.closed {
		return nil
	}
	f.closed = true
	return errors.Join(os.RemoveAll(f.path), f.lock.Close())
}

func refuseExisting(path string) error {
	_, err := os.Lstat(path)
	switch {
	case err == nil:
		return fault("choose another name, or move it away first", "%s: %w", path, ErrExists)
	case !errors.Is(err, fs.ErrNotExist):
		return located(path, err)
	}
	return nil
}

func tempName(final string) string {
	return filepath.Join(filepath.Dir(final), fmt.Sprintf("%s%s-%016x", tempPrefix, filepath.Base(final), rand.Uint64()))
}

// folderLock locks the folder itself, so that no lock file is left anywhere and
// the lock moves along when the folder is renamed.
func folderLock(path string) *flock.Flock { return flock.New(path, flock.SetFlag(os.O_RDONLY)) }

// lockFolder waits for a folder's lock. Folders are made, committed and reaped
// under the lock of their parent.
func lockFolder(path string) (unlock func(), err error) {
	lock := folderLock(path)
	if err := lock.Lock(); err != nil {
		return nil, located(path, fmt.Errorf("cannot be locked: %w", err))
	}
	return func() { _ = lock.Close() }, nil
}

// reapStale deletes the temporary folders in parent that no process holds.
// The caller holds the parent's lock.
func reapStale(parent string) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return located(parent, err)
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		path := filepath.Join(parent, e.Name())
		lock := folderLock(path)
		free, err := lock.TryLock()
		if err == nil && free {
			err = os.RemoveAll(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, located(path, err))
		}
		_ = lock.Close()
	}
	return errors.Join(errs...)
}

// discard removes a folder so that it is never seen half removed: it is renamed
// to a temporary name first.
func discard(path string) error {
	unlock, err := lockFolder(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer unlock()
	temp := tempName(path)
	if err := os.Rename(path, temp); err != nil {
		return located(path, err)
	}
	if err := os.RemoveAll(temp); err != nil {
		return located(temp, err)
	}
	return nil
}

func syncTree(root string) error {
	return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return located(path, err)
		}
		if e.IsDir() || e.Type().IsRegular() {
			return syncPath(path)
		}
		return nil
	})
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return located(path, err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return located(path, err)
	}
	return nil
}
