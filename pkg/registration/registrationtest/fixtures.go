package registrationtest

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/warmcore/warmcore/pkg/registration"
)

// Fixtures returns every fixture, valid ones first. Names are unique and fit
// in a file name. The caller may change what it gets.
func Fixtures() []Fixture {
	out := loading()
	for _, f := range slices.Concat(headers(), sections()) {
		// The same damage in both copies, so that neither hides it.
		f.Handoff = handoff(f.Handoff, f.Handoff)
		out = append(out, f)
	}
	return append(out, areas()...)
}

// loading returns handoff areas that load.
func loading() []Fixture {
	return []Fixture{
		{Name: "valid", Handoff: handoff(valid(7), valid(8)), Sequence: 8},
		{Name: "valid-a-newer", Handoff: handoff(valid(9), valid(8)), Sequence: 9},
		{Name: "valid-first-write", Handoff: handoff(valid(1), nil), Sequence: 1},
		{Name: "valid-only-b", Handoff: handoff(nil, valid(2)), Sequence: 2},
		{Name: "valid-same-sequence", Handoff: handoff(valid(5), valid(5)), Sequence: 5},
		{Name: "valid-unknown-section", Handoff: handoff(raw(section(77, []byte("x"))), nil), Sequence: 7},
		{Name: "newer-torn", Handoff: handoff(tear(valid(7), valid(9)), valid(8)), Sequence: 8},
		{Name: "newer-torn-in-header", Handoff: handoff(splice(valid(7), valid(9), 40), valid(8)), Sequence: 8},
		{Name: "newer-magic-lost", Handoff: handoff(splice(make([]byte, 8), valid(9), 8), valid(8)), Sequence: 8},
		{Name: "newer-version-unknown", Handoff: handoff(number(offVersion, 2), valid(6)), Sequence: 6},
		{Name: "sequence-wrap", Handoff: handoff(valid(math.MaxUint64), valid(0)), Sequence: 0},
		{Name: "sequence-before-wrap", Handoff: handoff(valid(math.MaxUint64), valid(math.MaxUint64-1)), Sequence: math.MaxUint64},
	}
}

// splice returns the first n bytes of first, then the rest of second.
func splice(first, second []byte, n int) []byte {
	return slices.Concat(first[:n], second[n:])
}

// tear returns prev after a write of next over it that stopped half way.
func tear(prev, next []byte) []byte {
	return splice(next, prev, headerLen+int(binary.LittleEndian.Uint32(next[offLength:]))/2)
}

// headers returns single copies whose header is wrong.
func headers() []Fixture {
	swapped := valid(7)
	for off := 0; off < headerLen; off += 8 {
		slices.Reverse(swapped[off:][:8])
	}
	wrongMagic := valid(7)
	wrongMagic[0] ^= 0x20
	headerCRC := valid(7)
	headerCRC[offCRC] ^= 1
	sequence := valid(7)
	sequence[16] ^= 1
	bodyCRC := valid(7)
	bodyCRC[headerLen+100] ^= 1
	length := binary.LittleEndian.Uint32(bodyCRC[offLength:])
	short := valid(7)
	binary.LittleEndian.PutUint32(short[offLength:], length-1)
	long := valid(7)
	binary.LittleEndian.PutUint32(long[offLength:], length+1)
	count := binary.LittleEndian.Uint32(short[offCount:])
	bad := func(name string, c []byte, err error, want string) Fixture {
		return Fixture{Name: name, Handoff: c, Err: err, Want: want}
	}
	return []Fixture{
		bad("wrong-magic", wrongMagic, registration.ErrEmpty, "empty"),
		bad("byte-swapped", swapped, registration.ErrByteOrder, "byte order"),
		bad("version-newer", number(offVersion, 2), registration.ErrVersion, "version"),
		bad("version-zero", number(offVersion, 0), registration.ErrVersion, "version"),
		bad("version-byte-swapped", number(offVersion, 1<<24), registration.ErrVersion, "version"),
		bad("header-length", number(offHeader, 128), registration.ErrValue, "header length"),
		bad("header-checksum", headerCRC, registration.ErrChecksum, "header checksum"),
		bad("header-changed", sequence, registration.ErrChecksum, "header checksum"),
		bad("body-checksum", bodyCRC, registration.ErrChecksum, "checksum"),
		bad("reserved-bytes", number(offReserved, 1), registration.ErrValue, "reserved"),
		bad("state-unknown", number(offState, 7), registration.ErrValue, "state"),
		bad("length-too-large", number(offLength, math.MaxUint32), registration.ErrTooLarge, "length"),
		bad("length-beyond-copy", number(offLength, registration.CopySize-headerLen+1), registration.ErrTooLarge, "length"),
		bad("length-short", Seal(short), registration.ErrTooShort, "section"),
		bad("length-long", Seal(long), registration.ErrTooLarge, "end of sections"),
		bad("length-zero", number(offLength, 0), registration.ErrTooShort, "section type"),
		bad("count-too-large", number(offCount, math.MaxUint32), registration.ErrTooLarge, "section count"),
		bad("count-one-more", number(offCount, count+1), registration.ErrTooShort, "section type"),
		bad("count-one-less", number(offCount, count-1), registration.ErrTooLarge, "end of sections"),
	}
}

