package vmcore

import (
	"errors"
	"fmt"
	"sync"

	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// Virtual reads the memory of a dump by the addresses that the crashed kernel
// used itself: through the loads of the dump where it has them, else through
// the kernel's page tables. It may be used concurrently.
type Virtual struct {
	dump   Dump
	mu     sync.Mutex // of tables, which keep a cache
	tables *kernelmap.PageTables
	err    error // why there are no tables
}

// NewVirtual returns a Virtual of d, whose VMCOREINFO is info. Page tables
// that can't be read are no error before they are needed.
func NewVirtual(d Dump, info *vmcoreinfo.Info) *Virtual {
	v := &Virtual{dump: d}
	v.tables, v.err = kernelmap.Tables(d, info)
	return v
}

var errNotMapped = errors.New("not mapped")

// ReadVirtual fills p from virtual address addr, across pages that may lie
// anywhere.
func (v *Virtual) ReadVirtual(p []byte, addr uint64) error {
	for len(p) > 0 {
		at, n, err := v.translate(addr)
		if err != nil {
			return fmt.Errorf("read %d bytes at virtual address %#x: %w", len(p), addr, err)
		}
		n = min(n, uint64(len(p)))
		if err := v.dump.ReadPhys(p[:n], at); err != nil {
			return fmt.Errorf("read %d bytes at virtual address %#x: %w", len(p), addr, err)
		}
		p, addr = p[n:], addr+n
	}
	return nil
}

// translate returns the physical address of addr, and how many bytes from it
// on are mapped in one piece.
func (v *Virtual) translate(addr uint64) (at, n uint64, err error) {
	for _, l := range v.dump.Info().Loads {
		if l.Virt != 0 && addr >= l.Virt && addr-l.Virt < l.Size {
			return l.Phys + (addr - l.Virt), l.Size - (addr - l.Virt), nil
		}
	}
	if v.err != nil {
		return 0, 0, v.err
	}
	v.mu.Lock()
	at, ok, err := v.tables.Translate(addr)
	v.mu.Unlock()
	if err == nil && !ok {
		err = errNotMapped
	}
	size := v.dump.Info().PageSize
	return at, size - addr%size, err
}
