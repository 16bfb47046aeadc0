// Package gpt writes the partition tables of a disk image: a protective MBR, a
// table at the start and one at the end (UEFI Specification 2.10, chapter 5).
// The same partitions give the same bytes: nothing is random.
package gpt

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode/utf16"

	"github.com/warmcore/warmcore/pkg/phys"
)

// SectorSize is the sector size of every disk, in bytes.
const SectorSize = 512

// Partitions begin FirstByte bytes from the start of the disk or later, as
// installers align them, and end LastBytes before its end or earlier.
const (
	FirstByte = 1 << 20
	LastBytes = (1 + tableSectors) * SectorSize
)

const (
	maxEntries   = 128
	entrySize    = 128
	tableSectors = maxEntries * entrySize / SectorSize
	maxName      = 36 // UTF-16 units
)

// Types of partitions.
const (
	LinuxType = "0fc63daf-8483-4772-8e79-3d69d8477de4" // Linux file system
)

// Partition is a partition of a disk.
type Partition struct {
	Type, UUID string     // in the usual form, such as LinuxType
	Name       string     // at most 36 characters
	Bytes      phys.Range // of the disk, whole sectors
}

// Write writes both tables of a disk of size bytes, and nothing between them.
// If the tables would be wrong, it returns an error and writes nothing.
func Write(w io.WriterAt, size int64, diskUUID string, partitions ...Partition) error {
	if size%SectorSize != 0 || size < FirstByte+LastBytes+SectorSize {
		return fmt.Errorf("partition table: a disk of %d bytes has no room for a partition, or is no whole number of sectors", size)
	}
	disk, err := guid(diskUUID)
	if err != nil {
		return fmt.Errorf("partition table: disk: %w", err)
	}
	table, err := entries(uint64(size), partitions)
	if err != nil {
		return fmt.Errorf("partition table: %w", err)
	}
	last := uint64(size/SectorSize) - 1
	header := func(this, other, entries uint64) []byte {
		h := make([]byte, SectorSize)
		copy(h, "EFI PART")
		binary.LittleEndian.PutUint32(h[8:], 0x00010000) // revision
		binary.LittleEndian.PutUint32(h[12:], 92)        // bytes that the CRC covers
		binary.LittleEndian.PutUint64(h[24:], this)
		binary.LittleEndian.PutUint64(h[32:], other)
		binary.LittleEndian.PutUint64(h[40:], 2+tableSectors)      // first usable
		binary.LittleEndian.PutUint64(h[48:], last-1-tableSectors) // last usable
		copy(h[56:], disk[:])
		binary.LittleEndian.PutUint64(h[72:], entries)
		binary.LittleEndian.PutUint32(h[80:], maxEntries)
		binary.LittleEndian.PutUint32(h[84:], entrySize)
		binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(table))
		binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
		return h
	}

	mbr := make([]byte, SectorSize)
	copy(mbr[446:], []byte{
		0x00,             // not active
		0x00, 0x02, 0x00, // first sector as cylinder, head, sector
		0xee,             // GPT protective
		0xff, 0xff, 0xff, // last sector, the same
	})
	binary.LittleEndian.PutUint32(mbr[454:], 1)
	binary.LittleEndian.PutUint32(mbr[458:], uint32(min(last, 0xffffffff)))
	mbr[510], mbr[511] = 0x55, 0xaa

	for _, part := range []struct {
		sector uint64
		data   []byte
	}{
		{0, mbr},
		{1, header(1, last, 2)},
		{2, table},
		{last - tableSectors, table},
		{last, header(last, 1, last-tableSectors)},
	} {
		if _, err := w.WriteAt(part.data, int64(part.sector)*SectorSize); err != nil {
			return fmt.Errorf("partition table: %w", err)
		}
	}
	return nil
}

// entries returns the table of a disk of size bytes.
func entries(size uint64, partitions []Partition) ([]byte, error) {
	if len(partitions) > maxEntries {
		return nil, fmt.Errorf("%d partitions, want at most %d", len(partitions), maxEntries)
	}
	table := make([]byte, maxEntries*entrySize)
	var taken phys.Set
	for i, p := range partitions {
		kind, err := guid(p.Type)
		if err != nil {
			return nil, fmt.Errorf("partition %d: type: %w", i, err)
		}
		id, err := guid(p.UUID)
		if err != nil {
			return nil, fmt.Errorf("partition %d: %w", i, err)
		}
		name := utf16.Encode([]rune(p.Name))
		switch {
		case len(name) > maxName:
			return nil, fmt.Errorf("partition %d: name %q is longer than %d characters", i, p.Name, maxName)
		case p.Bytes.Empty() || p.Bytes.Start%SectorSize != 0 || p.Bytes.End%SectorSize != 0:
			return nil, fmt.Errorf("partition %d: bytes %v are empty or no whole sectors", i, p.Bytes)
		case p.Bytes.Start < FirstByte || p.Bytes.End > size-LastBytes:
			return nil, fmt.Errorf("partition %d: bytes %v, want them in %v", i, p.Bytes, phys.Range{Start: FirstByte, End: size - LastBytes})
		case taken.Overlaps(p.Bytes):
			return nil, fmt.Errorf("partition %d: bytes %v overlap another partition", i, p.Bytes)
		}
		taken = taken.Union(phys.Set{p.Bytes})
		entry := table[i*entrySize:]
		copy(entry[0:], kind[:])
		copy(entry[16:], id[:])
		binary.LittleEndian.PutUint64(entry[32:], p.Bytes.Start/SectorSize)
		binary.LittleEndian.PutUint64(entry[40:], p.Bytes.End/SectorSize-1) // inclusive
		for j, c := range name {
			binary.LittleEndian.PutUint16(entry[56+2*j:], c)
		}
	}
	return table, nil
}

// guid returns the bytes of a UUID as GPT stores them: the first three fields
// little-endian (UEFI Specification 2.10, appendix A).
func guid(s string) ([16]byte, error) {
	var g [16]byte
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != len(g) {
		return [16]byte{}, fmt.Errorf("UUID %q: want 32 hexadecimal digits", s)
	}
	copy(g[:], b)
	binary.LittleEndian.PutUint32(g[0:], binary.BigEndian.Uint32(b[0:]))
	binary.LittleEndian.PutUint16(g[4:], binary.BigEndian.Uint16(b[4:]))
	binary.LittleEndian.PutUint16(g[6:], binary.BigEndian.Uint16(b[6:]))
	return g, nil
}
