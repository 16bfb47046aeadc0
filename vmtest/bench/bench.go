// Package bench measures what the documentation promises, in a machine that
// goes through a crash and with dumps on this host.
package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/guest/build"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
	"github.com/warmcore/warmcore/vmtest/machine"
	"github.com/warmcore/warmcore/vmtest/story"
)

// Figures are the bench's results. Rates are bytes per second, one for each
// round; sizes are bytes.
type Figures struct {
	Accel             string     `json:"accel"`
	Bytes             uint64     `json:"bytes"`
	Memcpy            []float64  `json:"memcpy"`
	Memcpy2           []float64  `json:"memcpy_2_cpus"`
	Copy1             []float64  `json:"copy_1_worker"`
	Copy2             []float64  `json:"copy_2_workers"`
	VmcoreMmap        []float64  `json:"vmcore_mmap"`
	VmcoreRead        []float64  `json:"vmcore_read"`
	DaxMmap           []float64  `json:"dax_mmap"`
	PayloadSeconds    float64    `json:"payload_seconds"` // capture boot: warminit without the copy
	CopySeconds       float64    `json:"copy_seconds"`    // of boot memory, in the payload
	CopyBytes         uint64     `json:"copy_bytes"`
	InitramfsBytes    int64      `json:"initramfs_bytes"`
	PayloadImageBytes int64      `json:"payload_image_bytes"` // bzImage with the initramfs
	Crash             story.Boot `json:"crash"`               // capture boot

	Dump *DumpFigures `json:"dump_writer"`
}

// Run takes an amd64 machine through a crash and measures on the way. It writes
// figures.json beside what a story leaves in o.Out.
func Run(ctx context.Context, o story.Options) (*Figures, error) {
	f := &Figures{}
	o.Memory, o.CPUs, o.Trigger = 2*phys.GiB, 2, wire.SysrqC
	for file, to := range map[string]*int64{"../initramfs.cpio.xz": &f.InitramfsBytes, "bzImage": &f.PayloadImageBytes} {
		info, err := os.Stat(filepath.Join(o.PayloadDir, file))
		if err != nil {
			return nil, fmt.Errorf("%w (make images builds it)", err)
		}
		*to = info.Size()
	}
	if _, err := story.Run(ctx, story.Story{Name: "bench", Run: func(l *story.Lab) error { return f.crash(ctx, l) }}, o); err != nil {
		return nil, err
	}
	raw, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return nil, err
	}
	return f, os.WriteFile(filepath.Join(o.Out, "figures.json"), append(raw, '\n'), 0o644)
}

// crash is what happens to the machine.
func (f *Figures) crash(ctx context.Context, l *story.Lab) error {
	measure := filepath.Join(l.Out, "measure")
	if err := build.Program(ctx, machine.AMD64.Name, "./vmtest/guest/measure", measure); err != nil {
		return err
	}
	l.Programs = map[string]string{"/bin/measure": measure}
	if err := f.measureCopy(ctx, l, measure); err != nil {
		return err
	}
	if err := l.Start(); err != nil {
		return err
	}
	if err := l.Warmcore("arm"); err != nil {
		return err
	}
	ram, err := l.CrashNow(wire.Trigger{Kind: wire.SysrqC}, wire.Capture)
	if err != nil {
		return err
	}
	ram.Close()
	b, err := l.Registration()
	if err != nil {
		return err
	}
	// It makes the dax devices that are measured, too.
	if _, err := l.Command("warmcore", "save", "--format", "elf", "--dump-level", "0", "--read", "dax", "/var/crash/bench"); err != nil {
		return err
	}
	out, err := l.Guest.MustRun(ctx, "measure")
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), f); err != nil {
		return fmt.Errorf("measure printed %q: %w", out, err)
	}
	log, err := l.PayloadLog()
	if err != nil {
		return err
	}
	f.Accel = l.Report.Accel
	f.CopyBytes, f.CopySeconds = b.Capture.CopyBytes, float64(b.Capture.CopyNanos)/1e9
	f.PayloadSeconds = span(log) - f.CopySeconds
	f.Crash = l.Report.Boots[len(l.Report.Boots)-1]
	if err := l.PowerOff(); err != nil {
		return err
	}
	vmcore := filepath.Join(l.Out, "vmcore")
	if err := l.Extract("/var/crash/bench/vmcore", vmcore); err != nil {
		return err
	}
	f.Dump, err = Dump(ctx, vmcore, l.Step)
	return err
}

// measureCopy runs the program as init of the payload's kernel: that one maps
// physical memory faster than a kernel with STRICT_DEVMEM, which looks each
// page up. QEMU's -initrd goes over the initramfs that the kernel has inside.
func (f *Figures) measureCopy(ctx context.Context, l *story.Lab, measure string) error {
	initrd := filepath.Join(l.Out, "measure.cpio")
	if err := l.Initrd(measure).Write(initrd); err != nil {
		return err
	}
	m, err := machine.Start(ctx, machine.Options{
		Memory: l.Memory, CPUs: l.CPUs, Kernel: filepath.Join(l.PayloadDir, "vmlinux"), Initrd: initrd,
		Append: story.PayloadParameters,
	}, l.Out)
	if err != nil {
		return err
	}
	defer m.Close()
	e, err := m.Wait(ctx, "the figures of the copy", func(e machine.Event) bool {
		return e.Source == machine.FromConsole && (strings.HasPrefix(e.Text, `{"bytes"`) || strings.HasPrefix(e.Text, "measure:"))
	})
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(e.Text), f); err != nil {
		return m.Fail("measure", fmt.Errorf("%q: %w", e.Text, err))
	}
	return nil
}

// span is the time between the first and the last line of a log, in seconds.
func span(log string) float64 {
	var stamps []float64
	for line := range strings.Lines(log) {
		var t float64
		if _, err := fmt.Sscanf(line, "[%f]", &t); err == nil {
			stamps = append(stamps, t)
		}
	}
	if len(stamps) == 0 {
		return 0
	}
	return slices.Max(stamps) - slices.Min(stamps)
}

// Median returns the middle of samples.
func Median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	if len(s) == 0 {
		return 0
	}
	return s[len(s)/2]
}
