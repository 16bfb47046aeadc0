package segments

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/binding"
	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/devicetree/devicetreetest"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/segments/segmentstest"
)

var (
	virtWindow  = span(0x70000000, 0x78000000)
	virtHandoff = span(0x78000000, 0x78200000)
)

// payloadTree is the tree of a machine as a boot loader passes it to the
// payload: confined, with an initrd, with boot memory and destination mapped.
func payloadTree(t testing.TB, name string) *devicetree.Tree {
	t.Helper()
	tree := devicetreetest.Tree(name)
	c := devicetree.Cells{Address: 2, Size: 2}
	value := func(r ...phys.Range) []byte {
		v, err := c.Value(r...)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	chosen := tree.Find("/chosen")
	chosen.SetString("bootargs", "warmcore.handoff=2M@0x78000000")
	chosen.Set("linux,usable-memory-range", value(span(0x40000000, 0xc0000000)))
	chosen.SetUint64("linux,initrd-start", 0x74000000)
	chosen.SetUint64("linux,initrd-end", 0x74800000)
	chosen.SetUint64("linux,uefi-mmap-start", 0x74900000)
	r := tree.Root.Add("reserved-memory")
	r.SetUint32("#address-cells", 2)
	r.SetUint32("#size-cells", 2)
	r.Set("ranges", nil)
	n := r.Add("copy@40000000")
	n.SetString("compatible", binding.CompatiblePayload)
	n.Set("reg", value(span(0x40000000, 0x70000000), span(0x78200000, 0xc0000000)))
	n = r.Add("handoff@78000000")
	n.SetString("compatible", binding.CompatibleHandoff)
	n.Set("reg", value(virtHandoff))
	n.Set("no-map", nil)
	tree.Reservations = []phys.Range{span(0x75000000, 0x75100000)}
	return tree
}

func virtPlan(t testing.TB, tree *devicetree.Tree) *plan.Plan {
	t.Helper()
	firmware, err := memmap.DeviceTree(tree)
	if err != nil {
		t.Fatal(err)
	}
	p, err := plan.Make(plan.Input{Arch: plan.ARM64, Firmware: firmware, Overwritten: phys.Set{span(gib, gib+mib)},
		Policy: plan.Policy{Window: phys.Set{virtWindow}, Handoff: virtHandoff}})
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Check(p); err != nil {
		t.Fatal(err)
	}
	return p
}

func arm64Kernel(t testing.TB, k segmentstest.ARM64) *ARM64Image {
	t.Helper()
	kernel, err := ParseARM64(k.Image())
	if err != nil {
		t.Fatal(err)
	}
	return kernel
}

// normal is a kernel as the payload has it placed.
func normal(t testing.TB, tree *devicetree.Tree, kind plan.Kind) Linux {
	t.Helper()
	p := virtPlan(t, tree)
	l := Linux{
		Kernel:     arm64Kernel(t, segmentstest.DebianARM64(9)),
		InitrdSize: 30*mib + 5,
		Map:        p.NextMap(kind),
		Allowed:    p.Boot,
		Tree:       tree,
		Own:        p.Window,
		Handoff:    p.Handoff,
	}
	if kind == plan.Capture {
		l.CoreHeader = bytes.Repeat([]byte("ELF"), 500)
	}
	l.Cmdline, _ = p.Cmdline("root=/dev/vda1 ro", kind, phys.Range{})
	return l
}

// TestARM64 compares all places.
func TestARM64(t *testing.T) {
	allowed := func(r ...phys.Range) func(l *Linux) {
		return func(l *Linux) {
			l.Allowed = phys.NewSet(r...)
			l.Map = memmap.Map{Entries: []memmap.Entry{{Range: span(gib, 3*gib), Kind: memmap.RAM}}}
			l.Handoff = phys.Range{}
		}
	}
	kernel := func(f func(k *segmentstest.ARM64)) func(l *Linux) {
		return func(l *Linux) {
			k := segmentstest.DebianARM64(9)
			f(&k)
			l.Kernel = arm64Kernel(t, k)
		}
	}
	tests := []struct {
		name   string
		kind   plan.Kind
		change func(l *Linux)
		// Kernel, initrd, start of the device tree, trampoline, ELF core header.
		want string
	}{
		{"plain", plan.Plain, nil,
			"40200000-42d2ffff 95fff000-97dff004 40100000 70000000-70000fff none"},
		{"capture", plan.Capture, nil,
			"40200000-42d2ffff 95fff000-97dff004 40104000 70000000-70000fff 40100000-401005db"},
		{"no initrd", plan.Plain, func(l *Linux) { l.InitrdSize = 0 },
			"40200000-42d2ffff 00000000-empty 40100000 70000000-70000fff none"},
		{"text_offset", plan.Plain, kernel(func(k *segmentstest.ARM64) { k.TextOffset = 0x80000 }),
			"40280000-42daffff 95fff000-97dff004 40100000 70000000-70000fff none"},
		{"bottom is too small for the kernel", plan.Plain, allowed(span(0x40100000, 0x41000000), span(0x50100000, 0x60000000)),
			"50200000-52d2ffff 5e1ff000-5ffff004 40100000 70000000-70000fff none"},
		{"kernel fits exactly", plan.Plain, allowed(span(0x50200000, 0x52d30000), span(0x40100000, 0x42000000)),
			"50200000-52d2ffff 401ff000-41fff004 40100000 70000000-70000fff none"},
		{"all in the running kernel's memory", plan.Plain, func(l *Linux) {
			allowed(virtWindow)(l)
			l.Own = phys.Set{virtWindow}
		}, "70000000-72b2ffff 761ff000-77fff004 72b30000 72b32000-72b32fff none"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := normal(t, payloadTree(t, "virt-2g"), tt.kind)
			if tt.change != nil {
				tt.change(&l)
			}
			img, err := Place(l)
			if err != nil {
				t.Fatal(err)
			}
			checkARM64(t, l, img)
			got := fmt.Sprintf("%v %v %x %v", img.Segments[0].Range, img.Initrd, find(img, "device tree").Range.Start, img.Trampoline.Range)
			if header := find(img, "ELF core header"); header.Data != nil {
				got += fmt.Sprint(" ", header.Range)
			} else {
				got += " none"
			}
			if got != tt.want {
				t.Errorf("places of kernel, initrd, device tree, trampoline, core header\n got %s\nwant %s", got, tt.want)
			}
		})
	}
}

