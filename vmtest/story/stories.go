package story

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
	"github.com/warmcore/warmcore/vmtest/rig"
)

// Story is one way for a machine to crash, or not.
type Story struct {
	Name    string
	Tells   string // in one line
	Default Options
	run     func(*Lab) error
}

const (
	mib = phys.MiB
	gib = phys.GiB
)

// Stories lists all of them.
var Stories = []Story{
	{"crash", "panic on 2 CPUs; crash(8) and makedumpfile read the dump", Options{Memory: 2 * gib, CPUs: 2}, (*Lab).crash},
	{"stock", "the same with Debian's kernel as payload", Options{Memory: 2 * gib, CPUs: 2, Payload: "stock"}, (*Lab).crash},
	{"small", "1 GiB, 1 CPU", Options{Memory: 1 * gib, CPUs: 1}, (*Lab).crash},
	{"big", "6 GiB with RAM above 4 GiB, 4 CPUs, an initrd of 150 MB", Options{Memory: 6 * gib, CPUs: 4}, (*Lab).big},
	{"again", "three crashes in a row on one machine", Options{Memory: 1 * gib, CPUs: 2, Cycles: 3}, (*Lab).crash},
	{"clean", "a clean reboot makes no dump", Options{Memory: 1 * gib, CPUs: 2}, (*Lab).clean},
	{"reset", "reset from outside while armed: a dump without registers", Options{Memory: 1 * gib, CPUs: 2}, (*Lab).resetFromOutside},
	{"watchdog", "a hardware watchdog's reset: the same", Options{Memory: 1 * gib, CPUs: 2}, (*Lab).watchdog},
	{"recrash", "panic in the capture boot: the dump is offered again, up to a limit", Options{Memory: 1 * gib, CPUs: 1}, (*Lab).recrash},
	{"corrupt", "every corruption of the registration: plain boot, and why", Options{Memory: 1 * gib, CPUs: 1}, (*Lab).corrupt},
	{"early", "panic before the agent has armed; VMCOREINFO is found by scanning", Options{Memory: 1 * gib, CPUs: 1}, (*Lab).early},
	{"power", "a power cycle: plain boot", Options{Memory: 1 * gib, CPUs: 1}, (*Lab).powerCycle},
	{"broken", "the first boot entry's kernel is missing: the next one boots", Options{Memory: 1 * gib, CPUs: 1}, (*Lab).broken},
	{"full", "the disk is full while saving: nothing is lost", Options{Memory: 1 * gib, CPUs: 1}, (*Lab).diskFull},
	{"lockdown", "kernel lockdown: arm refuses and says why", Options{Memory: 1 * gib, CPUs: 1}, (*Lab).lockdown},
	{"debian", "Debian 12 with systemd and kdump-tools: the units do it all", Options{Memory: 2 * gib, CPUs: 2}, (*Lab).debian},
}

