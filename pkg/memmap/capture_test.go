package memmap_test

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/memmap/memmaptest"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/zeropage"
)

var update = flag.Bool("update", false, "write testdata")

// describe prints all that a parser found, for a golden file.
func describe(m memmap.Map) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%vnormalized:\n%vRAM %v\nhash %x\n", m, m.Normalize(), phys.FormatSize(m.Set(memmap.RAM).Size()), m.Hash())
	for _, w := range m.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", w)
	}
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
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
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func TestCaptures(t *testing.T) {
	for _, c := range memmaptest.Captures() {
		t.Run(c.Name, func(t *testing.T) {
			m, err := memmap.Sysfs(c.Sysfs)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, c.Name+".sysfs.golden", describe(m))

			// The same as an e820 table and back.
			table, err := memmap.AppendE820(nil, m.Entries)
			if err != nil {
				t.Fatal(err)
			}
			again, err := memmap.E820(table)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(m.Normalize(), again.Normalize()); diff != "" {
				t.Errorf("E820(AppendE820(Sysfs())) (-want +got):\n%s", diff)
			}
			if again.Hash() != m.Hash() {
				t.Error("the e820 table has another hash than sysfs")
			}
			checkOrder(t, m)

			if c.IOMem == "" {
				return
			}
			io, err := memmap.IOMem(strings.NewReader(c.IOMem))
			if err != nil {
				t.Fatal(err)
			}
			golden(t, c.Name+".iomem.golden", describe(io))
			checkOrder(t, io)
		})
	}
}

// checkOrder says whether the order of the entries makes a difference.
func checkOrder(t *testing.T, m memmap.Map) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	shuffled := memmap.Map{Entries: append([]memmap.Entry(nil), m.Entries...)}
	for range 10 {
		random.Shuffle(len(shuffled.Entries), func(i, j int) {
			e := shuffled.Entries
			e[i], e[j] = e[j], e[i]
		})
		if shuffled.Hash() != m.Hash() {
			t.Fatalf("Hash() depends on the order of entries:\n%v", shuffled)
		}
		if diff := cmp.Diff(m.Normalize().Entries, shuffled.Normalize().Entries); diff != "" {
			t.Fatalf("Normalize() depends on the order of entries (-want +got):\n%s", diff)
		}
	}
}

// The facts that the payload relies on, by name and number.
func TestCaptureFacts(t *testing.T) {
	sysfs := func(name string) memmap.Map {
		m, err := memmap.Sysfs(memmaptest.Named(name).Sysfs)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	iomem := func(name string) memmap.Map {
		m, err := memmap.IOMem(strings.NewReader(memmaptest.Named(name).IOMem))
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, tc := range []struct {
		name string
		got  phys.Set
		want string
	}{
		{"RAM of 1 GiB", sysfs("q35-1g").Set(memmap.RAM), "00000000-0009fbff 00100000-3ffdefff"},
		{"RAM of 6 GiB", sysfs("q35-6g").Set(memmap.RAM), "00000000-0009fbff 00100000-7ffdefff 100000000-1ffffffff"},
		{"RAM as the kernel uses it", iomem("q35-6g").Set(memmap.RAM), "00001000-0009fbff 00100000-7ffdefff 140000000-1ffffffff"},
		{"soft reserved, in a device", iomem("q35-6g").Set(memmap.SoftReserved), "100000000-13fffffff"},
		{"persistent memory", iomem("q35-2g").Set(memmap.PRAM), "40000000-47ffffff"},
		{"crash kernel", iomem("q35-2g").Named("Crash kernel"), "7f000000-7f0fffff"},
		{"crash kernel is not at the top", iomem("q35-2g").Top().Named("Crash kernel"), "none"},
		{"system RAM at the top", iomem("q35-2g").Top().Named("System RAM"), "00001000-0009fbff 00100000-3fffffff 48000000-7ffdefff"},
		{"confined", iomem("q35-1g-confined").Set(memmap.RAM), "00001000-0009ffff 01000000-0442ffff 18000000-1fffffff"},
	} {
		if tc.got.String() != tc.want {
			t.Errorf("%s = %v, want %s", tc.name, tc.got, tc.want)
		}
	}
	if got, want := sysfs("q35-1g-confined").Hash(), sysfs("q35-1g").Hash(); !bytes.Equal(got[:], want[:]) {
		t.Errorf("hash of the firmware's map changes with memmap=exactmap: %x, want %x", got, want)
	}
	if n := len(sysfs("server-1536g").Entries); n <= zeropage.MaxE820 {
		t.Errorf("server has %d entries, want more than the zero page holds", n)
	}
}
