package stub

import (
	_ "embed"
	"encoding/binary"
	"fmt"

	"github.com/warmcore/warmcore/boot/identmap"
	"github.com/warmcore/warmcore/pkg/acpi"
	"github.com/warmcore/warmcore/pkg/phys"
)

// Sizes and bounds, in bytes unless they say otherwise.
const (
	AMD64Size = 0xc000 // of the image

	lowPageSize = phys.PageSize
	lowPageTop  = 640 * phys.KiB
	addressTop  = 4 * phys.GiB
	portTop     = 1 << 16
	idBroadcast = 0xffffffff // an x2APIC destination, never a CPU's ID
)

// Offsets in the image; stub.S has the same.
const (
	offRecord       = 0x010
	offLowPage      = 0x018
	offNonce        = 0x020
	offBSP          = 0x030
	offCount        = 0x034
	offResetAddress = 0x038
	offResetSpace   = 0x040
	offResetValue   = 0x041
	offSkip         = 0x044
	offProgress     = 0x048
	offTables       = 0x1000
	offList         = 0x8000
	offStackTop     = 0xc000
)

// Address spaces of a reset register (ACPI 6.5, "Generic Address Structure").
const (
	SpaceMemory = 0
	SpaceIO     = 1
	SpacePCI    = 2
)

// Reset methods that AMD64Params.Skip leaves out, so that a test can try each
// of the later ones. A triple fault comes last and can't be left out.
const (
	SkipCF9      = 1 << 0
	SkipACPI     = 1 << 1
	SkipKeyboard = 1 << 2
	skipAll      = SkipCF9 | SkipACPI | SkipKeyboard
)

// ResetRegister is the ACPI reset register, FADT's RESET_REG and RESET_VALUE.
// An Address of 0 means that there is none. The stub doesn't use one in PCI
// configuration space: it goes on with the next method.
type ResetRegister struct {
	Space   uint8
	Address uint64
	Value   uint8
}

// AMD64Params are the parameters of an image. Addresses are physical.
type AMD64Params struct {
	Base    uint64   // where the image will lie: 4 KiB aligned, [1 MiB, 4 GiB)
	Record  uint64   // where the crash record goes: 64-byte aligned, same range
	LowPage uint64   // a page that the stub may overwrite: [4 KiB, 640 KiB)
	Nonce   [16]byte // of this registration; not zero

	// APICIDs lists the CPUs that run the crashed kernel, in any order,
	// whichever of them crashes. Those beyond 254 need x2APIC.
	APICIDs []uint32

	// BSP is the bootstrap processor's APIC ID. If another CPU crashes, BSP
	// can't be made to flush: INIT would make it run firmware's reset vector.
	BSP uint32

	ResetRegister ResetRegister
	Skip          uint32 // Skip* bits; 0 except in tests
}

//go:embed amd64/stub.bin
var amd64Code []byte

// BuildAMD64 returns the image to load at p.Base, and the physical address of its
// first instruction. len(image) is AMD64Size.
func BuildAMD64(p AMD64Params) (image []byte, entry uint64, err error) {
	if err := p.check(); err != nil {
		return nil, 0, fmt.Errorf("build stub: %w", err)
	}
	image = make([]byte, AMD64Size)
	if len(amd64Code) > offTables {
		return nil, 0, fmt.Errorf("build stub: code of %d bytes, room for %d", len(amd64Code), offTables)
	}
	copy(image, amd64Code)
	var uncached []uint64
	if reset := p.ResetRegister; reset.Address != 0 && reset.Space == SpaceMemory {
		uncached = append(uncached, reset.Address)
	}
	tables := image[offTables:offList]
	if err := identmap.Put(tables, p.Base+offTables, addressTop, uncached...); err != nil {
		return nil, 0, fmt.Errorf("build stub: %w", err)
	}
	le := binary.LittleEndian
	le.PutUint64(image[offRecord:], p.Record)
	le.PutUint64(image[offLowPage:], p.LowPage)
	copy(image[offNonce:], p.Nonce[:])
	le.PutUint32(image[offBSP:], p.BSP)
	le.PutUint32(image[offCount:], uint32(len(p.APICIDs)))
	if p.ResetRegister.Space != SpacePCI {
		le.PutUint64(image[offResetAddress:], p.ResetRegister.Address)
		image[offResetSpace] = p.ResetRegister.Space
		image[offResetValue] = p.ResetRegister.Value
	}
	le.PutUint32(image[offSkip:], p.Skip)
	for i, id := range p.APICIDs {
		le.PutUint32(image[offList+4*i:], id)
	}
	return image, p.Base, nil
}

