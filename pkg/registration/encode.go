package registration

import (
	"bytes"
	"encoding/binary"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/warmcore/warmcore/pkg/phys"
)

var le = binary.LittleEndian

// AppendBinary appends one copy of b: header, sections and checksums. The
// error is a *FormatError if a field is beyond its cap, a string is not plain
// text, or the copy would be longer than CopySize.
func (b *Block) AppendBinary(dst []byte) ([]byte, error) {
	e := encoder{buf: make([]byte, headerLen)}
	e.block(b)
	if e.err == nil && len(e.buf) > CopySize {
		e.fail("copy", ErrTooLarge)
	}
	if e.err != nil {
		return nil, e.err
	}
	h := e.buf[:headerLen]
	copy(h[offMagic:], magic)
	le.PutUint32(h[offVersion:], version)
	le.PutUint32(h[offHeader:], headerLen)
	le.PutUint64(h[offSequence:], b.Sequence)
	le.PutUint32(h[offState:], uint32(b.State))
	le.PutUint32(h[offCount:], e.sections)
	le.PutUint32(h[offLength:], uint32(len(e.buf)-headerLen))
	le.PutUint32(h[offBodyCRC:], checksum(e.buf[headerLen:]))
	le.PutUint32(h[offCRC:], checksum(h[:offCRC]))
	return append(dst, e.buf...), nil
}

// encoder builds a copy. It keeps the first error.
type encoder struct {
	buf      []byte
	sections uint32
	err      error
}

func (e *encoder) fail(field string, err error) {
	if e.err == nil {
		e.err = &FormatError{len(e.buf), field, err}
	}
}

func (e *encoder) block(b *Block) {
	if b.State > maxState {
		e.fail("state", ErrValue)
	}
	e.section(secIdentity, func() { e.identity(&b.Identity) })
	e.section(secMapHash, func() { e.bytes(b.MapHash[:]) })
	e.section(secCPUNotes, func() { e.notes(b.CPUNotes) })
	e.section(secVMCoreInfo, func() { e.note("vmcoreinfo", b.VMCoreInfo) })
	e.section(secMapping, func() {
		e.u64(b.Mapping.DirectBase)
		e.u64(b.Mapping.TextVirt)
		e.u64(b.Mapping.TextPhys)
		e.u64(b.Mapping.TextSize)
	})
	e.section(secPolicy, func() {
		e.u32(b.Policy.MaxCaptures)
		e.u64(b.Policy.BlockSize)
	})
	e.section(secCounters, func() { e.counters(&b.Counters) })
	e.section(secKernel, func() {
		e.text("kernel title", b.Kernel.Title, MaxTitle)
		e.text("kernel path", b.Kernel.Path, MaxPath)
		e.text("kernel initrd", b.Kernel.Initrd, MaxPath)
		e.text("kernel command line", b.Kernel.Cmdline, MaxCmdline)
	})
	e.section(secCapture, func() { e.capture(&b.Capture) })
	e.section(secPlan, func() { e.plan(b.Plan) })
	e.section(secPayloadVersion, func() { e.text("payload version", b.PayloadVersion, MaxPayloadName) })
	e.section(secBooted, func() {
		e.text("file system", b.Booted.FileSystem, MaxUUID)
		e.bytes(b.Booted.KernelSum[:])
		e.bytes(b.Booted.InitrdSum[:])
		e.text("request to boot once", b.Booted.Once, MaxOnce)
	})
	e.section(secMounting, func() { e.text("disks being mounted", b.Mounting, MaxMounting) })
	e.section(secRefused, func() { e.text("refusal", b.Refused, MaxRefused) })
	e.section(secAbsent, func() {
		e.ranges("absent", b.Absent)
		e.ranges("lost", b.Lost)
	})
	e.section(secCaptureBoots, func() {
		for _, n := range b.Counters.CaptureBoots {
			e.u64(n)
		}
	})
	e.unknown(b.Unknown)
}

// section appends a section header and what put appends. If that is all zero,
// it appends nothing, because an absent section reads as zero.
func (e *encoder) section(typ uint32, put func()) {
	start := len(e.buf)
	e.u32(typ)
	e.u32(0)
	body := len(e.buf)
	put()
	data := e.buf[body:]
	if len(bytes.Trim(data, "\x00")) == 0 {
		e.buf = e.buf[:start]
		return
	}
	le.PutUint32(e.buf[start+4:], uint32(len(data)))
	e.sections++
}

func (e *encoder) unknown(sections []Section) {
	seen := make(map[uint32]bool, len(sections))
	for _, s := range sections {
		switch {
		case s.Type <= maxKnown || seen[s.Type]:
			e.fail("unknown section type", ErrDuplicate)
		case e.sections >= MaxSections:
			e.fail("section count", ErrTooLarge)
		case len(s.Data) > CopySize:
			e.fail("unknown section", ErrTooLarge)
		}
		if e.err != nil {
			return
		}
		seen[s.Type] = true
		e.u32(s.Type)
		e.u32(uint32(len(s.Data)))
		e.bytes(s.Data)
		e.sections++
	}
}

