package devicetree

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Fields and tokens of a blob.
const (
	magic      = 0xd00dfeed
	version    = 17
	compatible = 16 // the oldest version whose readers understand what we write

	offTotalSize   = 0x04
	offStructure   = 0x08
	offStrings     = 0x0c
	offReserved    = 0x10
	offVersion     = 0x14
	offCompatible  = 0x18
	offBootCPU     = 0x1c
	offStringsSize = 0x20
	offStructSize  = 0x24
	headerSize     = 0x28

	tokenBeginNode = 1
	tokenEndNode   = 2
	tokenProperty  = 3
	tokenNop       = 4
	tokenEnd       = 9
)

var errCut = errors.New("ends early")

// Parse reads a blob; bytes after its end are ignored. The tree's values are
// slices of b, so the caller must not change the bytes of b or of the values.
func Parse(b []byte) (*Tree, error) {
	t, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("device tree: %w", err)
	}
	return t, nil
}

func parse(b []byte) (*Tree, error) {
	if len(b) < headerSize {
		return nil, fmt.Errorf("header: %d bytes: %w", len(b), errCut)
	}
	u32 := func(off int) uint32 { return binary.BigEndian.Uint32(b[off:]) }
	switch size := u32(offTotalSize); {
	case u32(0) != magic:
		return nil, fmt.Errorf("offset 0: magic %#08x: want %#08x", u32(0), uint32(magic))
	case u32(offVersion) < version || u32(offCompatible) > version:
		return nil, fmt.Errorf("offset %#x: version %d, compatible with %d: want 17", offVersion, u32(offVersion), u32(offCompatible))
	case size > MaxSize:
		return nil, fmt.Errorf("offset %#x: total size %#x: more than %#x", offTotalSize, size, MaxSize)
	case size < headerSize || int(size) > len(b):
		return nil, fmt.Errorf("offset %#x: total size %#x: want %#x to %#x", offTotalSize, size, headerSize, len(b))
	default:
		b = b[:size]
	}
	t := &Tree{BootCPU: u32(offBootCPU)}
	blocks := []phys.Range{{Start: 0, End: headerSize}}
	for _, f := range []struct{ offset, size int }{{offStructure, offStructSize}, {offStrings, offStringsSize}} {
		start, size := uint64(u32(f.offset)), uint64(u32(f.size))
		if start+size > uint64(len(b)) || f.offset == offStructure && start%4 != 0 {
			return nil, fmt.Errorf("offset %#x: block at %#x of %#x bytes: not aligned, or beyond the end", f.offset, start, size)
		}
		blocks = append(blocks, phys.Range{Start: start, End: start + size})
	}
	reserved, err := t.parseReservations(b, u32(offReserved))
	if err != nil {
		return nil, err
	}
	blocks = append(blocks, reserved)
	for i, x := range blocks {
		for _, y := range blocks[:i] {
			if x.Overlaps(y) {
				return nil, fmt.Errorf("offset %#x: blocks %v and %v overlap", offStructure, y, x)
			}
		}
	}
	p := parser{b: b[:blocks[1].End], off: int(blocks[1].Start), strings: b[blocks[2].Start:blocks[2].End]}
	if err := p.nodes(t); err != nil {
		return nil, fmt.Errorf("offset %#x: %w", p.at, err)
	}
	return t, nil
}

// parseReservations reads pairs up to the first of size 0, as the kernel does
// (early_init_fdt_scan_reserved_mem in drivers/of/fdt.c, v6.12).
func (t *Tree) parseReservations(b []byte, start uint32) (block phys.Range, err error) {
	if start%8 != 0 {
		return phys.Range{}, fmt.Errorf("offset %#x: reservations at %#x: not aligned", offReserved, start)
	}
	for off := uint64(start); ; off += 16 {
		if off+16 > uint64(len(b)) {
			return phys.Range{}, fmt.Errorf("offset %#x: reservations: %w", off, errCut)
		}
		addr, size := binary.BigEndian.Uint64(b[off:]), binary.BigEndian.Uint64(b[off+8:])
		r, ok := phys.Sized(addr, size)
		switch {
		case size == 0:
			return phys.Range{Start: uint64(start), End: off + 16}, nil
		case !ok:
			return phys.Range{}, fmt.Errorf("offset %#x: reservation of %#x bytes at %#x: beyond 64 bits", off, size, addr)
		case len(t.Reservations) == MaxReservations:
			return phys.Range{}, fmt.Errorf("offset %#x: more than %d reservations", off, MaxReservations)
		}
		t.Reservations = append(t.Reservations, r)
	}
}