func find(img *Image, name string) phys.Segment {
	for _, s := range img.Segments {
		if s.Name == name {
			return s
		}
	}
	return phys.Segment{}
}

// checkARM64 asks of an image what booting.rst asks, and that nothing lies
// over anything.
func checkARM64(t testing.TB, l Linux, img *Image) {
	t.Helper()
	k := l.Kernel.(*ARM64Image)
	kernel, tree, header := img.Segments[0], find(img, "device tree"), find(img, "ELF core header")
	if kernel.Range.Start%(2*mib) != k.TextOffset || kernel.Range.Size() < k.ImageSize || img.Entry != kernel.Range.Start {
		t.Errorf("kernel at %v, entry %#x: text_offset %#x, image_size %#x", kernel.Range, img.Entry, k.TextOffset, k.ImageSize)
	}
	if tree.Range.Start%8 != 0 || tree.Range.Size() > 2*mib || tree.Range.Start/(2*mib) != (tree.Range.End-1)/(2*mib) {
		t.Errorf("device tree at %v", tree.Range)
	}
	if l.InitrdSize > 0 {
		low, high := min(kernel.Range.Start, img.Initrd.Start), max(kernel.Range.End, img.Initrd.End)
		if img.Initrd.Size() != l.InitrdSize || low/gib*gib+32*gib < high {
			t.Errorf("initrd of %d bytes at %v, kernel at %v", l.InitrdSize, img.Initrd, kernel.Range)
		}
	}
	var taken phys.Set
	ranges := []phys.Range{img.Initrd, img.Trampoline.Range}
	for _, s := range img.Segments {
		ranges = append(ranges, s.Range)
		if !l.Allowed.Contains(s.Range) || uint64(len(s.Data)) > s.Range.Size() {
			t.Errorf("%v of %d bytes is not in %v", s, len(s.Data), l.Allowed)
		}
	}
	if !l.Allowed.Contains(img.Initrd) || !l.Own.Contains(img.Trampoline.Range) {
		t.Errorf("initrd %v or trampoline %v is elsewhere", img.Initrd, img.Trampoline.Range)
	}
	for _, r := range ranges {
		if taken.Overlaps(r) {
			t.Errorf("%v overlaps %v", r, taken)
		}
		taken = taken.Union(phys.Set{r})
	}
	// What the kernel is told, read by the offsets of the format.
	written, err := devicetree.Parse(tree.Data)
	if err != nil {
		t.Fatal(err)
	}
	chosen := written.Find("/chosen")
	if got := chosen.Strings("bootargs"); len(got) != 1 || got[0] != l.Cmdline {
		t.Errorf("bootargs %q, want %q", got, l.Cmdline)
	}
	if r, ok := binding.Initrd(written); ok != (l.InitrdSize > 0) || r != img.Initrd {
		t.Errorf("the kernel is told of the initrd %v, %v; it is at %v", r, ok, img.Initrd)
	}
	elfcorehdr, _ := chosen.Property("linux,elfcorehdr")
	if want := append(binary.BigEndian.AppendUint64(nil, header.Range.Start), binary.BigEndian.AppendUint64(nil, header.Range.Size())...); header.Data != nil && !bytes.Equal(elfcorehdr, want) || header.Data == nil && elfcorehdr != nil {
		t.Errorf("linux,elfcorehdr %x, the header is at %v", elfcorehdr, header.Range)
	}
	m, err := memmap.DeviceTree(written)
	if err != nil || !slices.Equal(m.Set(memmap.RAM), l.Map.Set(memmap.RAM)) {
		t.Errorf("RAM in the tree: %v, %v; want %v", m.Set(memmap.RAM), err, l.Map.Set(memmap.RAM))
	}
	code := img.Trampoline.Data
	if !bytes.Contains(code, binary.LittleEndian.AppendUint64(nil, tree.Range.Start)) || !bytes.Contains(code, binary.LittleEndian.AppendUint64(nil, img.Entry)) {
		t.Error("the trampoline knows neither kernel nor device tree")
	}
}

