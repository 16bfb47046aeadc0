package payload

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/acpi/acpitest"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/normalboot"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/physmem/physmemtest"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/registration/registrationtest"
	"github.com/warmcore/warmcore/pkg/segments/segmentstest"
	"github.com/warmcore/warmcore/pkg/verdict"
)

const planned = entryCmdline + " crashkernel=1M memhp_default_state=offline modprobe.blacklist=kmem,dax_hmem,device_dax warmcore.handoff=0x20000000,0x200000 panic=10"

// TestPlainBoot is the first boot of a machine.
func TestPlainBoot(t *testing.T) {
	m := newMachine(t)
	p := m.plan()
	m.mem.Writable = p.Boot.Union(phys.Set{p.Handoff})
	r := m.run()
	wantKernel(t, r, 1, planned)
	if want := p.Boot.Union(p.Preserved).Union(phys.NewSet(span(0, 0x9fc00))); !slices.Equal(r.ram, want) {
		t.Errorf("RAM of the normal kernel: %v, want %v", r.ram, want)
	}
	if want := p.Lendable(); r.soft.Size() != want.Size() || len(r.soft.Minus(want)) > 0 {
		t.Errorf("Soft Reserved: %v, want %v", r.soft, want)
	}
	want := &registration.Block{
		Sequence:       2,
		State:          registration.Prearmed,
		Identity:       registration.Identity{Nonce: [16]byte{0xee, 1}, Time: m.now.Unix()},
		MapHash:        m.firmware.Hash(),
		Policy:         registration.Policy{BlockSize: p.BlockSize},
		Counters:       registration.Counters{Boots: 1},
		Kernel:         registration.Kernel{Title: "Debian", Path: "/boot/vmlinuz", Initrd: "/boot/initrd.img", Cmdline: planned},
		Plan:           verdict.Ranges(p),
		PayloadVersion: "v1",
		Booted:         registration.Booted{KernelSum: kernelSum(m.entries[0]), InitrdSum: sha256.Sum256(initrd)},
	}
	if diff := cmp.Diff(want, m.block()); diff != "" {
		t.Errorf("block (-want +got):\n%s", diff)
	}
	wantLog(t, r.log, "plain boot, why: no registration: ", "looked_at: vda1 (ext4): boot/grub/grub.cfg", "kernel placed", "normal kernel, boot: plain, title: Debian, kernel: 6.1.0-40-amd64", "start")
	current, _ := m.logs()
	if current.Boot != 1 {
		t.Errorf("log of boot %d, want 1", current.Boot)
	}
	wantLog(t, string(current.Text), "plain boot", "normal kernel")
}

