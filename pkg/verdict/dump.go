package verdict

import (
	"errors"
	"fmt"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/registration"
)

// Dump says what a capture boot with today's plan can show of a kernel that
// crashed under an earlier plan. Usually the plans are the same, and all is
// shown. They differ if the payload or its parameters were changed between
// that kernel's start and its crash. Addresses are those that the crashed
// kernel used.
type Dump struct {
	// Shown is memory that both plans dump.
	Shown phys.Set
	// Lost is memory that the crashed kernel's plan dumps and that today's
	// payload has overwritten, as its window, or is about to, as the
	// destination; and what an earlier payload has overwritten since.
	Lost phys.Set
	// Absent is the rest of the memory that today's plan dumps. The
	// crashed kernel's plan didn't dump it, because it was lent for user
	// pages or is overwritten at each reset. Absent has at most as many
	// ranges as the registration holds; to achieve that, it may include
	// memory that is in no dump.
	Absent phys.Set
}

// Compare returns what a dump can show if boot memory has not been copied yet.
// then is the plan that was registered last, absent is the part of its dumped
// memory that the dump doesn't show, and lost is what earlier payloads have
// overwritten.
//
// The same formula holds after any number of plans, because each capture boot
// registers its own plan and what is absent from it before it copies: the
// payload of that boot overwrites only memory outside of what is shown.
func Compare(then []registration.PlanRange, absent, lost phys.Set, today *plan.Plan) Dump {
	dumped := dumpedThen(then).Minus(absent)
	now := today.Dumped()
	var d Dump
	d.Absent = coarse(now.Minus(dumped.AlignIn(today.Arch.Granule)), registration.MaxAbsent)
	d.Shown = now.Minus(d.Absent)
	d.Lost = dumped.Union(lost).Minus(d.Shown)
	return d
}

// dumpedThen returns the dumped memory of a registered plan. Memory that two
// roles claim, or an unknown role, is in no dump.
func dumpedThen(then []registration.PlanRange) phys.Set {
	var dumped, other []phys.Range
	for _, x := range then {
		switch x.Role {
		case registration.RoleBoot, registration.RolePreserved:
			dumped = append(dumped, x.Range)
		default:
			other = append(other, x.Range)
		}
	}
	return phys.NewSet(dumped...).Minus(phys.NewSet(other...))
}

// coarse returns a set of at most n ranges that holds s: the smallest gaps
// are filled.
func coarse(s phys.Set, n int) phys.Set {
	for len(s) > n {
		least := 1
		for i := 2; i < len(s); i++ {
			if s[i].Start-s[i-1].End < s[least].Start-s[least-1].End {
				least = i
			}
		}
		s = s.Union(phys.Set{{Start: s[least-1].End, End: s[least].Start}})
	}
	return s
}

// Check proves for each byte that the dump of d shows that the crashed kernel
// had it in dumped memory and that today's payload doesn't overwrite it; and
// that all other memory is named as lost or absent. It compares the ranges
// that b registered with today's parts. The payload calls it before it writes
// anything. If d copies nothing, there is nothing to prove.
func Check(b *registration.Block, today *plan.Plan, d Decision) error {
	if d.Kind != plan.Capture || d.Copied {
		return nil
	}
	absent, _ := d.before(b)
	return check(b.Plan, absent, today, d.Dump)
}

// before returns what earlier boots of the same dump have registered.
func (d Decision) before(b *registration.Block) (absent, lost phys.Set) {
	if d.NewDump {
		return nil, nil // b describes an earlier dump
	}
	return phys.NewSet(b.Absent...), phys.NewSet(b.Lost...)
}

