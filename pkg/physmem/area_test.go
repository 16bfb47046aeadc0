//go:build linux

package physmem

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/pkg/phys"
)

func TestSplit(t *testing.T) {
	for _, unit := range []uint64{8, 64} {
		for addr := range 3 * unit {
			for n := range 8 * unit {
				head, units := split(addr, n, unit)
				switch {
				case head >= unit || units%unit != 0 || head+units > n || n-head-units >= unit:
					t.Errorf("split(%d, %d, %d) = %d bytes, %d in units; want less than a unit before and after, and whole units", addr, n, unit, head, units)
				case units > 0 && (addr+head)%unit != 0:
					t.Errorf("split(%d, %d, %d): units begin at %d, not at a multiple", addr, n, unit, addr+head)
				}
			}
		}
	}
}

// pages returns n bytes at the beginning of a page.
func pages(tb testing.TB, n int) []byte {
	tb.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

// TestCopyThrough copies each number of bytes to each alignment in a cache line,
// from each in a word, and looks at the bytes around them, too.
func TestCopyThrough(t *testing.T) { forEachCopy(t, testCopyThrough) }

func testCopyThrough(t *testing.T) {
	const most = 5*64 + 9
	memory, want := pages(t, 4096), make([]byte, 4096)
	noise := make([]byte, most+16)
	for i := range noise {
		noise[i] = byte(7*i + i>>8 + 1)
	}
	for to := range 64 {
		for from := range 16 {
			for n := 0; n <= most; n += 1 + from%3 {
				clear(memory)
				clear(want)
				copy(want[1024+to:], noise[from:][:n])
				copyThrough(memory[1024+to:][:n], noise[from:][:n], uint64(1024+to))
				if !bytes.Equal(memory, want) {
					t.Fatalf("%d bytes from %d to %d: memory differs", n, from, to)
				}
			}
		}
	}
}

// TestFlushKinds runs both instructions that a CPU may have.
func TestFlushKinds(t *testing.T) {
	forEachFlush(t, func(t *testing.T) {
		memory := bytes.Repeat([]byte{0x5a}, 4096)
		for n := range 300 {
			flush(memory[n : 2*n])
		}
		if !bytes.Equal(memory, bytes.Repeat([]byte{0x5a}, 4096)) {
			t.Error("flush changed memory")
		}
	})
}

// TestDevice moves bytes to and from what counts as device memory, at each
// alignment of either side.
func TestDevice(t *testing.T) {
	const size = 3 * 64
	noise := make([]byte, size+32)
	for i := range noise {
		noise[i] = byte(7*i + 1)
	}
	for off := range uint64(8) {
		for other := range uint64(8) {
			for _, n := range []uint64{0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65, 71, 72, 127, 128, 136, 137, 191} {
				name := fmt.Sprintf("%d bytes at %d from and to %d", n, off, other)
				// Memory comes from mmap in earnest; here 8-aligned will do.
				memory := make([]byte, size+16)
				a := area{bytes: memory[off:][:n], at: 0x1000 + off}

				want := bytes.Clone(memory)
				copy(want[off:], noise[other:][:n])
				a.store(noise[other:][:n])
				a.flush()
				if !bytes.Equal(memory, want) {
					t.Errorf("%s: store: got % x, want % x", name, memory, want)
				}

				got := make([]byte, size+16)
				want = bytes.Clone(got)
				copy(want[other:], noise[other:][:n])
				a.load(got[other:][:n])
				if !bytes.Equal(got, want) {
					t.Errorf("%s: load: got % x, want % x", name, got, want)
				}

				copy(memory, noise)
				want = bytes.Clone(memory)
				clear(want[off:][:n])
				a.clear()
				if !bytes.Equal(memory, want) {
					t.Errorf("%s: clear: got % x, want % x", name, memory, want)
				}
			}
		}
	}
}

func TestFlushKeeps(t *testing.T) {
	memory := bytes.Repeat([]byte{0x5a}, 4096)
	for _, at := range [][2]int{{0, 0}, {0, 1}, {1, 4096}, {63, 65}, {64, 128}, {4095, 4096}} {
		flush(memory[at[0]:at[1]])
	}
	if !bytes.Equal(memory, bytes.Repeat([]byte{0x5a}, 4096)) {
		t.Error("flush changed memory")
	}
}

// kinds are the sets of cached pages that the next tests run with.
var kinds = map[string]phys.Set{
	"all cached":  {{End: addressTop}},
	"none cached": nil,
	"mixed":       {{Start: 2 * 4096, End: 3 * 4096}, {Start: 4 * 4096, End: 9 * 4096}, {Start: 17 * 4096, End: 100 * 4096}},
}

// forEachKind runs test with 32 pages of noise.
func forEachKind(t *testing.T, test func(t *testing.T, m *Memory, noise []byte)) {
	for name, cached := range kinds {
		t.Run(name, func(t *testing.T) {
			m, noise := device(t, 32*4096)
			m.cached = cached
			test(t, m, noise)
		})
	}
}

func TestKindsReadWriteZero(t *testing.T) {
	forEachKind(t, func(t *testing.T, m *Memory, want []byte) {
		for _, r := range []phys.Range{
			{Start: 0, End: 32 * 4096},
			{Start: 4096 + 1, End: 12*4096 + 5},
			{Start: 2 * 4096, End: 3 * 4096},
			{Start: 3*4096 - 1, End: 3*4096 + 1},
			{Start: 16*4096 + 11, End: 16*4096 + 12},
		} {
			part := want[r.Start:r.End]
			got := make([]byte, r.Size())
			if err := m.ReadPhys(got, r.Start); err != nil || !bytes.Equal(got, part) {
				t.Errorf("read %v: not what is there (error %v)", r, err)
			}
			seen := 0
			if err := m.View(r, func(b []byte) {
				seen++
				if !bytes.Equal(b, part) {
					t.Errorf("view %v: not what is there", r)
				}
			}); err != nil || seen != 1 {
				t.Errorf("view %v: shown %d times (error %v), want once", r, seen, err)
			}
			for i := range part {
				part[i] ^= 0xa5
			}
			if err := m.WritePhys(part, r.Start); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(content(t, m), want) {
				t.Errorf("write %v: memory differs", r)
			}
		}
		r := phys.Range{Start: 4096 + 3, End: 20*4096 + 1}
		clear(want[r.Start:r.End])
		if err := m.Zero(r); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(content(t, m), want) {
			t.Errorf("zero %v: memory differs", r)
		}
	})
}

func TestKindsCopy(t *testing.T) {
	forEachKind(t, func(t *testing.T, m *Memory, want []byte) {
		copies := []phys.Copy{
			{Src: 0, Dst: 16 * 4096, Size: 10 * 4096}, // every mixture
			{Src: 2*4096 - 9, Dst: 28*4096 + 2, Size: 4096 + 20},
			{Src: 30*4096 + 1, Dst: 10*4096 + 6, Size: 1},
		}
		total := uint64(0)
		for _, c := range copies {
			copy(want[c.Dst:], want[c.Src:][:c.Size])
			total += c.Size
		}
		done := uint64(0)
		if err := m.Copy(copies, 1, func(n uint64) { done = n }); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content(t, m), want) {
			t.Error("memory differs")
		}
		if done != total {
			t.Errorf("progress ended at %d, want %d", done, total)
		}
	})
}

