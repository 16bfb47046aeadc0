// Package hotplug works with memory that the running kernel was told to leave
// alone: Soft Reserved memory on x86, pmem regions with a device tree. It adds
// it to the running kernel's memory and takes it back, or shows it as files.
// The means are dax devices, the kmem and device_dax drivers, and memory
// blocks.
//
// The caller decides from the memory plan which block may go online, and for
// what. Every operation can be repeated.
//
// How stock kernels do it (drivers/dax, drivers/base/memory.c; v6.1, v6.12):
// the dax_hmem module makes a dax device of each Soft Reserved range. v6.1
// binds it to device_dax; since commit e9ee9fe3a7b0 ("dax: Assign RAM regions
// to memory-hotplug by default") (in v6.3) it binds to kmem if that is loaded.
// kmem adds the device's whole memory blocks, which stay offline with
// memhp_default_state=offline, so that nothing is written to them before their
// state file is. Convert explains how a pmem region becomes a dax device.
package hotplug

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Bounds, in case the file system isn't really sysfs.
const (
	maxAttribute = 4 << 10 // bytes in an attribute: sysfs gives a page
	maxBlocks    = 1 << 22 // memory blocks, of 128 MiB at least
	maxModules   = 4 << 20 // bytes in a list of modules, 0.7 MiB in Debian
)

const (
	daxDevices = "sys/bus/dax/devices"
	daxDrivers = "sys/bus/dax/drivers"
	memory     = "sys/devices/system/memory"

	driverKmem   = "kmem"
	driverDevice = "device_dax"
)

// System is the running kernel, through its files below Root.
type System struct {
	// Root is where sys is: "/", or a directory in a test.
	Root string
	// Modprobe loads a module by name. nil runs modprobe(8), which loads
	// modules that modprobe.blacklist= keeps from loading by themselves.
	Modprobe func(name string) error
	// Write writes an attribute, path relative to Root. nil opens the file
	// and writes data in one call.
	Write func(path, data string) error
	// Wait is how long Load waits for dax devices to appear; 0 means not
	// at all.
	Wait time.Duration
}

// Device is a dax device.
type Device struct {
	Name   string     // such as dax0.0
	Range  phys.Range // physical memory; zero if it has none
	Node   int        // NUMA node that its memory would belong to, -1 if none
	Driver string     // kmem, device_dax, or "" for none
}

// Block is a memory block: the unit in which the kernel switches memory online
// and offline.
type Block struct {
	Name  string // such as memory12
	Range phys.Range
	State string   // offline, going-offline, online
	Zones []string // zone that it is in, or, if offline, zones that it could be put in
}

// Online says whether the kernel uses b.
func (b Block) Online() bool { return b.State != "offline" }

// Movable says whether b is online for user pages only.
func (b Block) Movable() bool { return b.Online() && slices.Equal(b.Zones, []string{"Movable"}) }

// Load loads the modules that turn the memory into dax devices, and dax
// devices into memory blocks. A missing module is no error, because it may be
// built into the kernel. Devices, after Convert, shows the result.
func (s System) Load() error {
	nodes, err := s.pmemNodes()
	if err != nil {
		return err
	}
	var errs []error
	lacks := false
	for _, m := range modules(len(nodes) > 0) {
		if m.driver != "" && s.exists(m.driver) {
			continue
		}
		if err := s.modprobe(m.name); err != nil && !m.optional {
			errs = append(errs, fmt.Errorf("load module %s: %w", m.name, err))
		}
		if m.driver != "" && !m.optional && !s.exists(m.driver) {
			errs = append(errs, fmt.Errorf("the kernel has no %s driver (%s)", m.name, m.config))
			lacks = true
		}
	}
	if lacks {
		return errors.Join(errs...)
	}
	if len(nodes) > 0 {
		return s.settle()
	}
	s.waitDevices()
	return nil
}

// waitDevices waits until there are dax devices.
func (s System) waitDevices() {
	for end := time.Now().Add(s.Wait); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if entries, err := os.ReadDir(s.path(daxDevices)); err == nil && len(entries) > 0 {
			return
		}
	}
}

// Missing returns the modules that Load needs and that the kernel of this
// release (as in uname -r) neither has built in nor can load. Without them
// memory can't be given to the kernel. The result is empty if the lists of
// modules can't be read.
func (s System) Missing(release string) []string {
	nodes, err := s.pmemNodes()
	if err != nil {
		return nil
	}
	listed := ""
	for _, name := range []string{"modules.dep", "modules.builtin"} {
		text, err := s.readAll(filepath.Join("lib/modules", release, name), maxModules)
		if err != nil {
			return nil
		}
		listed += text
	}
	var missing []string
	for _, m := range modules(len(nodes) > 0) {
		if !m.optional && (m.driver == "" || !s.exists(m.driver)) && !strings.Contains(listed, "/"+m.name+".ko") {
			missing = append(missing, m.name)
		}
	}
	return missing
}

