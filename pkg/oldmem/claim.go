//go:build linux

package oldmem

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrClaimed says that another process is writing a file.
var ErrClaimed = errors.New("another process is writing it")

// Claim makes a new file for a dump, as Create does, that is the caller's until
// it is closed, or until the process ends however it ends. What a dead process
// left at path is removed first. The error wraps ErrClaimed if a process that
// lives has it.
func Claim(path string) (*os.File, error) {
	if _, err := Discard(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := Create(path)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create %s: %w", path, ErrClaimed) // since then
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

// Discard removes the file at path that a dead process claimed, and returns its
// size in bytes. It removes nothing but a regular file. The error wraps
// ErrClaimed if a process that lives has it, fs.ErrNotExist if there is none.
func Discard(path string) (size int64, err error) {
	st, err := os.Lstat(path)
	if err != nil {
		return 0, fmt.Errorf("remove incomplete dump: %w", err)
	}
	if !st.Mode().IsRegular() {
		return 0, fmt.Errorf("remove incomplete dump: %s is not a regular file", path)
	}
	// For writing, because locks of NFS want it.
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

// lock locks f, which was opened as path. Who removes a file holds its lock, and
// who has made one looks for it again when it is locked: so of two processes
// that want the same name one gets it. A file system without locks has no more
// than the second look.
func lock(f *os.File, path string) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("lock %s: %w", path, ErrClaimed)
	}
	same, err := names(path, f)
	if err == nil && !same {
		err = ErrClaimed
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

// Remove removes a claimed file, unless its name is another file's by now.
func Remove(f *os.File) {
	if same, err := names(f.Name(), f); err == nil && same {
		os.Remove(f.Name())
	}
}

// Publish gives a file that was made as from the name to. The error wraps
// fs.ErrExist if there is such a file, which is left alone.
func Publish(f *os.File, from, to string) error {
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
