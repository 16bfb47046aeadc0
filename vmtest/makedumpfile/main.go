// Makedumpfile compares pkg/dumpfilter with makedumpfile: for each dump level
// it lets makedumpfile write a dump and says which pages only one of the two
// leaves out. It also prints how many free pages the crashed kernel's page
// allocator counted, which the filter should find if the dump has all memory.
//
//	go run ./vmtest/makedumpfile [FLAGS] VMCORE
//
// build.sh beside this file gets a makedumpfile.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/warmcore/warmcore/pkg/dumpfilter"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = "."
	}
	flags := flag.NewFlagSet("makedumpfile", flag.ContinueOnError)
	flags.SetOutput(stderr)
	tool := flags.String("tool", filepath.Join(cache, "warmcore/makedumpfile/current/makedumpfile"), "the makedumpfile to compare with")
	only := flags.Int("level", -1, "compare only this dump level")
	show := flags.Int("show", 8, "print as many runs of pages that differ")
	rounds := flags.Int("rounds", 1, "filter as often and print the fastest time")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() != 1 {
		fmt.Fprintln(stderr, "makedumpfile: want one dump")
		return 2
	}
	c := comparison{tool: *tool, name: flags.Arg(0), show: *show, rounds: *rounds, out: stdout}
	same, err := c.run(*only)
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "makedumpfile: %v\n", err)
		return 1
	case !same:
		return 1
	}
	return 0
}

type comparison struct {
	tool, name   string
	show, rounds int
	out          io.Writer

	dump vmcore.Dump
	info *vmcoreinfo.Info
	pfns uint64 // one more than the last page
}

func (c *comparison) run(only int) (same bool, err error) {
	file, err := os.Open(c.name)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	stat, err := file.Stat()
	if err != nil {
		return false, err
	}
	if c.dump, err = dumpfile.New(file, stat.Size()); err != nil {
		return false, fmt.Errorf("open %s: %w", c.name, err)
	}
	if c.info, err = vmcoreinfo.Parse(c.dump.Info().VMCOREINFO); err != nil {
		return false, fmt.Errorf("open %s: %w", c.name, err)
	}
	memory := c.dump.Info().Memory
	if len(memory) == 0 {
		return false, fmt.Errorf("open %s: no memory", c.name)
	}
	c.pfns = memory[len(memory)-1].End / c.info.PageSize
	fmt.Fprintf(c.out, "%s: kernel %s, %d pages\n", c.name, c.info.Release, memory.Size()/c.info.PageSize)
	if free, err := freeByZones(c.dump, c.info); err != nil {
		fmt.Fprintf(c.out, "the page allocator's count of free pages: %v\n", err)
	} else {
		fmt.Fprintf(c.out, "the page allocator counted %d free pages\n", free)
	}
	same = true
	for level := range 32 {
		if only >= 0 && level != only {
			continue
		}
		ok, err := c.level(dumpfilter.Level(level), memory)
		if err != nil {
			return false, fmt.Errorf("level %d: %w", level, err)
		}
		same = same && ok
	}
	return same, nil
}

// level compares one level.
func (c *comparison) level(level dumpfilter.Level, memory phys.Set) (same bool, err error) {
	var (
		dropped []uint64
		counts  dumpfilter.Counts
		best    time.Duration
		filter  *dumpfilter.Filter
	)
	for round := range c.rounds {
		if filter, err = dumpfilter.New(c.dump, c.info, memory, level); err != nil {
			return false, err
		}
		dropped = make([]uint64, (c.pfns+63)/64)
		start := time.Now()
		if counts, err = filter.Drop(dropped, 0, c.pfns); err != nil {
			return false, err
		}
		if took := time.Since(start); round == 0 || took < best {
			best = took
		}
	}
	for _, w := range filter.Warnings() {
		fmt.Fprintf(c.out, "level %2d: warning: %s\n", level, w)
	}
	theirs, done, err := c.theirs(level)
	if err != nil {
		return false, fmt.Errorf("%+v here, in %v: %w", counts, best, err)
	}
	defer func() { err = errors.Join(err, done()) }()

	var onlyWe, onlyThey difference
	for _, r := range memory.AlignIn(c.info.PageSize) {
		for pfn := r.Start / c.info.PageSize; pfn < r.End/c.info.PageSize; pfn++ {
			we, they := dropped[pfn/64]>>(pfn%64)&1 != 0, !theirs.Holds(phys.Range{Start: pfn * c.info.PageSize, End: (pfn + 1) * c.info.PageSize})
			switch {
			case we && !they:
				onlyWe.add(pfn)
			case they && !we:
				onlyThey.add(pfn)
			}
		}
	}
	fmt.Fprintf(c.out, "level %2d: %d kept, %d cache, %d private, %d user, %d free, %d poisoned, %d offline; only we leave out %d, only makedumpfile %d; %.2f ms\n",
		level, counts.Kept, counts.Cache, counts.CachePrivate, counts.User, counts.Free, counts.HWPoison, counts.Offline,
		onlyWe.pages, onlyThey.pages, best.Seconds()*1e3)
	onlyWe.print(c.out, "only we", c.show)
	onlyThey.print(c.out, "only makedumpfile", c.show)
	return onlyWe.pages+onlyThey.pages == 0, nil
}

// theirs lets makedumpfile filter the dump and opens what it wrote.
func (c *comparison) theirs(level dumpfilter.Level) (pages vmcore.Pager, done func() error, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(c.name), "compare-")
	if err != nil {
		return nil, nil, err
	}
	name := filepath.Join(dir, "dump")
	cmd := exec.Command(c.tool, "-d", fmt.Sprint(level), "--message-level", "4", c.name, name)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%v: %w: %s", cmd.Args, err, out), os.RemoveAll(dir))
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	done = func() error { return errors.Join(file.Close(), os.RemoveAll(dir)) }
	stat, err := file.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, done())
	}
	dump, err := kdump.New(file, stat.Size())
	if err != nil {
		return nil, nil, errors.Join(err, done())
	}
	return dump, done, nil
}

// difference is pages on which the two disagree.
type difference struct {
	pages uint64
	runs  [][2]uint64
}

func (d *difference) add(pfn uint64) {
	d.pages++
	if n := len(d.runs); n > 0 && d.runs[n-1][1] == pfn {
		d.runs[n-1][1]++
		return
	}
	d.runs = append(d.runs, [2]uint64{pfn, pfn + 1})
}

func (d *difference) print(w io.Writer, who string, limit int) {
	for i, r := range d.runs {
		if i == limit {
			fmt.Fprintf(w, "  %s: %d runs more\n", who, len(d.runs)-limit)
			return
		}
		fmt.Fprintf(w, "  %s: pages %#x-%#x\n", who, r[0], r[1]-1)
	}
}
