//go:build linux

package oldmem

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Hide mounts an empty file, cover, over path, which is /proc/vmcore. Memory
// that the running kernel uses can then not be mistaken for a dump. Hide
// creates cover. It does nothing if path is missing or already empty.
//
// The mount is in one mount namespace only, and the kernel has no way to
// remove /proc/vmcore. So before that, Hide takes all permissions away from
// it, which all mounts of proc made later show, too (proc_notify_change in
// fs/proc/generic.c, v6.12). Then only CAP_DAC_OVERRIDE or
// CAP_DAC_READ_SEARCH in the initial user namespace opens it.
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
	if err := os.Chmod(path, 0); err != nil {
		return fmt.Errorf("hide %s: %w", path, err)
	}
	if err := unix.Mount(cover, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("hide %s by mounting %s over it: %w", path, cover, err)
	}
	return nil
}
