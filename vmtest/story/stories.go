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
	"github.com/warmcore/warmcore/vmtest/machine"
)

// Story is one test of the laboratory: one way in which a machine crashes,
// or doesn't.
type Story struct {
	Name    string
	Tells   string // in one line
	Default Options
	Arches  []string // those that it runs on; all if empty
	Run     func(*Lab) error

	// Long keeps a story that takes more than some minutes out of `make vmtest`;
	// `make vmtest-matrix` tells it.
	Long bool
	// SaveTwice saves a dump as users do, with most pages left out, beside
	// the one of all pages, and compares both.
	SaveTwice bool
	// Dax reads the dump from dax devices where the architecture can.
	Dax bool
	// Tools lets programs that people trust read the last dump's log and, of
	// a dump of all pages, filter it as ours is.
	Tools bool
	// Debuggers lets crash(8) and drgn, with the kernel's debug information,
	// show the panicked task and all CPUs' registers.
	Debuggers bool
}

// on says whether the story is for the architecture called arch.
func (s Story) on(arch string) bool { return len(s.Arches) == 0 || slices.Contains(s.Arches, arch) }

const (
	mib = phys.MiB
	gib = phys.GiB
)

// Stories lists all of them.
var Stories = []Story{
	{
		Name: "crash", Tells: "panic on 2 CPUs; crash(8) and makedumpfile read the dump",
		Default:   Options{Memory: 2 * gib, CPUs: 2},
		Run:       (*Lab).crash,
		SaveTwice: true, Tools: true, Debuggers: true,
	},
	{
		Name: "stock", Tells: "the same with Debian's kernel as payload",
		Default:   Options{Memory: 2 * gib, CPUs: 2, Payload: "stock"},
		Run:       (*Lab).crash,
		SaveTwice: true, Tools: true,
	},
	{
		Name: "uboot", Tells: "the same, started by U-Boot from a FIT image",
		Default: Options{Memory: 2 * gib, CPUs: 2, Firmware: "uboot"},
		Arches:  []string{"arm64"},
		Run:     (*Lab).crash,
		Tools:   true,
	},
	{
		Name: "el2", Tells: "the same at EL2, where a hypervisor would be",
		Default: Options{Memory: 1 * gib, CPUs: 2, Hypervisor: true},
		Arches:  []string{"arm64"},
		Run:     (*Lab).crash,
	},
	{
		Name: "small", Tells: "1 GiB, 1 CPU; on amd64 the dump is read from dax devices",
		Default: Options{Memory: 1 * gib, CPUs: 1},
		Run:     (*Lab).crash,
		Dax:     true,
	},
	{
		Name: "big", Tells: "6 GiB with RAM above 4 GiB, 4 CPUs, an initrd of 150 MB",
		Default: Options{Memory: 6 * gib, CPUs: 4},
		Run:     (*Lab).big,
	},
	{
		Name: "again", Tells: "three crashes in a row on one machine",
		Default: Options{Memory: 1 * gib, CPUs: 2, Cycles: 3},
		Run:     (*Lab).crash,
	},
	{
		Name: "clean", Tells: "a clean reboot makes no dump",
		Default: Options{Memory: 1 * gib, CPUs: 2},
		Run:     (*Lab).clean,
	},
	{
		Name: "reset", Tells: "reset from outside while armed: a dump without registers",
		Default: Options{Memory: 1 * gib, CPUs: 2},
		Run:     (*Lab).resetFromOutside,
		Tools:   true,
	},
	{
		Name: "watchdog", Tells: "a hardware watchdog's reset: the same",
		Default: Options{Memory: 1 * gib, CPUs: 2},
		Run:     (*Lab).watchdog,
		Tools:   true,
	},
	{
		Name: "recrash", Tells: "panic in the capture boot: the dump is offered again, up to a limit",
		Default: Options{Memory: 1 * gib, CPUs: 1},
		Run:     (*Lab).recrash,
	},
	{
		Name: "update", Tells: "the payload is updated between panic and reset, and goes back while the dump is offered",
		Default: Options{Memory: 2 * gib, CPUs: 2},
		Arches:  []string{"amd64"},
		Run:     (*Lab).update,
	},
	{
		Name: "corrupt", Tells: "every corruption of the registration: plain boot, and why",
		Default: Options{Memory: 1 * gib, CPUs: 1},
		Run:     (*Lab).corrupt,
	},
	{
		Name: "early", Tells: "panic before the agent has armed; VMCOREINFO is found by scanning",
		Default: Options{Memory: 1 * gib, CPUs: 1},
		Run:     (*Lab).early,
		Tools:   true,
	},
	{
		Name: "power", Tells: "a power cycle: plain boot",
		Default: Options{Memory: 1 * gib, CPUs: 1},
		Run:     (*Lab).powerCycle,
	},
	{
		Name: "broken", Tells: "the first boot entry's kernel is missing: the next one boots",
		Default: Options{Memory: 1 * gib, CPUs: 1},
		Run:     (*Lab).broken,
	},
	{
		Name: "full", Tells: "the disk is full while saving: nothing is lost",
		Default: Options{Memory: 1 * gib, CPUs: 1},
		Run:     (*Lab).diskFull,
	},
	{
		Name: "tiny", Tells: "a machine too small for a plan: it boots, and says why it has no dumps",
		Default: Options{Memory: 600 * mib, CPUs: 1},
		Run:     (*Lab).tiny,
	},
	{
		Name: "lockdown", Tells: "kernel lockdown: arm refuses and says why",
		Default: Options{Memory: 1 * gib, CPUs: 1},
		Run:     (*Lab).lockdown,
	},
	{
		Name: "hugepages", Tells: "more huge pages than boot memory: saved without them, then as many as before",
		Default: Options{Memory: 2 * gib, CPUs: 2},
		Run:     (*Lab).hugePages,
	},
	{
		Name: "numa", Tells: "two NUMA nodes: each has its memory back",
		Default: Options{Memory: 2 * gib, CPUs: 2},
		Arches:  []string{"amd64"},
		Run:     (*Lab).numa,
	},
	{
		Name: "dma", Tells: "a device goes on writing into memory after the reset: the machine boots, and the dump says so",
		Default: Options{Memory: 2 * gib, CPUs: 2},
		Run:     (*Lab).dma,
	},
	{
		Name: "debian", Tells: "Debian 12 with systemd and kdump-tools: the units do it all",
		Default: Options{Memory: 2 * gib, CPUs: 2},
		Arches:  []string{"amd64"},
		Run:     (*Lab).debian,
		Tools:   true,
	},
	{
		Name: "kdump", Tells: "Debian 12, arm refuses: the next boot is left to kdump-tools, which dumps",
		Default: Options{Memory: 2 * gib, CPUs: 2},
		Arches:  []string{"amd64"},
		Run:     (*Lab).kdump,
		Long:    true,
	},
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
	l := &Lab{Options: o, ctx: ctx, story: s, board: board}
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
		Schema: 1, Story: s.Name, Arch: board.Name, Accel: string(machine.TCG), MemBytes: l.Memory, CPUs: l.CPUs,
		Handover: "vmcore", Firmware: l.Firmware, Boots: []Boot{}, Timeline: []TimelineEvent{},
	}
	if board.ProbeKVM(ctx) == nil {
		l.Report.Accel = string(machine.KVM)
	}
	err = l.tell(s)
	l.Report.Result = "pass"
	if err != nil {
		l.Report.Result, l.Report.Error = "fail", err.Error()
	}
	return l.Report, errors.Join(err, l.Report.Write(l.Out))
}

func (l *Lab) tell(s Story) (err error) {
	l.Step("building the guest's programs; Debian's kernel comes from the archive or the cache")
	if l.files, err = openGuest(l.ctx, l.board.debian, l.Options); err != nil {
		return err
	}
	l.Report.NormalKernel = l.files.kernel.Release + " (" + filepath.Base(l.files.kernel.Deb) + ")"
	defer func() {
		if l.Machine != nil {
			err = errors.Join(err, l.Machine.Close())
		}
	}()
	return s.Run(l)
}
