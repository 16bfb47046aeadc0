package segments

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/devicetree"
)

// bindings are our own nodes' schemas.
const bindings = "../../docs/bindings"

// validate judges a device tree by our schemas and those of the specification
// (package dt-schema). Without dt-validate the test fails.
func validate(t testing.TB, blob []byte) {
	t.Helper()
	if complaints := invalid(t, blob); complaints != "" {
		t.Errorf("dt-validate:\n%s", complaints)
	}
}

// invalid returns what dt-validate says about our nodes, about /chosen, /memory
// and /reserved-memory. QEMU's other nodes are not ours to judge. Debian 12's
// schema has 32 bits for linux,initrd-start; the kernel reads as many as there
// are (early_init_dt_check_for_initrd in drivers/of/fdt.c, v6.12).
func invalid(t testing.TB, blob []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "x.dtb")
	if err := os.WriteFile(file, blob, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("dt-validate", "-s", bindings, file).CombinedOutput()
	if err != nil {
		t.Fatalf("dt-validate (package dt-schema): %v\n%s", err, out)
	}
	var about []string
	for _, line := range strings.Split(string(out), "\n") {
		_, what, ok := strings.Cut(line, "x.dtb: ")
		if !ok {
			what = line
		}
		ours := slices.ContainsFunc([]string{"/:", "chosen", "memory", "reserved-memory", "handoff", "copy", "pmem", "bindings"}, func(s string) bool {
			return strings.HasPrefix(what, s) || !ok && strings.Contains(line, "bindings")
		})
		if ours && !strings.Contains(what, "linux,initrd-") {
			about = append(about, line)
		}
	}
	return strings.Join(about, "\n")
}

// TestValidate: the payload's tree is valid, and each fault in one of our
// nodes is found.
func TestValidate(t *testing.T) {
	tests := []struct {
		name   string
		change func(tree *devicetree.Tree)
		want   string
	}{
		{"payload's tree", func(*devicetree.Tree) {}, ""},
		{"handoff area that is mapped", func(tree *devicetree.Tree) {
			tree.Find("/reserved-memory/handoff@78000000").Delete("no-map")
		}, "'no-map' is a required property"},
		{"handoff area of two ranges", func(tree *devicetree.Tree) {
			n := tree.Find("/reserved-memory/handoff@78000000")
			reg, _ := n.Property("reg")
			n.Set("reg", slices.Concat(reg, reg))
		}, "is too long"},
		{"copied memory with a property more", func(tree *devicetree.Tree) {
			tree.Find("/reserved-memory/copy@40000000").Set("reusable", nil)
		}, "'reusable' does not match"},
		{"hidden memory without a NUMA node", func(tree *devicetree.Tree) {
			n := tree.Root.Add("pmem@90000000")
			n.SetString("compatible", "pmem-region")
			n.Set("reg", []byte{0, 0, 0, 0, 0x90, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0})
			n.Set("volatile", nil)
		}, "'numa-node-id' is a required property"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tree := payloadTree(t, "virt-2g")
			tree.Find("/chosen").Delete("linux,uefi-mmap-start") // no schema has it
			tt.change(tree)
			blob, err := tree.Append(nil)
			if err != nil {
				t.Fatal(err)
			}
			got := invalid(t, blob)
			if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("dt-validate: %q, want %q", got, tt.want)
			}
		})
	}
}

// TestExamples: what the schemas show is valid by them.
func TestExamples(t *testing.T) {
	schemas, err := filepath.Glob(filepath.Join(bindings, "*.yaml"))
	if err != nil || len(schemas) != 3 {
		t.Fatalf("schemas %q, %v; want 3", schemas, err)
	}
	for _, schema := range schemas {
		source, err := exec.Command("dt-extract-example", schema).Output()
		if err != nil {
			t.Fatalf("dt-extract-example (package dt-schema) %s: %v", schema, err)
		}
		compile := exec.Command("dtc", "-q", "-I", "dts", "-O", "dtb")
		compile.Stdin = bytes.NewReader(source)
		blob, err := compile.Output()
		if err != nil {
			t.Fatalf("dtc (package device-tree-compiler): example of %s: %v", schema, err)
		}
		validate(t, blob)
	}
}
