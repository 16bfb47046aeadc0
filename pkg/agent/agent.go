// Package agent is warmcore in the running normal kernel: it arms the
// machine for a dump, saves a dump, gives memory back, and lends the window
// and the destination to user pages.
//
// Each flow reads what it needs from the System, decides, and acts in an
// order in which a crash at any step is safe:
//
//   - Arm loads the stub before it writes that the machine is armed.
//   - Disarm writes that the machine isn't armed before it unloads the stub.
//   - Save writes that the dump is saved after it is on disk and checked.
//   - Release writes that there is no dump any more before the first byte of
//     preserved memory is given back.
//
// Of what the payload wrote, only ranges in the plan lead to any change, and
// no memory block that touches boot memory or the handoff area is ever
// switched.
package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/warmcore/warmcore/pkg/binding"
	"github.com/warmcore/warmcore/pkg/handoff"
	"github.com/warmcore/warmcore/pkg/hotplug"
	"github.com/warmcore/warmcore/pkg/kexec"
	"github.com/warmcore/warmcore/pkg/oldmem"
	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/physmem"
	"github.com/warmcore/warmcore/pkg/readiness"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/running"
)

func refuse(todo, format string, args ...any) error { return outcome.Refuse(todo, format, args...) }

// blindRefusal is a refusal after which nobody can say whether the machine is
// armed.
type blindRefusal struct{ *outcome.Refusal }

func (b *blindRefusal) Unwrap() error { return b.Refusal }

func blind(todo, format string, args ...any) error {
	return &blindRefusal{&outcome.Refusal{What: fmt.Sprintf(format, args...), Todo: todo}}
}

// System is the machine, and what stands for its parts in a test. The zero
// value with Root "/" is the machine that the program runs on.
type System struct {
	Root     string                 // where proc, sys, dev, run, lib and var are
	Arch     string                 // as GOARCH; "": the program's
	Log      *slog.Logger           // nil discards
	Progress func(outcome.Progress) // nil discards

	Memory   handoff.Memory // nil: dev/mem below Root
	Load     func(entry uint64, segments []phys.Segment) error
	Unload   func() error
	Modprobe func(name string) error       // nil: modprobe(8)
	Write    func(path, data string) error // of sysfs attributes; nil: the files
	Hide     func(path, cover string) error
	OpenDax  func(path, number string) (*os.File, error) // nil: oldmem.OpenDevice
	Now      func() time.Time
	EUID     func() int
}

func (s *System) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

func (s *System) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}

func (s *System) progress(p outcome.Progress) {
	if s.Progress != nil {
		s.Progress(p)
	}
}

func (s *System) load(entry uint64, segments []phys.Segment) error {
	if s.Load != nil {
		return s.Load(entry, segments)
	}
	return kexec.Load(entry, segments, kexec.OnCrash)
}

func (s *System) unload() error {
	if s.Unload != nil {
		return s.Unload()
	}
	return kexec.Unload(kexec.OnCrash)
}

func (s *System) hide() error {
	hide := s.Hide
	if hide == nil {
		hide = oldmem.Hide
	}
	return hide(s.path(vmcoreFile), s.path("run/warmcore/empty"))
}

func (s *System) hotplug() hotplug.System {
	return hotplug.System{Root: s.Root, Modprobe: s.Modprobe, Write: s.Write, Wait: 2 * time.Second}
}

const vmcoreFile = "proc/vmcore"

func (s *System) running() running.Kernel { return running.Kernel{Root: s.Root, Log: s.Log} }

func (s *System) path(name string) string { return filepath.Join(s.Root, name) }

// root returns a refusal unless the caller is root.
func (s *System) root() error {
	euid := os.Geteuid
	if s.EUID != nil {
		euid = s.EUID
	}
	if id := euid(); id != 0 {
		return blind("run it as root", "this needs root, and the user id is %d", id)
	}
	return nil
}

const todoLog = "`warmcore log` says what the payload decided"

// errNoPayload is why the handoff area was not found.
var errNoPayload = &outcome.Refusal{
	What: "this kernel was not started by the warmcore payload: " + binding.ErrNone.Error(),
	Todo: "install the payload, and boot through it; if you did, its console says why it had no plan",
}

