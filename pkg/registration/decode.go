package registration

import (
	"bytes"
	"slices"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Decode reads one copy from the start of data; what follows the copy is
// ignored. The error is a *FormatError around one of the Err values.
func Decode(data []byte) (*Block, error) {
	if len(data) < headerLen {
		return nil, &FormatError{len(data), "header", ErrTooShort}
	}
	h := data[:headerLen]
	switch string(h[offMagic : offMagic+len(magic)]) {
	case magic:
	case magicSwapped:
		return nil, &FormatError{offMagic, "magic", ErrByteOrder}
	default:
		return nil, &FormatError{offMagic, "magic", ErrMagic}
	}
	// The version comes before the checksum: another version may have
	// another checksum.
	if le.Uint32(h[offVersion:]) != version {
		return nil, &FormatError{offVersion, "version", ErrVersion}
	}
	if checksum(h[:offCRC]) != le.Uint32(h[offCRC:]) {
		return nil, &FormatError{offCRC, "header checksum", ErrChecksum}
	}
	if le.Uint32(h[offHeader:]) != headerLen {
		return nil, &FormatError{offHeader, "header length", ErrValue}
	}
	if len(bytes.Trim(h[offReserved:offBodyCRC], "\x00")) != 0 {
		return nil, &FormatError{offReserved, "reserved bytes", ErrValue}
	}
	state := State(le.Uint32(h[offState:]))
	if state > maxState {
		return nil, &FormatError{offState, "state", ErrValue}
	}
	count := le.Uint32(h[offCount:])
	if count > MaxSections {
		return nil, &FormatError{offCount, "section count", ErrTooLarge}
	}
	length := le.Uint32(h[offLength:])
	if length > CopySize-headerLen {
		return nil, &FormatError{offLength, "length", ErrTooLarge}
	}
	if int(length) > len(data)-headerLen {
		return nil, &FormatError{offLength, "length", ErrTooShort}
	}
	body := data[headerLen:][:length]
	if checksum(body) != le.Uint32(h[offBodyCRC:]) {
		return nil, &FormatError{offBodyCRC, "checksum", ErrChecksum}
	}

	b := &Block{Sequence: le.Uint64(h[offSequence:]), State: state}
	d := decoder{buf: body, off: headerLen}
	d.sections(b, count)
	if d.err != nil {
		return nil, d.err
	}
	return b, nil
}

// decoder takes fields off the front of buf. It keeps the first error; every
// field after that is zero.
type decoder struct {
	buf []byte
	off int // offset of buf in the copy
	err error
}

func (d *decoder) fail(field string, err error) {
	if d.err == nil {
		d.err = &FormatError{d.off, field, err}
	}
	d.buf = nil
}

func (d *decoder) sections(b *Block, count uint32) {
	seen := make(map[uint32]bool, count)
	for range count {
		off := d.off
		typ, length := d.u32("section type"), d.u32("section length")
		data := d.take("section", length)
		switch {
		case d.err != nil:
		case typ == 0:
			d.err = &FormatError{off, "section type", ErrValue}
		case seen[typ]:
			d.err = &FormatError{off, "section type", ErrDuplicate}
		}
		if d.err != nil {
			return
		}
		seen[typ] = true
		s := decoder{buf: data, off: off + sectionHeaderLen}
		s.section(b, typ)
		if len(s.buf) > 0 {
			s.fail("end of section", ErrTooLarge)
		}
		if s.err != nil {
			d.err = s.err
			return
		}
	}
	if len(d.buf) > 0 {
		d.fail("end of sections", ErrTooLarge)
	}
}

func (d *decoder) section(b *Block, typ uint32) {
	switch typ {
	case secIdentity:
		d.identity(&b.Identity)
	case secMapHash:
		copy(b.MapHash[:], d.take("map hash", 32))
	case secCPUNotes:
		n := d.count("CPU note count", MaxCPUs, noteLen)
		for range n {
			b.CPUNotes = append(b.CPUNotes, d.note("CPU note"))
		}
	case secVMCoreInfo:
		b.VMCoreInfo = d.note("vmcoreinfo")
	case secMapping:
		b.Mapping.DirectBase = d.u64("direct map base")
		b.Mapping.TextVirt = d.u64("text virtual address")
		b.Mapping.TextPhys = d.u64("text physical address")
		b.Mapping.TextSize = d.u64("text size")
	case secPolicy:
		b.Policy.MaxCaptures = d.u32("policy max captures")
		b.Policy.BlockSize = d.u64("policy block size")
	case secCounters:
		d.counters(&b.Counters)
	case secKernel:
		b.Kernel.Title = d.text("kernel title", MaxTitle)
		b.Kernel.Path = d.text("kernel path", MaxPath)
		b.Kernel.Initrd = d.text("kernel initrd", MaxPath)
		b.Kernel.Cmdline = d.text("kernel command line", MaxCmdline)
	case secCapture:
		d.capture(&b.Capture)
	case secPlan:
		d.plan(b)
	case secPayloadVersion:
		b.PayloadVersion = d.text("payload version", MaxPayloadName)
	case secBooted:
		b.Booted.FileSystem = d.text("file system", MaxUUID)
		copy(b.Booted.KernelSum[:], d.take("kernel's SHA-256", 32))
		copy(b.Booted.InitrdSum[:], d.take("initrd's SHA-256", 32))
		b.Booted.Once = d.text("request to boot once", MaxOnce)
	case secMounting:
		b.Mounting = d.text("disks being mounted", MaxMounting)
	case secRefused:
		b.Refused = d.text("refusal", MaxRefused)
	case secAbsent:
		b.Absent = d.ranges("absent")
		b.Lost = d.ranges("lost")
	case secCaptureBoots:
		for i := range b.Counters.CaptureBoots {
			b.Counters.CaptureBoots[i] = d.u64("capture boots")
		}
	default:
		b.Unknown = append(b.Unknown, Section{typ, d.rest()})
	}
}

func (d *decoder) ranges(field string) (ranges phys.Set) {
	for range d.count(field+" count", MaxAbsent, absentLen) {
		off := d.off
		r := phys.Range{Start: d.u64(field + " start"), End: d.u64(field + " end")}
		if r.Empty() {
			d.off = off
			d.fail(field+" range", ErrValue)
		}
		ranges = append(ranges, r)
	}
	return ranges
}

func (d *decoder) identity(id *Identity) {
	copy(id.Nonce[:], d.take("nonce", 16))
	copy(id.BootID[:], d.take("boot id", 16))
	id.Release = d.text("kernel release", MaxRelease)
	id.BuildID = d.sized("build id", MaxBuildID)
	id.Machine = d.u16("machine")
	id.PageSize = d.u32("page size")
	id.Time = int64(d.u64("time"))
}

func (d *decoder) note(field string) Note {
	off := d.off
	n := Note{d.u64(field), uint64(d.u32(field))}
	if err := n.check(); err != nil {
		d.off = off
		d.fail(field, err)
	}
	return n
}

func (d *decoder) counters(c *Counters) {
	c.Boots = d.u64("boots")
	c.Captures = d.u64("captures")
	c.Attempts = d.u32("attempts")
	c.PrearmStrikes = d.u32("prearm strikes")
	for i := range c.LastCaptures {
		c.LastCaptures[i] = int64(d.u64("last captures"))
	}
}

func (d *decoder) capture(c *Capture) {
	c.Reason = Reason(d.u32("reason"))
	switch copied := d.u32("copied"); copied {
	case 0, 1:
		c.Copied = copied == 1
	default:
		d.off -= 4
		d.fail("copied", ErrValue)
	}
	c.CPUsWithRegisters = d.u32("CPUs with registers")
	c.CPUsFlushed = d.u32("CPUs flushed")
	c.CPUsSeen = d.u32("CPUs seen")
	c.CopyBytes = d.u64("copied bytes")
	c.CopyNanos = d.u64("copy time")
	off := d.off
	c.CoreHeader = phys.Range{Start: d.u64("core header start"), End: d.u64("core header end")}
	if c.CoreHeader != (phys.Range{}) && c.CoreHeader.Empty() {
		d.off = off
		d.fail("core header range", ErrValue)
	}
	c.Time = int64(d.u64("capture time"))
	// An event is at least its time and the length of its name.
	for range d.count("event count", MaxTimeline, 8+2) {
		c.Timeline = append(c.Timeline, Event{d.u64("event time"), d.text("event name", MaxEventName)})
	}
}

func (d *decoder) plan(b *Block) {
	for range d.count("plan range count", MaxPlan, planRangeLen) {
		off := d.off
		p := PlanRange{Role(d.u32("role")), phys.Range{Start: d.u64("range start"), End: d.u64("range end")}}
		if p.Range.Empty() {
			d.off = off
			d.fail("plan range", ErrValue)
			return
		}
		b.Plan = append(b.Plan, p)
	}
}

// take returns the next n bytes, which are shared with the input.
func (d *decoder) take(field string, n uint32) []byte {
	if uint64(n) > uint64(len(d.buf)) {
		d.fail(field, ErrTooShort)
		return nil
	}
	out := d.buf[:n]
	d.buf = d.buf[n:]
	d.off += int(n)
	return out
}

func (d *decoder) rest() []byte {
	b := d.take("data", uint32(len(d.buf)))
	if len(b) == 0 {
		return nil
	}
	return slices.Clone(b)
}

// count reads the number of elements that follow, each of at least size bytes.
// It fails and returns 0 if the number is larger than most, or than fits into
// the rest of buf.
func (d *decoder) count(field string, most, size uint32) uint32 {
	n := d.u32(field)
	switch {
	case n > most:
		d.off -= 4
		d.fail(field, ErrTooLarge)
	case uint64(n)*uint64(size) > uint64(len(d.buf)):
		d.off -= 4
		d.fail(field, ErrTooShort)
	default:
		return n
	}
	return 0
}

// sized reads a 16-bit length, at most most, and returns a copy of that many
// bytes; nil for length 0.
func (d *decoder) sized(field string, most uint16) []byte {
	n := d.u16(field)
	if n > most {
		d.off -= 2
		d.fail(field, ErrTooLarge)
		return nil
	}
	b := d.take(field, uint32(n))
	if len(b) == 0 {
		return nil
	}
	return slices.Clone(b)
}

func (d *decoder) text(field string, most uint16) string {
	off := d.off
	s := string(d.sized(field, most))
	if err := checkText(s, int(most)); err != nil {
		d.off = off
		d.fail(field, err)
		return ""
	}
	return s
}

func (d *decoder) u16(field string) uint16 {
	if b := d.take(field, 2); b != nil {
		return le.Uint16(b)
	}
	return 0
}

func (d *decoder) u32(field string) uint32 {
	if b := d.take(field, 4); b != nil {
		return le.Uint32(b)
	}
	return 0
}

func (d *decoder) u64(field string) uint64 {
	if b := d.take(field, 8); b != nil {
		return le.Uint64(b)
	}
	return 0
}
