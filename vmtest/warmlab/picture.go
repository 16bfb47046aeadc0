package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/story"
)

// picture shows the result of a story.
func picture(w io.Writer, r *story.Report, dir string) {
	fmt.Fprintf(w, "\nTimeline (seconds)\n")
	for _, e := range r.Timeline {
		fmt.Fprintf(w, "  %7.1f  %s\n", e.T, e.Event)
	}
	fmt.Fprintf(w, "\nBoots            firmware  payload   kernel to user space\n")
	for _, b := range r.Boots {
		fmt.Fprintf(w, "  %-13s %8.1f s %6.1f s %6.1f s\n", b.Kind, b.Seconds.Firmware, b.Seconds.Payload, b.Seconds.Kernel)
	}
	if plan, err := os.ReadFile(filepath.Join(dir, "plan.txt")); err == nil {
		fmt.Fprintf(w, "\nMemory plan                               before the crash  in the capture boot  after the release\n")
		for line := range strings.Lines(string(plan)) {
			line, notLent := strings.CutSuffix(strings.TrimSpace(line), ", no whole memory block")
			f := strings.Fields(line)
			if len(f) < 3 {
				continue
			}
			state := states[f[1]]
			if notLent {
				state = states["lost"]
			}
			fmt.Fprintf(w, "  %s  %-11s  %-9s  %-16s  %-19s  %s\n", f[0], f[1], strings.Join(f[2:], " "), state[0], state[1], state[2])
		}
	}
	if c := r.Crash; c != nil {
		fmt.Fprintf(w, "\nCrash\n  kernel     %s\n  reason     %s (%s)\n", r.NormalKernel, c.Reason, c.Trigger)
		if line := panicLine(filepath.Join(dir, "vmcore-dmesg.txt")); line != "" {
			fmt.Fprintf(w, "  last words %s\n", line)
		}
		fmt.Fprintf(w, "  registers  of %d of %d CPUs; caches of %d flushed\n", c.CPUsWithRegisters, r.CPUs, c.CPUsFlushed)
		for i, cpu := range registers(filepath.Join(dir, "manifest.json")) {
			fmt.Fprintf(w, "             CPU %d: pid %d, pc %s, sp %s\n", i, cpu.PID, cpu.PC, cpu.SP)
		}
	}
	if c := r.Copy; c != nil && c.Seconds > 0 {
		fmt.Fprintf(w, "  copied     %s of boot memory in %.2f s\n", phys.FormatSize(c.Bytes), c.Seconds)
	}
	if d := r.Dump; d != nil {
		fmt.Fprintf(w, "  dump       %s, %d pages: %s\n", phys.FormatSize(uint64(d.Bytes)), d.Pages, filepath.Join(dir, d.Path))
	}
	if o := r.Oracle; o != nil {
		fmt.Fprintf(w, "  compared   %d pages with QEMU's memory at the reset, %d painted ones: %d wrong, %d missing\n", o.Preserved, o.Painted, o.Wrong, o.Missing)
	}
	if m := r.Memory; m != nil {
		fmt.Fprintf(w, "\nMemory           MemTotal      of what the machine has\n")
		row := func(name string, kib uint64) {
			fmt.Fprintf(w, "  %-13s %8d kB  %5.1f %%\n", name, kib, 100*float64(kib)/float64(m.InstalledKiB))
		}
		row("without us", m.AloneKiB)
		row("plain boot", m.PlainKiB)
		row("capture boot", m.CaptureKiB)
		row("released", m.ReleasedKiB)
		if r.PayloadKernel != "" && strings.HasPrefix(r.PayloadKernel, "Debian") {
			fmt.Fprintf(w, "  The rest: QEMU's loader puts Debian's kernel and the initramfs where memory can't be lent\n"+
				"  (window and lost, above), and what Debian's kernel itself takes. With our payload kernel 99 %% of \"without us\" come back.\n")
		}
	}
	fmt.Fprintf(w, "\n%s: %s, the dump and the logs are in %s\n", strings.ToUpper(r.Result), filepath.Join(dir, "report.json"), dir)
}

// states says what happens to each part of the plan: before the crash, in the
// capture boot, after the release.
var states = map[string][3]string{
	"window":      {"lent", "lent", "lent"},
	"handoff":     {"reserved", "reserved", "reserved"},
	"boot":        {"RAM", "RAM, copied before", "RAM"},
	"destination": {"lent", "holds boot memory", "lent"},
	"preserved":   {"RAM", "kept for the dump", "RAM"},
	"lost":        {"reserved", "overwritten", "reserved"},
	"margin":      {"reserved", "reserved", "reserved"},
}

// registers are those of each CPU, as a dump's manifest has them; none if it
// can't be read.
func registers(path string) (cpus []manifest.CPU) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var m manifest.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil
	}
	return m.CPUs
}

// panicLine is the line of the crashed kernel's log that says why.
func panicLine(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	last := ""
	for lines.Scan() {
		if strings.Contains(lines.Text(), "Kernel panic") {
			return lines.Text()
		}
		last = lines.Text()
	}
	return last
}
