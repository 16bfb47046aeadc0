package vmcoretest

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/flattened"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
)

// Time is Info.Created of kdump files.
const Time = 1700000000

// Kdump returns the dump as a kdump file.
func (s *Spec) Kdump(t testing.TB) []byte {
	t.Helper()
	return s.kdump(t, nil)
}

// Parts returns the dump as the files of a split dump, one after the other at
// the PFNs in bounds: Parts(t, 0, 4, 8) makes two.
func (s *Spec) Parts(t testing.TB, bounds ...uint64) [][]byte {
	t.Helper()
	var parts [][]byte
	for i := 1; i < len(bounds); i++ {
		parts = append(parts, s.kdump(t, &phys.Range{Start: bounds[i-1], End: bounds[i]}))
	}
	return parts
}

func (s *Spec) kdump(t testing.TB, part *phys.Range) []byte {
	t.Helper()
	bits := (s.MaxMapNr + 7) / 8
	release := "6.1.0-test"
	if s.Release != "" {
		release = s.Release
	} else if _, r, ok := strings.Cut("\n"+s.VMCOREINFO, "\nOSRELEASE="); ok {
		release, _, _ = strings.Cut(r, "\n")
	}
	bitmapBlocks := 2 * ((bits + s.PageSize - 1) / s.PageSize)
	head := kdump.Header{
		Version:      s.Version,
		Uname:        vmcore.Uname{Sysname: "Linux", Nodename: "test", Release: release, Version: "#1", Machine: s.Machine, Domain: "(none)"},
		Seconds:      Time,
		Status:       s.Status,
		BlockSize:    uint32(s.PageSize),
		SubBlocks:    1,
		BitmapBlocks: uint32(bitmapBlocks),
		MaxMapNr32:   uint32(s.MaxMapNr),
		CPUs:         int32(len(s.CPUs)),
	}
	notes := s.Notes(t)
	sub := kdump.SubHeader{Level: s.Level, MaxMapNr: s.MaxMapNr}
	behind := s.PageSize + kdump.SubHeaderSize
	if len(notes) > 0 && s.Version >= 4 {
		sub.NoteOffset, sub.NoteSize = behind, uint64(len(notes))
	}
	if n := uint64(len(s.VMCOREINFO)); n > 0 && s.Version >= 3 {
		// At the end of the notes, without what pads it.
		at := uint64(bytes.LastIndex(notes, []byte(s.VMCOREINFO)))
		sub.VMCOREINFOOffset, sub.VMCOREINFOSize = behind+at, n
	}
	if part != nil {
		sub.Split, sub.StartPFN, sub.EndPFN = 1, part.Start, part.End
	}
	b := make([]byte, head.DescOffset())
	copy(b, head.AppendBinary(nil))
	copy(b[s.PageSize:], append(sub.AppendBinary(nil), notes...))
	var pages []Page
	for _, p := range s.Pages {
		pfn := p.Addr / s.PageSize
		b[head.BitmapOffset()+int64(pfn/8)] |= 1 << (pfn % 8)
		if p.Stored == Excluded || p.Stored == Unreadable {
			continue
		}
		b[head.BitmapOffset()+head.BitmapSize()+int64(pfn/8)] |= 1 << (pfn % 8)
		if part == nil || pfn >= part.Start && pfn < part.End {
			pages = append(pages, p)
		}
	}
	var data []byte
	var last kdump.Desc
	at := uint64(len(b) + len(pages)*kdump.DescSize)
	for _, p := range pages {
		switch {
		case !p.Held():
			last = kdump.Desc{}
		case !p.Same || last == (kdump.Desc{}):
			stored, how := compress(t, p), flags[p.Stored]
			if len(stored) >= len(p.Data) {
				stored, how = p.Data, 0
			}
			last = kdump.Desc{Offset: at + uint64(len(data)), Size: uint32(len(stored)), Flags: how}
			data = append(data, stored...)
		}
		b = last.AppendBinary(b)
	}
	b = append(b, data...)
	if text := vmcore.UnreadableText(s.Unreadable(), 0, s.PageSize); len(text) > 0 && s.Version >= 5 {
		sub.EraseOffset, sub.EraseSize = uint64(len(b)), uint64(len(text))
		copy(b[s.PageSize:], sub.AppendBinary(nil))
		b = append(b, text...)
	}
	return b
}

