package vmcoretest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
)

// Check compares all pages of d with the text, and that what is missing is
// missing for the reason that the text gives.
func (s *Spec) Check(t testing.TB, d vmcore.Dump) {
	t.Helper()
	if got, want := d.Info().Memory.String(), s.Memory().String(); got != want {
		t.Errorf("memory is %s, want %s", got, want)
	}
	if got, want := d.Info().Unreadable.String(), s.Unreadable().String(); got != want {
		t.Errorf("unreadable is %s, want %s", got, want)
	}
	var held uint64
	// All pages, and the places beside them, and the end.
	at := []uint64{0, s.MaxMapNr*s.PageSize - s.PageSize, s.MaxMapNr * s.PageSize}
	for _, p := range s.Pages {
		at = append(at, p.Addr-min(p.Addr, s.PageSize), p.Addr, p.Addr+s.PageSize)
	}
	for _, at := range phys.Boundaries(at) {
		p, described := s.Page(at)
		b := make([]byte, s.PageSize)
		err := d.ReadPhys(b, at)
		if pager, ok := d.(vmcore.Pager); ok {
			want := described && p.Stored != Excluded && p.Stored != Unreadable
			if got := pager.Holds(phys.Range{Start: at, End: at + s.PageSize}); got != want {
				t.Errorf("Holds(%#x) is %v, want %v", at, got, want)
			}
		}
		if described && p.Held() {
			held += s.PageSize
			if err != nil || !bytes.Equal(b, p.Data) {
				t.Errorf("page %#x: error %v, content as in the text: %v", at, err, bytes.Equal(b, p.Data))
			}
			continue
		}
		want := vmcore.Hole
		switch {
		case described && p.Stored == Excluded:
			want = vmcore.Excluded
		case described && p.Stored == Unreadable:
			want = vmcore.Unreadable
		case described:
			want = vmcore.Unreadable
			held += s.PageSize
		}
		if got := Missing(err); got != want {
			t.Errorf("page %#x: error %v, want %v", at, err, want)
		}
	}
	if c, ok := d.(vmcore.Counter); ok {
		if got, err := c.HeldSize(); err != nil || got != held {
			t.Errorf("HeldSize is %#x, error %v, want %#x", got, err, held)
		}
	}
	s.checkAcross(t, d)
}

// checkAcross reads rows of pages, and from the middle of one into the next.
func (s *Spec) checkAcross(t testing.TB, d vmcore.Dump) {
	t.Helper()
	for _, r := range s.Memory() {
		for _, margin := range []uint64{0, 8, s.PageSize / 2} {
			in := phys.Range{Start: r.Start + margin, End: r.End - margin}
			got, want := make([]byte, in.Size()), make([]byte, in.Size())
			good := s.fill(want, in.Start)
			err := d.ReadPhys(got, in.Start)
			if good < in.Size() {
				var m *vmcore.MissingError
				if !errors.As(err, &m) || m.Range.Start != in.Start+good {
					t.Errorf("read %v: error %v, want what is missing at %#x", in, err, in.Start+good)
				}
			} else if err != nil {
				t.Errorf("read %v: %v", in, err)
			}
			if !bytes.Equal(got[:good], want[:good]) {
				t.Errorf("read %v: not the content of the text", in)
			}
		}
	}
}

// fill does what ReadPhys does, and returns how far it got.
func (s *Spec) fill(p []byte, addr uint64) (n uint64) {
	for n < uint64(len(p)) {
		in := addr % s.PageSize
		page, ok := s.Page(addr - in)
		if !ok || !page.Held() {
			return n
		}
		size := uint64(copy(p[n:], page.Data[in:]))
		n, addr = n+size, addr+size
	}
	return n
}

// Missing returns the reason of a *vmcore.MissingError, 0 for other errors.
func Missing(err error) vmcore.Reason {
	var m *vmcore.MissingError
	if !errors.As(err, &m) {
		return 0
	}
	return m.Reason
}

// Patch returns a copy of file with the bytes at off replaced by value, a
// little-endian number of size bytes.
func Patch(t testing.TB, file []byte, off, size int, value uint64) []byte {
	t.Helper()
	if off+size > len(file) {
		t.Fatalf("patch %d bytes at %#x of a file of %#x", size, off, len(file))
	}
	b := bytes.Clone(file)
	var word [8]byte
	binary.LittleEndian.PutUint64(word[:], value)
	copy(b[off:off+size], word[:])
	return b
}
