package memmap_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/memmap/memmaptest"
)

// checkMap checks what holds for every map that a parser returns: the zero Map
// with an error, else RAM in it, no empty entry, and a normalized map that
// goes through an e820 table unchanged.
func checkMap(t *testing.T, m memmap.Map, err error) {
	t.Helper()
	if err != nil {
		if diff := cmp.Diff(memmap.Map{}, m); diff != "" {
			t.Fatalf("map with error %v (-want +got):\n%s", err, diff)
		}
		return
	}
	ram := false
	for _, e := range m.Entries {
		ram = ram || e.Kind == memmap.RAM
		if e.Range.Empty() {
			t.Fatalf("empty entry %v", e)
		}
	}
	if !ram || len(m.Entries) > memmap.MaxIOMemLines {
		t.Fatalf("%d entries, RAM: %v", len(m.Entries), ram)
	}
	n := m.Normalize()
	for i := 1; i < len(n.Entries); i++ {
		if n.Entries[i].Range.Start < n.Entries[i-1].Range.End {
			t.Fatalf("Normalize() overlaps at %v", n.Entries[i])
		}
	}
	checkOrder(t, m)
	table, err := memmap.AppendE820(nil, n.Entries)
	if err != nil {
		return // more entries than allowed, by cutting those that overlap
	}
	again, err := memmap.E820(table)
	if err != nil {
		if m.Set(memmap.RAM) == nil {
			return // all of the RAM lies under other entries
		}
		t.Fatalf("E820(AppendE820()) = %v", err)
	}
	if diff := cmp.Diff(n.Entries, again.Entries); diff != "" {
		t.Fatalf("E820(AppendE820()) (-want +got):\n%s", diff)
	}
	if again.Hash() != m.Hash() {
		t.Fatal("Hash() changes through an e820 table")
	}
}

func FuzzSysfs(f *testing.F) {
	for _, name := range []string{"q35-1g", "q35-6g"} {
		m, err := memmap.Sysfs(memmaptest.Named(name).Sysfs)
		if err != nil {
			f.Fatal(err)
		}
		var text strings.Builder
		for i, e := range m.Entries {
			text.WriteString(sysfsLine(i, e))
		}
		f.Add(text.String())
	}
	f.Add("0 0x0 0xfff System RAM\n1 0xffffffffffffffff 0xffffffffffffffff x\n2 0x0 0xffffffffffffffff Reserved\n")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := memmap.Sysfs(memmaptest.Sysfs(text))
		checkMap(t, m, err)
	})
}

func FuzzIOMem(f *testing.F) {
	for _, c := range memmaptest.Captures() {
		f.Add(c.IOMem)
	}
	f.Add("00000000-ffffffffffffffff : System RAM\n  00000001-00000002 : reserved\n")
	f.Add("00000000-00000000 : System RAM\n")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := memmap.IOMem(strings.NewReader(text))
		checkMap(t, m, err)
		if err != nil || len(m.Warnings) > 0 {
			return
		}
		// The map prints as it was read, but for brackets and digits.
		again, err := memmap.IOMem(strings.NewReader(iomemText(m)))
		if err != nil {
			t.Fatalf("IOMem() of its own text = %v", err)
		}
		if diff := cmp.Diff(m, again); diff != "" {
			t.Fatalf("IOMem() of its own text (-want +got):\n%s", diff)
		}
	})
}

func FuzzE820(f *testing.F) {
	f.Add(e820Entry(0, 0x1000, 1))
	f.Add(append(e820Entry(0, 0x3000, 1), e820Entry(0x1000, 0x1000, 0xefffffff)...))
	f.Add(append(e820Entry(0, 0, 1), e820Entry(0xffffffffffffffff, 1, 2)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := memmap.E820(data)
		checkMap(t, m, err)
		if err != nil || len(m.Warnings) > 0 {
			return
		}
		again, err := memmap.AppendE820(nil, m.Entries)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(data, again); diff != "" {
			t.Fatalf("AppendE820(E820()) (-want +got):\n%s", diff)
		}
	})
}

// sysfsLine prints e in the form of memmaptest.Sysfs.
func sysfsLine(i int, e memmap.Entry) string {
	return fmt.Sprintf("%d %#x %#x %s\n", i, e.Range.Start, e.Range.End-1, e.Name)
}

// iomemText prints m as /proc/iomem.
func iomemText(m memmap.Map) string {
	var b strings.Builder
	for _, e := range m.Entries {
		fmt.Fprintf(&b, "%*s%v : %s\n", 2*e.Depth, "", e.Range, e.Name)
	}
	return b.String()
}
