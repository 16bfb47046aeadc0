package agent

import (
	"crypto/rand"
	"fmt"
	"os"
	"strings"

	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/readiness"
	"github.com/warmcore/warmcore/pkg/registration"
)

// Armed is what Arm did.
type Armed struct {
	CPUs      int         `json:"cpus"`       // with crash notes
	CrashArea MemoryRange `json:"crash_area"` // where the stub is
	Release   string      `json:"release"`    // of the running kernel
	Rearmed   bool        `json:"rearmed"`    // it was armed before

	// Warnings say what a dump would lack or cost, although arming succeeded.
	Warnings []readiness.Check `json:"warnings,omitempty"`
}

// Arm registers the running kernel and loads the stub: a crash from now on is
// dumped. Done twice, it registers afresh.
func (s *System) Arm() (Armed, error) {
	x, err := s.open(true)
	if err != nil {
		return Armed{}, err
	}
	defer x.close()
	return x.arm()
}

func (x *session) arm() (Armed, error) {
	s := x.System
	machine, warnings, err := x.armable()
	if err != nil {
		return Armed{}, err
	}
	k, err := s.facts(machine)
	if err != nil {
		return Armed{}, err
	}
	var nonce [16]byte
	rand.Read(nonce[:])
	segment, entry, err := machine.stub(k.crashArea, x.area.Range(), nonce)
	if err != nil {
		return Armed{}, err
	}
	if err := s.load(entry, []phys.Segment{segment}); err != nil {
		return Armed{}, fmt.Errorf("load the stub at %v: %w", segment.Range, err)
	}

	b := x.block
	done := Armed{CPUs: k.cpus, CrashArea: memoryRange(segment.Range), Release: k.identity.Release, Rearmed: b.State == registration.Armed,
		Warnings: warnings}
	b.State = registration.Armed
	b.Identity = k.identity
	b.Identity.Nonce = nonce
	b.Identity.Machine = machine.elf()
	b.Identity.Time = s.now().Unix()
	b.CPUNotes, b.VMCoreInfo, b.Mapping = k.notes, k.vmcoreinfo, k.mapping
	b.Counters.Attempts, b.Counters.PrearmStrikes = 0, 0
	b.Refused = ""
	// Details of the last capture stay for status, but the copy in the
	// destination is not of the next crash.
	b.Capture.Copied = false
	if err := x.store(); err != nil {
		return Armed{}, fmt.Errorf("arm: %w", err)
	}
	if missing := s.hotplug().Missing(k.identity.Release); len(missing) > 0 {
		done.Warnings = append(done.Warnings, readiness.Check{Name: "hotplug", Verdict: readiness.Warn,
			Reason: fmt.Sprintf("after a crash memory comes back only with the next boot: this kernel has no %s", strings.Join(missing, ", ")),
			Remedy: "for one boot less, use a kernel with CONFIG_ZONE_DEVICE and install its modules"})
	}
	return done, nil
}

// armable checks that a crash could be dumped once Arm has succeeded. The
// warnings say what a dump would lack.
func (x *session) armable() (m machine, warnings []readiness.Check, err error) {
	if err := x.promised(); err != nil {
		return nil, nil, err
	}
	defer func() { x.leaveWord(err) }()
	checks, err := x.checks()
	if err != nil {
		return nil, nil, &transient{err}
	}
	for _, c := range checks {
		switch c.Verdict {
		case readiness.Refuse:
			err = refuse(c.Remedy, "%s", c.Reason)
			if c.Name == readiness.MemoryInUse {
				err = &transient{err}
			}
			return nil, nil, err
		case readiness.Warn:
			warnings = append(warnings, c)
		}
	}
	if m, err = x.machine(); err != nil {
		return nil, nil, err
	}
	if err := m.check(x); err != nil {
		return nil, nil, err
	}
	return m, warnings, nil
}

// lasting are the conditions of arming that are the same in the next boot.
func (x *session) lasting() []readiness.Check {
	return append(readiness.Kernel(os.DirFS(x.Root)), readiness.Wanted(x.Settings().Arm))
}

// checks are the conditions of arming that have a name.
func (x *session) checks() ([]readiness.Check, error) {
	list := x.lasting()
	memory, err := x.memoryCheck()
	if err != nil {
		return nil, err
	}
	list = append(list, readiness.Kept(x.kept()))
	return append(list, memory), nil
}

// memoryCheck compares the memory that the running kernel uses for itself with
// the plan.
func (x *session) memoryCheck() (readiness.Check, error) {
	ram, err := x.running().SystemRAM()
	if err != nil {
		return readiness.Check{}, err
	}
	inUse, err := x.hotplug().ForKernel(ram)
	if err != nil {
		return readiness.Check{}, err
	}
	// Firmware's first MiB on x86 is in no plan and in no dump, and kernels
	// keep out of it.
	dumped := x.plan(registration.RoleBoot, registration.RolePreserved).Union(phys.Set{{Start: 0, End: phys.MiB}})
	overwritten := x.plan(registration.RoleWindow, registration.RoleHandoff, registration.RoleDestination)
	return readiness.Memory(inUse, dumped, overwritten), nil
}

// kept returns how many bytes of preserved memory this kernel could be given
// but has not been, in whole memory blocks.
func (x *session) kept() uint64 {
	size, err := x.hotplug().BlockSize()
	if err != nil || !x.running().CaptureBoot() {
		return 0
	}
	p, err := x.parts()
	if err != nil {
		return 0
	}
	var online []phys.Range
	for _, b := range p.preserved {
		if b.Online() {
			online = append(online, b.Range)
		}
	}
	return x.plan(registration.RolePreserved).AlignIn(size).Minus(phys.NewSet(online...)).Size()
}

// promised checks the state that the machine is in.
func (x *session) promised() error {
	if err := x.need(); err != nil {
		return err
	}
	b := x.block
	switch {
	case b.State == registration.Capturing:
		return refuse("`warmcore save`, then `warmcore release`", "there is a dump that is not saved")
	case b.State == registration.Saved && x.running().CaptureBoot():
		return refuse("`warmcore release` first: another crash now could not be dumped", "the memory of the saved dump has not been given back")
	case b.Refused != "" && len(b.Plan) == 0:
		return x.leftToKdump()
	case b.MapHash == [32]byte{} || len(b.Plan) == 0:
		return refuse(todoLog, "the payload made no memory plan in this boot")
	case !x.plan(registration.RoleHandoff).Contains(x.area.Range()):
		return refuse("boot through the payload again", "the payload planned its handoff area at %v, the command line says %v",
			x.plan(registration.RoleHandoff), x.area.Range())
	}
	return nil
}

// Disarm writes that a reset is no crash any more, and unloads the stub.
func (s *System) Disarm() error {
	x, err := s.open(true)
	if err != nil {
		return err
	}
	defer x.close()
	if err := x.need(); err != nil {
		return err
	}
	switch x.block.State {
	case registration.Capturing:
		return refuse("`warmcore save`, or `warmcore release --discard`", "disarming would lose the dump, which is not saved")
	case registration.Disarmed:
		if loaded, err := s.running().Text("sys/kernel/kexec_crash_loaded"); err == nil && loaded == "0" {
			return &outcome.Nothing{What: "disarmed already"}
		}
	default:
		x.block.State = registration.Disarmed
		if err := x.store(); err != nil {
			return fmt.Errorf("disarm: %w", err)
		}
	}
	if err := s.unload(); err != nil {
		return fmt.Errorf("disarm: unload the stub: %w", err)
	}
	return nil
}
