// Package hotplugtest imitates a kernel's sysfs for tests: a directory tree,
// and the kernel's reactions to what is written into it.
package hotplugtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Kernel is the part of a kernel that pkg/hotplug talks to. Its fields may be
// changed between calls.
type Kernel struct {
	Root      string
	BlockSize uint64
	Soft      []phys.Range // Soft Reserved; each becomes a dax device once dax_hmem is loaded
	// ByType makes kmem bind dax devices by itself, as kernels do since
	// v6.3; otherwise device_dax binds them.
	ByType bool
	// AutoOnline puts added blocks online for the kernel at once, as a udev
	// rule or memhp_default_state=online does.
	AutoOnline bool
	Pinned     []phys.Range // blocks that can't be switched offline
	Stuck      []phys.Range // blocks that can't be switched online
	NoNode     bool         // dax devices have no NUMA node
	Missing    []string     // modules that don't exist

	Loaded []string // modules, in the order of Modprobe
	Writes []string // "path=data", in order

	tb   testing.TB
	dax  []device
	pmem []region
}

// device is a dax device.
type device struct {
	name   string
	memory phys.Range
}

// New makes the tree below root, with memory blocks for ram.
func New(tb testing.TB, root string, blockSize uint64, ram phys.Set) *Kernel {
	k := &Kernel{Root: root, BlockSize: blockSize, tb: tb}
	k.file("sys/devices/system/memory/block_size_bytes", fmt.Sprintf("%x\n", blockSize))
	for _, r := range ram.AlignIn(blockSize) {
		k.add(r, "online", "Normal")
	}
	return k
}

func (k *Kernel) file(name, content string) {
	k.tb.Helper()
	path := filepath.Join(k.Root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		k.tb.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		k.tb.Fatal(err)
	}
}

func (k *Kernel) add(r phys.Range, state, zones string) {
	for at := r.Start; at < r.End; at += k.BlockSize {
		dir := fmt.Sprintf("sys/devices/system/memory/memory%d", at/k.BlockSize)
		k.file(dir+"/phys_index", fmt.Sprintf("%08x\n", at/k.BlockSize))
		k.file(dir+"/state", state+"\n")
		k.file(dir+"/valid_zones", zones+"\n")
	}
}

// Modprobe loads a module.
func (k *Kernel) Modprobe(name string) error {
	if slices.Contains(k.Missing, name) {
		return fmt.Errorf("module %s not found", name)
	}
	k.Loaded = append(k.Loaded, name)
	switch name {
	case "device_dax", "kmem":
		k.file("sys/bus/dax/drivers/"+name+"/new_id", "")
		k.file("sys/bus/dax/drivers/"+name+"/bind", "")
		k.file("sys/bus/dax/drivers/"+name+"/unbind", "")
	case "dax_hmem":
		for i, r := range k.Soft {
			k.addDevice(device{fmt.Sprintf("dax%d.0", i), r})
		}
	case "of_pmem":
		k.ofPmem()
	case "dax_pmem", "nd_pmem":
		k.ndDriver(name)
	}
	for _, d := range k.dax {
		k.match(d)
	}
	return nil
}

func (k *Kernel) addDevice(d device) {
	dir := "sys/bus/dax/devices/" + d.name
	if k.exists(dir) {
		return
	}
	k.file(dir+"/resource", fmt.Sprintf("%#x\n", d.memory.Start))
	k.file(dir+"/size", fmt.Sprintf("%d\n", d.memory.Size()))
	node := "0\n"
	if k.NoNode {
		node = "-1\n"
	}
	k.file(dir+"/target_node", node)
	k.file(dir+"/align", "2097152\n")
	k.file(dir+"/mapping0/page_offset", "0x0\n")
	k.file(dir+"/dev", fmt.Sprintf("252:%d\n", len(k.dax)))
	k.dax = append(k.dax, d)
}

func (k *Kernel) exists(name string) bool {
	_, err := os.Lstat(filepath.Join(k.Root, name))
	return err == nil
}

