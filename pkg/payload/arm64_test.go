package payload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/binding"
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
	boardRAM     = span(gib, 3*gib)
	boardWindow  = span(0x70000000, 0x78000000)
	boardHandoff = span(0x78000000, 0x78200000)
)

// newBoard is QEMU's virt machine with 2 GiB, started by a boot loader that
// knows the handoff area.
func newBoard(t *testing.T) *machine { return newBoardUp(t, 0) }

// newBoardUp is that machine with all of its RAM higher up.
func newBoardUp(t *testing.T, up uint64) *machine {
	t.Helper()
	m := newMachine(t)
	m.arch, m.tree = plan.ARM64, devicetreetest.Tree("virt-2g")
	m.tree.Root.Remove(memmap.IsMemoryNode)
	n := m.tree.Root.Add(fmt.Sprintf("memory@%x", boardRAM.Start+up))
	n.SetString("device_type", "memory")
	n.Set("reg", pair(t, moved(boardRAM, up)))
	reserved := m.tree.Root.Add("reserved-memory")
	reserved.SetUint32("#address-cells", 2)
	reserved.SetUint32("#size-cells", 2)
	reserved.Set("ranges", nil)
	m.reserve("handoff", binding.CompatibleHandoff, moved(boardHandoff, up))
	m.chosen().Set("linux,usable-memory-range", pair(t, moved(boardWindow, up)))
	m.readFirmware()
	if m.firmwareErr != nil {
		t.Fatal(m.firmwareErr)
	}
	m.mem = physmemtest.New(t, m.firmware.Set(memmap.RAM))
	m.own = phys.NewSet(moved(boardWindow, up))
	m.entries[0].Kernel = normalboot.NewFile("/boot/vmlinuz", bytes.NewReader(segmentstest.DebianARM64(1).Image()))
	return m
}

func moved(r phys.Range, up uint64) phys.Range { return span(r.Start+up, r.End+up) }

// pair is a range as a property of two cells each.
func pair(t testing.TB, r phys.Range) []byte {
	t.Helper()
	v, err := devicetree.Cells{Address: 2, Size: 2}.Value(r)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// reserve adds a node to /reserved-memory.
func (m *machine) reserve(name, compatible string, r phys.Range) {
	m.tb.Helper()
	n := m.tree.Find("/reserved-memory").Add(fmt.Sprintf("%s@%x", name, r.Start))
	n.SetString("compatible", compatible)
	n.Set("reg", pair(m.tb, r))
}

func (m *machine) chosen() *devicetree.Node { return m.tree.Root.Add("chosen") }

// readFirmware reads the map as Linux.FirmwareMap does.
func (m *machine) readFirmware() { m.firmware, m.firmwareErr = memmap.DeviceTree(m.tree) }

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
	if where, ok := binding.Initrd(tree); ok {
		r.initrd = get(where.Start, where.Size())
	}
	next, err := memmap.DeviceTree(tree)
	if err != nil {
		r.treeErr = err
		return
	}
	r.ram = next.Set(memmap.RAM).Minus(next.Set(memmap.Reserved))
}

// TestBoard takes a board through a plain boot, a reset while it is armed, and
// the reset after that, with the dump still unsaved. With all RAM above 4 GiB
// nothing may be cut to 32 bits.
func TestBoard(t *testing.T) {
	for _, up := range []uint64{0, 128 * gib} {
		t.Run(fmt.Sprintf("RAM from %#x", boardRAM.Start+up), func(t *testing.T) {
			m := newBoardUp(t, up)
			testBoard(t, m, moved(boardRAM, up), moved(boardWindow, up), moved(boardHandoff, up))
		})
	}
}

