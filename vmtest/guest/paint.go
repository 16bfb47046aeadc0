package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

// Bits of /proc/PID/pagemap's 64-bit entries (Documentation/admin-guide/mm/
// pagemap.rst in v6.1).
const (
	pagemapPFN     = 1<<55 - 1
	pagemapPresent = 1 << 63
)

// paint fills locked pages with the pattern and says where they lie.
func paint(p wire.Paint) ([]byte, []wire.Run, error) {
	if p.MiB <= 0 || p.MiB > wire.MaxPaintMiB {
		return nil, nil, fmt.Errorf("paint %d MiB: want 1 to %d", p.MiB, wire.MaxPaintMiB)
	}
	// Locked pages may still be moved by compaction, unless forbidden.
	err := os.WriteFile("/proc/sys/vm/compact_unevictable_allowed", []byte("0"), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	mem, err := unix.Mmap(-1, 0, p.MiB<<20, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_LOCKED|unix.MAP_POPULATE)
	if err != nil {
		return nil, nil, fmt.Errorf("allocate %d MiB: %w", p.MiB, err)
	}
	if err := fill(mem, p.Seed); err != nil {
		return nil, nil, err
	}
	runs, err := locate(mem)
	if err != nil {
		return nil, nil, errors.Join(err, unix.Munmap(mem))
	}
	return mem, runs, nil
}

// fill writes the pattern with all CPUs.
func fill(mem []byte, seed uint64) error {
	pages := uint64(len(mem)) / phys.PageSize
	workers := uint64(runtime.NumCPU())
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < pages && errs[w] == nil; i += workers {
				errs[w] = wire.Fill(mem[i*phys.PageSize:(i+1)*phys.PageSize], seed, i)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// locate finds the page frames of mem.
func locate(mem []byte) ([]wire.Run, error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries := make([]byte, uint64(len(mem))/phys.PageSize*8)
	if _, err := f.ReadAt(entries, int64(address(mem)/phys.PageSize*8)); err != nil {
		return nil, fmt.Errorf("read page frames of %d bytes: %w", len(mem), err)
	}
	var runs []wire.Run
	for i := range len(entries) / 8 {
		e := binary.LittleEndian.Uint64(entries[i*8:])
		if e&pagemapPresent == 0 || e&pagemapPFN == 0 {
			return nil, fmt.Errorf("page %d: pagemap entry %#x has no page frame", i, e)
		}
		runs = wire.AddPage(runs, e&pagemapPFN, uint64(i))
	}
	return runs, nil
}