// TestKinds looks at what each part of memory is taken for.
func TestKinds(t *testing.T) {
	m, _ := device(t, 32*4096)
	m.cached = kinds["mixed"]
	type part struct {
		Start, Size uint64
		Cached      bool
	}
	var got []part
	all := phys.Range{Start: 1, End: 20 * 4096}
	for !all.Empty() {
		r, cached := m.run(all, 6*4096)
		got = append(got, part{r.Start, r.Size(), cached})
		if err := m.touch(r, func(a area) {
			if a.cached != cached || a.at != r.Start || uint64(len(a.bytes)) != r.Size() {
				t.Errorf("touch %v: area of %d bytes at %#x, cached %v; want cached %v", r, len(a.bytes), a.at, a.cached, cached)
			}
		}); err != nil {
			t.Error(err)
		}
		all.Start = r.End
	}
	want := []part{
		{1, 2*4096 - 1, false},
		{2 * 4096, 4096, true},
		{3 * 4096, 4096, false},
		{4 * 4096, 5 * 4096, true},
		{9 * 4096, 6 * 4096, false}, // the limit
		{15 * 4096, 2 * 4096, false},
		{17 * 4096, 3 * 4096, true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("parts (-want +got):\n%s", diff)
	}
	copies := []phys.Copy{
		{Src: 2 * 4096, Dst: 10 * 4096, Size: 3 * 4096},
		{Src: 4 * 4096, Dst: 6*4096 + 1, Size: 4 * 4096},
		{Src: ^uint64(0), Dst: 0, Size: 2},
	}
	wantWindows := []phys.Copy{
		{Src: 2 * 4096, Dst: 10 * 4096, Size: 4096},
		{Src: 3 * 4096, Dst: 11 * 4096, Size: 4096},
		{Src: 4 * 4096, Dst: 12 * 4096, Size: 4096},
		{Src: 4 * 4096, Dst: 6*4096 + 1, Size: 3*4096 - 1},
		{Src: 7*4096 - 1, Dst: 9 * 4096, Size: 4096 + 1},
		copies[2],
	}
	if diff := cmp.Diff(wantWindows, m.windows(copies, phys.MiB)); diff != "" {
		t.Errorf("windows (-want +got):\n%s", diff)
	}
	limited := []phys.Copy{{Src: 20 * 4096, Dst: 24 * 4096, Size: 2 * 4096}, {Src: 22 * 4096, Dst: 26 * 4096, Size: 5}}
	if diff := cmp.Diff(limited, m.windows([]phys.Copy{{Src: 20 * 4096, Dst: 24 * 4096, Size: 2*4096 + 5}}, 2*4096)); diff != "" {
		t.Errorf("windows of 8 KiB (-want +got):\n%s", diff)
	}
	slow := phys.Set{{Start: 2 * 4096, End: 5 * 4096}, {Start: 16*4096 + 5, End: 18 * 4096}}
	if diff := cmp.Diff(phys.Set{{Start: 3 * 4096, End: 4 * 4096}, {Start: 16*4096 + 5, End: 17 * 4096}}, m.Uncached(slow)); diff != "" {
		t.Errorf("uncached (-want +got):\n%s", diff)
	}
}

// TestDeviceIsNotGivenAway: nobody but this package may touch device memory.
func TestDeviceIsNotGivenAway(t *testing.T) {
	m, noise := device(t, 32*4096)
	m.cached = kinds["mixed"]
	for _, c := range []struct {
		name string
		r    phys.Range
		own  bool // memory itself, not a copy
	}{
		{"cached", phys.Range{Start: 4*4096 + 1, End: 9 * 4096}, true},
		{"device", phys.Range{Start: 3 * 4096, End: 4 * 4096}, false},
		{"begins cached", phys.Range{Start: 2 * 4096, End: 3*4096 + 1}, false},
		{"ends cached", phys.Range{Start: 4*4096 - 1, End: 5 * 4096}, false},
		{"device between", phys.Range{Start: 2 * 4096, End: 5 * 4096}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := m.View(c.r, func(b []byte) { b[0] ^= 0xff }); err != nil {
				t.Fatal(err)
			}
			got := content(t, m)[c.r.Start] != noise[c.r.Start]
			if got != c.own {
				t.Errorf("view shows the memory itself: %v, want %v", got, c.own)
			}
			mapping, err := m.Map(c.r)
			if c.own {
				if err != nil {
					t.Fatal(err)
				}
				mapping.Close()
				return
			}
			if mapping != nil || err == nil || !strings.Contains(err.Error(), "device memory") {
				t.Errorf("map: %v, %v; want an error that names device memory", mapping, err)
			}
		})
	}
}