// module is a module that Load loads.
type module struct {
	name     string
	driver   string // path that exists if the driver is there; "" if only modprobe knows
	config   string // the driver's kernel configuration option
	optional bool
}

// modules lists the modules for pmem regions or for Soft Reserved memory.
func modules(pmem bool) []module {
	kmem := module{name: "kmem", driver: filepath.Join(daxDrivers, driverKmem), config: "CONFIG_DEV_DAX_KMEM"}
	if pmem {
		// Not device_dax, which would take the devices first and describe
		// all of their pages (devm_memremap_pages): 16 MiB for each GiB.
		return []module{
			{name: "of_pmem", driver: "sys/bus/platform/drivers/of_pmem", config: "CONFIG_OF_PMEM"},
			{name: driverPmem, driver: filepath.Join(ndDrivers, driverPmem), config: "CONFIG_DEV_DAX_PMEM"},
			kmem,
		}
	}
	return []module{
		// v6.12 needs no device_dax for this.
		{name: "device_dax", driver: filepath.Join(daxDrivers, driverDevice), optional: true},
		// The order of kmem and dax_hmem doesn't matter: Bind moves
		// devices.
		{name: "dax_hmem"},
		kmem,
	}
}

// Devices lists the dax devices, sorted by address; none if there is no dax
// bus.
func (s System) Devices() ([]Device, error) {
	entries, err := os.ReadDir(s.path(daxDevices))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list dax devices: %w", err)
	}
	var list []Device
	for _, e := range entries {
		d, err := s.device(e.Name())
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b Device) int {
		if a.Range.Start != b.Range.Start {
			if a.Range.Start < b.Range.Start {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return list, nil
}

func (s System) device(name string) (Device, error) {
	dir := filepath.Join(daxDevices, name)
	size, err := s.number(filepath.Join(dir, "size"), 0)
	if err != nil {
		return Device{}, err
	}
	d := Device{Name: name, Node: -1}
	if size > 0 {
		start, err := s.number(filepath.Join(dir, "resource"), 0)
		if err != nil {
			return Device{}, err
		}
		r, ok := phys.Sized(start, size)
		if !ok {
			return Device{}, fmt.Errorf("dax device %s: %d bytes at %#x wrap", name, size, start)
		}
		d.Range = r
	}
	if text, err := s.read(filepath.Join(dir, "target_node")); err == nil {
		if d.Node, err = strconv.Atoi(text); err != nil {
			return Device{}, fmt.Errorf("dax device %s: target_node: %w", name, err)
		}
	}
	d.Driver = s.driver(daxDevices, name)
	return d, nil
}

// driver returns the driver that a device of a bus is bound to, "" if none.
func (s System) driver(devices, device string) string {
	target, err := os.Readlink(s.path(filepath.Join(devices, device, "driver")))
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

// Bind makes kmem add d's memory, as blocks that are offline. A device that is
// bound to kmem already is left as it is.
func (s System) Bind(d Device) error {
	now := s.driver(daxDevices, d.Name)
	if now == driverKmem {
		return nil
	}
	if d.Node < 0 {
		return fmt.Errorf("give %s (%v) to kmem: it has no NUMA node, and kmem refuses such memory", d.Name, d.Range)
	}
	if now != "" {
		if err := s.write(filepath.Join(daxDrivers, now, "unbind"), d.Name); err != nil {
			return fmt.Errorf("take %s from %s: %w", d.Name, now, err)
		}
	}
	// Writing new_id binds the device at once if it is free. If kmem
	// matches the device by its type, or knows the id from an earlier try,
	// writing bind is needed.
	first := s.write(filepath.Join(daxDrivers, driverKmem, "new_id"), d.Name)
	if s.driver(daxDevices, d.Name) == driverKmem {
		return nil
	}
	second := s.write(filepath.Join(daxDrivers, driverKmem, "bind"), d.Name)
	if now = s.driver(daxDevices, d.Name); now == driverKmem {
		return nil
	}
	if err := errors.Join(first, second); err != nil {
		return fmt.Errorf("give %s (%v) to kmem: %w", d.Name, d.Range, err)
	}
	return fmt.Errorf("give %s (%v) to kmem: it is bound to %q; the kernel's log says why", d.Name, d.Range, now)
}

// BlockSize returns the size of a memory block in bytes, a power of two.
func (s System) BlockSize() (uint64, error) {
	name := filepath.Join(memory, "block_size_bytes")
	text, err := s.read(name)
	if err != nil {
		return 0, err
	}
	// "%lx" without 0x (block_size_bytes_show in drivers/base/memory.c).
	n, err := strconv.ParseUint(text, 16, 64)
	if err != nil || n < phys.PageSize || n&(n-1) != 0 {
		return 0, fmt.Errorf("%s: %q is no memory block size", s.path(name), text)
	}
	return n, nil
}

// Blocks lists the memory blocks that lie wholly inside in, sorted by address.
func (s System) Blocks(in phys.Set) ([]Block, error) {
	size, err := s.BlockSize()
	if err != nil {
		return nil, fmt.Errorf("list memory blocks: %w", err)
	}
	entries, err := os.ReadDir(s.path(memory))
	if err != nil {
		return nil, fmt.Errorf("list memory blocks: %w", err)
	}
	var list []Block
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), "memory")
		if !ok {
			continue
		}
		if _, err := strconv.ParseUint(digits, 10, 64); err != nil {
			continue
		}
		if len(list) == maxBlocks {
			return nil, fmt.Errorf("list memory blocks: more than %d", maxBlocks)
		}
		index, err := s.number(filepath.Join(memory, e.Name(), "phys_index"), 16)
		if err != nil {
			return nil, fmt.Errorf("list memory blocks: %w", err)
		}
		if index >= 1<<63/size {
			return nil, fmt.Errorf("list memory blocks: %s: index %#x is beyond 63 bits", e.Name(), index)
		}
		b := Block{Name: e.Name(), Range: phys.Range{Start: index * size, End: (index + 1) * size}}
		if !in.Contains(b.Range) {
			continue
		}
		if err := s.refresh(&b); err != nil {
			return nil, fmt.Errorf("list memory blocks: %w", err)
		}
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b Block) int {
		if a.Range.Start < b.Range.Start {
			return -1
		}
		return 1
	})
	return list, nil
}

