// Package devicetree reads, edits and writes flattened device trees: the
// blobs in which boot loaders tell arm64 kernels about the machine.
//
// The format is that of the Devicetree Specification, release 0.4, chapter 5,
// version 17:
//
//	0x00 u32 magic 0xd00dfeed   0x14 u32 version
//	0x04 u32 total size         0x18 u32 oldest compatible version
//	0x08 u32 structure offset   0x1c u32 boot CPU
//	0x0c u32 strings offset     0x20 u32 size of the strings
//	0x10 u32 reservations offs. 0x24 u32 size of the structure
//
// all big endian. After the header come a list of reserved memory, the nodes,
// and the properties' names. Invariants:
//
//   - Append writes the same bytes for equal trees, and Parse of these bytes
//     returns an equal tree.
//   - Sizes, depth and counts are capped by the constants below; blocks of a
//     blob that overlap are errors.
//   - If a name occurs twice in a node, which dtc refuses and kernels accept,
//     the first one counts, as in libfdt. Append writes all of them.
package devicetree

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Caps of a blob.
const (
	// MaxSize is the largest blob that an arm64 kernel takes, in bytes
	// (Documentation/arch/arm64/booting.rst, v6.12).
	MaxSize = 2 << 20
	// MaxDepth is how deep nodes may be nested, the root included
	// (FDT_MAX_DEPTH in drivers/of/fdt.c, v6.12).
	MaxDepth = 64
	// MaxNodes and MaxProperties bound a whole tree. Trees of large servers
	// have some thousands; a blob of MaxSize has room for 8192 CPUs at most.
	MaxNodes      = 1 << 16
	MaxProperties = 1 << 17
	// MaxReservations bounds the list of reserved memory.
	MaxReservations = 1024
	// MaxName is the longest name of a node or a property, in bytes.
	MaxName = 255
)

// Tree is a device tree.
type Tree struct {
	// Reservations is the memory reservation block: memory that is not to be
	// used, in its order.
	Reservations []phys.Range
	BootCPU      uint32 // hardware number of the CPU that boots
	Root         *Node
}

// Node is a node of a tree.
type Node struct {
	Name       string // with its unit address, "memory@40000000"; empty for the root
	Properties []Property
	Children   []*Node
}

// Property is a value with a name. What the value holds depends on the name:
// text that ends with NUL, or big-endian cells of 32 bits.
type Property struct {
	Name  string
	Value []byte
}

// Find returns the node at path, such as "/chosen", in which names include
// their unit addresses; nil if there is none.
func (t *Tree) Find(path string) *Node {
	n := t.Root
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if name == "" || n == nil {
			return n
		}
		n = n.Child(name)
	}
	return n
}

// Clone returns a copy of t; editing one doesn't change the other. They share
// the bytes of values, because an edit replaces a value and never changes its
// bytes.
func (t *Tree) Clone() *Tree {
	c := *t
	c.Reservations = slices.Clone(t.Reservations)
	if t.Root != nil {
		c.Root = t.Root.clone()
	}
	return &c
}

func (n *Node) clone() *Node {
	c := &Node{Name: n.Name, Properties: slices.Clone(n.Properties)}
	for _, child := range n.Children {
		c.Children = append(c.Children, child.clone())
	}
	return c
}

