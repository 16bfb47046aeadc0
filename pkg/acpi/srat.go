package acpi

import (
	"fmt"

	"github.com/warmcore/warmcore/pkg/phys"
)

// The System Resource Affinity Table (5.2.16) and its structure for memory
// (5.2.16.2).
const (
	sratSize = 48

	memoryKind    = 1
	memoryDomain  = 2  // u32
	memoryBase    = 8  // u64
	memoryLength  = 16 // u64
	memoryFlags   = 28 // u32
	memoryEnd     = 40
	memoryEnabled = 1 << 0
)

// SRAT is what the System Resource Affinity Table says about memory.
type SRAT struct {
	// Memory has the enabled entries, in the order of the table. They may
	// include addresses without RAM, where memory can be added later, so
	// they don't say what is RAM.
	Memory []MemoryAffinity
}

// MemoryAffinity says to which proximity domain a range of physical addresses
// belongs. Linux makes a NUMA node of each domain.
type MemoryAffinity struct {
	Range  phys.Range // not empty
	Domain uint32
}

// ParseSRAT decodes a System Resource Affinity Table.
func ParseSRAT(b []byte) (SRAT, error) {
	b, err := table(b, "SRAT", sratSize)
	if err != nil {
		return SRAT{}, err
	}
	var t SRAT
	var bad error
	err = structures(b, sratSize, func(kind byte, s []byte) {
		if kind != memoryKind || len(s) < memoryEnd || le.Uint32(s[memoryFlags:])&memoryEnabled == 0 {
			return
		}
		start, size := le.Uint64(s[memoryBase:]), le.Uint64(s[memoryLength:])
		if size == 0 {
			return
		}
		r, ok := phys.Sized(start, size)
		if !ok {
			if bad == nil {
				bad = fmt.Errorf("ACPI table SRAT: memory of %#x bytes at %#x: beyond the last address", size, start)
			}
			return
		}
		domain := le.Uint32(s[memoryDomain:])
		if b[offRevision] < 2 {
			// In old tables the other three bytes are reserved
			// (acpi_parse_memory_affinity in
			// drivers/acpi/numa/srat.c, v6.12).
			domain &= 0xff
		}
		t.Memory = append(t.Memory, MemoryAffinity{r, domain})
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return SRAT{}, err
	}
	return t, nil
}
