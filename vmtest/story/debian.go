package story

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/vmtest/debian"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

// unitFiles are the files of boot/systemd and the folders of the guest that
// its README.md says they go to.
var unitFiles = map[string][]string{
	"warmcore-sysctl.service": {"/usr/lib/systemd/system"},
	"warmcore-save.service":   {"/usr/lib/systemd/system"},
	"warmcore-failed.service": {"/usr/lib/systemd/system"},
	"warmcore-arm.service":    {"/usr/lib/systemd/system"},
	"warmcore-lend.service":   {"/usr/lib/systemd/system"},
	"warmcore-keep.service":   {"/usr/lib/systemd/system"},
	"warmcore-keep.timer":     {"/usr/lib/systemd/system"},
	"90-warmcore.preset":      {"/usr/lib/systemd/system-preset"},

	"system-shutdown/warmcore": {"/usr/lib/systemd/system-shutdown"},
	"50-kdump-tools.rules":     {"/etc/udev/rules.d"},
	"kdump-tools.service.d/10-warmcore.conf": {
		"/etc/systemd/system/kdump-tools.service.d",
		"/etc/systemd/system/kdump-tools-dump.service.d",
		"/etc/systemd/system/kdump.service.d",
	},
}

// mode is what install(1) gives the file called name of boot/systemd.
func mode(name string) os.FileMode {
	if path.Dir(name) == "system-shutdown" {
		return 0o755
	}
	return 0o644
}

// guestUnit starts the guest program as soon as programs can be started, and
// leaves it running to the end of a shutdown. It does nothing by itself.
const guestUnit = `[Unit]
Description=Guest program of the crash stories
DefaultDependencies=no
After=systemd-journald.socket

[Service]
ExecStart=/usr/local/sbin/guest

[Install]
WantedBy=sysinit.target emergency.target
`

// debianDisk puts a whole Debian on the disk, with warmcore's units as their
// README.md says.
func (l *Lab) debianDisk() error {
	start := time.Now()
	base, err := debian.OpenRoot(l.ctx, l.files.cache, l.files.kernel, l.cmdline())
	if err != nil {
		return err
	}
	l.Step("Debian's root file system, from debootstrap or the cache: %.0f s", time.Since(start).Seconds())
	return base.Build(l.ctx, l.disk.Path, l.size, func(root string) error {
		for to, from := range map[string]string{"/usr/sbin/warmcore": l.files.warmcore, "/usr/local/sbin/guest": l.files.guest} {
			b, err := os.ReadFile(from)
			if err != nil {
				return err
			}
			if err := debian.Put(root, to, b, 0o755); err != nil {
				return err
			}
		}
		// There once kdump-tools has run, which needs it for its lock.
		if err := os.MkdirAll(filepath.Join(root, "var/crash"), 0o755); err != nil {
			return err
		}
		for name, dirs := range unitFiles {
			b, err := os.ReadFile(filepath.Join("boot/systemd", name))
			if err != nil {
				return err
			}
			for _, dir := range dirs {
				if err := debian.Put(root, path.Join(dir, path.Base(name)), b, mode(name)); err != nil {
					return err
				}
			}
		}
		if err := debian.Put(root, "/etc/systemd/system/guest.service", []byte(guestUnit), 0o644); err != nil {
			return err
		}
		for _, verb := range []string{"preset", "enable"} {
			units := []string{"guest.service"}
			if verb == "preset" {
				units = []string{"warmcore-sysctl.service", "warmcore-save.service", "warmcore-arm.service", "warmcore-lend.service", "warmcore-keep.timer"}
			}
			if out, err := output(l.ctx, "", "systemctl", append([]string{"--root", root, verb}, units...)...); err != nil {
				return fmt.Errorf("systemctl %s: %w\n%s", verb, err, out)
			}
		}
		if l.changeRoot != nil {
			return l.changeRoot(root)
		}
		return nil
	})
}

