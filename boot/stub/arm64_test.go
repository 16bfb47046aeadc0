package stub

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/boot/boottest"
)

// validARM64 returns parameters that BuildARM64 takes; each test changes one.
func validARM64() ARM64Params {
	return ARM64Params{
		Base:    0x5000_0000,
		Record:  0x6002_0000,
		Nonce:   [16]byte([]byte("0123456789abcdef")),
		Conduit: ConduitSMC,
		CPUs:    []uint64{0, 1, 0x100, 0x12_0034_0000},
	}
}

func TestARM64IsRebuilt(t *testing.T) {
	if got := boottest.Assemble(t, "arm64", "stub.bin"); !bytes.Equal(got, arm64Code) {
		t.Errorf("arm64/stub.bin: %d bytes that differ from the %d that stub.S gives; run make in arm64", len(arm64Code), len(got))
	}
}

// TestARM64Offsets compares the constants of arm64.go with stub.S's own, which
// it carries as a table after the parameters.
func TestARM64Offsets(t *testing.T) {
	const offTable = 0x80
	if got, want := string(arm64Code[0x08:0x10]), "WCSTUBA1"; got != want {
		t.Fatalf("magic: got %q, want %q", got, want)
	}
	var got []int
	for i := range int(binary.LittleEndian.Uint16(arm64Code[offTable:])) {
		got = append(got, int(binary.LittleEndian.Uint16(arm64Code[offTable+2+2*i:])))
	}
	want := []int{
		arm64OffRecord, arm64OffNonce, arm64OffConduit, arm64OffCount, arm64OffSkip, arm64OffProgress,
		arm64OffCleaned, arm64OffFaults, arm64OffResult, arm64OffSyndrome, arm64OffBitmap,
		arm64OffVectors, arm64OffList, ARM64Size >> 12,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("offsets (-arm64.go +stub.S):\n%s", diff)
	}
	if zero := make([]byte, offTable-arm64OffRecord); !bytes.Equal(arm64Code[arm64OffRecord:offTable], zero) {
		t.Error("parameters in stub.bin: not all zero")
	}
	if len(arm64Code) > arm64OffList {
		t.Errorf("stub.bin: %d bytes, room for %d", len(arm64Code), arm64OffList)
	}
	if arm64OffList+8*MaxCPUs > ARM64Size {
		t.Errorf("list of %d CPUs: larger than the image", MaxCPUs)
	}
}

func TestBuildARM64(t *testing.T) {
	p := validARM64()
	p.Skip = SkipSystemReset
	image, entry, err := BuildARM64(p)
	if err != nil {
		t.Fatal(err)
	}
	if len(image) != ARM64Size || entry != p.Base {
		t.Errorf("got %#x bytes, entry %#x; want %#x, %#x", len(image), entry, ARM64Size, p.Base)
	}
	want := slices.Concat(
		[]byte{0x00, 0x00, 0x02, 0x60, 0, 0, 0, 0}, // 0x10 record
		make([]byte, 8),            // 0x18
		[]byte("0123456789abcdef"), // 0x20 nonce
		[]byte{2, 0, 0, 0},         // 0x30 conduit
		[]byte{4, 0, 0, 0},         // 0x34 CPUs
		[]byte{2, 0, 0, 0},         // 0x38 skip
		make([]byte, 0x80-0x3c),    // results
	)
	if diff := cmp.Diff(want, image[0x10:0x80]); diff != "" {
		t.Errorf("parameters (-want +got):\n%s", diff)
	}
	list := slices.Concat(
		[]byte{0, 0, 0, 0, 0, 0, 0, 0},
		[]byte{1, 0, 0, 0, 0, 0, 0, 0},
		[]byte{0, 1, 0, 0, 0, 0, 0, 0},
		[]byte{0, 0, 0x34, 0, 0x12, 0, 0, 0},
		make([]byte, ARM64Size-0x1000-4*8),
	)
	if !bytes.Equal(list, image[0x1000:]) {
		t.Errorf("list of CPUs: got % x, want % x and zeros", image[0x1000:0x1028], list[:0x28])
	}
	if !bytes.Equal(image[:0x10], arm64Code[:0x10]) || !bytes.Equal(image[0x80:len(arm64Code)], arm64Code[0x80:]) {
		t.Error("code: changed outside the parameters")
	}
	again, _, err := BuildARM64(p)
	if err != nil || !bytes.Equal(image, again) {
		t.Errorf("second BuildARM64: not the same image (error %v)", err)
	}
	if n := binary.LittleEndian.Uint64(arm64Code[arm64OffRecord:]); n != 0 {
		t.Errorf("embedded code after BuildARM64: record %#x, want 0", n)
	}
}

