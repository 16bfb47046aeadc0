package dumpfile_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
)

// readSome reads pages at the ends of memory, and a row across them, and
// checks what a Dump promises.
func readSome(t *testing.T, d vmcore.Dump) {
	info := d.Info()
	if !vmcore.ValidPageSize(info.PageSize) || len(info.Notes) > vmcore.MaxNotes {
		t.Fatalf("page size %d, notes of %d bytes", info.PageSize, len(info.Notes))
	}
	if c, ok := d.(vmcore.Counter); ok {
		if _, err := c.HeldSize(); err != nil {
			t.Logf("HeldSize: %v", err)
		}
	}
	page := make([]byte, info.PageSize)
	for i, r := range info.Memory {
		if i == 20 {
			break
		}
		for _, at := range []uint64{r.Start, r.Start + info.PageSize/2, r.End - 1, r.End - min(r.End, info.PageSize), r.End} {
			at = phys.AlignDown(at, info.PageSize)
			err := read(t, d, page, at)
			if pager, ok := d.(vmcore.Pager); ok && err == nil && !pager.Holds(phys.Range{Start: at, End: at + uint64(len(page))}) {
				t.Fatalf("page %#x is read, but not held", at)
			}
		}
		row := make([]byte, 3*info.PageSize)
		if read(t, d, row, r.Start+info.PageSize/2) == nil {
			again := make([]byte, 8)
			if err := d.ReadPhys(again, r.Start+info.PageSize); err != nil || !bytes.Equal(again, row[info.PageSize/2:][:8]) {
				t.Fatalf("read %#x again: % x, error %v", r.Start+info.PageSize, again, err)
			}
		}
	}
}

// read reads p and checks the error.
func read(t *testing.T, d vmcore.Dump, p []byte, at uint64) error {
	err := d.ReadPhys(p, at)
	var m *vmcore.MissingError
	if err == nil {
		return nil
	}
	if !errors.As(err, &m) {
		t.Fatalf("read %#x: %v is no MissingError", at, err)
	}
	if want, ok := phys.Sized(at, uint64(len(p))); m.Range.Empty() || ok && !want.Contains(m.Range) {
		t.Fatalf("read %d bytes at %#x: %v is missing", len(p), at, m.Range)
	}
	return err
}
