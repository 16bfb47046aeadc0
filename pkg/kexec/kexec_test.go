//go:build linux

package kexec

import (
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/phys"
)

// TestLoadRefuses stops before the system call in each case: no test may load
// an image into the kernel that runs it.
func TestLoadRefuses(t *testing.T) {
	page := func(n uint64) phys.Segment {
		return phys.Segment{Name: "page", Range: phys.Range{Start: n * phys.PageSize, End: (n + 1) * phys.PageSize}}
	}
	many := make([]phys.Segment, MaxSegments+1)
	for i := range many {
		many[i] = page(uint64(i))
	}
	start, end, large := page(1), page(1), page(1)
	start.Range.Start++
	end.Range.End--
	large.Data = make([]byte, phys.PageSize+1)
	inverted := page(1)
	inverted.Range = phys.Range{Start: 0x3000, End: 0x1000}
	inverted.Data = []byte{1}
	empty := page(1)
	empty.Range.End = empty.Range.Start
	tests := []struct {
		name     string
		segments []phys.Segment
		want     string
	}{
		{"none", nil, "kexec_load of 0 segments: want 1 to 16"},
		{"too many", many, "kexec_load of 17 segments: want 1 to 16"},
		{"start inside a page", []phys.Segment{page(0), start}, "00001001-00001fff page: empty, not page aligned"},
		{"end inside a page", []phys.Segment{end}, "00001000-00001ffe page: empty, not page aligned"},
		{"more data than room", []phys.Segment{large}, "smaller than its 4097 bytes of data"},
		{"inverted range", []phys.Segment{inverted}, "smaller than its 1 bytes of data"},
		{"empty range", []phys.Segment{empty}, "00001000-empty page: empty"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := Load(0x1000, tt.segments, 0); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Load: %v, want an error with %q", err, tt.want)
			}
		})
	}
}
