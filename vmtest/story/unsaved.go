package story

import (
	"errors"
	"fmt"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

// hangingTarget makes /var/crash a disk on which every write waits for good, in
// a capture boot. No signal ends a program that does it.
const hangingTarget = `
dd if=/dev/zero of=/hang.img bs=1M count=16 status=none && mkfs.ext4 -q /hang.img
cp /etc/fstab /etc/fstab.good
echo /hang.img /var/crash ext4 loop 0 0 >>/etc/fstab
cat >/etc/systemd/system/hang.service <<EOF
[Unit]
DefaultDependencies=no
RequiresMountsFor=/var/crash
Before=warmcore-save.service
ConditionFileNotEmpty=/proc/vmcore
[Service]
Type=oneshot
ExecStart=fsfreeze -f /var/crash
[Install]
WantedBy=basic.target
EOF
mkdir /etc/systemd/system/warmcore-save.service.d
cat >/etc/systemd/system/warmcore-save.service.d/hang.conf <<EOF
[Service]
TimeoutStartSec=30s
TimeoutStopSec=5s
EOF
printf 'save-failed=keep\nkeep-boots=1\nsave-stall=10s\n' >/etc/warmcore.conf
systemctl enable -q hang.service
`

// fullTarget makes /var/crash a disk that is too small.
const fullTarget = `
fsfreeze -u /var/crash
systemctl disable -q hang.service
cp /etc/fstab.good /etc/fstab
echo tmpfs /var/crash tmpfs size=1m 0 0 >>/etc/fstab
printf 'save-failed=keep\nkeep-boots=1\n' >/etc/warmcore.conf
`

// failedSaves is a dump that can't be saved in two boots: the target hangs, and
// is then full. The system comes up in both. In the first the dump is kept, and
// a clean reboot offers it again; in the second it is one boot too many.
func (l *Lab) failedSaves(plain uint64) error {
	if _, err := l.Guest.MustRun(l.ctx, "sh", "-ec", hangingTarget); err != nil {
		return err
	}
	if err := l.Guest.Sync(l.ctx); err != nil {
		return err
	}
	ram, err := l.CrashNow(wire.Trigger{Kind: wire.SysrqC}, wire.Capture)
	if err != nil {
		return err
	}
	ram.Close()
	if err := l.upWithout("keep", registration.Capturing); err != nil {
		return err
	}
	if _, err := l.Guest.MustRun(l.ctx, "sh", "-ec", fullTarget); err != nil {
		return err
	}
	if err := l.reboot(registration.Capturing); err != nil {
		return err
	}
	if err := errors.Join(l.want(wire.Capture), l.wantLog("the dump was not saved in capture boot 1")); err != nil {
		return err
	}
	if err := l.upWithout("release", registration.Armed); err != nil {
		return err
	}
	released, err := l.memTotal()
	if err != nil || released*100 < plain*99 {
		return l.Machine.Fail("release of a dump that can't be saved", fmt.Errorf("MemTotal %d KiB, %v; want 99 %% of %d KiB", released, err, plain))
	}
	l.Step("memory is back: MemTotal %s", phys.FormatSize(released*phys.KiB))
	return nil
}

// upWithout waits until systemd has no job left, though the dump could not be
// saved. The settings must have led to action, and to the state.
func (l *Lab) upWithout(action string, state registration.State) error {
	if _, err := l.Guest.Run(l.ctx, "systemctl", "is-system-running", "--wait"); err != nil {
		return err
	}
	journal, err := l.Guest.MustRun(l.ctx, "journalctl", "-b", "-q", "--no-pager", "-o", "short-monotonic", "-u", "warmcore-*")
	if err != nil {
		return err
	}
	var wrong []error
	for _, want := range [][2]string{{"multi-user.target", "active"}, {"warmcore-save.service", "failed"}, {"warmcore-failed.service", "inactive"}} {
		u, err := l.unit(want[0])
		if err != nil {
			return err
		}
		if u["ActiveState"] != want[1] {
			wrong = append(wrong, fmt.Errorf("%s is %v, want %s", want[0], u, want[1]))
		}
	}
	if want := "the dump is not saved: " + action; !strings.Contains(journal, want) {
		wrong = append(wrong, fmt.Errorf("no %q in the journal", want))
	}
	b, err := l.Registration()
	if err != nil || b.State != state {
		wrong = append(wrong, fmt.Errorf("registration %v, %v; want %v", b.State, err, state))
	}
	if err := errors.Join(wrong...); err != nil {
		return l.Machine.Fail("a save that fails", fmt.Errorf("%w; the journal:\n%s", err, journal))
	}
	up, err := l.unit("multi-user.target")
	if err != nil {
		return err
	}
	l.Step("the save failed, %s; multi-user.target was there %s us after the kernel's start", action, up["ActiveEnterTimestampMonotonic"])
	return nil
}
