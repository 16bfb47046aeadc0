package printk

import (
	"fmt"
	"io"

	"github.com/warmcore/warmcore/pkg/elfcore"
)

// Core is Memory out of an ELF dump: /proc/vmcore, or a file.
type Core struct {
	Dump  io.ReaderAt
	Loads []elfcore.Load
}

// ReadVirtual reads memory that one or several neighbouring loads hold.
func (c Core) ReadVirtual(p []byte, addr uint64) error {
	for len(p) > 0 {
		l, ok := c.load(addr)
		if !ok {
			return fmt.Errorf("read %d bytes at virtual address %#x: not in the dump", len(p), addr)
		}
		in := addr - l.Virt
		n := min(uint64(len(p)), l.Size-in)
		if got, err := c.Dump.ReadAt(p[:n], int64(l.Offset+in)); uint64(got) < n {
			return fmt.Errorf("read %d bytes at virtual address %#x, offset %#x of the dump: %w", n, addr, l.Offset+in, err)
		}
		p, addr = p[n:], addr+n
	}
	return nil
}

func (c Core) load(addr uint64) (elfcore.Load, bool) {
	for _, l := range c.Loads {
		if l.Virt != 0 && addr >= l.Virt && addr-l.Virt < l.Size && l.Offset+l.Size <= 1<<63-1 {
			return l, true
		}
	}
	return elfcore.Load{}, false
}
