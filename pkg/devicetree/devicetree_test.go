package devicetree_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/devicetree/devicetreetest"
	"github.com/warmcore/warmcore/pkg/phys"
)

// small is a tree with one of everything, as the specification lays it out.
func small() []byte { return slices.Concat(smallHeader, smallReserved, smallStructure, smallStrings) }

var (
	smallHeader = []byte{
		0xd0, 0x0d, 0xfe, 0xed, // 0x00 magic
		0x00, 0x00, 0x00, 0xa6, // 0x04 total size
		0x00, 0x00, 0x00, 0x48, // 0x08 structure
		0x00, 0x00, 0x00, 0x94, // 0x0c strings
		0x00, 0x00, 0x00, 0x28, // 0x10 reservations
		0x00, 0x00, 0x00, 0x11, // 0x14 version
		0x00, 0x00, 0x00, 0x10, // 0x18 oldest compatible version
		0x00, 0x00, 0x00, 0x03, // 0x1c boot CPU
		0x00, 0x00, 0x00, 0x12, // 0x20 size of the strings
		0x00, 0x00, 0x00, 0x4c, // 0x24 size of the structure
	}
	smallReserved = []byte{
		0x00, 0x00, 0x00, 0x00, 0x48, 0x00, 0x00, 0x00, // 0x28 address
		0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00, // 0x30 size
		0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // 0x38 end
		0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // 0x40
	}
	smallStructure = []byte{
		0x00, 0x00, 0x00, 0x01, // 0x48 begin node
		0x00, 0x00, 0x00, 0x00, // 0x4c ""
		0x00, 0x00, 0x00, 0x03, // 0x50 property
		0x00, 0x00, 0x00, 0x02, // 0x54 size
		0x00, 0x00, 0x00, 0x00, // 0x58 name
		'x', 0x00, 0x00, 0x00, // 0x5c
		0x00, 0x00, 0x00, 0x01, // 0x60 begin node
		'c', 'p', 'u', '@', // 0x64
		'0', 0x00, 0x00, 0x00, // 0x68
		0x00, 0x00, 0x00, 0x03, // 0x6c property
		0x00, 0x00, 0x00, 0x04, // 0x70 size
		0x00, 0x00, 0x00, 0x0b, // 0x74 name
		0x00, 0x00, 0x00, 0x07, // 0x78
		0x00, 0x00, 0x00, 0x03, // 0x7c property
		0x00, 0x00, 0x00, 0x00, // 0x80 size
		0x00, 0x00, 0x00, 0x0f, // 0x84 name
		0x00, 0x00, 0x00, 0x02, // 0x88 end node
		0x00, 0x00, 0x00, 0x02, // 0x8c end node
		0x00, 0x00, 0x00, 0x09, // 0x90 end
	}
	smallStrings = []byte{
		'c', 'o', 'm', 'p', 'a', 't', 'i', 'b', 'l', 'e', 0, // 0x00
		'r', 'e', 'g', 0, // 0x0b
		'o', 'n', 0, // 0x0f
	}
)

func smallTree() *devicetree.Tree {
	return &devicetree.Tree{
		Reservations: []phys.Range{{Start: 0x48000000, End: 0x48001000}},
		BootCPU:      3,
		Root: &devicetree.Node{
			Properties: []devicetree.Property{{Name: "compatible", Value: []byte("x\x00")}},
			Children: []*devicetree.Node{{
				Name: "cpu@0",
				Properties: []devicetree.Property{
					{Name: "reg", Value: []byte{0, 0, 0, 7}},
					{Name: "on", Value: []byte{}},
				},
			}},
		},
	}
}