// TestLadder breaks one thing after the other: the normal kernel boots, and
// the log says what it boots without.
func TestLadder(t *testing.T) {
	all := firmwareMap.Set(memmap.RAM)
	tests := []struct {
		name  string
		spoil func(m *machine)
		want  string   // command line
		ram   phys.Set // of the normal kernel
		whole bool     // given to kexec_load as a whole
		log   []string
	}{
		{"no firmware map", func(m *machine) {
			m.firmwareErr, m.own = errBroken, phys.NewSet(span(0x1000, 0x9f000), span(mib, 512*mib))
		},
			entryCmdline, phys.NewSet(span(0x1000, 0x9f000), span(mib, 512*mib)), true,
			[]string{"error: firmware's memory map, error: broken for this test -> boot with the payload's own memory, no dumps", "all of it to kexec_load", "boot: without dumps"}},
		{"/dev/mem is refused", func(m *machine) { m.openErr = os.ErrPermission }, entryCmdline, all, true,
			[]string{"error: physical memory, error: permission denied -> no dumps in this boot", "physical memory is not open -> all of it to kexec_load", "boot: without dumps"}},
		{"/dev/mem refuses writes", func(m *machine) {
			m.mem.BeforeWrite = func(physmemtest.Access) error { return errBroken }
		}, entryCmdline, all, true,
			[]string{"plain boot", "error: boot with the memory plan, title: Debian, error: registration: write", "-> boot with the firmware's map, no dumps", "-> all of it to kexec_load"}},
		{"the plan is refused", func(m *machine) { m.cmdline = "warmcore.handoff=2M@2G" }, entryCmdline, all, false,
			[]string{"error: memory plan, error: no plan: the handoff area is not RAM in the firmware's map", "-> boot with the firmware's map, no dumps", "boot: without dumps"}},
		{"the payload has more than the window", func(m *machine) { m.cmdline = "warmcore.window=64M@384M" }, entryCmdline, all, false,
			[]string{"error: memory plan, error: no plan: the payload kernel's own memory 1c000000-1fffffff is outside the window 18000000-1bffffff"}},
		{"the window is not known", func(m *machine) { m.ownErr = errBroken }, entryCmdline, all, true,
			[]string{"error: memory plan, error: broken for this test", "all of it to kexec_load"}},
		{"the payload owns all memory", func(m *machine) { m.own = all }, entryCmdline, all, true,
			[]string{"error: memory plan, error: no plan: the window overlaps the handoff area", "warn: place the kernel, error: place kernel: no room for 48 MiB", "-> all of it to kexec_load"}},
		{"the boot loader overwrites the handoff area", func(m *machine) {
			m.params = make([]byte, phys.PageSize)
			copy(m.params[0x218:], []byte{0, 0, 0x10, 0x20}) // ramdisk_image
			copy(m.params[0x21c:], []byte{0, 0, 1, 0})       // ramdisk_size
		}, entryCmdline, all, false, []string{"no plan: the boot loader overwrites the handoff area: 20100000-2010ffff"}},
		{"off", func(m *machine) { m.cmdline = "warmcore.off" }, entryCmdline, all, false, []string{"warmcore.off -> no dumps in this boot", "boot: without dumps"}},
		{"the kernel does not take the longer command line", func(m *machine) {
			m.entries[0].Cmdline = entryCmdline + " " + strings.Repeat("x", 2000)
		}, entryCmdline, all, false, []string{"error: boot with the memory plan", "the kernel takes 2047 -> boot with the firmware's map, no dumps"}},
		{"the kernel wants to run where the log lies", func(m *machine) {
			k := segmentstest.Debian(1)
			k.Alignment, k.PrefAddress = uint32(phys.PageSize), DefaultHandoff.Start+registration.LogOff
			m.entries[0].Kernel = normalboot.NewFile("/boot/vmlinuz", bytes.NewReader(k.Image()))
			m.entries[0].Cmdline = entryCmdline + " " + strings.Repeat("x", 2000)
		}, entryCmdline, all, false, []string{"error: boot with the memory plan", "boot: without dumps"}},
		{"the handoff area is unreadable", func(m *machine) { m.mem.Bad = phys.Set{span(512*mib, 512*mib+0x1000)} }, entryCmdline, all, true,
			[]string{"warn: plain boot, why: no registration: read 20000000-201fffff: memory fault", "boot with the memory plan", "all of it to kexec_load"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t)
			tt.spoil(m)
			r := m.run()
			wantKernel(t, r, 1, tt.want)
			if !slices.Equal(r.ram, tt.ram) {
				t.Errorf("RAM of the normal kernel: %v, want %v", r.ram, tt.ram)
			}
			if got := len(m.loaded) == 4; got != tt.whole {
				t.Errorf("kexec_load got %v, want the whole kernel: %v", m.loaded, tt.whole)
			}
			if !strings.Contains(tt.want, "crashkernel") && strings.Contains(r.cmdline, "warmcore") {
				t.Errorf("command line %q promises a dump", r.cmdline)
			}
			wantLog(t, r.log, tt.log...)
		})
	}
}

// TestUnplannedBootForgets checks that memory that a kernel without a plan
// has used is never taken for a dump.
func TestUnplannedBootForgets(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(m *machine)
	}{
		{"off", func(m *machine) { m.cmdline = "warmcore.off" }},
		{"plan refused", func(m *machine) { m.cmdline = "warmcore.block=1G" }},
		{"plan and command line too long", func(m *machine) { m.entries[0].Cmdline = strings.Repeat("x", 2000) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t)
			m.run()
			m.register(arm)
			entries := m.entries
			m.entries = []normalboot.Entry{debian("Debian", 1)}
			tt.spoil(m)
			if tt.name == "plan and command line too long" {
				// In the plain boot after a copy that failed.
				m.mem.Bad = phys.Set{span(gib-0x22000, gib-0x21000)}
			}
			if r := m.run(); !r.started || strings.Contains(r.cmdline, "warmcore") {
				t.Fatalf("want a boot without dumps, got %v", r)
			}
			m.cmdline, m.entries, m.mem.Bad = "", entries, nil
			r := m.run()
			wantKernel(t, r, 1, planned)
			wantLog(t, r.log, "plain boot, why: no registration: load registration: ")
		})
	}
}

