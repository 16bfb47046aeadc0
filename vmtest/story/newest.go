package story

import (
	"context"
	_ "embed"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/debian"
)

// newestTools lets the newest crash(8), makedumpfile and drgn that Debian has
// read the dump of a kernel of another release than the host's, which the
// host's may not know. The first two read only dumps of this host's
// architecture.
func (l *Lab) newestTools(saved) error {
	if !l.story.Debuggers {
		return nil
	}
	tools, err := debian.OpenTools(l.ctx, l.files.cache)
	if err != nil {
		return err
	}
	vmlinux, err := l.debugVmlinux()
	if err != nil {
		return err
	}
	r := reader{ctx: l.ctx, tools: tools}
	if r.out, err = filepath.Abs(l.Out); err != nil {
		return err
	}
	r.vmlinux = vmlinux
	if err := l.drgnBy(func(dump string) ([]byte, error) {
		return r.run(drgnScript, "python3", "-", vmlinux, r.file(dump))
	}); err != nil {
		return err
	}
	if l.board.debian != debian.Native {
		return nil
	}
	out, err := r.run("sys\nbt -a\nlog\nquit\n", "crash", "-s", vmlinux, r.file("vmcore"))
	if werr := os.WriteFile(filepath.Join(l.Out, "crash.txt"), out, 0o644); werr != nil {
		return werr
	}
	if why := givesUp(string(out)); why != "" {
		l.Step("crash(8) doesn't know this kernel's types (%s): drgn judges alone", why)
	} else if err != nil {
		return fmt.Errorf("crash(8): %w\n%s", err, out)
	} else if err := l.crashShows(string(out)); err != nil {
		return err
	}
	if out, err := r.run("", "makedumpfile", "-f", "-d", "31", "-c", r.file(wholeName), r.file("filtered")); err != nil {
		return fmt.Errorf("makedumpfile -d 31: %w\n%s", err, out)
	}
	return l.samePages("filtered", r.classes)
}

// givesUp returns what crash(8) says when it doesn't find its way in a kernel's
// types, which is about its debug information and not about a dump; empty if
// it says no such thing.
func givesUp(out string) string {
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		for _, s := range []string{"crash: invalid structure member offset: ", "crash: invalid structure size: "} {
			if strings.HasPrefix(line, s) {
				return strings.TrimPrefix(line, "crash: ")
			}
		}
	}
	return ""
}

// reader runs the newest tools on the files of a story.
type reader struct {
	ctx          context.Context
	tools        debian.Tools
	out, vmlinux string // absolute
}

func (r reader) file(name string) string { return filepath.Join(r.out, name) }

func (r reader) run(stdin string, argv ...string) ([]byte, error) {
	cmd := r.tools.Command(r.ctx, []string{r.out, filepath.Dir(r.vmlinux)}, argv...)
	cmd.Stdin = strings.NewReader(stdin)
	return cmd.CombinedOutput()
}

//go:embed pages.py
var pagesScript string

// maxAsked is how many pages drgn is asked about: it takes half a millisecond
// for each, and runs are words of a command line.
const maxAsked = 20_000

// classes asks drgn what the pages of memory were to the crashed kernel, by
// the dump that has all of them. It asks about the first maxAsked.
func (r reader) classes(memory phys.Set) (map[string]phys.Set, error) {
	argv := []string{"python3", "-", r.vmlinux, r.file(wholeName)}
	left := uint64(maxAsked)
	for _, m := range memory {
		n := min(m.Size()/phys.PageSize, left)
		left -= n
		if first := m.Start / phys.PageSize; n > 0 {
			argv = append(argv, fmt.Sprintf("%d-%d", first, first+n))
		}
	}
	out, err := r.run(pagesScript, argv...)
	if err != nil {
		return nil, fmt.Errorf("drgn: %w\n%s", err, out)
	}
	return parseClasses(string(out))
}

// parseClasses reads what pages.py prints.
func parseClasses(out string) (map[string]phys.Set, error) {
	ranges := map[string][]phys.Range{}
	for line := range strings.Lines(out) {
		number, class, ok := strings.Cut(strings.TrimSpace(line), " ")
		pfn, err := strconv.ParseUint(number, 10, 40)
		if !ok || err != nil {
			return nil, fmt.Errorf("drgn printed %q, want a page frame number and a class", line)
		}
		ranges[class] = append(ranges[class], phys.Range{Start: pfn * phys.PageSize, End: (pfn + 1) * phys.PageSize})
	}
	classes := map[string]phys.Set{}
	for class, r := range ranges {
		classes[class] = phys.NewSet(r...)
	}
	return classes, nil
}

// kernelClass is what pages.py calls a page that a dump must have.
const kernelClass = "kernel"

// whoIsRight says for pages that one of two filters keeps and the other leaves
// out which of them is right.
func whoIsRight(classes map[string]phys.Set, keeps, leaves string) string {
	var words []string
	for _, class := range slices.Sorted(maps.Keys(classes)) {
		right := leaves
		if class == kernelClass {
			right = keeps
		}
		words = append(words, fmt.Sprintf("%d %s: %s is right", classes[class].Size()/phys.PageSize, class, right))
	}
	return strings.Join(words, ", ")
}