func testBoard(t *testing.T, m *machine, ram, window, handoff phys.Range) {
	t.Helper()
	p, err := plan.Make(plan.Input{Arch: plan.ARM64, Firmware: m.firmware,
		Policy: plan.Policy{Window: phys.NewSet(window), Handoff: handoff}})
	if err != nil {
		t.Fatal(err)
	}
	r := m.run()
	if !r.started || !bytes.Equal(r.initrd, initrd) {
		t.Fatalf("no kernel with its initrd was started:\n%s", r.log)
	}
	if !strings.Contains(r.cmdline, entryCmdline) || strings.Contains(r.cmdline, "elfcorehdr") {
		t.Errorf("command line %q", r.cmdline)
	}
	if got := r.ram.Minus(phys.Set{handoff}); !got.Overlaps(p.Preserved[0]) || got.Overlaps(p.Destination[0]) || got.Overlaps(window) {
		t.Errorf("RAM of the plain boot: %v", got)
	}
	if out := r.ram.Minus(phys.Set{ram}); len(out) > 0 || r.ram.Size() < gib {
		t.Errorf("RAM of the plain boot: %v, want most of %v", r.ram, ram)
	}
	if _, ok := r.tree.Find("/chosen").Property("linux,elfcorehdr"); ok {
		t.Error("a plain boot has an ELF core header")
	}

	copied := p.Copies[0]
	old := bytes.Repeat([]byte("old memory"), 100)
	m.mem.Set(copied.Src+0x5000, old)
	block, err := registration.Load(m.mem.Get(handoff))
	if err != nil {
		t.Fatal(err)
	}
	arm(block)
	off, data, err := registration.Store(block, m.mem.Get(handoff))
	if err != nil {
		t.Fatal(err)
	}
	m.mem.Set(handoff.Start+uint64(off), data)

	for _, what := range []string{"capture", "the dump again"} {
		r = m.run()
		if !r.started {
			t.Fatalf("%s: no kernel was started:\n%s", what, r.log)
		}
		if got := m.mem.Get(span(copied.Dst+0x5000, copied.Dst+0x5000+uint64(len(old)))); !bytes.Equal(got, old) {
			t.Errorf("%s: boot memory is not in its destination", what)
		}
		if extra := r.ram.Minus(p.Boot).Minus(phys.Set{handoff}); len(extra) > 0 {
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
			m.readFirmware()
		}, []string{"the handoff area is not RAM", "boot with the firmware's map"}},
		{"two handoff areas in the tree", func(m *machine) {
			m.reserve("handoff", binding.CompatibleHandoff, span(0x60000000, 0x60200000))
			m.readFirmware()
		}, []string{"error: handoff area, error: find handoff area in the device tree: /reserved-memory: both handoff@78000000 and handoff@60000000 are it -> boot with the firmware's map, no dumps", "boot: without dumps"}},
		{"two reservations overlap", func(m *machine) {
			m.reserve("secmon", "tz", span(0x50000000, 0x50200000))
			m.reserve("ramoops", "ramoops", span(0x501ff000, 0x50210000))
			m.readFirmware()
		}, []string{`warn: firmware's memory map, warning: /reserved-memory: node "secmon@50000000", 50000000-501fffff, and node "ramoops@501ff000", 501ff000-5020ffff, overlap`,
			"boot: plain"}},
		{"a reservation over what the payload maps", func(m *machine) {
			m.reserve("copy", binding.CompatiblePayload, span(0x40000000, 0x50000000))
			m.reserve("ramoops", "ramoops", span(0x4fff0000, 0x50010000))
			m.readFirmware()
		}, []string{`node "copy@40000000", 40000000-4fffffff, and node "ramoops@4fff0000"`, "boot: plain"}},
		{"a reservation over the handoff area", func(m *machine) {
			m.reserve("ramoops", "ramoops", span(0x781ff000, 0x78210000))
			m.readFirmware()
		}, []string{`node "handoff@78000000", 78000000-781fffff, and node "ramoops@781ff000"`, "the handoff area is not RAM", "boot with the firmware's map", "boot: without dumps"}},
		{"a reservation in the payload's memory", func(m *machine) {
			m.reserve("spin-table", "spin", span(0x70000000, 0x70010000))
			m.readFirmware()
		}, []string{"the window is not RAM", "boot: without dumps"}},
		{"the same, /dev/mem is refused", func(m *machine) {
			m.reserve("spin-table", "spin", span(0x70000000, 0x70010000))
			m.readFirmware()
			m.openErr = errBroken
		}, []string{"all of it to kexec_load", "boot: without dumps"}},
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
			if m.ownErr != nil {
				return // there is no place for a kernel
			}
			if !r.started || r.treeErr != nil || !bytes.Equal(r.initrd, initrd) {
				t.Fatalf("no kernel with initrd and memory was started, %v:\n%s", r.treeErr, r.log)
			}
			for _, s := range m.loaded {
				if m.firmware.Set(memmap.Reserved).Overlaps(s.Range) {
					t.Errorf("%v is reserved", s)
				}
			}
			if left := r.ram.Minus(m.firmware.Set(memmap.RAM)); len(left) > 0 {
				t.Errorf("the kernel has %v as RAM, firmware hasn't", left)
			}
		})
	}
}

