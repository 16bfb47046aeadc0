package story

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
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
	{"tiny", "a machine too small for a plan: it boots, and says why it has no dumps", Options{Memory: 600 * mib, CPUs: 1}, (*Lab).tiny},
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
	l.say("building the guest's programs; Debian's kernel comes from the archive or the cache")
	if l.files, err = build(l.ctx, l.Options); err != nil {
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