func TestARM64Refuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(l *Linux)
		want   string
	}{
		{"command line too long", func(l *Linux) { l.Cmdline = strings.Repeat("x", 2048) }, "command line of 2048 bytes: the kernel takes 2047"},
		{"no tree", func(l *Linux) { l.Tree = nil }, "there is no device tree"},
		{"nothing allowed", func(l *Linux) { l.Allowed = nil }, "place kernel: no room for 43.2 MiB: nothing is left"},
		{"kernel between multiples of 2 MiB", func(l *Linux) { l.Allowed = phys.Set{span(0x40100000, 0x40200000+0x2b30000-0x1000)} }, "place kernel: no room"},
		{"no room for the initrd", func(l *Linux) { l.InitrdSize = gib }, "place initrd: no room for 1 GiB"},
		{"initrd 32 GiB away", func(l *Linux) {
			l.Allowed = phys.NewSet(span(0x7fe00000, 0x82930000), span(33*gib, 40*gib))
		}, "place initrd: no room for 30 MiB"},
		{"no room for the core header", func(l *Linux) { l.CoreHeader = make([]byte, 300*mib) }, "place ELF core header: no room"},
		{"no room for the device tree", func(l *Linux) {
			l.Allowed, l.InitrdSize, l.CoreHeader = phys.Set{span(0x40200000, 0x40200000+0x2b30000+0x1000)}, 0, nil
		}, "place device tree: no room for 8.3 KiB"},
		{"no room for the trampoline", func(l *Linux) { l.Own = nil }, "place trampoline: no room for 4 KiB: nothing is left"},
		{"kernel beyond 48 bits", func(l *Linux) { l.Allowed = phys.NewSet(span(1<<48, 1<<48+gib)) }, "build trampoline: entry"},
		{"tree without memory", func(l *Linux) {
			l.Tree.Root.Remove(func(n *devicetree.Node) bool { return n.BaseName() == "memory" })
		}, "no RAM in the memory map"},
		{"RAM that the tree doesn't have", func(l *Linux) {
			l.Map = memmap.Map{Entries: []memmap.Entry{{Range: span(gib, 4*gib), Kind: memmap.RAM}}}
		}, "write device tree: RAM c0000000-ffffffff is in no memory node"},
		{"RAM that is reserved", func(l *Linux) {
			r := l.Tree.Find("/reserved-memory")
			r.Remove(func(n *devicetree.Node) bool { return n.Name == "copy@40000000" })
			n := r.Add("secmon@41000000")
			n.Set("reg", []byte{0, 0, 0, 0, 0x41, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0})
		}, "the tree gives the kernel 40100000-40ffffff 41010000-4fdfffff"},
		{"hidden memory that is reserved", func(l *Linux) {
			r := l.Tree.Find("/reserved-memory")
			r.Remove(func(n *devicetree.Node) bool { return n.Name == "copy@40000000" })
			n := r.Add("secmon@b0000000")
			n.Set("reg", []byte{0, 0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0})
		}, "hidden memory b0000000-b000ffff is in the tree as the kernel's"},
		{"handoff area beyond the cells", func(l *Linux) {
			l.Tree.Find("/reserved-memory").SetUint32("#address-cells", 1)
			l.Tree.Find("/reserved-memory").SetUint32("#size-cells", 1)
			l.Tree.Find("/reserved-memory").Children = nil
			l.Handoff = span(5*gib, 5*gib+2*mib)
		}, `write device tree: node "handoff@140000000"`},
		{"capture without a memory map", func(l *Linux) { l.Map = memmap.Map{} }, "a capture kernel without a memory map"},
		{"no root, no memory map", func(l *Linux) { l.Map, l.Tree = memmap.Map{}, &devicetree.Tree{} }, "the machine's has no root"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := normal(t, payloadTree(t, "virt-2g"), plan.Capture)
			tt.change(&l)
			img, err := ARM64(l)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
			if img != nil {
				t.Errorf("an error came with the image %+v", img)
			}
		})
	}
}

