package physmemtest_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/physmem/physmemtest"
)

func TestMemory(t *testing.T) {
	const at, to = 0x10ff0, 0x40000
	m := physmemtest.New(t, phys.Set{{Start: 0x10000, End: 0x20000}, {Start: 0x30000, End: 0x50000}})
	data := bytes.Repeat([]byte{0xa5}, 0x1020) // three pages, two of them in part
	if err := m.WritePhys(data, at); err != nil {
		t.Fatal(err)
	}
	if err := m.Copy([]phys.Copy{{Src: 0x10000, Dst: to, Size: 0x4000}}, 2, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.Zero(phys.Range{Start: at + 1, End: at + 0x101f}); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 0x4000)
	copy(want[at-0x10000:], data)
	got := make([]byte, len(want))
	if err := m.ReadPhys(got, to); err != nil || !bytes.Equal(got, want) {
		t.Errorf("copied memory differs from what was written (%v)", err)
	}
	clear(want[at+1-0x10000:][:0x101e])
	if got := m.Get(phys.Range{Start: 0x10000, End: 0x14000}); !bytes.Equal(got, want) {
		t.Error("cleared memory differs: want its first and its last byte only")
	}
	if diff := cmp.Diff([]uint64{0x10000, 0x12000}, m.Pages(phys.Range{Start: 0x10000, End: 0x20000})); diff != "" {
		t.Errorf("pages (-want +got):\n%s", diff)
	}
	accesses := []physmemtest.Access{
		{Op: physmemtest.Write, Range: phys.Range{Start: at, End: at + 0x1020}},
		{Op: physmemtest.Copy, Range: phys.Range{Start: to, End: to + 0x4000}},
		{Op: physmemtest.Zero, Range: phys.Range{Start: at + 1, End: at + 0x101f}},
	}
	if diff := cmp.Diff(accesses, m.Writes()); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
	if again := m.Writes(); again != nil {
		t.Errorf("writes are told twice: %v", again)
	}
}

func TestMemoryRefuses(t *testing.T) {
	no := errors.New("no")
	tests := []struct {
		name string
		do   func(m *physmemtest.Memory) error
		want error
	}{
		{"read of a hole", func(m *physmemtest.Memory) error { return m.ReadPhys(make([]byte, 2), 0x1ffff) }, physmemtest.ErrHole},
		{"write to a hole", func(m *physmemtest.Memory) error { return m.WritePhys(make([]byte, 2), 0xffff) }, physmemtest.ErrHole},
		{"read that wraps", func(m *physmemtest.Memory) error { return m.ReadPhys(make([]byte, 2), ^uint64(0)) }, physmemtest.ErrHole},
		{"read of a fault", func(m *physmemtest.Memory) error { return m.ReadPhys(make([]byte, 2), 0x17fff) }, physmemtest.ErrFault},
		{"zero of a fault", func(m *physmemtest.Memory) error { return m.Zero(phys.Range{Start: 0x10000, End: 0x20000}) }, physmemtest.ErrFault},
		{"copy from a fault", func(m *physmemtest.Memory) error {
			return m.Copy([]phys.Copy{{Src: 0x18000, Dst: 0x10000, Size: 0x1000}}, 1, nil)
		}, physmemtest.ErrFault},
		{"copy to a hole", func(m *physmemtest.Memory) error {
			return m.Copy([]phys.Copy{{Src: 0x10000, Dst: 0x20000, Size: 0x1000}}, 1, nil)
		}, physmemtest.ErrHole},
		{"refused by the test", func(m *physmemtest.Memory) error {
			m.BeforeWrite = func(physmemtest.Access) error { return no }
			return m.WritePhys([]byte{1}, 0x10000)
		}, no},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := physmemtest.New(t, phys.Set{{Start: 0x10000, End: 0x20000}})
			m.Bad = phys.Set{{Start: 0x18000, End: 0x19000}}
			if err := tt.do(m); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if w := m.Writes(); w != nil {
				t.Errorf("what was refused is told as written: %v", w)
			}
		})
	}
}

// failures is a test that notes that it failed.
type failures struct {
	testing.TB
	n int
}

func (f *failures) Errorf(string, ...any) { f.n++ }

func TestWritable(t *testing.T) {
	var f failures
	m := physmemtest.New(&f, phys.Set{{Start: 0x10000, End: 0x20000}})
	m.Writable = phys.Set{{Start: 0x11000, End: 0x12000}}
	for _, addr := range []uint64{0x11000, 0x11ffe, 0x11fff, 0x10fff, 0x13000} {
		if err := m.WritePhys([]byte{1, 2}, addr); err != nil {
			t.Error(err)
		}
	}
	if f.n != 3 {
		t.Errorf("3 of 5 writes leave what is writable, %d failed the test", f.n)
	}
}

func TestUncached(t *testing.T) {
	m := physmemtest.New(t, phys.Set{{Start: 0x10000, End: 0x50000}})
	all := phys.Set{{Start: 0x10000, End: 0x40000}}
	if got := m.Uncached(all); len(got) != 0 {
		t.Errorf("uncached by default: %v, want none", got)
	}
	m.Device = phys.Set{{Start: 0x30000, End: 0x50000}}
	if diff := cmp.Diff(phys.Set{{Start: 0x30000, End: 0x40000}}, m.Uncached(all)); diff != "" {
		t.Errorf("uncached (-want +got):\n%s", diff)
	}
}
