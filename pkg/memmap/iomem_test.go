package memmap_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

// TestIOMemOfLargeMachine: 64 TiB in 1000 ranges, and eight network cards with
// 256 virtual functions each, all of whose six BARs a driver has claimed.
func TestIOMemOfLargeMachine(t *testing.T) {
	var b strings.Builder
	b.WriteString("00001000-0009ffff : System RAM\n00100000-7fffffff : System RAM\n  01000000-01ffffff : Kernel code\n  20200000-202fffff : Crash kernel\n")
	for i := range uint64(1000) {
		at := phys.TiB + i*(64*phys.GiB+phys.GiB)
		fmt.Fprintf(&b, "%x-%x : System RAM\n", at, at+64*phys.GiB-1)
	}
	const bus = uint64(0x600000000000)
	fmt.Fprintf(&b, "%x-%x : PCI Bus 0000:80\n", bus, bus+phys.TiB-1)
	lines := 0
	for i := range uint64(8 * 256 * 6) {
		at := bus + i*0x10000
		fmt.Fprintf(&b, "  %x-%x : 0000:%02x:%02x.%d\n    %x-%x : vfio-pci\n", at, at+0xffff, 0x81+i/6/256, i/6/8%32, i/6%8, at, at+0xffff)
		lines += 2
	}
	m, err := memmap.IOMem(strings.NewReader(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := m.Named("Crash kernel"), (phys.Set{{Start: 0x20200000, End: 0x20300000}}); len(got) != 1 || got[0] != want[0] {
		t.Errorf("crash kernel at %v, want %v", got, want)
	}
	if n := len(m.Named("System RAM")); n != 1002 || len(m.Entries) != lines+1005 {
		t.Errorf("%d ranges of RAM, %d entries; want 1002 and %d", n, len(m.Entries), lines+1005)
	}
	if n := len(m.Set(memmap.RAM)); n != 1002 {
		t.Errorf("%d ranges of RAM in the normalized map, want 1002", n)
	}
}
