package plan

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

// Check proves a plan's invariants in another way than Make builds it: it
// cuts the address space at every boundary in the plan and finds, by plain
// comparison, which parts contain each interval. The payload calls it before
// it writes anything; fuzz tests call it on every plan.
func Check(p *Plan) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	parts := p.Parts()
	var cuts []uint64
	cut := func(r phys.Range) { cuts = append(cuts, r.Start, r.End) }
	for _, x := range parts {
		cut(x.Range)
	}
	for _, e := range p.Firmware.Entries {
		cut(e.Range)
	}
	for _, c := range p.Copies {
		if _, carry := bits.Add64(c.Src, c.Size, 0); carry != 0 {
			fail("copy of %d bytes from %#x wraps", c.Size, c.Src)
		}
		if _, carry := bits.Add64(c.Dst, c.Size, 0); carry != 0 {
			fail("copy of %d bytes to %#x wraps", c.Size, c.Dst)
		}
		cut(c.SrcRange())
		cut(c.DstRange())
	}
	plain, capture := p.NextMap(Plain), p.NextMap(Capture)
	for _, m := range []memmap.Map{plain, capture} {
		for _, e := range m.Entries {
			cut(e.Range)
		}
	}
	cut(p.Arch.Low)
	bounds := phys.Boundaries(cuts)

	for i := 0; i+1 < len(bounds); i++ {
		r := phys.Range{Start: bounds[i], End: bounds[i+1]}
		at := r.Start
		var held []string
		for _, x := range parts {
			if x.Range.Start <= at && at < x.Range.End {
				held = append(held, x.Role.String())
			}
		}
		ram := isRAM(p.Firmware, at)
		above := at >= p.Arch.Low.End
		switch {
		case len(held) > 1:
			fail("%v is both %v", r, held)
		case len(held) == 1 && !ram:
			fail("%v is %s but not RAM", r, held[0])
		case len(held) == 1 && !above:
			fail("%v is %s but below 1 MiB", r, held[0])
		case len(held) == 0 && ram && above:
			fail("%v is RAM that the plan forgot", r)
		}
		part := ""
		if len(held) == 1 {
			part = held[0]
		}
		read, written := 0, 0
		for _, c := range p.Copies {
			if c.Src <= at && at < c.Src+c.Size {
				read++
			}
			if c.Dst <= at && at < c.Dst+c.Size {
				written++
			}
		}
		switch {
		case part == "boot" && read != 1:
			fail("boot memory %v is copied %d times", r, read)
		case part != "boot" && read != 0:
			fail("%v is copied but is no boot memory", r)
		case part != "destination" && written != 0:
			fail("%v is written but is no destination", r)
		case written > 1:
			fail("%v is written %d times", r, written)
		}
		low := !above && ram
		if got, want := isRAM(capture, at), part == "boot" || low; got != want {
			fail("%v (%s): RAM in the capture boot is %v, want %v", r, part, got, want)
		}
		if got, want := isRAM(plain, at), part == "boot" || part == "preserved" || low; got != want {
			fail("%v (%s): RAM in the plain boot is %v, want %v", r, part, got, want)
		}
		for _, m := range []memmap.Map{plain, capture} {
			if part == "handoff" && isKind(m, at, memmap.SoftReserved) {
				fail("%v (%s) would be given to the kernel later", r, part)
			}
			if part == "destination" && !isKind(m, at, memmap.SoftReserved) {
				fail("%v (%s) is not hidden", r, part)
			}
		}
	}
	for _, m := range []memmap.Map{plain, capture} {
		if err := checkBorders(p, m); err != nil {
			errs = append(errs, err)
		}
	}
	for _, r := range p.Destination {
		if r.Start%p.BlockSize != 0 || r.End%p.BlockSize != 0 {
			fail("%v is not made of whole memory blocks of %#x", r, p.BlockSize)
		}
		for at := r.Start - p.Arch.InfoBlock; at != r.Start; at += p.Arch.Granule {
			if !isKind(plain, at, memmap.SoftReserved) || !isKind(capture, at, memmap.SoftReserved) {
				fail("%v has no info block in front: %#x is not hidden", r, at)
				break
			}
		}
	}
	for _, r := range p.Preserved {
		if -r.Start%p.BlockSize > p.Arch.InfoBlock || r.End%p.BlockSize != 0 {
			fail("%v is not made of whole memory blocks of %#x, behind an info block of %#x", r, p.BlockSize, p.Arch.InfoBlock)
		}
	}
	return errors.Join(errs...)
}

// checkBorders returns an error unless each range of m that is handed over is
// in one NUMA node.
func checkBorders(p *Plan, m memmap.Map) error {
	for _, e := range m.Entries {
		for _, b := range p.Borders {
			if e.Kind == memmap.SoftReserved && e.Range.Start < b && b < e.Range.End {
				return fmt.Errorf("%v would be given to the kernel as one range of memory, and another NUMA node begins in it at %#x", e.Range, b)
			}
		}
	}
	return nil
}

func isKind(m memmap.Map, at uint64, kind memmap.Kind) bool {
	return slices.ContainsFunc(m.Entries, func(e memmap.Entry) bool {
		return e.Range.Start <= at && at < e.Range.End && e.Kind == kind
	})
}

func isRAM(m memmap.Map, at uint64) bool {
	ram := false
	for _, e := range m.Entries {
		if e.Range.Start <= at && at < e.Range.End {
			if e.Kind != memmap.RAM {
				return false
			}
			ram = true
		}
	}
	return ram
}

// CheckHeader proves that h describes shown, a part of the dumped memory of p:
// each byte exactly once at its own physical address, apart from the alias of
// the kernel's text. It also proves that h reads no memory that the capture
// kernel uses as RAM.
func CheckHeader(p *Plan, shown phys.Set, h elfcore.Header) error {
	readable := p.Destination.Union(p.Preserved)
	if err := elfcore.Check(h, readable); err != nil {
		return err
	}
	for _, n := range h.Notes {
		if r, ok := phys.Sized(n.Offset, n.Size); !ok || !readable.Contains(r) {
			return fmt.Errorf("note at %#x is read at %#x, which is not preserved", n.Phys, n.Offset)
		}
	}
	var covered phys.Set
	for _, l := range h.Loads {
		r, ok := phys.Sized(l.Phys, l.Size)
		if !ok {
			return fmt.Errorf("load at %#x wraps", l.Phys)
		}
		covered = covered.Union(phys.Set{r})
		for _, c := range p.Copies {
			if x := c.SrcRange().Intersect(r); !x.Empty() && l.Offset-l.Phys != c.Dst-c.Src {
				return fmt.Errorf("load of %v is read at %#x, its copy is elsewhere", r, l.Offset)
			}
		}
		for _, k := range p.Preserved {
			if k.Overlaps(r) && l.Offset != l.Phys {
				return fmt.Errorf("load of %v, which is preserved in place, is read at %#x", r, l.Offset)
			}
		}
	}
	if missing := shown.Minus(covered); len(missing) > 0 {
		return fmt.Errorf("dumped memory %v is in no load", missing)
	}
	if extra := covered.Minus(shown.Intersect(p.Dumped())); len(extra) > 0 {
		return fmt.Errorf("loads show %v, which is not dumped memory", extra)
	}
	return nil
}
