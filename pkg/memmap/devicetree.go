package memmap

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/warmcore/warmcore/pkg/binding"
	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/phys"
)

// ReservationBlock is the name of entries from the memory reservation block.
const ReservationBlock = "memreserve"

// DeviceTree reads the memory map of the machine from the tree that the boot
// loader passed to the running kernel.
//
// RAM is the memory that is listed by the root's children with device_type
// "memory", if available; linux,usable-memory-range and linux,usable-memory,
// which confine the running kernel, are not applied. Reserved is the memory
// that /reserved-memory and the memory reservation block list, whether or not
// a kernel may map it. Reserved entries are nested in the RAM that they lie
// in, with these exceptions, which concern the payload only:
//
//   - Reservations of our own kinds count as RAM, as far as they lie in RAM.
//   - The memory reservation block is ignored where it covers the initrd or
//     the memory that linux,usable-memory-range leaves to the running kernel,
//     because boot loaders list there what they loaded.
//
// A tree without memory is an error; a kernel that finds its memory in EFI's
// tables gets such a tree. Regions in /reserved-memory that overlap are a
// warning and are treated as kernels treat them: memory that any of them
// covers is Reserved, except for our own kinds. A region without an address,
// which each kernel places by itself, is a warning, too.
func DeviceTree(t *devicetree.Tree) (Map, error) {
	m, err := readDeviceTree(t)
	if err != nil {
		return Map{}, fmt.Errorf("read device tree's memory: %w", err)
	}
	return m, nil
}

func readDeviceTree(t *devicetree.Tree) (Map, error) {
	cells, err := t.MemoryCells()
	if err != nil {
		return Map{}, err
	}
	var m Map
	if err := m.addMemoryNodes(t, cells); err != nil {
		return Map{}, err
	}
	ram := m.Set(RAM)
	if len(ram) == 0 {
		if chosen := t.Find("/chosen"); chosen != nil {
			if _, ok := chosen.Property("linux,uefi-mmap-start"); ok {
				return Map{}, fmt.Errorf("it is in EFI's tables: %w", ErrNoRAM)
			}
		}
		return Map{}, ErrNoRAM
	}
	if err := m.addReservedMemory(t, cells, ram); err != nil {
		return Map{}, err
	}
	payload, err := payloadOnly(t, m)
	if err != nil {
		return Map{}, err
	}
	for _, r := range t.Reservations {
		for _, rest := range (phys.Set{r}).Minus(payload) {
			m.addNested(rest, Reserved, ReservationBlock, ram)
		}
	}
	if len(m.Entries) > MaxEntries {
		return Map{}, ErrTooMany
	}
	return m.checked()
}

// addMemoryNodes finds RAM as early_init_dt_scan_memory in drivers/of/fdt.c
// (v6.12) does.
func (m *Map) addMemoryNodes(t *devicetree.Tree, cells devicetree.Cells) error {
	listed := uint64(0)
	for _, n := range t.Root.Children {
		if !IsMemoryNode(n) {
			if n.BaseName() == "memory" && n.Available() {
				m.warnf("node %q has no device_type \"memory\": kernels ignore it", n.Name)
			}
			continue
		}
		ranges, err := n.Reg(cells)
		if err != nil {
			return err
		}
		for _, r := range ranges {
			if r.Empty() {
				continue
			}
			listed += r.Size()
			m.Entries = append(m.Entries, Entry{Range: r, Kind: RAM, Name: n.Name})
			if len(m.Entries) > MaxEntries {
				return ErrTooMany
			}
		}
	}
	if ram := m.Set(RAM).Size(); ram != listed {
		m.warnf("memory nodes overlap: they list %s, which is %s of RAM", phys.FormatSize(listed), phys.FormatSize(ram))
	}
	return nil
}

// Node is memory of a NUMA node. ID is firmware's number for it: ACPI's
// proximity domain, or numa-node-id of the device tree.
type Node struct {
	ID    uint32
	Range phys.Range
}

