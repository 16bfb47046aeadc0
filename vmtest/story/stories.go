package story

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
	Arches  []string // those that it is for; all if empty
}

// on says whether the story is for the architecture called arch.
func (s Story) on(arch string) bool { return len(s.Arches) == 0 || slices.Contains(s.Arches, arch) }

const (
	mib = phys.MiB
	gib = phys.GiB
)

// Stories lists all of them.
var Stories = []Story{
	{"crash", "panic on 2 CPUs; crash(8) and makedumpfile read the dump", Options{Memory: 2 * gib, CPUs: 2}, (*Lab).crash, nil},
	{"stock", "the same with Debian's kernel as payload", Options{Memory: 2 * gib, CPUs: 2, Payload: "stock"}, (*Lab).crash, nil},
	{"uboot", "the same, started by U-Boot from a FIT image", Options{Memory: 2 * gib, CPUs: 2, Firmware: "uboot"}, (*Lab).crash, []string{"arm64"}},
	{"el2", "the same at EL2, where a hypervisor would be", Options{Memory: 1 * gib, CPUs: 2, Hypervisor: true}, (*Lab).crash, []string{"arm64"}},
	{"small", "1 GiB, 1 CPU; on amd64 the dump is read from dax devices", Options{Memory: 1 * gib, CPUs: 1}, (*Lab).crash, nil},
	{"big", "6 GiB with RAM above 4 GiB, 4 CPUs, an initrd of 150 MB", Options{Memory: 6 * gib, CPUs: 4}, (*Lab).big, nil},
	{"again", "three crashes in a row on one machine", Options{Memory: 1 * gib, CPUs: 2, Cycles: 3}, (*Lab).crash, nil},
	{"clean", "a clean reboot makes no dump", Options{Memory: 1 * gib, CPUs: 2}, (*Lab).clean, nil},
	{"reset", "reset from outside while armed: a dump without registers", Options{Memory: 1 * gib, CPUs: 2}, (*Lab).resetFromOutside, nil},
	{"watchdog", "a hardware watchdog's reset: the same", Options{Memory: 1 * gib, CPUs: 2}, (*Lab).watchdog, nil},
	{"recrash", "panic in the capture boot: the dump is offered again, up to a limit", Options{Memory: 1 * gib, CPUs: 1}, (*Lab).recrash, nil},
	{"corrupt", "every corruption of the registration: plain boot, and why", Options{Memory: 1 * gib, CPUs: 1}, (*Lab).corrupt, nil},
	{"early", "panic before the agent has armed; VMCOREINFO is found by scanning", Options{Memory: 1 * gib, CPUs: 1}, (*Lab).early, nil},
	{"power", "a power cycle: plain boot", Options{Memory: 1 * gib, CPUs: 1}, (*Lab).powerCycle, nil},
	{"broken", "the first boot entry's kernel is missing: the next one boots", Options{Memory: 1 * gib, CPUs: 1}, (*Lab).broken, nil},
	{"full", "the disk is full while saving: nothing is lost", Options{Memory: 1 * gib, CPUs: 1}, (*Lab).diskFull, nil},
	{"tiny", "a machine too small for a plan: it boots, and says why it has no dumps", Options{Memory: 600 * mib, CPUs: 1}, (*Lab).tiny, nil},
	{"lockdown", "kernel lockdown: arm refuses and says why", Options{Memory: 1 * gib, CPUs: 1}, (*Lab).lockdown, nil},
	{"debian", "Debian 12 with systemd and kdump-tools: the units do it all", Options{Memory: 2 * gib, CPUs: 2}, (*Lab).debian, []string{"amd64"}},
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
	if err := Check(s, o); err != nil {
		return nil, err
	}
	board, err := boardNamed(o.Arch)
	if err != nil {
		return nil, err
	}
	l := &Lab{Options: o, ctx: ctx, name: s.Name, board: board}
	if l.Memory == 0 {
		l.Memory = s.Default.Memory
	}
	if l.CPUs == 0 {
		l.CPUs = s.Default.CPUs
	}
	if l.Cycles == 0 {
		l.Cycles = max(1, s.Default.Cycles)
	}
	l.Payload = or(l.Payload, s.Default.Payload)
	l.Trigger = or(l.Trigger, wire.SysrqC)
	l.Firmware = or(l.Firmware, or(s.Default.Firmware, board.firmwares[0]))
	l.Hypervisor = l.Hypervisor || s.Default.Hypervisor
	l.PayloadDir = or(l.PayloadDir, filepath.Join("build", board.Name, "payload"))
	if err := os.MkdirAll(l.Out, 0o755); err != nil {
		return nil, err
	}
	l.Report = &Report{
		Schema: 1, Story: s.Name, Arch: board.Name, Accel: string(rig.TCG), MemBytes: l.Memory, CPUs: l.CPUs,
		Handover: "vmcore", Firmware: l.Firmware, Boots: []Boot{}, Timeline: []TimelineEvent{},
	}
	err = l.tell(s)
	l.Report.Result = "pass"
	if err != nil {
		l.Report.Result, l.Report.Error = "fail", err.Error()
	}
	return l.Report, errors.Join(err, l.Report.Write(l.Out))
}

func (l *Lab) tell(s Story) (err error) {
	l.say("building the guest's programs; Debian's kernel comes from the archive or the cache")
	if l.files, err = build(l.ctx, l.board.Arch, l.Options); err != nil {
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
