package segments

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/binding"
	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/devicetree/devicetreetest"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/segments/segmentstest"
)

var update = flag.Bool("update", false, "rewrite the golden device trees")

// TestTree compares whole trees, as dtc reads them, with testdata/NAME.dts:
// only what differs from the machine's own tree.
func TestTree(t *testing.T) {
	for _, tt := range []struct {
		name, tree string
		kind       plan.Kind
		change     func(tree *devicetree.Tree)
	}{
		{"virt-2g-plain", "virt-2g", plan.Plain, nil},
		{"virt-2g-capture", "virt-2g", plan.Capture, nil},
		{"virt-4g-numa-capture", "virt-4g-numa", plan.Capture, nil},
		{"reserved-capture", "virt-2g", plan.Capture, func(tree *devicetree.Tree) {
			r := tree.Find("/reserved-memory")
			r.Children = nil
			n := r.Add("secmon@40800000")
			n.Set("reg", []byte{0, 0, 0, 0, 0x40, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0})
			n.Set("no-map", nil)
			tree.Reservations = append(tree.Reservations, span(gib, gib+0x1000), span(0x90000000, 0x90010000))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree := payloadTree(t, tt.tree)
			if tt.change != nil {
				tt.change(tree)
			}
			before, err := tree.Append(nil)
			if err != nil {
				t.Fatal(err)
			}
			l := normal(t, tree, tt.kind)
			l.Seed = 0x0123456789abcdef
			img, err := ARM64(l)
			if err != nil {
				t.Fatal(err)
			}
			blob := find(img, "device tree").Data
			devicetreetest.Check(t, blob)
			validate(t, blob)
			got := added(devicetreetest.Source(t, devicetreetest.Blob(tt.tree)), devicetreetest.Source(t, blob))
			file := filepath.Join("testdata", tt.name+".dts")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
			after, err := tree.Append(nil)
			if err != nil || !bytes.Equal(before, after) {
				t.Errorf("the machine's tree was changed: %v", err)
			}
		})
	}
}

// added returns the nodes of a source, each with its name, as far as they
// aren't in the other one too. Of /chosen all is shown.
func added(before, after string) string {
	old := map[string]bool{}
	for _, n := range strings.Split(before, "\n\n") {
		old[n] = true
	}
	var out []string
	for _, n := range strings.Split(after, "\n\n") {
		if !old[n] || strings.Contains(n, "chosen {") {
			out = append(out, strings.Trim(n, "\n"))
		}
	}
	return strings.Join(out, "\n\n") + "\n"
}

// FuzzSameTree: whatever is in a machine's tree, a kernel without a memory map
// is placed with it, and finds its own command line and initrd in /chosen.
func FuzzSameTree(f *testing.F) {
	for _, name := range devicetreetest.Names() {
		f.Add(devicetreetest.Blob(name))
	}
	confined, err := payloadTree(f, "virt-2g").Append(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(confined)
	kernel := arm64Kernel(f, segmentstest.DebianARM64(9))
	f.Fuzz(func(t *testing.T, b []byte) {
		tree, err := devicetree.Parse(b)
		if err != nil || len(b) > 16<<10 {
			return // a large one may have no room for what is added
		}
		free := phys.Set{virtWindow}
		l := Linux{Kernel: kernel, InitrdSize: 5, Cmdline: "root=/dev/vda1", Tree: tree, Own: free, Allowed: free, Handoff: virtHandoff}
		img, err := ARM64(l)
		if err != nil {
			t.Fatal(err)
		}
		written, err := devicetree.Parse(find(img, "device tree").Data)
		if err != nil {
			t.Fatal(err)
		}
		chosen := written.Find("/chosen")
		if r, ok := binding.Initrd(written); !ok || r != img.Initrd || !slices.Equal(chosen.Strings("bootargs"), []string{l.Cmdline}) {
			t.Errorf("initrd %v, want %v; bootargs %q", r, img.Initrd, chosen.Strings("bootargs"))
		}
		for _, stale := range []string{"linux,usable-memory-range", "linux,elfcorehdr", "rng-seed"} {
			if _, ok := chosen.Property(stale); ok {
				t.Errorf("/chosen still has %s", stale)
			}
		}
		if _, err := binding.HandoffNode(written); !errors.Is(err, binding.ErrNone) || len(binding.PayloadReserved(written)) > 0 {
			t.Error("the payload's nodes are still there")
		}
		if want := tree.Reservations; !slices.Equal(written.Reservations, want) {
			t.Errorf("reservations %v, want %v", written.Reservations, want)
		}
	})
}

// TestARM64NUMA: hidden memory goes to a node that the kernel will know.
func TestARM64NUMA(t *testing.T) {
	tests := []struct {
		name   string
		change func(tree *devicetree.Tree)
		want   string // ids of the regions, by address
	}{
		{"two nodes with a CPU each", func(*devicetree.Tree) {}, "0 0 1 1"},
		{"no nodes", func(tree *devicetree.Tree) {
			for _, path := range []string{"/memory@40000000", "/memory@80000000", "/cpus/cpu@0", "/cpus/cpu@1"} {
				tree.Find(path).Delete("numa-node-id")
			}
		}, "0 0 0 0"},
		{"nodes 4 and 5", func(tree *devicetree.Tree) {
			tree.Find("/memory@40000000").SetUint32("numa-node-id", 4)
			tree.Find("/memory@80000000").SetUint32("numa-node-id", 5)
			tree.Root.Remove(func(n *devicetree.Node) bool { return n.Name == "cpus" })
		}, "4 4 5 5"},
		// The last GiB is all hidden.
		{"a node with neither RAM nor CPU", func(tree *devicetree.Tree) {
			tree.Find("/memory@80000000").Set("reg", []byte{0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x9c, 0, 0, 0})
			n := tree.Root.Add("memory@11c000000")
			n.SetString("device_type", "memory")
			n.Set("reg", []byte{0, 0, 0, 1, 0x1c, 0, 0, 0, 0, 0, 0, 0, 0x24, 0, 0, 0})
			n.SetUint32("numa-node-id", 9)
		}, "0 0 1 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tree := payloadTree(t, "virt-4g-numa")
			tt.change(tree)
			img, err := ARM64(normal(t, tree, plan.Capture))
			if err != nil {
				t.Fatal(err)
			}
			written, err := devicetree.Parse(find(img, "device tree").Data)
			if err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, n := range written.Root.Children {
				if n.Compatible("pmem-region") {
					id, _ := n.Uint32("numa-node-id")
					ids = append(ids, fmt.Sprint(id))
				}
			}
			if got := strings.Join(ids, " "); got != tt.want {
				t.Errorf("regions are of the nodes %s, want %s", got, tt.want)
			}
		})
	}
}
