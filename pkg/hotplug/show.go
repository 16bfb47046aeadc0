package hotplug

import (
	"errors"
	"fmt"
	"math/bits"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
)

// ErrPmem says that the memory is in pmem regions. Making a dax device of a
// region writes an info block into its first 8 KiB and so destroys memory.
var ErrPmem = errors.New("memory is in pmem regions, and making a dax device of one writes into it")

// LoadToShow loads the modules that make dax devices of Soft Reserved memory
// and show them as files, but not kmem. If kmem is loaded already it loads
// nothing, because kmem might take new devices at once. Devices shows the
// result.
func (s System) LoadToShow() error {
	nodes, err := s.pmemNodes()
	if err != nil {
		return err
	}
	if len(nodes) > 0 {
		return ErrPmem
	}
	if s.exists(filepath.Join(daxDrivers, driverKmem)) {
		return nil
	}
	for _, m := range modules(false) {
		if m.name == driverKmem || m.driver != "" && s.exists(m.driver) {
			continue
		}
		if err := s.modprobe(m.name); err != nil {
			return fmt.Errorf("load module %s: %w", m.name, err)
		}
	}
	s.waitDevices()
	return nil
}

// File says how to map a dax device.
type File struct {
	Path   string // dev/daxX.Y, relative to Root
	Number string // of the character device: "MAJOR:MINOR"
	Align  uint64 // of offsets and lengths, in bytes: a power of two
}

// ErrKmem says that a device is bound to kmem: its memory may be in use.
var ErrKmem = errors.New("kmem has it")

// Show makes device_dax show d's memory as a file; the memory's contents don't
// change. A device that is bound to kmem stays so; the error wraps ErrKmem.
func (s System) Show(d Device) (File, error) {
	f, err := s.show(d)
	if err != nil {
		return File{}, fmt.Errorf("show %s (%v): %w", d.Name, d.Range, err)
	}
	return f, nil
}

func (s System) show(d Device) (File, error) {
	dir := filepath.Join(daxDevices, d.Name)
	// resource is the address of the first part, size that of all.
	if s.exists(filepath.Join(dir, "mapping1")) {
		return File{}, errors.New("its memory is in several parts")
	}
	align, err := s.number(filepath.Join(dir, "align"), 0)
	if err != nil {
		return File{}, err
	}
	if align < phys.PageSize || bits.OnesCount64(align) != 1 || (d.Range.Start|d.Range.End)&(align-1) != 0 {
		return File{}, fmt.Errorf("it is not aligned to %#x", align)
	}
	number, err := s.read(filepath.Join(dir, "dev"))
	if err != nil {
		return File{}, err
	}
	major, minor, _ := strings.Cut(number, ":")
	for _, n := range []string{major, minor} {
		if _, err := strconv.ParseUint(n, 10, 32); err != nil {
			return File{}, fmt.Errorf("dev is %q, want MAJOR:MINOR", number)
		}
	}
	switch now := s.driver(daxDevices, d.Name); now {
	case driverKmem:
		return File{}, ErrKmem
	case driverDevice:
	case "":
		// As in Bind: by its type, v6.12 would bind the device to
		// kmem.
		first := s.write(filepath.Join(daxDrivers, driverDevice, "new_id"), d.Name)
		if s.driver(daxDevices, d.Name) == driverDevice {
			break
		}
		second := s.write(filepath.Join(daxDrivers, driverDevice, "bind"), d.Name)
		if s.driver(daxDevices, d.Name) != driverDevice {
			return File{}, fmt.Errorf("driver %s doesn't take it; the kernel's log says why: %w", driverDevice, errors.Join(first, second))
		}
	default:
		return File{}, fmt.Errorf("driver %s has it", now)
	}
	return File{filepath.Join("dev", d.Name), number, align}, nil
}
