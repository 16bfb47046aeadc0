// Package plan decides: which memory is for what, whether a reset leads to a
// plain boot or a capture boot, and what the next kernel is told.
//
// Everything here is a function of values. The same firmware memory map and
// the same policy give the same plan at every reset, in a test, and in
// `warminit -n`; nothing in it comes from the registration. pkg/payload
// carries a plan out.
//
// Words, used in the whole project:
//
//	window (W)       RAM that firmware and the payload use and overwrite at each reset
//	handoff area (H) what nobody overwrites: registration, crash record, payload log
//	boot memory (L)  where the normal kernel starts in a capture boot
//	destination (D)  where the payload copies L before; as big as L
//	preserved        all other RAM: kept as the crashed kernel left it
//	lost             RAM that the boot loader overwrites outside the window
//
// Invariants, which [Check] proves without this package's own arithmetic:
// the parts are disjoint and are RAM; together they are all of the RAM above
// 1 MiB; D, and every preserved range, is made of whole memory blocks; copies
// read L once and write only D; the RAM of a capture boot is L and the first
// MiB.
package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

// Low is the memory below 1 MiB. Firmware overwrites it and the kernel keeps
// out of it, so it is given to every kernel as firmware says and is in no
// dump: Linux kernel commit a799c2bd29d1 ("x86/setup: Consolidate early memory
// reservations") (in v5.13).
var Low = phys.Range{Start: 0, End: phys.MiB}

const (
	// MinBootMemory is the least boot memory with which a normal kernel and
	// its user space have a chance to save a dump.
	MinBootMemory = 256 * phys.MiB
	// defaultBootMemory is what distributions' kernels and initrds need until
	// memory is released, with room; larger machines get a sixteenth.
	defaultBootMemory = 512 * phys.MiB
	// largeMachine is from where x86 kernels may use memory blocks of up to
	// 2 GiB (probe_memory_block_size in arch/x86/mm/init_64.c, v6.12).
	largeMachine = 64 * phys.GiB
	fourGiB      = 4 * phys.GiB
	// maxHandoff bounds what the payload reads into its own memory. The ELF
	// core header of a machine with thousands of CPUs takes 1 MiB.
	maxHandoff = 16 * phys.MiB
)

// Policy is what the payload image decides about memory.
type Policy struct {
	Window  phys.Set   // the payload kernel's own RAM above 1 MiB
	Handoff phys.Range // H
	// BlockSize is the normal kernel's memory block, in bytes, a power of
	// two; 0 chooses by the size of RAM.
	BlockSize uint64
	// BootMemory is how large L is to be, in bytes; 0 chooses the larger of
	// 512 MiB and a sixteenth of RAM, but at most three eighths of RAM.
	BootMemory uint64
}

// Input is everything that a plan depends on.
type Input struct {
	Firmware memmap.Map // as firmware gave it, not as the payload sees it
	// Overwritten is memory outside the window that the boot loader or
	// firmware overwrites at each reset.
	Overwritten phys.Set
	Policy      Policy
}

// Plan says what each byte of RAM above 1 MiB is for.
type Plan struct {
	Firmware    memmap.Map
	BlockSize   uint64
	Window      phys.Set
	Handoff     phys.Range
	Boot        phys.Set // L
	Destination phys.Set // D
	Preserved   phys.Set
	Lost        phys.Set
	Copies      []phys.Copy // L to D
}

// Refusal is why there can't be a plan: a rule, and the range that breaks it.
type Refusal struct {
	Rule  string
	Range phys.Range
}

func (r *Refusal) Error() string { return fmt.Sprintf("no plan: %s: %v", r.Rule, r.Range) }

