package devicetree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
)

// ReadFS reads a tree as a running kernel shows it, in
// /sys/firmware/devicetree/base: nodes are directories, properties are files
// (__of_attach_node_sysfs in drivers/of/kobj.c, v6.12). It lacks what the
// kernel does not show: reservations, the CPU that boots, and the order of
// nodes. The property "name" is the kernel's own and is left out.
func ReadFS(fsys fs.FS) (*Tree, error) {
	r := fsReader{fsys: fsys}
	root, err := r.node(".", "", 1)
	if err != nil {
		return nil, fmt.Errorf("device tree: %w", err)
	}
	return &Tree{Root: root}, nil
}

type fsReader struct {
	fsys        fs.FS
	nodes, size int // so far
}

func (r *fsReader) node(dir, name string, depth int) (*Node, error) {
	r.nodes++
	switch {
	case depth > MaxDepth:
		return nil, fmt.Errorf("%s: deeper than %d", dir, MaxDepth)
	case r.nodes > MaxNodes:
		return nil, fmt.Errorf("%s: more than %d nodes", dir, MaxNodes)
	}
	entries, err := fs.ReadDir(r.fsys, dir)
	if err != nil {
		return nil, err
	}
	n := &Node{Name: name}
	for _, e := range entries {
		at := path.Join(dir, e.Name())
		switch {
		case e.IsDir():
			child, err := r.node(at, e.Name(), depth+1)
			if err != nil {
				return nil, err
			}
			n.Children = append(n.Children, child)
		case e.Type().IsRegular() && e.Name() != "name":
			value, err := r.property(at)
			if err != nil {
				return nil, err
			}
			n.Properties = append(n.Properties, Property{e.Name(), value})
		}
	}
	return n, nil
}

func (r *fsReader) property(name string) ([]byte, error) {
	f, err := r.fsys.Open(name)
	if err != nil {
		return nil, err
	}
	value, err := io.ReadAll(io.LimitReader(f, int64(MaxSize-r.size)+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if r.size += len(value); r.size > MaxSize {
		return nil, fmt.Errorf("%s: more than %d bytes in all", name, MaxSize)
	}
	return value, nil
}
