package sparse_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/warmcore/warmcore/pkg/convert"
	"github.com/warmcore/warmcore/pkg/dumpfilter"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
	"github.com/warmcore/warmcore/vmtest/sparse"
)

const tib = 1 << 40

// nowhere is a file that nobody reads.
type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

func open(t testing.TB, size uint64) (*sparse.Dump, vmcore.Dump, convert.Filter) {
	t.Helper()
	d, err := sparse.New(size)
	if err != nil {
		t.Fatal(err)
	}
	src, err := dumpfile.New(d, d.Size())
	if err != nil {
		t.Fatal(err)
	}
	info, err := vmcoreinfo.Parse(src.Info().VMCOREINFO)
	if err != nil {
		t.Fatal(err)
	}
	filter, err := dumpfilter.New(src, info, src.Info().Memory, 31)
	if err != nil {
		t.Fatal(err)
	}
	if w := filter.Warnings(); len(w) > 0 {
		t.Fatalf("filter warns: %q", w)
	}
	return d, src, filter
}

func options(t testing.TB) convert.Options {
	t.Helper()
	zstd, err := kdump.ParseCodec("zstd")
	if err != nil {
		t.Fatal(err)
	}
	return convert.Options{Codec: zstd, DumpLevel: 31}
}

// The kernel in the dump is understood, to the page.
func TestFilter(t *testing.T) {
	const size = 16 << 30
	d, src, filter := open(t, size)
	r, err := convert.Convert(t.Context(), src, filter, []io.WriterAt{nowhere{}}, options(t))
	if err != nil {
		t.Fatal(err)
	}
	const section = size >> 27
	c := r.Counts
	if r.Kept != d.Kept() || c.Free != 12<<10*section || c.Cache != 8<<10*section || c.User != (12<<10-32)*section || len(r.Warnings)+len(r.Unreadable) > 0 {
		t.Errorf("kept %d pages, want %d; left out %+v; %q", r.Kept, d.Kept(), c, r.Warnings)
	}
}

// peak returns the most memory that this process has had, in bytes.
func peak(t testing.TB) uint64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kib uint64
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	t.Fatal("no VmHWM in /proc/self/status")
	return 0
}

// The memory that a save takes is within what quality asks for: 48 MiB, 1.5
// MiB for each worker, and 64 MiB for each TiB; here without the program itself.
func TestMemory(t *testing.T) {
	const size = 128 << 30
	_, src, filter := open(t, size)
	runtime.GC()
	debug.FreeOSMemory()
	// The high-water mark begins again.
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
	before := peak(t)
	o := options(t)
	o.Workers = 4
	if _, err := convert.Convert(t.Context(), src, filter, []io.WriterAt{nowhere{}}, o); err != nil {
		t.Fatal(err)
	}
	limit := uint64(48<<20 + 4*3<<19 + 64<<20*size/tib)
	if got := peak(t) - before; got > limit {
		t.Errorf("%s more memory than before, want at most %s", phys.FormatSize(got), phys.FormatSize(limit))
	}
}

func TestNewErrors(t *testing.T) {
	for _, size := range []uint64{0, 1 << 20, sparse.Max + 1<<27} {
		if d, err := sparse.New(size); err == nil || d != nil {
			t.Errorf("New(%#x): no error", size)
		}
	}
	d, err := sparse.New(1 << 30)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("read at -1: no error")
	}
	if n, err := d.ReadAt(make([]byte, 8), d.Size()-4); n != 4 || !errors.Is(err, io.EOF) {
		t.Errorf("read at the end: %d, %v", n, err)
	}
}

// BenchmarkSave says how time and memory grow with the machine:
//
//	go test -run '^$' -bench Save -benchtime 1x ./vmtest/sparse
func BenchmarkSave(b *testing.B) {
	for _, n := range []uint64{1, 4, 16, 64} {
		b.Run(fmt.Sprintf("%dTiB", n), func(b *testing.B) {
			_, src, filter := open(b, n*tib)
			for b.Loop() {
				debug.FreeOSMemory()
				if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
					b.Fatal(err)
				}
				start := time.Now()
				var scanned time.Duration
				o := options(b)
				o.Planned = func(convert.Result) error { scanned = time.Since(start); return nil }
				if _, err := convert.Convert(context.Background(), src, filter, []io.WriterAt{nowhere{}}, o); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(time.Since(start).Seconds()/float64(n), "s/TiB")
				b.ReportMetric(scanned.Seconds()/float64(n), "scan-s/TiB")
				b.ReportMetric(float64(peak(b))/(1<<20), "MiB-RSS")
			}
		})
	}
}
