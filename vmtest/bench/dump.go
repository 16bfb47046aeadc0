package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/warmcore/warmcore/pkg/convert"
	"github.com/warmcore/warmcore/pkg/dumpfilter"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// DumpFigures compare the dump writer with makedumpfile on the same ELF dump,
// in rounds that take turns. Runs has an element for each round.
type DumpFigures struct {
	Makedumpfile string               `json:"makedumpfile"` // version
	CPUs         int                  `json:"cpus"`
	Load         string               `json:"load"` // of the machine, at the start
	SourceBytes  int64                `json:"source_bytes"`
	Pages        uint64               `json:"pages"`
	Levels       map[string]DumpLevel `json:"levels"` // by dump level
	Filter       []DumpRun            `json:"filter"` // ours alone, one thread, level 31
	FilterTheirs []DumpRun            `json:"filter_makedumpfile"`
}

// DumpLevel is the runs at one dump level, by the name of the contender.
type DumpLevel map[string][]DumpRun

// DumpRun is one run.
type DumpRun struct {
	Seconds    float64 `json:"seconds"`
	CPUSeconds float64 `json:"cpu_seconds"`
	RSSKiB     int64   `json:"rss_kib"`
	Bytes      int64   `json:"bytes"` // of the dump
}

// Names of contenders.
const (
	OursZstd    = "ours zstd"
	OursZstd1   = "ours zstd, 1 worker"
	OursZstd4x  = "ours zstd, 4x CPUs"
	TheirsZstd  = "makedumpfile -z"
	TheirsZlib  = "makedumpfile -c"
	TheirsZstd2 = "makedumpfile -z --num-threads 2"
)

// Rounds of the dump writer's bench.
const dumpRounds = 5

// maxThreaded is for how many rounds makedumpfile's threads are tried: they
// take minutes where the others take seconds.
const maxThreaded = 2

// Dump measures on the ELF dump vmcore, in the page cache, with results in
// memory.
func Dump(ctx context.Context, vmcore string, say func(string, ...any)) (*DumpFigures, error) {
	makedumpfile, version, err := newMakedumpfile(ctx)
	if err != nil {
		return nil, err
	}
	// Memory, not the disk, and what lies in it goes when this ends.
	dir, err := os.MkdirTemp("/dev/shm", "warmcore-bench")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	ours := filepath.Join(dir, "warmcore")
	if out, err := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", ours, "./cmds/warmcore").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w\n%s", err, out)
	}
	source := filepath.Join(dir, "vmcore")
	if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", vmcore, source).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cp: %w\n%s", err, out)
	}
	info, err := os.Stat(source)
	if err != nil {
		return nil, err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return nil, err
	}
	f := &DumpFigures{
		Makedumpfile: version, CPUs: runtime.NumCPU(), Load: strings.TrimSpace(string(load)),
		SourceBytes: info.Size(), Levels: map[string]DumpLevel{},
	}
	convertTo := func(args ...string) []string { return append([]string{ours, "convert"}, args...) }
	filtered := filepath.Join(dir, "filtered")
	for _, level := range []string{"31", "1"} {
		runs := DumpLevel{}
		f.Levels[level] = runs
		for round := range dumpRounds {
			for _, c := range []struct {
				name string
				argv []string
			}{
				{TheirsZstd, []string{makedumpfile, "-z", "-d", level, source, filtered}},
				{OursZstd, convertTo("-d", level, source, filtered)},
				{OursZstd4x, convertTo("-d", level, "--workers", strconv.Itoa(4*runtime.NumCPU()), source, filtered)},
				{TheirsZlib, []string{makedumpfile, "-c", "-d", level, source, filtered}},
				{OursZstd1, convertTo("-d", level, "--workers", "1", source, filtered)},
				{TheirsZstd2, []string{makedumpfile, "-z", "--num-threads", "2", "-d", level, source, filtered}},
			} {
				if c.name == TheirsZstd2 && (round >= maxThreaded || level != "31") {
					continue
				}
				r, err := timed(ctx, filtered, c.argv)
				if err != nil {
					return nil, err
				}
				say("-d %s, round %d: %-32s %6.2f s, %6.2f CPU s, %4d MiB RSS, %d bytes", level, round+1, c.name, r.Seconds, r.CPUSeconds, r.RSSKiB>>10, r.Bytes)
				runs[c.name] = append(runs[c.name], r)
			}
		}
	}
	return f, f.filters(ctx, makedumpfile, source, filtered)
}

