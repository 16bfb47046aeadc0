package physmem

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

// forEachFlush runs test with CLFLUSH, and with CLFLUSHOPT if the CPU has it.
func forEachFlush(t *testing.T, test func(t *testing.T)) {
	had := flushOpt
	defer func() { flushOpt = had }()
	flushOpt = false
	t.Run("CLFLUSH", test)
	if flushOpt = had; had {
		t.Run("CLFLUSHOPT", test)
	}
}

// forEachCopy runs test with SSE's stores, and with AVX's if the CPU has them.
func forEachCopy(t *testing.T, test func(t *testing.T)) {
	had := useAVX
	defer func() { useAVX = had }()
	useAVX = false
	t.Run("SSE", test)
	if useAVX = had; had {
		t.Run("AVX", test)
	}
}

// TestFlushOpt compares with what the kernel found.
func TestFlushOpt(t *testing.T) {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Contains(string(b), " clflushopt "); hasFlushOpt() != want {
		t.Errorf("CLFLUSHOPT: %v, /proc/cpuinfo says %v", !want, want)
	}
}

// TestCopyIsInMemory measures: a walk through memory from line to line takes far
// longer where the lines are in no cache. What is copied is the way, so each
// step waits for the one before, and no prefetcher knows the next.
func TestCopyIsInMemory(t *testing.T) { forEachCopy(t, testCopyIsInMemory) }

func testCopyIsInMemory(t *testing.T) {
	const lines = 4096 // 256 KiB
	src, dst := pages(t, lines*lineSize), pages(t, lines*lineSize)
	way := rand.New(rand.NewPCG(1, 2)).Perm(lines)
	for i, line := range way {
		binary.NativeEndian.PutUint64(src[line*lineSize:], uint64(way[(i+1)%lines]*lineSize))
	}
	end := uint64(0)
	walk := func(put func()) time.Duration {
		best := time.Hour // others use the machine, too
		for range 20 {
			put()
			start := time.Now()
			at := uint64(0)
			for range lines {
				at = binary.NativeEndian.Uint64(dst[at:])
			}
			best, end = min(best, time.Since(start)), end+at
		}
		return best
	}
	cached := walk(func() { copy(dst, src) })
	flushed := walk(func() { copy(dst, src); flush(dst) })
	through := walk(func() { copyThrough(dst, src, 0) })
	t.Logf("%d lines: in the caches %v, in memory %v, after a copy %v", lines, cached, flushed, through)
	if end != 0 {
		t.Errorf("the way ends at %#x, not where it began", end)
	}
	switch {
	case flushed < 2*cached:
		t.Log("this CPU has no caches that can be seen, or is emulated: nothing to compare")
	case through < (cached+flushed)/2:
		t.Error("what was copied is still in the caches")
	}
}

// BenchmarkCopy copies in turns, so that what else runs on the machine slows
// all of them alike, and reports the best speed of each.
func BenchmarkCopy(b *testing.B) {
	const size, piece = 256 << 20, 4 << 20
	src, dst := pages(b, size), pages(b, size)
	rand.NewChaCha8([32]byte{1}).Read(src)
	had := useAVX
	defer func() { useAVX = had }()
	kinds := []struct {
		name string
		copy func(dst, src []byte)
		best time.Duration
	}{
		{"memmove-GB/s", func(dst, src []byte) { copy(dst, src) }, time.Hour},
		{"memmove,flush-GB/s", func(dst, src []byte) { copy(dst, src); flush(dst) }, time.Hour},
		{"SSE-GB/s", func(dst, src []byte) { useAVX = false; copyThrough(dst, src, 0) }, time.Hour},
		{"AVX-GB/s", func(dst, src []byte) { useAVX = had; copyThrough(dst, src, 0) }, time.Hour},
	}
	at := 0
	for b.Loop() {
		for i := range kinds {
			start := time.Now()
			kinds[i].copy(dst[at:][:piece], src[at:][:piece])
			kinds[i].best = min(kinds[i].best, time.Since(start))
			at = (at + piece) % size
		}
	}
	for _, k := range kinds {
		b.ReportMetric(float64(piece)/float64(k.best), k.name)
	}
}
