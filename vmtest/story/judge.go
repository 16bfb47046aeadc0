package story

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/convert"
	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/vmtest/truth"
)

// judge takes the dumps from the disk of a machine that is off and compares
// each with the truth. If the story wants it, other programs read the last.
func (l *Lab) judge(dumps []saved) error {
	l.Report.Oracle = &Oracle{}
	for i, d := range dumps {
		if err := l.compare(d); err != nil {
			return fmt.Errorf("dump %d: %w", i, err)
		}
	}
	if !l.story.Tools {
		return nil
	}
	last := dumps[len(dumps)-1]
	if l.Release != "" {
		return l.newestTools(last)
	}
	return l.board.tools(l, last)
}

// dumpFiles are what save writes; vmcore is first, since it is the largest.
var dumpFiles = []string{"vmcore", "vmcore-dmesg.txt", "manifest.json"}

// wholeName is the dump of all pages that a story saves beside the usual one,
// which leaves most of them out.
const wholeName = "vmcore-whole"

// convertedName is an ELF file of a kdump file, for tools that read no other.
const convertedName = "vmcore.elf"

func (l *Lab) compare(d saved) error {
	// If memory was lost, it may be that which the log is read from, and the
	// kernel's page structures: KASLR decides.
	whole := d.then == nil
	for _, name := range dumpFiles {
		if name == manifest.LogName && !whole {
			continue
		}
		if err := l.Extract(path.Join(d.dir, name), filepath.Join(l.Out, name)); err != nil {
			return err
		}
	}
	// A dump must not hold RAM outside the plan, nor parts of the plan other
	// than boot memory and preserved memory. All other RAM it must hold.
	excluded := l.board.undumped(l.Memory)
	excluded = excluded.Union(planned(cmp.Or(d.then, d.block), false)).Union(d.written)
	if d.whole != "" {
		if err := l.Extract(path.Join(d.whole, "vmcore"), filepath.Join(l.Out, wholeName)); err != nil {
			return err
		}
		if _, err := l.compareFile(d, wholeName, excluded); err != nil {
			return err
		}
	}
	var err error
	if l.Report.Dump, err = l.compareFile(d, "vmcore", excluded); err != nil {
		return err
	}
	if whole {
		if err := l.notDumped(d); err != nil {
			return err
		}
	}
	if l.Keep {
		return d.ram.Keep(l.ctx, filepath.Join(l.Out, "ram"))
	}
	return nil
}

// compareFile compares a file with the truth.
func (l *Lab) compareFile(d saved, name string, excluded phys.Set) (*Dump, error) {
	dump, f, err := l.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if d.then != nil {
		lost, err := l.wantLost(d, f, info.Size())
		if err != nil {
			return nil, err
		}
		excluded = excluded.Union(lost)
	}
	compare := d.ram.Compare
	if dump.Format() == "kdump" {
		compare = d.ram.CompareHeld // pages were left out
	}
	c, err := compare(l.ctx, dump, excluded)
	if err != nil {
		return nil, err
	}
	l.Step("%s (%s) compared with QEMU's memory at the reset: %v", name, dump.Format(), c)
	if !c.OK() {
		return nil, l.Machine.Fail("compare with the truth", fmt.Errorf("%v", c))
	}
	o := l.Report.Oracle
	if dump.Format() != "kdump" || d.whole == "" {
		o.Preserved += c.Compared
	}
	o.Wrong += c.Wrong
	o.Missing += c.Missing
	if len(d.painting.Runs) > 0 {
		p, err := d.painting.Compare(l.ctx, dump, dump.Memory(), excluded)
		if err != nil {
			return nil, err
		}
		if dump.Format() == "kdump" {
			// Painted pages are memory of a process: what a dump leaves out.
			l.Step("painted pages left out of the filtered dump: %d, kept: %d", p.Missing, p.Compared)
			if p.Wrong > 0 || p.Missing == 0 {
				return nil, l.Machine.Fail("compare painted pages", fmt.Errorf("%v; want most of them left out", p))
			}
		} else {
			l.Step("painted pages in the dump: %v", p)
			if !p.OK() {
				return nil, l.Machine.Fail("compare painted pages", fmt.Errorf("%v", p))
			}
			o.Painted += p.Compared
			o.Wrong += p.Wrong
			o.Missing += p.Missing
		}
	}
	return &Dump{Path: name, Format: dump.Format(), Bytes: info.Size(), Pages: dump.Memory().Size() / phys.PageSize}, nil
}