func TestOpenCached(t *testing.T) {
	written, _ := device(t, 0x1000)
	pages := phys.Set{{Start: pageSize / 2, End: 3 * pageSize}}
	m, err := OpenCached(written.file.Name(), false, pages)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	want := phys.Set{{Start: pageSize, End: 3 * pageSize}} // a page is of one kind
	if allCached {
		want = phys.Set{{End: addressTop}}
	}
	if diff := cmp.Diff(want, m.cached); diff != "" {
		t.Errorf("cached (-want +got):\n%s", diff)
	}
}

// TestARM64 runs the tests of this file on arm64, emulated: there the loops
// are other code. Not those of faults, whose address the emulator loses.
func TestARM64(t *testing.T) {
	if runtime.GOARCH == "arm64" {
		return // they ran
	}
	// Go sees that this test depends on the files that it looks at itself.
	sources, err := filepath.Glob("*.*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range sources {
		if _, err := os.Stat(path); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "test", "-exec", "qemu-aarch64-static", "-v", "-run", "^Test(Split|CopyThrough|Device|Flush|Kinds|OpenCached)", ".")
	cmd.Env = append(os.Environ(), "GOARCH=arm64", "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	for _, name := range []string{"TestSplit", "TestCopyThrough", "TestDevice", "TestFlushKeeps", "TestKinds", "TestKindsReadWriteZero", "TestKindsCopy"} {
		if !strings.Contains(string(out), "--- PASS: "+name+" ") {
			t.Errorf("%s didn't run on arm64:\n%s", name, out)
		}
	}
}
