package acpi_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/warmcore/warmcore/pkg/acpi"
	"github.com/warmcore/warmcore/pkg/acpi/acpitest"
	"github.com/warmcore/warmcore/pkg/phys"
)

// fadtBody has RESET_REG_SUP, port 0xcf9 and value 6, and ARM_BOOT_ARCH 3.
func fadtBody() []byte {
	b := make([]byte, 276-36)
	b[113-36] = 1 << 2
	b[116-36] = acpi.SpaceIO
	b[120-36], b[121-36] = 0xf9, 0x0c
	b[128-36] = 6
	b[129-36] = 3
	return b
}

func TestParseFADT(t *testing.T) {
	for _, tc := range []struct {
		name string
		b    []byte
		want acpi.FADT
	}{
		{"whole", acpitest.Table("FACP", 6, fadtBody()),
			acpi.FADT{Reset: &acpi.Address{Space: acpi.SpaceIO, Address: 0xcf9}, ResetValue: 6, PSCI: true, HVC: true}},
		{"before ARM_BOOT_ARCH", acpitest.Table("FACP", 3, fadtBody()[:129-36]),
			acpi.FADT{Reset: &acpi.Address{Space: acpi.SpaceIO, Address: 0xcf9}, ResetValue: 6}},
		{"ACPI 1.0", acpitest.Table("FACP", 1, fadtBody()[:116-36]), acpi.FADT{}},
		{"what follows the table", append(acpitest.Table("FACP", 1, fadtBody()[:116-36]), fadtBody()...), acpi.FADT{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := acpi.ParseFADT(tc.b)
			if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
				t.Errorf("error %v, FADT (-want +got):\n%s", err, diff)
			}
		})
	}
}

// gicc is a GIC CPU interface structure of a MADT.
func gicc(flags byte, mpidr uint16) []byte {
	b := make([]byte, 82)
	b[0], b[1] = 0xb, 82
	b[12] = flags
	b[68], b[69] = byte(mpidr), byte(mpidr>>8)
	return b
}

func madt(structures ...[]byte) []byte {
	body := make([]byte, 44-36)
	for _, s := range structures {
		body = append(body, s...)
	}
	return acpitest.Table("APIC", 5, body)
}

func TestParseMADT(t *testing.T) {
	got, err := acpi.ParseMADT(madt([]byte{0xc, 4, 0, 0}, gicc(1, 0), gicc(0, 7), gicc(1, 0x100)))
	if diff := cmp.Diff(acpi.MADT{MPIDRs: []uint64{0, 0x100}}, got); diff != "" || err != nil {
		t.Errorf("error %v, MADT (-want +got):\n%s", err, diff)
	}
}

// memory is a memory affinity structure of a SRAT. start and size are in GiB.
func memory(flags byte, domain uint32, start, size byte) []byte {
	b := make([]byte, 40)
	b[0], b[1] = 1, 40
	b[2], b[3], b[4], b[5] = byte(domain), byte(domain>>8), byte(domain>>16), byte(domain>>24)
	b[11], b[12] = start<<6, start>>2 // base in bytes, little endian, from offset 8
	b[11+8], b[12+8] = size<<6, size>>2
	b[28] = flags
	return b
}

func srat(revision uint8, structures ...[]byte) []byte {
	body := make([]byte, 48-36)
	for _, s := range structures {
		body = append(body, s...)
	}
	return acpitest.Table("SRAT", revision, body)
}

