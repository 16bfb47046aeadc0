package segmentstest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"slices"
)

// ARM64 has the fields of the header of an arm64 Image, written by the offsets
// of Documentation/arch/arm64/booting.rst (v6.12).
type ARM64 struct {
	TextOffset uint64
	ImageSize  uint64
	Flags      uint64
	Code       []byte // after the header of 64 bytes
}

// DebianARM64 returns the header of Debian's kernel (6.12.117+deb12-arm64)
// with a version and 4 KiB of code that starts with seed.
func DebianARM64(seed byte) ARM64 {
	code := make([]byte, 4096)
	for i := range code {
		code[i] = seed + byte(i*5)
	}
	copy(code[100:], "Linux version %s (%s)\n\x00Linux version 6.12.117+deb12-arm64 (debian-kernel@lists.debian.org) #1 SMP\n\x00")
	return ARM64{ImageSize: 0x2b30000, Flags: 0xa, Code: code}
}

// Image returns the file.
func (k ARM64) Image() []byte {
	b := make([]byte, 64)
	le := binary.LittleEndian
	copy(b, "MZ\x40\xfa")           // code0: makes it an EFI program
	le.PutUint32(b[4:], 0x14000010) // code1: jump over the header
	le.PutUint64(b[8:], k.TextOffset)
	le.PutUint64(b[16:], k.ImageSize)
	le.PutUint64(b[24:], k.Flags)
	copy(b[56:], "ARM\x64")
	le.PutUint32(b[60:], 0x40) // res5: the PE header
	return slices.Concat(b, k.Code)
}

// Gzip packs a file.
func Gzip(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	// A bytes.Buffer takes everything.
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

// Zboot returns an EFI zboot image around a packed kernel
// (drivers/firmware/efi/libstub/zboot-header.S, v6.12).
func Zboot(method string, packed []byte) []byte {
	const payload = 0x1000
	b := make([]byte, payload)
	copy(b, "MZ\x00\x00zimg")
	binary.LittleEndian.PutUint32(b[8:], payload)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(packed)))
	copy(b[24:], method)
	binary.LittleEndian.PutUint32(b[0x38:], 0x818223cd) // LINUX_PE_MAGIC
	return slices.Concat(b, packed, []byte("the program that unpacks it"))
}
