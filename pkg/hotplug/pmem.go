package hotplug

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Persistent memory regions are how a device tree gives a kernel memory that
// it leaves alone: a node with compatible "pmem-region" and volatile. Before
// kmem accepts such memory, libnvdimm must make a dax device of it. This file
// does what ndctl(1) would do for that (drivers/nvdimm, v6.12; tried on
// Debian's 6.12 for arm64):
//
//	of_pmem     node -> ndbusN, regionN, namespaceN.0, and an unused daxN.0
//	sysfs       mode, align, uuid, namespace of that daxN.0
//	dax_pmem    daxN.0 -> a dax device on the dax bus
//
// The info block that dax_pmem writes, and the alignment after it, take the
// first 2 MiB of the region.
const (
	platform  = "sys/bus/platform/devices"
	ndDevices = "sys/bus/nd/devices"
	ndDrivers = "sys/bus/nd/drivers"

	driverRegion = "nd_region"
	driverPmem   = "dax_pmem"
)

// InfoBlock is how much of a pmem region is lost at its start, in bytes. A
// region must begin that much below a memory block, or the whole block is
// lost.
const InfoBlock = 2 * phys.MiB

// pmemNodes returns the names of the platform devices that are pmem regions.
func (s System) pmemNodes() ([]string, error) {
	entries, err := os.ReadDir(s.path(platform))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list platform devices: %w", err)
	}
	var list []string
	for _, e := range entries {
		// of:NnameTtypeCcompatibleCcompatible (of_modalias in drivers/of).
		alias, err := s.read(filepath.Join(platform, e.Name(), "modalias"))
		if err != nil || !strings.HasPrefix(alias, "of:") {
			continue // other devices have no modalias, or one of ACPI
		}
		for _, compatible := range strings.Split(alias, "C")[1:] {
			if compatible == "pmem-region" {
				list = append(list, e.Name())
				break
			}
		}
	}
	return list, nil
}

// settle waits until libnvdimm has made the devices of all regions, which it
// does in the background: reading wait_probe blocks until then
// (wait_probe_show in drivers/nvdimm/core.c).
func (s System) settle() error {
	entries, err := os.ReadDir(s.path(ndDevices))
	if err != nil {
		return fmt.Errorf("list nvdimm devices: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "ndbus") {
			if _, err := s.read(filepath.Join(ndDevices, e.Name(), "wait_probe")); err != nil {
				return fmt.Errorf("wait for %s: %w", e.Name(), err)
			}
		}
	}
	return nil
}

// Convert makes a dax device of each pmem region that overlaps want. It writes
// into the first 8 KiB of the region. A region that has a dax device is left
// as it is; other users of a region are removed first. A kernel without
// regions has nothing to convert, which is no error.
func (s System) Convert(want phys.Set) error {
	entries, err := os.ReadDir(s.path(ndDevices))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list nvdimm devices: %w", err)
	}
	var errs []error
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), "region")
		if _, err := strconv.ParseUint(number, 10, 32); !ok || err != nil {
			continue
		}
		r, err := s.regionRange(e.Name())
		if err == nil && want.Overlaps(r) {
			err = s.convert(e.Name(), "namespace"+number+".0")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("make a dax device of %s (%v): %w", e.Name(), r, err))
		}
	}
	return errors.Join(errs...)
}

func (s System) regionRange(name string) (phys.Range, error) {
	start, err := s.number(filepath.Join(ndDevices, name, "resource"), 0)
	if err != nil {
		return phys.Range{}, err
	}
	size, err := s.number(filepath.Join(ndDevices, name, "size"), 0)
	if err != nil {
		return phys.Range{}, err
	}
	r, ok := phys.Sized(start, size)
	if !ok {
		return phys.Range{}, fmt.Errorf("%d bytes at %#x wrap", size, start)
	}
	return r, nil
}

func (s System) convert(region, namespace string) error {
	if s.driver(ndDevices, region) != driverRegion {
		return fmt.Errorf("driver %s has not taken it; the kernel's log says why", driverRegion)
	}
	holder, err := s.read(filepath.Join(ndDevices, namespace, "holder"))
	if err != nil {
		return err
	}
	if holder != "" && s.driver(ndDevices, holder) == driverPmem {
		return nil
	}
	// The region may be in use by an earlier try that was broken off, or
	// by nd_pmem, which makes a block device of any namespace and reads
	// its contents as a layout.
	for _, device := range []string{holder, namespace} {
		if device == "" {
			continue
		}
		if driver := s.driver(ndDevices, device); driver != "" {
			if err := s.write(filepath.Join(ndDrivers, driver, "unbind"), device); err != nil {
				return fmt.Errorf("take %s from %s: %w", device, driver, err)
			}
		}
	}
	if holder != "" {
		if err := s.write(filepath.Join(ndDevices, holder, "namespace"), "\n"); err != nil {
			return fmt.Errorf("take %s from %s: %w", namespace, holder, err)
		}
	}
	seed, err := s.read(filepath.Join(ndDevices, region, "dax_seed"))
	if err != nil {
		return err
	}
	if seed == "" {
		return errors.New("the kernel makes no dax devices of it (CONFIG_NVDIMM_DAX)")
	}
	align, err := s.pmemAlign(seed)
	if err != nil {
		return err
	}
	for _, a := range []struct{ name, value string }{
		// Put the page structures of this memory into existing RAM,
		// not into the region: kmem creates page structures once more
		// anyway.
		{"mode", "ram"},
		{"align", strconv.FormatUint(align, 10)},
		// A new UUID each time, so that an info block that an earlier
		// boot left is not taken for this device's.
		{"uuid", uuid()},
		{"namespace", namespace},
	} {
		if err := s.write(filepath.Join(ndDevices, seed, a.name), a.value); err != nil {
			return fmt.Errorf("set %s of %s to %s: %w", a.name, seed, a.value, err)
		}
	}
	err = s.write(filepath.Join(ndDrivers, driverPmem, "bind"), seed)
	if s.driver(ndDevices, seed) == driverPmem {
		return nil
	}
	if err == nil {
		err = errors.New("the kernel's log says why")
	}
	return fmt.Errorf("give %s to %s: %w", seed, driverPmem, err)
}

// pmemAlign returns the alignment to ask for: 2 MiB, or, if the page size has
// no such alignment, the smallest one. libnvdimm then aligns to 2 MiB all the
// same (memremap_compat_align). With the next larger alignment, such as 512
// MiB, it would use that much for the info block.
func (s System) pmemAlign(seed string) (uint64, error) {
	name := filepath.Join(ndDevices, seed, "supported_alignments")
	text, err := s.read(name)
	if err != nil {
		return 0, err
	}
	least := uint64(0)
	for _, field := range strings.Fields(text) {
		n, err := strconv.ParseUint(strings.Trim(field, "[]"), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", s.path(name), err)
		}
		if n == InfoBlock {
			return n, nil
		}
		if least == 0 || n < least {
			least = n
		}
	}
	if least == 0 {
		return 0, fmt.Errorf("%s: it is empty", s.path(name))
	}
	return least, nil
}

// uuid returns a random UUID (RFC 9562, version 4).
func uuid() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
