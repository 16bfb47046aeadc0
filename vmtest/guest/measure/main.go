//go:build linux

// Measure runs in a capture boot before the release, where preserved memory
// lies open: it compares the payload's way to copy with memcpy, and the ways
// to read /proc/vmcore. It prints JSON.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/physmem"
)

// rounds is how often everything is measured, in turn, so that noise of the
// host hits all alike.
const rounds = 5

// Result is what was measured: bytes per second, one number a round.
type result struct {
	Bytes      uint64    `json:"bytes"` // copied or read each time
	Memcpy     []float64 `json:"memcpy"`
	Copy1      []float64 `json:"copy_1_worker"`
	Copy2      []float64 `json:"copy_2_workers"`
	VmcoreMmap []float64 `json:"vmcore_mmap"`
	VmcoreRead []float64 `json:"vmcore_read"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "measure:", err)
		os.Exit(1)
	}
}

// run takes the start of preserved memory of which twice size may be
// overwritten, and size.
func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: measure START SIZE")
	}
	start, err := strconv.ParseUint(args[0], 0, 64)
	if err != nil {
		return err
	}
	size, err := strconv.ParseUint(args[1], 0, 64)
	if err != nil {
		return err
	}
	mem, err := physmem.Open("/dev/mem", true)
	if err != nil {
		return err
	}
	defer mem.Close()
	from, to := make([]byte, size), make([]byte, size)
	for i := range from {
		from[i] = byte(i)
	}
	copy(to, from)
	copies := []phys.Copy{{Src: start, Dst: start + size, Size: size}}
	r := result{Bytes: size}
	for range rounds {
		for _, m := range []struct {
			to   *[]float64
			what func() error
		}{
			{&r.VmcoreRead, func() error { return read(size) }},
			{&r.VmcoreMmap, func() error { return mapped(size) }},
			{&r.Memcpy, func() error { copy(to, from); return nil }},
			{&r.Copy1, func() error { return mem.Copy(copies, 1, nil) }},
			{&r.Copy2, func() error { return mem.Copy(copies, 2, nil) }},
		} {
			runtime.GC()
			began := time.Now()
			if err := m.what(); err != nil {
				return err
			}
			*m.to = append(*m.to, float64(size)/time.Since(began).Seconds())
		}
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// read reads as cp does.
func read(size uint64) error {
	f, err := os.Open("/proc/vmcore")
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for done := uint64(0); done < size; done += uint64(len(buf)) {
		if _, err := io.ReadFull(f, buf); err != nil {
			return err
		}
	}
	return nil
}

// mapped maps windows of 16 MiB, as save does, and copies them out.
func mapped(size uint64) error {
	f, err := os.Open("/proc/vmcore")
	if err != nil {
		return err
	}
	defer f.Close()
	const window = 16 << 20
	buf := make([]byte, 1<<20)
	// The first loads begin behind the header and the notes, which are not
	// mapped in windows.
	for off := uint64(window); off < size+window; off += window {
		b, err := syscall.Mmap(int(f.Fd()), int64(off), window, syscall.PROT_READ, syscall.MAP_PRIVATE)
		if err != nil {
			return fmt.Errorf("map /proc/vmcore at %#x: %w", off, err)
		}
		for part := range slices.Chunk(b, len(buf)) {
			copy(buf, part)
		}
		if err := syscall.Munmap(b); err != nil {
			return err
		}
	}
	return nil
}
