package stub

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/boot/boottest"
	"github.com/warmcore/warmcore/pkg/registration"
)

// record is the crash record, decoded here by its documented layout and not
// by the package that decodes it in earnest: two readings must agree.
type record struct {
	Magic    string
	Version  uint32
	Flags    uint32
	Nonce    [16]byte
	CPU      uint32
	Expected uint32
	Flushed  uint32
	Zero44   uint32
	Zero56   uint64
	Bitmap   [32]byte
	Zero96   [24]byte
	SumOK    bool
}

func decodeRecord(b []byte) (r record, ticks uint64) {
	le := binary.LittleEndian
	r = record{
		Magic:    string(b[0:8]),
		Version:  le.Uint32(b[8:]),
		Flags:    le.Uint32(b[12:]),
		Nonce:    [16]byte(b[16:32]),
		CPU:      le.Uint32(b[32:]),
		Expected: le.Uint32(b[36:]),
		Flushed:  le.Uint32(b[40:]),
		Zero44:   le.Uint32(b[44:]),
		Zero56:   le.Uint64(b[56:]),
		Bitmap:   [32]byte(b[64:96]),
		Zero96:   [24]byte(b[96:120]),
	}
	sum := uint64(0x5741_5243_4f52_4531)
	for i := 0; i < 120; i += 8 {
		sum += le.Uint64(b[i:])
	}
	r.SumOK = sum == le.Uint64(b[120:])
	return r, le.Uint64(b[48:])
}

func bitmap(first byte) (b [32]byte) {
	b[0] = first
	return b
}

// Progress as stub.S counts it.
const (
	atCF9      = 5
	atACPI     = 6
	atKeyboard = 7
	atTriple   = 8
)

