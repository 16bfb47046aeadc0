package story

import (
	"errors"
	"fmt"

	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
	"github.com/warmcore/warmcore/vmtest/machine"
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

// update resets into another payload than the one that started the crashed
// kernel: it wants more boot memory, and overwrites some of that kernel's
// memory. The dump must name that memory as lost and show only the rest.
// While the dump is offered, the old payload comes back.
func (l *Lab) update() error {
	if err := l.Start(); err != nil {
		return err
	}
	painting, err := l.ready(1)
	if err != nil {
		return err
	}
	then, err := l.Registration()
	if err != nil {
		return l.Machine.Fail("registration", err)
	}
	if err := l.crashAndPause(); err != nil {
		return err
	}
	ram, err := l.Machine.CopyRAM(l.ctx)
	if err != nil {
		return err
	}
	old := ""
	if err := l.resetInto(func(o *machine.Options) {
		old = o.Append
		o.Append += " warmcore.bootmem=768M"
	}); err != nil {
		return err
	}
	const changed = "the memory plan changed since the crashed boot"
	if err := l.wantLog(changed); err != nil {
		return err
	}
	updated, err := l.Registration()
	if err != nil {
		return l.Machine.Fail("registration", err)
	}
	if err := l.crashAndPause(); err != nil {
		return err
	}
	if err := l.resetInto(func(o *machine.Options) { o.Append = old }); err != nil {
		return err
	}
	if err := l.wantLog("it is offered again"); err != nil {
		return err
	}
	d, err := l.save("/var/crash/dump0", ram, painting)
	if err != nil {
		return err
	}
	// The updated payload overwrote the memory that it planned to use.
	d.then, d.block = then, updated
	if err := l.Warmcore("release", "arm"); err != nil {
		return err
	}
	if err := l.armed(true); err != nil {
		return err
	}
	if err := l.PowerOff(); err != nil {
		return err
	}
	return l.judge([]saved{d})
}

// crashAndPause ends the guest. The machine stands still at its reset.
func (l *Lab) crashAndPause() error {
	if err := l.triggerOn(wire.Trigger{Kind: l.Trigger}); err != nil {
		return err
	}
	return l.Machine.WaitReset(l.ctx)
}

// resetInto resets a machine that stands still into another payload, which
// must make a capture boot.
func (l *Lab) resetInto(change func(o *machine.Options)) error {
	l.Step("reset into another payload: memory kept")
	events := l.Machine.Timeline.Events()
	l.booted = events[len(events)-1].T
	if err := l.Machine.ResetInto(l.ctx, change); err != nil {
		return err
	}
	if err := l.waitGuest(); err != nil {
		return err
	}
	return l.want(wire.Capture)
}