// Nodes returns which memory belongs to which NUMA node, from the numa-node-id
// of memory nodes (Documentation/devicetree/bindings/numa.txt, v6.12). Memory
// nodes without one belong to NUMA node 0; if none has one, there are no NUMA
// nodes.
func Nodes(t *devicetree.Tree) ([]Node, error) {
	cells, err := t.Root.Cells()
	if err != nil {
		return nil, fmt.Errorf("read NUMA nodes: %w", err)
	}
	var out []Node
	numa := false
	for _, n := range t.Root.Children {
		if !IsMemoryNode(n) {
			continue
		}
		id, has := n.Uint32("numa-node-id")
		numa = numa || has
		ranges, err := n.Reg(cells)
		if err != nil {
			return nil, fmt.Errorf("read NUMA nodes: node %q: %w", n.Name, err)
		}
		for _, r := range ranges {
			out = append(out, Node{id, r})
		}
	}
	if !numa {
		return nil, nil
	}
	return out, nil
}

// IsMemoryNode says whether n, a child of the root, lists RAM.
func IsMemoryNode(n *devicetree.Node) bool {
	return slices.Equal(n.Strings("device_type"), []string{"memory"}) && n.Available()
}

func (m *Map) addReservedMemory(t *devicetree.Tree, root devicetree.Cells, ram phys.Set) error {
	reserved := t.Find("/reserved-memory")
	if reserved == nil {
		return nil
	}
	cells, err := reserved.Cells()
	if err != nil {
		return err
	}
	// __reserved_mem_check_root in drivers/of/fdt.c (v6.12).
	if _, ok := reserved.Property("ranges"); !ok || cells != root {
		m.warnf("/reserved-memory has no ranges, or cells of its own: kernels ignore it")
	}
	var entries []Entry
	for _, n := range reserved.Children {
		if !n.Available() {
			continue
		}
		ranges, err := n.Reg(cells)
		if err != nil {
			return fmt.Errorf("/reserved-memory: %w", err)
		}
		if len(ranges) == 0 {
			m.warnf("/reserved-memory: node %q has no address: each kernel places it by itself", n.Name)
		}
		for _, r := range ranges {
			if r.Empty() {
				continue
			}
			kind := Reserved
			if binding.IsOurs(n) && ram.Contains(r) {
				kind = RAM
			}
			m.addNested(r, kind, n.Name, ram)
			entries = append(entries, m.Entries[len(m.Entries)-1])
			if len(m.Entries) > MaxEntries {
				return ErrTooMany
			}
		}
	}
	m.warnOverlaps(entries)
	return nil
}

// warnOverlaps adds a warning for reservations that overlap. Kernels warn,
// too, and go on (__rmem_check_for_overlap in drivers/of/of_reserved_mem.c,
// v6.12).
func (m *Map) warnOverlaps(entries []Entry) {
	slices.SortStableFunc(entries, func(a, b Entry) int { return cmp.Compare(a.Range.Start, b.Range.Start) })
	for i := 1; i < len(entries); i++ {
		// a is the earlier reservation that reaches furthest.
		if a, b := entries[i-1], entries[i]; a.Range.Overlaps(b.Range) {
			m.warnf("/reserved-memory: node %q, %v, and node %q, %v, overlap", a.Name, a.Range, b.Name, b.Range)
			if a.Range.End > b.Range.End {
				entries[i] = a
			}
		}
	}
}

// addNested adds an entry inside the RAM that it touches.
func (m *Map) addNested(r phys.Range, kind Kind, name string, ram phys.Set) {
	e := Entry{Range: r, Kind: kind, Name: name}
	if ram.Overlaps(r) {
		e.Depth = 1
	}
	m.Entries = append(m.Entries, e)
}

// payloadOnly returns the memory in which entries of the reservation block
// concern the payload's kernel only, not the machine.
func payloadOnly(t *devicetree.Tree, m Map) (phys.Set, error) {
	usable, err := binding.UsableMemory(t)
	if err != nil {
		return nil, err
	}
	for _, e := range m.Entries {
		if e.Depth == 1 { // so far, /reserved-memory
			usable = usable.Minus(phys.Set{e.Range})
		}
	}
	if r, ok := binding.Initrd(t); ok {
		end, _ := phys.AlignUp(r.End, phys.PageSize)
		usable = usable.Union(phys.Set{{Start: phys.AlignDown(r.Start, phys.PageSize), End: max(end, r.End)}})
	}
	return usable, nil
}
