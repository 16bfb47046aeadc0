package dumpfilter_test

import (
	"testing"

	"github.com/warmcore/warmcore/pkg/dumpfilter"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// damaged is memory with other bytes at some places.
type damaged struct {
	*memory
	at   uint64
	junk []byte
}

func (d damaged) ReadPhys(p []byte, addr uint64) error {
	if err := d.memory.ReadPhys(p, addr); err != nil {
		return err
	}
	for i, b := range d.junk {
		if off := d.at + uint64(i) - addr; off < uint64(len(p)) {
			p[off] = b
		}
	}
	return nil
}

// FuzzDrop: whatever VMCOREINFO and the memory say, the work is bounded, only
// pages of the memory are left out, and each is counted once.
func FuzzDrop(f *testing.F) {
	var kernels []*kernel
	for _, i := range []int{0, 2} {
		for _, e := range []int{0, len(encodings) - 1} {
			k := newKernel(machines[i], encodings[e])
			populate(k)
			kernels = append(kernels, k)
			which := uint8(len(kernels) - 1)
			f.Add(which, []byte(k.text), uint32(0), []byte{}, uint32(0), uint32(1<<12-1))
			f.Add(which, []byte(k.text), uint32(rootAt), []byte("\x63\x00\x10\x00"), uint32(100), uint32(3000))
			f.Add(which, []byte(k.text), uint32(sectionAt), []byte("\xff\xff\xff\xff"), uint32(0x201), uint32(700))
			f.Add(which, []byte(k.text), uint32(sectionAt+0x100008), []byte("\x07\x00\xe0"), uint32(0), uint32(700))
			f.Add(which, []byte(k.text), uint32(k.at(0x400)), []byte("\x00\x00\x01\x00\x00\x00\x00\x00"), uint32(0x401), uint32(3))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, text []byte, at uint32, junk []byte, first, n uint32) {
		k := kernels[int(which)%len(kernels)]
		info, err := vmcoreinfo.Parse(text)
		if err != nil {
			return
		}
		n %= 1 << 12
		mem := damaged{&memory{ram: k.ram, pages: k.memory.pages}, uint64(at), junk}
		memory := phys.NewSet(phys.Range{Start: 0x3000, End: 0x280800}, phys.Range{Start: 0x300000, End: k.ram[0].End})
		filter, err := dumpfilter.New(mem, info, memory, dumpfilter.Level(which/uint8(len(kernels))%32))
		if err != nil {
			return
		}
		dst := make([]uint64, (n+63)/64)
		counts, err := filter.Drop(dst, uint64(first), uint64(n))
		if err != nil {
			if ones(dst) != 0 || counts != (dumpfilter.Counts{}) {
				t.Errorf("got error %v, and pages that are left out", err)
			}
			return
		}
		var pages, kept uint64
		for i := range uint64(n) {
			pfn := uint64(first) + i
			in := memory.Contains(phys.Range{Start: pfn * info.PageSize, End: (pfn + 1) * info.PageSize})
			if in {
				pages++
			}
			switch left := bit(dst, i); {
			case left && !in:
				t.Fatalf("page %#x is left out, and is no memory", pfn)
			case in && !left:
				kept++
			}
		}
		if counts.Kept != kept {
			t.Errorf("%d pages kept, but %d are counted", kept, counts.Kept)
		}
		all := counts.Zero + counts.Cache + counts.CachePrivate + counts.User + counts.Free + counts.HWPoison + counts.Offline + counts.Kept
		if all != pages {
			t.Errorf("%d pages are counted, want %d", all, pages)
		}
		// A read for every page of structures, twice, and five page tables
		// and two entries for a section.
		if limit := 20000; mem.reads > limit {
			t.Errorf("%d reads, want at most %d", mem.reads, limit)
		}
		if w := filter.Warnings(); len(w) > 10 {
			t.Errorf("%d warnings", len(w))
		}
	})
}
