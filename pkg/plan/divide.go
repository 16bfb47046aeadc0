package plan

import (
	"slices"

	"github.com/warmcore/warmcore/pkg/phys"
)

// division says what free memory is for.
type division struct {
	boot, destination, preserved, margin phys.Set
}

// divide chooses boot memory and its destination. Memory that is no whole
// block can't be hot-added and so can't be released: it is boot memory. So is
// the top of RAM, or its bottom, where the architecture wants that. Then boot
// memory grows by whole blocks, from the lowest until half of it is below
// 4 GiB, where old devices can reach it, and from the top down, until it is
// large enough, and has a piece of three eighths for a large initrd.
func (p *Plan) divide(free phys.Set, target uint64) division {
	d, ok := p.grow(free, target, true)
	if !ok {
		d, _ = p.grow(free, target, false)
	}
	return d
}

// grow does that. With heads, the first block of each piece of memory in front
// of which there is no room for an info block is boot memory, because it could
// not be released. Where even the least boot memory has no destination as
// large, that is what grow returns, and false.
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
			next = first // the bottom is the piece that grows
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

// room says whether the bytes in front of start can hold an info block: those
// of boot memory can be given up, the window and what the boot loader
// overwrites hold nothing to lose.
func (p *Plan) room(start uint64, boot phys.Set) bool {
	head, ok := p.head(start)
	if !ok || head.Empty() {
		return ok
	}
	return len(phys.Set{head}.Minus(boot).Minus(p.Window).Minus(p.Lost).Minus(p.Margin)) == 0
}

// lentBefore says whether the window in front of start, in which an info block
// would have room, is lent up to there. If another node begins at start, it is
// another range, and an info block would cost the window its last block.
func (p *Plan) lentBefore(start uint64) bool {
	head, ok := p.head(start)
	return ok && slices.Contains(p.Borders, start) && p.blocks(p.Window).Overlaps(head)
}

// head is where the info block of memory from start on lies.
func (p *Plan) head(start uint64) (phys.Range, bool) {
	if start < p.Arch.InfoBlock {
		return phys.Range{}, false
	}
	return phys.Range{Start: start - p.Arch.InfoBlock, End: start}, true
}

// complete finds a destination for boot memory in blocks, and finds the info
// blocks their room. It is false where there is no destination as large.
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
	// In front of the destination, which is lent in each boot, nobody else
	// may ever use the info block; in front of preserved memory it is hidden
	// in a capture boot only, and keeps what the crashed kernel had there.
	d.margin = d.giveUp(p, d.destination)
	d.preserved = d.preserved.Union(d.giveUp(p, d.preserved))
	return d, d.destination.Size() >= need
}

// giveUp takes the info blocks of s out of boot memory.
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

// top returns the highest blocks of r that hold size bytes, or all. Where an
// info block must lie in front of them, below is the block that gives it up
// and is boot memory otherwise, for which piece has a block more. room says
// whether there is room in front of r already.
func (p *Plan) top(r phys.Range, size uint64, room bool) (piece, below phys.Range) {
	count := r.Size() / p.BlockSize
	want := (size + p.BlockSize - 1) / p.BlockSize
	switch {
	case p.Arch.InfoBlock == 0 || room && want+1 >= count:
		want = min(want, count)
		if p.Arch.InfoBlock > 0 {
			want = count // the room is in front of all of r
		}
		return phys.Range{Start: r.End - want*p.BlockSize, End: r.End}, phys.Range{}
	case count == 1:
		return phys.Range{}, phys.Range{} // it would have to be both
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

// windowMargin returns the info blocks that lie in front of the window.
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

// Lendable is W and D as far as they are whole memory blocks that the kernel
// can be given.
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

// Hidden is the memory that the normal kernel must not touch by itself and can
// be given later: what is lendable, in a capture boot what is preserved, and
// the info blocks in front of each range.
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
		// What of an info block lies in the window, or is overwritten at each
		// reset, is no part's.
		first, ok := phys.AlignUp(r.Start, p.BlockSize)
		head, ok2 := p.head(first)
		if head.End = r.Start; ok && ok2 && p.Window.Union(p.Lost).Contains(head) {
			s = s.Union(phys.Set{head})
		}
	}
	return s
}
