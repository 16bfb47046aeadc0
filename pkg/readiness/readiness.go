// Package readiness checks whether a machine can keep the promise of "armed":
// that a crash now gives a complete dump.
//
// Each check has a name, a verdict, and for all but [OK] a reason and a
// remedy. The first check with the verdict [Refuse] is the reason why the
// agent doesn't arm. A check reads what the kernel shows in proc, sys and dev,
// and changes nothing.
package readiness

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Verdict is the result of a check.
type Verdict string

// Verdicts.
const (
	OK     Verdict = "ok"
	Warn   Verdict = "warn"   // armed, with less than the whole promise
	Refuse Verdict = "refuse" // a crash could not be dumped
)

// Check is the result for one condition. Reason and Remedy are one line each.
type Check struct {
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	Reason  string  `json:"reason,omitempty"`
	Remedy  string  `json:"remedy,omitempty"`
}

func ok() Check { return Check{Verdict: OK} }

func refuse(remedy, format string, args ...any) Check {
	return Check{Verdict: Refuse, Reason: fmt.Sprintf(format, args...), Remedy: remedy}
}

func warn(remedy, format string, args ...any) Check {
	return Check{Verdict: Warn, Reason: fmt.Sprintf(format, args...), Remedy: remedy}
}

// unreadable is the check's result if a file exists but can't be read.
func unreadable(err error) Check {
	return refuse("see why this can't be read, as root on the host", "%v", err)
}

// Names of checks that a caller treats in its own way.
const (
	CrashMemory = "crash-memory"
	MemoryInUse = "memory"
)

// kernelChecks are in the order in which they refuse.
var kernelChecks = []struct {
	name string
	run  func(root fs.FS) Check
}{
	{"lockdown", lockdown},
	{"kexec", kexecLoad},
	{CrashMemory, crashMemory},
	{"memory-overwrite", memoryOverwrite},
	{"guest", guest},
	{"memory-encryption", memoryEncryption},
	{"panics", panics},
}

// Kernel checks the running kernel and what firmware tells it. root has proc,
// sys and dev.
func Kernel(root fs.FS) []Check {
	var list []Check
	for _, k := range kernelChecks {
		c := k.run(root)
		c.Name = k.name
		list = append(list, c)
	}
	return list
}

// maxFile caps what is read of a file, in bytes: /proc/cpuinfo has about 1.5
// KiB a CPU.
const maxFile = 16 << 20

func read(root fs.FS, name string) (string, error) {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return "", err
	}
	if len(b) > maxFile {
		return "", fmt.Errorf("%s: more than %d bytes", name, maxFile)
	}
	return strings.TrimSpace(string(b)), nil
}