func (e *encoder) identity(id *Identity) {
	e.bytes(id.Nonce[:])
	e.bytes(id.BootID[:])
	e.text("kernel release", id.Release, MaxRelease)
	if len(id.BuildID) > MaxBuildID {
		e.fail("build id", ErrTooLarge)
		return
	}
	e.u16(uint16(len(id.BuildID)))
	e.bytes(id.BuildID)
	e.u16(id.Machine)
	e.u32(id.PageSize)
	e.u64(uint64(id.Time))
}

func (e *encoder) notes(notes []Note) {
	if len(notes) > MaxCPUs {
		e.fail("CPU notes", ErrTooLarge)
		return
	}
	e.u32(uint32(len(notes)))
	for _, n := range notes {
		e.note("CPU note", n)
	}
}

func (e *encoder) note(field string, n Note) {
	if err := n.check(); err != nil {
		e.fail(field, err)
	}
	e.u64(n.Addr)
	e.u32(uint32(n.Size))
}

// check says whether n is within MaxNoteSize and the address space.
func (n Note) check() error {
	if n.Size > MaxNoteSize {
		return ErrTooLarge
	}
	if _, ok := phys.Sized(n.Addr, n.Size); !ok {
		return ErrValue
	}
	return nil
}

func (e *encoder) counters(c *Counters) {
	e.u64(c.Boots)
	e.u64(c.Captures)
	e.u32(c.Attempts)
	e.u32(c.PrearmStrikes)
	for _, t := range c.LastCaptures {
		e.u64(uint64(t))
	}
}

func (e *encoder) capture(c *Capture) {
	e.u32(uint32(c.Reason))
	var copied uint32
	if c.Copied {
		copied = 1
	}
	e.u32(copied)
	e.u32(c.CPUsWithRegisters)
	e.u32(c.CPUsFlushed)
	e.u32(c.CPUsSeen)
	e.u64(c.CopyBytes)
	e.u64(c.CopyNanos)
	if c.CoreHeader != (phys.Range{}) && c.CoreHeader.Empty() {
		e.fail("core header range", ErrValue)
	}
	e.u64(c.CoreHeader.Start)
	e.u64(c.CoreHeader.End)
	e.u64(uint64(c.Time))
	if len(c.Timeline) > MaxTimeline {
		e.fail("timeline", ErrTooLarge)
		return
	}
	e.u32(uint32(len(c.Timeline)))
	for _, ev := range c.Timeline {
		e.u64(ev.Nanos)
		e.text("event name", ev.Name, MaxEventName)
	}
}

func (e *encoder) plan(plan []PlanRange) {
	if len(plan) > MaxPlan {
		e.fail("plan", ErrTooLarge)
		return
	}
	e.u32(uint32(len(plan)))
	for _, p := range plan {
		if p.Range.Empty() {
			e.fail("plan range", ErrValue)
		}
		e.u32(uint32(p.Role))
		e.u64(p.Range.Start)
		e.u64(p.Range.End)
	}
}

func (e *encoder) ranges(field string, ranges phys.Set) {
	if len(ranges) > MaxAbsent {
		e.fail(field+" count", ErrTooLarge)
		return
	}
	e.u32(uint32(len(ranges)))
	for _, r := range ranges {
		if r.Empty() {
			e.fail(field+" range", ErrValue)
		}
		e.u64(r.Start)
		e.u64(r.End)
	}
}

func (e *encoder) text(field, s string, most int) {
	if err := checkText(s, most); err != nil {
		e.fail(field, err)
		return
	}
	e.u16(uint16(len(s)))
	e.buf = append(e.buf, s...)
}

// Text returns text as a block takes it: cut to most bytes, with what can't be in it
// replaced.
func Text(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	for len(text) > most {
		_, n := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-n]
	}
	return text
}

// checkText allows what may be printed on one line of a terminal: valid UTF-8
// of at most most bytes without control characters, a tab excepted. Text in
// the handoff area ends up on consoles and in logs, and whoever crashed the
// machine may have chosen it.
func checkText(s string, most int) error {
	switch {
	case len(s) > most:
		return ErrTooLarge
	case !utf8.ValidString(s):
		return ErrValue
	}
	for _, r := range s {
		if unicode.IsControl(r) && r != '\t' {
			return ErrValue
		}
	}
	return nil
}

func (e *encoder) bytes(b []byte) { e.buf = append(e.buf, b...) }
func (e *encoder) u16(v uint16)   { e.buf = le.AppendUint16(e.buf, v) }
func (e *encoder) u32(v uint32)   { e.buf = le.AppendUint32(e.buf, v) }
func (e *encoder) u64(v uint64)   { e.buf = le.AppendUint64(e.buf, v) }
