package binding

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/warmcore/warmcore/pkg/cmdline"
	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/phys"
)

// ErrNone says that neither the command line nor a device tree names a handoff
// area: the payload didn't start this kernel.
var ErrNone = errors.New("no " + ParamHandoff + "= on the kernel command line")

const reservedMemory = "reserved-memory"

// FindHandoff finds the handoff area of the running kernel from its command
// line and from its device tree, a directory such as /proc/device-tree; one of
// the two is enough. The error is ErrNone if neither names it, and another one
// if they disagree.
func FindHandoff(line string, tree fs.FS) (phys.Range, error) {
	told, err := HandoffParam(line)
	if err != nil && !errors.Is(err, ErrNone) {
		return phys.Range{}, err
	}
	node, treeErr := handoffFS(tree)
	switch {
	case treeErr != nil && !errors.Is(treeErr, ErrNone):
		return phys.Range{}, treeErr
	case treeErr != nil:
		return told, err
	case err == nil && told != node:
		return phys.Range{}, fmt.Errorf("handoff area is %v in the device tree, but %v on the kernel command line", node, told)
	}
	return node, nil
}

// handoffFS looks for the node in the part of a tree where it can be. Errors
// elsewhere in the tree are ignored.
func handoffFS(tree fs.FS) (phys.Range, error) {
	reserved, err := fs.Sub(tree, reservedMemory)
	if err != nil {
		return phys.Range{}, fmt.Errorf("find handoff area in the device tree: %w", err)
	}
	t, err := devicetree.ReadFS(reserved)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return phys.Range{}, ErrNone
	case err != nil:
		return phys.Range{}, fmt.Errorf("find handoff area in the device tree: /%s: %w", reservedMemory, err)
	}
	t.Root.Name = reservedMemory
	return HandoffNode(&devicetree.Tree{Root: &devicetree.Node{Children: []*devicetree.Node{t.Root}}})
}

// HandoffParam finds the handoff area on a kernel command line. If the
// parameter occurs several times, the last one counts, as for the kernel's own
// parameters. The error is ErrNone if there is none.
func HandoffParam(line string) (phys.Range, error) {
	param, found := cmdline.Parse(line).Last(ParamHandoff)
	if !found {
		return phys.Range{}, ErrNone
	}
	r, err := parseHandoff(param.Value)
	if err != nil {
		return phys.Range{}, fmt.Errorf("%s=%q: %w", ParamHandoff, param.Value, err)
	}
	return r, nil
}

func parseHandoff(value string) (phys.Range, error) {
	addr, size, ok := strings.Cut(value, ",")
	if !ok {
		return phys.Range{}, errors.New("want ADDR,SIZE")
	}
	start, err := phys.ParseSize(addr)
	if err != nil {
		return phys.Range{}, fmt.Errorf("address: %w", err)
	}
	n, err := phys.ParseSize(size)
	if err != nil {
		return phys.Range{}, fmt.Errorf("size: %w", err)
	}
	r, ok := phys.Sized(start, n)
	if !ok {
		return phys.Range{}, errors.New("beyond 64 bits")
	}
	if err := CheckHandoff(r); err != nil {
		return phys.Range{}, err
	}
	return r, nil
}

// FormatHandoff writes the parameter that HandoffParam reads.
func FormatHandoff(r phys.Range) string {
	return fmt.Sprintf("%s=%#x,%#x", ParamHandoff, r.Start, r.Size())
}

// HandoffNode finds the handoff area in a device tree: the reg property of the
// child of /reserved-memory whose compatible property says so (Devicetree
// Specification v0.4, section 3.5). The error is ErrNone if there is no such
// node; two such nodes, or one that can't be a handoff area, are errors.
func HandoffNode(t *devicetree.Tree) (phys.Range, error) {
	r, err := handoffNode(t)
	if err != nil && !errors.Is(err, ErrNone) {
		return phys.Range{}, fmt.Errorf("find handoff area in the device tree: %w", err)
	}
	return r, err
}