// FuzzARM64 places kernels of any size in any memory; what is placed keeps the
// boot protocol's rules.
func FuzzARM64(f *testing.F) {
	f.Add([]byte{1, 200, 3, 100}, uint32(0x2b30000), uint32(0), uint32(30<<20), uint16(700))
	f.Add([]byte{0, 16, 255, 255}, uint32(0x100000), uint32(0x80000), uint32(1), uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, size, offset, initrd uint32, header uint16) {
		kernel, err := ParseARM64(segmentstest.ARM64{TextOffset: uint64(offset), ImageSize: uint64(size), Flags: 8}.Image())
		if err != nil {
			return
		}
		const unit = 333 * phys.KiB
		var allowed phys.Set
		at := gib
		for i := 0; i+1 < len(b) && i < 32; i += 2 {
			at += uint64(b[i]) * unit
			allowed = allowed.Union(phys.Set{{Start: at, End: at + uint64(b[i+1])*unit}})
			at += uint64(b[i+1]) * unit * uint64(1+i%5*40)
		}
		var m memmap.Map
		tree := devicetreetest.Tree("virt-2g")
		var pairs []phys.Range
		for _, r := range allowed {
			m.Entries = append(m.Entries, memmap.Entry{Range: r, Kind: memmap.RAM})
			pairs = append(pairs, r)
		}
		reg, err := devicetree.Cells{Address: 2, Size: 2}.Value(pairs...)
		if err != nil {
			t.Fatal(err)
		}
		tree.Find("/memory@40000000").Set("reg", reg)
		l := Linux{Kernel: kernel, InitrdSize: uint64(initrd), Cmdline: "x", Map: m, Allowed: allowed, Tree: tree,
			Own: phys.Set{span(mib, 2*mib)}, CoreHeader: bytes.Repeat([]byte{1}, int(header))}
		if header%2 == 0 {
			l.Own = allowed
		}
		img, err := ARM64(l)
		if err != nil {
			if img != nil {
				t.Fatal("an image came with an error")
			}
			return
		}
		checkARM64(t, l, img)
	})
}
