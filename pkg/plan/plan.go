// Package plan decides what each part of memory is used for, and what the next
// kernel is told about it. Package verdict decides whether a reset leads to a
// plain boot or a capture boot.
//
// Everything here is a function of values. The same firmware memory map and
// the same policy give the same plan at every reset, in a test, and in
// `warminit -n`; nothing in it comes from the registration, and this package
// doesn't import the one that reads it. pkg/payload carries a plan out.
//
// Words, used in the whole project:
//
//	window (W)       RAM that firmware and the payload use and overwrite at each reset
//	handoff area (H) what nobody overwrites: registration, crash record, payload log
//	boot memory (L)  where the normal kernel starts in a capture boot
//	destination (D)  where the payload saves L before a capture boot; as big as L
//	preserved        all other RAM: kept as the crashed kernel left it
//	lost             RAM that the boot loader overwrites outside the window
//	margin           RAM in front of lent memory that its driver keeps for itself
//
// What depends on the architecture is in [Arch], as data. Invariants, which
// [Check] proves without this package's own arithmetic: the parts are disjoint
// and are RAM; together they are all of the RAM, except for the first MiB of
// x86; D, and every preserved range after the info block at its start,
// consists of whole memory blocks; memory that is handed over has its info
// block outside of D; copies read each byte of L once and write only to D; the
// RAM of a capture boot is L and the first MiB of x86; no kernel uses the
// margin as RAM.
package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/binding"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

const (
	// MinBootMemory is the least boot memory with which a normal kernel and
	// its user space have a chance to save a dump.
	MinBootMemory = 256 * phys.MiB
	// defaultBootMemory is what distributions' kernels and initrds need
	// until memory is released, with some to spare; larger machines get a
	// sixteenth of RAM.
	defaultBootMemory = 512 * phys.MiB
	fourGiB           = 4 * phys.GiB
	// MaxParts is how many ranges a plan may have; the registration carries
	// them all to the agent.
	MaxParts = 1024
)

// Policy is what the payload image decides about memory.
type Policy struct {
	Window  phys.Set   // the payload kernel's own RAM above 1 MiB
	Handoff phys.Range // H
	// BlockSize is the size of the normal kernel's memory block, in bytes,
	// a power of two; 0 chooses it by the size of RAM.
	BlockSize uint64
	// BootMemory is the wanted size of L, in bytes; 0 chooses the larger
	// of 512 MiB and a sixteenth of RAM, but at most three eighths of RAM.
	BootMemory uint64
	Owner      Owner
}

// Input is everything that a plan depends on.
type Input struct {
	Arch     Arch
	Firmware memmap.Map // as firmware gave it, not as the payload sees it
	// Overwritten is memory outside the window that the boot loader or
	// firmware overwrites at each reset.
	Overwritten phys.Set
	// Nodes says which memory belongs to which NUMA node; it is empty if
	// there is only one node. It may name addresses that are not RAM.
	Nodes  []memmap.Node
	Policy Policy
}

// Plan says what each byte of RAM outside Arch.Low is for.
type Plan struct {
	Arch        Arch
	Firmware    memmap.Map
	BlockSize   uint64
	Window      phys.Set
	Handoff     phys.Range
	Boot        phys.Set // L
	Destination phys.Set // D
	Preserved   phys.Set
	Lost        phys.Set
	Margin      phys.Set
	Copies      []phys.Copy // L to D
	Owner       Owner

	// Borders are the addresses at which a NUMA node begins or ends. No
	// range that is handed over crosses one, because the kernel gives a
	// whole range to the node of its first byte (hmem_register_device in
	// drivers/dax/hmem/hmem.c, v6.12).
	Borders []uint64
}

// Refusal says why there can't be a plan: the rule, the range that breaks it,
// which may be empty, and what to do about it.
type Refusal struct {
	Rule  string
	Range phys.Range
	Todo  string
}

func (r *Refusal) Error() string {
	text := "no plan: " + r.Rule
	if !r.Range.Empty() {
		text += ": " + r.Range.String()
	}
	return text + "; " + r.Todo
}

// What to do, for each parameter that can be wrong.
const (
	todoMap     = "the payload must get the machine's whole memory map from firmware"
	todoWindow  = "correct warmcore.window=, or leave it out and confine the payload's kernel to the window"
	todoHandoff = "correct warmcore.handoff= (on arm64 the device tree's node warmcore,handoff)"
	todoSize    = "smaller warmcore.bootmem=, window or warmcore.block=, or more RAM"
	todoBlock   = "correct warmcore.block="
)