func TestBuildARM64Limits(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*ARM64Params)
		want string // in the error; empty: no error
	}{
		{"as it is", func(*ARM64Params) {}, ""},
		{"lowest base", func(p *ARM64Params) { p.Base = 1 << 20 }, ""},
		{"highest base", func(p *ARM64Params) { p.Base = 1<<48 - ARM64Size }, ""},
		{"highest record", func(p *ARM64Params) { p.Record = 1<<48 - recordSize }, ""},
		{"record behind the image", func(p *ARM64Params) { p.Record = p.Base + ARM64Size }, ""},
		{"hvc", func(p *ARM64Params) { p.Conduit = ConduitHVC }, ""},
		{"most CPUs", func(p *ARM64Params) { p.CPUs = mpidrs(MaxCPUs) }, ""},
		{"highest MPIDR", func(p *ARM64Params) { p.CPUs = []uint64{0xff_00ff_ffff} }, ""},
		{"skip all", func(p *ARM64Params) { p.Skip = 3 }, ""},

		{"base not aligned", func(p *ARM64Params) { p.Base += 0x1000 }, "base: 0x50001000: not a multiple of 0x10000"},
		{"base too low", func(p *ARM64Params) { p.Base = 0xf0000 }, "base: 0x10000 bytes at 0xf0000: outside"},
		{"base too high", func(p *ARM64Params) { p.Base = 1 << 48 }, "base: 0x10000 bytes at 0x1000000000000: outside"},
		{"base wraps", func(p *ARM64Params) { p.Base = 1<<64 - 0x1000 }, "base: 0x10000 bytes at 0xfffffffffffff000: outside"},
		{"record not aligned", func(p *ARM64Params) { p.Record += 32 }, "record: 0x60020020: not a multiple"},
		{"no record", func(p *ARM64Params) { p.Record = 0 }, "record: 0x80 bytes at 0x0: outside"},
		{"record in the image", func(p *ARM64Params) { p.Record = p.Base + ARM64Size - recordAlign }, "in the image"},
		{"record runs into the image", func(p *ARM64Params) { p.Record = p.Base - recordAlign }, "in the image"},
		{"no nonce", func(p *ARM64Params) { p.Nonce = [16]byte{} }, "nonce: all zero"},
		{"no conduit", func(p *ARM64Params) { p.Conduit = 0 }, "PSCI: conduit(0): not hvc or smc"},
		{"unknown conduit", func(p *ARM64Params) { p.Conduit = 3 }, "PSCI: conduit(3): not hvc or smc"},
		{"no CPUs", func(p *ARM64Params) { p.CPUs = nil }, "CPUs: 0, want 1 to 3072"},
		{"too many CPUs", func(p *ARM64Params) { p.CPUs = mpidrs(MaxCPUs + 1) }, "CPUs: 3073, want 1 to 3072"},
		{"CPU twice", func(p *ARM64Params) { p.CPUs = []uint64{1, 5, 1} }, "CPU 2: MPIDR 0x1 is number 0 already"},
		{"MPIDR as the register has it", func(p *ARM64Params) { p.CPUs = []uint64{0x8000_0000} }, "CPU 0: MPIDR 0x80000000 has more than affinity fields"},
		{"unknown skip bit", func(p *ARM64Params) { p.Skip = 4 }, "skip: unknown bits in 0x4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := validARM64()
			c.edit(&p)
			image, entry, err := BuildARM64(p)
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
