package dumpfilter_test

import (
	"testing"

	"github.com/warmcore/warmcore/pkg/dumpfilter"
	"github.com/warmcore/warmcore/pkg/phys"
)

// flat is memory in one piece, so that reading it costs a copy.
type flat []byte

func (f flat) ReadPhys(p []byte, addr uint64) error {
	if addr >= uint64(len(f)) || uint64(len(p)) > uint64(len(f))-addr {
		return errHole
	}
	copy(p, f[addr:])
	return nil
}

// mixed fills memory with what a busy machine has: half of it in free blocks,
// the rest single pages and huge ones.
func mixed(k *kernel) {
	for pfn := uint64(0); pfn < k.count(); pfn += 64 {
		switch pfn / 64 % 8 {
		case 0, 1, 2:
			k.free(pfn, 6)
		case 3:
			for i := range uint64(32) {
				k.free(pfn+2*i, 1)
			}
		case 4, 5:
			for i := range uint64(64) {
				k.single(pfn+i, lru|swapBacked, anonymous)
			}
		case 6:
			for i := range uint64(64) {
				k.single(pfn+i, lru, inode)
			}
		case 7:
			for i := range uint64(16) {
				k.slab(pfn+4*i, 2, "BUDDY")
			}
		}
	}
}

func benchmarkDrop(b *testing.B, level dumpfilter.Level, workers int) {
	k := newKernel(machines[0], encodings[len(encodings)-1])
	mixed(k)
	ram := make(flat, k.ram[0].End)
	for addr, page := range k.memory.pages {
		if addr < uint64(len(ram)) {
			copy(ram[addr:], page[:])
		}
	}
	f, err := dumpfilter.New(ram, k.info(b), phys.Set{{Start: 0, End: k.ram[0].End}}, level)
	if err != nil {
		b.Fatal(err)
	}
	if w := f.Warnings(); len(w) != 0 {
		b.Fatal(w)
	}
	dst := make([]uint64, k.count()/64)
	part := k.count() / uint64(workers)
	for b.Loop() {
		done := make(chan error)
		for w := range uint64(workers) {
			go func() {
				_, err := f.Drop(dst[w*part/64:], w*part, part)
				done <- err
			}()
		}
		for range workers {
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(k.count())*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mpages/s")
}

func BenchmarkDrop31(b *testing.B)           { benchmarkDrop(b, 31, 1) }
func BenchmarkDrop31TwoWorkers(b *testing.B) { benchmarkDrop(b, 31, 2) }
func BenchmarkDrop0(b *testing.B)            { benchmarkDrop(b, 0, 1) }
