package story

import (
	"errors"
	"fmt"
	"strings"

	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/vmtest/debian"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

var panicOnCPU0 = wire.Trigger{Kind: wire.SysrqC}

// recrash panics in the capture boot before the dump is saved, once, and
// saves it the second time; then it does so until the payload gives up.
func (l *Lab) recrash() error {
	if err := l.Start(); err != nil {
		return err
	}
	painting, err := l.ready(1)
	if err != nil {
		return err
	}
	first, err := l.CrashNow(panicOnCPU0, wire.Capture)
	if err != nil {
		return err
	}
	if err := l.wantLog("boot memory copied"); err != nil {
		return err
	}
	second, err := l.CrashNow(panicOnCPU0, wire.Capture)
	if err != nil {
		return err
	}
	second.Close()
	if err := l.wantLog("the dump was not saved in capture boot 1"); err != nil {
		return err
	}
	if log, _ := l.PayloadLog(); strings.Contains(log, "boot memory copied") {
		return l.Machine.Fail("second offer", fmt.Errorf("boot memory was copied again:\n%s", log))
	}
	d, err := l.save("/var/crash/dump0", first, painting)
	if err != nil {
		return err
	}
	if err := l.Warmcore("release", "arm"); err != nil {
		return err
	}
	// Now a dump that nobody ever saves.
	for _, want := range []string{wire.Capture, wire.Capture, wire.Capture, wire.Plain} {
		ram, err := l.CrashNow(panicOnCPU0, want)
		if err != nil {
			return err
		}
		ram.Close()
	}
	if err := errors.Join(l.wantLog("gave the dump up after 3 capture boots"), l.Warmcore("arm"), l.PowerOff()); err != nil {
		return err
	}
	return l.judge([]saved{d})
}

// broken has a first entry whose kernel is missing; on arm64, also a device
// tree with two nodes of one name, which kernels boot with.
func (l *Lab) broken() error {
	good, err := debian.GRUBConfig(l.files.kernel.Release, l.cmdline())
	if err != nil {
		return err
	}
	first := strings.Replace(string(good), "/boot/vmlinuz-"+l.files.kernel.Release, "/boot/vmlinuz-removed", 1)
	l.diskFiles = map[string][]byte{debian.GRUBConfigPath: []byte(first)}
	l.spoilTree = func(t *devicetree.Tree) {
		t.Root.Children = append(t.Root.Children, &devicetree.Node{Name: "twice"}, &devicetree.Node{Name: "twice"})
	}
	if err := l.Start(); err != nil {
		return err
	}
	return errors.Join(l.want(wire.Plain), l.wantLog("vmlinuz-removed"))
}

// diskFull saves to a disk that is too small: the dump is still offered, and
// memory comes back only when it is given up.
func (l *Lab) diskFull() error {
	l.size = 192 << 20
	// The operator's policy must never be that of our memory, and be back later.
	const policy = "online_movable"
	l.params = "memhp_default_state=" + policy
	if err := l.Start(); err != nil {
		return err
	}
	if _, err := l.ready(1); err != nil {
		return err
	}
	if err := l.added(policy); err != nil {
		return err
	}
	if _, err := l.CrashNow(panicOnCPU0, wire.Capture); err != nil {
		return err
	}
	if err := l.added("offline"); err != nil {
		return err
	}
	whole := []string{"warmcore", "save", "--format", "elf", "--dump-level", "0"} // the usual one would fit
	if err := errors.Join(l.refused(1, "no space left", whole...), l.refused(3, "not saved", "warmcore", "release")); err != nil {
		return err
	}
	b, err := l.Registration()
	if err != nil || b.State != registration.Capturing {
		return l.Machine.Fail("registration", fmt.Errorf("%v, %w; want state capturing", b, err))
	}
	if _, err := l.Command("warmcore", "release", "--discard"); err != nil {
		return err
	}
	return errors.Join(l.added(policy), l.Warmcore("arm"))
}

// added checks what the kernel does with memory that is added.
func (l *Lab) added(want string) error {
	const file = "/sys/devices/system/memory/auto_online_blocks"
	if !l.files.takesMemory && want != "offline" {
		return nil // the agent has refused to lend
	}
	got, err := l.Guest.ReadFile(l.ctx, file)
	if err != nil || strings.TrimSpace(string(got)) != want {
		return l.Machine.Fail(file, fmt.Errorf("%q, %v; want %s", got, err, want))
	}
	l.Step("memory that is added: %s", want)
	return nil
}

func (l *Lab) lockdown() error {
	l.params = "lockdown=integrity"
	if err := l.Start(); err != nil {
		return err
	}
	return l.refused(3, "lockdown", "warmcore", "arm")
}

// tiny has no room for boot memory and its copy: the machine boots with all
// of its memory, and arm says that there is nothing to arm.
func (l *Lab) tiny() error {
	if err := l.Start(); err != nil {
		return err
	}
	if err := l.want(wire.Plain); err != nil {
		return err
	}
	if strings.Contains(l.Guest.Cmdline, "warmcore.handoff=") || l.Guest.MemTotalKiB*100 < l.Memory/phys.KiB*80 {
		return l.Machine.Fail("boot", fmt.Errorf("MemTotal %d KiB, command line %q; want most of the memory, and no handoff area", l.Guest.MemTotalKiB, l.Guest.Cmdline))
	}
	return l.refused(3, l.board.unplanned, "warmcore", "arm")
}
