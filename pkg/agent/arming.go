package agent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

// Armed is what Arm did.
type Armed struct {
	CPUs      int         `json:"cpus"`       // with crash notes
	CrashArea MemoryRange `json:"crash_area"` // where the stub is
	Release   string      `json:"release"`    // of the running kernel
	Rearmed   bool        `json:"rearmed"`    // it was armed before
	Warning   string      `json:"warning,omitempty"`
}

// Arm registers the running kernel and loads the stub: a crash from now on is
// dumped. Done twice, it registers afresh.
func (s *System) Arm() (Armed, error) {
	x, err := s.open(true)
	if err != nil {
		return Armed{}, err
	}
	defer x.close()
	machine, err := x.armable()
	if err != nil {
		return Armed{}, err
	}
	k, err := s.kernel(machine)
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
	done := Armed{CPUs: k.cpus, CrashArea: memoryRange(segment.Range), Release: k.identity.Release, Rearmed: b.State == registration.Armed}
	b.State = registration.Armed
	b.Identity = k.identity
	b.Identity.Nonce = nonce
	b.Identity.Machine = machine.elf()
	b.Identity.Time = s.now().Unix()
	b.CPUNotes, b.VMCoreInfo, b.Mapping = k.notes, k.vmcoreinfo, k.mapping
	b.Counters.Attempts, b.Counters.PrearmStrikes = 0, 0
	// What is known of the last capture stays for status, but its copy in the
	// destination is not of the crash that may come.
	b.Capture.Copied = false
	if err := x.store(); err != nil {
		return Armed{}, fmt.Errorf("arm: %w", err)
	}
	if missing := s.hotplug().Missing(k.identity.Release); len(missing) > 0 {
		done.Warning = fmt.Sprintf("after a crash this kernel can save the dump but not take memory back before its next boot: it has no %s",
			strings.Join(missing, ", "))
	}
	return done, nil
}

// armable checks that the machine can keep the promise that Arm makes.
func (x *session) armable() (machine, error) {
	if err := x.promised(); err != nil {
		return nil, err
	}
	if err := x.preconditions(); err != nil {
		return nil, err
	}
	m, err := x.machine()
	if err != nil {
		return nil, err
	}
	return m, m.check(x)
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
	case b.State == registration.Saved && x.captureBoot():
		return refuse("`warmcore release` first: another crash now could not be dumped", "the memory of the saved dump has not been given back")
	case b.MapHash == [32]byte{} || len(b.Plan) == 0:
		return refuse(todoLog, "the payload made no memory plan in this boot")
	case !x.plan(registration.RoleHandoff).Contains(x.area.Range()):
		return refuse("boot through the payload again", "the payload planned its handoff area at %v, the command line says %v",
			x.plan(registration.RoleHandoff), x.area.Range())
	}
	return nil
}

// preconditions are what the running system must be like.
func (s *System) preconditions() error {
	if mode := s.lockdown(); mode != "none" {
		return refuse("boot without lockdown (Secure Boot turns it on)", "kernel lockdown is %s, which forbids to load the stub", mode)
	}
	switch disabled, err := s.read("proc/sys/kernel/kexec_load_disabled"); {
	case errors.Is(err, fs.ErrNotExist):
		return refuse("use a kernel with CONFIG_KEXEC", "this kernel has no kexec_load")
	case err != nil:
		return err
	case disabled != "0":
		return refuse("remove the setting and reboot: it can't be unset", "kernel.kexec_load_disabled is set")
	}
	switch size, err := s.read("sys/kernel/kexec_crash_size"); {
	case errors.Is(err, fs.ErrNotExist):
		return refuse("use a kernel with CONFIG_CRASH_DUMP", "this kernel can't load a crash image")
	case err != nil:
		return err
	case size == "0":
		return refuse("see why in `dmesg | grep -i crash`: the payload asks for crashkernel=", "no memory is reserved for the stub")
	}
	return s.overwriteRequested()
}

// lockdown returns the kernel's lockdown mode, none where it has no lockdown.
func (s *System) lockdown() string {
	text, err := s.read("sys/kernel/security/lockdown")
	if err != nil {
		return "none"
	}
	if _, rest, ok := strings.Cut(text, "["); ok {
		if mode, _, ok := strings.Cut(rest, "]"); ok {
			return mode
		}
	}
	return "none"
}

// overwriteRequestFile is the EFI variable with which an operating system
// asks firmware to clear memory at the next reset (TCG PC Client Platform
// Reset Attack Mitigation Specification 1.10, section 4.1).
const overwriteRequestFile = "sys/firmware/efi/efivars/MemoryOverwriteRequestControl-e20939be-32d4-41be-a150-897f85d49829"

// overwriteRequested refuses if firmware will clear memory at the next reset.
func (s *System) overwriteRequested() error {
	b, err := s.readBytes(overwriteRequestFile)
	if err != nil || len(b) < 5 {
		return nil // no such variable: nobody asked
	}
	// efivarfs puts 4 bytes of attributes in front.
	if b[4]&1 != 0 {
		return refuse("boot a kernel that doesn't ask for it (the EFI stub of one with CONFIG_RESET_ATTACK_MITIGATION does), through the payload",
			"firmware has been asked to clear memory at the next reset (MemoryOverwriteRequestControl is %#x)", b[4])
	}
	return nil
}

// Disarm says that a reset is no crash any more, and unloads the stub.
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
		if loaded, err := s.read("sys/kernel/kexec_crash_loaded"); err == nil && loaded == "0" {
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
