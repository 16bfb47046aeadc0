// Package segmentstest makes kernel images for tests: a boot header that says
// what the test wants, and any bytes as code.
//
// The headers are written by the offsets of Documentation/arch/x86/boot.rst
// and Documentation/arch/arm64/booting.rst (v6.12), not by those of
// pkg/segments.
package segmentstest

import (
	"encoding/binary"
	"slices"
)

// Kernel is what an image's header says.
type Kernel struct {
	Version     string
	PrefAddress uint64
	InitSize    uint32
	Alignment   uint32
	Relocatable bool
	XLoadFlags  uint16
	CmdlineSize uint32
	InitrdMax   uint32
	Code        []byte // the protected-mode part, longer than 512 bytes
}

// Debian returns the header of Debian 12's kernel (6.1.0-40-amd64) with
// 4 KiB of code that starts with seed.
func Debian(seed byte) Kernel {
	code := make([]byte, 4096)
	for i := range code {
		code[i] = seed + byte(i*7)
	}
	return Kernel{
		Version:     "6.1.0-40-amd64 (debian-kernel@lists.debian.org) #1 SMP",
		PrefAddress: 0x1000000,
		InitSize:    0x3000000,
		Alignment:   0x200000,
		Relocatable: true,
		XLoadFlags:  0x3f,
		CmdlineSize: 2047,
		InitrdMax:   0x7fffffff,
		Code:        code,
	}
}

// HeaderEnd is the offset of the first byte after the boot header of an Image,
// SetupSize the offset of its code.
const (
	HeaderEnd = 0x26c
	SetupSize = 1024
)

// Image returns the file.
func (k Kernel) Image() []byte {
	b := make([]byte, SetupSize)
	le := binary.LittleEndian
	b[0x1f1] = SetupSize/512 - 1 // setup_sects
	copy(b[0x1fe:], "\x55\xaa")  // boot_flag
	b[0x200] = 0xeb              // jump over the header
	b[0x201] = HeaderEnd - 0x202
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f) // version
	if k.Version != "" {
		const at = 0x300
		le.PutUint16(b[0x20e:], at-0x200) // kernel_version
		copy(b[at:SetupSize-1], k.Version)
	}
	b[0x211] = 1 // loadflags: LOADED_HIGH
	le.PutUint32(b[0x22c:], k.InitrdMax)
	le.PutUint32(b[0x230:], k.Alignment)
	if k.Relocatable {
		b[0x234] = 1
	}
	le.PutUint16(b[0x236:], k.XLoadFlags)
	le.PutUint32(b[0x238:], k.CmdlineSize)
	le.PutUint64(b[0x258:], k.PrefAddress)
	le.PutUint32(b[0x260:], k.InitSize)
	le.PutUint32(b[0x264:], 0x190) // handover_offset
	return slices.Concat(b, k.Code)
}