// Child returns the child of that full name, nil if there is none.
func (n *Node) Child(name string) *Node {
	for _, c := range n.Children {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// Add returns the child of n with this name. It appends one if there is none.
func (n *Node) Add(name string) *Node {
	if c := n.Child(name); c != nil {
		return c
	}
	c := &Node{Name: name}
	n.Children = append(n.Children, c)
	return c
}

// Remove removes those children of n for which f returns true.
func (n *Node) Remove(f func(*Node) bool) {
	n.Children = slices.DeleteFunc(n.Children, f)
}

// BaseName returns n's name without its unit address.
func (n *Node) BaseName() string {
	name, _, _ := strings.Cut(n.Name, "@")
	return name
}

// Property returns a property's value; ok is false if n has no such property.
func (n *Node) Property(name string) (value []byte, ok bool) {
	for _, p := range n.Properties {
		if p.Name == name {
			return p.Value, true
		}
	}
	return nil, false
}

// Set sets a property of n, replacing one of that name.
func (n *Node) Set(name string, value []byte) {
	for i := range n.Properties {
		if n.Properties[i].Name == name {
			n.Properties[i].Value = value
			return
		}
	}
	n.Properties = append(n.Properties, Property{name, value})
}

// SetString sets a property of n to a string, or to a list of strings.
func (n *Node) SetString(name string, text ...string) {
	var b []byte
	for _, s := range text {
		b = append(append(b, s...), 0)
	}
	n.Set(name, b)
}

// SetUint32 sets a property of n to one cell.
func (n *Node) SetUint32(name string, v uint32) {
	n.Set(name, binary.BigEndian.AppendUint32(nil, v))
}

// SetUint64 sets a property of n to two cells.
func (n *Node) SetUint64(name string, v uint64) {
	n.Set(name, binary.BigEndian.AppendUint64(nil, v))
}

// Delete removes those of the properties that n has.
func (n *Node) Delete(names ...string) {
	n.Properties = slices.DeleteFunc(n.Properties, func(p Property) bool { return slices.Contains(names, p.Name) })
}

// Strings returns a property as the strings that it lists; nil if it is
// missing or doesn't end with NUL.
func (n *Node) Strings(name string) []string {
	v, ok := n.Property(name)
	if !ok || len(v) == 0 || v[len(v)-1] != 0 {
		return nil
	}
	return strings.Split(string(v[:len(v)-1]), "\x00")
}

// Uint32 returns a property of one cell; ok is false if it is missing or of
// another length.
func (n *Node) Uint32(name string) (v uint32, ok bool) {
	b, _ := n.Property(name)
	if len(b) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(b), true
}

// Uint64 returns a property of one cell or two, as the kernel reads
// linux,initrd-start; ok is false if it is missing or of another length.
func (n *Node) Uint64(name string) (v uint64, ok bool) {
	b, _ := n.Property(name)
	switch len(b) {
	case 4:
		return uint64(binary.BigEndian.Uint32(b)), true
	case 8:
		return binary.BigEndian.Uint64(b), true
	}
	return 0, false
}

// Compatible says whether n's compatible property lists name.
func (n *Node) Compatible(name string) bool {
	return slices.Contains(n.Strings("compatible"), name)
}

// Available is false for a node whose status is neither "okay" nor "ok"
// (of_fdt_device_is_available in drivers/of/fdt.c, v6.12).
func (n *Node) Available() bool {
	v, ok := n.Property("status")
	return !ok || bytes.Equal(v, []byte("okay\x00")) || bytes.Equal(v, []byte("ok\x00"))
}

// Cells is how many cells of 32 bits an address and a size take in the reg
// properties of a node's children.
type Cells struct {
	Address, Size int
}

// Cells returns the cell sizes that n sets for its children: 2 and 1 if it
// sets none (section 2.3.5). Numbers of more than 64 bits, and sizes of no
// cell, are an error: memory has neither.
func (n *Node) Cells() (Cells, error) {
	c := Cells{2, 1}
	for _, f := range []struct {
		name string
		to   *int
	}{{"#address-cells", &c.Address}, {"#size-cells", &c.Size}} {
		if _, ok := n.Property(f.name); !ok {
			continue
		}
		v, ok := n.Uint32(f.name)
		if !ok || v != 1 && v != 2 {
			return Cells{}, fmt.Errorf("node %q: %s %d: want 1 or 2", n.Name, f.name, v)
		}
		*f.to = int(v)
	}
	return c, nil
}

// MemoryCells returns the cell sizes of the root, which the memory nodes use.
// If the root doesn't set them, the specification says 2 and 1, the kernel 1
// and 1 (early_init_dt_scan_root in drivers/of/fdt.c, v6.12).
func (t *Tree) MemoryCells() (Cells, error) {
	if t.Root == nil {
		return Cells{}, errors.New("no root")
	}
	for _, name := range []string{"#address-cells", "#size-cells"} {
		if _, ok := t.Root.Property(name); !ok {
			return Cells{}, fmt.Errorf("the root has no %s", name)
		}
	}
	return t.Root.Cells()
}

// Ranges reads pairs of address and size. A pair of size 0 is an empty range.
func (c Cells) Ranges(value []byte) ([]phys.Range, error) {
	pair := 4 * (c.Address + c.Size)
	if c.Address < 1 || c.Address > 2 || c.Size < 1 || c.Size > 2 || len(value)%pair != 0 {
		return nil, fmt.Errorf("%d bytes: not a whole number of pairs of %d and %d cells", len(value), c.Address, c.Size)
	}
	var out []phys.Range
	for off := 0; off < len(value); off += pair {
		start := number(value[off:], c.Address)
		size := number(value[off+4*c.Address:], c.Size)
		r, ok := phys.Sized(start, size)
		if !ok {
			return nil, fmt.Errorf("offset %#x: %#x bytes at %#x: beyond 64 bits", off, size, start)
		}
		out = append(out, r)
	}
	return out, nil
}

func number(b []byte, cells int) uint64 {
	if cells == 1 {
		return uint64(binary.BigEndian.Uint32(b))
	}
	return binary.BigEndian.Uint64(b)
}

// Value returns ranges as pairs of address and size. A range that doesn't fit
// into the cells is an error.
func (c Cells) Value(ranges ...phys.Range) ([]byte, error) {
	var out []byte
	for _, r := range ranges {
		for _, f := range []struct {
			v     uint64
			cells int
		}{{r.Start, c.Address}, {r.Size(), c.Size}} {
			switch {
			case f.cells == 2:
				out = binary.BigEndian.AppendUint64(out, f.v)
			case f.cells == 1 && f.v>>32 == 0:
				out = binary.BigEndian.AppendUint32(out, uint32(f.v))
			default:
				return nil, fmt.Errorf("range %v: %#x does not fit %d cells", r, f.v, f.cells)
			}
		}
	}
	return out, nil
}

// Reg returns the ranges of n's reg property; none if it has no such property.
// cells are those of n's parent.
func (n *Node) Reg(cells Cells) ([]phys.Range, error) {
	v, ok := n.Property("reg")
	if !ok {
		return nil, nil
	}
	ranges, err := cells.Ranges(v)
	if err != nil {
		return nil, fmt.Errorf("node %q: reg: %w", n.Name, err)
	}
	return ranges, nil
}

// errName says that a name is not valid.
var errName = errors.New("not 1 to 255 printable ASCII characters")

// checkName refuses names that would not survive a round trip or a console.
func checkName(name string) error {
	if name == "" || len(name) > MaxName {
		return errName
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' || name[i] == '/' {
			return fmt.Errorf("name %.40q: %w", name, errName)
		}
	}
	return nil
}
