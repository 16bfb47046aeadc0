// Package hotplugtest is a kernel's sysfs for tests: a directory tree and the
// reactions of a kernel to what is written into it.
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
	Soft      []phys.Range // Soft Reserved, a dax device each once dax_hmem is loaded
	// ByType makes kmem bind dax devices by itself, as since v6.3; else
	// device_dax does.
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

	tb testing.TB
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
			dir := fmt.Sprintf("sys/bus/dax/devices/dax%d.0", i)
			if k.exists(dir) {
				continue
			}
			k.file(dir+"/resource", fmt.Sprintf("%#x\n", r.Start))
			k.file(dir+"/size", fmt.Sprintf("%d\n", r.Size()))
			node := "0\n"
			if k.NoNode {
				node = "-1\n"
			}
			k.file(dir+"/target_node", node)
		}
	}
	for i := range k.Soft {
		k.match(i)
	}
	return nil
}

func (k *Kernel) exists(name string) bool {
	_, err := os.Lstat(filepath.Join(k.Root, name))
	return err == nil
}

// match binds a free device by its type.
func (k *Kernel) match(i int) {
	driver := "device_dax"
	if k.ByType {
		driver = "kmem"
	}
	if k.exists("sys/bus/dax/drivers/" + driver) {
		k.bind(i, driver)
	}
}

func (k *Kernel) link(i int) string { return fmt.Sprintf("sys/bus/dax/devices/dax%d.0/driver", i) }

func (k *Kernel) bind(i int, driver string) {
	if !k.exists(filepath.Dir(k.link(i))) || k.exists(k.link(i)) || driver == "kmem" && k.NoNode {
		return
	}
	if err := os.Symlink("../../drivers/"+driver, filepath.Join(k.Root, k.link(i))); err != nil {
		k.tb.Fatal(err)
	}
	if driver != "kmem" {
		return
	}
	state, zones := "offline", "Normal Movable"
	if k.AutoOnline {
		state, zones = "online", "Normal"
	}
	k.add(k.Soft[i].AlignIn(k.BlockSize), state, zones)
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
	case name == "state":
		return k.state(filepath.Clean(dir), data)
	case strings.HasPrefix(path, "sys/bus/dax/drivers/"):
		return k.driver(filepath.Base(dir), name, data)
	}
	return errInvalid
}

func (k *Kernel) driver(driver, attribute, device string) error {
	i := slices.IndexFunc(k.Soft, func(r phys.Range) bool {
		return fmt.Sprintf("dax%d.0", slices.Index(k.Soft, r)) == device
	})
	if i < 0 {
		return os.ErrNotExist
	}
	bound, _ := os.Readlink(filepath.Join(k.Root, k.link(i)))
	switch attribute {
	case "unbind":
		if filepath.Base(bound) != driver {
			return os.ErrNotExist
		}
		if err := os.Remove(filepath.Join(k.Root, k.link(i))); err != nil {
			k.tb.Fatal(err)
		}
	case "new_id":
		k.bind(i, driver)
	case "bind":
		if bound != "" {
			return errBusy
		}
		k.bind(i, driver)
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
	case "online_kernel", "online_movable":
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
