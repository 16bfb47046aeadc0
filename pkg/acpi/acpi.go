// Package acpi decodes the ACPI tables that say what Linux doesn't show: how
// to reset the machine, which CPUs it has, and which memory belongs to which
// NUMA node.
//
// It takes a table's bytes, as /sys/firmware/acpi/tables has them; it reads no
// file and no memory. A table is accepted only if its signature, its length
// and its checksum are right. Section numbers are those of ACPI 6.5.
package acpi

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// MaxTable is the largest table that is decoded, in bytes. A MADT of 4096
// CPUs has 320 KiB.
const MaxTable = 1 << 20

// headerSize is the size of the header that each table begins with (5.2.6), in
// bytes: signature, length, revision, checksum, and who made it.
const (
	headerSize  = 36
	offLength   = 4 // u32
	offRevision = 8 // u8
)

var le = binary.LittleEndian

// ErrChecksum says that the bytes of a table don't add up to 0.
var ErrChecksum = errors.New("bytes don't add up to 0")

func sum(b []byte) (s byte) {
	for _, x := range b {
		s += x
	}
	return s
}

// table returns b up to the length in its header, which must be at least least
// bytes.
func table(b []byte, signature string, least int) ([]byte, error) {
	if len(b) < headerSize {
		return nil, fmt.Errorf("ACPI table %s: %d bytes, want at least %d", signature, len(b), headerSize)
	}
	if string(b[:4]) != signature {
		return nil, fmt.Errorf("ACPI table %s: signature at offset 0 is %q", signature, b[:4])
	}
	n := le.Uint32(b[offLength:])
	switch {
	case n > MaxTable || uint64(n) > uint64(len(b)):
		return nil, fmt.Errorf("ACPI table %s: length at offset %d is %d, want at most %d", signature, offLength, n, min(len(b), MaxTable))
	case uint64(n) < uint64(least):
		return nil, fmt.Errorf("ACPI table %s: length at offset %d is %d, want at least %d", signature, offLength, n, least)
	}
	b = b[:n:n]
	if sum(b) != 0 {
		return nil, fmt.Errorf("ACPI table %s: %w", signature, ErrChecksum)
	}
	return b, nil
}

// structures calls f for each structure of a table. The first one is at offset
// start; each begins with a byte for its kind and one for its size.
func structures(b []byte, start int, f func(kind byte, s []byte)) error {
	for off := start; off < len(b); {
		if len(b)-off < 2 {
			return fmt.Errorf("ACPI table %s: offset %#x: %d byte left, want a structure of at least 2", b[:4], off, len(b)-off)
		}
		size := int(b[off+1])
		if size < 2 || size > len(b)-off {
			return fmt.Errorf("ACPI table %s: offset %#x: structure of %d bytes, want 2 to %d", b[:4], off, size, len(b)-off)
		}
		f(b[off], b[off:][:size:size])
		off += size
	}
	return nil
}

// The root pointer (5.2.5.3): its signature, and the 20 bytes that the
// checksum of version 1 covers.
const (
	rsdpSignature = "RSD PTR "
	rsdpSize      = 20
	rsdpAlign     = 16
)

// FindRSDP returns the offset of the root pointer in b, a copy of memory in
// which a BIOS may put it (5.2.5.1). The memory must begin at a multiple of
// 16.
func FindRSDP(b []byte) (offset int, ok bool) {
	for off := 0; len(b)-off >= rsdpSize; off += rsdpAlign {
		if p := b[off:][:rsdpSize]; string(p[:len(rsdpSignature)]) == rsdpSignature && sum(p) == 0 {
			return off, true
		}
	}
	return 0, false
}
