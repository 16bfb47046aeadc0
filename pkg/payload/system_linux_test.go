package payload

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

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