// Lockdown returns the kernel's lockdown mode, "none" if it has no lockdown.
func Lockdown(root fs.FS) string {
	text, err := read(root, "sys/kernel/security/lockdown")
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

func lockdown(root fs.FS) Check {
	if mode := Lockdown(root); mode != "none" {
		return refuse("boot without lockdown (Secure Boot turns it on)", "kernel lockdown is %s, which forbids to load the stub", mode)
	}
	return ok()
}

func kexecLoad(root fs.FS) Check {
	switch disabled, err := read(root, "proc/sys/kernel/kexec_load_disabled"); {
	case errors.Is(err, fs.ErrNotExist):
		return refuse("use a kernel with CONFIG_KEXEC", "this kernel has no kexec_load")
	case err != nil:
		return unreadable(err)
	case disabled != "0":
		return refuse("remove the setting and reboot: it can't be unset", "kernel.kexec_load_disabled is set")
	}
	return ok()
}

func crashMemory(root fs.FS) Check {
	switch size, err := read(root, "sys/kernel/kexec_crash_size"); {
	case errors.Is(err, fs.ErrNotExist):
		return refuse("use a kernel with CONFIG_CRASH_DUMP", "this kernel can't load a crash image")
	case err != nil:
		return unreadable(err)
	case size == "0":
		return refuse("see why in `dmesg | grep -i crash`: the payload asks for crashkernel=", "no memory is reserved for the stub")
	}
	return ok()
}

// overwriteRequestFile is the EFI variable with which an operating system
// asks firmware to clear memory at the next reset (TCG PC Client Platform
// Reset Attack Mitigation Specification 1.10, section 4.1).
const overwriteRequestFile = "sys/firmware/efi/efivars/MemoryOverwriteRequestControl-e20939be-32d4-41be-a150-897f85d49829"

func memoryOverwrite(root fs.FS) Check {
	b, err := fs.ReadFile(root, overwriteRequestFile)
	if err != nil || len(b) < 5 {
		return ok() // no such variable: nobody asked for clearing
	}
	// efivarfs puts 4 bytes of attributes before the value.
	if b[4]&1 != 0 {
		return refuse("boot a kernel without CONFIG_RESET_ATTACK_MITIGATION, through the payload",
			"firmware has been asked to clear memory at the next reset (MemoryOverwriteRequestControl)")
	}
	return ok()
}

// settings are the sysctls that turn a hang, an unknown NMI or an oops into a
// panic.
var settings = []string{"hung_task_panic", "softlockup_panic", "hardlockup_panic", "unknown_nmi_panic", "panic_on_oops"}

// panics warns about settings that are off. They are the operator's policy, so
// it never refuses.
func panics(root fs.FS) Check {
	var off []string
	for _, s := range settings {
		if v, err := read(root, "proc/sys/kernel/"+s); err == nil && v == "0" {
			off = append(off, s)
		}
	}
	if len(off) == 0 {
		return ok()
	}
	return warn("`sysctl kernel."+off[0]+"=1` makes a panic, and so a dump, of it",
		"not dumped: %s", strings.Join(off, ", "))
}

// Memory checks that the RAM which the running kernel uses for itself is
// dumped. It refuses if some of it is overwritten. If some is merely not in
// the plan it only warns, because the rest of the dump is still worth having.
// inUse is that RAM, without memory that holds user pages only; dumped is boot
// memory and preserved memory; overwritten is what a reset or the copy of boot
// memory overwrites.
func Memory(inUse, dumped, overwritten phys.Set) Check {
	const name = MemoryInUse
	left := inUse.Minus(dumped)
	if in := left.Intersect(overwritten); len(in) > 0 {
		c := refuse("`warmcore reclaim`, then `warmcore lend`; if that changes nothing, boot through the payload again",
			"a reset or the copy of boot memory overwrites %s that this kernel uses, from %#x on", phys.FormatSize(in.Size()), in[0].Start)
		c.Name = name
		return c
	}
	// The plan is made of whole pages, of up to 64 KiB; smaller pieces at
	// the borders are ignored.
	left = left.AlignIn(pageMax)
	if len(left) > 0 {
		c := warn("take it offline, or online it as online_movable; or boot through the payload again",
			"%s of kernel memory, from %#x on, would be in no dump: it is not in the plan", phys.FormatSize(left.Size()), left[0].Start)
		c.Name = name
		return c
	}
	return Check{Name: name, Verdict: OK}
}

const pageMax = 64 * phys.KiB

// Wanted checks that the administrator wants the machine armed.
func Wanted(arm bool) Check {
	c := ok()
	if !arm {
		c = refuse("set arm=yes there to undo it, `warmcore arm`, and reboot", "arm=no in /etc/warmcore.conf leaves dumps to kdump")
	}
	c.Name = "wanted"
	return c
}

// Kept checks that no memory of the last dump is held any more; bytes is how
// much has not been given back.
func Kept(bytes uint64) Check {
	c := ok()
	if bytes > 0 {
		c = warn("`warmcore release` again; what stays comes back with the next boot",
			"%s of the last dump is not given back, and would be in the next one", phys.FormatSize(bytes))
	}
	c.Name = "released"
	return c
}