// debian is a crash of Debian 12 whose systemd runs warmcore's units, with
// kdump-tools installed and enabled beside them, and a clean reboot.
func (l *Lab) debian() error {
	alone, err := l.memTotalAlone()
	if err != nil {
		return err
	}
	l.makeDisk = l.debianDisk
	if err := l.Start(); err != nil {
		return err
	}
	if err := l.want(wire.Plain); err != nil {
		return err
	}
	// grub-mkconfig has put kdump-tools' crashkernel= there: the payload has its own.
	if err := l.wantLog("parameter left out, parameter: crashkernel=384M-:128M: "); err != nil {
		return err
	}
	plain, err := l.bootDone(map[string]string{
		"warmcore-arm.service": "active", "warmcore-lend.service": "active", "warmcore-save.service": "condition", "kdump-tools.service": "condition"})
	if err != nil {
		return err
	}
	l.Report.Memory = &Memory{InstalledKiB: l.Memory / phys.KiB, AloneKiB: alone, PlainKiB: plain}
	if err := l.armedEarly(); err != nil {
		return err
	}
	if err := l.lostStub(); err != nil {
		return err
	}
	// More than what can be lent, so that some of it is in the dump.
	var lent uint64
	b, err := l.Registration()
	if err != nil {
		return l.Machine.Fail("registration", err)
	}
	for _, r := range b.Plan {
		if r.Role == registration.RoleWindow || r.Role == registration.RoleDestination {
			lent += r.Range.Size()
		}
	}
	painting, err := l.Guest.Paint(l.ctx, int(lent/mib)+paintMiB, 1)
	if err != nil {
		return err
	}
	if err := l.Guest.Sync(l.ctx); err != nil {
		return err
	}
	if err := l.triggerOn(wire.Trigger{Kind: wire.SysrqC}); err != nil {
		return err
	}
	ram, err := l.reset()
	if err != nil {
		return err
	}
	defer ram.Close()
	d, err := l.savedByUnits(plain)
	if err != nil {
		return err
	}
	d.ram, d.painting = ram, painting
	if err := l.vmcoreClosed(); err != nil {
		return err
	}
	if err := l.emergencyReboot(d.dir); err != nil {
		return err
	}
	if err := l.failedSaves(plain); err != nil {
		return err
	}
	if err := l.PowerOff(); err != nil {
		return err
	}
	return l.judge([]saved{d})
}

// lostStub loads other crash images in place of the stub: what the timer starts
// must notice, and arm again.
func (l *Lab) lostStub() error {
	for _, lose := range [][]string{
		{"kexec", "-p", "-u"},
		// There is no room for it: the stub goes, and nothing comes.
		{"kexec", "-s", "-p", "/boot/vmlinuz-" + l.files.kernel.Release},
	} {
		if _, err := l.Guest.Run(l.ctx, lose...); err != nil {
			return err
		}
		if err := l.refusedStatus("not armed: something unloaded the stub"); err != nil {
			return err
		}
		if _, err := l.Guest.MustRun(l.ctx, "systemctl", "start", "warmcore-keep.service"); err != nil {
			return l.Machine.Fail("warmcore-keep", err)
		}
		if out, err := l.Command("warmcore", "status", "--check"); err != nil || !strings.HasPrefix(out, "armed: a panic or a reset now is dumped\n") {
			return l.Machine.Fail("warmcore-keep", fmt.Errorf("%q, %v; want armed, with our stub", out, err))
		}
		l.Step("%s: the stub is lost, and loaded again", strings.Join(lose, " "))
	}
	return nil
}

// refusedStatus fails unless status says want, and that in its exit code.
func (l *Lab) refusedStatus(want string) error {
	r, err := l.Guest.Run(l.ctx, "warmcore", "status", "--check")
	if err != nil {
		return err
	}
	if r.Exit != 3 || !strings.Contains(r.Stdout, want) {
		return l.Machine.Fail("status --check", fmt.Errorf("exit %d, %q; want exit 3 and %q", r.Exit, r.Stdout, want))
	}
	return nil
}

// savedByUnits waits for the capture boot of a Debian that does it all by
// itself. plain is the MemTotal to come back to.
func (l *Lab) savedByUnits(plain uint64) (saved, error) {
	if err := l.waitGuest(); err != nil {
		return saved{}, err
	}
	if err := l.want(wire.Capture); err != nil {
		return saved{}, err
	}
	l.Report.Memory.CaptureKiB = l.Guest.MemTotalKiB
	released, err := l.bootDone(map[string]string{
		"warmcore-save.service": "active", "warmcore-arm.service": "active", "warmcore-lend.service": "condition", "kdump-tools.service": "condition"})
	if err != nil {
		return saved{}, err
	}
	l.Report.Memory.ReleasedKiB = released
	if err := l.enough(); err != nil {
		return saved{}, err
	}
	b, err := l.Registration()
	if err != nil {
		return saved{}, l.Machine.Fail("registration", err)
	}
	c := b.Capture
	if c.Reason != registration.ReasonPanic || c.CPUsWithRegisters != uint32(l.CPUs) || c.CPUsFlushed != uint32(l.CPUs) {
		return saved{}, l.Machine.Fail("capture", fmt.Errorf("reason %v, registers of %d CPUs, %d caches flushed; want panic, %d, %d",
			c.Reason, c.CPUsWithRegisters, c.CPUsFlushed, l.CPUs, l.CPUs))
	}
	l.Report.Copy = &Copy{Bytes: c.CopyBytes, Seconds: round(float64(c.CopyNanos) / 1e9)}
	l.Report.Crash = &Crash{Trigger: l.Trigger, Reason: c.Reason.String(), CPUsWithRegisters: int(c.CPUsWithRegisters), CPUsFlushed: int(c.CPUsFlushed)}
	dirs, err := l.dumps()
	if err != nil {
		return saved{}, err
	}
	if len(dirs) != 1 {
		return saved{}, l.Machine.Fail("save", fmt.Errorf("/var/crash has the dumps %v, want one", dirs))
	}
	return saved{dir: dirs[0], block: b}, nil
}