// wantLost returns the memory that a dump must name as lost: what the
// crashed boot's plan dumps and the plan of the payload that copied
// doesn't.
func (l *Lab) wantLost(d saved, f *os.File, size int64) (phys.Set, error) {
	dump, err := dumpfile.New(f, size)
	if err != nil {
		return nil, err
	}
	named := dump.Info().Unreadable
	want := planned(d.then, true).Intersect(planned(d.block, false))
	l.Step("%s of the crashed kernel's memory is named as lost: %v", phys.FormatSize(named.Size()), named)
	if len(want) == 0 || !slices.Equal(named, want) {
		return nil, l.Machine.Fail("memory that is named as lost", fmt.Errorf("%v, want %v", named, want))
	}
	return named, nil
}

// planned is the memory of b's plan that is dumped, or that isn't.
func planned(b *registration.Block, dumped bool) phys.Set {
	var s []phys.Range
	for _, r := range b.Plan {
		if (r.Role == registration.RoleBoot || r.Role == registration.RolePreserved) == dumped {
			s = append(s, r.Range)
		}
	}
	return phys.NewSet(s...)
}

// inPlan is the memory of b's plan with one of the roles.
func inPlan(b *registration.Block, roles ...registration.Role) phys.Set {
	var s []phys.Range
	for _, r := range b.Plan {
		if slices.Contains(roles, r.Role) {
			s = append(s, r.Range)
		}
	}
	return phys.NewSet(s...)
}

// manifest reads that of the dump which was taken from the disk last.
func (l *Lab) manifest() (*manifest.Manifest, error) {
	f, err := os.Open(filepath.Join(l.Out, manifest.FileName))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return manifest.Read(f, manifest.FileName)
}

// notDumped checks that the manifest names the memory that had been lent, which
// no dump has, and no other.
func (l *Lab) notDumped(d saved) error {
	m, err := l.manifest()
	if err != nil {
		return err
	}
	var lent phys.Set
	if len(d.painting.Runs) > 0 && l.files.takesMemory { // see ready
		lent = inPlan(d.block, registration.RoleWindow, registration.RoleDestination).AlignIn(d.block.Policy.BlockSize)
	}
	if want := manifest.Extents(lent); !slices.Equal(m.NotDumped, want) {
		return l.Machine.Fail(manifest.FileName, fmt.Errorf("not dumped are %v, want what was lent, %v", m.NotDumped, want))
	}
	return nil
}

// open opens a dump in the story's directory.
func (l *Lab) open(name string) (*truth.Dump, *os.File, error) {
	f, err := os.Open(filepath.Join(l.Out, name))
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	dump, err := truth.OpenDump(f, info.Size())
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return dump, f, nil
}