// arm is what the agent registers.
func arm(b *registration.Block) {
	b.State = registration.Armed
	b.Identity.Nonce = [16]byte{0xaa}
	b.Counters.Attempts, b.Counters.PrearmStrikes, b.Capture.Copied = 0, 0, false
}

// TestDamagedRegistration boots plain from each handoff area that does not
// load, and says why.
func TestDamagedRegistration(t *testing.T) {
	for _, f := range registrationtest.Fixtures() {
		if f.Err == nil {
			continue
		}
		t.Run(f.Name, func(t *testing.T) {
			m := newMachine(t)
			p := m.plan()
			m.mem.Writable = p.Boot.Union(phys.Set{p.Handoff})
			m.mem.Set(p.Handoff.Start, f.Handoff)
			r := m.run()
			wantKernel(t, r, 1, planned)
			level := "warn: "
			if errors.Is(f.Err, registration.ErrEmpty) {
				level = "] warmcore: "
			}
			wantLog(t, r.log, level+"plain boot, why: no registration: ", f.Want)
			if b := m.block(); b.State != registration.Prearmed || b.Counters.Boots != 1 {
				t.Errorf("state %v, boot %d; want prearmed, 1", b.State, b.Counters.Boots)
			}
			if got, want := touched(p, r.writes), []string{"handoff", "boot"}; !slices.Equal(got, want) {
				t.Errorf("written: %v, want %v", got, want)
			}
		})
	}
}

func TestEntries(t *testing.T) {
	second := debian("second", 2)
	unreadable := debian("unreadable", 1)
	unreadable.Kernel = normalboot.NewFile("/boot/vmlinuz", broken{})
	noKernel := debian("no kernel", 1)
	noKernel.Kernel = normalboot.NewFile("/boot/vmlinuz", strings.NewReader(strings.Repeat("#!/bin/sh\n", 100)))
	badInitrd := debian("bad initrd", 1)
	badInitrd.Initrd = normalboot.NewFile("/boot/initrd.img", &breaksAt{bytes.NewReader(initrd), initrdPiece})
	large := debian("large initrd", 1)
	large.Initrd = normalboot.NewFile("/boot/initrd.img", endless{})
	itself := debian("warmcore", 1)
	k := segmentstest.Debian(1)
	k.Version = "6.12.63-warmcore (warmcore@warmcore) #1 SMP"
	itself.Kernel = normalboot.NewFile("/boot/warmcore", bytes.NewReader(k.Image()))
	withTree := debian("with device tree", 1)
	withTree.DeviceTree = "/boot/board.dtb"
	tests := []struct {
		name    string
		entries []normalboot.Entry
		cmdline string
		seed    byte
		log     []string
	}{
		{"the payload itself", []normalboot.Entry{itself, second}, "", 2,
			[]string{"error: boot entry, title: warmcore, error: /boot/warmcore is a payload itself: 6.12.63-warmcore"}},
		{"with a device tree", []normalboot.Entry{withTree}, "", 1, []string{"warn: boot entry's device tree, file: /boot/board.dtb -> not used"}},
		{"first", []normalboot.Entry{debian("first", 1), second}, "", 1, nil},
		{"kernel is unreadable", []normalboot.Entry{unreadable, second}, "", 2,
			[]string{"error: boot entry, title: unreadable, error: read /boot/vmlinuz: broken for this test", "title: second"}},
		{"kernel is none", []normalboot.Entry{noKernel, second}, "", 2, []string{"error: boot entry, title: no kernel, error: /boot/vmlinuz: kernel image: no x86 boot header"}},
		{"initrd is unreadable", []normalboot.Entry{badInitrd, second}, "", 2, []string{"error: boot entry, title: bad initrd, error: read /boot/initrd.img"}},
		{"initrd never ends", []normalboot.Entry{large, second}, "", 2, []string{"larger than 4294967296 bytes"}},
		{"by title", []normalboot.Entry{debian("first", 1), second}, "warmcore.boot=second", 2, nil},
		{"by title that is none", []normalboot.Entry{debian("first", 1), second}, "warmcore.boot=third", 1,
			[]string{"warn: warmcore.boot, entry: third, error: no such entry -> the default entry"}},
		{"named, but broken", []normalboot.Entry{second, unreadable}, "warmcore.boot=unreadable", 2, []string{"title: unreadable", "title: second"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t)
			m.entries, m.cmdline = tt.entries, tt.cmdline
			r := m.run()
			wantKernel(t, r, tt.seed, planned)
			wantLog(t, r.log, tt.log...)
			if b := m.block(); b.State != registration.Prearmed {
				t.Errorf("state %v, want prearmed", b.State)
			}
		})
	}
}

