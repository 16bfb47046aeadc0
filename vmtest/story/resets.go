package story

import (
	"errors"
	"fmt"

	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
	"github.com/warmcore/warmcore/vmtest/truth"
)

func (l *Lab) clean() error {
	if err := l.Start(); err != nil {
		return err
	}
	if _, err := l.ready(1); err != nil {
		return err
	}
	// What the unit does at a clean shutdown.
	if err := l.Warmcore("disarm"); err != nil {
		return err
	}
	if _, err := l.CrashNow(wire.Trigger{Kind: wire.Reboot}, wire.Plain); err != nil {
		return err
	}
	return errors.Join(l.wantLog("clean shutdown: disarmed"), l.refused(4, "nothing to save", "warmcore", "save"))
}

func (l *Lab) resetFromOutside() error {
	l.Trigger = "system_reset"
	return l.withoutRegisters(func() (*truth.RAM, error) {
		l.Step("trigger: reset from outside")
		if err := l.Machine.Pause(l.ctx); err != nil {
			return nil, err
		}
		ram, err := l.resetPaused()
		if err != nil {
			return nil, err
		}
		if err := l.waitGuest(); err != nil {
			return nil, err
		}
		return ram, l.want(wire.Capture)
	})
}

func (l *Lab) watchdog() error {
	l.Trigger = wire.Watchdog
	return l.withoutRegisters(func() (*truth.RAM, error) {
		return l.CrashNow(wire.Trigger{Kind: wire.Watchdog}, wire.Capture)
	})
}

// withoutRegisters is a reset of an armed machine with no panic.
func (l *Lab) withoutRegisters(end func() (*truth.RAM, error)) error {
	if err := l.Start(); err != nil {
		return err
	}
	painting, err := l.ready(1)
	if err != nil {
		return err
	}
	ram, err := end()
	if err != nil {
		return err
	}
	return l.saveAs(registration.ReasonReset, ram, painting)
}

// saveAs saves and judges a dump without registers.
func (l *Lab) saveAs(reason registration.Reason, ram *truth.RAM, painting truth.Painting) error {
	d, err := l.save("/var/crash/dump0", ram, painting)
	if err != nil {
		return err
	}
	if c := d.block.Capture; c.Reason != reason || c.CPUsWithRegisters != 0 {
		return l.Machine.Fail("capture", fmt.Errorf("reason %v, registers of %d CPUs; want %v and none", c.Reason, c.CPUsWithRegisters, reason))
	}
	if err := l.PowerOff(); err != nil {
		return err
	}
	return l.judge([]saved{d})
}

// early panics before any agent has run: the kernel finds no init. The
// capture boot then gets a working configuration.
func (l *Lab) early() error {
	l.params = "rdinit=/missing"
	l.Trigger = "no init found"
	if err := l.powerOn(); err != nil {
		return err
	}
	if err := l.Machine.WaitReset(l.ctx); err != nil {
		return err
	}
	l.Step("reset: memory kept")
	// Nobody has the disk open now: the next boot gets an init.
	if err := l.rewriteGRUB("rdinit=/missing", "rdinit=/init"); err != nil {
		return err
	}
	ram, err := l.resetPaused()
	if err != nil {
		return err
	}
	if err := l.waitGuest(); err != nil {
		return err
	}
	if err := errors.Join(l.want(wire.Capture), l.wantLog("VMCOREINFO found by scanning")); err != nil {
		return err
	}
	return l.saveAs(registration.ReasonEarly, ram, truth.Painting{})
}

func (l *Lab) powerCycle() error {
	if err := l.Start(); err != nil {
		return err
	}
	if _, err := l.ready(1); err != nil {
		return err
	}
	l.Step("trigger: power cycle")
	if err := l.Machine.PowerCycle(l.ctx); err != nil {
		return err
	}
	if err := l.waitGuest(); err != nil {
		return err
	}
	return errors.Join(l.want(wire.Plain), l.wantLog("no registration: load registration: empty"))
}
