// Package verdict decides what a reset leads to: a plain boot or a capture
// boot, from what the last boot registered and from today's plan; and it says
// what is registered for the next reset.
//
// Everything here is a function of values. A registration was written by a
// system that was crashing, or by a hostile one: it can cause a capture boot
// or prevent one, but it never decides where anything is written.
package verdict

import (
	"fmt"

	"github.com/warmcore/warmcore/pkg/binding"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/registration"
)

// Limits bound what a machine that keeps crashing may cost.
type Limits struct {
	// Captures is how many dumps are taken within an hour, or within a
	// number of boots if the clock can't be trusted; further crashes lead
	// to plain boots. 0 means no limit.
	Captures int
	// Attempts is how many capture boots one dump gets.
	Attempts uint32
}

// DefaultLimits are the limits of an image without warmcore.max_captures=.
var DefaultLimits = Limits{Captures: 5, Attempts: 3}

// maxPrearmStrikes is how many dumps in a row, of boots in which no agent ever
// armed, may go unsaved before the payload stops pre-arming: the normal system
// then has no agent, or the agent never gets to run.
const maxPrearmStrikes = 2

// Situation is what the payload finds at a reset.
type Situation struct {
	Block    *registration.Block  // nil without a valid one
	BlockErr error                // why Block is nil
	Record   *registration.Record // nil without a valid one
	MapHash  [32]byte             // of the firmware's map, now
	Plan     *plan.Plan           // today's
	Now      int64                // Unix time in seconds, as good as the clock is
	Off      bool                 // warmcore.off is on the command line
	Limits   Limits
}

// Decision is what a reset leads to.
type Decision struct {
	Kind    plan.Kind
	Reason  registration.Reason // of the dump, in a capture boot
	Why     string              // one sentence for the log
	Copied  bool                // L is in D already: do not copy again
	Prearm  bool                // in a plain boot: dump a crash that happens before the agent arms
	NewDump bool                // count this as a new dump
	Dump    Dump                // in a capture boot that copies
}

// Decide chooses between a plain boot and a capture boot. It is strict:
// anything that it does not understand leads to a plain boot, and Why says
// what that was.
func Decide(s Situation) Decision {
	plain := func(prearm bool, format string, args ...any) Decision {
		return Decision{Kind: plan.Plain, Prearm: prearm, Why: fmt.Sprintf(format, args...)}
	}
	switch {
	case s.Off:
		return plain(false, "warmcore.off is on the payload's command line")
	case s.Block == nil && s.BlockErr != nil:
		return plain(true, "no registration: %v", s.BlockErr)
	case s.Block == nil:
		return plain(true, "no registration")
	}
	b := s.Block
	prearm := b.Counters.PrearmStrikes < maxPrearmStrikes
	switch b.State {
	case registration.Empty:
		return plain(prearm, "nothing registered")
	case registration.Disarmed:
		return plain(prearm, "clean shutdown: disarmed")
	case registration.Saved, registration.Releasing:
		return plain(prearm, "reset while %v: that dump is complete, memory of this crash is not", b.State)
	case registration.Prearmed, registration.Armed, registration.Capturing:
	default:
		return plain(prearm, "registration in unknown state %v", b.State)
	}
	if b.MapHash != s.MapHash {
		return plain(prearm, "the firmware's memory map changed since arming: %x is now %x", b.MapHash[:4], s.MapHash[:4])
	}
	if b.State == registration.Capturing || b.Capture.Copied {
		d := Decision{Kind: plan.Capture, Reason: b.Capture.Reason, Copied: b.Capture.Copied}
		if b.Counters.Attempts >= s.Limits.Attempts {
			return plain(prearm, "gave the dump up after %d capture boots in which it was not saved", b.Counters.Attempts)
		}
		d.Why = fmt.Sprintf("the dump was not saved in capture boot %d, it is offered again", b.Counters.Attempts)
		return d
	}
	// A payload that died during the copy has counted an attempt.
	if b.Counters.Attempts >= s.Limits.Attempts {
		return plain(prearm, "gave the dump up after %d attempts to copy boot memory", b.Counters.Attempts)
	}
	d := Decision{Kind: plan.Capture, NewDump: b.Counters.Attempts == 0}
	if why := tooFrequent(b, s.Now, s.Limits); d.NewDump && why != "" {
		return plain(prearm, "%s: crashes are too frequent, taking no more for now", why)
	}
	if len(b.Plan) == 0 {
		return plain(prearm, "the registration has no memory plan: what the crashed kernel's memory was for is not known")
	}
	absent, lost := d.before(b)
	if d.Dump = Compare(b.Plan, absent, lost, s.Plan); len(d.Dump.Shown) == 0 {
		return plain(prearm, "the memory plan changed since the crashed boot, and nothing of that kernel's memory is left")
	}
	switch {
	case b.State == registration.Prearmed:
		d.Reason = registration.ReasonEarly
		d.Why = "reset before the agent had armed: early crash or reset"
	case s.Record != nil && s.Record.Flags&registration.RecordPanic != 0 && s.Record.Nonce == b.Identity.Nonce:
		d.Reason = registration.ReasonPanic
		d.Why = fmt.Sprintf("panic on the CPU with %s %d, caches of %d of %d CPUs flushed", s.Plan.Arch.CPUNumber, s.Record.CPU, s.Record.Flushed, s.Record.Expected)
	default:
		d.Reason = registration.ReasonReset
		d.Why = "armed, and reset without a crash record: watchdog or reset"
	}
	return d
}

