package story

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
	"github.com/warmcore/warmcore/vmtest/machine"
	"github.com/warmcore/warmcore/vmtest/truth"
)

// paintMiB is how much user memory a story paints.
const paintMiB = 64

// ready arms, paints and lends in a plain boot. It paints first, because user
// pages go to lent memory as soon as there is some, and that is not dumped.
func (l *Lab) ready(seed uint64) (truth.Painting, error) {
	if err := l.Warmcore("arm"); err != nil {
		return truth.Painting{}, err
	}
	painting, err := l.Guest.Paint(l.ctx, paintMiB, seed)
	if err != nil {
		return truth.Painting{}, err
	}
	return painting, l.lend()
}

// lend brings window and destination online, or checks that the agent says
// why it can't.
func (l *Lab) lend() error {
	if !l.files.takesMemory {
		return l.refused(3, cannotTake, "warmcore", "lend")
	}
	return l.Warmcore("lend")
}

// cannotTake is the agent's message on a kernel without ZONE_DEVICE.
const cannotTake = "can't take memory that was hidden from it"

// saved is a dump on the disk and what it is to be compared with.
type saved struct {
	dir      string
	whole    string // directory of an ELF dump of all pages, if dir's is filtered
	ram      *truth.RAM
	painting truth.Painting
	block    *registration.Block
	// then is the registration of the boot that crashed, if that boot had
	// another plan: memory of that plan that the dump lacks must be named as
	// lost.
	then *registration.Block
	// written is what a device wrote to after the reset.
	written phys.Set
}

// save saves the dump in a capture boot.
func (l *Lab) save(dir string, ram *truth.RAM, painting truth.Painting) (saved, error) {
	b, err := l.Registration()
	if err != nil {
		return saved{}, l.Machine.Fail("registration", err)
	}
	whole := ""
	if l.story.SaveTwice {
		// Saved as users do it, and with all pages, to compare the two.
		if _, err := l.Command("warmcore", "save", dir); err != nil {
			return saved{}, err
		}
		if _, err := l.Command("warmcore", "inspect", "--verify", path.Join(dir, manifest.DumpName)); err != nil {
			return saved{}, err
		}
		whole = dir + "-whole"
	}
	all := []string{"warmcore", "save", "--format", "elf", "--dump-level", "0", cmp.Or(whole, dir)}
	if l.story.Dax && l.board.dax {
		if err := l.saveByDax(append(all, "--read", "dax", "--json")...); err != nil {
			return saved{}, err
		}
	} else if _, err := l.Command(all...); err != nil {
		return saved{}, err
	}
	l.Report.Copy = &Copy{Bytes: b.Capture.CopyBytes, Seconds: round(float64(b.Capture.CopyNanos) / 1e9)}
	l.Report.Crash = &Crash{
		Trigger: l.Trigger, Reason: b.Capture.Reason.String(),
		CPUsWithRegisters: int(b.Capture.CPUsWithRegisters), CPUsFlushed: int(b.Capture.CPUsFlushed),
	}
	return saved{dir: dir, whole: whole, ram: ram, painting: painting, block: b}, nil
}

// saveByDax saves a dump that must all come from dax devices.
func (l *Lab) saveByDax(argv ...string) error {
	out, err := l.Guest.MustRun(l.ctx, argv...)
	if err != nil {
		return l.Machine.Fail(strings.Join(argv, " "), err)
	}
	var m manifest.Manifest
	if err := json.Unmarshal([]byte(out), &m); err != nil {
		return l.Machine.Fail(strings.Join(argv, " "), fmt.Errorf("%w in %q", err, out))
	}
	if m.DaxBytes < m.Dump.Memory || len(m.Warnings) > 0 {
		return l.Machine.Fail(strings.Join(argv, " "), fmt.Errorf("%d of %d bytes from dax devices, warnings %q", m.DaxBytes, m.Dump.Memory, m.Warnings))
	}
	l.Step("save --read dax: %s", m.Summary())
	return nil
}