// sections returns single copies with a wrong section and right checksums.
func sections() []Fixture {
	u16, u32, u64 := binary.LittleEndian.AppendUint16, binary.LittleEndian.AppendUint32, binary.LittleEndian.AppendUint64
	text := func(s string) []byte { return append(u16(nil, uint16(len(s))), s...) }
	note := func(addr uint64, size uint32) []byte { return u32(u64(nil, addr), size) }
	planRange := func(role uint32, start, end uint64) []byte { return u64(u64(u32(nil, role), start), end) }
	const version, notes, vmcoreinfo, kernel, capture, plan = 11, 3, 4, 8, 9, 10
	beyond := section(vmcoreinfo, note(0x1000, 64))
	binary.LittleEndian.PutUint32(beyond[4:], 13)
	wrapped := slices.Clone(beyond)
	binary.LittleEndian.PutUint32(wrapped[4:], math.MaxUint32-3)
	many := make([][]byte, registration.MaxSections+1)
	for i := range many {
		many[i] = section(uint32(100+i), nil)
	}
	captureHead := func(copied uint32, start, end uint64) []byte {
		c := u32(u32(nil, 1), copied)
		c = u64(u64(u32(u32(u32(c, 2), 2), 2), 0), 0)
		return u64(u64(u64(c, start), end), 0)
	}
	bad := func(name string, err error, want string, sections ...[]byte) Fixture {
		return Fixture{Name: name, Handoff: raw(sections...), Err: err, Want: want}
	}
	return []Fixture{
		bad("section-type-zero", registration.ErrValue, "section type", section(0, []byte("x"))),
		bad("section-beyond-end", registration.ErrTooShort, "section", beyond),
		bad("section-length-wraps", registration.ErrTooShort, "section", wrapped),
		bad("section-header-cut", registration.ErrTooShort, "section length", u32(nil, vmcoreinfo)),
		bad("section-cut", registration.ErrTooShort, "vmcoreinfo", section(vmcoreinfo, u64(nil, 0x1000))),
		bad("section-too-long", registration.ErrTooLarge, "end of section", section(vmcoreinfo, append(note(0x1000, 64), 0))),
		bad("section-empty", registration.ErrTooShort, "CPU note count", section(notes, nil)),
		bad("section-duplicate", registration.ErrDuplicate, "section type", section(version, text("a")), section(version, text("b"))),
		bad("section-duplicate-unknown", registration.ErrDuplicate, "section type", section(99, nil), section(99, nil)),
		bad("sections-too-many", registration.ErrTooLarge, "section count", many...),
		bad("cpu-count-too-large", registration.ErrTooLarge, "CPU note count", section(notes, u32(nil, math.MaxUint32))),
		bad("cpu-count-beyond-section", registration.ErrTooShort, "CPU note count", section(notes, append(u32(nil, 2), note(0x1000, 64)...))),
		bad("cpu-note-too-large", registration.ErrTooLarge, "CPU note", section(notes, append(u32(nil, 1), note(0x1000, registration.MaxNoteSize+1)...))),
		bad("cpu-note-wraps", registration.ErrValue, "CPU note", section(notes, append(u32(nil, 1), note(math.MaxUint64, 64)...))),
		bad("vmcoreinfo-too-large", registration.ErrTooLarge, "vmcoreinfo", section(vmcoreinfo, note(0x1000, math.MaxUint32))),
		bad("plan-count-too-large", registration.ErrTooLarge, "plan range count", section(plan, u32(nil, registration.MaxPlan+1))),
		bad("plan-range-inverted", registration.ErrValue, "plan range", section(plan, append(u32(nil, 1), planRange(1, 0x2000, 0x1000)...))),
		bad("plan-range-empty", registration.ErrValue, "plan range", section(plan, append(u32(nil, 1), planRange(1, 0x1000, 0x1000)...))),
		bad("capture-copied-two", registration.ErrValue, "copied", section(capture, captureHead(2, 0, 0))),
		bad("capture-core-header-inverted", registration.ErrValue, "core header range", section(capture, captureHead(1, 2, 1))),
		bad("capture-events-too-many", registration.ErrTooLarge, "event count", section(capture, u32(captureHead(1, 0, 0), registration.MaxTimeline+1))),
		bad("text-too-long", registration.ErrTooLarge, "payload version", section(version, text(string(bytes.Repeat([]byte("v"), registration.MaxPayloadName+1))))),
		bad("text-beyond-section", registration.ErrTooShort, "payload version", section(version, append(u16(nil, 9), "v"...))),
		bad("text-nul", registration.ErrValue, "payload version", section(version, text("v\x00"))),
		bad("text-newline", registration.ErrValue, "kernel title", section(kernel, text("a\nwarmcore: all is well"))),
		bad("text-escape", registration.ErrValue, "kernel title", section(kernel, text("\x1b[2J"))),
		bad("text-not-utf8", registration.ErrValue, "payload version", section(version, text("\xff\xfe"))),
	}
}