// next returns a copy of the block for one boot more; old may be nil.
func next(old *registration.Block) *registration.Block {
	b := registration.Block{State: registration.Empty}
	if old != nil {
		b = *old
	}
	b.Counters.Boots++
	return &b
}

// withoutDump removes what belongs to a dump and to the kernel that crashed. The
// mapping stays: until an agent registers, it is that of the previous boot.
func withoutDump(b *registration.Block) {
	b.Counters.Attempts = 0
	b.Absent, b.Lost = nil, nil
	b.Capture = registration.Capture{}
	b.CPUNotes, b.VMCoreInfo = nil, registration.Note{}
}

// Begin returns the block as it is to be stored before boot memory is copied
// (capture) or before the normal kernel is placed (plain). nonce is fresh;
// old is nil where there was no valid block.
func (d Decision) Begin(old *registration.Block, p *plan.Plan, hash [32]byte, nonce [16]byte, now int64) *registration.Block {
	b := next(old)
	b.MapHash = hash
	if p != nil {
		b.Plan = Ranges(p)
		b.Policy.BlockSize = p.BlockSize
	}
	if d.Kind == plan.Capture {
		b.Counters.Attempts++
		b.Capture.Reason = d.Reason
		b.Absent, b.Lost = d.Dump.Absent, coarse(d.Dump.Lost, registration.MaxAbsent)
		if d.NewDump {
			b.Counters.Captures++
			note(&b.Counters, clock(b, now))
			b.Capture.Time = now
			if d.Reason == registration.ReasonEarly {
				b.Counters.PrearmStrikes++
			}
		}
		return b
	}
	if old != nil && old.State == registration.Disarmed {
		b.Counters.LastCaptures, b.Counters.CaptureBoots = [kept]int64{}, [kept]uint64{}
	}
	withoutDump(b)
	b.Refused = ""
	b.Identity = registration.Identity{Nonce: nonce, Time: now}
	b.State = registration.Empty
	if d.Prearm {
		b.State = registration.Prearmed
	}
	return b
}

// The registration has room for every plan, and every handoff area has room
// for the registration. If that ever changes, one of these constants is
// negative and doesn't compile.
const (
	_ = uint(registration.MaxPlan - plan.MaxParts)
	_ = uint(binding.MinHandoff - registration.SizeMin)
)

// roles maps the plan's roles to the registration's.
var roles = map[plan.Role]registration.Role{
	plan.RoleWindow:      registration.RoleWindow,
	plan.RoleHandoff:     registration.RoleHandoff,
	plan.RoleBoot:        registration.RoleBoot,
	plan.RoleDestination: registration.RoleDestination,
	plan.RolePreserved:   registration.RolePreserved,
	plan.RoleLost:        registration.RoleLost,
	plan.RoleMargin:      registration.RoleMargin,
}

// Ranges returns a plan in the form that the registration stores.
func Ranges(p *plan.Plan) []registration.PlanRange {
	var out []registration.PlanRange
	for _, x := range p.Parts() {
		out = append(out, registration.PlanRange{Role: roles[x.Role], Range: x.Range})
	}
	return out
}