// dumps lists the folders of dumps in the guest.
func (l *Lab) dumps() ([]string, error) {
	out, err := l.Guest.MustRun(l.ctx, "find", "/var/crash", "-mindepth", "2", "-name", "vmcore*", "!", "-name", "*.txt", "-printf", `%h\n`)
	return strings.Fields(out), err
}

// vmcoreClosed looks at another mount of proc after the release: without the
// capabilities that pass over permissions nobody opens the old /proc/vmcore.
func (l *Lab) vmcoreClosed() error {
	const look = "mount -t proc proc /mnt && stat -c %a /mnt/vmcore && exec setpriv --bounding-set -dac_override,-dac_read_search head -c 1 /mnt/vmcore"
	r, err := l.Guest.Run(l.ctx, "unshare", "--mount", "sh", "-c", look)
	if err != nil {
		return err
	}
	if r.Stdout != "0\n" || r.Exit == 0 || !strings.Contains(r.Stderr, "Permission denied") {
		return l.Machine.Fail("/proc/vmcore after the release", fmt.Errorf("another mount of proc: exit %d, %q, %q; want mode 0 and permission denied", r.Exit, r.Stdout, r.Stderr))
	}
	l.Step("/proc/vmcore of another mount of proc: permission denied")
	return nil
}

// emergencyReboot boots into emergency mode, in which none of the units runs,
// and reboots: no crash.
func (l *Lab) emergencyReboot(dirs ...string) error {
	grub := func(from, to string) error {
		_, err := l.Guest.MustRun(l.ctx, "sed", "-i", "s/"+from+"/"+to+"/", debian.GRUBConfigPath)
		return errors.Join(err, l.Guest.Sync(l.ctx))
	}
	if err := grub(" quiet ", " quiet systemd.unit=emergency.target "); err != nil {
		return err
	}
	if err := l.reboot(registration.Disarmed); err != nil {
		return err
	}
	if err := errors.Join(l.want(wire.Plain), l.wantLog("clean shutdown: disarmed")); err != nil {
		return err
	}
	b, err := l.Registration()
	if err != nil || b.State != registration.Prearmed {
		return l.Machine.Fail("emergency mode", fmt.Errorf("%v, %w; want state prearmed", b, err))
	}
	if _, err := l.Guest.MustRun(l.ctx, "mount", "-o", "remount,rw", "/"); err != nil {
		return err
	}
	if err := grub(" systemd.unit=emergency.target ", " "); err != nil {
		return err
	}
	return l.cleanReboot(dirs...)
}

// reboot lets systemd reboot, and waits for the boot after it. The state at the
// reset must be want.
func (l *Lab) reboot(want registration.State) error {
	if err := l.triggerOn(wire.Trigger{Kind: wire.Reboot}); err != nil {
		return err
	}
	if err := l.Machine.WaitReset(l.ctx); err != nil {
		return err
	}
	b, err := l.Registration()
	if err != nil || b.State != want {
		return l.Machine.Fail("clean reboot", fmt.Errorf("state %v, %v; want %v", b.State, err, want))
	}
	l.Step("reset after systemctl reboot: %v", b.State)
	ram, err := l.resetPaused()
	if err != nil {
		return err
	}
	ram.Close()
	return l.waitGuest()
}

// cleanReboot lets systemd reboot: disarmed on the way, a plain boot, and no
// dumps but those in want.
func (l *Lab) cleanReboot(want ...string) error {
	if err := l.reboot(registration.Disarmed); err != nil {
		return err
	}
	if err := errors.Join(l.want(wire.Plain), l.wantLog("clean shutdown: disarmed")); err != nil {
		return err
	}
	if _, err := l.bootDone(map[string]string{
		"warmcore-arm.service": "active", "warmcore-lend.service": "active", "warmcore-save.service": "condition", "kdump-tools.service": "condition"}); err != nil {
		return err
	}
	dirs, err := l.dumps()
	if err != nil {
		return err
	}
	if !slices.Equal(dirs, want) {
		return l.Machine.Fail("clean reboot", fmt.Errorf("/var/crash has the dumps %v, want %v", dirs, want))
	}
	return nil
}

