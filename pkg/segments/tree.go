package segments

import (
	"errors"
	"fmt"
	"slices"

	"github.com/warmcore/warmcore/pkg/binding"
	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

// treeWriter makes the normal kernel's device tree from the machine's.
type treeWriter struct {
	*devicetree.Tree
	cells    devicetree.Cells
	firmware memmap.Map // of the machine's tree
	ram      phys.Set   // of the normal kernel
	hidden   phys.Set
}

// normalTree returns the device tree for the normal kernel: the machine's tree
// with other memory nodes, other reservations and our own nodes, and without
// what was meant for the payload's kernel. It checks the result by reading it
// as the payload reads a machine's tree.
func (l Linux) normalTree(initrd, header phys.Range) (*devicetree.Tree, error) {
	if len(l.Map.Entries) == 0 {
		return l.sameTree(initrd, header)
	}
	firmware, err := memmap.DeviceTree(l.Tree)
	if err != nil {
		return nil, err
	}
	w := treeWriter{Tree: l.Tree.Clone(), firmware: firmware, ram: l.Map.Set(memmap.RAM), hidden: l.Map.Set(memmap.SoftReserved)}
	if w.cells, err = w.Root.Cells(); err != nil {
		return nil, err
	}
	w.Reservations = nil
	for _, e := range firmware.Entries {
		if e.Name == memmap.ReservationBlock {
			w.Reservations = append(w.Reservations, e.Range)
		}
	}
	ids, err := w.memory()
	if err != nil {
		return nil, fmt.Errorf("write device tree: %w", err)
	}
	for _, step := range []func() error{
		func() error { return binding.SetReserved(w.Tree, l.Handoff) },
		func() error { return w.regions(ids) },
		func() error { return l.chosen(initrd, header).Set(w.Tree) },
		w.check,
	} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("write device tree: %w", err)
		}
	}
	return w.Tree, nil
}

// sameTree returns the machine's tree and changes only what was meant for the
// payload's kernel. The next kernel finds its memory where the running one
// found it, in the nodes or in EFI's tables, and this package need not
// understand them.
func (l Linux) sameTree(initrd, header phys.Range) (*devicetree.Tree, error) {
	switch {
	case l.Tree.Root == nil:
		return nil, errors.New("write device tree: the machine's has no root")
	case !header.Empty():
		return nil, errors.New("write device tree: a capture kernel without a memory map")
	}
	w := treeWriter{Tree: l.Tree.Clone()}
	for _, n := range w.Root.Children {
		if memmap.IsMemoryNode(n) {
			n.Delete("linux,usable-memory")
		}
	}
	if r := w.Find("/reserved-memory"); r != nil {
		r.Remove(binding.IsOurs)
	}
	c := l.chosen(initrd, header)
	c.KeepEFI = true
	if err := c.Set(w.Tree); err != nil {
		return nil, fmt.Errorf("write device tree: %w", err)
	}
	return w.Tree, nil
}

func (l Linux) chosen(initrd, header phys.Range) binding.Chosen {
	return binding.Chosen{Cmdline: l.Cmdline, Initrd: initrd, CoreHeader: header, Seed: l.Seed}
}

// nodeMemory is the memory of a NUMA node.
type nodeMemory struct {
	id     uint32
	memory phys.Set
	usable bool // the kernel will know the node
}

// memory writes the memory nodes: the normal kernel's RAM, and the memory in
// it that firmware reserves, which a driver may want mapped.
func (w *treeWriter) memory() ([]nodeMemory, error) {
	listed := w.firmware.Top().Set(memmap.RAM)
	want := w.ram.Union(listed.Intersect(w.firmware.Set(memmap.Reserved)))
	var ids []nodeMemory
	var written phys.Set
	for _, n := range w.Root.Children {
		if !memmap.IsMemoryNode(n) {
			continue
		}
		ranges, err := n.Reg(w.cells)
		if err != nil {
			return nil, err
		}
		set := phys.NewSet(ranges...)
		part := set.Intersect(want).Minus(written)
		if id, ok := n.Uint32("numa-node-id"); ok {
			ids = append(ids, nodeMemory{id, set, len(part) > 0})
		}
		written = written.Union(part)
		reg, err := w.cells.Value(part...)
		if err != nil {
			return nil, fmt.Errorf("node %q: %w", n.Name, err)
		}
		n.Set("reg", reg)
		n.Delete("linux,usable-memory")
		if len(part) > 0 {
			n.Name = fmt.Sprintf("memory@%x", part[0].Start)
		}
	}
	w.Root.Remove(func(n *devicetree.Node) bool {
		reg, _ := n.Property("reg")
		return memmap.IsMemoryNode(n) && len(reg) == 0
	})
	if missing := want.Minus(written); len(missing) > 0 {
		return nil, fmt.Errorf("RAM %v is in no memory node", missing)
	}
	if cpus := w.Find("/cpus"); cpus != nil {
		for _, cpu := range cpus.Children {
			if id, ok := cpu.Uint32("numa-node-id"); ok {
				ids = append(ids, nodeMemory{id: id, usable: true})
			}
		}
	}
	return ids, nil
}

// regions writes a node for each range of hidden memory. The kernel doesn't
// know a NUMA node in which it has neither RAM nor a CPU, and memory of such a
// node can't be added (of_node_to_nid in drivers/of/of_numa.c, v6.12), so it
// is assigned to a node that the kernel knows.
func (w *treeWriter) regions(ids []nodeMemory) error {
	known := slices.DeleteFunc(slices.Clone(ids), func(n nodeMemory) bool { return !n.usable })
	for _, r := range w.hidden {
		id, most := uint32(0), uint64(0)
		if len(known) > 0 {
			id = known[0].id
		}
		for _, n := range ids {
			size := n.memory.Intersect(phys.Set{r}).Size()
			if size > most && slices.ContainsFunc(known, func(k nodeMemory) bool { return k.id == n.id }) {
				id, most = n.id, size
			}
		}
		if err := binding.AddRegion(w.Tree, r, id); err != nil {
			return err
		}
	}
	return nil
}

// check reads the tree: the kernel's RAM must be what the map says, and no
// reservation may lie over memory that is handed over.
func (w *treeWriter) check() error {
	m, err := memmap.DeviceTree(w.Tree)
	if err != nil {
		return err
	}
	if got := m.Set(memmap.RAM); !slices.Equal(got, w.ram) {
		return fmt.Errorf("the tree gives the kernel %v as RAM, the map %v", got, w.ram)
	}
	if x := m.Set(memmap.RAM, memmap.Reserved).Intersect(w.hidden); len(x) > 0 {
		return fmt.Errorf("hidden memory %v is in the tree as the kernel's", x)
	}
	return nil
}
