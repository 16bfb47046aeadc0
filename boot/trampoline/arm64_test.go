package trampoline

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/boot/boottest"
)

func TestARM64IsRebuilt(t *testing.T) {
	if got := boottest.Assemble(t, "arm64", "trampoline.bin"); !bytes.Equal(got, arm64Code) {
		t.Errorf("arm64/trampoline.bin: %d bytes that differ from the %d that trampoline.S gives; run make in arm64", len(arm64Code), len(got))
	}
}

// TestARM64Offsets compares the constants of arm64.go with trampoline.S's own,
// which it carries as a table after the parameters.
func TestARM64Offsets(t *testing.T) {
	if got, want := string(arm64Code[0x08:0x10]), "WCTRAMA1"; got != want {
		t.Fatalf("magic: got %q, want %q", got, want)
	}
	table := []byte{
		2, 0, // two offsets
		arm64OffEntry, 0,
		arm64OffDeviceTree, 0,
	}
	if diff := cmp.Diff(table, arm64Code[0x20:0x26]); diff != "" {
		t.Errorf("offsets (-arm64.go +trampoline.S):\n%s", diff)
	}
	if !bytes.Equal(arm64Code[0x10:0x20], make([]byte, 16)) {
		t.Error("parameters in trampoline.bin: not all zero")
	}
	if len(arm64Code) != arm64Size {
		t.Errorf("trampoline.bin: %#x bytes, want %#x", len(arm64Code), arm64Size)
	}
}

func TestBuildARM64(t *testing.T) {
	for _, c := range []struct {
		name              string
		entry, deviceTree uint64
		want              string // in the error; empty: no error
	}{
		{"usual", 0x4800_0000, 0x4fe0_0000, ""},
		{"with a text_offset", 0x4808_0000, 0x4fe0_0008, ""},
		{"highest", 1<<48 - 0x1000, 1<<48 - 8, ""},
		{"kernel at 0", 0, 0x4fe0_0000, ""},
		{"no device tree", 0x4800_0000, 0, "device tree: none"},
		{"entry not aligned", 0x4800_0800, 0x4fe0_0000, "entry: 0x48000800: not a multiple of 0x1000"},
		{"device tree not aligned", 0x4800_0000, 0x4fe0_0004, "device tree: 0x4fe00004: not a multiple of 0x8"},
		{"entry beyond", 1 << 48, 0x4fe0_0000, "entry: 0x1000000000000: beyond"},
		{"device tree beyond", 0x4800_0000, 1 << 48, "device tree: 0x1000000000000: beyond"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image, err := BuildARM64(ARM64Params{Entry: c.entry, DeviceTree: c.deviceTree})
			if c.want != "" {
				if image != nil || err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %d bytes, error %v; want an error with %q", len(image), err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := bytes.Clone(arm64Code)
			binary.LittleEndian.PutUint64(want[0x10:], c.entry)
			binary.LittleEndian.PutUint64(want[0x18:], c.deviceTree)
			if diff := cmp.Diff(want, image); diff != "" {
				t.Errorf("image (-want +got):\n%s", diff)
			}
		})
	}
	if !bytes.Equal(arm64Code[0x10:0x20], make([]byte, 16)) {
		t.Error("embedded code after BuildARM64: has parameters")
	}
}

func TestIntegrationARM64(t *testing.T) {
	const (
		entry      = 0x6008_0000
		deviceTree = 0x7fff_fff8 // the last bytes of RAM
		result     = 0x4060_0000 // RESULT in payload.S
		el1, el2   = 1 << 2, 2 << 2
	)
	boot := boottest.Assemble(t, "../boottest/testdata/arm64", "testboot.bin")
	payload := boottest.Assemble(t, "arm64/testdata", "payload.bin")
	for _, base := range []uint64{0x5000_0000, 0x5765_4008} {
		for _, c := range []struct {
			name    string
			machine boottest.ARM64Machine
			el      uint64
		}{
			{"EL1", boottest.ARM64Machine{}, el1},
			{"EL2", boottest.ARM64Machine{EL2: true}, el2},
			{"EL2 of a kernel with VHE", boottest.ARM64Machine{CPU: "max", EL2: true, Flags: boottest.FlagE2H}, el2},
		} {
			t.Run(fmt.Sprintf("%s at %#x", c.name, base), func(t *testing.T) {
				t.Parallel()
				image, err := BuildARM64(ARM64Params{Entry: entry, DeviceTree: deviceTree})
				if err != nil {
					t.Fatal(err)
				}
				m := c.machine
				m.CPUs, m.Entry = 1, base
				m.Load = map[uint64][]byte{base: image, entry: payload, deviceTree: []byte("the tree")}
				r := m.Run(t, boot)
				type found struct {
					Mark            string
					X0, X1, X2, X3  uint64
					DeviceTree      string
					DAIF, CurrentEL uint64
					SCTLR, Entry    uint64
				}
				b := r.Memory(result, 0x50)
				u64 := binary.LittleEndian.Uint64
				got := found{
					Mark: string(b[:8]), X0: u64(b[8:]), X1: u64(b[0x10:]), X2: u64(b[0x18:]), X3: u64(b[0x20:]),
					DeviceTree: string(b[0x28:0x30]), DAIF: u64(b[0x30:]), CurrentEL: u64(b[0x38:]),
					SCTLR: u64(b[0x40:]), Entry: u64(b[0x48:]),
				}
				want := found{
					Mark: "LOAD_OK\x00", X0: deviceTree, DeviceTree: "the tree",
					DAIF: 0x3c0, CurrentEL: c.el, Entry: entry,
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("what the payload found (-want +got):\n%s", diff)
				}
			})
		}
	}
}