// breaksAt can be read up to an offset, but for the single bytes by which the
// size is found.
type breaksAt struct {
	r   *bytes.Reader
	off int64
}

func (b *breaksAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.r.ReadAt(p, off)
	if bad := max(0, b.off-off); len(p) > 1 && int64(n) > bad {
		return int(bad), errBroken
	}
	return n, err
}

// endless is a file without end.
type endless struct{}

func (endless) ReadAt(p []byte, _ int64) (int, error) { return len(p), nil }

func TestNoInitrd(t *testing.T) {
	m := newMachine(t)
	m.entries[0].Initrd = normalboot.File{}
	r := m.run()
	if !r.started || r.initrd != nil || m.block().Kernel.Initrd != "" {
		t.Errorf("want a kernel without initrd, got %d bytes of %q\n%v", len(r.initrd), m.block().Kernel.Initrd, r)
	}
}

// TestDroppedParameters leaves out what only the payload may say.
func TestDroppedParameters(t *testing.T) {
	m := newMachine(t)
	m.entries[0].Cmdline = "root=/dev/vda1 crashkernel=512M ro elfcorehdr=1M@2G"
	r := m.run()
	wantKernel(t, r, 1, planned)
	wantLog(t, r.log, "warn: boot entry's parameter left out, parameter: crashkernel=512M: the payload sets it, for the stub",
		"warn: boot entry's parameter left out, parameter: elfcorehdr=1M@2G: the payload says whether there is a dump")
}

// TestTitleOfNoText must not cost the dump.
func TestTitleOfNoText(t *testing.T) {
	m := newMachine(t)
	m.entries[0].Title = "Debian \x1b[31m"
	r := m.run()
	wantKernel(t, r, 1, planned)
	wantLog(t, r.log, "warn: boot entry not recorded")
	if b := m.block(); b.State != registration.Prearmed || b.Kernel != (registration.Kernel{}) {
		t.Errorf("state %v, kernel %+v; want prearmed and none", b.State, b.Kernel)
	}
}

