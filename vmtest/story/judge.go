package story

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/vmtest/rig"
)

// judge takes the dumps from the disk of a machine that is off and compares
// each with the truth; tools lets crash(8) and makedumpfile judge the last.
func (l *Lab) judge(dumps []saved, tools bool) error {
	l.Report.Oracle = &Oracle{}
	for i, d := range dumps {
		if err := l.compare(d); err != nil {
			return fmt.Errorf("dump %d: %w", i, err)
		}
	}
	if !tools {
		return nil
	}
	return l.tools(dumps[len(dumps)-1])
}

// dumpFiles are what save writes; vmcore is first, since it is the largest.
var dumpFiles = []string{"vmcore", "vmcore-dmesg.txt", "manifest.json"}

func (l *Lab) compare(d saved) error {
	for _, name := range dumpFiles {
		if err := l.disk.Extract(l.ctx, path.Join(d.dir, name), filepath.Join(l.Out, name)); err != nil {
			return err
		}
	}
	f, err := os.Open(filepath.Join(l.Out, "vmcore"))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	dump, err := rig.OpenDump(f)
	if err != nil {
		return err
	}
	// What a dump must not hold: the first MiB, W, H, D, and what the loader
	// overwrites. All other RAM it must hold.
	excluded := phys.NewSet(phys.Range{Start: 0, End: phys.MiB}, firmwareTop(l.Memory))
	for _, r := range d.block.Plan {
		switch r.Role {
		case registration.RoleWindow, registration.RoleHandoff, registration.RoleDestination, registration.RoleLost:
			excluded = excluded.Union(phys.Set{r.Range})
		}
	}
	c, err := d.truth.Compare(l.ctx, dump, excluded)
	if err != nil {
		return err
	}
	l.say("dump compared with QEMU's memory at the reset: %v", c)
	if !c.OK() {
		return l.Machine.Fail("compare with the truth", fmt.Errorf("%v", c))
	}
	o := l.Report.Oracle
	o.Preserved += c.Compared
	o.Wrong += c.Wrong
	o.Missing += c.Missing
	if len(d.painting.Runs) > 0 {
		p, err := d.painting.Compare(l.ctx, dump, dump.Memory(), excluded)
		if err != nil {
			return err
		}
		l.say("painted pages in the dump: %v", p)
		if !p.OK() {
			return l.Machine.Fail("compare painted pages", fmt.Errorf("%v", p))
		}
		o.Painted += p.Compared
		o.Wrong += p.Wrong
		o.Missing += p.Missing
	}
	l.Report.Dump = &Dump{Path: "vmcore", Format: "elf", Bytes: info.Size(), Pages: dump.Memory().Size() / phys.PageSize}
	if l.Keep {
		return d.truth.Keep(l.ctx, filepath.Join(l.Out, "ram"))
	}
	return nil
}

// lowTop is the end of RAM below 4 GiB on a q35 machine.
func lowTop(memory uint64) uint64 {
	if memory >= 0xb0000000 {
		return 2 * phys.GiB
	}
	return memory
}

// firmwareTop is what SeaBIOS keeps at the top of low RAM for ACPI tables.
func firmwareTop(memory uint64) phys.Range {
	return phys.Range{Start: lowTop(memory) - 256*phys.KiB, End: lowTop(memory)}
}

// seabiosHeap is what SeaBIOS overwrites at each reset although its map says
// RAM: 136 KiB below 16 MiB from the top were measured, as the only pages of
// a dump that differed from the truth.
func seabiosHeap(memory uint64) phys.Range {
	end := lowTop(memory) - 16*phys.MiB
	return phys.Range{Start: end - 256*phys.KiB, End: end}
}

// tools lets programs that people trust read the dump.
func (l *Lab) tools(d saved) error {
	vmcore := filepath.Join(l.Out, "vmcore")
	if out, err := output(l.ctx, "", "makedumpfile", "-f", "-d", "31", "-c", vmcore, filepath.Join(l.Out, "filtered")); err != nil {
		return fmt.Errorf("makedumpfile -d 31: %w\n%s", err, out)
	}
	log := filepath.Join(l.Out, "makedumpfile-dmesg.txt")
	if out, err := output(l.ctx, "", "makedumpfile", "-f", "--dump-dmesg", vmcore, log); err != nil {
		return fmt.Errorf("makedumpfile --dump-dmesg: %w\n%s", err, out)
	}
	theirs, err := os.ReadFile(log)
	if err != nil {
		return err
	}
	ours, err := os.ReadFile(filepath.Join(l.Out, "vmcore-dmesg.txt"))
	if err != nil {
		return err
	}
	for _, want := range []string{"Linux version " + l.files.kernel.Release} {
		if !bytes.Contains(theirs, []byte(want)) || !bytes.Contains(ours, []byte(want)) {
			return fmt.Errorf("the crashed kernel's log has no %q, as %s or as vmcore-dmesg.txt", want, log)
		}
	}
	l.say("makedumpfile -d 31 and --dump-dmesg read the dump")
	if l.name != "crash" {
		return nil
	}
	return l.crashTool(d)
}

// crashTool lets crash(8) read the dump with Debian's debug information.
func (l *Lab) crashTool(saved) error {
	pkg, err := rig.CurrentKernelPackage(l.ctx)
	if err != nil {
		return err
	}
	deb, err := rig.Download(l.ctx, l.files.cache, pkg+"-dbg")
	if err != nil {
		return err
	}
	vmlinux, err := rig.DebugVmlinux(l.ctx, l.files.cache, deb, l.files.kernel.Release)
	if err != nil {
		return err
	}
	out, err := output(l.ctx, "sys\nbt -a\nlog\nquit\n", "crash", "-s", vmlinux, filepath.Join(l.Out, "vmcore"))
	if err := os.WriteFile(filepath.Join(l.Out, "crash.txt"), out, 0o644); err != nil {
		return err
	}
	if err != nil {
		return fmt.Errorf("crash(8): %w\n%s", err, out)
	}
	want := []string{"PANIC: \"Kernel panic - not syncing: sysrq triggered crash\"", "sysrq_handle_crash", "RIP:", "COMMAND: \"init\""}
	for cpu := range l.CPUs {
		want = append(want, fmt.Sprintf("CPU: %d ", cpu))
	}
	for _, w := range want {
		if !strings.Contains(string(out), w) {
			return fmt.Errorf("crash(8) printed no %q; see %s", w, filepath.Join(l.Out, "crash.txt"))
		}
	}
	l.say("crash(8) shows the panic task and the registers of %d CPUs", l.CPUs)
	return nil
}

func output(ctx context.Context, stdin, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	return cmd.CombinedOutput()
}
