package story

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/vmtest/guest/wire"
	"github.com/warmcore/warmcore/vmtest/rig"
)

// Figures are the bench's results. Rates are bytes per second, one for each
// round; sizes are bytes.
type Figures struct {
	Accel             string    `json:"accel"`
	Bytes             uint64    `json:"bytes"`
	Memcpy            []float64 `json:"memcpy"`
	Memcpy2           []float64 `json:"memcpy_2_cpus"`
	Copy1             []float64 `json:"copy_1_worker"`
	Copy2             []float64 `json:"copy_2_workers"`
	VmcoreMmap        []float64 `json:"vmcore_mmap"`
	VmcoreRead        []float64 `json:"vmcore_read"`
	DaxMmap           []float64 `json:"dax_mmap"`
	PayloadSeconds    float64   `json:"payload_seconds"` // capture boot: warminit without the copy
	CopySeconds       float64   `json:"copy_seconds"`    // of boot memory, in the payload
	CopyBytes         uint64    `json:"copy_bytes"`
	InitramfsBytes    int64     `json:"initramfs_bytes"`
	PayloadImageBytes int64     `json:"payload_image_bytes"` // bzImage with the initramfs
	Crash             Boot      `json:"crash"`               // capture boot

	Dump *DumpFigures `json:"dump_writer"`
}

// Bench takes a machine through a crash and measures on the way.
func Bench(ctx context.Context, o Options) (f *Figures, err error) {
	o.Memory, o.CPUs, o.Trigger = 2*gib, 2, wire.SysrqC
	l := &Lab{Options: o, ctx: ctx, name: "bench", board: amd64}
	l.Report = &Report{Accel: string(rig.TCG)}
	if err := os.MkdirAll(l.Out, 0o755); err != nil {
		return nil, err
	}
	if l.files, err = build(ctx, l.board.Arch, l.Options); err != nil {
		return nil, err
	}
	l.more = map[string]string{"/bin/measure": filepath.Join(l.Out, "measure")}
	if err := l.board.BuildProgram(ctx, "./vmtest/guest/measure", l.more["/bin/measure"]); err != nil {
		return nil, err
	}
	defer func() {
		if l.Machine != nil {
			err = errors.Join(err, l.Machine.Close())
		}
	}()
	f = &Figures{}
	for file, to := range map[string]*int64{"../initramfs.cpio.xz": &f.InitramfsBytes, "bzImage": &f.PayloadImageBytes} {
		info, err := os.Stat(filepath.Join(l.PayloadDir, file))
		if err != nil {
			return nil, fmt.Errorf("%w (make images builds it)", err)
		}
		*to = info.Size()
	}
	if err := l.measureCopy(f); err != nil {
		return nil, err
	}
	if err := l.start(); err != nil {
		return nil, err
	}
	if err := l.warmcore("arm"); err != nil {
		return nil, err
	}
	truth, err := l.crashNow(panicOnCPU0, wire.Capture)
	if err != nil {
		return nil, err
	}
	truth.Close()
	b, err := l.block()
	if err != nil {
		return nil, err
	}
	// It makes the dax devices that are measured, too.
	if _, err := l.run("warmcore", "save", "--format", "elf", "--dump-level", "0", "--read", "dax", "/var/crash/bench"); err != nil {
		return nil, err
	}
	out, err := l.Guest.MustRun(l.ctx, "measure")
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal([]byte(out), f); err != nil {
		return nil, fmt.Errorf("measure printed %q: %w", out, err)
	}
	log, err := l.payloadLog()
	if err != nil {
		return nil, err
	}
	f.Accel = l.Report.Accel
	f.CopyBytes, f.CopySeconds = b.Capture.CopyBytes, float64(b.Capture.CopyNanos)/1e9
	f.PayloadSeconds = round(span(log) - f.CopySeconds)
	f.Crash = l.Report.Boots[len(l.Report.Boots)-1]
	if err := l.powerOff(); err != nil {
		return nil, err
	}
	vmcore := filepath.Join(l.Out, "vmcore")
	if err := l.disk.Extract(l.ctx, "/var/crash/bench/vmcore", vmcore); err != nil {
		return nil, err
	}
	if f.Dump, err = BenchDump(ctx, vmcore, l.say); err != nil {
		return nil, err
	}
	raw, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return nil, err
	}
	return f, os.WriteFile(filepath.Join(l.Out, "figures.json"), append(raw, '\n'), 0o644)
}

// measureCopy runs the program as init of the payload's kernel: that one maps
// physical memory faster than a kernel with STRICT_DEVMEM, which looks each
// page up. QEMU's -initrd goes over the initramfs that the kernel has inside.
func (l *Lab) measureCopy(f *Figures) error {
	initrd := filepath.Join(l.Out, "measure.cpio")
	if err := (rig.Initrd{Kernel: l.files.kernel, Kmod: l.files.kmod, Init: l.more["/bin/measure"]}).Write(initrd); err != nil {
		return err
	}
	m, err := rig.Start(l.ctx, rig.Options{
		Memory: l.Memory, CPUs: l.CPUs, Kernel: filepath.Join(l.PayloadDir, "vmlinux"), Initrd: initrd,
		Append: ownPayload,
	}, l.Out)
	if err != nil {
		return err
	}
	defer m.Close()
	e, err := m.Wait(l.ctx, "the figures of the copy", func(e rig.Event) bool {
		return e.Source == rig.FromConsole && (strings.HasPrefix(e.Text, `{"bytes"`) || strings.HasPrefix(e.Text, "measure:"))
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
