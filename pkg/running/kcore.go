package running

import (
	"fmt"
	"os"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
)

// ReadRAM fills p with the running kernel's memory from the physical address
// addr on. It reads through /proc/kcore, because STRICT_DEVMEM keeps /dev/mem
// from showing RAM. What the kernel has not mapped reads as zeroes there
// (read_kcore_iter in fs/proc/kcore.c, v6.12).
func (k Kernel) ReadRAM(p []byte, addr uint64) error {
	f, err := os.Open(k.path("proc/kcore"))
	if err != nil {
		return err
	}
	defer f.Close()
	h, err := elfcore.Read(f)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	want, ok := phys.Sized(addr, uint64(len(p)))
	if !ok {
		return fmt.Errorf("%s: %d bytes at %#x wrap", f.Name(), len(p), addr)
	}
	for _, l := range h.Loads {
		if r, ok := phys.Sized(l.Phys, l.Size); !ok || !r.Contains(want) {
			continue
		}
		if _, err := f.ReadAt(p, int64(l.Offset+(addr-l.Phys))); err != nil {
			return fmt.Errorf("%s: read %v: %w", f.Name(), want, err)
		}
		return nil
	}
	return fmt.Errorf("%s: no memory at %v", f.Name(), want)
}
