// Package memmap reads the maps in which kernels and firmware list physical
// memory: /sys/firmware/memmap, /proc/iomem and the e820 table.
//
// The result is always a Map, which keeps the order, the nesting and the names
// of its source, and entries of types that this package doesn't know.
// Invariants:
//
//   - Every entry's range holds at least one byte, and there are at most
//     MaxEntries of them, or MaxIOMemLines in /proc/iomem.
//   - A Map that a parser returned has RAM in it: an empty map would make
//     every later check pass.
//   - What a parser understands but can't represent is a warning in the Map;
//     what it doesn't understand is an error, and the Map is then zero.
package memmap

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
)

// MaxEntries caps the entries of a map. The largest e820 table of a stock
// x86-64 kernel has 128 + 3*1024 (E820_MAX_ENTRIES, v6.12).
const MaxEntries = 4096

var (
	// ErrNoRAM says that a map lists no RAM at all.
	ErrNoRAM = errors.New("no RAM in the memory map")
	// ErrTooMany says that a map has more than MaxEntries entries.
	ErrTooMany = fmt.Errorf("more than %d entries", MaxEntries)
)

// Kind says what memory is for. The values are those of the e820 table. Where
// entries overlap, the higher value wins, so Unknown wins over all.
type Kind uint32

// The kinds, from enum e820_type in arch/x86/include/asm/e820/types.h (v6.12).
const (
	RAM          Kind = 1
	Reserved     Kind = 2
	ACPI         Kind = 3 // ACPI tables, free once they are read
	NVS          Kind = 4 // memory that ACPI firmware keeps for itself
	Unusable     Kind = 5
	Pmem         Kind = 7
	PRAM         Kind = 12         // persistent memory, by the older type number
	SoftReserved Kind = 0xefffffff // RAM set aside for a driver: device-dax
	Unknown      Kind = 0xffffffff // the source has no number for it, or a name that isn't memory's
)

// kindNames are the strings of e820_type_to_string in arch/x86/kernel/e820.c
// (v6.1 and v6.12), which sysfs and /proc/iomem both show; it has "Unknown
// E820 type" for the rest.
var kindNames = []struct {
	kind Kind
	name string
}{
	{RAM, "System RAM"},
	{Reserved, "Reserved"},
	{ACPI, "ACPI Tables"},
	{NVS, "ACPI Non-volatile Storage"},
	{Unusable, "Unusable memory"},
	{Pmem, "Persistent Memory"},
	{PRAM, "Persistent Memory (legacy)"},
	{SoftReserved, "Soft Reserved"},
	{Unknown, "Unknown"},
}

// String returns the kernel's name for k, "Unknown", or "type 9" for a number
// without a name.
func (k Kind) String() string {
	for _, n := range kindNames {
		if n.kind == k {
			return n.name
		}
	}
	return fmt.Sprintf("type %d", uint32(k))
}

// parseKind returns the kind that the kernel calls name; ok is false, and the
// kind Unknown, where name is not one of its names.
func parseKind(name string) (k Kind, ok bool) {
	for _, n := range kindNames {
		if n.name == name {
			return n.kind, true
		}
	}
	return Unknown, name == "Unknown E820 type"
}

// Entry is a line of a memory map.
type Entry struct {
	Range phys.Range
	Kind  Kind
	Name  string // the source's name for it; empty in an e820 table
	Depth int    // 0 for an entry that is in no other
}

// String prints e as /proc/iomem does, followed by the kind in brackets if the
// name differs from it.
func (e Entry) String() string {
	s := fmt.Sprintf("%*s%v : %s", 2*e.Depth, "", e.Range, cmp.Or(e.Name, e.Kind.String()))
	if e.Name != "" && e.Name != e.Kind.String() {
		s += " [" + e.Kind.String() + "]"
	}
	return s
}

// Map is a memory map, in the order of its source.
type Map struct {
	Entries  []Entry
	Warnings []string // what the parser could not represent, one sentence each
}

// String prints one line for each entry, each ended by a newline. Equal maps
// print the same text in every version of this package: tests store it.
func (m Map) String() string {
	var b strings.Builder
	for _, e := range m.Entries {
		b.WriteString(e.String())
		b.WriteByte('\n')
	}
	return b.String()
}

// Top returns the entries that are in no other.
func (m Map) Top() Map {
	return Map{Entries: slices.DeleteFunc(slices.Clone(m.Entries), func(e Entry) bool { return e.Depth > 0 })}
}

// Named returns the ranges of all entries that the source called name, such as
// "Crash kernel". For top-level entries only, use m.Top().Named(name).
func (m Map) Named(name string) phys.Set {
	var ranges []phys.Range
	for _, e := range m.Entries {
		if e.Name == name {
			ranges = append(ranges, e.Range)
		}
	}
	return phys.NewSet(ranges...)
}

// Set returns the memory of any of these kinds, after overlaps are resolved as
// in Normalize.
func (m Map) Set(kinds ...Kind) phys.Set {
	var ranges []phys.Range
	for _, e := range m.Normalize().Entries {
		if slices.Contains(kinds, e.Kind) {
			ranges = append(ranges, e.Range)
		}
	}
	return phys.NewSet(ranges...)
}

// Hash identifies m: SHA-256 over a line that names this format, then the
// normalized entries, each as start, end (64 bits) and kind (32 bits), little
// endian. It doesn't depend on order, names or warnings of the source.
//
// Only the payload sees the firmware's map. In a kernel that the payload
// started, /sys/firmware/memmap shows the map that the payload made, which has
// another hash.
func (m Map) Hash() [32]byte {
	b := []byte("warmcore memory map 1\n")
	for _, e := range m.Normalize().Entries {
		b = binary.LittleEndian.AppendUint64(b, e.Range.Start)
		b = binary.LittleEndian.AppendUint64(b, e.Range.End)
		b = binary.LittleEndian.AppendUint32(b, uint32(e.Kind))
	}
	return sha256.Sum256(b)
}

// checked returns m, or ErrNoRAM if it has no RAM.
func (m Map) checked() (Map, error) {
	if !slices.ContainsFunc(m.Entries, func(e Entry) bool { return e.Kind == RAM }) {
		return Map{}, ErrNoRAM
	}
	return m, nil
}

func (m *Map) warnf(format string, args ...any) {
	m.Warnings = append(m.Warnings, fmt.Sprintf(format, args...))
}
