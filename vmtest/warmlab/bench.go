package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/story"
)

// bench measures and prints what docs promise. It fails on errors only: times
// on a shared machine are no test.
func bench(ctx context.Context, f flags, stdout io.Writer) error {
	if f.options.Out == "" {
		f.options.Out = filepath.Join("build", "bench")
	}
	m, err := story.Bench(ctx, f.options)
	if err != nil {
		return err
	}
	memcpy, copy1, copy2 := story.Median(m.Memcpy), story.Median(m.Copy1), story.Median(m.Copy2)
	read, mmap := story.Median(m.VmcoreRead), story.Median(m.VmcoreMmap)
	row := func(what, figure, want string) { fmt.Fprintf(stdout, "  %-44s %16s   %s\n", what, figure, want) }
	rate := func(r float64) string { return phys.FormatSize(uint64(r)) + "/s" }
	fmt.Fprintf(stdout, "\nSpeed (%s, medians of %d rounds in turn)%30s\n", m.Accel, len(m.Memcpy), "must")
	row("memcpy, "+phys.FormatSize(m.Bytes), rate(memcpy), "")
	row("memcpy, the same on 2 CPUs at once", rate(story.Median(m.Memcpy2)), "")
	row("copy of physical memory on 1 CPU", rate(copy1), "")
	row("  beside memcpy", fmt.Sprintf("%.2fx", copy1/memcpy), ">= 0.9x")
	row("copy of physical memory on 2 CPUs", rate(copy2), "")
	row("  beside memcpy on 1 CPU", fmt.Sprintf("%.2fx", copy2/memcpy), ">= 1.7x")
	row("/proc/vmcore by read(), 1 MiB", rate(read), "")
	row("/proc/vmcore by mmap, 16 MiB", rate(mmap), "")
	row("  beside read()", fmt.Sprintf("%.1fx", mmap/read), ">= 8x")
	row("boot memory copied in the payload", fmt.Sprintf("%s in %.2f s", phys.FormatSize(m.CopyBytes), m.CopySeconds), "")
	row("payload's own work in a capture boot", fmt.Sprintf("%.2f s", m.PayloadSeconds), "<= 1.5 s")
	row("reset to user space of the capture boot", fmt.Sprintf("%.1f s", m.Crash.Seconds.Firmware+m.Crash.Seconds.Payload+m.Crash.Seconds.Kernel), "")
	fmt.Fprintf(stdout, "\nSize\n")
	row("initramfs (xz)", phys.FormatSize(uint64(m.InitramfsBytes)), "<= 4 MiB")
	row("payload: our kernel with it", phys.FormatSize(uint64(m.PayloadImageBytes)), "<= 6 MiB")
	fmt.Fprintf(stdout, "\nraw data: %s\n", filepath.Join(f.options.Out, "figures.json"))
	return nil
}
