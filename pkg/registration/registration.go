// Package registration encodes and decodes the contents of the handoff area:
// the registration block in two copies, the crash record, and the payload's
// log of this boot and the one before. FORMAT.md beside this file has the byte
// layout.
//
// The data that this package reads was written by an operating system that was
// crashing, or by a hostile one. Invariants:
//
//   - Nothing in a block says where to write. Every address in it is for
//     reading, and the reader checks it against the firmware's map.
//   - Every count and length is compared with a named constant before
//     anything is allocated.
//   - Decode(AppendBinary(b)) is b, with sections of unknown type kept.
//   - Store never touches the newest valid copy, so that copy survives a write
//     that is torn at any byte.
//   - On an error the result is nil or zero.
//
// The functions take private copies of memory: a caller copies the handoff
// area once and decodes the copy, because the memory may change meanwhile.
// Callers make sure that there is one writer at a time: the payload until it
// starts the normal kernel, then the agent, under a lock.
package registration

import (
	"strconv"

	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

// Offsets and sizes in the handoff area, in bytes.
const (
	SizeMin = 0x200000 // least size of a handoff area

	CopyAOff      = 0x000000 // registration block, one copy
	CopyBOff      = 0x010000 // registration block, the other copy
	CopySize      = 0x010000 // of each copy
	CopiesSize    = CopyBOff + CopySize
	RecordOff     = 0x020000 // crash record, written by the stub
	RecordSize    = 0x001000 // reserved for it; the record is RecordLen bytes
	ProgressOff   = 0x021000 // how far the payload got; a record of ProgressLen bytes
	LogOff        = 0x030000 // two log slots
	LogSlotSize   = 0x038000 // of each slot
	CoreHeaderOff = 0x0C0000 // ELF core header for the capture kernel; see CoreHeaderRange
)

// Caps. A block with every field at its cap still fits into CopySize.
const (
	MaxCPUs        = 3072    // CPUNotes
	MaxNoteSize    = 1 << 20 // bytes in one Note
	MaxPlan        = 1024    // Plan
	MaxTimeline    = 32      // Capture.Timeline
	MaxEventName   = 24      // bytes in Event.Name
	MaxRelease     = 64      // bytes in Identity.Release
	MaxBuildID     = 64      // bytes in Identity.BuildID
	MaxTitle       = 128     // bytes in Kernel.Title
	MaxPath        = 256     // bytes in Kernel.Path and in Kernel.Initrd
	MaxCmdline     = 4096    // bytes in Kernel.Cmdline
	MaxPayloadName = 128     // bytes in PayloadVersion
	MaxUUID        = 64      // bytes in Booted.FileSystem
	MaxOnce        = 256     // bytes in Booted.Once
	MaxMounting    = 256     // bytes in Mounting
	MaxRefused     = 80      // bytes in Refused
	MaxAbsent      = 24      // Absent, and Lost
	MaxSections    = 64      // of known and unknown types together
)

// CoreHeaderRange returns the part of the handoff area that is kept for the
// ELF core header; the zero Range if the area is smaller than SizeMin.
func CoreHeaderRange(handoff phys.Range) phys.Range {
	if handoff.Size() < SizeMin {
		return phys.Range{}
	}
	return phys.Range{Start: handoff.Start + CoreHeaderOff, End: handoff.End}
}

// State says what the next reset means.
type State uint32

// The states. FORMAT.md says who writes which, and when.
const (
	Empty     State = 0 // nothing registered
	Prearmed  State = 1 // the payload started a normal kernel; no agent has run yet
	Armed     State = 2 // the agent has registered; a reset now is dumped
	Capturing State = 3 // a capture boot has been started and its dump is not saved
	Saved     State = 4 // the dump is saved or was discarded
	Releasing State = 5 // preserved memory is being given back; there is no dump any more
	Disarmed  State = 6 // by a clean shutdown or by the administrator
)

const maxState = Disarmed

var stateNames = [...]string{"empty", "prearmed", "armed", "capturing", "saved", "releasing", "disarmed"}

// String returns the state in lower-case words, "state(9)" for one that this
// version doesn't know.
func (s State) String() string { return name("state", stateNames[:], uint32(s)) }

// Reason says why a capture boot was made.
type Reason uint32

// The reasons.
const (
	ReasonNone  Reason = 0 // no capture
	ReasonPanic Reason = 1 // the stub left a crash record
	ReasonReset Reason = 2 // armed and no crash record: a watchdog, or reset by hand
	ReasonEarly Reason = 3 // prearmed and no crash record
)

var reasonNames = [...]string{"none", "panic", "reset", "early"}

// String returns "none", "panic", "reset" or "early".
func (r Reason) String() string { return name("reason", reasonNames[:], uint32(r)) }

// Role says what a range is for in the plan.
type Role uint32

// The roles, in the words of the memory plan.
const (
	RoleWindow      Role = 1 // firmware's and the payload's memory
	RoleHandoff     Role = 2 // the handoff area
	RoleBoot        Role = 3 // boot memory
	RoleDestination Role = 4 // where boot memory is copied
	RolePreserved   Role = 5 // kept as the crashed kernel left it
	RoleLost        Role = 6 // RAM that firmware overwrites at a reset
	RoleMargin      Role = 7 // RAM before lent memory that its driver keeps
)

var roleNames = [...]string{"none", "window", "handoff", "boot", "destination", "preserved", "lost", "margin"}

// String returns the role's word.
func (r Role) String() string { return name("role", roleNames[:], uint32(r)) }

func name(kind string, names []string, v uint32) string {
	if uint64(v) < uint64(len(names)) {
		return names[v]
	}
	return kind + "(" + strconv.FormatUint(uint64(v), 10) + ")"
}

// Block is the registration. The zero value of a field means that it isn't
// known; such a field takes no room in the encoding.
type Block struct {
	Sequence uint64 // of this copy, set by Store; wraps
	State    State

	Identity Identity
	// MapHash is memmap.Map.Hash of the firmware's memory map, computed by
	// the payload. The agent copies it from the block that it found,
	// because a running normal kernel shows the map that the payload made,
	// not the firmware's.
	MapHash [32]byte
	// CPUNotes are the per-CPU crash notes, indexed by the kernel's CPU
	// number; the Note of a CPU that has none is zero.
	CPUNotes       []Note
	VMCoreInfo     Note
	Mapping        kernelmap.Mapping
	Policy         Policy
	Counters       Counters
	Kernel         Kernel
	Capture        Capture
	Plan           []PlanRange // for the agent to read; the payload computes its own
	PayloadVersion string
	Booted         Booted
	// Mounting names the disks, separated by spaces, that the payload was
	// about to look at. If it is set after a reset, the reset came before
	// they answered.
	Mounting string
	// Refused is why this system can't be armed, a reason that lasts: the
	// payload starts it with all of memory, for kdump, until its kernel or
	// command line changes. Empty if it can be, or nobody has tried.
	Refused string
	// Absent and Lost are set in a capture boot whose plan differs from
	// the crashed kernel's, until it has copied boot memory. Absent is the
	// part of Plan's boot and preserved memory that the dump doesn't show.
	// Lost is dumped memory of the crashed kernel that no dump can show
	// any more.
	Absent, Lost phys.Set
	Unknown      []Section // of types that this version doesn't know, in order
}

// Identity says which boot of which kernel registered.
type Identity struct {
	Nonce    [16]byte // fresh at each arm and prearm; the crash record must carry it
	BootID   [16]byte // /proc/sys/kernel/random/boot_id
	Release  string   // uname -r
	BuildID  []byte   // GNU build id of the kernel
	Machine  uint16   // ELF e_machine
	PageSize uint32   // in bytes
	Time     int64    // Unix seconds
}

// Note is physical memory that holds ELF notes, or VMCOREINFO.
type Note struct {
	Addr, Size uint64 // physical address; bytes, at most MaxNoteSize
}

// Policy is the administrator's choice.
type Policy struct {
	MaxCaptures uint32 // capture boots of one dump before the payload gives up
	BlockSize   uint64 // memory block size in bytes
}

// Counters survive resets.
type Counters struct {
	Boots         uint64
	Captures      uint64
	Attempts      uint32   // capture boots of the present dump
	PrearmStrikes uint32   // resets in a row in which no agent ever armed
	LastCaptures  [8]int64 // Unix seconds, newest first, 0 for none
	// CaptureBoots are the numbers of the boots that made LastCaptures:
	// the value that Boots had then; 0 if not known.
	CaptureBoots [8]uint64
}

// Kernel is the kernel that the payload booted last.
type Kernel struct {
	Title, Path, Initrd, Cmdline string
}

// Booted identifies the files that the payload booted last, so that the dump
// goes to that system and no other.
type Booted struct {
	FileSystem           string   // UUID of the file system that has the kernel
	KernelSum, InitrdSum [32]byte // SHA-256; InitrdSum is zero if there is no initrd
	Once                 string   // the request to boot an entry once that was granted last
}

// Capture is what the payload tells the agent about a dump.
type Capture struct {
	Reason            Reason
	Copied            bool   // boot memory is in the destination
	CPUsWithRegisters uint32 // CPUs whose crash notes hold registers
	CPUsFlushed       uint32 // CPUs whose caches the stub flushed
	CPUsSeen          uint32 // CPUs that should have been flushed: those that the stub knew, or that left registers if these are more
	CopyBytes         uint64
	CopyNanos         uint64     // how long the copy took, in nanoseconds
	CoreHeader        phys.Range // where the ELF core header lies
	Time              int64      // Unix seconds of the capture boot
	Timeline          []Event    // in the order in which they happened
}

// Event is one step of a capture.
type Event struct {
	Nanos uint64 // since the payload's kernel started, in nanoseconds
	Name  string
}

// PlanRange is a range of the memory plan.
type PlanRange struct {
	Role  Role
	Range phys.Range
}

// Section is a section of a type that this version doesn't know.
type Section struct {
	Type uint32
	Data []byte
}
