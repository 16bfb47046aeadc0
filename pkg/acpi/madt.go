package acpi

// The Multiple APIC Description Table (5.2.12), whose signature is APIC, and
// its structure for an arm64 CPU (5.2.12.14).
const (
	madtSize = 44

	giccKind    = 0xb
	giccFlags   = 12 // u32
	giccMPIDR   = 68 // u64
	giccEnd     = 76
	giccEnabled = 1 << 0
)

// MADT is what the Multiple APIC Description Table says about CPUs.
type MADT struct {
	// MPIDRs has the MPIDR of each enabled arm64 CPU, affinity fields
	// only, in the order of the table.
	MPIDRs []uint64
}

// ParseMADT decodes a Multiple APIC Description Table.
func ParseMADT(b []byte) (MADT, error) {
	b, err := table(b, "APIC", madtSize)
	if err != nil {
		return MADT{}, err
	}
	var m MADT
	err = structures(b, madtSize, func(kind byte, s []byte) {
		if kind == giccKind && len(s) >= giccEnd && le.Uint32(s[giccFlags:])&giccEnabled != 0 {
			m.MPIDRs = append(m.MPIDRs, le.Uint64(s[giccMPIDR:]))
		}
	})
	if err != nil {
		return MADT{}, err
	}
	return m, nil
}