// Make returns the plan for a machine, or a *Refusal.
func Make(in Input) (*Plan, error) {
	ram := in.Firmware.Set(memmap.RAM).Minus(phys.Set{Low})
	if len(ram) == 0 {
		return nil, &Refusal{"the firmware's map has no RAM above 1 MiB", Low}
	}
	if err := checkPolicy(in.Policy, ram); err != nil {
		return nil, err
	}
	p := &Plan{
		Firmware:  in.Firmware,
		BlockSize: in.Policy.BlockSize,
		Window:    phys.NewSet(in.Policy.Window...),
		Handoff:   in.Policy.Handoff,
	}
	top := ram[len(ram)-1].End
	if p.BlockSize == 0 {
		p.BlockSize = 128 * phys.MiB
		if top >= largeMachine {
			p.BlockSize = 2 * phys.GiB
		}
	}
	p.Lost = pages(in.Overwritten).Intersect(ram).Minus(p.Window)
	if x := p.Lost.Intersect(phys.Set{p.Handoff}); len(x) > 0 {
		return nil, &Refusal{"the boot loader overwrites the handoff area", x[0]}
	}
	free := ram.Minus(p.Window).Minus(phys.Set{p.Handoff}).Minus(p.Lost)
	// Parts of pages can't be handed to anybody.
	p.Lost = p.Lost.Union(free.Minus(free.AlignIn(phys.PageSize)))
	free = free.AlignIn(phys.PageSize)

	if err := p.chooseBoot(free, bootTarget(in.Policy, ram.Size())); err != nil {
		return nil, err
	}
	blocks := free.Minus(p.Boot)
	p.Destination = takeTop(blocks, p.Boot.Size(), p.BlockSize)
	if have := p.Destination.Size(); have < p.Boot.Size() {
		return nil, &Refusal{fmt.Sprintf("destination: boot memory is %s, and whole memory blocks of %s for its copy are only %s",
			phys.FormatSize(p.Boot.Size()), phys.FormatSize(p.BlockSize), phys.FormatSize(have)), ram[len(ram)-1]}
	}
	p.Preserved = blocks.Minus(p.Destination)
	p.Copies = pair(p.Boot, p.Destination)
	return p, nil
}

func checkPolicy(policy Policy, ram phys.Set) error {
	h := policy.Handoff
	switch {
	case h.Size() < registration.SizeMin:
		return &Refusal{fmt.Sprintf("the handoff area is smaller than %s", phys.FormatSize(registration.SizeMin)), h}
	case h.Size() > maxHandoff:
		return &Refusal{fmt.Sprintf("the handoff area is larger than %s", phys.FormatSize(maxHandoff)), h}
	case h.Start%phys.PageSize != 0 || h.End%phys.PageSize != 0:
		return &Refusal{"the handoff area does not begin and end at a page", h}
	case !ram.Contains(h):
		return &Refusal{"the handoff area is not RAM in the firmware's map", h}
	case len(policy.Window) == 0:
		return &Refusal{"the window is empty", phys.Range{}}
	case policy.BlockSize&(policy.BlockSize-1) != 0 || policy.BlockSize != 0 && policy.BlockSize < 2*phys.MiB:
		return &Refusal{fmt.Sprintf("the memory block size %#x is not a power of two of at least 2 MiB", policy.BlockSize), phys.Range{}}
	}
	for _, w := range policy.Window {
		switch {
		case w.Start < Low.End:
			return &Refusal{"the window reaches into the first MiB", w}
		case w.Start%phys.PageSize != 0 || w.End%phys.PageSize != 0:
			return &Refusal{"the window does not begin and end at a page", w}
		case w.Overlaps(h):
			return &Refusal{"the window overlaps the handoff area", w.Intersect(h)}
		case !ram.Contains(w):
			return &Refusal{"the window is not RAM in the firmware's map", w}
		}
	}
	return nil
}

func bootTarget(policy Policy, ram uint64) uint64 {
	if policy.BootMemory != 0 {
		return policy.BootMemory
	}
	return max(MinBootMemory, min(max(defaultBootMemory, ram/16), ram/8*3))
}

// chooseBoot fills L. Memory that is no whole block can't be hot-added and so
// can't be released: it is L's first part. So is the top of RAM, because a
// kernel without SRAT knows a NUMA node only up to the end of the RAM that it
// boots with, and kmem refuses memory without one (dev_dax_kmem_probe in
// drivers/dax/kmem.c, v6.12). Then L grows by whole blocks, from the lowest
// until half of it is below 4 GiB, where old devices can reach it, and
// from the top down, until it is large enough, and has a piece of three
// eighths for a large initrd.
func (p *Plan) chooseBoot(free phys.Set, target uint64) error {
	blocks := free.AlignIn(p.BlockSize)
	p.Boot = free.Minus(blocks)
	if top := free[len(free)-1].End; len(blocks) > 0 && blocks[len(blocks)-1].End == top {
		block := phys.Range{Start: top - p.BlockSize, End: top}
		p.Boot = p.Boot.Union(phys.Set{block})
		blocks = blocks.Minus(phys.Set{block})
	}
	// L and D come from the same blocks, so each block for L costs two.
	slack := min(p.BlockSize/2, target/8)
	for len(blocks) > 0 {
		low := p.Boot.Intersect(phys.Set{{Start: 0, End: fourGiB}}).Size()
		if p.Boot.Size()+slack >= target && largest(p.Boot) >= target/8*3 {
			break
		}
		if p.Boot.Size()+p.BlockSize > blocks.Size()-p.BlockSize {
			break // there would be no destination for it
		}
		next := phys.Range{Start: blocks[len(blocks)-1].End - p.BlockSize, End: blocks[len(blocks)-1].End}
		if first := blocks[0].Start; low < target/2 && first < fourGiB {
			next = phys.Range{Start: first, End: first + p.BlockSize}
		}
		p.Boot = p.Boot.Union(phys.Set{next})
		blocks = blocks.Minus(phys.Set{next})
	}
	if p.Boot.Size() < MinBootMemory {
		return &Refusal{fmt.Sprintf("boot memory: want at least %s, there are %s of RAM outside window and handoff area, half of which is needed for the copy",
			phys.FormatSize(MinBootMemory), phys.FormatSize(free.Size())), free[len(free)-1]}
	}
	return nil
}

