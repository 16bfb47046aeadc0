package machine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/debian"
	"github.com/warmcore/warmcore/vmtest/guest/build"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
	"github.com/warmcore/warmcore/vmtest/truth"
)

// normalKernel returns today's Debian kernel and kmod.
func normalKernel(ctx context.Context, t *testing.T, name string) (debian.Kernel, debian.Programs) {
	t.Helper()
	arch, err := debian.ArchNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	cache, err := debian.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	packages, err := arch.KernelPackages(ctx, cache, "")
	if err != nil {
		t.Fatal(err)
	}
	debs, err := arch.DownloadAll(ctx, cache, "", packages...)
	if err != nil {
		t.Fatal(err)
	}
	kmod, err := arch.OpenKmod(ctx, cache)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := debian.OpenKernel(ctx, cache, kmod, debs...)
	if err != nil {
		t.Fatal(err)
	}
	return kernel, kmod
}

// TestRig takes a Debian kernel that QEMU starts directly through a crash: it
// shows that the rig itself works, without a payload.
func TestRig(t *testing.T) {
	for _, arch := range arches {
		t.Run(arch.Name, func(t *testing.T) { testRig(t, arch) })
	}
}

func testRig(t *testing.T, arch *Arch) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	dir := t.TempDir()
	lap := time.Now()
	took := func(what string) {
		t.Logf("%6.2f s %s", time.Since(lap).Seconds(), what)
		lap = time.Now()
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	kernel, kmod := normalKernel(ctx, t, arch.Name)
	took("kernel " + kernel.Release)
	init, initrd, image := filepath.Join(dir, "init"), filepath.Join(dir, "initrd"), filepath.Join(dir, "disk")
	must(build.Guest(ctx, arch.Name, init))
	must(debian.Initrd{Kernel: kernel, Kmod: kmod, Init: init}.Write(initrd))
	took("guest and initrd")
	disk := debian.Disk{Release: kernel.Release, Image: kernel.Image, Initrd: initrd, Files: map[string][]byte{debian.HostnamePath: []byte("rig\n")}}
	must(disk.Build(ctx, image))
	took("disk")

	m, err := Start(ctx, Options{
		Arch: arch, Memory: 768 * phys.MiB, CPUs: 2, Kernel: kernel.Image, Initrd: initrd, Disk: image,
		Append:    "panic=-1 quiet unknown_nmi_panic console=" + arch.Console,
		Reproduce: "go test ./vmtest/machine -run 'TestRig$'",
	}, dir)
	must(err)
	defer func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}()
	g, err := m.WaitGuest(ctx)
	must(err)
	took("first boot")
	t.Logf("kernel to init %.2f s, to the guest's boot event %.2f s by its own clock", g.InitSeconds, g.Event.Message.T)
	for _, n := range g.Notes {
		t.Errorf("the guest complained: %s", n.Message.Text)
	}
	if g.Kind != wire.Plain || g.Release != kernel.Release || g.CPUs != 2 || g.Disk == "" || g.Vmcore {
		t.Errorf("boot event %+v: want a plain boot of %s with 2 CPUs and a disk", g.Boot, kernel.Release)
	}

	// Commands, files, modprobe of Debian, the disk.
	if out, err := g.MustRun(ctx, "modprobe", "--show-depends", "nd_pmem"); err != nil || !strings.Contains(out, "nd_pmem.ko") {
		t.Errorf("modprobe --show-depends nd_pmem printed %q, error %v", out, err)
	}
	if _, err := g.MustRun(ctx, "modprobe", "no_such_module"); err == nil {
		t.Error("modprobe of a module that doesn't exist: no error")
	}
	name, err := g.ReadFile(ctx, "/proc/sys/kernel/hostname")
	if err != nil || string(name) != "rig\n" {
		t.Errorf("host name %q, error %v; want the disk's", name, err)
	}
	info, err := g.MemInfo(ctx)
	if err != nil || info["MemTotal"] != g.MemTotalKiB {
		t.Errorf("MemTotal %d KiB, error %v; the boot event said %d", info["MemTotal"], err, g.MemTotalKiB)
	}
	took("commands")

	p, err := g.Paint(ctx, 64, 0x5eed)
	must(err)
	took("paint 64 MiB")
	t.Logf("painted pages in %d runs", len(p.Runs))
	must(g.Trigger(ctx, wire.Trigger{Kind: wire.SysrqC, CPU: 1}))
	must(m.WaitReset(ctx))
	took("sysrq-c to the reset")

	then, err := m.CopyRAM(ctx)
	must(err)
	took("copy of the RAM")
	checkPainting(ctx, t, "truth", p, then, then.Ranges())

	// A page changed behind the guest's back is found, and only that.
	painted, err := p.Memory()
	must(err)
	must(m.Poke(painted[0].Start+100, []byte("poked")))
	now, err := m.CopyRAM(ctx)
	must(err)
	c, err := p.Compare(ctx, now, now.Ranges(), nil)
	must(err)
	if c.Wrong != 1 || c.FirstWrong[0] != painted[0].Start {
		t.Errorf("after a poke at %#x: %v; want that page wrong", painted[0].Start+100, c)
	}
	must(now.Close())
	took("compare")

	// The end of RAM survives the reset: nothing but the boot wrote to it.
	must(m.Reset(ctx))
	again, err := m.WaitGuest(ctx)
	must(err)
	took("second boot")
	if again.BootID == g.BootID {
		t.Errorf("boot id %s again after a reset", g.BootID)
	}
	must(m.Pause(ctx))
	after, err := m.CopyRAM(ctx)
	must(err)
	kept, err := p.Compare(ctx, after, after.Ranges(), nil)
	must(err)
	t.Logf("of %d painted pages %d are still there after the second boot", kept.Compared, kept.Compared-kept.Wrong)
	if kept.Compared-kept.Wrong < kept.Compared/2 {
		t.Errorf("after reset and boot: %v; RAM isn't kept", kept)
	}
	must(after.Close())
	must(m.Resume(ctx))
	took("compare")

	must(again.Trigger(ctx, wire.Trigger{Kind: wire.Watchdog, Timeout: 2}))
	must(m.WaitReset(ctx))
	took("watchdog")

	must(m.PowerCycle(ctx))
	third, err := m.WaitGuest(ctx)
	must(err)
	took("third boot")
	must(m.Pause(ctx))
	fresh, err := m.CopyRAM(ctx)
	must(err)
	if c, err := p.Compare(ctx, fresh, fresh.Ranges(), nil); err != nil || c.Wrong != c.Compared {
		t.Errorf("after a power cycle: %v, error %v; want all pages gone", c, err)
	}
	must(fresh.Close())
	must(m.Resume(ctx))
	if _, err := third.MustRun(ctx, "modprobe", map[*Arch]string{AMD64: "dax_hmem", ARM64: "of_pmem"}[arch]); err != nil {
		t.Error(err)
	}
	must(third.Sync(ctx))
	if arch == AMD64 { // virt has no NMI
		must(m.InjectNMI(ctx))
		must(m.WaitReset(ctx))
		took("NMI to the reset")
	}
	must(m.Close())

	must(debian.Image{Path: image}.Recover(ctx))
	files, err := debian.Image{Path: image}.List(ctx, "/boot")
	must(err)
	var names []string
	for _, f := range files {
		names = append(names, f.Name)
	}
	if got, want := strings.Join(names, " "), "grub initrd.img-"+kernel.Release+" vmlinuz-"+kernel.Release; got != want {
		t.Errorf("/boot of the disk: %s, want %s", got, want)
	}
}

