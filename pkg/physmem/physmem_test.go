//go:build linux

package physmem

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/phys"
)

// A file can be mapped like /dev/mem; memory after its end faults.

// device returns a file of size bytes of noise as physical memory.
func device(t *testing.T, size int) (*Memory, []byte) {
	t.Helper()
	noise := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(noise)
	path := filepath.Join(t.TempDir(), "mem")
	if err := os.WriteFile(path, noise, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := OpenCached(path, true, phys.Set{{End: addressTop}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m, noise
}

func content(t *testing.T, m *Memory) []byte {
	t.Helper()
	b, err := os.ReadFile(m.file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReadWriteZero(t *testing.T) {
	// Larger than one window, and of no even size.
	m, want := device(t, int(MapWindow+3*phys.MiB+1234))
	tests := []struct {
		name string
		r    phys.Range
	}{
		{"page", phys.Range{Start: 0x1000, End: 0x2000}},
		{"one byte", phys.Range{Start: 0x1fff, End: 0x2000}},
		{"across pages", phys.Range{Start: 0x1ffe, End: 0x3003}},
		{"nothing", phys.Range{Start: 0x5000, End: 0x5000}},
		{"across windows", phys.Range{Start: 0x123, End: MapWindow + 2*phys.MiB + 17}},
		{"last byte", phys.Range{Start: uint64(len(want)) - 1, End: uint64(len(want))}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := make([]byte, tt.r.Size())
			if err := m.ReadPhys(got, tt.r.Start); err != nil {
				t.Fatal(err)
			}
			part := want[tt.r.Start:tt.r.End]
			if !bytes.Equal(got, part) {
				t.Error("read gives other bytes than the file has")
			}
			slices.Reverse(part)
			if err := m.WritePhys(part, tt.r.Start); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(content(t, m), want) {
				t.Error("write left other bytes in the file")
			}
			clear(part)
			if err := m.Zero(tt.r); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(content(t, m), want) {
				t.Error("zero left other bytes in the file")
			}
		})
	}
}

func TestCopy(t *testing.T) {
	const part = 4 * phys.MiB // what one of three workers copies
	for _, workers := range []int{0, 1, 3} {
		m, want := device(t, int(5*part))
		copies := []phys.Copy{
			{Src: 0, Dst: 2*part + 0x1000, Size: 2*part - 0x3000},
			{Src: 0x5000, Dst: 4*part + 0x2000, Size: 0x1000},
			{Src: 1, Dst: 4*part + 0x5003, Size: 77}, // nothing asks for alignment
			{Size: 0},
		}
		total := uint64(0)
		for _, c := range copies {
			copy(want[c.Dst:], want[c.Src:][:c.Size])
			total += c.Size
		}
		var seen []uint64
		if err := m.Copy(copies, workers, func(done uint64) { seen = append(seen, done) }); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content(t, m), want) {
			t.Errorf("%d workers: memory differs", workers)
		}
		if !slices.IsSorted(seen) || seen[len(seen)-1] != total {
			t.Errorf("%d workers: progress %v, want it to grow to %d", workers, seen, total)
		}
	}
}

// TestFaults reaches beyond the end of the file, where a mapping faults as
// memory with an uncorrectable error does.
func TestFaults(t *testing.T) {
	const size = 0x4000
	tests := []struct {
		name string
		do   func(m *Memory) error
		want string
	}{
		{"read", func(m *Memory) error { return m.ReadPhys(make([]byte, 16), size+8) }, "physical memory 00004008-00004017: fault: nothing answers there"},
		{"read across the end", func(m *Memory) error { return m.ReadPhys(make([]byte, 0x3000), size-0x1000) }, "fault"},
		{"write", func(m *Memory) error { return m.WritePhys(make([]byte, 16), size) }, "fault"},
		{"zero", func(m *Memory) error { return m.Zero(phys.Range{Start: 0, End: size + 0x1000}) }, "clear 00000000-00004fff: physical memory"},
		{"copy from", func(m *Memory) error { return m.Copy([]phys.Copy{{Src: size, Dst: 0, Size: 0x1000}}, 2, nil) },
			"copy 00004000-00004fff to 00000000-00000fff: physical memory 00004000-00004fff"},
		{"copy to", func(m *Memory) error { return m.Copy([]phys.Copy{{Src: 0, Dst: size, Size: 0x1000}}, 2, nil) }, "fault"},
		{"wrapping read", func(m *Memory) error { return m.ReadPhys(make([]byte, 2), ^uint64(0)) }, "beyond 64 bits"},
		{"beyond what a CPU addresses", func(m *Memory) error { return m.ReadPhys(make([]byte, 2), 1<<52) }, "beyond what a CPU addresses"},
		{"zero at the end of the address space", func(m *Memory) error { return m.Zero(phys.Range{Start: ^uint64(0) - 10, End: ^uint64(0)}) }, "beyond what a CPU addresses"},
		{"wrapping copy", func(m *Memory) error { return m.Copy([]phys.Copy{{Src: ^uint64(0) - 1, Dst: 0, Size: 16}}, 1, nil) }, "empty, or beyond"},
	}
	for _, tt := range tests {
		for _, kind := range []string{"all cached", "none cached"} {
			t.Run(tt.name+", "+kind, func(t *testing.T) {
				m, _ := device(t, size)
				m.cached = kinds[kind]
				if err := tt.do(m); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want an error with %q", err, tt.want)
				}
			})
		}
	}
}

// TestCopyFaultsAtEachLine reaches the end of the file at each line of what is
// copied, from and to: the end of memory that answers.
func TestCopyFaultsAtEachLine(t *testing.T) {
	forEachCopy(t, func(t *testing.T) {
		const size = 0x3000
		m, noise := device(t, size)
		for n := uint64(0); n <= 640; n += 64 {
			for _, c := range []phys.Copy{{Src: size - n, Dst: 0x40, Size: 704}, {Src: 0x40, Dst: size - n, Size: 704}} {
				err := m.Copy([]phys.Copy{c}, 1, nil)
				if !errors.Is(err, ErrFault) {
					t.Errorf("copy %v: %v, want a fault", c, err)
				}
			}
		}
		if got := content(t, m); len(got) != len(noise) {
			t.Errorf("the file has %d bytes, had %d", len(got), len(noise))
		}
		if err := m.Copy([]phys.Copy{{Src: 0, Dst: 0x1000, Size: 0x1000}}, 1, nil); err != nil {
			t.Errorf("a copy after the faults: %v", err)
		}
	})
}

func TestCopyStopsAtAFault(t *testing.T) {
	m, _ := device(t, 0x1000)
	copies := make([]phys.Copy, 100)
	for i := range copies {
		copies[i] = phys.Copy{Src: 0x10000, Dst: 0, Size: 0x1000}
	}
	called := false
	err := m.Copy(copies, 4, func(uint64) { called = true })
	if err == nil || called {
		t.Errorf("error %v, progress after it: %v; want an error and no progress", err, called)
	}
}

func TestOpen(t *testing.T) {
	if m, err := Open(filepath.Join(t.TempDir(), "nothing"), false); err == nil || m != nil {
		t.Errorf("open of no file: %v, %v; want an error", m, err)
	}
	written, _ := device(t, 0x1000)
	m, err := Open(written.file.Name(), false)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.ReadPhys(make([]byte, 8), 0); err != nil {
		t.Error(err)
	}
	if err := m.WritePhys(make([]byte, 8), 0); err == nil || !strings.Contains(err.Error(), "fault") {
		t.Errorf("write to memory opened for reading: %v, want a fault", err)
	}
}

func TestMappingOutlivesTheDevice(t *testing.T) {
	m, want := device(t, 0x3000)
	mapping, err := m.Map(phys.Range{Start: 0x1803, End: 0x2005})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.file.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(mapping.Bytes(), want[0x1803:0x2005]) || cap(mapping.Bytes()) != 0x802 {
		t.Errorf("mapping of %d bytes (capacity %d) differs from the file", len(mapping.Bytes()), cap(mapping.Bytes()))
	}
	if err := mapping.Close(); err != nil {
		t.Error(err)
	}
	m.file, _ = os.Open(os.DevNull) // for the cleanup
}

func TestShare(t *testing.T) {
	sized := func(sizes ...uint64) (copies []phys.Copy) {
		for _, n := range sizes {
			copies = append(copies, phys.Copy{Size: n})
		}
		return copies
	}
	tests := []struct {
		name    string
		copies  []phys.Copy
		workers int
		want    uint64
	}{
		{"nothing", nil, 2, 2 * phys.MiB},
		{"no workers", sized(32 * phys.MiB), 0, 32 * phys.MiB},
		{"a half each", sized(64*phys.MiB, 32*phys.MiB), 2, 48 * phys.MiB},
		{"rounded up", sized(9 * phys.MiB), 4, 4 * phys.MiB},
		{"a window at most", sized(512*phys.MiB, phys.GiB), 2, MapWindow},
		{"sizes that wrap", sized(^uint64(0), ^uint64(0)), 1, MapWindow},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := share(tt.copies, tt.workers); got != tt.want {
				t.Errorf("share %d, want %d", got, tt.want)
			}
		})
	}
}
