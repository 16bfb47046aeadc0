package convert_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/warmcore/warmcore/pkg/convert"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

// TestConvertPartsOfPages: segments that begin and end inside of a page, and
// that hold less than they describe. What of a page is there is kept, with
// zeroes where there is nothing.
func TestConvertPartsOfPages(t *testing.T) {
	// Offsets of fields of the second program header, the first PT_LOAD.
	const (
		phdr   = 64 + 56
		offset = phdr + 8
		paddr  = phdr + 24
		filesz = phdr + 32
		memsz  = phdr + 40
	)
	s := vmcoretest.Parse(t, "vmcoreinfo OSRELEASE=6.1\nvmcoreinfo PAGESIZE=4096\nload 0xffff888000010000 0x10000 0x4000\n0x10000-0x14000 raw random 1")
	base := s.ELF(t)
	at := binary.LittleEndian.Uint64(base[offset:])
	for _, tt := range []struct {
		name        string
		skip        uint64 // bytes at the start that are no memory
		held, whole uint64 // bytes from 0x10000 on that are in the file, and that are memory
	}{
		{"whole pages", 0, 0x4000, 0x4000},
		{"begins inside", 0x123, 0x4000, 0x4000},
		{"ends inside", 0, 0x3801, 0x3801},
		{"less in the file", 0, 0x2801, 0x4000},
		{"less in the file, to a page", 0, 0x3000, 0x4000},
		{"all of it", 0xf01, 0x2001, 0x3fff},
		{"inside of one page", 0x123, 0x456, 0x789},
	} {
		b := slices.Clone(base)
		for _, f := range []struct {
			at int
			v  uint64
		}{{offset, at + tt.skip}, {paddr, 0x10000 + tt.skip}, {filesz, tt.held - tt.skip}, {memsz, tt.whole - tt.skip}} {
			binary.LittleEndian.PutUint64(b[f.at:], f.v)
		}
		for _, to := range []convert.Format{convert.KDump, convert.ELF} {
			t.Run(tt.name+"/"+to.String(), func(t *testing.T) {
				got, r, _ := write(t, openBytes(t, b), nil, form{o: convert.Options{Format: to}, parts: 1})
				if len(r.Unreadable) > 0 || r.MoreUnreadable > 0 {
					t.Errorf("unreadable %v", r.Unreadable)
				}
				for i, p := range s.Pages {
					start := uint64(i) * 4096
					from, end := max(tt.skip, start), min(tt.held, start+4096)
					if from >= end {
						continue
					}
					b := make([]byte, end-from)
					if err := got.ReadPhys(b, 0x10000+from); err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(b, p.Data[from-start:end-start]) {
						t.Errorf("page %d is not what the source has", i)
					}
				}
			})
		}
	}
}