// TestIntegrationAMD64 crashes a bare machine into the stub and reads what it
// left in memory when it has reset the machine.
func TestIntegrationAMD64(t *testing.T) {
	const (
		base   = 0x1000_0000
		where  = 0x2002_0000 // of the record: a page that the entry's tables don't map
		memory = 0x2100_0000 // a "reset register" in RAM
	)
	// q35's own: CF9 again, 0x0f. Port 0x92's bit 0 is another way to reset
	// this machine; using it shows that it was the register that did it.
	fast := ResetRegister{Space: SpaceIO, Address: 0x92, Value: 0x01}
	four := []uint32{0, 1, 2, 3}
	boot := boottest.Assemble(t, "../boottest/testdata/amd64", "testboot.bin")
	type want struct {
		apic, expected, flushed uint32
		bitmap                  byte
		progress                uint32
		triple                  bool
	}
	for _, c := range []struct {
		name  string
		crash uint32
		flags uint32
		ids   []uint32
		reset ResetRegister
		skip  uint32
		want  want
	}{
		{"normal", 0, 0, four, fast, 0, want{0, 4, 4, 0b1111, atCF9, false}},
		{"five-level paging", 0, boottest.FlagLA57, four, fast, 0, want{0, 4, 4, 0b1111, atCF9, false}},
		{"skip CF9", 0, 0, four, fast, SkipCF9, want{0, 4, 4, 0b1111, atACPI, false}},
		{"reset register in memory", 0, 0, four, ResetRegister{SpaceMemory, memory, 0x5a}, SkipCF9, want{0, 4, 4, 0b1111, atKeyboard, false}},
		{"skip CF9 and ACPI", 0, 0, four, fast, SkipCF9 | SkipACPI, want{0, 4, 4, 0b1111, atKeyboard, false}},
		{"skip all", 0, 0, four, fast, skipAll, want{0, 4, 4, 0b1111, atTriple, true}},
		{"another CPU than the bootstrap processor", 2, 0, four, fast, 0, want{2, 4, 3, 0b1110, atCF9, false}},
		{"CPUs that don't answer", 0, 0, []uint32{3, 7, 2, 1, 0, 300}, fast, 0, want{0, 6, 4, 0b1111, atCF9, false}},
		{"a CPU that is not listed", 1, 0, []uint32{1, 2}, fast, 0, want{1, 2, 2, 0b0110, atCF9, false}},
		{"alone", 0, 0, []uint32{0}, fast, 0, want{0, 1, 1, 0b0001, atCF9, false}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := AMD64Params{
				Base: base, Record: where, LowPage: 0x9000,
				Nonce:   [16]byte([]byte("nonce of the day")),
				APICIDs: c.ids, BSP: 0,
				ResetRegister: c.reset, Skip: c.skip,
			}
			image, start, err := BuildAMD64(p)
			if err != nil {
				t.Fatal(err)
			}
			r := boottest.AMD64Machine{
				CPUs: 4, Crash: c.crash, Flags: c.flags, Entry: start,
				Load: map[uint64][]byte{
					base:  image,
					where: bytes.Repeat([]byte{0xff}, recordSize), // what was there must not matter
				},
			}.Run(t, boot)

			got, ticks := decodeRecord(r.Memory(where, recordSize))
			if diff := cmp.Diff(record{
				Magic: "WCRECORD", Version: 1, Flags: 1, Nonce: p.Nonce,
				CPU: c.want.apic, Expected: c.want.expected, Flushed: c.want.flushed,
				Bitmap: bitmap(c.want.bitmap), SumOK: true,
			}, got); diff != "" {
				t.Errorf("crash record (-want +got):\n%s", diff)
			}
			if _, err := registration.DecodeRecord(r.Memory(where, recordSize)); err != nil {
				t.Errorf("decode the crash record: %v", err)
			}
			if ticks == 0 {
				t.Error("time stamp: 0")
			}
			if got := binary.LittleEndian.Uint32(r.Memory(base+offProgress, 4)); got != c.want.progress {
				t.Errorf("progress: got %d, want %d", got, c.want.progress)
			}
			if got := r.TripleFault(); got != c.want.triple {
				t.Errorf("triple fault: got %v, want %v", got, c.want.triple)
			}
			const localAPIC = 0xfee0_0000
			entry := r.Memory(base+0x4000+localAPIC>>21*8, 8)
			if got, want := binary.LittleEndian.Uint64(entry), uint64(localAPIC|0xfb); got != want {
				t.Errorf("page table entry of the local APIC: got %#x, want %#x, uncached", got, want)
			}
			if got := r.Monitor(fmt.Sprintf("info lapic %d", c.crash)); !strings.Contains(got, "APIC enabled") {
				t.Errorf("local APIC of the CPU that sent the IPIs: not enabled:\n%s", got)
			}
			if c.reset.Space == SpaceMemory {
				if got := r.Memory(memory, 1)[0]; got != c.reset.Value {
					t.Errorf("reset register: got %#x, want %#x", got, c.reset.Value)
				}
			}
			// Where the bootstrap processor didn't crash, it is where it was:
			// halted in the boot image, not in firmware.
			if c.crash != 0 {
				if rip := registers(t, r, 0)["RIP"]; !strings.HasPrefix(rip, "00000000004001") && !strings.HasPrefix(rip, "00000000004000") {
					t.Errorf("bootstrap processor: at %q, want it in the boot image, 4000xx or 4001xx", rip)
				}
			}
		})
	}
}

// registers returns what the monitor says of a CPU's registers, by name.
func registers(t *testing.T, r *boottest.Result, cpu int) map[string]string {
	t.Helper()
	_, after, ok := strings.Cut(r.Monitor("info registers -a"), "CPU#"+string(rune('0'+cpu)))
	if !ok {
		t.Fatalf("monitor: no CPU %d", cpu)
	}
	regs := make(map[string]string)
	for _, f := range strings.Fields(after) {
		name, value, ok := strings.Cut(f, "=")
		if _, seen := regs[name]; ok && !seen {
			regs[name] = value
		}
	}
	return regs
}
