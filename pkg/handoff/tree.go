package handoff

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

const reservedMemory = "reserved-memory"

// Bounds of what is read of a device tree.
const (
	maxNodes    = 4096     // children of /reserved-memory
	maxProperty = 64 << 10 // bytes
)

// Find finds the handoff area by the kernel command line and by the device
// tree, a directory such as /proc/device-tree; one of the two is enough. The
// error is ErrNone if neither has it, and something else if they disagree.
func Find(line string, tree fs.FS) (phys.Range, error) {
	told, err := Parse(line)
	if err != nil && !errors.Is(err, ErrNone) {
		return phys.Range{}, err
	}
	node, treeErr := FromTree(tree)
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

// FromTree finds the handoff area in a device tree: the reg property of the
// child of /reserved-memory whose compatible property says so
// (Devicetree Specification v0.4, section 3.5). The error is ErrNone if there
// is no such node; two of them are an error.
func FromTree(tree fs.FS) (phys.Range, error) {
	r, err := fromTree(tree)
	if err != nil && !errors.Is(err, ErrNone) {
		return phys.Range{}, fmt.Errorf("find handoff area in the device tree: %w", err)
	}
	return r, err
}

func fromTree(tree fs.FS) (phys.Range, error) {
	entries, err := fs.ReadDir(tree, reservedMemory)
	if errors.Is(err, fs.ErrNotExist) {
		return phys.Range{}, ErrNone
	}
	if err != nil {
		return phys.Range{}, err
	}
	if len(entries) > maxNodes {
		return phys.Range{}, fmt.Errorf("/%s: %d entries, want at most %d", reservedMemory, len(entries), maxNodes)
	}
	parent, err := node(tree, reservedMemory, "#address-cells", "#size-cells", "ranges")
	if err != nil {
		return phys.Range{}, err
	}
	var found *devicetree.Node
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		n, err := node(tree, path.Join(reservedMemory, e.Name()), "compatible", "status", "reg")
		if err != nil {
			return phys.Range{}, err
		}
		if !n.Compatible(memmap.CompatibleHandoff) || !n.Available() {
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
	// Addresses are as the CPU sees them only if ranges is there and empty.
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
	if err := check(ranges[0]); err != nil {
		return phys.Range{}, fmt.Errorf("/%s/%s: %w", reservedMemory, found.Name, err)
	}
	return ranges[0], nil
}

// node reads the properties of a node that it has of those named.
func node(tree fs.FS, name string, properties ...string) (*devicetree.Node, error) {
	n := &devicetree.Node{Name: path.Base(name)}
	for _, p := range properties {
		f, err := tree.Open(path.Join(name, p))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		v, err := io.ReadAll(io.LimitReader(f, maxProperty+1))
		f.Close()
		if err != nil {
			return nil, err
		}
		if len(v) > maxProperty {
			return nil, fmt.Errorf("/%s/%s: more than %d bytes", name, p, maxProperty)
		}
		n.Set(p, v)
	}
	return n, nil
}