func TestSmall(t *testing.T) {
	got, err := devicetree.Parse(append(small(), "behind the end"...))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(smallTree(), got); diff != "" {
		t.Errorf("Parse() (-want +got):\n%s", diff)
	}
	blob, err := smallTree().Append([]byte("before"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(append([]byte("before"), small()...), blob); diff != "" {
		t.Errorf("Append() (-want +got):\n%s", diff)
	}
}

// TestParseAgainstDTC reads QEMU's trees and writes them; dtc must see the
// same source in both.
func TestParseAgainstDTC(t *testing.T) {
	for _, name := range devicetreetest.Names() {
		t.Run(name, func(t *testing.T) {
			blob, err := devicetreetest.Tree(name).Append(nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(devicetreetest.Source(t, devicetreetest.Blob(name)), devicetreetest.Source(t, blob)); diff != "" {
				t.Errorf("source of what was written (-want +got):\n%s", diff)
			}
			devicetreetest.Check(t, blob)
		})
	}
}

// TestCheckComplains makes sure that dtc, which finds nothing above, can.
func TestCheckComplains(t *testing.T) {
	tree := devicetreetest.Tree("virt-2g")
	tree.Root.Add("memory").Set("reg", make([]byte, 16))
	blob, err := tree.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	if c := devicetreetest.Complaints(t, blob); !strings.Contains(c, "unit_address_vs_reg") {
		t.Errorf("dtc has no complaint about a reg without a unit address: %q", c)
	}
}

func TestParseRefuses(t *testing.T) {
	put := func(off int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.BigEndian.PutUint32(b[off:], v); return b }
	}
	tests := []struct {
		name  string
		spoil func([]byte) []byte
		want  string
	}{
		{"nothing", func([]byte) []byte { return nil }, "header: 0 bytes: ends early"},
		{"half a header", func(b []byte) []byte { return b[:39] }, "header: 39 bytes: ends early"},
		{"magic", put(0, 0xd00dfeee), "offset 0: magic 0xd00dfeee: want 0xd00dfeed"},
		{"version 16", put(0x14, 16), "offset 0x14: version 16, compatible with 16: want 17"},
		{"version 18, not compatible", put(0x18, 18), "offset 0x14: version 17, compatible with 18"},
		{"total size of 2 MiB and a byte", put(4, 2<<20+1), "offset 0x4: total size 0x200001: more than 0x200000"},
		{"total size beyond the end", put(4, 0xa7), "offset 0x4: total size 0xa7: want 0x28 to 0xa6"},
		{"total size within the header", put(4, 0x27), "offset 0x4: total size 0x27"},
		{"structure beyond the end", put(8, 0x60), "offset 0x8: block at 0x60 of 0x4c bytes"},
		{"structure beyond 32 bits", put(8, 0xfffffffc), "offset 0x8: block at 0xfffffffc"},
		{"structure not aligned", put(8, 0x49), "offset 0x8: block at 0x49 of 0x4c bytes: not aligned"},
		{"strings beyond the end", put(0x20, 0x13), "offset 0xc: block at 0x94 of 0x13 bytes"},
		{"structure over reservations", put(8, 0x40), "overlap"},
		{"structure over header", put(8, 0x20), "overlap"},
		{"strings over structure", put(0xc, 0x90), "overlap"},
		{"reservations not aligned", put(0x10, 0x2c), "offset 0x10: reservations at 0x2c: not aligned"},
		{"reservations over header", put(0x10, 0x20), "overlap"},
		{"reservations without an end", put(0x10, 0xa0), "offset 0xa0: reservations: ends early"},
		{"reservation wraps", func(b []byte) []byte {
			copy(b[0x28:], bytes.Repeat([]byte{0xff}, 8))
			return b
		}, "offset 0x28: reservation of 0x1000 bytes at 0xffffffffffffffff: beyond 64 bits"},
		{"structure without an end", put(0x24, 0x48), "offset 0x90: structure: ends early"},
		{"unknown token", put(0x60, 5), "offset 0x60: unknown token 0x5"},
		{"root missing", put(0x48, 9), "offset 0x48: end within the nodes"},
		{"property behind the root", func(b []byte) []byte { return put(0x64, 3)(put(0x60, 2)(b)) }, "offset 0x64: a property outside of nodes"},
		{"node ends twice", put(0x90, 2), "offset 0x90: a node ends that never began"},
		{"end too early", put(0x8c, 9), "offset 0x8c: end within the nodes"},
		{"property outside of nodes", put(0x48, 4), "offset 0x4c: unknown token 0x0"},
		{"property behind a node", func(b []byte) []byte {
			copy(b[0x7c:], []byte{0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9})
			return b
		}, `offset 0x80: property "compatible" behind a node`},
		{"property beyond the end", put(0x54, 0x100), `offset 0x50: property "compatible" of 0x100 bytes: ends early`},
		{"property of 4 GiB", put(0x54, 0xffffffff), `offset 0x50: property "compatible" of 0xffffffff bytes: ends early`},
		{"property's name beyond the strings", put(0x58, 0x12), "offset 0x50: property: name at 0x12 of 0x12 bytes of strings"},
		{"property's name without an end", func(b []byte) []byte { b[0xa5] = 'x'; return b }, "offset 0x7c: property: name at 0xf"},
		{"property's name empty", put(0x58, 0xa), "offset 0x50: property: not 1 to 255 printable"},
		{"property's name with a newline", func(b []byte) []byte { b[0x94] = '\n'; return b }, `property: name "\nompatible"`},
		{"node's name empty", put(0x64, 0), "offset 0x60: node: not 1 to 255 printable"},
		{"node's name with a slash", func(b []byte) []byte { b[0x64] = '/'; return b }, `offset 0x60: node: name "/pu@0"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tree, err := devicetree.Parse(tt.spoil(small()))
			if err == nil || !strings.HasPrefix(err.Error(), "device tree: ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Parse(): %v, want %q", err, tt.want)
			}
			if tree != nil {
				t.Errorf("an error came with a tree: %v", tree)
			}
		})
	}
}

// nested returns a chain of nodes, wide a node with so many children.
func nested(depth int) *devicetree.Tree {
	t := &devicetree.Tree{Root: &devicetree.Node{}}
	n := t.Root
	for range depth - 1 {
		n = n.Add("n")
	}
	return t
}

func wide(nodes, properties int) *devicetree.Tree {
	t := &devicetree.Tree{Root: &devicetree.Node{}}
	for i := range nodes {
		t.Root.Children = append(t.Root.Children, &devicetree.Node{Name: fmt.Sprint(i)})
	}
	for i := range properties {
		t.Root.Properties = append(t.Root.Properties, devicetree.Property{Name: fmt.Sprint(i)})
	}
	return t
}

// TestCaps writes trees up to each cap, which Parse must take, and beyond.
func TestCaps(t *testing.T) {
	cycle := nested(2)
	cycle.Root.Children[0].Children = []*devicetree.Node{cycle.Root.Children[0]}
	twice := wide(1, 1)
	twice.Root.Children = append(twice.Root.Children, twice.Root.Children...)
	twice.Root.Properties = append(twice.Root.Properties, twice.Root.Properties...)
	reserved := func(n int) *devicetree.Tree {
		tree := wide(0, 0)
		for i := range n {
			tree.Reservations = append(tree.Reservations, phys.Range{Start: uint64(i), End: uint64(i) + 1})
		}
		return tree
	}
	tests := []struct {
		name string
		tree *devicetree.Tree
		want string // of the error
	}{
		{"depth", nested(devicetree.MaxDepth), ""},
		{"too deep", nested(devicetree.MaxDepth + 1), "deeper than 64"},
		{"a node in itself", cycle, "deeper than 64"},
		{"nodes", wide(devicetree.MaxNodes-1, 0), ""},
		{"too many nodes", wide(devicetree.MaxNodes, 0), "more than 65536 nodes"},
		{"too many properties", wide(0, devicetree.MaxProperties+1), "131072 properties"},
		{"reservations", reserved(devicetree.MaxReservations), ""},
		{"too many reservations", reserved(devicetree.MaxReservations + 1), "more than 1024 reservations"},
		{"empty reservation", &devicetree.Tree{Root: &devicetree.Node{}, Reservations: []phys.Range{{Start: 1, End: 1}}}, "empty"},
		{"no root", &devicetree.Tree{}, "no root"},
		{"size", &devicetree.Tree{Root: &devicetree.Node{Properties: []devicetree.Property{{Name: "x", Value: make([]byte, devicetree.MaxSize-88)}}}}, ""},
		{"too large", &devicetree.Tree{Root: &devicetree.Node{Properties: []devicetree.Property{{Name: "x", Value: make([]byte, devicetree.MaxSize-87)}}}}, "more than 2097152"},
		{"value too large", &devicetree.Tree{Root: &devicetree.Node{Properties: []devicetree.Property{{Name: "x", Value: make([]byte, devicetree.MaxSize)}}}}, "more than 2097152"},
		{"names twice", twice, ""},
		{"name too long", &devicetree.Tree{Root: &devicetree.Node{Children: []*devicetree.Node{{Name: strings.Repeat("x", 256)}}}}, "not 1 to 255"},
		{"property without a name", &devicetree.Tree{Root: &devicetree.Node{Properties: []devicetree.Property{{}}}}, "not 1 to 255"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			blob, err := tt.tree.Append(nil)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) || blob != nil {
					t.Errorf("Append(): %d bytes, %v; want the error %q", len(blob), err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			again, err := devicetree.Parse(blob)
			if err != nil {
				t.Fatalf("Parse(): %v", err)
			}
			out, err := again.Append(nil)
			if err != nil || !bytes.Equal(blob, out) {
				t.Errorf("written again: %v, or other bytes", err)
			}
		})
	}
}

// TestParseCaps has blobs that are beyond a cap of the parser alone.
func TestParseCaps(t *testing.T) {
	blob := func(structure []byte) []byte {
		b := slices.Clone(smallHeader)
		structure = append(structure, 0, 0, 0, 9)
		be := binary.BigEndian
		be.PutUint32(b[0x24:], uint32(len(structure)))
		b = slices.Concat(b, smallReserved, structure)
		be.PutUint32(b[0x0c:], uint32(len(b)))
		b = append(b, smallStrings...)
		be.PutUint32(b[4:], uint32(len(b)))
		return b
	}
	begin, end := []byte{0, 0, 0, 1, 'n', 0, 0, 0}, []byte{0, 0, 0, 2}
	tests := []struct {
		name      string
		structure []byte
		want      string
	}{
		{"deep", bytes.Repeat(begin, 65), `node "n": deeper than 64`},
		{"two roots", slices.Concat(begin, end, begin), "a second root"},
		{"nothing but NOP", bytes.Repeat([]byte{0, 0, 0, 4}, 1<<18), "end within the nodes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := devicetree.Parse(blob(tt.structure)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Parse(): %v, want %q", err, tt.want)
			}
		})
	}
}

func TestEdit(t *testing.T) {
	tree := devicetreetest.Tree("virt-2g")
	if tree.Find("/") != tree.Root || tree.Find("/nowhere/at/all") != nil {
		t.Error("Find: the root is not found, or what isn't there is")
	}
	chosen := tree.Find("/chosen")
	chosen.Delete("rng-seed", "kaslr-seed", "missing")
	chosen.SetString("bootargs", "quiet")
	chosen.SetString("bootargs", "quiet", "ro")
	chosen.SetUint64("linux,initrd-start", 1<<40)
	chosen.SetUint32("x", 7)
	var names []string
	for _, p := range chosen.Properties {
		names = append(names, p.Name)
	}
	if want := []string{"stdout-path", "bootargs", "linux,initrd-start", "x"}; !slices.Equal(names, want) {
		t.Errorf("properties %q, want %q", names, want)
	}
	if got := chosen.Strings("bootargs"); !slices.Equal(got, []string{"quiet", "ro"}) {
		t.Errorf("bootargs %q", got)
	}
	start, ok := chosen.Uint64("linux,initrd-start")
	small, ok2 := chosen.Uint64("x")
	_, ok3 := chosen.Uint64("bootargs")
	if start != 1<<40 || small != 7 || !ok || !ok2 || ok3 {
		t.Errorf("numbers %#x %v, %#x %v, of text %v", start, ok, small, ok2, ok3)
	}
	tree.Root.Remove(func(n *devicetree.Node) bool { return n.BaseName() == "virtio_mmio" })
	if tree.Find("/virtio_mmio@a000000") != nil || tree.Find("/psci") == nil {
		t.Error("Remove takes out the wrong nodes")
	}
	if a, b := tree.Root.Add("new"), tree.Root.Add("new"); a != b || tree.Find("/new") != a {
		t.Error("Add makes two nodes of one name")
	}
}

func TestAvailable(t *testing.T) {
	for value, want := range map[string]bool{"okay\x00": true, "ok\x00": true, "disabled\x00": false, "fail\x00": false, "": false, "okay": false} {
		n := &devicetree.Node{}
		n.Set("status", []byte(value))
		if n.Available() != want {
			t.Errorf("status %q: available %v, want %v", value, !want, want)
		}
	}
	if n := (&devicetree.Node{}); !n.Available() || n.Strings("status") != nil {
		t.Error("a node without a status is not available")
	}
}

func TestCells(t *testing.T) {
	cell := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
	tests := []struct {
		name          string
		address, size []byte
		want          devicetree.Cells
		err           string
	}{
		{"none", nil, nil, devicetree.Cells{Address: 2, Size: 1}, ""},
		{"two and two", cell(2), cell(2), devicetree.Cells{Address: 2, Size: 2}, ""},
		{"one and one", cell(1), cell(1), devicetree.Cells{Address: 1, Size: 1}, ""},
		{"three", cell(3), cell(1), devicetree.Cells{}, "#address-cells 3: want 1 or 2"},
		{"no size", cell(1), cell(0), devicetree.Cells{}, "#size-cells 0: want 1 or 2"},
		{"not a cell", []byte{1}, nil, devicetree.Cells{}, "#address-cells 0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := &devicetree.Node{}
			if tt.address != nil {
				n.Set("#address-cells", tt.address)
			}
			if tt.size != nil {
				n.Set("#size-cells", tt.size)
			}
			got, err := n.Cells()
			if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Cells() = %v, %v; want %v, %q", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestRanges(t *testing.T) {
	r := phys.Range{Start: 0x80000000, End: 0x80001000}
	high := phys.Range{Start: 1 << 40, End: 1<<40 + 1<<33}
	tests := []struct {
		name  string
		cells devicetree.Cells
		r     []phys.Range
		want  int // bytes
		err   string
	}{
		{"one and one", devicetree.Cells{Address: 1, Size: 1}, []phys.Range{r}, 8, ""},
		{"two and one", devicetree.Cells{Address: 2, Size: 1}, []phys.Range{r, r}, 24, ""},
		{"two and two", devicetree.Cells{Address: 2, Size: 2}, []phys.Range{high, r}, 32, ""},
		{"address too large", devicetree.Cells{Address: 1, Size: 2}, []phys.Range{high}, 0, "0x10000000000 does not fit 1 cells"},
		{"size too large", devicetree.Cells{Address: 2, Size: 1}, []phys.Range{high}, 0, "0x200000000 does not fit 1 cells"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := tt.cells.Value(tt.r...)
			if len(b) != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("Value() = %d bytes, %v; want %d, %q", len(b), err, tt.want, tt.err)
			}
			if err != nil {
				return
			}
			n := &devicetree.Node{Name: "x"}
			if got, err := n.Reg(tt.cells); got != nil || err != nil {
				t.Errorf("Reg() without a reg = %v, %v", got, err)
			}
			n.Set("reg", b)
			got, err := n.Reg(tt.cells)
			if diff := cmp.Diff(tt.r, got); diff != "" || err != nil {
				t.Errorf("Reg(): %v (-want +got):\n%s", err, diff)
			}
			n.Set("reg", b[1:])
			if got, err := n.Reg(tt.cells); err == nil || got != nil {
				t.Errorf("Reg() of a part = %v, %v; want an error", got, err)
			}
		})
	}
	wraps := slices.Repeat([]byte{0xff}, 16)
	if got, err := (devicetree.Cells{Address: 2, Size: 2}).Ranges(wraps); err == nil || !strings.Contains(err.Error(), "beyond 64 bits") {
		t.Errorf("Ranges() of one that wraps = %v, %v", got, err)
	}
	if got, err := (devicetree.Cells{}).Ranges(nil); err == nil {
		t.Errorf("Ranges() of no cells = %v, want an error", got)
	}
}

// FuzzParse: an error comes with no tree; what Parse takes, Append writes, and
// Parse reads the same in it.
func FuzzParse(f *testing.F) {
	f.Add(small())
	for _, name := range devicetreetest.Names() {
		f.Add(devicetreetest.Blob(name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		tree, err := devicetree.Parse(b)
		if err != nil {
			if tree != nil {
				t.Fatal("a tree came with an error")
			}
			return
		}
		blob, err := tree.Append(nil)
		if err != nil {
			// One name may be the end of another there, and not here.
			if len(b) > devicetree.MaxSize/32 {
				return
			}
			t.Fatal(err)
		}
		again, err := devicetree.Parse(blob)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(tree, again) {
			diff := cmp.Diff(tree, again)
			t.Fatalf("Parse(Append()) (-want +got):\n%s", diff)
		}
	})
}
