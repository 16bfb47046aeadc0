package devicetree_test

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/devicetree/devicetreetest"
)

// show puts a node into fsys as Linux shows it.
func show(fsys fstest.MapFS, dir string, n *devicetree.Node) {
	fsys[path.Join(dir, "name")] = &fstest.MapFile{Data: append([]byte(n.BaseName()), 0)}
	for _, p := range n.Properties {
		fsys[path.Join(dir, p.Name)] = &fstest.MapFile{Data: p.Value}
	}
	for _, c := range n.Children {
		show(fsys, path.Join(dir, c.Name), c)
	}
}

// sorted brings a node's names into the order of a directory.
func sorted(n *devicetree.Node) {
	slices.SortFunc(n.Properties, func(a, b devicetree.Property) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(n.Children, func(a, b *devicetree.Node) int { return cmp.Compare(a.Name, b.Name) })
	for _, c := range n.Children {
		sorted(c)
	}
}

func TestReadFS(t *testing.T) {
	for _, name := range devicetreetest.Names() {
		t.Run(name, func(t *testing.T) {
			fsys := fstest.MapFS{}
			want := devicetreetest.Tree(name)
			show(fsys, "", want.Root)
			got, err := devicetree.ReadFS(fsys)
			if err != nil {
				t.Fatal(err)
			}
			sorted(want.Root)
			want.Reservations, want.BootCPU = nil, 0
			if diff := gocmp.Diff(source(t, want), source(t, got)); diff != "" {
				t.Errorf("ReadFS() (-want +got):\n%s", diff)
			}
		})
	}
}

func source(t *testing.T, tree *devicetree.Tree) string {
	t.Helper()
	blob, err := tree.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return devicetreetest.Source(t, blob)
}

// many has 300 nodes of 300 nodes.
type many struct{ fs.FS }

func (m many) ReadDir(dir string) (nodes []fs.DirEntry, err error) {
	if strings.Contains(dir, "/") {
		return nil, nil
	}
	one, err := fs.Stat(m.FS, "node")
	return slices.Repeat([]fs.DirEntry{fs.FileInfoToDirEntry(one)}, 300), err
}

func TestReadFSTooManyNodes(t *testing.T) {
	tree, err := devicetree.ReadFS(many{fstest.MapFS{"node/x": {}}})
	if err == nil || !strings.Contains(err.Error(), "more than 65536 nodes") || tree != nil {
		t.Errorf("ReadFS(): %v", err)
	}
}

func TestReadFSRefuses(t *testing.T) {
	tests := []struct {
		name string
		make func(dir string) error
		want string
	}{
		{"nothing there", os.Remove, "no such file"},
		{"too deep", func(dir string) error {
			return os.MkdirAll(filepath.Join(dir, strings.Repeat("n/", devicetree.MaxDepth)), 0o755)
		}, "deeper than 64"},
		{"too large", func(dir string) error {
			value := make([]byte, devicetree.MaxSize/2+1)
			return errors.Join(os.WriteFile(filepath.Join(dir, "a"), value, 0o644), os.WriteFile(filepath.Join(dir, "b"), value, 0o644))
		}, "b: more than 2097152 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := tt.make(dir); err != nil {
				t.Fatal(err)
			}
			tree, err := devicetree.ReadFS(os.DirFS(dir))
			if err == nil || !strings.HasPrefix(err.Error(), "device tree: ") || !strings.Contains(err.Error(), tt.want) || tree != nil {
				t.Errorf("ReadFS(): %v, %v; want the error %q", tree, err, tt.want)
			}
		})
	}
}