// bootDone waits until systemd has no job left, and checks what became of
// units: "active", or "condition" for those that were not to be started. The
// system must be armed, with the stub loaded. It returns MemTotal.
func (l *Lab) bootDone(units map[string]string) (memTotal uint64, err error) {
	res, err := l.Guest.Run(l.ctx, "systemctl", "is-system-running", "--wait")
	if err != nil {
		return 0, err
	}
	var wrong []error
	if state := strings.TrimSpace(res.Stdout); state != "running" {
		failed, _ := l.Guest.Run(l.ctx, "systemctl", "--failed", "--no-legend", "--plain")
		wrong = append(wrong, fmt.Errorf("systemd is %q, %q: %s", state, res.Stderr, failed.Stdout))
	}
	for name, want := range units {
		u, err := l.unit(name)
		if err != nil {
			return 0, err
		}
		got := u["ActiveState"]
		if u["ConditionResult"] == "no" {
			got = "condition"
		}
		if got != want || u["Result"] != "success" {
			wrong = append(wrong, fmt.Errorf("%s is %v, want %s", name, u, want))
		}
	}
	loaded, err := l.Guest.ReadFile(l.ctx, "/sys/kernel/kexec_crash_loaded")
	if err != nil {
		return 0, err
	}
	b, err := l.Registration()
	if err != nil || b.State != registration.Armed || strings.TrimSpace(string(loaded)) != "1" {
		wrong = append(wrong, fmt.Errorf("registration %v, %v, crash image loaded %q; want armed and 1", b.State, err, loaded))
	}
	journal, err := l.Guest.MustRun(l.ctx, "journalctl", "-b", "--no-pager", "-o", "short-monotonic")
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(l.Out, fmt.Sprintf("journal-%d.txt", len(l.Report.Boots))), []byte(journal), 0o644); err != nil {
		return 0, err
	}
	for what, args := range map[string][]string{
		"kdump-tools is at work":    {"-t", "kdump-tools", "-t", "kdump-config"},
		"warmcore's units complain": {"-p", "warning", "-u", "warmcore-*"},
	} {
		lines, err := l.Guest.MustRun(l.ctx, append([]string{"journalctl", "-b", "-q", "--no-pager"}, args...)...)
		if err != nil {
			return 0, err
		}
		if lines != "" {
			wrong = append(wrong, fmt.Errorf("%s: %s", what, lines))
		}
	}
	if err := errors.Join(wrong...); err != nil {
		return 0, l.Machine.Fail("units", err)
	}
	if memTotal, err = l.memTotal(); err != nil {
		return 0, err
	}
	l.Step("units have done their work: armed, MemTotal %s", phys.FormatSize(memTotal*phys.KiB))
	return memTotal, nil
}

// unit returns what systemd says about a unit.
func (l *Lab) unit(name string) (map[string]string, error) {
	out, err := l.Guest.MustRun(l.ctx, "systemctl", "show", name, "-p",
		"LoadState,ActiveState,Result,ConditionResult,ActiveEnterTimestampMonotonic")
	if err != nil {
		return nil, err
	}
	u := map[string]string{}
	for line := range strings.Lines(out) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			u[k] = v
		}
	}
	return u, nil
}

// armedEarly fails unless arming was done before systemd began with ordinary
// services.
func (l *Lab) armedEarly() error {
	var at [2]float64 // seconds since the kernel started
	for i, name := range []string{"warmcore-arm.service", "basic.target"} {
		u, err := l.unit(name)
		if err != nil {
			return err
		}
		if at[i], err = strconv.ParseFloat(u["ActiveEnterTimestampMonotonic"], 64); err != nil {
			return l.Machine.Fail(name, err)
		}
		at[i] /= 1e6
	}
	if at[0] == 0 || at[0] > at[1] {
		return l.Machine.Fail("order", fmt.Errorf("armed at %.1f s, basic.target was there at %.1f s", at[0], at[1]))
	}
	l.Step("armed %.1f s after the kernel's start; ordinary services began at %.1f s", at[0], at[1])
	chain, err := l.Guest.MustRun(l.ctx, "systemd-analyze", "critical-chain", "--no-pager", "warmcore-arm.service")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.Out, "critical-chain.txt"), []byte(chain), 0o644)
}