// CrashNow ends the guest in the manner of kind and waits for the boot that
// follows, which must be of the kind want. It returns the truth at the reset,
// which ends with the machine.
func (l *Lab) CrashNow(trigger wire.Trigger, want string) (*truth.RAM, error) {
	if err := l.triggerOn(trigger); err != nil {
		return nil, err
	}
	ram, err := l.reset()
	if err != nil {
		return nil, err
	}
	if err := l.waitGuest(); err != nil {
		return nil, err
	}
	return ram, l.want(want)
}

// begin starts the machine, paints, and reports how much memory its kernel has,
// with us and without.
func (l *Lab) begin() (truth.Painting, error) {
	alone, err := l.memTotalAlone()
	if err != nil {
		return truth.Painting{}, err
	}
	if err := l.Start(); err != nil {
		return truth.Painting{}, err
	}
	if err := l.want(wire.Plain); err != nil {
		return truth.Painting{}, err
	}
	painting, err := l.ready(1)
	if err != nil {
		return truth.Painting{}, err
	}
	plain, err := l.memTotal()
	if err != nil {
		return truth.Painting{}, err
	}
	l.Step("memory lent: MemTotal %s", phys.FormatSize(plain*phys.KiB))
	l.Report.Memory = &Memory{InstalledKiB: l.Memory / phys.KiB, AloneKiB: alone, PlainKiB: plain}
	return painting, nil
}

// crash is the usual story: Cycles crashes on one running machine, each
// dumped, with all of the memory back after each. The first is on CPU 0, from
// where the stub flushes every CPU's caches; a second one is on another CPU,
// from where it must leave CPU 0 alone.
func (l *Lab) crash() error {
	painting, err := l.begin()
	if err != nil {
		return err
	}
	var dumps []saved
	for cycle := range l.Cycles {
		if err := l.armed(true); err != nil {
			return err
		}
		cpu := cycle % l.CPUs
		ram, err := l.CrashNow(wire.Trigger{Kind: l.Trigger, CPU: cpu}, wire.Capture)
		if err != nil {
			return err
		}
		if err := l.armed(false); err != nil {
			return err
		}
		l.Report.Memory.CaptureKiB = l.Guest.MemTotalKiB
		d, err := l.save(fmt.Sprintf("/var/crash/dump%d", cycle), ram, painting)
		if err != nil {
			return err
		}
		if err := l.wholePanic(d.block.Capture, cpu); err != nil {
			return err
		}
		dumps = append(dumps, d)
		if !l.files.takesMemory { // and so it can be armed only after a reboot
			if err := l.refused(3, cannotTake, "warmcore", "release"); err != nil {
				return err
			}
			break
		}
		if painting, err = l.Guest.Paint(l.ctx, paintMiB, uint64(cycle)+2); err != nil {
			return err
		}
		if err := l.Warmcore("release", "arm"); err != nil {
			return err
		}
		if err := l.memoryBack(); err != nil {
			return err
		}
	}
	if err := l.PowerOff(); err != nil {
		return err
	}
	return l.judge(dumps)
}

// wholePanic checks what was recorded of a panic on cpu.
func (l *Lab) wholePanic(c registration.Capture, cpu int) error {
	if l.Trigger != wire.SysrqC {
		return nil
	}
	flushed := uint32(l.board.flushed(l.CPUs, cpu))
	if c.Reason != registration.ReasonPanic || c.CPUsWithRegisters != uint32(l.CPUs) || c.CPUsFlushed != flushed {
		return l.Machine.Fail("capture", fmt.Errorf("reason %v, registers of %d CPUs, %d caches flushed; want panic, %d, %d",
			c.Reason, c.CPUsWithRegisters, c.CPUsFlushed, l.CPUs, flushed))
	}
	return nil
}

// armed checks what `warmcore status` says.
func (l *Lab) armed(want bool) error {
	out, err := l.Guest.MustRun(l.ctx, "warmcore", "status", "--json")
	if err != nil {
		return err
	}
	var status struct {
		Armed, Dump bool
		Why         string
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return l.Machine.Fail("warmcore status --json", fmt.Errorf("%w in %q", err, out))
	}
	if status.Armed != want || status.Dump == want {
		return l.Machine.Fail("warmcore status --json", fmt.Errorf("armed %v, dump %v (%s); want %v, %v", status.Armed, status.Dump, status.Why, want, !want))
	}
	return nil
}

