package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/hotplug"
	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

// Moved is the result of Release, Lend and Reclaim.
type Moved struct {
	Bytes       uint64     `json:"bytes"`        // switched by this call
	Blocks      int        `json:"blocks"`       // of memory
	MemTotalKiB [2]uint64  `json:"memtotal_kib"` // before and after
	Left        []LeftOver `json:"left,omitempty"`

	// After Release of a capture boot: the huge pages that the boot entry asks
	// for, and the names of its parameters that this kernel goes without.
	HugePages []HugePages `json:"huge_pages,omitempty"`
	Missing   []string    `json:"missing_parameters,omitempty"`
}

// LeftOver is a memory block that could not be switched.
type LeftOver struct {
	Range MemoryRange `json:"range"`
	Why   string      `json:"why"`
}

// MemoryRange is a range of physical memory in JSON, whose numbers don't hold
// every address.
type MemoryRange struct {
	Start string `json:"start"` // hexadecimal
	Bytes uint64 `json:"bytes"`
}

func memoryRange(r phys.Range) MemoryRange {
	return MemoryRange{fmt.Sprintf("%#x", r.Start), r.Size()}
}

func (r MemoryRange) String() string { return phys.FormatSize(r.Bytes) + " at " + r.Start }

// parts is the memory that may be switched on and off, in whole memory blocks
// of the running kernel.
type parts struct {
	preserved []hotplug.Block
	lendable  []hotplug.Block // window and destination
}

// parts lists the memory blocks by role. A block that isn't wholly of one
// role is in neither list; nor is one that touches boot memory or the
// handoff area, because roles don't overlap. That is checked again here,
// because the plan was read from memory that a crashed kernel could write.
func (x *session) parts() (p parts, err error) {
	keep := x.plan(registration.RoleBoot, registration.RoleHandoff, registration.RoleLost).Union(phys.Set{x.area.Range()})
	h := x.hotplug()
	lendable := x.plan(registration.RoleWindow, registration.RoleDestination).Minus(keep)
	if p.lendable, err = h.Blocks(lendable); err != nil {
		return parts{}, err
	}
	preserved := x.plan(registration.RolePreserved).Minus(keep).Minus(lendable)
	if p.preserved, err = h.Blocks(preserved); err != nil {
		return parts{}, err
	}
	return p, nil
}

// addMemory adds memory blocks, offline, for the memory in want, which the
// kernel was told to leave alone. If the error is a Refusal no block was added;
// any other error names the ones that are missing.
func (x *session) addMemory(want phys.Set) error {
	h := x.hotplug()
	if release, err := x.running().Text("proc/sys/kernel/osrelease"); err == nil {
		if missing := h.Missing(release); len(missing) > 0 {
			return refuse("boot a kernel with CONFIG_ZONE_DEVICE, which all of them need, or install its modules",
				"this kernel can't take memory that was hidden from it: it has no %s", strings.Join(missing, ", "))
		}
	}
	// Whatever the policy is, and whatever udev does at "add", only we switch
	// these blocks online, in the zone that they must be in.
	was, err := h.HoldBack()
	if err != nil {
		return refuse("see why this can't be written, as root on the host", "added memory can't be kept offline: %v", err)
	}
	x.policy = was
	if err := h.Load(); err != nil {
		return refuse("install the kernel's modules of the running version", "memory that was hidden from this kernel can't be used: %v", err)
	}
	var errs []error
	if err := h.Convert(want); err != nil {
		errs = append(errs, err)
	}
	devices, err := h.Devices()
	if err != nil {
		return err
	}
	bound := 0
	for _, d := range devices {
		if !want.Overlaps(d.Range) {
			continue
		}
		if err := h.Bind(d); err != nil {
			errs = append(errs, err)
			continue
		}
		x.log().Info("memory is with kmem", "device", d.Name, "range", d.Range.String())
		bound++
	}
	if bound == 0 && len(errs) == 0 {
		return refuse("see `dmesg | grep -i -e hmem -e 'soft reserved' -e pmem`", "the kernel made no dax device of the hidden memory %v", want)
	}
	return errors.Join(errs...)
}

// Release gives preserved memory, window and destination to the running
// kernel: the first for everything, the others for user pages only. discard
// allows that although the dump was not saved. If it is interrupted, it can
// be repeated.
func (s *System) Release(discard bool) (Moved, error) {
	x, err := s.open(true)
	if err != nil {
		return Moved{}, err
	}
	defer x.close()
	if err := x.need(); err != nil {
		return Moved{}, err
	}
	if !x.running().CaptureBoot() {
		return Moved{}, &outcome.Nothing{What: "no memory is kept: this is a plain boot"}
	}
	switch state := x.block.State; {
	case state == registration.Capturing && !discard:
		return Moved{}, refuse("`warmcore save`, or `warmcore release --discard`", "the dump is not saved")
	case state == registration.Armed || state == registration.Disarmed || state == registration.Prearmed || state == registration.Empty:
		p, err := x.parts()
		if err != nil {
			return Moved{}, err
		}
		if len(p.preserved) > 0 && !slices.ContainsFunc(p.preserved, func(b hotplug.Block) bool { return !b.Online() }) {
			return Moved{}, &outcome.Nothing{What: "all preserved memory has been given back"}
		}
	}
	if x.block.State == registration.Capturing || x.block.State == registration.Saved {
		x.block.State = registration.Releasing
		if err := x.store(); err != nil {
			return Moved{}, fmt.Errorf("release: %w", err)
		}
	}
	if err := x.hide(); err != nil {
		return Moved{}, fmt.Errorf("release: %w", err)
	}
	return x.give("release", registration.RolePreserved, registration.RoleDestination, registration.RoleWindow)
}