func checkPainting(ctx context.Context, t *testing.T, what string, p truth.Painting, memory io.ReaderAt, has phys.Set) {
	t.Helper()
	c, err := p.Compare(ctx, memory, has, nil)
	if err != nil {
		t.Fatal(err)
	}
	var pages uint64
	for _, r := range p.Runs {
		pages += r.Count
	}
	if !c.OK() || c.Compared != pages {
		t.Errorf("painting in the %s: %v; want all %d pages right", what, c, pages)
	}
}

// TestTriggers ends a guest in the other ways.
func TestTriggers(t *testing.T) {
	for _, arch := range arches {
		t.Run(arch.Name, func(t *testing.T) { testTriggers(t, arch) })
	}
}

func testTriggers(t *testing.T, arch *Arch) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	dir := t.TempDir()
	kernel, kmod := normalKernel(ctx, t, arch.Name)
	init, initrd := filepath.Join(dir, "init"), filepath.Join(dir, "initrd")
	if err := errors.Join(build.Guest(ctx, arch.Name, init), debian.Initrd{Kernel: kernel, Kmod: kmod, Init: init}.Write(initrd)); err != nil {
		t.Fatal(err)
	}
	m, err := Start(ctx, Options{
		Arch: arch, Memory: 512 * phys.MiB, CPUs: 1, Kernel: kernel.Image, Initrd: initrd,
		Append:    "panic=-1 quiet console=" + arch.Console,
		Reproduce: "go test ./vmtest/machine -run TestTriggers",
	}, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, kind := range []string{wire.SysrqB, wire.Reboot, wire.ExitInit, "from outside", wire.PowerOff} {
		g, err := m.WaitGuest(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%7.2f s boot, then %s", g.Event.T.Seconds(), kind)
		switch kind {
		case "from outside":
			err = errors.Join(m.Pause(ctx), m.Reset(ctx))
		case wire.PowerOff:
			err = errors.Join(g.Trigger(ctx, wire.Trigger{Kind: kind}), m.WaitPowerOff(ctx))
		default:
			err = errors.Join(g.Trigger(ctx, wire.Trigger{Kind: kind}), m.WaitReset(ctx), m.Reset(ctx))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestRAMLayout compares Offset with where QEMU puts memory.
func TestRAMLayout(t *testing.T) {
	bios := filepath.Join(t.TempDir(), "bios")
	if err := os.WriteFile(bios, probeFirmware(), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, memory := range []uint64{64 * phys.MiB, lowIfSplit - phys.MiB, lowIfSplit, 3 * phys.GiB} {
		t.Run(phys.FormatSize(memory), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			m, err := Start(ctx, Options{Memory: memory, CPUs: 1, BIOS: bios, Reproduce: "go test ./vmtest/machine -run TestRAMLayout"}, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if err := m.Pause(ctx); err != nil {
				t.Fatal(err)
			}
			for i, r := range AMD64.RAM(memory) {
				for _, addr := range []uint64{max(r.Start, phys.MiB), r.End - phys.PageSize} {
					want := make([]byte, phys.PageSize)
					if err := errors.Join(wire.Fill(want, uint64(i), addr), m.Poke(addr, want)); err != nil {
						t.Fatal(err)
					}
					saved := filepath.Join(t.TempDir(), "saved")
					err := m.proc.qmp.do(ctx, "pmemsave", map[string]any{"val": addr, "size": phys.PageSize, "filename": saved}, nil)
					if err != nil {
						t.Fatal(err)
					}
					got, err := os.ReadFile(saved)
					if err != nil {
						t.Fatal(err)
					}
					peeked := make([]byte, phys.PageSize)
					if err := m.Peek(addr, peeked); err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(got, want) || !bytes.Equal(peeked, want) {
						t.Errorf("page poked at %#x isn't what QEMU has there", addr)
					}
				}
			}
			for _, addr := range []uint64{memory, 4*phys.GiB + memory, lowSplit - 1} {
				if AMD64.RAM(memory).Contains(phys.Range{Start: addr, End: addr + 2}) {
					continue
				}
				if err := m.Poke(addr, []byte{1, 2}); err == nil {
					t.Errorf("poke at %#x, where no RAM is: no error", addr)
				}
			}
		})
	}
}

// TestLost ends QEMU behind the rig's back.
func TestLost(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	bios := filepath.Join(t.TempDir(), "bios")
	if err := os.WriteFile(bios, probeFirmware(), 0o644); err != nil {
		t.Fatal(err)
	}
	m, err := Start(ctx, Options{Memory: 16 * phys.MiB, CPUs: 1, BIOS: bios, Reproduce: "again"}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.proc.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, err = m.WaitGuest(ctx)
	var lost *LostError
	var failure *Failure
	if !errors.As(err, &lost) || !errors.As(err, &failure) {
		t.Fatalf("waiting for a guest of a killed QEMU: %v (%T), want a LostError in a Failure", err, err)
	}
	if failure.Reproduce != "again" {
		t.Errorf("failure says to run %q, want %q", failure.Reproduce, "again")
	}
}

func TestProbe(t *testing.T) {
	if err := probe(t.Context(), TCG, AMD64.cpu); err != nil {
		t.Error(err)
	}
	if err := probe(t.Context(), "nonsense", AMD64.cpu); err == nil {
		t.Error("probe of an accelerator that doesn't exist: no error")
	}
	t.Logf("KVM: %v", AMD64.ProbeKVM(t.Context()))
}
