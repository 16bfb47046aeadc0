package payload

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/plan"
)

func TestNewLinux(t *testing.T) {
	for goarch, want := range map[string]plan.Arch{"amd64": plan.AMD64, "arm64": plan.ARM64} {
		l, err := NewLinux(goarch, nil, nil)
		if err != nil {
			t.Errorf("%s: %v", goarch, err)
		} else if l.Arch() != want {
			t.Errorf("%s is taken for %s", goarch, l.Arch().Name)
		}
	}
	if l, err := NewLinux("riscv64", nil, nil); err == nil || !strings.Contains(err.Error(), "riscv64") {
		t.Errorf("riscv64 is taken for %s, error %v", l.Arch().Name, err)
	}
}

// TestUnreserved is an arm64 kernel started by EFI, which keeps ACPI's tables,
// its own initrd and an interrupt controller's tables.
func TestUnreserved(t *testing.T) {
	m, err := memmap.IOMem(strings.NewReader(`40000000-5fffffff : System RAM
  40210000-41feffff : Kernel code
  41ff0000-4250ffff : reserved
  42510000-42dbffff : Kernel data
  48000000-483dbfff : reserved
60000000-6000ffff : reserved
60010000-bfffffff : System RAM
  bfe00000-bfffffff : reserved
`))
	if err != nil {
		t.Fatal(err)
	}
	want := phys.NewSet(span(0x40000000, 0x41ff0000), span(0x42510000, 0x48000000), span(0x483dc000, 0x60000000), span(0x60010000, 0xbfe00000))
	if diff := cmp.Diff(want, unreserved(m.Top().Set(memmap.RAM), m)); diff != "" {
		t.Errorf("free memory (-want +got):\n%s", diff)
	}
}

// TestReadTree reads the kernel's copy of a tree, or what it shows without one.
func TestReadTree(t *testing.T) {
	tree := &devicetree.Tree{Reservations: []phys.Range{span(0, 0x1000)}, Root: &devicetree.Node{}}
	tree.Root.SetString("model", "board")
	good, err := tree.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	const shown = "devicetree/base/model"
	model := &fstest.MapFile{Data: []byte("board\x00")}
	tests := []struct {
		name          string
		files         fstest.MapFS
		reservations  int
		warning, want string
	}{
		{"copy", fstest.MapFS{"fdt": {Data: good}, shown: {Data: []byte("other\x00")}}, 1, "", ""},
		{"no copy", fstest.MapFS{shown: model}, 0, "device tree: /sys/firmware: open fdt: file does not exist: taking /sys/firmware/devicetree/base, which lacks", ""},
		{"malformed copy", fstest.MapFS{"fdt": {Data: good[:60]}, shown: model}, 0, "/sys/firmware/fdt: device tree: offset 0x4", ""},
		{"nothing", fstest.MapFS{}, 0, "", "/sys/firmware/devicetree/base: device tree: open "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, warning, err := readTree(tt.files)
			if (tt.warning == "") != (warning == "") || !strings.HasPrefix(warning, tt.warning) {
				t.Errorf("warning %q, want %q", warning, tt.warning)
			}
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) || got != nil {
					t.Errorf("%v, %v; want the error %q", got, err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if model := got.Root.Strings("model"); !slices.Equal(model, []string{"board"}) || len(got.Reservations) != tt.reservations {
				t.Errorf("model %q, reservations %v", model, got.Reservations)
			}
		})
	}
}