// ForKernel returns the part of ram that the kernel may use for itself: no memory
// block that is offline or holds user pages only.
func (s System) ForKernel(ram phys.Set) (phys.Set, error) {
	blocks, err := s.Blocks(phys.Set{{Start: 0, End: 1 << 63}})
	if errors.Is(err, fs.ErrNotExist) {
		return ram, nil // a kernel without memory hotplug
	}
	if err != nil {
		return nil, err
	}
	var other []phys.Range
	for _, b := range blocks {
		if !b.Online() || b.Movable() {
			other = append(other, b.Range)
		}
	}
	return ram.Minus(phys.NewSet(other...)), nil
}

func (s System) refresh(b *Block) (err error) {
	if b.State, err = s.read(filepath.Join(memory, b.Name, "state")); err != nil {
		return err
	}
	b.Zones = nil
	// The file is missing without CONFIG_MEMORY_HOTREMOVE.
	if text, err := s.read(filepath.Join(memory, b.Name, "valid_zones")); err == nil {
		b.Zones = strings.Fields(text)
	}
	return nil
}

// ErrZone says that a block is online in a zone in which it must not be.
var ErrZone = errors.New("online for the kernel's own data, and it can't be taken back")

// Online switches b online: for user pages only if movable, else for all. A
// block that is online already is left alone, unless it should be movable and
// isn't: something else switched it online. Then Online tries to correct that;
// the error wraps ErrZone if it can't.
func (s System) Online(b *Block, movable bool) error {
	if err := s.refresh(b); err != nil {
		return fmt.Errorf("switch %s online: %w", b.Name, err)
	}
	if b.Online() {
		if !movable || b.Movable() {
			return nil
		}
		if err := s.Offline(b); err != nil {
			return fmt.Errorf("%s (%v): %w: %w", b.Name, b.Range, ErrZone, err)
		}
	}
	// Not "online", with which the kernel would make a block between
	// movable blocks movable too (default_zone_for_pfn in
	// mm/memory_hotplug.c, v6.12).
	kind := "online_kernel"
	if movable {
		kind = "online_movable"
	}
	return s.state(b, kind)
}

// Offline switches b offline, which moves its pages elsewhere and can fail.
func (s System) Offline(b *Block) error {
	if err := s.refresh(b); err != nil {
		return fmt.Errorf("switch %s offline: %w", b.Name, err)
	}
	if !b.Online() {
		return nil
	}
	return s.state(b, "offline")
}

func (s System) state(b *Block, want string) error {
	if err := s.write(filepath.Join(memory, b.Name, "state"), want); err != nil {
		return fmt.Errorf("switch %s (%v) to %s: %w", b.Name, b.Range, want, err)
	}
	if err := s.refresh(b); err != nil {
		return fmt.Errorf("switch %s to %s: %w", b.Name, want, err)
	}
	if got := b.Online(); got != (want != "offline") {
		return fmt.Errorf("switch %s (%v) to %s: it is %s", b.Name, b.Range, want, b.State)
	}
	return nil
}