// check returns an error if p is invalid. It bounds every address to what
// the image's page tables map.
func (p AMD64Params) check() error {
	image, err := within(p.Base, AMD64Size, phys.PageSize, phys.Range{Start: phys.MiB, End: addressTop})
	if err != nil {
		return fmt.Errorf("base: %w", err)
	}
	record, err := within(p.Record, recordSize, recordAlign, phys.Range{Start: phys.MiB, End: addressTop})
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if image.Overlaps(record) {
		return fmt.Errorf("record %v: in the image, %v", record, image)
	}
	// Page 0 is not allowed: it holds the interrupt vectors, and 0 as a
	// SIPI vector can only be a mistake.
	if _, err := within(p.LowPage, lowPageSize, lowPageSize, phys.Range{Start: lowPageSize, End: lowPageTop}); err != nil {
		return fmt.Errorf("low page: %w", err)
	}
	if p.Nonce == [16]byte{} {
		return fmt.Errorf("nonce: all zero")
	}
	if n := len(p.APICIDs); n == 0 || n > MaxCPUs {
		return fmt.Errorf("APIC IDs: %d, want 1 to %d", n, MaxCPUs)
	}
	seen := make(map[uint32]int, len(p.APICIDs))
	for i, id := range p.APICIDs {
		if id == idBroadcast {
			return fmt.Errorf("APIC ID %d: %#x is everyone", i, id)
		}
		if first, ok := seen[id]; ok {
			return fmt.Errorf("APIC ID %d: %#x is number %d already", i, id, first)
		}
		seen[id] = i
	}
	if p.BSP == idBroadcast {
		return fmt.Errorf("bootstrap processor's APIC ID: %#x is everyone", p.BSP)
	}
	if err := p.ResetRegister.check(); err != nil {
		return fmt.Errorf("reset register: %w", err)
	}
	if p.Skip&^skipAll != 0 {
		return fmt.Errorf("skip: unknown bits in %#x", p.Skip)
	}
	return nil
}

func (r ResetRegister) check() error {
	if r.Address == 0 {
		return nil
	}
	switch {
	case r.Space > SpacePCI:
		return fmt.Errorf("address space %d: not memory, I/O or PCI", r.Space)
	case r.Space == SpaceIO && r.Address >= portTop:
		return fmt.Errorf("I/O port %#x: beyond %#x", r.Address, portTop-1)
	case r.Space == SpaceMemory && r.Address >= addressTop:
		return fmt.Errorf("memory %#x: not mapped, beyond 4 GiB", r.Address)
	}
	return nil
}

// FADTReset returns the reset register that the FADT names, or none.
func FADTReset(f acpi.FADT) ResetRegister {
	r := f.Reset
	// A reset register that the stub can't reach must not keep the machine
	// from being armed: the stub has other ways to reset.
	switch {
	case r == nil:
		return ResetRegister{}
	case r.Space == acpi.SpaceIO && r.Address < 1<<16:
		return ResetRegister{Space: SpaceIO, Address: r.Address, Value: f.ResetValue}
	case r.Space == acpi.SpaceMemory && r.Address < 4*phys.GiB:
		return ResetRegister{Space: SpaceMemory, Address: r.Address, Value: f.ResetValue}
	}
	return ResetRegister{}
}