// give adds the memory of these roles to the running kernel and switches it on.
// verb is what errors call it. If some memory can't be had, the rest is given.
func (x *session) give(verb string, roles ...registration.Role) (Moved, error) {
	before := x.running().MemTotal()
	defer x.giveBack()
	added := x.addMemory(x.plan(roles...))
	var refusal *outcome.Refusal
	if errors.As(added, &refusal) {
		return Moved{}, added
	}
	p, err := x.parts()
	if err != nil {
		return Moved{}, err
	}
	all := slices.Contains(roles, registration.RolePreserved)
	if !all {
		p.preserved = nil
		if added == nil && len(p.lendable) > 0 && !slices.ContainsFunc(p.lendable, func(b hotplug.Block) bool { return !b.Movable() }) {
			return Moved{}, &outcome.Nothing{What: "window and destination are lent already"}
		}
	}
	m := x.online(verb, p)
	if all {
		x.production(&m)
	}
	m.MemTotalKiB = [2]uint64{before, x.running().MemTotal()}
	if added != nil {
		return m, fmt.Errorf("%s: %w", verb, added)
	}
	return m, m.unmoved(verb, "left", len(p.preserved)+len(p.lendable))
}

// giveBack returns memory that is not the payload's, such as CXL, to this kernel's
// own policy. A failure is only logged: our own memory is where it should be.
func (x *session) giveBack() {
	var all []registration.Role
	for _, p := range x.block.Plan {
		all = append(all, p.Role)
	}
	line, err := x.running().CommandLine()
	if err == nil {
		err = x.hotplug().GiveBack(x.policy, line, x.running().Config(), x.plan(all...).Union(phys.Set{x.area.Range()}))
	}
	if err != nil {
		x.log().Warn("memory that is not ours stays offline", "err", err)
	}
}

// unmoved returns verb's error for the memory blocks that did not move.
func (m Moved) unmoved(verb, state string, blocks int) error {
	if len(m.Left) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %d of %d memory blocks are %s, the first is %v: %s", verb, len(m.Left), blocks, state, m.Left[0].Range, m.Left[0].Why)
}

// online switches all of p online. Preserved blocks come first: the kernel
// needs memory for the page structures of the others.
func (x *session) online(what string, p parts) (m Moved) {
	h, start := x.hotplug(), x.now()
	total := uint64(0)
	for _, list := range [][]hotplug.Block{p.preserved, p.lendable} {
		for _, b := range list {
			total += b.Range.Size()
		}
	}
	done := uint64(0)
	switchOn := func(list []hotplug.Block, movable bool) {
		for i := range list {
			b := &list[i]
			was := b.Online()
			if err := h.Online(b, movable); err != nil {
				x.log().Warn("memory block stays offline", "range", b.Range.String(), "err", err)
				m.Left = append(m.Left, LeftOver{memoryRange(b.Range), err.Error()})
			} else if !was {
				m.Blocks++
				m.Bytes += b.Range.Size()
			}
			done += b.Range.Size()
			x.progress(outcome.Progress{What: what, Done: done, Total: total, Elapsed: x.now().Sub(start)})
		}
	}
	switchOn(p.preserved, false)
	switchOn(p.lendable, true)
	return m
}

// Lend gives window and destination to user pages of a plain boot; a dump
// doesn't need those.
func (s *System) Lend() (Moved, error) {
	x, err := s.open(true)
	if err != nil {
		return Moved{}, err
	}
	defer x.close()
	if err := x.need(); err != nil {
		return Moved{}, err
	}
	switch x.block.State {
	case registration.Capturing, registration.Saved:
		if x.running().CaptureBoot() {
			return Moved{}, refuse("`warmcore save`, then `warmcore release`, which lends as well",
				"the destination holds part of the dump (state %v)", x.block.State)
		}
	}
	if len(x.plan(registration.RoleWindow, registration.RoleDestination)) == 0 {
		return Moved{}, &outcome.Nothing{What: "there is nothing to lend: the payload planned no destination"}
	}
	return x.give("lend", registration.RoleWindow, registration.RoleDestination)
}

// Reclaim takes window and destination back from user pages. Blocks whose
// pages can't be moved now stay lent.
func (s *System) Reclaim() (Moved, error) {
	x, err := s.open(true)
	if err != nil {
		return Moved{}, err
	}
	defer x.close()
	if err := x.need(); err != nil {
		return Moved{}, err
	}
	p, err := x.parts()
	if err != nil {
		return Moved{}, err
	}
	m := Moved{MemTotalKiB: [2]uint64{x.running().MemTotal(), 0}}
	h, start := x.hotplug(), x.now()
	var lent []*hotplug.Block
	total, done := uint64(0), uint64(0)
	for i := range p.lendable {
		if b := &p.lendable[i]; b.Online() {
			lent = append(lent, b)
			total += b.Range.Size()
		}
	}
	if len(lent) == 0 {
		return Moved{}, &outcome.Nothing{What: "nothing is lent"}
	}
	for _, b := range lent {
		if err := h.Offline(b); err != nil {
			m.Left = append(m.Left, LeftOver{memoryRange(b.Range), err.Error()})
		} else {
			m.Blocks++
			m.Bytes += b.Range.Size()
		}
		done += b.Range.Size()
		x.progress(outcome.Progress{What: "reclaim", Done: done, Total: total, Elapsed: x.now().Sub(start)})
	}
	m.MemTotalKiB[1] = x.running().MemTotal()
	return m, m.unmoved("reclaim", "still in use", len(lent))
}