// Make returns the plan for a machine, or a *Refusal.
func Make(in Input) (*Plan, error) {
	if in.Arch == (Arch{}) {
		return nil, &Refusal{"no architecture", phys.Range{}, "plan for AMD64 or ARM64"}
	}
	low := phys.NewSet(in.Arch.Low)
	ram := in.Firmware.Set(memmap.RAM).Minus(low)
	if len(ram) == 0 {
		return nil, &Refusal{"the firmware's map has no RAM" + above(in.Arch), in.Arch.Low, todoMap}
	}
	if err := checkPolicy(in.Policy, in.Arch, ram); err != nil {
		return nil, err
	}
	p := &Plan{
		Arch:      in.Arch,
		Firmware:  in.Firmware,
		BlockSize: in.Policy.BlockSize,
		Window:    phys.NewSet(in.Policy.Window...),
		Handoff:   in.Policy.Handoff,
		Owner:     in.Policy.Owner,
	}
	p.Borders = borders(in.Nodes)
	if p.BlockSize == 0 {
		p.BlockSize = in.Arch.blockSize(ram[len(ram)-1].End)
	}
	granule := in.Arch.Granule
	p.Lost = pages(in.Overwritten, granule).Intersect(ram).Minus(p.Window)
	if x := p.Lost.Intersect(phys.Set{p.Handoff}); len(x) > 0 {
		return nil, &Refusal{"the boot loader overwrites the handoff area", x[0], todoHandoff}
	}
	free := ram.Minus(p.Window).Minus(phys.Set{p.Handoff}).Minus(p.Lost)
	// A part of a page can't be given to a kernel.
	p.Lost = p.Lost.Union(free.Minus(free.AlignIn(granule)))
	free = free.AlignIn(granule)
	p.Margin = p.windowMargin(free)
	free = free.Minus(p.Margin)
	if len(free) == 0 {
		return nil, &Refusal{"boot memory: there is no RAM outside window and handoff area", hull(ram), todoSize}
	}

	d := p.divide(free, bootTarget(in.Policy, ram.Size()))
	if d.boot.Size() < MinBootMemory {
		return nil, &Refusal{fmt.Sprintf("boot memory: want at least %s, there are %s of RAM outside window and handoff area, half of which is needed for the copy",
			phys.FormatSize(MinBootMemory), phys.FormatSize(free.Size())), hull(free), todoSize}
	}
	if have := d.destination.Size(); have < d.boot.Size() {
		return nil, &Refusal{fmt.Sprintf("destination: boot memory is %s, and whole memory blocks of %s for its copy are only %s",
			phys.FormatSize(d.boot.Size()), phys.FormatSize(p.BlockSize), phys.FormatSize(have)), longest(d.boot), todoSize}
	}
	p.Boot, p.Destination, p.Preserved, p.Margin = d.boot, d.destination, d.preserved, p.Margin.Union(d.margin)
	p.Copies = pair(p.Boot, p.Destination)
	if parts := p.Parts(); len(parts) > MaxParts {
		return nil, &Refusal{fmt.Sprintf("memory is in %d parts, more than the %d that the registration takes", len(parts), MaxParts),
			parts[MaxParts].Range, "larger warmcore.block=, or a firmware that leaves fewer holes"}
	}
	return p, nil
}

// borders returns the addresses at which nodes begin or end, in order. There
// is none between neighbouring ranges of one node.
func borders(nodes []memmap.Node) []uint64 {
	byID := map[uint32][]phys.Range{}
	for _, n := range nodes {
		byID[n.ID] = append(byID[n.ID], n.Range)
	}
	var at []uint64
	for _, ranges := range byID {
		for _, r := range phys.NewSet(ranges...) {
			at = append(at, r.Start, r.End)
		}
	}
	return phys.Boundaries(at)
}

// cut cuts the ranges of s at the borders of nodes.
func (p *Plan) cut(s phys.Set) (out []phys.Range) {
	for _, r := range s {
		for _, b := range p.Borders {
			if r.Start < b && b < r.End {
				out = append(out, phys.Range{Start: r.Start, End: b})
				r.Start = b
			}
		}
		out = append(out, r)
	}
	return out
}

// blocks returns the whole memory blocks in s. A block in which two nodes meet
// can be added to neither.
func (p *Plan) blocks(s phys.Set) phys.Set {
	var out []phys.Range
	for _, r := range p.cut(s) {
		if r = r.AlignIn(p.BlockSize); !r.Empty() {
			out = append(out, r)
		}
	}
	return phys.NewSet(out...)
}

// hull returns the range from the start to the end of s, which isn't empty.
func hull(s phys.Set) phys.Range { return phys.Range{Start: s[0].Start, End: s[len(s)-1].End} }

