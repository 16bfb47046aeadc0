//go:build linux

// Measure compares the payload's way to copy with memcpy, as init of the
// payload's kernel, and the ways to read preserved memory, in a capture boot
// after `warmcore save --read dax`, which leaves the dax devices to be read. It
// prints JSON.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/physmem"
)

// rounds is how often everything is measured, in turn, so that noise of the
// host hits all alike.
const rounds = 9

// Result is what was measured: bytes per second, one number a round.
type result struct {
	Bytes      uint64    `json:"bytes"` // copied or read each time
	Memcpy     []float64 `json:"memcpy,omitempty"`
	Memcpy2    []float64 `json:"memcpy_2_cpus,omitempty"`
	Copy1      []float64 `json:"copy_1_worker,omitempty"`
	Copy2      []float64 `json:"copy_2_workers,omitempty"`
	VmcoreMmap []float64 `json:"vmcore_mmap,omitempty"`
	VmcoreRead []float64 `json:"vmcore_read,omitempty"`
	DaxMmap    []float64 `json:"dax_mmap,omitempty"`
}

func main() {
	what := readVmcore
	if os.Getpid() == 1 {
		what = copyMemory
	}
	if err := what(); err != nil {
		fmt.Fprintln(os.Stderr, "measure:", err)
		os.Exit(1)
	}
	if os.Getpid() == 1 {
		select {} // the host ends the machine
	}
}

const size = 96 << 20

// sample is one thing to measure; before and after, which may be nil, are not
// part of the time.
type sample struct {
	rates              *[]float64
	before, run, after func() error
}

// measureAll takes rounds of all samples, in turn, and prints r, into which
// their rates point.
func measureAll(r *result, samples ...sample) error {
	r.Bytes = size
	for range rounds {
		for _, s := range samples {
			runtime.GC()
			if s.before != nil {
				if err := s.before(); err != nil {
					return err
				}
			}
			began := time.Now()
			if err := s.run(); err != nil {
				return err
			}
			*s.rates = append(*s.rates, size/time.Since(began).Seconds())
			if s.after != nil {
				if err := s.after(); err != nil {
					return err
				}
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// free is memory that nothing uses on a machine of 2 GiB on which only the
// payload's kernel runs.
const free = 640 << 20

// copyMemory is for the payload's kernel, confined to its window.
func copyMemory() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, syscall.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	mem, err := physmem.Open("/dev/mem", true)
	if err != nil {
		return err
	}
	defer mem.Close()
	// Memory that nobody has written is one page of zeroes for the host.
	area, err := mem.Map(phys.Range{Start: free, End: free + 2*size})
	if err != nil {
		return err
	}
	for i := range area.Bytes() {
		area.Bytes()[i] = byte(i >> 8)
	}
	if err := area.Close(); err != nil {
		return err
	}
	var r result
	return measureAll(&r,
		memcpyOn(mem, 1, &r.Memcpy),
		memcpyOn(mem, 2, &r.Memcpy2),
		copyOn(1, &r.Copy1),
		copyOn(2, &r.Copy2))
}

// memcpyOn copies between areas that are mapped already and not yet touched: the
// payload too sees each page once, and no TLB knows it.
func memcpyOn(mem *physmem.Memory, cpus int, rates *[]float64) sample {
	var src, dst *physmem.Mapping
	return sample{
		rates: rates,
		before: func() (err error) {
			if src, err = mem.Map(phys.Range{Start: free, End: free + size}); err != nil {
				return err
			}
			dst, err = mem.Map(phys.Range{Start: free + size, End: free + 2*size})
			return err
		},
		run: func() error {
			var wg sync.WaitGroup
			for i := range cpus {
				begin, end := size/cpus*i, size/cpus*(i+1)
				wg.Go(func() { copy(dst.Bytes()[begin:end], src.Bytes()[begin:end]) })
			}
			wg.Wait()
			return nil
		},
		after: func() error { return errors.Join(src.Close(), dst.Close()) },
	}
}

// copyOn copies as the payload does, on that many CPUs: one worker alone
// would leave part of its work to a second CPU. What Copy leaves mapped is not
// part of the time: the payload leaves it to the kernel that comes next.
func copyOn(cpus int, rates *[]float64) sample {
	var mem *physmem.Memory
	return sample{
		rates: rates,
		before: func() (err error) {
			runtime.GOMAXPROCS(cpus)
			mem, err = physmem.Open("/dev/mem", true)
			return err
		},
		run: func() error {
			return mem.Copy([]phys.Copy{{Src: free, Dst: free + size, Size: size}}, cpus, nil)
		},
		after: func() error { runtime.GOMAXPROCS(runtime.NumCPU()); return mem.Close() },
	}
}

func readVmcore() error {
	var r result
	dax, err := filepath.Glob("/dev/dax*")
	if err != nil || len(dax) == 0 {
		return errors.Join(err, errors.New("no dax device"))
	}
	return measureAll(&r,
		sample{rates: &r.VmcoreRead, run: func() error { return read(size) }},
		// The first loads begin after the header and the notes, which are not
		// mapped in windows.
		sample{rates: &r.VmcoreMmap, run: func() error { return mapped("/proc/vmcore", syscall.MAP_PRIVATE, window) }},
		sample{rates: &r.DaxMmap, run: func() error { return mapped(dax[0], syscall.MAP_SHARED, 0) }})
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

// window is how much is mapped at a time.
const window = 16 << 20

// mapped maps windows of a file from an offset on and copies them out.
func mapped(path string, flags int, from int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for off := from; off < from+size; off += window {
		b, err := syscall.Mmap(int(f.Fd()), off, window, syscall.PROT_READ, flags)
		if err != nil {
			return fmt.Errorf("map %s at %#x: %w", path, off, err)
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