// parser reads the structure block, which ends where b ends.
type parser struct {
	b       []byte
	off     int // of the next token
	at      int // of the present token, for messages
	strings []byte
	names   map[uint32]string // by offset in strings
}

func (p *parser) nodes(t *Tree) error {
	p.names = map[uint32]string{}
	var path []*Node // from the root to the innermost node whose end has not been read yet
	nodes, properties := 0, 0
	for {
		token, err := p.token()
		if err != nil {
			return err
		}
		switch token {
		case tokenNop:
		case tokenBeginNode:
			name, err := p.nodeName(len(path) == 0)
			nodes++
			switch {
			case err != nil:
				return err
			case len(path) == 0 && t.Root != nil:
				return errors.New("a second root")
			case len(path) == MaxDepth:
				return fmt.Errorf("node %q: deeper than %d", name, MaxDepth)
			case nodes > MaxNodes:
				return fmt.Errorf("more than %d nodes", MaxNodes)
			}
			n := &Node{Name: name}
			if len(path) == 0 {
				t.Root = n
			} else {
				parent := path[len(path)-1]
				parent.Children = append(parent.Children, n)
			}
			path = append(path, n)
		case tokenEndNode:
			if len(path) == 0 {
				return errors.New("a node ends that never began")
			}
			path = path[:len(path)-1]
		case tokenProperty:
			if len(path) == 0 {
				return errors.New("a property outside of nodes")
			}
			in := path[len(path)-1]
			property, err := p.property()
			properties++
			switch {
			case err != nil:
				return err
			case len(in.Children) > 0:
				return fmt.Errorf("property %q behind a node", property.Name)
			case properties > MaxProperties:
				return fmt.Errorf("more than %d properties", MaxProperties)
			}
			in.Properties = append(in.Properties, property)
		case tokenEnd:
			if len(path) > 0 || t.Root == nil {
				return errors.New("end within the nodes")
			}
			return nil
		default:
			return fmt.Errorf("unknown token %#x", token)
		}
	}
}

func (p *parser) token() (uint32, error) {
	p.at = p.off
	return p.u32()
}

func (p *parser) u32() (uint32, error) {
	if len(p.b)-p.off < 4 {
		return 0, fmt.Errorf("structure: %w", errCut)
	}
	v := binary.BigEndian.Uint32(p.b[p.off:])
	p.off += 4
	return v, nil
}

// skip moves n bytes ahead and up to the next multiple of 4.
func (p *parser) skip(n int) { p.off = min(p.off+(n+3)&^3, len(p.b)) }

func (p *parser) nodeName(root bool) (string, error) {
	rest := p.b[p.off:]
	n := bytes.IndexByte(rest[:min(len(rest), MaxName+1)], 0)
	if n < 0 {
		return "", fmt.Errorf("node: %w", errName)
	}
	name := string(rest[:n])
	if err := checkName(name); err != nil && !(root && name == "") {
		return "", fmt.Errorf("node: %w", err)
	}
	p.skip(n + 1)
	return name, nil
}

func (p *parser) property() (Property, error) {
	size, err := p.u32()
	if err != nil {
		return Property{}, err
	}
	at, err := p.u32()
	if err != nil {
		return Property{}, err
	}
	name, err := p.propertyName(at)
	if err != nil {
		return Property{}, err
	}
	if uint64(size) > uint64(len(p.b)-p.off) {
		return Property{}, fmt.Errorf("property %q of %#x bytes: %w", name, size, errCut)
	}
	value := slices.Clip(p.b[p.off:][:size])
	p.skip(int(size))
	return Property{name, value}, nil
}