func compress(t testing.TB, p Page) []byte {
	t.Helper()
	switch p.Stored {
	case "zlib":
		var b bytes.Buffer
		w := zlib.NewWriter(&b)
		if _, err := w.Write(p.Data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	case "lzo":
		return CompressLZO(p.Data)
	case "snappy":
		return snappy.Encode(nil, p.Data)
	case "zstd":
		w, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		return w.EncodeAll(p.Data, nil)
	}
	return p.Data
}

// ELF returns the dump as an ELF core file.
func (s *Spec) ELF(t testing.TB) []byte {
	t.Helper()
	loads := s.Loads
	if loads == nil {
		for _, r := range s.Memory() {
			loads = append(loads, vmcore.Load{Virt: 0xffff888000000000 + r.Start, Phys: r.Start, Size: r.Size()})
		}
	}
	notes, err := vmcore.AppendUnreadableNote(s.Notes(t), vmcore.UnreadableText(s.Unreadable(), 0, s.PageSize))
	if err != nil {
		t.Fatal(err)
	}
	inFile := func(p Page) bool { return p.Held() || p.Stored == Unreadable }
	type segment struct{ typ, virt, phys, inFile, size uint64 }
	segments := []segment{{typ: 4, inFile: uint64(len(notes)), size: uint64(len(notes))}}
	contents := [][]byte{notes}
	for _, l := range loads {
		// Every row of held pages with what is excluded after it.
		for at := l.Phys; at < l.Phys+l.Size; {
			var content []byte
			start := at
			for p, ok := s.Page(at); ok && inFile(p) && at < l.Phys+l.Size; p, ok = s.Page(at) {
				if p.Data == nil {
					p.Data = make([]byte, s.PageSize)
				}
				content = append(content, p.Data...)
				at += s.PageSize
			}
			held := at - start
			for p, ok := s.Page(at); !(ok && inFile(p)) && at < l.Phys+l.Size; p, ok = s.Page(at) {
				at += s.PageSize
			}
			segments = append(segments, segment{1, l.Virt + start - l.Phys, start, held, at - start})
			contents = append(contents, content)
		}
	}
	le := binary.LittleEndian
	b := []byte("\x7fELF\x02\x01\x01")
	b = append(b, make([]byte, 9)...)
	b = le.AppendUint16(b, 4) // ET_CORE
	b = le.AppendUint16(b, vmcore.MachineOf(s.Machine))
	b = le.AppendUint32(b, 1)
	b = append(b, make([]byte, 8)...)
	b = le.AppendUint64(b, elfcore.EhdrSize) // e_phoff
	b = append(b, make([]byte, 12)...)
	for _, x := range []int{elfcore.EhdrSize, elfcore.PhdrSize, len(segments), 0, 0, 0} {
		b = le.AppendUint16(b, uint16(x))
	}
	off := uint64(elfcore.EhdrSize + elfcore.PhdrSize*len(segments))
	for _, x := range segments {
		b = le.AppendUint32(b, uint32(x.typ))
		b = le.AppendUint32(b, 0)
		for _, w := range []uint64{off, x.virt, x.phys, x.inFile, x.size, 0} {
			b = le.AppendUint64(b, w)
		}
		off += x.inFile
	}
	return append(b, bytes.Join(contents, nil)...)
}

// Flatten returns file in makedumpfile's flattened form: in records of size
// bytes, of which the first comes last, after one with other content that it
// overwrites.
func Flatten(t testing.TB, file []byte, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flattened.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	write := func(p []byte, off int) {
		if _, err := w.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	write(bytes.Repeat([]byte{0xee}, min(size, len(file))), 0)
	for off := size; off < len(file); off += size {
		write(file[off:min(off+size, len(file))], off)
	}
	write(file[:min(size, len(file))], 0)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