// elf returns an ELF dump for programs that read no zstd, Debian 12's
// makedumpfile among them: the one of all pages, or one made of the other.
func (l *Lab) elf() (string, error) {
	if whole := filepath.Join(l.Out, wholeName); exists(whole) {
		return whole, nil
	}
	name := filepath.Join(l.Out, "vmcore")
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	src, err := dumpfile.New(f, info.Size())
	if err != nil {
		return "", err
	}
	if src.Info().Format == "elf" {
		return name, nil
	}
	out, err := os.Create(filepath.Join(l.Out, convertedName))
	if err != nil {
		return "", err
	}
	_, err = convert.Convert(l.ctx, src, nil, []io.WriterAt{out}, convert.Options{Format: convert.ELF})
	return out.Name(), errors.Join(err, out.Close())
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// samePages checks that our filtered dump has every page that makedumpfile
// keeps at the same level. Where they differ, classes says what the pages
// were and so which filter is right. Without classes, makedumpfile counts as
// right on kernels that it knows.
func (l *Lab) samePages(theirs string, classes func(phys.Set) (map[string]phys.Set, error)) error {
	ours, f, err := l.open("vmcore")
	if err != nil {
		return err
	}
	defer f.Close()
	if ours.Format() != "kdump" {
		return nil
	}
	them, g, err := l.open(theirs)
	if err != nil {
		return err
	}
	defer g.Close()
	lost := them.Memory().Minus(ours.Memory())
	more := ours.Memory().Minus(them.Memory())
	l.Step("pages in the filtered dump: %d, makedumpfile keeps %d; %d of these are not in ours, %d more are",
		ours.Memory().Size()/phys.PageSize, them.Memory().Size()/phys.PageSize, lost.Size()/phys.PageSize, more.Size()/phys.PageSize)
	if classes != nil {
		return l.judgePages(lost, more, classes)
	}
	// Debian 12's makedumpfile does not know how newer kernels mark free pages,
	// and keeps them.
	if len(lost) > 0 && strings.HasPrefix(l.files.kernel.Release, "6.1.") {
		l.Report.Oracle.Missing += lost.Size() / phys.PageSize
		return l.Machine.Fail("compare with makedumpfile -d 31", fmt.Errorf("the dump lacks %v and others", lost[0]))
	}
	return nil
}

// judgePages asks what the pages were that only one of the two filters keeps.
// A page of the kernel that ours leaves out fails the story.
func (l *Lab) judgePages(lost, more phys.Set, classes func(phys.Set) (map[string]phys.Set, error)) error {
	for _, d := range []struct {
		pages         phys.Set
		keeps, leaves string
	}{{more, "warmcore", "makedumpfile"}, {lost, "makedumpfile", "warmcore"}} {
		if len(d.pages) == 0 {
			continue
		}
		by, err := classes(d.pages)
		if err != nil {
			return err
		}
		l.Step("pages that only %s keeps, by drgn: %s", d.keeps, whoIsRight(by, d.keeps, d.leaves))
		if kernel := by[kernelClass]; d.leaves == "warmcore" && len(kernel) > 0 {
			l.Report.Oracle.Missing += kernel.Size() / phys.PageSize
			return l.Machine.Fail("compare with makedumpfile -d 31", fmt.Errorf("the dump lacks %v and others, which are the kernel's", kernel[0]))
		}
	}
	return nil
}

// tools lets makedumpfile and crash(8) read the dump. They read only dumps of
// the architecture that they are built for.
func (l *Lab) tools(d saved) error {
	vmcore, err := l.elf()
	if err != nil {
		return err
	}
	if vmcore != filepath.Join(l.Out, convertedName) { // makedumpfile dies of an ELF dump that is filtered already
		if out, err := output(l.ctx, "", "makedumpfile", "-f", "-d", "31", "-c", vmcore, filepath.Join(l.Out, "filtered")); err != nil {
			return fmt.Errorf("makedumpfile -d 31: %w\n%s", err, out)
		}
		if err := l.samePages("filtered", nil); err != nil {
			return err
		}
		l.Step("makedumpfile -d 31 reads the dump")
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
	l.Step("makedumpfile --dump-dmesg reads the dump")
	if !l.story.Debuggers {
		return nil
	}
	return errors.Join(l.crashTool(d), l.drgn(d))
}

// crashTool lets crash(8) read the dump with Debian's debug information.
func (l *Lab) crashTool(saved) error {
	vmlinux, err := l.debugVmlinux()
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
	return l.crashShows(string(out))
}

// crashShows checks what crash(8) printed.
func (l *Lab) crashShows(out string) error {
	for _, w := range []string{"PANIC: \"Kernel panic - not syncing: sysrq triggered crash\"", "sysrq_handle_crash", "COMMAND: \"init\"",
		"] Linux version " + l.files.kernel.Release} {
		if !strings.Contains(out, w) {
			return fmt.Errorf("crash(8) printed no %q; see %s", w, filepath.Join(l.Out, "crash.txt"))
		}
	}
	for cpu := range l.CPUs {
		_, stack, _ := strings.Cut(out, fmt.Sprintf("CPU: %d ", cpu)) // bt's of this CPU, up to an empty line
		stack, _, _ = strings.Cut(stack, "\n\n")
		if !strings.Contains(stack, "RIP:") {
			return fmt.Errorf("crash(8) printed no registers of CPU %d; see %s", cpu, filepath.Join(l.Out, "crash.txt"))
		}
	}
	l.Step("crash(8) shows the panic task and the registers of %d CPUs", l.CPUs)
	return nil
}

func output(ctx context.Context, stdin, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	return cmd.CombinedOutput()
}
