package binding

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/devicetree/devicetreetest"
	"github.com/warmcore/warmcore/pkg/phys"
)

// reserve adds a node to /reserved-memory, with cells of 2 and 2.
func reserve(t *devicetree.Tree, name, compatible string, reg ...uint32) *devicetree.Node {
	r := t.Root.Add("reserved-memory")
	r.SetUint32("#address-cells", 2)
	r.SetUint32("#size-cells", 2)
	r.Set("ranges", nil)
	n := r.Add(name)
	n.SetString("compatible", compatible)
	n.Set("reg", []byte(cells(reg...)))
	return n
}

// TestChosen reads what is only the running kernel's.
func TestChosen(t *testing.T) {
	tree := devicetreetest.Tree("virt-2g")
	if s, err := UsableMemory(tree); s != nil || err != nil {
		t.Errorf("UsableMemory() = %v, %v; want none", s, err)
	}
	if r, ok := Initrd(tree); ok {
		t.Errorf("Initrd() = %v, want none", r)
	}
	if r, err := HandoffNode(tree); !errors.Is(err, ErrNone) {
		t.Errorf("HandoffNode() = %v, %v, want none", r, err)
	}
	chosen := tree.Find("/chosen")
	chosen.Set("linux,usable-memory-range", []byte(cells(0, 0x70000000, 0, 0x8000000, 0, 0x78000000, 0, 0x200000)))
	chosen.SetUint32("linux,initrd-start", 0x74000000)
	chosen.SetUint64("linux,initrd-end", 0x74000000)
	if r, ok := Initrd(tree); ok {
		t.Errorf("Initrd() of no bytes = %v, want none", r)
	}
	chosen.SetUint32("linux,initrd-end", 0x74000123)
	reserve(tree, "old@0", CompatibleHandoff, 0, 0, 0, 0x1000).SetString("status", "disabled")
	reserve(tree, "handoff@78000000", CompatibleHandoff, 0, 0x78000000, 0, 0x200000)
	usable, err := UsableMemory(tree)
	initrd, ok := Initrd(tree)
	handoff, err2 := HandoffNode(tree)
	if want := (phys.Set{{Start: 0x70000000, End: 0x78200000}}); err != nil || !cmp.Equal(usable, want) {
		t.Errorf("UsableMemory() = %v, %v; want %v", usable, err, want)
	}
	if want := (phys.Range{Start: 0x74000000, End: 0x74000123}); !ok || initrd != want {
		t.Errorf("Initrd() = %v, %v; want %v", initrd, ok, want)
	}
	if want := (phys.Range{Start: 0x78000000, End: 0x78200000}); err2 != nil || handoff != want {
		t.Errorf("HandoffNode() = %v, %v; want %v", handoff, err2, want)
	}
	if s := PayloadReserved(tree); s != nil {
		t.Errorf("PayloadReserved() = %v, want none", s)
	}
	reserve(tree, "copy@40000000", CompatiblePayload, 0, 0x40000000, 0, 0x10000000, 0, 0xa0000000, 0, 0x10000000)
	reserve(tree, "copy@90000000", CompatiblePayload, 0, 0x90000000, 0, 0x10000000)
	reserve(tree, "copy@80000000", CompatiblePayload, 0, 0x80000000, 0)
	if s, want := PayloadReserved(tree), (phys.Set{{Start: 0x40000000, End: 0x50000000}, {Start: 0x90000000, End: 0xb0000000}}); !cmp.Equal(s, want) {
		t.Errorf("PayloadReserved() = %v, want %v", s, want)
	}
	tree.Root.Remove(func(n *devicetree.Node) bool { return n.Name == "chosen" })
	if _, err := UsableMemory(tree); err != nil {
		t.Errorf("UsableMemory() without /chosen: %v", err)
	}
	if _, ok := Initrd(tree); ok {
		t.Error("Initrd() without /chosen finds one")
	}
}

// TestWrite: what is written is what is read, and nothing of the payload's is
// left.
func TestWrite(t *testing.T) {
	tree := devicetreetest.Tree("virt-2g")
	reserve(tree, "copy@40000000", CompatiblePayload, 0, 0x40000000, 0, 0x10000000)
	reserve(tree, "handoff@1", CompatibleHandoff, 0, 0, 0, 0x1000)
	for _, name := range slices.Concat(stale, staleEFI) {
		tree.Root.Add("chosen").SetUint32(name, 1)
	}
	area, initrd := phys.Range{Start: 0x78000000, End: 0x78200000}, phys.Range{Start: 0x50000000, End: 0x50000005}
	header, hidden := phys.Range{Start: 0x780c0000, End: 0x780c0400}, phys.Range{Start: 0x60000000, End: 0x68000000}
	err := errors.Join(SetReserved(tree, area), AddRegion(tree, hidden, 3),
		Chosen{Cmdline: "ro", Initrd: initrd, CoreHeader: header, Seed: 7}.Set(tree))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := HandoffNode(tree); err != nil || r != area {
		t.Errorf("HandoffNode() = %v, %v; want %v", r, err, area)
	}
	if s := PayloadReserved(tree); s != nil {
		t.Errorf("PayloadReserved() = %v, want none", s)
	}
	if r, ok := Initrd(tree); !ok || r != initrd {
		t.Errorf("Initrd() = %v, want %v", r, initrd)
	}
	var names []string
	for _, p := range tree.Find("/chosen").Properties {
		if slices.Contains(slices.Concat(stale, staleEFI), p.Name) {
			names = append(names, p.Name)
		}
	}
	if diff := cmp.Diff([]string{"bootargs", "linux,initrd-start", "linux,initrd-end", CoreHeaderProperty, "kaslr-seed"}, names); diff != "" {
		t.Errorf("/chosen (-want +got):\n%s", diff)
	}
	n := tree.Find("/pmem@60000000")
	if n == nil || !n.Compatible("pmem-region") {
		t.Fatal("no node for hidden memory")
	}
	if id, _ := n.Uint32("numa-node-id"); id != 3 {
		t.Errorf("hidden memory is on node %d, want 3", id)
	}
	if err := SetReserved(tree, phys.Range{}); err != nil || tree.Find("/reserved-memory") != nil {
		t.Errorf("an empty /reserved-memory stays: %v", err)
	}
}

func TestKeepEFI(t *testing.T) {
	tree := devicetreetest.Tree("virt-2g")
	chosen := tree.Root.Add("chosen")
	chosen.SetUint64("linux,uefi-mmap-start", 1)
	for _, keep := range []bool{true, false} {
		if err := (Chosen{KeepEFI: keep}).Set(tree); err != nil {
			t.Fatal(err)
		}
		if _, ok := chosen.Property("linux,uefi-mmap-start"); ok != keep {
			t.Errorf("with KeepEFI %v EFI's map is there: %v", keep, ok)
		}
	}
}