func check(then []registration.PlanRange, absent phys.Set, today *plan.Plan, d Dump) error {
	var errs []error
	parts := today.Parts()
	var cuts []uint64
	cut := func(r phys.Range) { cuts = append(cuts, r.Start, r.End) }
	for _, x := range then {
		cut(x.Range)
	}
	for _, x := range parts {
		cut(x.Range)
	}
	for _, s := range []phys.Set{absent, d.Shown, d.Lost, d.Absent} {
		for _, r := range s {
			cut(r)
		}
	}
	in := func(s []phys.Range, at uint64) bool {
		for _, r := range s {
			if r.Start <= at && at < r.End {
				return true
			}
		}
		return false
	}
	bounds := phys.Boundaries(cuts)
	for i := 0; i+1 < len(bounds); i++ {
		at, r := bounds[i], phys.Range{Start: bounds[i], End: bounds[i+1]}
		had, claimed := false, false
		for _, x := range then {
			if x.Range.Start <= at && at < x.Range.End {
				if x.Role == registration.RoleBoot || x.Role == registration.RolePreserved {
					had = true
				} else {
					claimed = true
				}
			}
		}
		had = had && !claimed && !in(absent, at)
		keeps := false
		for _, x := range parts {
			if x.Range.Start <= at && at < x.Range.End {
				keeps = x.Role == plan.RoleBoot || x.Role == plan.RolePreserved
			}
		}
		shown, lost, gone := in(d.Shown, at), in(d.Lost, at), in(d.Absent, at)
		switch {
		case shown && !keeps:
			errs = append(errs, fmt.Errorf("%v would be shown as dumped, and today's payload overwrites it", r))
		case shown && lost:
			errs = append(errs, fmt.Errorf("%v would be shown as dumped, and named as lost", r))
		case shown && !had:
			errs = append(errs, fmt.Errorf("%v would be shown as dumped, and was not dumped memory of the crashed kernel", r))
		case had && !shown && !lost:
			errs = append(errs, fmt.Errorf("%v is neither in the dump nor named as lost", r))
		case keeps && shown == gone:
			errs = append(errs, fmt.Errorf("%v is dumped memory: shown %v, absent %v", r, shown, gone))
		}
	}
	return errors.Join(errs...)
}

// Keep is for a dump whose boot memory an earlier boot has copied. It returns
// the ELF core header of what can still be read, and the crashed kernel's
// memory that can't. h is the ELF core header of that boot, the only record of
// where the dump is now. Under the same plan nothing is lost. Under another
// plan the dump stays where it is, nothing is copied again, and the memory
// that today's payload overwrites or needs as boot memory is lost.
//
// Like all of the handoff area, h may be forged. The result is checked: it
// reads only memory that is hidden from the capture kernel.
func Keep(h elfcore.Header, today *plan.Plan) (elfcore.Header, phys.Set, error) {
	readable := today.Destination.Union(today.Preserved)
	kept := elfcore.Header{Machine: h.Machine}
	var before, after []phys.Range
	for _, l := range h.Loads {
		all, ok := phys.Sized(l.Phys, l.Size)
		at, ok2 := phys.Sized(l.Offset, l.Size)
		if !ok || !ok2 {
			return elfcore.Header{}, nil, fmt.Errorf("load of %d bytes at %#x wraps", l.Size, l.Phys)
		}
		before = append(before, all)
		for _, x := range readable.Intersect(phys.Set{at}) {
			skip := x.Start - at.Start
			l := elfcore.Load{Phys: l.Phys + skip, Offset: x.Start, Size: x.Size(), Virt: l.Virt}
			if l.Virt != 0 {
				l.Virt += skip
			}
			kept.Loads = append(kept.Loads, l)
			after = append(after, phys.Range{Start: l.Phys, End: l.Phys + l.Size})
		}
	}
	for _, n := range h.Notes {
		if at, ok := phys.Sized(n.Offset, n.Size); ok && readable.Contains(at) {
			kept.Notes = append(kept.Notes, n)
		}
	}
	if h.Machine != today.Arch.Machine {
		return elfcore.Header{}, nil, fmt.Errorf("it is for machine %d, this one is %d", h.Machine, today.Arch.Machine)
	}
	if err := elfcore.Check(kept, readable); err != nil {
		return elfcore.Header{}, nil, err
	}
	return kept, phys.NewSet(before...).Minus(phys.NewSet(after...)), nil
}
