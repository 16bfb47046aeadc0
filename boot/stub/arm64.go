package stub

import (
	_ "embed"
	"encoding/binary"
	"fmt"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Sizes and bounds, in bytes.
const (
	// ARM64Size is the size of every image: a page, whatever page size the
	// kernel has that loads it.
	ARM64Size = 0x1_0000

	// arm64NotListed is the number of a CPU that crashed and isn't listed.
	arm64NotListed = 0xffff_ffff

	arm64AddressTop = 1 << 48 // end of the addresses that every arm64 CPU on which Linux runs can use

	// Aff3 and Aff2 to Aff0 of an MPIDR.
	affinityBits = 0xff_00ff_ffff
)

// Offsets in the image; stub.S has the same.
const (
	arm64OffRecord   = 0x010
	arm64OffNonce    = 0x020
	arm64OffConduit  = 0x030
	arm64OffCount    = 0x034
	arm64OffSkip     = 0x038
	arm64OffProgress = 0x03c
	arm64OffCleaned  = 0x040
	arm64OffFaults   = 0x048
	arm64OffResult   = 0x04c
	arm64OffSyndrome = 0x050
	arm64OffBitmap   = 0x060
	arm64OffVectors  = 0x800
	arm64OffList     = 0x1000
)

// Conduit is the instruction that calls PSCI: "method" of /psci in the device
// tree, a flag in the FADT. The zero value means none.
type Conduit uint32

// The conduits.
const (
	ConduitHVC Conduit = 1 // of a hypervisor, from EL1
	ConduitSMC Conduit = 2 // of firmware at EL3
)

// String returns the device tree's word.
func (c Conduit) String() string {
	switch c {
	case ConduitHVC:
		return "hvc"
	case ConduitSMC:
		return "smc"
	}
	return fmt.Sprintf("conduit(%d)", uint32(c))
}

// Reset methods that ARM64Params.Skip leaves out: for tests, and for boards
// where one does harm.
const (
	SkipSystemReset2 = 1 << 0
	SkipSystemReset  = 1 << 1
	arm64SkipAll     = SkipSystemReset2 | SkipSystemReset
)

// ARM64Params are the parameters of an image. Addresses are physical.
type ARM64Params struct {
	Base    uint64   // where the image will lie: aligned to ARM64Size, from 1 MiB on
	Record  uint64   // where the crash record goes: 64-byte aligned, from 1 MiB on
	Nonce   [16]byte // of this registration; not zero
	Conduit Conduit

	// CPUs lists the MPIDRs of the CPUs that run the crashed kernel, affinity
	// fields only as in the device tree's /cpus, whichever of them crashes. The
	// crash record numbers the CPUs in this order.
	CPUs []uint64

	Skip uint32 // SkipSystem* bits
}

//go:embed arm64/stub.bin
var arm64Code []byte

// BuildARM64 returns the image to load at p.Base, and the physical address of
// its first instruction. len(image) is ARM64Size.
func BuildARM64(p ARM64Params) (image []byte, entry uint64, err error) {
	if err := p.check(); err != nil {
		return nil, 0, fmt.Errorf("build stub: %w", err)
	}
	if len(arm64Code) > arm64OffList {
		return nil, 0, fmt.Errorf("build stub: code of %d bytes, room for %d", len(arm64Code), arm64OffList)
	}
	image = make([]byte, ARM64Size)
	copy(image, arm64Code)
	le := binary.LittleEndian
	le.PutUint64(image[arm64OffRecord:], p.Record)
	copy(image[arm64OffNonce:], p.Nonce[:])
	le.PutUint32(image[arm64OffConduit:], uint32(p.Conduit))
	le.PutUint32(image[arm64OffCount:], uint32(len(p.CPUs)))
	le.PutUint32(image[arm64OffSkip:], p.Skip)
	for i, mpidr := range p.CPUs {
		le.PutUint64(image[arm64OffList+8*i:], mpidr)
	}
	return image, p.Base, nil
}

// check returns an error if p is invalid.
func (p ARM64Params) check() error {
	bounds := phys.Range{Start: phys.MiB, End: arm64AddressTop}
	image, err := within(p.Base, ARM64Size, ARM64Size, bounds)
	if err != nil {
		return fmt.Errorf("base: %w", err)
	}
	record, err := within(p.Record, recordSize, recordAlign, bounds)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if image.Overlaps(record) {
		return fmt.Errorf("record %v: in the image, %v", record, image)
	}
	if p.Nonce == [16]byte{} {
		return fmt.Errorf("nonce: all zero")
	}
	if p.Conduit != ConduitHVC && p.Conduit != ConduitSMC {
		return fmt.Errorf("PSCI: %v: not hvc or smc", p.Conduit)
	}
	if n := len(p.CPUs); n == 0 || n > MaxCPUs {
		return fmt.Errorf("CPUs: %d, want 1 to %d", n, MaxCPUs)
	}
	seen := make(map[uint64]int, len(p.CPUs))
	for i, mpidr := range p.CPUs {
		if mpidr&^affinityBits != 0 {
			return fmt.Errorf("CPU %d: MPIDR %#x has more than affinity fields", i, mpidr)
		}
		if first, ok := seen[mpidr]; ok {
			return fmt.Errorf("CPU %d: MPIDR %#x is number %d already", i, mpidr, first)
		}
		seen[mpidr] = i
	}
	if p.Skip&^arm64SkipAll != 0 {
		return fmt.Errorf("skip: unknown bits in %#x", p.Skip)
	}
	return nil
}
