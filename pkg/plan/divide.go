package plan

import (
	"slices"

	"github.com/warmcore/warmcore/pkg/phys"
)

// division assigns free memory to the parts of a plan.
type division struct {
	boot, destination, preserved, margin phys.Set
}

// divide chooses boot memory and its destination. Memory outside of whole
// blocks can't be hot-added and so can't be released: it becomes boot memory.
// So does the top or the bottom of RAM if the architecture needs that. Then
// boot memory grows by whole blocks: first from the lowest up until half of it
// is below 4 GiB, where old devices can reach it, then from the top down,
// until it is large enough and has one piece of three eighths of its size, for
// a large initrd.
func (p *Plan) divide(free phys.Set, target uint64) division {
	d, ok := p.grow(free, target, true)
	if !ok {
		d, _ = p.grow(free, target, false)
	}
	return d
}

// grow does the work of divide. With heads, a piece of memory that has no room
// for an info block before it gives its first block to boot memory, because
// that block could not be released. If even the least boot memory has no
// destination of its size, grow returns that least boot memory and false.
func (p *Plan) grow(free phys.Set, target uint64, heads bool) (division, bool) {
	blocks := p.blocks(free)
	boot := free.Minus(blocks)
	take := func(start uint64) {
		block := phys.Set{{Start: start, End: start + p.BlockSize}}
		boot, blocks = boot.Union(block), blocks.Minus(block)
	}
	if top := free[len(free)-1].End; p.Arch.KeepTop && len(blocks) > 0 && blocks[len(blocks)-1].End == top {
		take(top - p.BlockSize)
	}
	if p.Arch.KeepBottom && len(blocks) > 0 && (len(boot) == 0 || boot[0].Start > blocks[0].Start) {
		take(blocks[0].Start)
	}
	if heads {
		for _, r := range p.cut(blocks) {
			if !p.room(r.Start, boot) || p.lentBefore(r.Start) {
				take(r.Start)
			}
		}
	}
	best, fits := p.complete(boot, blocks)
	// L and D come from the same blocks, so each block for L costs two.
	slack := min(p.BlockSize/2, target/8)
	for fits && len(blocks) > 0 && (best.boot.Size()+slack < target || longest(best.boot).Size() < target/8*3) {
		next := blocks[len(blocks)-1].End - p.BlockSize
		low := best.boot.Intersect(phys.Set{{Start: 0, End: fourGiB}}).Size()
		switch first := blocks[0].Start; {
		case low < target/2 && first < fourGiB:
			next = first
		case p.Arch.KeepBottom && longest(best.boot).Size() < target/8*3:
			next = first // from now on the bottom piece grows
		}
		take(next)
		d, ok := p.complete(boot, blocks)
		if !ok {
			break
		}
		best = d
	}
	return best, fits
}

// room says whether the bytes before start can hold an info block: boot memory
// can give up some, and the window and what the boot loader overwrites hold
// nothing of value.
func (p *Plan) room(start uint64, boot phys.Set) bool {
	head, ok := p.head(start)
	if !ok || head.Empty() {
		return ok
	}
	return len(phys.Set{head}.Minus(boot).Minus(p.Window).Minus(p.Lost).Minus(p.Margin)) == 0
}

// lentBefore says whether an info block before start would lie in the part of
// the window that is lent. If another NUMA node begins at start, memory from
// there on is a range of its own, and its info block would cost the window its
// last block.
func (p *Plan) lentBefore(start uint64) bool {
	head, ok := p.head(start)
	return ok && slices.Contains(p.Borders, start) && p.blocks(p.Window).Overlaps(head)
}

// head returns the place of the info block for memory that begins at start.
func (p *Plan) head(start uint64) (phys.Range, bool) {
	if start < p.Arch.InfoBlock {
		return phys.Range{}, false
	}
	return phys.Range{Start: start - p.Arch.InfoBlock, End: start}, true
}

