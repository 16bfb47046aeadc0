package stub

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/boot/boottest"
	"github.com/warmcore/warmcore/pkg/acpi"
	"github.com/warmcore/warmcore/pkg/phys"
)

// valid returns parameters that Build takes; each test changes one.
func validAMD64() AMD64Params {
	return AMD64Params{
		Base:          0x1000_0000,
		Record:        0x2002_0000,
		LowPage:       0x9_f000,
		Nonce:         [16]byte([]byte("0123456789abcdef")),
		APICIDs:       []uint32{0, 2, 4, 300},
		BSP:           0,
		ResetRegister: ResetRegister{Space: SpaceIO, Address: 0xcf9, Value: 0x0f},
	}
}

func TestAMD64IsRebuilt(t *testing.T) {
	if got := boottest.Assemble(t, "amd64", "stub.bin"); !bytes.Equal(got, amd64Code) {
		t.Errorf("amd64/stub.bin: %d bytes that differ from the %d that stub.S gives; run make in amd64", len(amd64Code), len(got))
	}
}

// TestAMD64Offsets compares the constants of amd64.go with stub.S's own, which
// it carries as a table after the parameters.
func TestAMD64Offsets(t *testing.T) {
	const offTable = 0x50
	if got, want := string(amd64Code[0x08:0x10]), "WCSTUB01"; got != want {
		t.Fatalf("magic: got %q, want %q", got, want)
	}
	n := int(binary.LittleEndian.Uint16(amd64Code[offTable:]))
	var got []int
	for i := range n {
		got = append(got, int(binary.LittleEndian.Uint16(amd64Code[offTable+2+2*i:])))
	}
	want := []int{
		offRecord, offLowPage, offNonce, offBSP, offCount,
		offResetAddress, offResetSpace, offResetValue, offSkip, offProgress,
		offTables + 0x0000, offTables + 0x1000, offTables + 0x3000, // levels 5, 4, 2
		offList, offStackTop, AMD64Size,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("offsets (-amd64.go +stub.S):\n%s", diff)
	}
	if zero := make([]byte, offTable-offRecord); !bytes.Equal(amd64Code[offRecord:offTable], zero) {
		t.Error("parameters in stub.bin: not all zero")
	}
	if len(amd64Code) > offTables {
		t.Errorf("stub.bin: %d bytes, room for %d", len(amd64Code), offTables)
	}
	if offList+4*MaxCPUs > offStackTop-0x1000 {
		t.Errorf("list of %d CPUs runs into the stack", MaxCPUs)
	}
}

func TestBuildAMD64(t *testing.T) {
	p := validAMD64()
	p.BSP = 4
	p.Skip = SkipCF9 | SkipKeyboard
	image, entry, err := BuildAMD64(p)
	if err != nil {
		t.Fatal(err)
	}
	if len(image) != AMD64Size || entry != p.Base {
		t.Errorf("got %#x bytes, entry %#x; want %#x, %#x", len(image), entry, AMD64Size, p.Base)
	}
	want := slices.Concat(
		[]byte{0x00, 0x00, 0x02, 0x20, 0, 0, 0, 0}, // 0x10 record
		[]byte{0x00, 0xf0, 0x09, 0x00, 0, 0, 0, 0}, // 0x18 low page
		[]byte("0123456789abcdef"),                 // 0x20 nonce
		[]byte{4, 0, 0, 0},                         // 0x30 bootstrap processor
		[]byte{4, 0, 0, 0},                         // 0x34 CPUs
		[]byte{0xf9, 0x0c, 0, 0, 0, 0, 0, 0},       // 0x38 reset register
		[]byte{1},                                  // 0x40 I/O
		[]byte{0x0f},                               // 0x41 value
		[]byte{0, 0},                               // 0x42
		[]byte{5, 0, 0, 0},                         // 0x44 skip
		[]byte{0, 0, 0, 0, 0, 0, 0, 0},             // 0x48 progress
	)
	if diff := cmp.Diff(want, image[0x10:0x50]); diff != "" {
		t.Errorf("parameters (-want +got):\n%s", diff)
	}
	list := slices.Concat(
		[]byte{0, 0, 0, 0},
		[]byte{2, 0, 0, 0},
		[]byte{4, 0, 0, 0},
		[]byte{0x2c, 1, 0, 0},
		[]byte{0, 0, 0, 0},
	)
	if diff := cmp.Diff(list, image[offList:offList+20]); diff != "" {
		t.Errorf("APIC IDs (-want +got):\n%s", diff)
	}
	if !bytes.Equal(image[:0x10], amd64Code[:0x10]) || !bytes.Equal(image[0x50:len(amd64Code)], amd64Code[0x50:]) {
		t.Error("code: changed outside the parameters")
	}

	again, _, err := BuildAMD64(p)
	if err != nil || !bytes.Equal(image, again) {
		t.Errorf("second Build: not the same image (error %v)", err)
	}
	if n := binary.LittleEndian.Uint64(amd64Code[offRecord:]); n != 0 {
		t.Errorf("embedded code after Build: record %#x, want 0", n)
	}
}