var errBusy = &outcome.Refusal{What: handoff.ErrLocked.Error(), Todo: "wait until it is done"}

// session is an open handoff area.
type session struct {
	*System
	area   *handoff.Area
	bytes  []byte              // private copy of the area
	block  *registration.Block // nil where err says why
	err    error               // why block is nil
	dax    daxSource
	policy string // of added memory, as addMemory found it
	close  func()
}

// open finds and reads the handoff area; write also makes this the one agent
// that changes it.
func (s *System) open(write bool) (*session, error) {
	if err := s.root(); err != nil {
		return nil, err
	}
	line, err := s.running().Text("proc/cmdline")
	if err != nil {
		return nil, fmt.Errorf("find handoff area: %w", err)
	}
	where, err := binding.FindHandoff(line, os.DirFS(s.path(running.DeviceTree)))
	switch {
	case errors.Is(err, binding.ErrNone):
		return nil, errNoPayload
	case err != nil:
		return nil, refuse("correct the kernel command line, or the device tree; the payload writes both by itself", "%v", err)
	}
	x := &session{System: s, close: func() {}}
	if write {
		if x.close, err = s.lock(); err != nil {
			return nil, err
		}
	}
	mem := s.Memory
	if mem == nil {
		m, err := physmem.Open(s.path("dev/mem"), write)
		if err != nil {
			x.close()
			return nil, s.noMemory(err)
		}
		unlock := x.close
		x.close = func() { m.Close(); unlock() }
		mem = m
	}
	x.area = handoff.New(where, mem)
	if x.bytes, err = x.area.ReadAll(); err != nil {
		x.close()
		return nil, s.noMemory(err)
	}
	x.block, x.err = registration.Load(x.bytes)
	return x, nil
}

// noMemory explains why physical memory can't be reached.
func (s *System) noMemory(err error) error {
	if mode := readiness.Lockdown(os.DirFS(s.Root)); mode != "none" {
		return blind("boot without lockdown (Secure Boot turns it on)", "kernel lockdown is %s, which forbids /dev/mem", mode)
	}
	switch {
	case errors.Is(err, physmem.ErrFault):
		return blind("see /proc/iomem, and `dmesg` for memory errors; the payload's warmcore.handoff= can move it", "%v", err)
	case errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist):
		return blind("run it as root on the host, on a kernel with CONFIG_DEVMEM and without lockdown", "%v", err)
	}
	return err
}

func (s *System) lock() (unlock func(), err error) {
	dir := s.path("run/warmcore")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	unlock, err = handoff.Lock(filepath.Join(dir, "lock"))
	if errors.Is(err, handoff.ErrLocked) {
		return nil, errBusy
	}
	return unlock, err
}

// need returns a refusal if there is no registration block.
func (x *session) need() error {
	if x.block == nil {
		return refuse("boot through the payload once; "+todoLog, "the handoff area holds no registration: %v", x.err)
	}
	return nil
}

// store writes the block back.
func (x *session) store() error {
	// Read again: the copies in H, not ours, decide which one is older.
	now, err := x.area.ReadAll()
	if err != nil {
		return err
	}
	off, data, err := registration.Store(x.block, now)
	if err != nil {
		return err
	}
	if err := x.area.WriteAt(data, uint64(off)); err != nil {
		return err
	}
	back, err := x.area.ReadAll()
	if err != nil {
		return err
	}
	got, err := registration.Load(back)
	if err != nil || got.Sequence != x.block.Sequence || got.State != x.block.State {
		return fmt.Errorf("write registration to %v: it reads back differently (%v)", x.area.Range(), err)
	}
	x.bytes = back
	x.log().Info("registration written", "state", x.block.State.String(), "sequence", x.block.Sequence)
	return nil
}

// plan returns the union of the ranges with a role.
func (x *session) plan(roles ...registration.Role) phys.Set {
	var list []phys.Range
	for _, p := range x.block.Plan {
		for _, r := range roles {
			if p.Role == r {
				list = append(list, p.Range)
			}
		}
	}
	return phys.NewSet(list...)
}