func TestParseSRAT(t *testing.T) {
	cpu := make([]byte, 16)
	cpu[1] = 16
	gib := func(start, end uint64) phys.Range { return phys.Range{Start: start * phys.GiB, End: end * phys.GiB} }
	for _, tc := range []struct {
		name string
		b    []byte
		want acpi.SRAT
	}{
		{"two sockets", srat(3, cpu, memory(1, 0, 0, 3), memory(1, 0, 4, 5), memory(1, 0x10001, 9, 8)), acpi.SRAT{Memory: []acpi.MemoryAffinity{
			{Range: gib(0, 3)}, {Range: gib(4, 9)}, {Range: gib(9, 17), Domain: 0x10001}}}},
		{"revision 1 has a domain of one byte", srat(1, memory(1, 0xabcd01, 0, 4)), acpi.SRAT{Memory: []acpi.MemoryAffinity{
			{Range: gib(0, 4), Domain: 1}}}},
		{"not enabled", srat(3, memory(0, 1, 0, 4)), acpi.SRAT{}},
		{"empty", srat(3, memory(1, 1, 4, 0)), acpi.SRAT{}},
		{"only CPUs", srat(3, cpu), acpi.SRAT{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := acpi.ParseSRAT(tc.b)
			if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
				t.Errorf("error %v, SRAT (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	cut := func(b []byte, n int) []byte { return b[:n] }
	set := func(b []byte, at int, x byte) []byte { b[at] = x; return acpitest.Sum(b, 9) }
	beyond := memory(1, 1, 0, 4)
	for i := 8; i < 16; i++ {
		beyond[i] = 0xff
	}
	for _, tc := range []struct {
		name, want string
		b          []byte
	}{
		{"empty", "0 bytes, want at least 36", nil},
		{"cut in the header", "35 bytes, want at least 36", cut(srat(3), 35)},
		{"another table", `signature at offset 0 is "APIC"`, madt()},
		{"longer than the file", "length at offset 4 is 49, want at most 48", set(srat(3), 4, 49)},
		{"longer than any table", "want at most", set(srat(3), 6, 0xff)},
		{"without its fields", "length at offset 4 is 36, want at least 48", acpitest.Table("SRAT", 3, nil)},
		{"structure of 0 bytes", "offset 0x30: structure of 0 bytes, want 2 to 40", srat(3, append([]byte{1, 0}, make([]byte, 38)...))},
		{"structure beyond the end", "offset 0x30: structure of 41 bytes", srat(3, append([]byte{1, 41}, make([]byte, 38)...))},
		{"one byte at the end", "offset 0x30: 1 byte left", srat(3, []byte{1})},
		{"memory beyond the last address", "beyond the last address", srat(3, beyond)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := acpi.ParseSRAT(tc.b)
			if err == nil || !strings.Contains(err.Error(), tc.want) || got.Memory != nil {
				t.Errorf("%+v, error %v, want %q", got, err, tc.want)
			}
		})
	}
	b := srat(3)
	b[12]++ // who made it
	if _, err := acpi.ParseSRAT(b); !errors.Is(err, acpi.ErrChecksum) {
		t.Errorf("error %v, want %v", err, acpi.ErrChecksum)
	}
}

func TestFindRSDP(t *testing.T) {
	at := func(off int, fix bool) []byte {
		b := make([]byte, 4096)
		p := b[off:][:20]
		copy(p, "RSD PTR ")
		if fix {
			acpitest.Sum(p, 8)
		}
		return b
	}
	for _, tc := range []struct {
		name string
		b    []byte
		want int
		ok   bool
	}{
		{"at the beginning", at(0, true), 0, true},
		{"in between", at(0x230, true), 0x230, true},
		{"not aligned", at(0x238, true), 0, false},
		{"bad checksum", at(0x230, false), 0, false},
		{"cut", at(0x230, true)[:0x240], 0, false},
		{"nothing", nil, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if off, ok := acpi.FindRSDP(tc.b); off != tc.want || ok != tc.ok {
				t.Errorf("%#x, %v; want %#x, %v", off, ok, tc.want, tc.ok)
			}
		})
	}
}

// FuzzTables gives hostile bytes to each decoder, with a right checksum, too.
func FuzzTables(f *testing.F) {
	f.Add(acpitest.Table("FACP", 6, fadtBody()))
	f.Add(madt(gicc(1, 0x100)))
	f.Add(madt([]byte{0xb, 0}))
	f.Add(srat(3, memory(1, 1, 4, 4)))
	f.Add(srat(1, []byte{1, 40}))
	f.Add([]byte("RSD PTR ............"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if off, ok := acpi.FindRSDP(b); ok && (off%16 != 0 || off+20 > len(b)) {
			t.Errorf("root pointer at %#x of %d bytes", off, len(b))
		}
		if len(b) > 9 {
			b = acpitest.Sum(b, 9)
		}
		if got, err := acpi.ParseFADT(b); err != nil && got != (acpi.FADT{}) {
			t.Errorf("%+v, and %v", got, err)
		}
		if got, err := acpi.ParseMADT(b); err != nil && got.MPIDRs != nil || len(got.MPIDRs) > len(b)/76 {
			t.Errorf("%d CPUs of %d bytes, error %v", len(got.MPIDRs), len(b), err)
		}
		got, err := acpi.ParseSRAT(b)
		if err != nil && got.Memory != nil || len(got.Memory) > len(b)/40 {
			t.Errorf("%d ranges of %d bytes, error %v", len(got.Memory), len(b), err)
		}
		for _, m := range got.Memory {
			if m.Range.Empty() {
				t.Errorf("empty range %v", m.Range)
			}
		}
	})
}