// memoryBack compares MemTotal after a release with the plain boot's, and
// with that after the first release.
func (l *Lab) memoryBack() error {
	released, err := l.memTotal()
	if err != nil {
		return err
	}
	l.Step("memory back: MemTotal %s of %s", phys.FormatSize(released*phys.KiB), phys.FormatSize(l.Memory))
	if first := l.Report.Memory.ReleasedKiB; first != 0 && diff(first, released) > first/200 {
		return l.Machine.Fail("release", fmt.Errorf("MemTotal %d KiB, and %d KiB after the release before", released, first))
	}
	l.Report.Memory.ReleasedKiB = released
	return l.enough()
}

func diff(a, b uint64) uint64 { return max(a, b) - min(a, b) }

// enough compares MemTotal after the release with that of the same kernel
// without us, but for what U-Boot keeps, and with that of the plain boot.
func (l *Lab) enough() error {
	alone, plain, released := l.Report.Memory.AloneKiB, l.Report.Memory.PlainKiB, l.Report.Memory.ReleasedKiB
	if alone == 0 || plain == 0 {
		return l.Machine.Fail("release", errors.New("MemTotal without us, or before the crash, was not measured"))
	}
	if l.Firmware == "uboot" {
		alone -= ubootLost(phys.GiB+l.Memory).Size() / phys.KiB
	}
	percent := uint64(ownPercent)
	if l.Payload == "stock" {
		percent = l.board.stockPercent
	}
	if released*100 < alone*percent || released*100 < plain*99 {
		return l.Machine.Fail("release", fmt.Errorf("MemTotal %d KiB after the release; want %d %% of the %d KiB that this kernel has without us, and 99 %% of the %d KiB of the plain boot",
			released, percent, alone, plain))
	}
	l.Step("that is %.1f %% of what the same kernel has without us", 100*float64(released)/float64(alone))
	return nil
}

// ownPercent is the share of the memory that a kernel has without warmcore
// that must come back with our payload kernel, on a machine of any size.
const ownPercent = 99

// big is a crash with a large initrd. Where boot memory is at the top, it lies
// above 4 GiB.
func (l *Lab) big() error {
	l.pad = 150e6
	if err := l.crash(); err != nil || l.board != amd64 {
		return err
	}
	return l.initrdAbove(4 * gib)
}

// initrdAbove checks what the payload says of each kernel that it placed.
func (l *Lab) initrdAbove(addr uint64) error {
	placed := 0
	for _, e := range l.Machine.Timeline.Events() {
		_, at, ok := strings.Cut(e.Text, "initrd: ")
		if e.Source != machine.FromConsole || !ok || !strings.Contains(e.Text, "kernel placed") {
			continue
		}
		var start uint64
		if _, err := fmt.Sscanf(at, "%x-", &start); err != nil || start < addr {
			return l.Machine.Fail("kernel placed", fmt.Errorf("%q; want the initrd above %#x", e.Text, addr))
		}
		placed++
	}
	if placed != 1+l.Cycles {
		return l.Machine.Fail("kernel placed", fmt.Errorf("the payload says so %d times, want %d", placed, 1+l.Cycles))
	}
	return nil
}

// writePlan writes plan.txt beside the report, from the registration.
func (l *Lab) writePlan(b *registration.Block) error {
	ranges := slices.SortedFunc(slices.Values(b.Plan), func(a, b registration.PlanRange) int {
		return cmp.Compare(a.Range.Start, b.Range.Start)
	})
	var out strings.Builder
	for _, r := range ranges {
		fmt.Fprintf(&out, "%012x-%012x  %-11v  %s", r.Range.Start, r.Range.End-1, r.Role, phys.FormatSize(r.Range.Size()))
		if r.Role == registration.RoleWindow && r.Range.AlignIn(b.Policy.BlockSize).Empty() {
			out.WriteString(", no whole memory block")
		}
		out.WriteByte('\n')
	}
	return os.WriteFile(filepath.Join(l.Out, "plan.txt"), []byte(out.String()), 0o644)
}
