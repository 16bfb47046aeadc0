//go:build linux

package oldmem

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Hide covers path, /proc/vmcore, with an empty file, so that nobody reads as
// a dump what has become memory of the running kernel. cover is the empty
// file; it is made. A path that is missing or empty already is left alone.
func Hide(path, cover string) error {
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && st.Size() == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("hide %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(cover), 0o755); err != nil {
		return fmt.Errorf("hide %s: %w", path, err)
	}
	f, err := os.OpenFile(cover, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o400)
	if err != nil {
		return fmt.Errorf("hide %s: %w", path, err)
	}
	f.Close()
	if err := unix.Mount(cover, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("hide %s by mounting %s over it: %w", path, cover, err)
	}
	return nil
}

// Create makes a new file for a dump: it must not exist, not even as a
// symbolic link, and only its owner may read it, because a dump holds every
// secret that the crashed system had in memory.
func Create(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create dump file: %w", err)
	}
	return f, nil
}

// Free returns how many bytes the caller may write to the file system that
// holds path.
func Free(path string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", path, err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// Full says whether err is that of a file system, or a quota, that is full.
func Full(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// SyncDir makes the names in dir survive a loss of power.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}
