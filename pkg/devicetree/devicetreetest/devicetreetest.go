// Package devicetreetest has the device trees of machines, and dtc to judge
// trees, for tests.
package devicetreetest

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"os/exec"
	"path"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/devicetree"
)

// trees holds what QEMU 7.2 gives its virt machine:
//
//	qemu-system-aarch64 -M virt,dumpdtb=x.dtb -cpu cortex-a57 -m 2G -smp 2 && dtc -I dtb -O dtb -o virt-2g.dtb x.dtb
//
// virt-2g-el2 with virtualization=on; virt-4g-numa with nodes of 1 GiB and
// 3 GiB, each with a CPU; virt-6g with 4 CPUs.
//
//go:embed trees/*.dtb
var trees embed.FS

// Names returns the names of all trees.
func Names() []string {
	files, err := fs.Glob(trees, "trees/*.dtb")
	if err != nil {
		panic(fmt.Sprintf("devicetreetest: list trees: %v", err))
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(path.Base(f), ".dtb")
	}
	return files
}

// Blob returns the blob of a tree. It panics where there is none of the name.
func Blob(name string) []byte {
	b, err := trees.ReadFile("trees/" + name + ".dtb")
	if err != nil {
		panic(fmt.Sprintf("devicetreetest: %v", err))
	}
	return b
}

// Tree returns a tree, a new one at each call.
func Tree(name string) *devicetree.Tree {
	t, err := devicetree.Parse(Blob(name))
	if err != nil {
		panic(fmt.Sprintf("devicetreetest: %s: %v", name, err))
	}
	return t
}

// Source returns what dtc (device-tree-compiler) reads in a blob, as source.
// Without dtc, and where it refuses the blob, the test fails.
func Source(t testing.TB, blob []byte) string {
	t.Helper()
	source, _ := run(t, blob, "-q", "-I", "dtb", "-O", "dts")
	return source
}

// Check fails the test where dtc has any complaint about a blob. It has none
// about the trees here.
func Check(t testing.TB, blob []byte) {
	t.Helper()
	if complaints := Complaints(t, blob); complaints != "" {
		t.Errorf("dtc complains:\n%s", complaints)
	}
}

// Complaints returns dtc's warnings about a blob.
func Complaints(t testing.TB, blob []byte) string {
	t.Helper()
	_, complaints := run(t, blob, "-I", "dtb", "-O", "null")
	return complaints
}

func run(t testing.TB, blob []byte, args ...string) (out, complaints string) {
	t.Helper()
	cmd := exec.Command("dtc", args...)
	cmd.Stdin = bytes.NewReader(blob)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("dtc (package device-tree-compiler): %v\n%s", err, stderr.String())
	}
	return stdout.String(), stderr.String()
}
