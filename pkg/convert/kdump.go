package convert

import (
	"io"

	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
)

// kdumpOutput writes a kdump-compressed dump.
type kdumpOutput struct {
	*job
	w    *kdump.Writer
	ends []uint64 // PFNs
}

func (j *job) openKDump(dst []io.WriterAt) error {
	ends, pages, err := j.keep.divide(len(dst))
	if err != nil {
		return err
	}
	info, physBase, err := j.describe()
	if err != nil {
		return err
	}
	last := (info.Memory[len(info.Memory)-1].End-1)/info.BlockSize + 1
	var parts []kdump.Part
	for i, d := range dst {
		parts = append(parts, kdump.Part{Dst: d, End: min(ends[i], last), Pages: pages[i]})
	}
	w, err := kdump.NewWriter(kdump.Meta{Info: &info, PhysBase: physBase, Level: j.DumpLevel, Codec: j.Codec}, parts...)
	if err != nil {
		return err
	}
	ends[len(ends)-1] = ^uint64(0)
	j.out = &kdumpOutput{j, w, ends}
	return nil
}

func (o *kdumpOutput) end(pfn uint64) uint64 {
	for _, e := range o.ends {
		if pfn < e {
			return e
		}
	}
	return ^uint64(0)
}

func (o *kdumpOutput) encoder() (func(*batch, uint64, []byte), error) {
	e, err := kdump.NewEncoder(o.Codec, o.Effort, int(o.info.BlockSize))
	if err != nil {
		return nil, err
	}
	var last fill
	return func(b *batch, pfn uint64, page []byte) {
		word, filled := same(page)
		switch {
		case filled && word == 0:
			// At every dump level: as with makedumpfile, a page
			// that was left out because it is zero can still be
			// read as zeroes.
			b.count.Zero++
			b.pages = append(b.pages, kdump.Page{PFN: pfn, Off: kdump.Zero})
			return
		case filled:
			b.count.Filled++
			// The equal page is in the same batch: the offsets of
			// other batches are not known yet.
			if last.batch == b && last.times == b.times && last.word == word {
				last.page.PFN = pfn
				b.pages = append(b.pages, last.page)
				return
			}
		}
		off := len(b.data)
		out, raw := e.Append(b.data, page)
		b.data = out
		p := kdump.Page{PFN: pfn, Off: int64(off), Size: uint32(len(out) - off), Raw: raw}
		if raw {
			b.count.Raw++
		}
		b.pages = append(b.pages, p)
		if filled {
			last = fill{b, b.times, word, p}
		}
	}, nil
}

func (o *kdumpOutput) place(b *batch) error {
	if len(b.pages) == 0 {
		return nil
	}
	var err error
	b.dst, b.off, err = o.w.Append(b.pages, int64(len(b.data)))
	return err
}

func (o *kdumpOutput) write(b *batch) error {
	if len(b.data) == 0 {
		return nil
	}
	_, err := b.dst.WriteAt(b.data, b.off)
	return err
}

func (o *kdumpOutput) finish() error {
	o.w.Unreadable(o.unreadableText())
	o.result.Size = o.w.Size()
	return o.w.Close()
}
