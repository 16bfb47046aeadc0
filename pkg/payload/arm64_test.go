package payload

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/devicetree/devicetreetest"
	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/normalboot"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/physmem/physmemtest"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/segments/segmentstest"
)

var (
	boardWindow  = span(0x70000000, 0x78000000)
	boardHandoff = span(0x78000000, 0x78200000)
)

// newBoard is QEMU's virt machine with 2 GiB, started by a boot loader that
// knows the handoff area.
func newBoard(t *testing.T) *machine {
	t.Helper()
	tree := devicetreetest.Tree("virt-2g")
	c := devicetree.Cells{Address: 2, Size: 2}
	reserved := tree.Root.Add("reserved-memory")
	reserved.SetUint32("#address-cells", 2)
	reserved.SetUint32("#size-cells", 2)
	reserved.Set("ranges", nil)
	h := reserved.Add("handoff@78000000")
	h.SetString("compatible", memmap.CompatibleHandoff)
	reg, err := c.Value(boardHandoff)
	if err != nil {
		t.Fatal(err)
	}
	h.Set("reg", reg)
	firmware, err := memmap.DeviceTree(tree)
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t)
	m.arch, m.tree, m.firmware = plan.ARM64, tree, firmware
	m.mem = physmemtest.New(t, firmware.Set(memmap.RAM))
	m.own = phys.NewSet(boardWindow)
	m.entries[0].Kernel = normalboot.NewFile("/boot/vmlinuz", bytes.NewReader(segmentstest.DebianARM64(1).Image()))
	return m
}

// TestInterruptTables: no warning where there is no reason for one.
func TestInterruptTables(t *testing.T) {
	m := newBoard(t)
	chosen := m.tree.Find("/chosen")
	chosen.SetString("bootargs", "quiet irqchip.gicv3_nolpi=1")
	if lentInterruptTables(m.tree) {
		t.Error("tables with irqchip.gicv3_nolpi=1")
	}
	chosen.SetString("bootargs", "quiet")
	its := m.tree.Root.Add("its@8080000")
	its.SetString("compatible", "arm,gic-v3-its")
	if !lentInterruptTables(m.tree) {
		t.Error("no tables with an ITS")
	}
	for _, n := range m.tree.Root.Children { // the machine may have its own
		n.Delete("compatible")
		n.Children = nil
	}
	if lentInterruptTables(m.tree) {
		t.Error("tables without an ITS")
	}
}

// readTree reads the started kernel's device tree as the kernel would.
func (m *machine) readTree(r *result, get func(addr, n uint64) []byte, entry, at uint64) {
	m.tb.Helper()
	r.code = get(entry, 4096)
	size := binary.BigEndian.Uint32(get(at, 8)[4:])
	tree, err := devicetree.Parse(get(at, uint64(size)))
	if err != nil {
		m.tb.Fatalf("the started kernel's device tree: %v", err)
	}
	r.tree = tree
	r.cmdline = strings.Join(tree.Find("/chosen").Strings("bootargs"), "")
	if where, ok := memmap.Initrd(tree); ok {
		r.initrd = get(where.Start, where.Size())
	}
	next, err := memmap.DeviceTree(tree)
	if err != nil {
		m.tb.Fatalf("the started kernel's memory: %v", err)
	}
	r.ram = next.Set(memmap.RAM).Minus(next.Set(memmap.Reserved))
}

func (m *machine) boardPlan() *plan.Plan {
	m.tb.Helper()
	p, err := plan.Make(plan.Input{Arch: plan.ARM64, Firmware: m.firmware,
		Policy: plan.Policy{Window: phys.NewSet(boardWindow), Handoff: boardHandoff}})
	if err != nil {
		m.tb.Fatal(err)
	}
	return p
}

