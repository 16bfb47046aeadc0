package registration

import "fmt"

// ProgressLen is the length of a progress record, in bytes.
const ProgressLen = 64

// Progress says how far the payload has got. The payload writes it at
// ProgressOff before each step, so that the next payload can tell whether this
// one hung.
type Progress struct {
	Phase Phase
	// Stalls counts how many payloads in a row, the latest included, were
	// reset before they had started a kernel; Total counts all such
	// payloads since the handoff area was new.
	Stalls uint32
	Total  uint64
}

// Phase is a step of the payload.
type Phase uint32

// The phases. The values are not in the order of time: PhaseStarted is last.
const (
	PhaseStarted Phase = 1 // a normal kernel: the payload has done its work
	PhasePlan    Phase = 2
	PhaseCopy    Phase = 3 // boot memory to its destination
	PhaseDump    Phase = 4 // the ELF core header; looking for VMCOREINFO
	PhaseDisks   Phase = 5 // looking for boot entries
	PhasePlace   Phase = 6 // kernel and initrd, from a disk
	PhaseStart   Phase = 7 // the jump
)

var phaseNames = map[Phase]string{
	PhaseStarted: "started", PhasePlan: "plan", PhaseCopy: "copy", PhaseDump: "dump",
	PhaseDisks: "disks", PhasePlace: "place", PhaseStart: "start",
}

// String returns the phase's name, or its number if this version doesn't know
// it.
func (p Phase) String() string {
	if name, ok := phaseNames[p]; ok {
		return name
	}
	return fmt.Sprintf("phase %d", uint32(p))
}

const (
	progressMagic   = "WCPROGRS"
	progressVersion = 1

	proMagic   = 0
	proVersion = 8
	proPhase   = 12
	proStalls  = 16
	proZero1   = 20 // 4 bytes
	proTotal   = 24
	proZero2   = 32 // 28 bytes
	proCRC     = 60
)

// DecodeProgress reads a progress record from the start of b. The error is a
// *FormatError; it wraps ErrMagic if there is none, as after power-on.
func DecodeProgress(b []byte) (Progress, error) {
	if len(b) < ProgressLen {
		return Progress{}, &FormatError{len(b), "progress record", ErrTooShort}
	}
	b = b[:ProgressLen]
	if string(b[proMagic:proVersion]) != progressMagic {
		return Progress{}, &FormatError{proMagic, "progress record magic", ErrMagic}
	}
	if le.Uint32(b[proVersion:]) != progressVersion {
		return Progress{}, &FormatError{proVersion, "progress record version", ErrVersion}
	}
	if checksum(b[:proCRC]) != le.Uint32(b[proCRC:]) {
		return Progress{}, &FormatError{proCRC, "progress record checksum", ErrChecksum}
	}
	for _, zero := range [][2]int{{proZero1, proTotal}, {proZero2, proCRC}} {
		for off := zero[0]; off < zero[1]; off++ {
			if b[off] != 0 {
				return Progress{}, &FormatError{off, "progress record zero bytes", ErrValue}
			}
		}
	}
	return Progress{
		Phase:  Phase(le.Uint32(b[proPhase:])),
		Stalls: le.Uint32(b[proStalls:]),
		Total:  le.Uint64(b[proTotal:]),
	}, nil
}

// AppendBinary appends the ProgressLen bytes of p. It never fails.
func (p Progress) AppendBinary(dst []byte) ([]byte, error) {
	var b [ProgressLen]byte
	copy(b[proMagic:], progressMagic)
	le.PutUint32(b[proVersion:], progressVersion)
	le.PutUint32(b[proPhase:], uint32(p.Phase))
	le.PutUint32(b[proStalls:], p.Stalls)
	le.PutUint64(b[proTotal:], p.Total)
	le.PutUint32(b[proCRC:], checksum(b[:proCRC]))
	return append(dst, b[:]...), nil
}

// NextProgress returns the progress that a payload starts with if it finds b
// at ProgressOff. stalled says that the payload before it was reset before it
// had started a kernel, in the phase stalledIn.
func NextProgress(b []byte) (next Progress, stalledIn Phase, stalled bool) {
	last, err := DecodeProgress(b)
	next = Progress{Phase: PhasePlan, Stalls: last.Stalls, Total: last.Total}
	switch {
	case err != nil:
		return Progress{Phase: PhasePlan}, 0, false
	case last.Phase == PhaseStarted:
		next.Stalls = 0
		return next, 0, false
	}
	next.Stalls++
	next.Total++
	return next, last.Phase, true
}