func handoffNode(t *devicetree.Tree) (phys.Range, error) {
	parent := t.Find("/" + reservedMemory)
	if parent == nil {
		return phys.Range{}, ErrNone
	}
	var found *devicetree.Node
	for _, n := range parent.Children {
		if !n.Compatible(CompatibleHandoff) || !n.Available() {
			continue
		}
		if found != nil {
			return phys.Range{}, fmt.Errorf("/%s: both %s and %s are it", reservedMemory, found.Name, n.Name)
		}
		found = n
	}
	if found == nil {
		return phys.Range{}, ErrNone
	}
	// Addresses are those that the CPU sees only if ranges is present and
	// empty.
	if v, ok := parent.Property("ranges"); !ok || len(v) > 0 {
		return phys.Range{}, fmt.Errorf("/%s: ranges is missing or not empty", reservedMemory)
	}
	cells, err := parent.Cells()
	if err != nil {
		return phys.Range{}, err
	}
	ranges, err := found.Reg(cells)
	if err != nil {
		return phys.Range{}, err
	}
	if len(ranges) != 1 {
		return phys.Range{}, fmt.Errorf("/%s/%s: reg has %d ranges, want 1", reservedMemory, found.Name, len(ranges))
	}
	if err := CheckHandoff(ranges[0]); err != nil {
		return phys.Range{}, fmt.Errorf("/%s/%s: %w", reservedMemory, found.Name, err)
	}
	return ranges[0], nil
}

// IsOurs says whether n, a child of /reserved-memory, is one of our own nodes.
func IsOurs(n *devicetree.Node) bool {
	return n.Compatible(CompatibleHandoff) || n.Compatible(CompatiblePayload)
}

// PayloadReserved returns the memory of all nodes with CompatiblePayload:
// reserved in the payload's kernel only. Nodes that can't be read are left
// out.
func PayloadReserved(t *devicetree.Tree) phys.Set {
	reserved := t.Find("/" + reservedMemory)
	if reserved == nil {
		return nil
	}
	cells, err := reserved.Cells()
	if err != nil {
		return nil
	}
	var all []phys.Range
	for _, n := range reserved.Children {
		if !n.Compatible(CompatiblePayload) || !n.Available() {
			continue
		}
		if ranges, err := n.Reg(cells); err == nil {
			all = append(all, ranges...)
		}
	}
	return phys.NewSet(all...)
}

// SetReserved edits /reserved-memory for the normal kernel: it takes our own
// nodes out and puts the handoff area in, if that is not empty. If
// /reserved-memory is empty then, it is taken out, too.
func SetReserved(t *devicetree.Tree, handoff phys.Range) error {
	r := t.Find("/" + reservedMemory)
	if r != nil {
		r.Remove(IsOurs)
	}
	if !handoff.Empty() {
		if r == nil {
			root, err := t.Root.Cells()
			if err != nil {
				return err
			}
			r = t.Root.Add(reservedMemory)
			r.SetUint32("#address-cells", uint32(root.Address))
			r.SetUint32("#size-cells", uint32(root.Size))
			r.Set("ranges", nil)
		}
		cells, err := r.Cells()
		if err != nil {
			return err
		}
		n := r.Add(fmt.Sprintf("handoff@%x", handoff.Start))
		reg, err := cells.Value(handoff)
		if err != nil {
			return fmt.Errorf("node %q: %w", n.Name, err)
		}
		n.SetString("compatible", CompatibleHandoff)
		n.Set("reg", reg)
		n.Set("no-map", nil)
	}
	if r != nil && len(r.Children) == 0 {
		t.Root.Remove(func(n *devicetree.Node) bool { return n == r })
	}
	return nil
}

// AddRegion adds a node for hidden memory. The kernel makes a device of it and
// doesn't touch it by itself (drivers/nvdimm/of_pmem.c, v6.12). node is the
// range's NUMA node and must be one that the kernel knows.
func AddRegion(t *devicetree.Tree, r phys.Range, node uint32) error {
	cells, err := t.Root.Cells()
	if err != nil {
		return err
	}
	reg, err := cells.Value(r)
	if err != nil {
		return err
	}
	n := t.Root.Add(fmt.Sprintf("pmem@%x", r.Start))
	n.SetString("compatible", compatibleRegion)
	n.Set("reg", reg)
	n.Set("volatile", nil)
	n.SetUint32("numa-node-id", node)
	return nil
}
