package wire

import (
	"bytes"
	"encoding/json"
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
	last := Run{PFN: 1<<40 - 1, Count: 1}
	if got, err := last.Range(); err != nil || got.End != 4096*phys.TiB {
		t.Errorf("%+v.Range() = %v, %v; want the last page of 52 bits", last, got, err)
	}
	for _, r := range []Run{
		{PFN: 1 << 60, Count: 1}, {PFN: 1, Count: 1 << 60}, {PFN: 1 << 40, Count: 1}, {PFN: 1<<40 - 1, Count: 2},
		{PFN: 1, Count: MaxPaintMiB<<8 + 1}, {PFN: ^uint64(0), Count: 1},
	} {
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

// FuzzMessage reads a line as the rig does: what a crash cut off is one, too.
func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"t":1.5,"event":"boot","boot":{"kind":"plain","release":"6.12.0","cmdline":"quiet","cpus":2,"iomem":"0-1 : RAM\n"}}`))
	f.Add([]byte(`{"id":1,"t":2,"result":{"exit":-1,"stdout":"out","stderr":""}}`))
	f.Add([]byte(`{"id":2,"t":3,"pages":[{"p":1048576,"i":0,"n":2},{"p":1099511627776,"i":2,"n":1}],"data":"AAE="}`))
	f.Add([]byte(`{"id":3,"error":"cut o`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m := roundTrip[Message](t, line)
		for _, r := range m.Pages {
			mem, err := r.Range()
			switch {
			case err != nil && mem != (phys.Range{}):
				t.Errorf("%+v: %v, and %v", r, mem, err)
			case err == nil && (mem.End < mem.Start || mem.End > 4096*phys.TiB || mem.Start/phys.PageSize != r.PFN || mem.Size()/phys.PageSize != r.Count):
				t.Errorf("%+v: %v", r, mem)
			}
		}
	})
}

// FuzzRequest reads a line as the guest does.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"id":1,"run":["sh","-c","exit 3"]}`))
	f.Add([]byte(`{"id":2,"paint":{"mib":64,"seed":18446744073709551615}}`))
	f.Add([]byte(`{"id":3,"trigger":{"kind":"sysrq-c","cpu":1,"timeout":2}}`))
	f.Add([]byte(`{"id":4,"go":true,"read":"/proc/iomem","sync":true}`))
	f.Add([]byte(`"id":5}`))
	f.Fuzz(func(t *testing.T, line []byte) { roundTrip[Request](t, line) })
}

// roundTrip returns line decoded, or the zero value. Encoded again it must be
// one line that means the same.
func roundTrip[T any](t *testing.T, line []byte) T {
	t.Helper()
	var m, none T
	if err := json.Unmarshal(line, &m); err != nil {
		return none
	}
	first, err := json.Marshal(m)
	if err != nil {
		t.Fatalf("%+v can be read, not written: %v", m, err)
	}
	if bytes.ContainsAny(first, "\r\n") {
		t.Errorf("%q is more than a line", first)
	}
	var again T
	if err := json.Unmarshal(first, &again); err != nil {
		t.Fatalf("%s: %v", first, err)
	}
	if second, err := json.Marshal(again); err != nil || !bytes.Equal(first, second) {
		t.Errorf("%s came back as %s, %v", first, second, err)
	}
	return m
}

// FuzzAddPage takes the runs of pages apart again.
func FuzzAddPage(f *testing.F) {
	f.Add([]byte{7, 8, 9, 11, 10, 10})
	f.Fuzz(func(t *testing.T, pfns []byte) {
		var runs []Run
		for i, pfn := range pfns {
			runs = AddPage(runs, uint64(pfn), uint64(i))
		}
		var got []byte
		for i, r := range runs {
			if r.Count == 0 || r.Index != uint64(len(got)) {
				t.Errorf("run %+v behind %d pages", r, len(got))
			}
			if i > 0 && runs[i-1].PFN+runs[i-1].Count == r.PFN {
				t.Errorf("runs %+v and %+v are one", runs[i-1], r)
			}
			for n := range r.Count {
				got = append(got, byte(r.PFN+n))
			}
		}
		if !bytes.Equal(got, pfns) {
			t.Errorf("pages %v came back as %v", pfns, got)
		}
	})
}