// TestBoardUnread: a tree that says nothing about memory, or nothing that is
// understood, goes to the normal kernel as it is.
func TestBoardUnread(t *testing.T) {
	noMemory := func(m *machine) { m.tree.Root.Remove(memmap.IsMemoryNode) }
	tests := []struct {
		name   string
		change func(m *machine)
		log    string
	}{
		{"no memory node", noMemory, "no RAM in the memory map"},
		{"memory in EFI's tables", func(m *machine) {
			noMemory(m)
			for i, name := range []string{"linux,uefi-system-table", "linux,uefi-mmap-start"} {
				m.chosen().SetUint64(name, 0xb0000000+uint64(i)<<16)
			}
			m.own = phys.NewSet(boardRAM)
		}, "it is in EFI's tables"},
		{"half a pair of cells", func(m *machine) {
			n := m.tree.Find("/memory@40000000")
			n.Set("reg", append(pair(t, boardRAM), 1, 2, 3, 4))
			n.Set("linux,usable-memory", pair(t, boardWindow))
		}, "not a whole number of pairs"},
		{"half a pair of a reservation", func(m *machine) {
			m.tree.Find("/reserved-memory").Add("x@0").Set("reg", []byte{1, 2, 3, 4})
		}, "/reserved-memory: node"},
		{"no cells", func(m *machine) { m.tree.Root.Delete("#address-cells") }, "the root has no #address-cells"},
		{"three cells", func(m *machine) { m.tree.Root.SetUint32("#size-cells", 3) }, "want 1 or 2"},
		{"usable memory", func(m *machine) { m.chosen().SetUint32("linux,usable-memory-range", 1) }, "linux,usable-memory-range: 4 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newBoard(t)
			tt.change(m)
			m.chosen().SetString("bootargs", "the payload's")
			m.chosen().SetUint64("linux,initrd-start", 0x74000000)
			m.chosen().SetUint64("linux,initrd-end", 0x74800000)
			m.reserve("copy", binding.CompatiblePayload, span(0x40000000, 0x50000000))
			m.readFirmware()
			if m.firmwareErr == nil {
				t.Fatal("the tree can be read")
			}
			m.reserved = phys.NewSet(span(0x70000000, 0x70100000), span(0x77000000, 0x78000000))
			r := m.run()
			wantLog(t, r.log, "error: firmware's memory map, error: read device tree's memory: ", tt.log,
				"the machine's device tree goes to it as it is", "boot: without dumps")
			if !r.started || r.cmdline != entryCmdline+" panic=10" || !bytes.Equal(r.initrd, initrd) {
				t.Fatalf("no kernel with its command line and initrd was started: %v", r)
			}
			for _, s := range m.loaded {
				if free, _ := m.FreeRAM(); !free.Contains(s.Range) {
					t.Errorf("%v is not in the payload's free memory %v", s, free)
				}
			}
			if _, confined := r.tree.Find("/chosen").Property("linux,usable-memory-range"); confined {
				t.Error("the kernel is confined as the payload was")
			}
			// The machine's tree, but for what was the payload's.
			want := m.tree.Clone()
			want.Find("/reserved-memory").Remove(binding.IsOurs)
			for _, n := range want.Root.Children {
				n.Delete("linux,usable-memory")
			}
			for _, tree := range []*devicetree.Tree{want, r.tree} {
				tree.Find("/chosen").Delete("bootargs", "linux,usable-memory-range", "linux,initrd-start", "linux,initrd-end", "kaslr-seed", "rng-seed")
			}
			if diff := cmp.Diff(blob(t, want), blob(t, r.tree)); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
		})
	}
}

func blob(t *testing.T, tree *devicetree.Tree) string {
	t.Helper()
	b, err := tree.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return devicetreetest.Source(t, b)
}

// TestBoardNodes: each region that the kernel is given is of the node whose
// memory it has, but for the info block in front.
func TestBoardNodes(t *testing.T) {
	m := newBoardUp(t, 0)
	ram := span(gib, 5*gib)
	border := uint64(0xa8000000)
	m.tree.Root.Remove(memmap.IsMemoryNode)
	for id, r := range []phys.Range{span(ram.Start, border), span(border, ram.End)} {
		n := m.tree.Root.Add(fmt.Sprintf("memory@%x", r.Start))
		n.SetString("device_type", "memory")
		n.Set("reg", pair(t, r))
		n.SetUint32("numa-node-id", uint32(id))
	}
	m.readFirmware()
	m.mem = physmemtest.New(t, m.firmware.Set(memmap.RAM))
	r := m.run()
	if !r.started {
		t.Fatal(r)
	}
	regions := [2]int{}
	for _, n := range r.tree.Root.Children {
		if !n.Compatible("pmem-region") {
			continue
		}
		id, _ := n.Uint32("numa-node-id")
		reg, err := n.Reg(devicetree.Cells{Address: 2, Size: 2})
		if err != nil || len(reg) != 1 || id > 1 {
			t.Fatalf("%s: node %d, %v, %v", n.Name, id, reg, err)
		}
		regions[id]++
		memory := span(reg[0].Start+plan.ARM64.InfoBlock, reg[0].End)
		if of := (id == 1); memory.Start >= border != of || memory.End > border != of {
			t.Errorf("%s has %v, and is of node %d: the border is at %#x", n.Name, memory, id, border)
		}
	}
	if p := r.payload.plan; regions[0]+regions[1] == 0 || len(p.Borders) == 0 {
		t.Errorf("regions by node: %v; plan:\n%v", regions, p)
	}
}