func largest(s phys.Set) (n uint64) {
	for _, r := range s {
		n = max(n, r.Size())
	}
	return n
}

// takeTop returns the highest whole blocks of s that together hold size bytes,
// or all of them.
func takeTop(s phys.Set, size, block uint64) phys.Set {
	var taken phys.Set
	for i := len(s) - 1; i >= 0 && taken.Size() < size; i-- {
		need := (size - taken.Size() + block - 1) / block * block
		r := s[i].AlignIn(block)
		r.Start = max(r.Start, r.End-min(need, r.Size()))
		taken = taken.Union(phys.Set{r})
	}
	return taken
}

// pair lays the bytes of from, in order, over those of to.
func pair(from, to phys.Set) (copies []phys.Copy) {
	to = slices.Clone(to)
	for _, src := range from {
		for !src.Empty() && len(to) > 0 {
			n := min(src.Size(), to[0].Size())
			copies = append(copies, phys.Copy{Src: src.Start, Dst: to[0].Start, Size: n})
			src.Start += n
			if to[0].Start += n; to[0].Empty() {
				to = to[1:]
			}
		}
	}
	return copies
}

// pages rounds each range outwards to whole pages.
func pages(s phys.Set) phys.Set {
	out := make([]phys.Range, 0, len(s))
	for _, r := range s {
		end, ok := phys.AlignUp(r.End, phys.PageSize)
		if !ok {
			end = phys.AlignDown(r.End, phys.PageSize)
		}
		out = append(out, phys.Range{Start: phys.AlignDown(r.Start, phys.PageSize), End: end})
	}
	return phys.NewSet(out...)
}

// Dumped is the memory that a dump shows: all that the normal kernel uses for
// itself. W and D are lent for user pages only and are left out.
func (p *Plan) Dumped() phys.Set { return p.Boot.Union(p.Preserved) }

// Lendable is W and D as far as they are whole memory blocks.
func (p *Plan) Lendable() phys.Set {
	return p.Window.AlignIn(p.BlockSize).Union(p.Destination)
}

// Ranges returns the plan as the registration carries it to the agent.
func (p *Plan) Ranges() []registration.PlanRange {
	var out []registration.PlanRange
	for _, part := range p.parts() {
		for _, r := range part.set {
			out = append(out, registration.PlanRange{Role: part.role, Range: r})
		}
	}
	return out
}

type part struct {
	name string
	role registration.Role
	set  phys.Set
}

func (p *Plan) parts() []part {
	return []part{
		{"window", registration.RoleWindow, p.Window},
		{"handoff", registration.RoleHandoff, phys.Set{p.Handoff}},
		{"boot", registration.RoleBoot, p.Boot},
		{"destination", registration.RoleDestination, p.Destination},
		{"preserved", registration.RolePreserved, p.Preserved},
		{"lost", registration.RoleLost, p.Lost},
	}
}

// String prints the plan, one range a line, in the order of addresses, with
// what the payload copies behind it.
func (p *Plan) String() string {
	type line struct {
		r    phys.Range
		name string
	}
	var lines []line
	for _, part := range p.parts() {
		for _, r := range part.set {
			lines = append(lines, line{r, part.name})
		}
	}
	slices.SortFunc(lines, func(a, b line) int {
		if a.r.Start < b.r.Start {
			return -1
		}
		return 1
	})
	var b strings.Builder
	fmt.Fprintf(&b, "memory blocks of %s\n", phys.FormatSize(p.BlockSize))
	for _, l := range lines {
		fmt.Fprintf(&b, "%012x-%012x  %-11s  %s\n", l.r.Start, l.r.End-1, l.name, phys.FormatSize(l.r.Size()))
	}
	for _, c := range p.Copies {
		fmt.Fprintf(&b, "copy %012x -> %012x  %s\n", c.Src, c.Dst, phys.FormatSize(c.Size))
	}
	return b.String()
}
