package rig

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"unicode/utf16"
)

// Layout of a disk image: the partition from 1 MiB, whole mebibytes, and 1 MiB
// behind it, the last sectors of which are the second partition table.
const (
	sectorSize      = 512
	partitionOffset = 1 << 20
	partitionEnd    = 1 << 20 // behind it, to the end of the disk
	gptEntries      = 128
	gptEntrySize    = 128
	gptTableSectors = gptEntries * gptEntrySize / sectorSize
)

// Identifiers are fixed so that a disk is the same each time. The type is
// "Linux filesystem" (UAPI Discoverable Partitions Specification has another
// for a root, which Debian's installer doesn't set).
const (
	DiskUUID       = "f5e3bbf2-5d5b-4a0e-93b0-2c8a2f0a6a01"
	PartitionUUID  = "f5e3bbf2-5d5b-4a0e-93b0-2c8a2f0a6a02"
	FilesystemUUID = "f5e3bbf2-5d5b-4a0e-93b0-2c8a2f0a6a03"
	linuxTypeUUID  = "0fc63daf-8483-4772-8e79-3d69d8477de4"
)

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

// writeGPT writes a protective MBR and both partition tables of a disk of size
// bytes with one partition (UEFI Specification 2.10, chapter 5).
func writeGPT(w io.WriterAt, size int64) error {
	if size%sectorSize != 0 || size < partitionOffset+2<<20 {
		return fmt.Errorf("partition table: a disk of %d bytes has no room for a partition", size)
	}
	last := uint64(size/sectorSize) - 1
	disk, err1 := guid(DiskUUID)
	part, err2 := guid(PartitionUUID)
	kind, err3 := guid(linuxTypeUUID)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}

	table := make([]byte, gptEntries*gptEntrySize)
	copy(table[0:], kind[:])
	copy(table[16:], part[:])
	binary.LittleEndian.PutUint64(table[32:], partitionOffset/sectorSize)
	binary.LittleEndian.PutUint64(table[40:], (uint64(size)-partitionEnd)/sectorSize-1) // inclusive
	for i, c := range utf16.Encode([]rune("root")) {
		binary.LittleEndian.PutUint16(table[56+2*i:], c)
	}

	header := func(this, other, entries uint64) []byte {
		h := make([]byte, sectorSize)
		copy(h, "EFI PART")
		binary.LittleEndian.PutUint32(h[8:], 0x00010000) // revision
		binary.LittleEndian.PutUint32(h[12:], 92)        // bytes that the CRC covers
		binary.LittleEndian.PutUint64(h[24:], this)
		binary.LittleEndian.PutUint64(h[32:], other)
		binary.LittleEndian.PutUint64(h[40:], 2+gptTableSectors)      // first usable
		binary.LittleEndian.PutUint64(h[48:], last-1-gptTableSectors) // last usable
		copy(h[56:], disk[:])
		binary.LittleEndian.PutUint64(h[72:], entries)
		binary.LittleEndian.PutUint32(h[80:], gptEntries)
		binary.LittleEndian.PutUint32(h[84:], gptEntrySize)
		binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(table))
		binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
		return h
	}

	mbr := make([]byte, sectorSize)
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
		{last - gptTableSectors, table},
		{last, header(last, 1, last-gptTableSectors)},
	} {
		if _, err := w.WriteAt(part.data, int64(part.sector)*sectorSize); err != nil {
			return fmt.Errorf("partition table: %w", err)
		}
	}
	return nil
}
