package story

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/vmtest/debian"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

// kdump is Debian 12 on which arming is refused: the boot after that is left to
// kdump-tools, which dumps the next crash, with the machine's own parameters.
func (l *Lab) kdump() error {
	const refusal = "arm=no in /etc/warmcore.conf"
	alone, err := l.memTotalAlone()
	if err != nil {
		return err
	}
	l.makeDisk = l.debianDisk
	l.changeRoot = func(root string) error {
		// What kdump-tools reserves, 128 MiB, is short for an emulated machine.
		name := filepath.Join(root, debian.GRUBConfigPath)
		cfg, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		changed := strings.ReplaceAll(string(cfg), "crashkernel=384M-:128M", "crashkernel=256M")
		return errors.Join(debian.Put(root, debian.GRUBConfigPath, []byte(changed), 0o644),
			debian.Put(root, "/etc/warmcore.conf", []byte("arm=no\n"), 0o644))
	}
	if err := l.Start(); err != nil {
		return err
	}
	if err := errors.Join(l.want(wire.Plain), l.wantLog("parameter left out, parameter: crashkernel=256M: ")); err != nil {
		return err
	}
	if _, err := l.Guest.Run(l.ctx, "systemctl", "is-system-running", "--wait"); err != nil {
		return err
	}
	if b, err := l.Registration(); err != nil || !strings.HasPrefix(b.Refused, refusal) {
		return l.Machine.Fail("arm", fmt.Errorf("%v, refused %q; want the registration to say %q", err, b.Refused, refusal))
	}
	if err := l.refused(3, refusal, "warmcore", "arm"); err != nil {
		return err
	}
	if err := l.reboot(registration.Disarmed); err != nil {
		return err
	}
	if err := l.leftToKdump(refusal, alone); err != nil {
		return err
	}
	if out, err := l.Command("kdump-config", "status"); err != nil || !strings.Contains(out, "ready to kdump") {
		return l.Machine.Fail("kdump-tools", fmt.Errorf("%q, %v; want it ready to kdump", out, err))
	}
	// No reset now: the kernel jumps into kdump's, which saves, and reboots.
	if err := l.Guest.Sync(l.ctx); err != nil {
		return err
	}
	ram, err := l.CrashNow(wire.Trigger{Kind: wire.SysrqC}, wire.Plain)
	if err != nil {
		return err
	}
	ram.Close()
	if err := l.leftToKdump(refusal, alone); err != nil {
		return err
	}
	out, err := l.Command("sh", "-c", "warmcore inspect /var/crash/*/dump.*")
	if err != nil || !strings.Contains(out, "sysrq triggered crash") {
		return l.Machine.Fail("kdump's dump", fmt.Errorf("%q, %v; want the panic in it", out, err))
	}
	// And back: a word to the agent, and the next boot is planned.
	if err := debianConf(l, ""); err != nil {
		return err
	}
	if err := l.refused(3, "because arming was refused", "warmcore", "arm"); err != nil {
		return err
	}
	if err := l.reboot(registration.Disarmed); err != nil {
		return err
	}
	if _, err := l.bootDone(map[string]string{"warmcore-arm.service": "active", "warmcore-lend.service": "active", "kdump-tools.service": "condition"}); err != nil {
		return err
	}
	return l.PowerOff()
}

// debianConf writes /etc/warmcore.conf in the guest.
func debianConf(l *Lab, text string) error {
	_, err := l.Guest.MustRun(l.ctx, "sh", "-c", "printf '"+text+"' >/etc/warmcore.conf")
	return err
}

// leftToKdump fails unless the boot is left to kdump, with as much memory as the
// kernel has without us less what is reserved for kdump, and kdump's crash kernel
// is loaded.
func (l *Lab) leftToKdump(refusal string, alone uint64) error {
	if err := errors.Join(l.want(wire.Plain), l.wantLog("arming is refused, why: "+refusal)); err != nil {
		return err
	}
	if !strings.Contains(l.Guest.Cmdline, " crashkernel=256M ") || strings.Contains(l.Guest.Cmdline, "memhp_default_state") {
		return l.Machine.Fail("command line", fmt.Errorf("%q; want the boot entry's own", l.Guest.Cmdline))
	}
	if _, err := l.Guest.Run(l.ctx, "systemctl", "is-system-running", "--wait"); err != nil {
		return err
	}
	memory, err := l.memTotal()
	if want := (alone - 256*phys.KiB - 4*phys.KiB) * 99 / 100; err != nil || memory < want {
		return l.Machine.Fail("memory", fmt.Errorf("MemTotal %d KiB, %v; want %d KiB", memory, err, want))
	}
	for name, want := range map[string]string{"kdump-tools.service": "active", "warmcore-arm.service": "condition", "warmcore-lend.service": "condition", "warmcore-keep.timer": "condition"} {
		u, err := l.unit(name)
		if err != nil {
			return err
		}
		got := u["ActiveState"]
		if u["ConditionResult"] == "no" {
			got = "condition"
		}
		if got != want {
			return l.Machine.Fail("units", fmt.Errorf("%s is %v, want %s", name, u, want))
		}
	}
	l.Step("left to kdump: MemTotal %s", phys.FormatSize(memory*phys.KiB))
	return nil
}