// newMakedumpfile returns the path of a makedumpfile that knows zstd.
func newMakedumpfile(ctx context.Context) (path, version string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", "", err
	}
	path = filepath.Join(cache, "warmcore", "makedumpfile", "current", "makedumpfile")
	if _, err := os.Stat(path); err != nil {
		if out, err := exec.CommandContext(ctx, "vmtest/makedumpfile/build.sh").CombinedOutput(); err != nil {
			return "", "", fmt.Errorf("vmtest/makedumpfile/build.sh: %w\n%s", err, out)
		}
	}
	out, err := exec.CommandContext(ctx, path, "-v").Output()
	if err != nil {
		return "", "", fmt.Errorf("makedumpfile -v: %w", err)
	}
	version, _, _ = strings.Cut(string(out), "\n")
	return path, version, nil
}

// timed runs a program that writes out, and removes what it wrote.
func timed(ctx context.Context, out string, argv []string) (DumpRun, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	start := time.Now()
	text, err := cmd.CombinedOutput()
	r := DumpRun{Seconds: time.Since(start).Seconds()}
	if err != nil {
		return DumpRun{}, fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, text)
	}
	r.CPUSeconds = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		r.RSSKiB = usage.Maxrss
	}
	st, err := os.Stat(out)
	if err != nil {
		return DumpRun{}, err
	}
	r.Bytes = st.Size()
	return r, os.Remove(out)
}

var errPlanned = errors.New("only the filter is measured")

// filters measures the page filter alone: ours in this process, with one
// worker; makedumpfile's by what it says about it.
func (f *DumpFigures) filters(ctx context.Context, makedumpfile, source, out string) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	src, err := dumpfile.New(in, f.SourceBytes)
	if err != nil {
		return err
	}
	kernel, err := vmcoreinfo.Parse(src.Info().VMCOREINFO)
	if err != nil {
		return err
	}
	for range dumpRounds {
		text, err := exec.CommandContext(ctx, makedumpfile, "--message-level", "31", "-z", "-d", "31", source, out).CombinedOutput()
		if err != nil {
			return fmt.Errorf("makedumpfile: %w\n%s", err, text)
		}
		if err := os.Remove(out); err != nil {
			return err
		}
		var seconds float64
		for line := range strings.Lines(string(text)) {
			if _, after, ok := strings.Cut(line, "STEP [Excluding unnecessary pages]"); ok {
				fields := strings.Fields(strings.Trim(after, " :"))
				if len(fields) == 0 {
					continue
				}
				s, err := strconv.ParseFloat(fields[0], 64)
				if err != nil {
					return fmt.Errorf("makedumpfile said %q: %w", line, err)
				}
				seconds += s
			}
		}
		f.FilterTheirs = append(f.FilterTheirs, DumpRun{Seconds: seconds})

		var before, after syscall.Rusage
		start := time.Now()
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &before); err != nil {
			return err
		}
		filter, err := dumpfilter.New(src, kernel, src.Info().Memory, 31)
		if err != nil {
			return err
		}
		_, err = convert.Convert(ctx, src, filter, []io.WriterAt{in}, convert.Options{Workers: 1, Planned: func(r convert.Result) error {
			f.Pages = r.Pages
			return errPlanned
		}})
		if !errors.Is(err, errPlanned) {
			return err
		}
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &after); err != nil {
			return err
		}
		cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
		f.Filter = append(f.Filter, DumpRun{Seconds: time.Since(start).Seconds(), CPUSeconds: float64(cpu) / 1e9})
	}
	return nil
}

// Medians of runs.
func Medians(runs []DumpRun) (m DumpRun) {
	var seconds, cpu, rss, bytes []float64
	for _, r := range runs {
		seconds, cpu = append(seconds, r.Seconds), append(cpu, r.CPUSeconds)
		rss, bytes = append(rss, float64(r.RSSKiB)), append(bytes, float64(r.Bytes))
	}
	if len(runs) == 0 {
		return DumpRun{}
	}
	return DumpRun{Median(seconds), Median(cpu), int64(Median(rss)), int64(Median(bytes))}
}
