package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/hotplug"
	"github.com/warmcore/warmcore/pkg/oldmem"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

// daxSource says how much of a dump's source dax devices show.
type daxSource struct {
	bytes    uint64
	warnings []string // why others don't
}

const todoVmcore = "save without --read dax: /proc/vmcore has the same memory"

// spliceDax lets src read memory from dax devices. Headers, notes and memory
// that no device shows still come from /proc/vmcore. /proc/vmcore doesn't say
// which physical memory holds a PT_LOAD now; the payload's ELF core header
// does, and the kernel makes the loads of /proc/vmcore from it in the same
// order (process_ptload_program_headers_elf64 in fs/proc/vmcore.c, v6.12).
// Call done after the last read.
func (x *session) spliceDax(src *oldmem.Source) (done func(), err error) {
	if x == nil {
		return nil, refuse(todoVmcore, "without the handoff area nothing says where the dump's memory is")
	}
	if err := x.need(); err != nil {
		return nil, err
	}
	loads, err := x.loads(src)
	if err != nil {
		return nil, refuse(todoVmcore, "where the dump's memory is can't be read: %v", err)
	}
	devices, err := x.daxDevices(x.plan(registration.RolePreserved, registration.RoleDestination))
	if err != nil {
		return nil, err
	}
	done = func() {
		for _, d := range devices {
			d.file.Close()
		}
	}
	for _, d := range devices {
		for _, l := range loads {
			for _, r := range d.shown.Intersect(phys.NewSet(phys.Range{Start: l.now, End: l.now + l.Size})) {
				piece := oldmem.Piece{Offset: l.Offset + r.Start - l.now, Size: r.Size(), Device: d.file, At: r.Start - d.Range.Start}
				if err := src.Splice(piece); err != nil {
					x.noDax(err)
					continue
				}
				x.dax.bytes += r.Size()
			}
		}
	}
	if x.dax.bytes == 0 {
		done()
		return nil, refuse(todoVmcore, "no dax device shows memory of the dump%s", strings.Join(append([]string{""}, x.dax.warnings...), "; "))
	}
	x.log().Info("reading from dax devices", "bytes", x.dax.bytes, "devices", len(devices))
	return done, nil
}

// noDax logs why memory is read from /proc/vmcore after all.
func (x *session) noDax(err error) {
	what := fmt.Sprintf("read from /proc/vmcore, not by dax: %v", err)
	x.log().Warn(what)
	x.dax.warnings = append(x.dax.warnings, what)
}

// load is a PT_LOAD of /proc/vmcore and the address where its memory
// begins now.
type load struct {
	elfcore.Load
	now uint64
}

// loads pairs the loads of /proc/vmcore with those of the payload's header.
func (x *session) loads(src *oldmem.Source) ([]load, error) {
	shown, err := elfcore.Read(src)
	if err != nil {
		return nil, err
	}
	line, err := x.running().CommandLine()
	if err != nil {
		return nil, err
	}
	place, _ := line.Last("elfcorehdr")
	where, err := phys.ParseRange(place.Value)
	if err != nil {
		return nil, fmt.Errorf("elfcorehdr=: %w", err)
	}
	area := x.area.Range()
	if !area.Contains(where) {
		return nil, fmt.Errorf("the ELF core header at %v is not in the handoff area", where)
	}
	made, err := elfcore.Parse(x.bytes[where.Start-area.Start:][:where.Size()])
	if err != nil {
		return nil, err
	}
	// A kernel may add loads of its own after these.
	if len(shown.Loads) < len(made.Loads) {
		return nil, fmt.Errorf("/proc/vmcore has %d loads, the payload's header %d", len(shown.Loads), len(made.Loads))
	}
	var list []load
	for i, l := range made.Loads {
		s := shown.Loads[i]
		if s.Virt != l.Virt || s.Phys != l.Phys || s.Size != l.Size {
			return nil, fmt.Errorf("load %d of /proc/vmcore is %#x bytes at %#x, that of the payload's header %#x at %#x", i, s.Size, s.Phys, l.Size, l.Phys)
		}
		list = append(list, load{s, l.Offset})
	}
	return list, nil
}

// daxDevice is a dax device that shows memory of a dump.
type daxDevice struct {
	hotplug.Device
	shown phys.Set // of Range, what may be read
	file  *oldmem.Device
}

// daxDevices opens the devices that show memory in want. A device that can't
// be opened is left out. Memory bound to kmem is a refusal: the kernel may
// be using it.
func (x *session) daxDevices(want phys.Set) (list []daxDevice, err error) {
	h := x.hotplug()
	switch err := h.LoadToShow(); {
	case errors.Is(err, hotplug.ErrPmem):
		return nil, refuse(todoVmcore, "on this machine dax devices would destroy a part of the dump: %v", err)
	case err != nil:
		return nil, refuse(todoVmcore, "there are no dax devices: %v", err)
	}
	devices, err := h.Devices()
	if err != nil {
		return nil, refuse(todoVmcore, "dax devices can't be listed: %v", err)
	}
	var all phys.Set
	for _, d := range devices {
		switch {
		case !want.Overlaps(d.Range):
			continue
		case d.Driver == "kmem":
			return nil, refuse("`warmcore release --discard` gives up the dump", "%s (%v) is with kmem: its memory may be in use, and is not preserved any more", d.Name, d.Range)
		case all.Overlaps(d.Range):
			return nil, refuse(todoVmcore, "%s (%v) shows memory that another dax device shows", d.Name, d.Range)
		}
		all = all.Union(phys.Set{d.Range})
	}
	for _, d := range devices {
		if !want.Overlaps(d.Range) {
			continue
		}
		f, err := x.openDax(h, d)
		if err != nil {
			x.noDax(err)
			continue
		}
		list = append(list, daxDevice{d, want.Intersect(phys.Set{d.Range}), f})
	}
	return list, nil
}

func (x *session) openDax(h hotplug.System, d hotplug.Device) (*oldmem.Device, error) {
	f, err := h.Show(d)
	if err != nil {
		return nil, err
	}
	open := x.OpenDax
	if open == nil {
		open = oldmem.OpenDevice
	}
	var file *os.File
	if file, err = open(x.path(f.Path), f.Number); err != nil {
		return nil, err
	}
	return oldmem.NewDevice(file, d.Range.Size(), f.Align)
}
