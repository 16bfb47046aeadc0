//go:build linux

package target

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// errClaimed says that another process is writing a file.
var errClaimed = errors.New("another process is writing it")

// create makes a new file for a dump: it must not exist, not even as a
// symbolic link, and only its owner may read it, because a dump holds every
// secret that the crashed system had in memory.
func create(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create dump file: %w", err)
	}
	return f, nil
}

// claim makes a new file for a dump, as create does. It belongs to the caller
// until it is closed or the process ends, in whatever way. A file that a dead
// process left at path is removed first. The error wraps errClaimed if a
// living process has claimed it.
func claim(path string) (*os.File, error) {
	if _, err := discard(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := create(path)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create %s: %w", path, errClaimed) // claimed in the meantime
	}
	if err != nil {
		return nil, err
	}
	if err := lock(f, path); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// discard removes the file at path that a dead process claimed, and returns
// its size in bytes. It removes nothing but a regular file. The error wraps
// errClaimed if a living process has claimed it, fs.ErrNotExist if there is no
// file.
func discard(path string) (size int64, err error) {
	st, err := os.Lstat(path)
	if err != nil {
		return 0, fmt.Errorf("remove incomplete dump: %w", err)
	}
	if !st.Mode().IsRegular() {
		return 0, fmt.Errorf("remove incomplete dump: %s is not a regular file", path)
	}
	// Opened for writing, because locks on NFS need that.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("remove incomplete dump: %w", err)
	}
	defer f.Close()
	if err := lock(f, path); err != nil {
		return 0, err
	}
	if err := os.Remove(path); err != nil {
		return 0, fmt.Errorf("remove incomplete dump: %w", err)
	}
	return st.Size(), nil
}

// lock locks f, which was opened as path. A process holds the lock of a file
// while it removes it, and a process that has made a file checks, once it is
// locked, that it still has its name. So of two processes that want the same
// name, one gets it. On a file system without locks there is only that check.
func lock(f *os.File, path string) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("lock %s: %w", path, errClaimed)
	}
	same, err := names(path, f)
	if err == nil && !same {
		err = errClaimed
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	return nil
}

// names says whether path is a name of f.
func names(path string, f *os.File) (bool, error) {
	got, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	want, err := f.Stat()
	return err == nil && os.SameFile(got, want), err
}

// remove removes a claimed file, unless path is another file's name by now.
func remove(f *os.File, path string) error {
	if same, err := names(path, f); err != nil || !same {
		return err
	}
	return os.Remove(path)
}

// publish gives a file that was made as from the name to. The error wraps
// fs.ErrExist if there is such a file, which is left alone.
func publish(f *os.File, from, to string) error {
	same, err := names(from, f)
	if err == nil && !same {
		err = errors.New("somebody has removed or replaced it, or its directory, while it was written")
	}
	if err != nil {
		return fmt.Errorf("rename %s: %w", from, err)
	}
	err = unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// A file system that can't, such as NFS: look first.
		if _, err = os.Lstat(to); err == nil {
			err = fs.ErrExist
		} else if errors.Is(err, fs.ErrNotExist) {
			err = os.Rename(from, to)
		}
	}
	if err != nil {
		return fmt.Errorf("rename %s to %s: %w", from, to, err)
	}
	return nil
}
