package memmap_test

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/binding"
	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/devicetree/devicetreetest"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

// cells returns a property's value.
func cells(v ...uint32) (b []byte) {
	for _, c := range v {
		b = binary.BigEndian.AppendUint32(b, c)
	}
	return b
}

// reserve adds a node to /reserved-memory, which is made if need be.
func reserve(t *devicetree.Tree, name, compatible string, reg ...uint32) *devicetree.Node {
	r := t.Root.Add("reserved-memory")
	if len(r.Properties) == 0 {
		r.SetUint32("#address-cells", 2)
		r.SetUint32("#size-cells", 2)
		r.Set("ranges", nil)
	}
	n := r.Add(name)
	if compatible != "" {
		n.SetString("compatible", compatible)
	}
	if len(reg) > 0 {
		n.Set("reg", cells(reg...))
	}
	return n
}

func memory(t *devicetree.Tree, name string, reg ...uint32) *devicetree.Node {
	n := t.Root.Add(name)
	n.SetString("device_type", "memory")
	n.Set("reg", cells(reg...))
	return n
}

// TestDeviceTree reads trees and compares the maps; each change is made to the
// tree of a machine with 2 GiB at 1 GiB.
func TestDeviceTree(t *testing.T) {
	const ram = "40000000-bfffffff : memory@40000000 [System RAM]\n"
	tests := []struct {
		name     string
		tree     string
		change   func(t *devicetree.Tree)
		want     string
		warnings []string
	}{
		{name: "virt-2g", want: ram},
		{name: "virt-2g-el2", tree: "virt-2g-el2", want: ram},
		{name: "virt-6g", tree: "virt-6g", want: "40000000-1bfffffff : memory@40000000 [System RAM]\n"},
		{name: "virt-4g-numa", tree: "virt-4g-numa",
			want: "80000000-13fffffff : memory@80000000 [System RAM]\n40000000-7fffffff : memory@40000000 [System RAM]\n"},
		{name: "several pairs", change: func(t *devicetree.Tree) {
			memory(t, "memory@40000000", 0, 0x40000000, 0, 0x1000000, 0, 0, 0, 0, 8, 0, 2, 0)
		}, want: "40000000-40ffffff : memory@40000000 [System RAM]\n800000000-9ffffffff : memory@40000000 [System RAM]\n"},
		{name: "all above 4 GiB", change: func(t *devicetree.Tree) {
			memory(t, "memory@40000000", 0x20, 0, 0, 0x80000000)
		}, want: "2000000000-207fffffff : memory@40000000 [System RAM]\n"},
		{name: "one cell each", change: func(t *devicetree.Tree) {
			t.Root.SetUint32("#address-cells", 1)
			t.Root.SetUint32("#size-cells", 1)
			memory(t, "memory@40000000", 0x80000000, 0x40000000, 0xc0000000, 0x3fffffff)
		}, want: "80000000-bfffffff : memory@40000000 [System RAM]\nc0000000-fffffffe : memory@40000000 [System RAM]\n"},
		{name: "two nodes, one disabled, one hotpluggable", change: func(t *devicetree.Tree) {
			memory(t, "memory@100000000", 1, 0, 0, 0x40000000).SetString("status", "disabled")
			memory(t, "memory@200000000", 2, 0, 0, 0x40000000).Set("hotpluggable", nil)
		}, want: ram + "200000000-23fffffff : memory@200000000 [System RAM]\n"},
		{name: "no device_type", change: func(t *devicetree.Tree) {
			memory(t, "memory@100000000", 1, 0, 0, 0x40000000).Delete("device_type")
		}, want: ram, warnings: []string{`node "memory@100000000" has no device_type "memory": kernels ignore it`}},
		{name: "nodes overlap", change: func(t *devicetree.Tree) {
			memory(t, "memory@80000000", 0, 0x80000000, 0, 0x80000000)
		}, want: ram + "80000000-ffffffff : memory@80000000 [System RAM]\n", warnings: []string{"memory nodes overlap: they list 4 GiB, which is 3 GiB of RAM"}},
		{name: "reserved memory", change: func(t *devicetree.Tree) {
			reserve(t, "secmon@40000000", "", 0, 0x40000000, 0, 0x200000).Set("no-map", nil)
			reserve(t, "framebuffer@7f000000", "", 0, 0x7f000000, 0, 0x800000, 0, 0x60000000, 0, 0x1000)
			reserve(t, "sram@0", "", 0, 0, 0, 0x10000)
			reserve(t, "off@70000000", "", 0, 0x70000000, 0, 0x10000).SetString("status", "disabled")
			reserve(t, "none@1", "", 0, 0x50000000, 0, 0)
		}, want: ram + "  40000000-401fffff : secmon@40000000 [Reserved]\n  7f000000-7f7fffff : framebuffer@7f000000 [Reserved]\n" +
			"  60000000-60000fff : framebuffer@7f000000 [Reserved]\n00000000-0000ffff : sram@0 [Reserved]\n"},
		{name: "regions that the kernel places", change: func(t *devicetree.Tree) {
			n := reserve(t, "linux,cma", "shared-dma-pool")
			n.Set("size", cells(0, 0x4000000))
		}, want: ram, warnings: []string{`/reserved-memory: node "linux,cma" has no address: each kernel places it by itself`}},
		{name: "reserved memory that kernels ignore", change: func(t *devicetree.Tree) {
			reserve(t, "secmon@40000000", "", 0, 0x40000000, 0, 0x200000)
			t.Find("/reserved-memory").Delete("ranges")
		}, want: ram + "  40000000-401fffff : secmon@40000000 [Reserved]\n", warnings: []string{"/reserved-memory has no ranges, or cells of its own: kernels ignore it"}},
		{name: "reserved memory with cells of its own", change: func(t *devicetree.Tree) {
			reserve(t, "secmon@40000000", "", 0x40000000, 0x200000)
			t.Find("/reserved-memory").SetUint32("#address-cells", 1)
			t.Find("/reserved-memory").SetUint32("#size-cells", 1)
		}, want: ram + "  40000000-401fffff : secmon@40000000 [Reserved]\n", warnings: []string{"/reserved-memory has no ranges, or cells of its own: kernels ignore it"}},
		{name: "reservations of the payload", change: func(t *devicetree.Tree) {
			reserve(t, "handoff@78000000", binding.CompatibleHandoff, 0, 0x78000000, 0, 0x200000).Set("no-map", nil)
			reserve(t, "copy@40000000", binding.CompatiblePayload, 0, 0x40000000, 0, 0x10000000, 0, 0xa0000000, 0, 0x10000000)
			reserve(t, "handoff@0", binding.CompatibleHandoff, 0, 0, 0, 0x200000)
		}, want: ram + "  78000000-781fffff : handoff@78000000 [System RAM]\n  40000000-4fffffff : copy@40000000 [System RAM]\n" +
			"  a0000000-afffffff : copy@40000000 [System RAM]\n00000000-001fffff : handoff@0 [Reserved]\n"},
		{name: "reserved memory overlaps", change: func(t *devicetree.Tree) {
			reserve(t, "b@48000000", "", 0, 0x48000000, 0, 0x1000)
			reserve(t, "a@47fff000", "", 0, 0x47fff000, 0, 0x100000)
			reserve(t, "c@48001000", "", 0, 0x48001000, 0, 0x1000, 0, 0x48001fff, 0, 1)
		}, want: ram + "  48000000-48000fff : b@48000000 [Reserved]\n  47fff000-480fefff : a@47fff000 [Reserved]\n" +
			"  48001000-48001fff : c@48001000 [Reserved]\n  48001fff-48001fff : c@48001000 [Reserved]\n",
			warnings: []string{
				`/reserved-memory: node "a@47fff000", 47fff000-480fefff, and node "b@48000000", 48000000-48000fff, overlap`,
				`/reserved-memory: node "a@47fff000", 47fff000-480fefff, and node "c@48001000", 48001000-48001fff, overlap`,
				`/reserved-memory: node "a@47fff000", 47fff000-480fefff, and node "c@48001000", 48001fff-48001fff, overlap`,
			}},
		{name: "reservation block", change: func(t *devicetree.Tree) {
			t.Reservations = []phys.Range{{Start: 0x40000000, End: 0x40010000}, {Start: 0, End: 0x1000}}
		}, want: ram + "  40000000-4000ffff : memreserve [Reserved]\n00000000-00000fff : memreserve [Reserved]\n"},
		// What U-Boot lists: the payload's initrd and tree, in the window or not,
		// and a page that it needs at each reset.
		{name: "reservation block of a boot loader", change: func(t *devicetree.Tree) {
			t.Find("/chosen").Set("linux,usable-memory-range", cells(0, 0x70000000, 0, 0x8000000, 0, 0x40000000, 0, 0x10000000))
			t.Find("/chosen").SetUint64("linux,initrd-start", 0xb0000123)
			t.Find("/chosen").SetUint64("linux,initrd-end", 0xb0200456)
			reserve(t, "copy@40000000", binding.CompatiblePayload, 0, 0x40000000, 0, 0x10000000)
			t.Reservations = []phys.Range{{Start: 0x75000000, End: 0x75004000}, {Start: 0xb0000000, End: 0xb0201000}, {Start: 0x47fff000, End: 0x48001000}, {Start: 0x6ffff000, End: 0x70001000}}
		}, want: ram + "  40000000-4fffffff : copy@40000000 [System RAM]\n  47fff000-48000fff : memreserve [Reserved]\n  6ffff000-6fffffff : memreserve [Reserved]\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.tree == "" {
				tt.tree = "virt-2g"
			}
			tree := devicetreetest.Tree(tt.tree)
			if tt.change != nil {
				tt.change(tree)
			}
			m, err := memmap.DeviceTree(tree)
			if err != nil {
				t.Fatal(err)
			}
			checkMap(t, m, err)
			if diff := cmp.Diff(tt.want, m.String()); diff != "" {
				t.Errorf("map (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.warnings, m.Warnings); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDeviceTreeHides: what a boot loader reserves is not RAM of the machine,
// what the payload reserves is.
func TestDeviceTreeHides(t *testing.T) {
	tree := devicetreetest.Tree("virt-2g")
	reserve(tree, "secmon@40000000", "", 0, 0x40000000, 0, 0x200000)
	reserve(tree, "copy@50000000", binding.CompatiblePayload, 0, 0x50000000, 0, 0x10000000)
	reserve(tree, "ramoops@5fff0000", "ramoops", 0, 0x5fff0000, 0, 0x20000)
	tree.Reservations = []phys.Range{{Start: 0x58000000, End: 0x58001000}}
	m, err := memmap.DeviceTree(tree)
	if err != nil {
		t.Fatal(err)
	}
	want := phys.Set{{Start: 0x40200000, End: 0x58000000}, {Start: 0x58001000, End: 0x5fff0000}, {Start: 0x60010000, End: 0xc0000000}}
	if diff := cmp.Diff(want, m.Set(memmap.RAM)); diff != "" {
		t.Errorf("RAM (-want +got):\n%s", diff)
	}
}

func TestDeviceTreeRefuses(t *testing.T) {
	noMemory := func(t *devicetree.Tree) {
		t.Root.Remove(func(n *devicetree.Node) bool { return n.BaseName() == "memory" })
	}
	tests := []struct {
		name   string
		change func(t *devicetree.Tree)
		want   string
		is     error
	}{
		{"no memory", noMemory, "no RAM in the memory map", memmap.ErrNoRAM},
		{"memory in EFI's tables", func(t *devicetree.Tree) {
			noMemory(t)
			t.Find("/chosen").SetUint64("linux,uefi-mmap-start", 1)
		}, "it is in EFI's tables: no RAM", memmap.ErrNoRAM},
		{"memory of no size", func(t *devicetree.Tree) { memory(t, "memory@40000000", 0, 0x40000000, 0, 0) }, "no RAM", memmap.ErrNoRAM},
		{"all memory disabled", func(t *devicetree.Tree) { t.Find("/memory@40000000").SetString("status", "disabled") }, "no RAM", memmap.ErrNoRAM},
		{"no root", func(t *devicetree.Tree) { t.Root = nil }, "no root", nil},
		{"no #address-cells", func(t *devicetree.Tree) { t.Root.Delete("#address-cells") }, "the root has no #address-cells", nil},
		{"no #size-cells", func(t *devicetree.Tree) { t.Root.Delete("#size-cells") }, "the root has no #size-cells", nil},
		{"three cells", func(t *devicetree.Tree) { t.Root.SetUint32("#address-cells", 3) }, "#address-cells 3: want 1 or 2", nil},
		{"half a pair", func(t *devicetree.Tree) { memory(t, "memory@40000000", 0, 0x40000000, 0) }, `node "memory@40000000": reg: 12 bytes: not a whole number of pairs of 2 and 2 cells`, nil},
		{"memory that wraps", func(t *devicetree.Tree) { memory(t, "memory@40000000", 0xffffffff, 0, 0xffffffff, 0) }, "beyond 64 bits", nil},
		{"half a pair in reserved memory", func(t *devicetree.Tree) { reserve(t, "a@0", "", 0) }, `/reserved-memory: node "a@0": reg: 4 bytes`, nil},
		{"cells of reserved memory", func(t *devicetree.Tree) {
			reserve(t, "a@0", "")
			t.Find("/reserved-memory").SetUint32("#size-cells", 0)
		}, "#size-cells 0: want 1 or 2", nil},
		{"usable memory", func(t *devicetree.Tree) {
			t.Find("/chosen").Set("linux,usable-memory-range", cells(1))
		}, "linux,usable-memory-range: 4 bytes", nil},
		{"too many pairs", func(t *devicetree.Tree) {
			var reg []uint32
			for i := range uint32(memmap.MaxEntries + 1) {
				reg = append(reg, 0, i*0x2000, 0, 0x1000)
			}
			memory(t, "memory@40000000", reg...)
		}, "more than 4096 entries", memmap.ErrTooMany},
		{"too many reservations", func(t *devicetree.Tree) {
			var reg []uint32
			for i := range uint32(memmap.MaxEntries) {
				reg = append(reg, 0, i*0x2000, 0, 0x1000)
			}
			reserve(t, "x@0", "", reg...)
		}, "more than 4096 entries", memmap.ErrTooMany},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tree := devicetreetest.Tree("virt-2g")
			tt.change(tree)
			m, err := memmap.DeviceTree(tree)
			checkMap(t, m, err)
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("DeviceTree(): %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzDeviceTree(f *testing.F) {
	for _, name := range devicetreetest.Names() {
		f.Add(devicetreetest.Blob(name))
	}
	tree := devicetreetest.Tree("virt-2g")
	tree.Root.Remove(func(n *devicetree.Node) bool { return n.BaseName() != "memory" && n.BaseName() != "chosen" })
	reserve(tree, "x@40000000", binding.CompatiblePayload, 0, 0x40000000, 0, 0x200000)
	reserve(tree, "y@50000000", "", 0, 0x50000000, 0, 0x200000)
	tree.Find("/chosen").Set("linux,usable-memory-range", cells(0, 0x70000000, 0, 0x8000000))
	tree.Reservations = []phys.Range{{Start: 0x6ffff000, End: 0x70001000}}
	blob, err := tree.Append(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(blob)
	f.Fuzz(func(t *testing.T, blob []byte) {
		tree, err := devicetree.Parse(blob)
		if err != nil {
			return
		}
		m, err := memmap.DeviceTree(tree)
		checkMap(t, m, err)
	})
}

func TestNodes(t *testing.T) {
	for _, tt := range []struct {
		name   string
		tree   string
		change func(t *devicetree.Tree)
		want   []memmap.Node
		err    string
	}{
		{"no nodes", "virt-2g", nil, nil, ""},
		{"two nodes", "virt-4g-numa", nil, []memmap.Node{
			{ID: 1, Range: phys.Range{Start: 0x80000000, End: 0x140000000}}, {ID: 0, Range: phys.Range{Start: 0x40000000, End: 0x80000000}}}, ""},
		{"one of them isn't named", "virt-4g-numa", func(t *devicetree.Tree) { t.Find("/memory@40000000").Delete("numa-node-id") }, []memmap.Node{
			{ID: 1, Range: phys.Range{Start: 0x80000000, End: 0x140000000}}, {ID: 0, Range: phys.Range{Start: 0x40000000, End: 0x80000000}}}, ""},
		{"a node without memory", "virt-4g-numa", func(t *devicetree.Tree) { t.Find("/memory@40000000").SetString("status", "disabled") }, []memmap.Node{
			{ID: 1, Range: phys.Range{Start: 0x80000000, End: 0x140000000}}}, ""},
		{"half a reg", "virt-4g-numa", func(t *devicetree.Tree) { t.Find("/memory@40000000").Set("reg", cells(0, 1)) }, nil, `read NUMA nodes: node "memory@40000000": `},
		{"no cells", "virt-4g-numa", func(t *devicetree.Tree) { t.Root.Delete("#size-cells") }, nil, "read NUMA nodes: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree := devicetreetest.Tree(tt.tree)
			if tt.change != nil {
				tt.change(tree)
			}
			got, err := memmap.Nodes(tree)
			if diff := cmp.Diff(tt.want, got); diff != "" || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q; nodes (-want +got):\n%s", err, tt.err, diff)
			}
		})
	}
}