// match binds a free device by its type.
func (k *Kernel) match(d device) {
	driver := "device_dax"
	if k.ByType && len(k.pmem) == 0 { // dax devices of pmem regions have the other type
		driver = "kmem"
	}
	if k.exists("sys/bus/dax/drivers/" + driver) {
		k.bind(d, driver)
	}
}

func (d device) link() string { return "sys/bus/dax/devices/" + d.name + "/driver" }

func (k *Kernel) symlink(target, name string) {
	if err := os.Symlink(target, filepath.Join(k.Root, name)); err != nil {
		k.tb.Fatal(err)
	}
}

func (k *Kernel) remove(name string) {
	if err := os.Remove(filepath.Join(k.Root, name)); err != nil {
		k.tb.Fatal(err)
	}
}

func (k *Kernel) bind(d device, driver string) {
	if !k.exists(filepath.Dir(d.link())) || k.exists(d.link()) || driver == "kmem" && k.NoNode {
		return
	}
	k.symlink("../../drivers/"+driver, d.link())
	if driver != "kmem" {
		return
	}
	state, zones := "offline", "Normal Movable"
	if k.AutoOnline {
		state, zones = "online", "Normal"
	}
	k.add(d.memory.AlignIn(k.BlockSize), state, zones)
}

var (
	errInvalid = errors.New("invalid argument")
	errBusy    = errors.New("device or resource busy")
)

// Write writes an attribute.
func (k *Kernel) Write(path, data string) error {
	k.Writes = append(k.Writes, path+"="+data)
	if !k.exists(path) {
		return fmt.Errorf("%s: %w", path, os.ErrNotExist)
	}
	dir, name := filepath.Split(path)
	switch {
	case name == "auto_online_blocks":
		return os.WriteFile(filepath.Join(k.Root, path), []byte(data+"\n"), 0o644)
	case name == "state":
		return k.state(filepath.Clean(dir), data)
	case strings.HasPrefix(path, "sys/bus/dax/drivers/"):
		return k.driver(filepath.Base(dir), name, data)
	case strings.HasPrefix(path, "sys/bus/nd/"):
		return k.nd(path, data)
	}
	return errInvalid
}

func (k *Kernel) driver(driver, attribute, name string) error {
	i := slices.IndexFunc(k.dax, func(d device) bool { return d.name == name })
	if i < 0 {
		return os.ErrNotExist
	}
	d := k.dax[i]
	bound, _ := os.Readlink(filepath.Join(k.Root, d.link()))
	switch attribute {
	case "unbind":
		if filepath.Base(bound) != driver {
			return os.ErrNotExist
		}
		k.remove(d.link())
	case "new_id":
		k.bind(d, driver)
	case "bind":
		if bound != "" {
			return errBusy
		}
		k.bind(d, driver)
	}
	return nil
}

func (k *Kernel) state(dir, want string) error {
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(k.Root, dir, name))
		if err != nil {
			k.tb.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	var index uint64
	if _, err := fmt.Sscanf(read("phys_index"), "%x", &index); err != nil {
		k.tb.Fatal(err)
	}
	in := func(list []phys.Range) bool {
		return slices.ContainsFunc(list, phys.Range{Start: index * k.BlockSize, End: (index + 1) * k.BlockSize}.Overlaps)
	}
	online := read("state") == "online"
	switch want {
	case "offline":
		if !online {
			return errInvalid
		}
		if in(k.Pinned) {
			return errBusy
		}
		k.file(dir+"/state", "offline\n")
		k.file(dir+"/valid_zones", "Normal Movable\n")
	case "online", "online_kernel", "online_movable": // "online" in whichever zone
		if online {
			return errInvalid
		}
		if in(k.Stuck) {
			return errBusy
		}
		zone := "Normal"
		if want == "online_movable" {
			zone = "Movable"
		}
		k.file(dir+"/state", "online\n")
		k.file(dir+"/valid_zones", zone+"\n")
	default:
		return errInvalid
	}
	return nil
}
