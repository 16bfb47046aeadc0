// Package registrationtest has handoff areas for tests: valid ones, and one
// for each way in which a handoff area can be wrong.
//
// The fixtures are built here in code, so that a story can write each of them
// into a guest's memory; pkg/registration's tests compare them with committed
// images, so they don't change by accident.
package registrationtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

// Len is the length of every Fixture.Handoff in bytes: up to the first log
// slot, so both copies and the crash record.
const Len = registration.LogOff

// Fixture is the start of a handoff area.
type Fixture struct {
	Name    string
	Handoff []byte // Len bytes
	// Err is what registration.Load's error wraps, nil if the area loads.
	Err error
	// Want is a part of that error's text.
	Want string
	// Sequence is the sequence number of the block that loads.
	Sequence uint64
}

// Block returns an armed registration with something in every field.
func Block() *registration.Block {
	return &registration.Block{
		State: registration.Armed,
		Identity: registration.Identity{
			Nonce:    [16]byte(bytes.Repeat([]byte{0xa5}, 16)),
			BootID:   [16]byte{0: 0x11, 15: 0x99},
			Release:  "6.1.0-56-amd64",
			BuildID:  bytes.Repeat([]byte{0xbd}, 20),
			Machine:  62,
			PageSize: 4096,
			Time:     1_700_000_000,
		},
		MapHash: [32]byte{0: 0xfe, 31: 0xef},
		CPUNotes: []registration.Note{
			{Addr: 0x7fc17400, Size: 424},
			{}, // a CPU that could be plugged in
			{Addr: 0x7fd17400, Size: 424},
		},
		VMCoreInfo: registration.Note{Addr: 0x7a4b000, Size: 0x1024},
		Mapping: kernelmap.Mapping{
			DirectBase: 0xffff_8880_0000_0000,
			TextVirt:   0xffff_ffff_8100_0000,
			TextPhys:   0x2100_0000,
			TextSize:   0x2c0_0000,
		},
		Policy: registration.Policy{MaxCaptures: 3, BlockSize: 128 * phys.MiB},
		Counters: registration.Counters{
			Boots:         12,
			Captures:      2,
			Attempts:      1,
			PrearmStrikes: 1,
			LastCaptures:  [8]int64{1_699_999_000, 1_600_000_000},
		},
		Kernel: registration.Kernel{
			Title:   "Debian GNU/Linux, with Linux 6.1.0-56-amd64",
			Path:    "/boot/vmlinuz-6.1.0-56-amd64",
			Initrd:  "/boot/initrd.img-6.1.0-56-amd64",
			Cmdline: "root=/dev/vda1 ro console=ttyS0",
		},
		Capture: registration.Capture{
			Reason:            registration.ReasonPanic,
			Copied:            true,
			CPUsWithRegisters: 2,
			CPUsFlushed:       2,
			CPUsSeen:          2,
			CopyBytes:         512 * phys.MiB,
			CopyNanos:         310_000_000,
			CoreHeader:        phys.Range{Start: 0x200c_0000, End: 0x200c_1000},
			Time:              1_700_000_100,
			Timeline: []registration.Event{
				{Nanos: 1_000_000, Name: "payload"},
				{Nanos: 400_000_000, Name: "copied"},
			},
		},
		Plan: []registration.PlanRange{
			{Role: registration.RoleWindow, Range: phys.Range{Start: 0x1800_0000, End: 0x2000_0000}},
			{Role: registration.RoleHandoff, Range: phys.Range{Start: 0x2000_0000, End: 0x2020_0000}},
			{Role: registration.RoleBoot, Range: phys.Range{Start: 0x2800_0000, End: 0x4800_0000}},
			{Role: registration.RoleDestination, Range: phys.Range{Start: 0x4800_0000, End: 0x6800_0000}},
			{Role: registration.RolePreserved, Range: phys.Range{Start: 0x6800_0000, End: 0x7800_0000}},
			{Role: registration.RoleLost, Range: phys.Range{Start: 0, End: 0x10_0000}},
		},
		PayloadVersion: "warmcore 0.1.0",
		Unknown:        []registration.Section{{Type: 4000, Data: []byte("later")}},
	}
}

// Offsets in a copy's header, from FORMAT.md.
const (
	offVersion  = 8
	offHeader   = 12
	offState    = 24
	offCount    = 28
	offLength   = 32
	offReserved = 36
	offBodyCRC  = 56
	offCRC      = 60
	headerLen   = 64
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Seal makes both checksums of a copy right again after a change to it. If the
// length in the header reaches beyond the copy, only the header's checksum is
// made right.
func Seal(c []byte) []byte {
	length := binary.LittleEndian.Uint32(c[offLength:])
	if body := c[headerLen:]; uint64(length) <= uint64(len(body)) {
		binary.LittleEndian.PutUint32(c[offBodyCRC:], crc32.Checksum(body[:length], castagnoli))
	}
	binary.LittleEndian.PutUint32(c[offCRC:], crc32.Checksum(c[:offCRC], castagnoli))
	return c
}

// Copy returns one copy of b in CopySize bytes. It panics if b can't be
// encoded, which is a mistake in the test.
func Copy(b *registration.Block) []byte {
	c, err := b.AppendBinary(make([]byte, 0, registration.CopySize))
	if err != nil {
		panic(fmt.Sprintf("registrationtest: encode block: %v", err))
	}
	return c[:registration.CopySize]
}

// handoff returns a handoff area with two copies; nil stands for a copy of
// zeroes.
func handoff(a, b []byte) []byte {
	h := make([]byte, Len)
	copy(h[registration.CopyAOff:][:registration.CopySize], a)
	copy(h[registration.CopyBOff:][:registration.CopySize], b)
	return h
}

// valid returns a valid copy. Copies of different sequence numbers differ near
// their ends too, as two real registrations do.
func valid(sequence uint64) []byte {
	b := Block()
	b.Sequence = sequence
	b.PayloadVersion = fmt.Sprintf("warmcore 0.1.%d", sequence)
	return Copy(b)
}

// section returns an encoded section.
func section(typ uint32, data []byte) []byte {
	s := binary.LittleEndian.AppendUint32(nil, typ)
	s = binary.LittleEndian.AppendUint32(s, uint32(len(data)))
	return append(s, data...)
}

// raw returns a sealed copy that consists of these sections.
func raw(sections ...[]byte) []byte {
	c := Copy(&registration.Block{Sequence: 7, State: registration.Armed})
	body := bytes.Join(sections, nil)
	binary.LittleEndian.PutUint32(c[offCount:], uint32(len(sections)))
	binary.LittleEndian.PutUint32(c[offLength:], uint32(len(body)))
	copy(c[headerLen:], body)
	return Seal(c)
}

// number returns a valid copy with a 32-bit field changed, sealed.
func number(off int, v uint32) []byte {
	c := valid(7)
	binary.LittleEndian.PutUint32(c[off:], v)
	return Seal(c)
}