// TestBuildAMD64Uncached looks up the reset register's page in the image's tables.
func TestBuildAMD64Uncached(t *testing.T) {
	for _, c := range []struct {
		name  string
		reset ResetRegister
		want  uint64
	}{
		{"memory", ResetRegister{SpaceMemory, 0xfed8_0123, 1}, 0xfec0_0000 | 0xfb},
		{"I/O", ResetRegister{SpaceIO, 0xcf9, 1}, 0xfec0_0000 | 0xe3},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := validAMD64()
			p.ResetRegister = c.reset
			image, _, err := BuildAMD64(p)
			if err != nil {
				t.Fatal(err)
			}
			const pd = 0x4000
			addr := c.want &^ 0xfff
			if got := binary.LittleEndian.Uint64(image[pd+addr>>21*8:]); got != c.want {
				t.Errorf("entry of %#x: got %#x, want %#x", addr, got, c.want)
			}
		})
	}
}

func TestBuildAMD64Limits(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*AMD64Params)
		want string // in the error; empty: no error
	}{
		{"as it is", func(*AMD64Params) {}, ""},
		{"highest base", func(p *AMD64Params) { p.Base = 1<<32 - AMD64Size }, ""},
		{"lowest base", func(p *AMD64Params) { p.Base = 1 << 20 }, ""},
		{"lowest low page", func(p *AMD64Params) { p.LowPage = 0x1000 }, ""},
		{"record behind the image", func(p *AMD64Params) { p.Record = p.Base + AMD64Size }, ""},
		{"highest record", func(p *AMD64Params) { p.Record = 1<<32 - recordSize }, ""},
		{"no reset register", func(p *AMD64Params) { p.ResetRegister = ResetRegister{} }, ""},
		{"reset register in PCI space", func(p *AMD64Params) { p.ResetRegister = ResetRegister{SpacePCI, 1 << 40, 1} }, ""},
		{"most CPUs", func(p *AMD64Params) { p.APICIDs = ids(MaxCPUs) }, ""},
		{"highest APIC ID", func(p *AMD64Params) { p.APICIDs = []uint32{0xfffffffe} }, ""},

		{"base not aligned", func(p *AMD64Params) { p.Base += 0x800 }, "base: 0x10000800: not a multiple"},
		{"base too low", func(p *AMD64Params) { p.Base = 0xff000 }, "base: 0xc000 bytes at 0xff000: outside"},
		{"image across 4 GiB", func(p *AMD64Params) { p.Base = 1<<32 - AMD64Size + 0x1000 }, "base: 0xc000 bytes at 0xffff5000: outside"},
		{"base wraps", func(p *AMD64Params) { p.Base = 1<<64 - 0x1000 }, "base: 0xc000 bytes at 0xfffffffffffff000: outside"},
		{"record not aligned", func(p *AMD64Params) { p.Record += 32 }, "record: 0x20020020: not a multiple"},
		{"record above 4 GiB", func(p *AMD64Params) { p.Record = 1 << 32 }, "record: 0x80 bytes at 0x100000000: outside"},
		{"no record", func(p *AMD64Params) { p.Record = 0 }, "record: 0x80 bytes at 0x0: outside"},
		{"record in the image", func(p *AMD64Params) { p.Record = p.Base + AMD64Size - recordAlign }, "in the image"},
		{"record runs into the image", func(p *AMD64Params) { p.Record = p.Base - recordAlign }, "in the image"},
		{"low page 0", func(p *AMD64Params) { p.LowPage = 0 }, "low page: 0x1000 bytes at 0x0: outside"},
		{"low page at 640 KiB", func(p *AMD64Params) { p.LowPage = 0xa0000 }, "low page: 0x1000 bytes at 0xa0000: outside"},
		{"low page not aligned", func(p *AMD64Params) { p.LowPage = 0x9010 }, "low page: 0x9010: not a multiple"},
		{"no nonce", func(p *AMD64Params) { p.Nonce = [16]byte{} }, "nonce: all zero"},
		{"no CPUs", func(p *AMD64Params) { p.APICIDs = nil }, "APIC IDs: 0, want 1 to 3072"},
		{"too many CPUs", func(p *AMD64Params) { p.APICIDs = ids(MaxCPUs + 1) }, "APIC IDs: 3073, want 1 to 3072"},
		{"CPU twice", func(p *AMD64Params) { p.APICIDs = []uint32{1, 5, 1} }, "APIC ID 2: 0x1 is number 0 already"},
		{"broadcast", func(p *AMD64Params) { p.APICIDs = []uint32{1, 0xffffffff} }, "APIC ID 1: 0xffffffff is everyone"},
		{"broadcast as bootstrap processor", func(p *AMD64Params) { p.BSP = 0xffffffff }, "is everyone"},
		{"port too high", func(p *AMD64Params) { p.ResetRegister.Address = 0x10000 }, "I/O port 0x10000: beyond 0xffff"},
		{"reset register above 4 GiB", func(p *AMD64Params) { p.ResetRegister = ResetRegister{SpaceMemory, 1 << 32, 1} }, "memory 0x100000000: not mapped"},
		{"unknown address space", func(p *AMD64Params) { p.ResetRegister.Space = 3 }, "address space 3"},
		{"unknown skip bit", func(p *AMD64Params) { p.Skip = 8 }, "skip: unknown bits in 0x8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := validAMD64()
			c.edit(&p)
			image, entry, err := BuildAMD64(p)
			if c.want == "" {
				if err != nil {
					t.Fatalf("got error %v, want none", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
			if image != nil || entry != 0 {
				t.Errorf("with an error: got %d bytes, entry %#x; want nothing", len(image), entry)
			}
		})
	}
}

// TestBuildAMD64PCI: a reset register that the stub can't use is left out.
func TestBuildAMD64PCI(t *testing.T) {
	p := validAMD64()
	p.ResetRegister = ResetRegister{SpacePCI, 0x1f_0000_0044, 1}
	image, _, err := BuildAMD64(p)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(make([]byte, 10), image[offResetAddress:offResetAddress+10]); diff != "" {
		t.Errorf("reset register (-want +got):\n%s", diff)
	}
}

func ids(n int) []uint32 {
	s := make([]uint32, n)
	for i := range s {
		s[i] = uint32(i)
	}
	return s
}

func TestFADTReset(t *testing.T) {
	fadt := func(space uint8, address uint64) acpi.FADT {
		return acpi.FADT{Reset: &acpi.Address{Space: space, Address: address}, ResetValue: 6}
	}
	for _, tc := range []struct {
		name string
		fadt acpi.FADT
		want ResetRegister
	}{
		{"I/O", fadt(acpi.SpaceIO, 0xcf9), ResetRegister{Space: SpaceIO, Address: 0xcf9, Value: 6}},
		{"memory", fadt(acpi.SpaceMemory, 0xfed00000), ResetRegister{Space: SpaceMemory, Address: 0xfed00000, Value: 6}},
		{"none", acpi.FADT{ResetValue: 6}, ResetRegister{}},
		{"PCI", fadt(2, 0xcf9), ResetRegister{}},
		{"memory above 4 GiB", fadt(acpi.SpaceMemory, 4*phys.GiB), ResetRegister{}},
		{"port too large", fadt(acpi.SpaceIO, 1<<16), ResetRegister{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, FADTReset(tc.fadt)); diff != "" {
				t.Errorf("reset register (-want +got):\n%s", diff)
			}
		})
	}
}