// TestBoard takes a board through a plain boot, a reset while it is armed, and
// the reset after that, with the dump still unsaved.
func TestBoard(t *testing.T) {
	m := newBoard(t)
	p := m.boardPlan()
	r := m.run()
	if !r.started || !bytes.Equal(r.initrd, initrd) {
		t.Fatalf("no kernel with its initrd was started:\n%s", r.log)
	}
	if !strings.Contains(r.cmdline, entryCmdline) || strings.Contains(r.cmdline, "elfcorehdr") {
		t.Errorf("command line %q", r.cmdline)
	}
	if got := r.ram.Minus(phys.Set{boardHandoff}); !got.Overlaps(p.Preserved[0]) || got.Overlaps(p.Destination[0]) || got.Overlaps(boardWindow) {
		t.Errorf("RAM of the plain boot: %v", got)
	}
	if _, ok := r.tree.Find("/chosen").Property("linux,elfcorehdr"); ok {
		t.Error("a plain boot has an ELF core header")
	}

	copied := p.Copies[0]
	old := bytes.Repeat([]byte("old memory"), 100)
	m.mem.Set(copied.Src+0x5000, old)
	block, err := registration.Load(m.mem.Get(boardHandoff))
	if err != nil {
		t.Fatal(err)
	}
	arm(block)
	off, data, err := registration.Store(block, m.mem.Get(boardHandoff))
	if err != nil {
		t.Fatal(err)
	}
	m.mem.Set(boardHandoff.Start+uint64(off), data)

	for _, what := range []string{"capture", "the dump again"} {
		r = m.run()
		if !r.started {
			t.Fatalf("%s: no kernel was started:\n%s", what, r.log)
		}
		if got := m.mem.Get(span(copied.Dst+0x5000, copied.Dst+0x5000+uint64(len(old)))); !bytes.Equal(got, old) {
			t.Errorf("%s: boot memory is not in its destination", what)
		}
		if extra := r.ram.Minus(p.Boot).Minus(phys.Set{boardHandoff}); len(extra) > 0 {
			t.Errorf("%s: RAM of the capture boot has %v, which is not boot memory", what, extra)
		}
		v, _ := r.tree.Find("/chosen").Property("linux,elfcorehdr")
		if len(v) != 16 {
			t.Fatalf("%s: linux,elfcorehdr is %x", what, v)
		}
		at, size := binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])
		where, ok := phys.Sized(at, size)
		if !ok || !p.Boot.Contains(where) {
			t.Fatalf("%s: the ELF core header %v is not in boot memory", what, where)
		}
		header, err := elfcore.Parse(m.mem.Get(where))
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if header.Machine != elfcore.MachineARM64 {
			t.Errorf("%s: the dump is for machine %d", what, header.Machine)
		}
		m.mem.Set(p.Boot[0].Start, make([]byte, 64)) // the kernel runs in boot memory
	}
}

// TestBoardRefuses: what is no reason for a dump is no reason not to boot.
func TestBoardRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(m *machine)
		log    []string
	}{
		{"64K pages with memory blocks of 128 MiB", func(m *machine) {
			k := segmentstest.DebianARM64(1)
			k.Flags = k.Flags&^6 | 3<<1
			m.entries[0].Kernel = normalboot.NewFile("/boot/vmlinuz", bytes.NewReader(k.Image()))
		}, []string{"warmcore.block=512M", "boot with the firmware's map"}},
		{"no handoff area in the tree", func(m *machine) {
			m.tree.Find("/reserved-memory").Children = nil
			m.firmware, _ = memmap.DeviceTree(m.tree)
		}, []string{"the handoff area is not RAM", "boot with the firmware's map"}},
		{"slow memory", func(m *machine) { m.mem.Device = m.firmware.Set(memmap.RAM) }, []string{"slow:", "warmcore,payload"}},
		{"interrupt tables in the window", func(m *machine) {
			m.tree.Root.Add("its@8080000").SetString("compatible", "arm,gic-v3-its")
		}, []string{"interrupt tables", "irqchip.gicv3_nolpi=1"}},
		{"own memory is not known", func(m *machine) { m.ownErr = errBroken }, []string{"the payload's own memory"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newBoard(t)
			tt.change(m)
			r := m.run()
			wantLog(t, r.log, tt.log...)
			if m.ownErr == nil && !r.started {
				t.Errorf("no kernel was started:\n%s", r.log)
			}
		})
	}
}