// Find returns the story called name.
func Find(name string) (Story, error) {
	var names []string
	for _, s := range Stories {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return Story{}, fmt.Errorf("no story %q; there are %s", name, strings.Join(names, ", "))
}

// Run runs a story and writes o.Out/report.json. The report is there even if
// the story fails.
func Run(ctx context.Context, s Story, o Options) (*Report, error) {
	l := &Lab{Options: o, ctx: ctx, name: s.Name}
	if l.Memory == 0 {
		l.Memory = s.Default.Memory
	}
	if l.CPUs == 0 {
		l.CPUs = s.Default.CPUs
	}
	if l.Cycles == 0 {
		l.Cycles = max(1, s.Default.Cycles)
	}
	if l.Payload == "" {
		l.Payload = s.Default.Payload
	}
	if l.Trigger == "" {
		l.Trigger = wire.SysrqC
	}
	if err := os.MkdirAll(l.Out, 0o755); err != nil {
		return nil, err
	}
	l.Report = &Report{
		Schema: 1, Story: s.Name, Arch: "amd64", Accel: string(rig.TCG), MemBytes: l.Memory, CPUs: l.CPUs,
		Handover: "vmcore", Firmware: "direct", Boots: []Boot{}, Timeline: []TimelineEvent{},
	}
	err := l.tell(s)
	l.Report.Result = "pass"
	if err != nil {
		l.Report.Result, l.Report.Error = "fail", err.Error()
	}
	return l.Report, errors.Join(err, l.Report.Write(l.Out))
}

func (l *Lab) tell(s Story) (err error) {
	if l.files, err = build(l.ctx, l.Out); err != nil {
		return err
	}
	l.Report.NormalKernel = l.files.kernel.Release + " (" + filepath.Base(l.files.kernel.Deb) + ")"
	defer func() {
		if l.Machine != nil {
			err = errors.Join(err, l.Machine.Close())
		}
	}()
	return s.run(l)
}

// paintMiB is how much user memory a story paints.
const paintMiB = 64

// ready arms, paints and lends in a plain boot. It paints first, because user
// pages go to lent memory as soon as there is some, and that is not dumped.
func (l *Lab) ready(seed uint64) (rig.Painting, error) {
	if _, err := l.run("warmcore", "arm"); err != nil {
		return rig.Painting{}, err
	}
	painting, err := l.Guest.Paint(l.ctx, paintMiB, seed)
	if err != nil {
		return rig.Painting{}, err
	}
	_, err = l.run("warmcore", "lend")
	return painting, err
}

// saved is a dump on the disk and what it is to be compared with.
type saved struct {
	dir      string
	truth    *rig.Truth
	painting rig.Painting
	block    *registration.Block
}

// save saves the dump in a capture boot.
func (l *Lab) save(dir string, truth *rig.Truth, painting rig.Painting) (saved, error) {
	b, err := l.block()
	if err != nil {
		return saved{}, l.Machine.Fail("registration", err)
	}
	if _, err := l.run("warmcore", "save", dir); err != nil {
		return saved{}, err
	}
	l.Report.Copy = &Copy{Bytes: b.Capture.CopyBytes, Seconds: round(float64(b.Capture.CopyNanos) / 1e9)}
	l.Report.Crash = &Crash{
		Trigger: l.Trigger, Reason: b.Capture.Reason.String(),
		CPUsWithRegisters: int(b.Capture.CPUsWithRegisters), CPUsFlushed: int(b.Capture.CPUsFlushed),
	}
	return saved{dir: dir, truth: truth, painting: painting, block: b}, nil
}

// crash is the usual story: Cycles crashes on one running machine, each
// dumped, with all of the memory back after each.
func (l *Lab) crash() error {
	if err := l.start(); err != nil {
		return err
	}
	if err := l.want(wire.Plain); err != nil {
		return err
	}
	painting, err := l.ready(1)
	if err != nil {
		return err
	}
	plain, err := l.memTotal()
	if err != nil {
		return err
	}
	l.say("memory lent: MemTotal %s", phys.FormatSize(plain*phys.KiB))
	l.Report.Memory = &Memory{InstalledKiB: l.Memory / phys.KiB, PlainKiB: plain}
	var dumps []saved
	for cycle := range l.Cycles {
		if err := l.writePlan(); err != nil {
			return err
		}
		if err := l.trigger(l.Trigger); err != nil {
			return err
		}
		truth, err := l.reset()
		if err != nil {
			return err
		}
		defer truth.Close()
		if err := l.waitGuest(); err != nil {
			return err
		}
		if err := l.want(wire.Capture); err != nil {
			return err
		}
		l.Report.Memory.CaptureKiB = l.Guest.MemTotalKiB
		d, err := l.save(fmt.Sprintf("/var/crash/dump%d", cycle), truth, painting)
		if err != nil {
			return err
		}
		if l.Trigger == wire.SysrqC && (d.block.Capture.Reason != registration.ReasonPanic || d.block.Capture.CPUsWithRegisters != uint32(l.CPUs) || d.block.Capture.CPUsFlushed != uint32(l.CPUs)) {
			return l.Machine.Fail("capture", fmt.Errorf("reason %v, registers of %d CPUs, %d caches flushed; want panic, %d, %d",
				d.block.Capture.Reason, d.block.Capture.CPUsWithRegisters, d.block.Capture.CPUsFlushed, l.CPUs, l.CPUs))
		}
		dumps = append(dumps, d)
		if painting, err = l.Guest.Paint(l.ctx, paintMiB, uint64(cycle)+2); err != nil {
			return err
		}
		for _, verb := range []string{"release", "arm"} {
			if _, err := l.run("warmcore", verb); err != nil {
				return err
			}
		}
		released, err := l.memTotal()
		if err != nil {
			return err
		}
		l.say("memory back: MemTotal %s of %s", phys.FormatSize(released*phys.KiB), phys.FormatSize(l.Memory))
		if first := l.Report.Memory.ReleasedKiB; first != 0 && diff(first, released) > first/200 {
			return l.Machine.Fail("release", fmt.Errorf("MemTotal %d KiB after crash %d, %d KiB after the first", released, cycle+1, first))
		}
		l.Report.Memory.ReleasedKiB = released
		if err := l.enough(plain, released); err != nil {
			return err
		}
	}
	if err := l.powerOff(); err != nil {
		return err
	}
	return l.judge(dumps, l.name == "crash" || l.name == "stock")
}

func diff(a, b uint64) uint64 { return max(a, b) - min(a, b) }

// enough compares MemTotal after the release with what the machine has: 96 %
// of 2 GiB with our payload kernel, 83 % with Debian's, whose place can't be
// lent; and 99 % of a plain boot's on every machine.
func (l *Lab) enough(plain, released uint64) error {
	installed := l.Memory / phys.KiB
	percent := uint64(0)
	switch {
	case l.Payload == "stock":
		percent = 83
	case l.Memory >= 2*gib:
		percent = 96
	}
	if released*100 < installed*percent || released*100 < plain*99 {
		return l.Machine.Fail("release", fmt.Errorf("MemTotal %d KiB after the release; want %d %% of the %d KiB installed and 99 %% of the %d KiB of the plain boot",
			released, percent, installed, plain))
	}
	return nil
}

func (l *Lab) big() error {
	l.pad = 150e6
	return l.crash()
}

func (l *Lab) clean() error {
	if err := l.start(); err != nil {
		return err
	}
	if _, err := l.ready(1); err != nil {
		return err
	}
	// What the unit does at a clean shutdown.
	if _, err := l.run("warmcore", "disarm"); err != nil {
		return err
	}
	if err := l.trigger(wire.Reboot); err != nil {
		return err
	}
	truth, err := l.reset()
	if err != nil {
		return err
	}
	truth.Close()
	if err := l.waitGuest(); err != nil {
		return err
	}
	return errors.Join(l.want(wire.Plain), l.wantLog("clean shutdown: disarmed"),
		l.refused(4, "nothing to save", "warmcore", "save"))
}

func (l *Lab) resetFromOutside() error {
	l.Trigger = "system_reset"
	return l.withoutRegisters(func() (*rig.Truth, error) {
		l.say("trigger: reset from outside")
		if err := l.Machine.Pause(l.ctx); err != nil {
			return nil, err
		}
		return l.resetPaused()
	})
}

func (l *Lab) watchdog() error {
	l.Trigger = wire.Watchdog
	return l.withoutRegisters(func() (*rig.Truth, error) {
		if err := l.trigger(wire.Watchdog); err != nil {
			return nil, err
		}
		return l.reset()
	})
}

// withoutRegisters is a reset of an armed machine with no panic.
func (l *Lab) withoutRegisters(end func() (*rig.Truth, error)) error {
	if err := l.start(); err != nil {
		return err
	}
	painting, err := l.ready(1)
	if err != nil {
		return err
	}
	truth, err := end()
	if err != nil {
		return err
	}
	defer truth.Close()
	if err := l.waitGuest(); err != nil {
		return err
	}
	if err := l.want(wire.Capture); err != nil {
		return err
	}
	d, err := l.save("/var/crash/dump0", truth, painting)
	if err != nil {
		return err
	}
	if c := d.block.Capture; c.Reason != registration.ReasonReset || c.CPUsWithRegisters != 0 {
		return l.Machine.Fail("capture", fmt.Errorf("reason %v, registers of %d CPUs; want reset and none", c.Reason, c.CPUsWithRegisters))
	}
	if err := l.powerOff(); err != nil {
		return err
	}
	return l.judge([]saved{d}, true)
}

// recrash panics in the capture boot before the dump is saved, once, and
// saves it the second time; then it does so until the payload gives up.
func (l *Lab) recrash() error {
	if err := l.start(); err != nil {
		return err
	}
	painting, err := l.ready(1)
	if err != nil {
		return err
	}
	crash := func() (*rig.Truth, error) {
		if err := l.trigger(wire.SysrqC); err != nil {
			return nil, err
		}
		truth, err := l.reset()
		if err != nil {
			return nil, err
		}
		return truth, l.waitGuest()
	}
	first, err := crash()
	if err != nil {
		return err
	}
	defer first.Close()
	if err := errors.Join(l.want(wire.Capture), l.wantLog("boot memory copied")); err != nil {
		return err
	}
	second, err := crash()
	if err != nil {
		return err
	}
	second.Close()
	if err := errors.Join(l.want(wire.Capture), l.wantLog("the dump was not saved in capture boot 1")); err != nil {
		return err
	}
	if log, _ := l.payloadLog(); strings.Contains(log, "boot memory copied") {
		return l.Machine.Fail("second offer", fmt.Errorf("boot memory was copied again:\n%s", log))
	}
	d, err := l.save("/var/crash/dump0", first, painting)
	if err != nil {
		return err
	}
	for _, verb := range []string{"release", "arm"} {
		if _, err := l.run("warmcore", verb); err != nil {
			return err
		}
	}
	// Now a dump that nobody ever saves.
	for range 3 {
		t, err := crash()
		if err != nil {
			return err
		}
		t.Close()
		if err := l.want(wire.Capture); err != nil {
			return err
		}
	}
	t, err := crash()
	if err != nil {
		return err
	}
	t.Close()
	if err := errors.Join(l.want(wire.Plain), l.wantLog("gave the dump up after 3 capture boots")); err != nil {
		return err
	}
	if _, err := l.run("warmcore", "arm"); err != nil {
		return err
	}
	if err := l.powerOff(); err != nil {
		return err
	}
	return l.judge([]saved{d}, false)
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
	l.say("reset: memory kept")
	// Nobody has the disk open now: the next boot gets an init.
	if err := l.rewriteGRUB("rdinit=/missing", "rdinit=/init"); err != nil {
		return err
	}
	truth, err := l.resetPaused()
	if err != nil {
		return err
	}
	defer truth.Close()
	if err := l.waitGuest(); err != nil {
		return err
	}
	if err := errors.Join(l.want(wire.Capture), l.wantLog("VMCOREINFO found by scanning")); err != nil {
		return err
	}
	d, err := l.save("/var/crash/dump0", truth, rig.Painting{})
	if err != nil {
		return err
	}
	if c := d.block.Capture; c.Reason != registration.ReasonEarly || c.CPUsWithRegisters != 0 {
		return l.Machine.Fail("capture", fmt.Errorf("reason %v, registers of %d CPUs; want early and none", c.Reason, c.CPUsWithRegisters))
	}
	if err := l.powerOff(); err != nil {
		return err
	}
	return l.judge([]saved{d}, true)
}

func (l *Lab) powerCycle() error {
	if err := l.start(); err != nil {
		return err
	}
	if _, err := l.ready(1); err != nil {
		return err
	}
	l.say("trigger: power cycle")
	if err := l.Machine.PowerCycle(l.ctx); err != nil {
		return err
	}
	if err := l.waitGuest(); err != nil {
		return err
	}
	return errors.Join(l.want(wire.Plain), l.wantLog("no registration: load registration: empty"))
}

// broken has a first entry whose kernel is missing.
func (l *Lab) broken() error {
	l.breakDisk = func(d *rig.Disk) {
		good, err := rig.GRUBConfig(d.Release, d.Params)
		if err != nil {
			return
		}
		first := strings.Replace(string(good), "/boot/vmlinuz-"+d.Release, "/boot/vmlinuz-removed", 1)
		d.Files = map[string][]byte{rig.GRUBConfigPath: []byte(first)}
	}
	if err := l.start(); err != nil {
		return err
	}
	return errors.Join(l.want(wire.Plain), l.wantLog("vmlinuz-removed"))
}

// diskFull saves to a disk that is too small, then elsewhere.
func (l *Lab) diskFull() error {
	l.size = 256 << 20
	if err := l.start(); err != nil {
		return err
	}
	if _, err := l.ready(1); err != nil {
		return err
	}
	if err := l.trigger(wire.SysrqC); err != nil {
		return err
	}
	truth, err := l.reset()
	if err != nil {
		return err
	}
	truth.Close()
	if err := l.waitGuest(); err != nil {
		return err
	}
	if err := l.want(wire.Capture); err != nil {
		return err
	}
	if err := l.refused(1, "no space left", "warmcore", "save"); err != nil {
		return err
	}
	if err := l.refused(3, "not saved", "warmcore", "release"); err != nil {
		return err
	}
	b, err := l.block()
	if err != nil || b.State != registration.Capturing {
		return l.Machine.Fail("registration", fmt.Errorf("state %v, %v; want capturing", b.State, err))
	}
	if _, err := l.run("warmcore", "release", "--discard"); err != nil {
		return err
	}
	_, err = l.run("warmcore", "arm")
	return err
}

func (l *Lab) lockdown() error {
	l.params = "lockdown=integrity"
	if err := l.start(); err != nil {
		return err
	}
	return l.refused(3, "lockdown", "warmcore", "arm")
}

// writePlan writes plan.txt beside the report, from the registration.
func (l *Lab) writePlan() error {
	b, err := l.block()
	if err != nil {
		return l.Machine.Fail("registration", err)
	}
	ranges := slices.SortedFunc(slices.Values(b.Plan), func(a, b registration.PlanRange) int {
		return cmp.Compare(a.Range.Start, b.Range.Start)
	})
	var out strings.Builder
	for _, r := range ranges {
		fmt.Fprintf(&out, "%012x-%012x  %-11v  %s\n", r.Range.Start, r.Range.End-1, r.Role, phys.FormatSize(r.Range.Size()))
	}
	return os.WriteFile(filepath.Join(l.Out, "plan.txt"), []byte(out.String()), 0o644)
}
