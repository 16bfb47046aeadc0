package segments

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/zeropage"
)

// Offsets in the first sectors of a bzImage (Documentation/arch/x86/boot.rst,
// "The Real-Mode Kernel Header", v6.12).
const (
	offSetupSects      = 0x1f1 // u8, 512-byte sectors after the first; the header begins here
	offHeaderEnd       = 0x201 // u8, distance from 0x202 to the header's end
	offMagic           = 0x202 // "HdrS"
	offVersion         = 0x206 // u16
	offKernelVersion   = 0x20e // u16, offset of a string after the first sector
	offInitrdAddrMax   = 0x22c // u32, highest address of the initrd's last byte
	offKernelAlignment = 0x230 // u32
	offRelocatable     = 0x234 // u8
	offXLoadFlags      = 0x236 // u16
	offCmdlineSize     = 0x238 // u32, without the terminating NUL
	offPrefAddress     = 0x258 // u64
	offInitSize        = 0x260 // u32
	headerEnd          = 0x264 // end of the fields that are read here
	maxHeaderEnd       = offSetupSects + zeropage.MaxHeader
)

const (
	xlfKernel64      = 1 << 0 // has the 64-bit entry point
	xlfAbove4G       = 1 << 1 // kernel, zero page, command line, initrd may lie anywhere
	minProtocol      = 0x20c  // xloadflags and the 64-bit entry point, since v3.8
	entry64          = 0x200  // of the protected-mode code
	maxBzImage       = 256 << 20
	maxInitSize      = 1 << 30
	maxCmdline       = 64 << 10
	sectorSize       = 512
	maxVersionString = 256
)

// BzImage is an x86 Linux kernel: what is needed to load it.
type BzImage struct {
	Version      string // "6.1.0-56-amd64 (...) #1 SMP ...", empty if the file has none
	PrefAddress  uint64 // where it wants to run
	InitSize     uint64 // bytes it needs from its load address on until it knows its memory map
	Alignment    uint64 // of the load address
	Relocatable  bool   // may run at any multiple of Alignment
	Above4G      bool   // initrd and command line may lie anywhere
	CmdlineSize  uint64 // longest command line, in bytes without NUL
	InitrdMax    uint64 // highest address of the initrd's last byte, if not Above4G
	header, code []byte
}

// ParseBzImage reads a kernel image; b is kept.
func ParseBzImage(b []byte) (*BzImage, error) {
	switch {
	case len(b) > maxBzImage:
		return nil, fmt.Errorf("kernel image of %d bytes: more than %d", len(b), maxBzImage)
	case len(b) < headerEnd || !bytes.Equal(b[offMagic:offMagic+4], []byte("HdrS")):
		return nil, fmt.Errorf("kernel image: no x86 boot header (\"HdrS\" at offset %#x); is it a bzImage?", offMagic)
	}
	le := binary.LittleEndian
	if v := le.Uint16(b[offVersion:]); v < minProtocol {
		return nil, fmt.Errorf("kernel image: boot protocol %d.%02d at offset %#x: want at least 2.12", v>>8, v&0xff, offVersion)
	}
	flags := le.Uint16(b[offXLoadFlags:])
	if flags&xlfKernel64 == 0 {
		return nil, fmt.Errorf("kernel image: xloadflags %#x at offset %#x: no 64-bit entry point", flags, offXLoadFlags)
	}
	sectors := int(b[offSetupSects])
	if sectors == 0 {
		sectors = 4 // as the protocol says, for very old images
	}
	start := (1 + sectors) * sectorSize
	if start+entry64 >= len(b) {
		return nil, fmt.Errorf("kernel image: ends in its %d setup sectors", sectors)
	}
	k := &BzImage{
		PrefAddress: le.Uint64(b[offPrefAddress:]),
		InitSize:    uint64(le.Uint32(b[offInitSize:])),
		Alignment:   uint64(le.Uint32(b[offKernelAlignment:])),
		Relocatable: b[offRelocatable] != 0,
		Above4G:     flags&xlfAbove4G != 0,
		CmdlineSize: uint64(le.Uint32(b[offCmdlineSize:])),
		InitrdMax:   uint64(le.Uint32(b[offInitrdAddrMax:])),
		code:        b[start:],
	}
	end := offMagic + int(b[offHeaderEnd])
	if end < headerEnd || end > start || end > maxHeaderEnd {
		return nil, fmt.Errorf("kernel image: header ends at offset %#x (byte at %#x): want %#x to %#x", end, offHeaderEnd, headerEnd, maxHeaderEnd)
	}
	k.header = b[offSetupSects:end]
	switch {
	case k.InitSize < uint64(len(k.code)) || k.InitSize > maxInitSize:
		return nil, fmt.Errorf("kernel image: init_size %#x at offset %#x: want %#x to %#x", k.InitSize, offInitSize, len(k.code), maxInitSize)
	case k.Alignment == 0 || k.Alignment&(k.Alignment-1) != 0 || k.Alignment > phys.GiB:
		return nil, fmt.Errorf("kernel image: kernel_alignment %#x at offset %#x: want a power of two", k.Alignment, offKernelAlignment)
	case k.CmdlineSize == 0 || k.CmdlineSize > maxCmdline:
		return nil, fmt.Errorf("kernel image: cmdline_size %d at offset %#x: want 1 to %d", k.CmdlineSize, offCmdlineSize, maxCmdline)
	}
	if off := int(le.Uint16(b[offKernelVersion:])); off != 0 && off+sectorSize < start {
		s := b[off+sectorSize : min(start, off+sectorSize+maxVersionString)]
		if n := bytes.IndexByte(s, 0); n >= 0 {
			k.Version = string(s[:n])
		}
	}
	return k, nil
}

// String returns the version, or "bzImage" if there is none.
func (k *BzImage) String() string {
	if k.Version == "" {
		return "bzImage"
	}
	return k.Version
}

// PageSize returns 4 KiB: x86-64 has no other.
func (*BzImage) PageSize() uint64 { return phys.PageSize }