// TestNothingToBoot keeps looking until there is something.
func TestNothingToBoot(t *testing.T) {
	t.Run("no entry", func(t *testing.T) {
		m := newMachine(t)
		m.entries, m.looked, m.waits = nil, []string{"vda1 (ext4): no boot configuration", "vdb: no file system that this payload knows"}, 2*scanPatience
		r := m.run()
		if r.started || m.scans != 2*scanPatience+1 {
			t.Errorf("started %v after %d looks, want none after %d", r.started, m.scans, 2*scanPatience+1)
		}
		const complaint = "error: no normal kernel was started, error: no boot entry: repair the boot configuration on a disk; looked at: vda1 (ext4): no boot configuration; vdb: no file system that this payload knows -> looking again every second"
		wantLog(t, r.log, complaint, complaint)
		if n := strings.Count(r.log, complaint); n != 3 {
			t.Errorf("complained %d times in %d looks, want once in %d", n, m.scans, scanPatience)
		}
		current, _ := m.logs()
		wantLog(t, string(current.Text), complaint)
	})
	t.Run("a disk appears", func(t *testing.T) {
		m := newMachine(t)
		entries := m.entries
		m.entries, m.waits = nil, 100
		m.onWait = func() {
			if m.scans == 5 {
				m.entries = entries
			}
		}
		wantKernel(t, m.run(), 1, planned)
		if m.scans != 6 {
			t.Errorf("%d looks, want 6", m.scans)
		}
	})
	t.Run("disks can't be listed", func(t *testing.T) {
		m := newMachine(t)
		m.scanErr, m.waits = errBroken, 1
		r := m.run()
		wantLog(t, r.log, "looked_at: look for disks: broken for this test", "error: no normal kernel was started, error: no boot entry: repair the boot configuration on a disk; looked at: look for disks: broken for this test -> looking again")
	})
	t.Run("kexec_load is refused", func(t *testing.T) {
		m := newMachine(t)
		m.loadErr, m.waits = errBroken, 0
		r := m.run()
		wantLog(t, r.log, "error: boot with the memory plan", "broken for this test -> boot with the firmware's map", `error: no normal kernel was started, error: entry "Debian": broken for this test; broken for this test`)
		if _, err := registration.Load(m.mem.Get(DefaultHandoff)); err == nil && m.block().State != registration.Empty {
			t.Errorf("state %v, want none or empty: boot memory was overwritten", m.block().State)
		}
	})
	t.Run("the reboot fails", func(t *testing.T) {
		m := newMachine(t)
		m.rebootErr, m.waits = errBroken, 0
		r := m.run()
		wantLog(t, r.log, "start", "error: boot with the memory plan, title: Debian, error: broken for this test", "boot: without dumps", "looking again")
	})
}

// TestDescribe is `warminit -n`: it changes nothing.
func TestDescribe(t *testing.T) {
	describe := func(m *machine) string {
		opts, _ := ParseCmdline(m.cmdline)
		logger := NewLogger(io.Discard, func() time.Duration { return 0 })
		p := New(m, slog.New(logger), logger.Text, opts, "v1")
		p.Plan()
		var b strings.Builder
		p.Describe(&b)
		return b.String()
	}
	m := newMachine(t)
	m.run()
	m.register(arm)
	m.mem.Writes()
	m.mem.Writable = phys.Set{}
	if got, want := describe(m), m.plan().String()+"capture boot: armed, and reset without a crash record: watchdog or reset\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if w := m.mem.Writes(); w != nil {
		t.Errorf("written: %v", w)
	}
	m.cmdline = "warmcore.off"
	if got, want := describe(m), "no plan: the normal kernel gets the firmware's memory map, no dumps\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestSRAT: memory that is handed over is cut where ACPI's nodes meet, and a
// table that can't be read costs nothing else.
func TestSRAT(t *testing.T) {
	border := uint64(0x0c000000)
	memory := func(domain uint32, r phys.Range) []byte {
		b := []byte{1, 40}
		b = binary.LittleEndian.AppendUint32(b, domain)
		b = append(b, 0, 0)
		b = binary.LittleEndian.AppendUint64(b, r.Start)
		b = binary.LittleEndian.AppendUint64(b, r.Size())
		b = append(b, 0, 0, 0, 0, 1, 0, 0, 0) // enabled
		return append(b, make([]byte, 8)...)
	}
	body := slices.Concat(make([]byte, 12), memory(0, span(0, border)), memory(1, span(border, gib)))
	for _, tt := range []struct {
		name string
		srat []byte
		cut  bool
		log  string
	}{
		{"none", nil, false, "plain boot"},
		{"two nodes", acpitest.Table("SRAT", 3, body), true, "plain boot"},
		{"damaged", acpitest.Table("SRAT", 3, body[:20]), false, "warn: NUMA nodes, error: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t)
			m.srat = tt.srat
			m.cmdline = "warmcore.block=64M"
			r := m.run()
			wantKernel(t, r, 1, planned)
			wantLog(t, r.log, tt.log)
			var starts bool
			for _, e := range r.payload.plan.NextMap(plan.Capture).Entries {
				starts = starts || e.Kind == memmap.SoftReserved && e.Range.Start == border
			}
			if starts != tt.cut {
				t.Errorf("a hidden range begins at %#x: %v, want %v; plan:\n%v", border, starts, tt.cut, r.payload.plan)
			}
		})
	}
}
