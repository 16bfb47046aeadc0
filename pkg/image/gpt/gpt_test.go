package gpt

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/phys"
)

const diskUUID = "f5e3bbf2-5d5b-4a0e-93b0-2c8a2f0a6a01"

var root = Partition{
	Type: LinuxType, UUID: "f5e3bbf2-5d5b-4a0e-93b0-2c8a2f0a6a02", Name: "root",
	Bytes: phys.Range{Start: FirstByte, End: 7 << 20},
}

func TestGUID(t *testing.T) {
	got, err := guid(LinuxType)
	want := [16]byte{
		0xaf, 0x3d, 0xc6, 0x0f, // 0fc63daf
		0x83, 0x84, // 8483
		0x72, 0x47, // 4772
		0x8e, 0x79,
		0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
	}
	if err != nil || got != want {
		t.Errorf("guid(%s) = % x, %v; want % x", LinuxType, got, err, want)
	}
	for _, s := range []string{"", "0fc63daf", LinuxType + "00", "zfc63daf-8483-4772-8e79-3d69d8477de4"} {
		if got, err := guid(s); err == nil || got != [16]byte{} {
			t.Errorf("guid(%q) = % x, %v; want an error", s, got, err)
		}
	}
}

// memoryFile is an io.WriterAt.
type memoryFile []byte

func (m memoryFile) WriteAt(b []byte, off int64) (int, error) { return copy(m[off:], b), nil }

func TestWrite(t *testing.T) {
	const size = 8 << 20
	disk := make(memoryFile, size)
	if err := Write(disk, size, diskUUID, root); err != nil {
		t.Fatal(err)
	}
	le64 := func(off int) uint64 { return binary.LittleEndian.Uint64(disk[off:]) }
	if disk[510] != 0x55 || disk[511] != 0xaa || disk[450] != 0xee {
		t.Errorf("protective MBR: signature % x, type %#x", disk[510:512], disk[450])
	}
	const lastSector = size/SectorSize - 1
	for _, h := range []struct {
		name                   string
		sector, other, entries uint64
	}{{"primary", 1, lastSector, 2}, {"backup", lastSector, 1, lastSector - 32}} {
		at := int(h.sector) * SectorSize
		header := bytes.Clone(disk[at : at+92])
		sum := binary.LittleEndian.Uint32(header[16:])
		clear(header[16:20])
		if string(header[:8]) != "EFI PART" || sum != crc32.ChecksumIEEE(header) {
			t.Errorf("%s header: signature %q, CRC %#x, want %#x", h.name, header[:8], sum, crc32.ChecksumIEEE(header))
		}
		if le64(at+24) != h.sector || le64(at+32) != h.other || le64(at+72) != h.entries {
			t.Errorf("%s header: at %d, other %d, entries %d; want %+v", h.name, le64(at+24), le64(at+32), le64(at+72), h)
		}
		table := int(h.entries) * SectorSize
		if got, want := binary.LittleEndian.Uint32(disk[at+88:]), crc32.ChecksumIEEE(disk[table:table+maxEntries*entrySize]); got != want {
			t.Errorf("%s header: CRC of the entries %#x, want %#x", h.name, got, want)
		}
		if first, last := le64(table+32), le64(table+40); first != 2048 || last != 7*2048-1 {
			t.Errorf("%s table: partition %d to %d, want 2048 to %d", h.name, first, last, 7*2048-1)
		}
	}
	for _, bad := range []int64{0, 1 << 20, FirstByte + LastBytes, 8<<20 + 1} {
		if err := Write(disk, bad, diskUUID); err == nil {
			t.Errorf("a disk of %d bytes: no error", bad)
		}
	}
}

// What is wrong is refused before anything is written.
func TestWriteErrors(t *testing.T) {
	const size = 8 << 20
	change := func(f func(*Partition)) []Partition {
		p := root
		f(&p)
		return []Partition{p}
	}
	at := func(start, end uint64) []Partition {
		return change(func(p *Partition) { p.Bytes = phys.Range{Start: start, End: end} })
	}
	for name, partitions := range map[string][]Partition{
		"type":           change(func(p *Partition) { p.Type = "linux" }),
		"UUID":           change(func(p *Partition) { p.UUID = "" }),
		"name":           change(func(p *Partition) { p.Name = strings.Repeat("x", 37) }),
		"empty":          at(2<<20, 2<<20),
		"half a sector":  at(2<<20+256, 3<<20),
		"end in sector":  at(2<<20, 3<<20+1),
		"over the table": at(0, 2<<20),
		"over the end":   at(2<<20, size-LastBytes+SectorSize),
		"twice":          {root, root},
		"too many":       make([]Partition, 129),
	} {
		disk := make(memoryFile, size)
		if err := Write(disk, size, diskUUID, partitions...); err == nil {
			t.Errorf("%s: no error", name)
		}
		if !bytes.Equal(disk, make([]byte, size)) {
			t.Errorf("%s: something was written", name)
		}
	}
	if err := Write(make(memoryFile, size), size, "disk"); err == nil {
		t.Error("a disk without a UUID: no error")
	}
}
