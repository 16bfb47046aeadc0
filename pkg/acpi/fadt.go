package acpi

// The Fixed ACPI Description Table (table 5.9), whose signature is FACP. Later
// versions added fields at the end, so an older, shorter table lacks them.
const (
	fadtFlags      = 112 // u32
	fadtReset      = 116 // generic address structure
	fadtResetValue = 128 // u8
	fadtARMBoot    = 129 // u16
	fadtARMBootEnd = 131

	fadtResetSupported = 1 << 10
	armBootPSCI        = 1 << 0
	armBootHVC         = 1 << 1
)

// FADT is what the Fixed ACPI Description Table says about resetting the
// machine.
type FADT struct {
	// Reset is the register to which ResetValue is written to reset the
	// machine; nil if there is none.
	Reset      *Address
	ResetValue uint8

	PSCI bool // arm64: firmware has PSCI
	HVC  bool // arm64: PSCI is called by HVC, else by SMC
}

// Address is a generic address structure (5.2.3.2).
type Address struct {
	Space   uint8 // SpaceMemory, SpaceIO, or another
	Address uint64
}

// Address spaces.
const (
	SpaceMemory = 0
	SpaceIO     = 1
)

// ParseFADT decodes a Fixed ACPI Description Table.
func ParseFADT(b []byte) (FADT, error) {
	b, err := table(b, "FACP", headerSize)
	if err != nil {
		return FADT{}, err
	}
	var f FADT
	if len(b) > fadtResetValue && le.Uint32(b[fadtFlags:])&fadtResetSupported != 0 {
		f.Reset = &Address{Space: b[fadtReset], Address: le.Uint64(b[fadtReset+4:])}
		f.ResetValue = b[fadtResetValue]
	}
	if len(b) >= fadtARMBootEnd {
		flags := le.Uint16(b[fadtARMBoot:])
		f.PSCI, f.HVC = flags&armBootPSCI != 0, flags&armBootHVC != 0
	}
	return f, nil
}