func (p *parser) propertyName(at uint32) (string, error) {
	if name, ok := p.names[at]; ok {
		return name, nil
	}
	if uint64(at) >= uint64(len(p.strings)) {
		return "", fmt.Errorf("property: name at %#x of %#x bytes of strings", at, len(p.strings))
	}
	rest := p.strings[at:]
	n := bytes.IndexByte(rest[:min(len(rest), MaxName+1)], 0)
	if n < 0 {
		return "", fmt.Errorf("property: name at %#x: %w", at, errName)
	}
	name := string(rest[:n])
	if err := checkName(name); err != nil {
		return "", fmt.Errorf("property: %w", err)
	}
	p.names[at] = name
	return name, nil
}

// Append appends t as a blob to dst. A tree that Parse would refuse is an
// error. So is a node that contains itself: it exceeds MaxDepth.
func (t *Tree) Append(dst []byte) ([]byte, error) {
	b, err := t.blob()
	if err != nil {
		return nil, fmt.Errorf("write device tree: %w", err)
	}
	return append(dst, b...), nil
}

func (t *Tree) blob() ([]byte, error) {
	if len(t.Reservations) > MaxReservations {
		return nil, fmt.Errorf("more than %d reservations", MaxReservations)
	}
	be := binary.BigEndian
	b := make([]byte, headerSize)
	be.PutUint32(b[offReserved:], headerSize)
	for _, r := range t.Reservations {
		if r.Empty() {
			return nil, fmt.Errorf("reservation %v: empty", r)
		}
		b = be.AppendUint64(b, r.Start)
		b = be.AppendUint64(b, r.Size())
	}
	b = append(b, make([]byte, 16)...)
	if t.Root == nil {
		return nil, errors.New("no root")
	}
	w := writer{names: map[string]uint32{}}
	if err := w.node(t.Root, 1); err != nil {
		return nil, err
	}
	w.structure = be.AppendUint32(w.structure, tokenEnd)
	be.PutUint32(b[offStructure:], uint32(len(b)))
	be.PutUint32(b[offStructSize:], uint32(len(w.structure)))
	b = append(b, w.structure...)
	be.PutUint32(b[offStrings:], uint32(len(b)))
	be.PutUint32(b[offStringsSize:], uint32(len(w.strings)))
	b = append(b, w.strings...)
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%d bytes: more than %d", len(b), MaxSize)
	}
	be.PutUint32(b, magic)
	be.PutUint32(b[offTotalSize:], uint32(len(b)))
	be.PutUint32(b[offVersion:], version)
	be.PutUint32(b[offCompatible:], compatible)
	be.PutUint32(b[offBootCPU:], t.BootCPU)
	return b, nil
}

type writer struct {
	structure, strings []byte
	names              map[string]uint32 // offset in strings
	nodes, properties  int
}

func (w *writer) node(n *Node, depth int) error {
	if err := checkName(n.Name); err != nil && !(depth == 1 && n.Name == "") {
		return fmt.Errorf("node: %w", err)
	}
	w.nodes++
	w.properties += len(n.Properties)
	if depth > MaxDepth || w.nodes > MaxNodes || w.properties > MaxProperties {
		return fmt.Errorf("node %q: deeper than %d, or more than %d nodes or %d properties", n.Name, MaxDepth, MaxNodes, MaxProperties)
	}
	w.cell(tokenBeginNode)
	w.bytes(append([]byte(n.Name), 0))
	for _, p := range n.Properties {
		if err := checkName(p.Name); err != nil {
			return fmt.Errorf("node %q: property: %w", n.Name, err)
		}
		at, ok := w.names[p.Name]
		if !ok {
			at = uint32(len(w.strings))
			w.names[p.Name] = at
			w.strings = append(append(w.strings, p.Name...), 0)
		}
		if len(w.structure)+len(p.Value) > MaxSize {
			return fmt.Errorf("node %q: property %q: more than %d bytes in all", n.Name, p.Name, MaxSize)
		}
		w.cell(tokenProperty)
		w.cell(uint32(len(p.Value)))
		w.cell(at)
		w.bytes(p.Value)
	}
	for _, c := range n.Children {
		if err := w.node(c, depth+1); err != nil {
			return err
		}
	}
	w.cell(tokenEndNode)
	return nil
}

func (w *writer) cell(v uint32) { w.structure = binary.BigEndian.AppendUint32(w.structure, v) }

func (w *writer) bytes(b []byte) {
	w.structure = append(w.structure, b...)
	for len(w.structure)%4 != 0 {
		w.structure = append(w.structure, 0)
	}
}