// areas returns whole handoff areas in which neither copy loads.
func areas() []Fixture {
	ones := bytes.Repeat([]byte{0xff}, Len)
	noise := make([]byte, Len)
	random := rand.NewChaCha8([32]byte([]byte("warmcore handoff area of noise..")))
	// Enough of each copy for every field; more would only make the image big.
	for _, off := range []int{registration.CopyAOff, registration.CopyBOff, registration.RecordOff} {
		for i := range 1024 {
			noise[off+i] = byte(random.Uint64())
		}
	}
	text := bytes.Repeat([]byte("any other data. "), Len/16)
	return []Fixture{
		{Name: "empty", Handoff: make([]byte, Len), Err: registration.ErrEmpty, Want: "empty"},
		{Name: "all-ones", Handoff: ones, Err: registration.ErrEmpty, Want: "empty"},
		{Name: "noise", Handoff: noise, Err: registration.ErrEmpty, Want: "empty"},
		{Name: "text", Handoff: text, Err: registration.ErrEmpty, Want: "empty"},
		{Name: "both-torn", Handoff: handoff(tear(valid(7), valid(9)), tear(valid(6), valid(8))), Err: registration.ErrNone, Want: "copy B: offset 0x38: checksum"},
		{Name: "first-write-torn", Handoff: handoff(tear(make([]byte, registration.CopySize), valid(1)), nil), Err: registration.ErrChecksum, Want: "copy A: offset 0x38: checksum"},
		{Name: "one-torn-one-newer-version", Handoff: handoff(tear(valid(7), valid(9)), number(offVersion, 2)), Err: registration.ErrVersion, Want: "copy B: offset 0x8: version"},
		{Name: "magic-only", Handoff: handoff([]byte("WCREGIST"), []byte("WCREGIST")), Err: registration.ErrVersion, Want: "version"},
	}
}
