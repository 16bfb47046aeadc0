package story

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/debian"
	"github.com/warmcore/warmcore/vmtest/guest/build"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
	"github.com/warmcore/warmcore/vmtest/machine"
)

// TestWhatIsOverwritten fills the RAM of a virt machine with a pattern, resets
// it, and finds what a confined kernel and what starts it have overwritten:
// nothing outside the window that the payload isn't told about.
func TestWhatIsOverwritten(t *testing.T) {
	for _, firmware := range arm64.firmwares {
		for _, memory := range []uint64{1 * gib, 2 * gib} {
			t.Run(firmware+" "+phys.FormatSize(memory), func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
				defer cancel()
				whatIsOverwritten(ctx, t, firmware, memory)
			})
		}
	}
}

func whatIsOverwritten(ctx context.Context, t *testing.T, firmware string, memory uint64) {
	t.Helper()
	l := &Lab{ctx: ctx, story: Story{Name: "overwritten"}, board: arm64,
		Options: Options{Memory: memory, CPUs: 2, Payload: "stock", Firmware: firmware, Out: t.TempDir()}}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	cache, err := debian.CacheDir()
	must(err)
	kmod, err := arm64.debian.OpenKmod(ctx, cache)
	must(err)
	kernel, err := debianKernel(ctx, cache, "", kmod)
	must(err)
	guest, plain := filepath.Join(l.Out, "guest"), filepath.Join(l.Out, "plain")
	must(build.Guest(ctx, arm64.Name, guest))
	must(debian.Initrd{Kernel: kernel, Kmod: kmod, Init: guest}.Write(plain))
	p := loaded{image: kernel.Image, initramfs: filepath.Join(l.Out, "initramfs"), tree: filepath.Join(l.Out, "payload.dtb")}
	must(compress(p.initramfs, plain))
	o := machine.Options{Arch: arm64.Arch, Memory: memory, CPUs: 2, Reproduce: "go test ./vmtest/story -run TestWhatIsOverwritten"}
	must(l.startLoaded(p, &o))

	m, err := machine.Start(ctx, o, l.Out)
	must(err)
	defer m.Close()
	_, err = m.WaitGuest(ctx)
	must(err)
	must(m.Pause(ctx))
	const chunk = 4 * phys.MiB
	ram := arm64.RAM(memory)[0]
	pattern := func(addr uint64) []byte {
		b := make([]byte, chunk)
		for i := uint64(0); i < chunk; i += phys.PageSize {
			must(wire.Fill(b[i:i+phys.PageSize], 1, addr+i))
		}
		return b
	}
	for addr := ram.Start; addr < ram.End; addr += chunk {
		must(m.Poke(addr, pattern(addr)))
	}
	must(m.Reset(ctx))
	_, err = m.WaitGuest(ctx)
	must(err)
	must(m.Pause(ctx))
	var written phys.Set
	got := make([]byte, chunk)
	for addr := ram.Start; addr < ram.End; addr += chunk {
		must(m.Peek(addr, got))
		want := pattern(addr)
		for i := uint64(0); i < chunk; i += phys.PageSize {
			if !bytes.Equal(got[i:i+phys.PageSize], want[i:i+phys.PageSize]) {
				written = append(written, phys.Range{Start: addr + i, End: addr + i + phys.PageSize})
			}
		}
	}
	written = phys.NewSet(written...)
	outside := written.Minus(phys.Set{l.virtWindow()})
	t.Logf("overwritten outside the window: %v", outside)
	if extra := outside.Minus(l.virtLost()); len(extra) > 0 {
		t.Errorf("%s overwrites %v, which the payload isn't told; it is told %v", firmware, extra, l.virtLost())
	}
	for _, r := range l.virtLost() {
		if !outside.Overlaps(r) {
			t.Errorf("%s overwrites nothing of %v, which the payload is told", firmware, r)
		}
	}
}

func compress(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.Copy(w, in); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(to, b.Bytes(), 0o644)
}