// complete finds a destination for boot memory in blocks, and room for the
// info blocks. It returns false if there is no destination of that size.
func (p *Plan) complete(boot, blocks phys.Set) (division, bool) {
	d := division{boot: boot}
	need, have := boot.Size(), uint64(0)
	var pieces, givers []phys.Range
	for _, r := range slices.Backward(blocks) {
		if have >= need {
			break
		}
		piece, below := p.top(r, need-have, p.room(r.Start, boot))
		pieces, givers = append(pieces, piece), append(givers, below)
		have += piece.Size()
		need += below.Size()
	}
	d.destination = phys.NewSet(pieces...)
	d.boot = d.boot.Union(phys.NewSet(givers...))
	d.preserved = blocks.Minus(d.boot).Minus(d.destination)
	// The destination is lent in each boot, so nobody else may ever use
	// the info block before it. The info block before preserved memory is
	// hidden in a capture boot only, and keeps what the crashed kernel had
	// there.
	d.margin = d.giveUp(p, d.destination)
	d.preserved = d.preserved.Union(d.giveUp(p, d.preserved))
	return d, d.destination.Size() >= need
}

// giveUp takes the info blocks of s out of boot memory and returns them.
func (d *division) giveUp(p *Plan, s phys.Set) (heads phys.Set) {
	for _, r := range s {
		if head, _ := p.head(r.Start); p.room(r.Start, d.boot) {
			heads = append(heads, head)
		}
	}
	heads = phys.NewSet(heads...).Intersect(d.boot)
	d.boot = d.boot.Minus(heads)
	return heads
}

// top returns the highest blocks of r that hold size bytes, or all of r, as
// piece. If an info block must lie before them, below is the block that it is
// taken from; the rest of below is boot memory, so piece gets one more block.
// room says whether there is room before r already.
func (p *Plan) top(r phys.Range, size uint64, room bool) (piece, below phys.Range) {
	count := r.Size() / p.BlockSize
	want := (size + p.BlockSize - 1) / p.BlockSize
	switch {
	case p.Arch.InfoBlock == 0 || room && want+1 >= count:
		want = min(want, count)
		if p.Arch.InfoBlock > 0 {
			want = count // the room is before all of r
		}
		return phys.Range{Start: r.End - want*p.BlockSize, End: r.End}, phys.Range{}
	case count == 1:
		return phys.Range{}, phys.Range{} // the only block would have to be in both
	}
	start := r.End - min(want+1, count-1)*p.BlockSize
	return phys.Range{Start: start, End: r.End}, phys.Range{Start: start - p.BlockSize, End: start}
}

func longest(s phys.Set) (l phys.Range) {
	for _, r := range s {
		if r.Size() > l.Size() {
			l = r
		}
	}
	return l
}

// windowMargin returns the info blocks that lie before the window.
func (p *Plan) windowMargin(free phys.Set) (margin phys.Set) {
	if p.Arch.InfoBlock == 0 {
		return nil
	}
	for _, r := range p.blocks(p.Window) {
		if head, ok := p.head(r.Start); ok && free.Contains(head) {
			margin = append(margin, head)
		}
	}
	return phys.NewSet(margin...)
}

// Lendable returns the whole memory blocks of W and D, which the kernel can be
// given.
func (p *Plan) Lendable() phys.Set {
	var window phys.Set
	for _, r := range p.blocks(p.Window) {
		if p.Arch.InfoBlock > 0 && !p.room(r.Start, nil) {
			r.Start += p.BlockSize // the info block is in the first block
		}
		if !r.Empty() {
			window = append(window, r)
		}
	}
	return window.Union(p.Destination)
}

// Hidden returns the memory that the normal kernel must not touch by itself
// and can be given later: lendable memory, in a capture boot also preserved
// memory, and the info block before each range.
func (p *Plan) Hidden(kind Kind) phys.Set {
	s := p.Lendable()
	if kind == Capture {
		s = s.Union(p.Preserved)
	}
	if p.Arch.InfoBlock == 0 {
		return s
	}
	s = s.Union(p.Margin)
	for _, r := range s {
		// The bytes of an info block that lie in the window, or are
		// overwritten at each reset, are not part of the margin.
		first, ok := phys.AlignUp(r.Start, p.BlockSize)
		head, ok2 := p.head(first)
		if head.End = r.Start; ok && ok2 && p.Window.Union(p.Lost).Contains(head) {
			s = s.Union(phys.Set{head})
		}
	}
	return s
}
