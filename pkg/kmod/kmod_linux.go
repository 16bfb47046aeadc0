// Package kmod loads the kernel modules of a payload that is a distribution's
// kernel. A payload kernel of our own has none.
package kmod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// LoadAll loads every module file in dir in the order of their names, which is
// the order of their dependencies as initramfs/build.sh numbered them. It goes
// on after an error, because no machine has all the devices that its payload
// has modules for; the errors are joined. A missing dir is no error.
//
// A module's file is removed once it is loaded: the initramfs takes memory,
// and the window has little.
func LoadAll(dir string) (loaded int, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.ko"))
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, name := range files { // sorted by Glob
		if err := load(name); err != nil {
			errs = append(errs, fmt.Errorf("load module %s: %w", filepath.Base(name), err))
			continue
		}
		loaded++
	}
	return loaded, errors.Join(errs...)
}

func load(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return os.Remove(name)
}
