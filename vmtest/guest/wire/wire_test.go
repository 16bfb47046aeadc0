package wire

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/phys"
)

func TestAddPage(t *testing.T) {
	for _, tt := range []struct {
		name string
		pfns []uint64
		want []Run
	}{
		{"none", nil, nil},
		{"one run", []uint64{7, 8, 9}, []Run{{7, 0, 3}}},
		{"hole", []uint64{7, 9}, []Run{{7, 0, 1}, {9, 1, 1}}},
		{"backwards", []uint64{9, 8}, []Run{{9, 0, 1}, {8, 1, 1}}},
		{"twice the same", []uint64{9, 9}, []Run{{9, 0, 1}, {9, 1, 1}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []Run
			for i, pfn := range tt.pfns {
				got = AddPage(got, pfn, uint64(i))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("AddPage of %v: -want +got\n%s", tt.pfns, diff)
			}
		})
	}
}

func TestRunRange(t *testing.T) {
	got, err := Run{PFN: 0x100000, Index: 5, Count: 2}.Range()
	want := phys.Range{Start: 4 * phys.GiB, End: 4*phys.GiB + 2*phys.PageSize}
	if err != nil || got != want {
		t.Errorf("Range() = %v, %v; want %v", got, err, want)
	}
	for _, r := range []Run{{PFN: 1 << 60, Count: 1}, {PFN: 1, Count: 1 << 60}} {
		if got, err := r.Range(); err == nil || got != (phys.Range{}) {
			t.Errorf("%+v.Range() = %v, %v; want an error", r, got, err)
		}
	}
}

func TestFill(t *testing.T) {
	page := func(seed, index uint64) []byte {
		b := make([]byte, phys.PageSize)
		if err := Fill(b, seed, index); err != nil {
			t.Fatal(err)
		}
		return b
	}
	a := page(1, 2)
	if !bytes.Equal(a, page(1, 2)) {
		t.Error("the same page filled twice differs")
	}
	for _, other := range [][2]uint64{{1, 3}, {2, 2}, {2, 1}, {0, 0}} {
		b := page(other[0], other[1])
		same := 0
		for i := range a {
			if a[i] == b[i] {
				same++
			}
		}
		// Two random bytes are equal in one of 256 cases: 16 a page,
		// and 14 more in the two words in clear.
		if same > 100 {
			t.Errorf("pages (1, 2) and %v have %d bytes in common", other, same)
		}
	}
	if err := Fill(make([]byte, 100), 1, 2); !errors.Is(err, ErrPageSize) {
		t.Errorf("Fill of 100 bytes: %v, want %v", err, ErrPageSize)
	}
}

func BenchmarkFill(b *testing.B) {
	page := make([]byte, phys.PageSize)
	b.SetBytes(int64(len(page)))
	for i := range b.N {
		if err := Fill(page, 1, uint64(i)); err != nil {
			b.Fatal(err)
		}
	}
}
