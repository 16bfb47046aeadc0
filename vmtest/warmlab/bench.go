package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/bench"
)

// runBench measures and prints what docs promise. It fails on errors only: times
// on a shared machine are no test.
func runBench(ctx context.Context, f flags, stdout io.Writer) error {
	if f.options.Arch != "amd64" {
		return errors.New("bench measures on amd64 only")
	}
	if f.options.PayloadDir == "" {
		f.options.PayloadDir = filepath.Join("build", "amd64", "payload")
	}
	if f.options.Out == "" {
		f.options.Out = filepath.Join("build", "bench")
	}
	if f.vmcore != "" {
		return benchDump(ctx, f, stdout)
	}
	m, err := bench.Run(ctx, f.options)
	if err != nil {
		return err
	}
	memcpy, copy1, copy2 := bench.Median(m.Memcpy), bench.Median(m.Copy1), bench.Median(m.Copy2)
	read, mmap := bench.Median(m.VmcoreRead), bench.Median(m.VmcoreMmap)
	row := func(what, figure, want string) { fmt.Fprintf(stdout, "  %-44s %16s   %s\n", what, figure, want) }
	rate := func(r float64) string { return phys.FormatSize(uint64(r)) + "/s" }
	fmt.Fprintf(stdout, "\nSpeed (%s, medians of %d rounds in turn)%30s\n", m.Accel, len(m.Memcpy), "must")
	row("memcpy, "+phys.FormatSize(m.Bytes), rate(memcpy), "")
	row("memcpy, the same on 2 CPUs at once", rate(bench.Median(m.Memcpy2)), "")
	row("copy of physical memory on 1 CPU", rate(copy1), "")
	row("  beside memcpy", fmt.Sprintf("%.2fx", copy1/memcpy), ">= 0.9x")
	row("copy of physical memory on 2 CPUs", rate(copy2), "")
	row("  beside memcpy on 1 CPU", fmt.Sprintf("%.2fx", copy2/memcpy), ">= 1.7x")
	row("/proc/vmcore by read(), 1 MiB", rate(read), "")
	row("/proc/vmcore by mmap, 16 MiB", rate(mmap), "")
	row("  beside read()", fmt.Sprintf("%.1fx", mmap/read), ">= 8x")
	row("device-dax by mmap, 16 MiB", rate(bench.Median(m.DaxMmap)), "")
	row("  beside read() of /proc/vmcore", fmt.Sprintf("%.1fx", bench.Median(m.DaxMmap)/read), ">= 8x")
	row("boot memory copied in the payload", fmt.Sprintf("%s in %.2f s", phys.FormatSize(m.CopyBytes), m.CopySeconds), "")
	row("payload's own work in a capture boot", fmt.Sprintf("%.2f s", m.PayloadSeconds), "<= 1.5 s")
	row("reset to user space of the capture boot", fmt.Sprintf("%.1f s", m.Crash.Seconds.Firmware+m.Crash.Seconds.Payload+m.Crash.Seconds.Kernel), "")
	fmt.Fprintf(stdout, "\nSize\n")
	row("initramfs (xz)", phys.FormatSize(uint64(m.InitramfsBytes)), "<= 4 MiB")
	row("payload: our kernel with it", phys.FormatSize(uint64(m.PayloadImageBytes)), "<= 6 MiB")
	printDump(stdout, m.Dump)
	fmt.Fprintf(stdout, "\nraw data: %s\n", filepath.Join(f.options.Out, "figures.json"))
	return nil
}

// benchDump measures the dump writer alone, on an ELF dump.
func benchDump(ctx context.Context, f flags, stdout io.Writer) error {
	if err := os.MkdirAll(f.options.Out, 0o755); err != nil {
		return err
	}
	m, err := bench.Dump(ctx, f.vmcore, f.options.Say)
	if err != nil {
		return err
	}
	printDump(stdout, m)
	raw, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return err
	}
	name := filepath.Join(f.options.Out, "dump-writer.json")
	fmt.Fprintf(stdout, "\nraw data: %s\n", name)
	return os.WriteFile(name, append(raw, '\n'), 0o644)
}

// printDump prints the dump writer beside makedumpfile. Wall clocks count on an
// idle machine; on a busy one CPU seconds do.
func printDump(stdout io.Writer, m *bench.DumpFigures) {
	fmt.Fprintf(stdout, "\nDump writer, beside %s, %d CPUs, load %s\n", m.Makedumpfile, m.CPUs, m.Load)
	for _, level := range slices.Sorted(maps.Keys(m.Levels)) {
		runs := m.Levels[level]
		fmt.Fprintf(stdout, "  dump level %s, of %s%8s %8s %9s %12s\n", level, phys.FormatSize(uint64(m.SourceBytes)), "seconds", "CPU s", "RSS", "bytes")
		for _, name := range slices.Sorted(maps.Keys(runs)) {
			r := bench.Medians(runs[name])
			fmt.Fprintf(stdout, "    %-34s %8.2f %8.2f %9s %12d\n", name, r.Seconds, r.CPUSeconds, phys.FormatSize(uint64(r.RSSKiB)<<10), r.Bytes)
		}
		ours, theirs := bench.Medians(runs[bench.OursZstd]), bench.Medians(runs[bench.TheirsZstd])
		ratio := func(what string, a, b float64, want string) {
			if a > 0 && b > 0 {
				fmt.Fprintf(stdout, "    %-44s %7.2fx   %s\n", what, a/b, want)
			}
		}
		zlib, threads := bench.Medians(runs[bench.TheirsZlib]), bench.Medians(runs[bench.TheirsZstd2])
		ratio("faster than makedumpfile -z", theirs.Seconds, ours.Seconds, ">= 1.1x")
		ratio("  by CPU seconds, all CPUs busy", theirs.CPUSeconds*float64(m.CPUs), ours.CPUSeconds, ">= 1.1x")
		ratio("faster than makedumpfile -c", zlib.Seconds, ours.Seconds, ">= 3x")
		ratio("  by CPU seconds, all CPUs busy", zlib.CPUSeconds*float64(m.CPUs), ours.CPUSeconds, ">= 3x")
		ratio("faster than makedumpfile -z --num-threads 2", threads.Seconds, ours.Seconds, ">= 5x")
		ratio("workers = 4 x CPUs beside workers = CPUs", ours.Seconds, bench.Medians(runs[bench.OursZstd4x]).Seconds, ">= 0.95x")
		ratio("  by CPU seconds", ours.CPUSeconds, bench.Medians(runs[bench.OursZstd4x]).CPUSeconds, ">= 0.95x")
		ratio("size beside makedumpfile -z", float64(ours.Bytes), float64(theirs.Bytes), "<= 1.05x")
	}
	ours, theirs := bench.Medians(m.Filter).Seconds, bench.Medians(m.FilterTheirs).Seconds
	fmt.Fprintf(stdout, "  page filter, 1 thread: %.0f Mpages/s, makedumpfile %.0f Mpages/s: %.2fx   >= 1x\n",
		float64(m.Pages)/ours/1e6, float64(m.Pages)/theirs/1e6, theirs/ours)
}