// above says, for messages, where RAM was searched.
func above(a Arch) string {
	if a.Low.Empty() {
		return ""
	}
	return " above 1 MiB"
}

func checkPolicy(policy Policy, arch Arch, ram phys.Set) error {
	h := policy.Handoff
	switch {
	case h.Size() < binding.MinHandoff:
		return &Refusal{fmt.Sprintf("the handoff area is smaller than %s", phys.FormatSize(binding.MinHandoff)), h, todoHandoff}
	case h.Size() > binding.MaxHandoff:
		return &Refusal{fmt.Sprintf("the handoff area is larger than %s", phys.FormatSize(binding.MaxHandoff)), h, todoHandoff}
	case h.Start%arch.Granule != 0 || h.End%arch.Granule != 0:
		return &Refusal{"the handoff area does not begin and end at a page", h, todoHandoff}
	case !ram.Contains(h):
		return &Refusal{"the handoff area is not RAM in the firmware's map", h, todoHandoff}
	case len(policy.Window) == 0:
		return &Refusal{"the window is empty", phys.Range{}, todoWindow}
	case policy.BlockSize&(policy.BlockSize-1) != 0 || policy.BlockSize != 0 && policy.BlockSize < 2*phys.MiB:
		return &Refusal{fmt.Sprintf("the memory block size %#x is not a power of two of at least 2 MiB", policy.BlockSize), phys.Range{}, todoBlock}
	}
	for _, w := range policy.Window {
		switch {
		case w.Start < arch.Low.End:
			return &Refusal{"the window reaches into the first MiB", w, todoWindow}
		case w.Start%arch.Granule != 0 || w.End%arch.Granule != 0:
			return &Refusal{"the window does not begin and end at a page", w, todoWindow}
		case w.Overlaps(h):
			return &Refusal{"the window overlaps the handoff area", w.Intersect(h), todoWindow}
		case !ram.Contains(w):
			return &Refusal{"the window is not RAM in the firmware's map", w, todoWindow}
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

// pair returns the copies that put the bytes of from, in order, into to.
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

// pages rounds each range outwards to whole pages of size bytes.
func pages(s phys.Set, size uint64) phys.Set {
	out := make([]phys.Range, 0, len(s))
	for _, r := range s {
		end, ok := phys.AlignUp(r.End, size)
		if !ok {
			end = phys.AlignDown(r.End, size)
		}
		out = append(out, phys.Range{Start: phys.AlignDown(r.Start, size), End: end})
	}
	return phys.NewSet(out...)
}

// Dumped returns the memory that a dump shows: all memory that the normal
// kernel uses for itself. W and D are lent for user pages only and are left
// out.
func (p *Plan) Dumped() phys.Set { return p.Boot.Union(p.Preserved) }

// Role is what a range of the plan is for.
type Role int

// The roles; the package comment explains the words.
const (
	RoleWindow Role = iota
	RoleHandoff
	RoleBoot
	RoleDestination
	RolePreserved
	RoleLost
	RoleMargin
	roles // how many there are
)

// String returns the role's word.
func (r Role) String() string {
	return [roles]string{"window", "handoff", "boot", "destination", "preserved", "lost", "margin"}[r]
}

// Part is a range of the plan and what it is for.
type Part struct {
	Role  Role
	Range phys.Range
}

// Parts returns all ranges of the plan, by role.
func (p *Plan) Parts() []Part {
	var out []Part
	for role := range roles {
		for _, r := range p.set(role) {
			out = append(out, Part{role, r})
		}
	}
	return out
}

// set returns the memory of a role.
func (p *Plan) set(r Role) phys.Set {
	return [roles]phys.Set{p.Window, {p.Handoff}, p.Boot, p.Destination, p.Preserved, p.Lost, p.Margin}[r]
}

// String prints the plan: one line for each range, in the order of addresses,
// then what the payload copies.
func (p *Plan) String() string {
	parts := p.Parts()
	slices.SortFunc(parts, func(a, b Part) int { return cmp.Compare(a.Range.Start, b.Range.Start) })
	var b strings.Builder
	fmt.Fprintf(&b, "memory blocks of %s\n", phys.FormatSize(p.BlockSize))
	for _, x := range parts {
		fmt.Fprintf(&b, "%012x-%012x  %-11s  %s\n", x.Range.Start, x.Range.End-1, x.Role, phys.FormatSize(x.Range.Size()))
	}
	for _, c := range p.Copies {
		fmt.Fprintf(&b, "copy %012x -> %012x  %s\n", c.Src, c.Dst, phys.FormatSize(c.Size))
	}
	return b.String()
}
