package trampoline

import (
	_ "embed"
	"encoding/binary"
	"fmt"

	"github.com/warmcore/warmcore/boot/identmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

// Bounds of the map and the image, in bytes.
const (
	MinMapTop    = 4 * phys.GiB    // least end of the map
	MaxMapTop    = identmap.MaxTop // largest end of the map: 512 GiB
	amd64MaxSize = offTables + identmap.PD + (MaxMapTop/phys.GiB)*phys.PageSize
)

// Offsets in the image; trampoline.S has the same.
const (
	offEntry      = 0x010
	offBootParams = 0x018
	offStackTop   = 0x1000
	offTables     = 0x1000
)

// stackSize is how many bytes the code pushes, rounded up.
const stackSize = 0x100

// AMD64Params are the parameters of an image. Addresses are physical.
type AMD64Params struct {
	Base uint64 // where the image will lie: 4 KiB aligned, not below 1 MiB

	// Entry is the kernel's 64-bit entry point: where a bzImage's protected
	// mode part lies, plus 0x200.
	Entry uint64

	BootParams uint64 // struct boot_params, handed over in rsi

	// MapTop is the end of the map. It is rounded up to a GiB, and raised
	// to MinMapTop if it is lower. The image, Entry and BootParams lie
	// below it.
	MapTop uint64
}

//go:embed amd64/trampoline.bin
var amd64Code []byte

// Size returns the size in bytes of an image with p's MapTop. The caller needs
// it to choose Base.
func (p AMD64Params) Size() (uint64, error) {
	size, _, err := identmap.Size(max(p.MapTop, MinMapTop))
	if err != nil {
		return 0, fmt.Errorf("size trampoline: %w", err)
	}
	return offTables + size, nil
}

// BuildAMD64 returns the image to load at p.Base; its first byte is its entry.
func BuildAMD64(p AMD64Params) (image []byte, err error) {
	size, err := p.Size()
	if err != nil {
		return nil, err
	}
	top := max(p.MapTop, MinMapTop)
	if err := p.check(size, top); err != nil {
		return nil, fmt.Errorf("build trampoline: %w", err)
	}
	if len(amd64Code) > offStackTop-stackSize {
		return nil, fmt.Errorf("build trampoline: code of %d bytes, room for %d", len(amd64Code), offStackTop-stackSize)
	}
	image = make([]byte, size)
	copy(image, amd64Code)
	if err := identmap.Put(image[offTables:], p.Base+offTables, top); err != nil {
		return nil, fmt.Errorf("build trampoline: %w", err)
	}
	binary.LittleEndian.PutUint64(image[offEntry:], p.Entry)
	binary.LittleEndian.PutUint64(image[offBootParams:], p.BootParams)
	return image, nil
}

func (p AMD64Params) check(size, top uint64) error {
	bounds := phys.Range{Start: phys.MiB, End: top}
	image, ok := phys.Sized(p.Base, size)
	if !ok || !bounds.Contains(image) {
		return fmt.Errorf("base: %#x bytes at %#x: outside %v", size, p.Base, bounds)
	}
	if p.Base%phys.PageSize != 0 {
		return fmt.Errorf("base: %#x: not a multiple of %#x", p.Base, phys.PageSize)
	}
	for _, a := range []struct {
		name string
		addr uint64
		size uint64
	}{
		{"entry", p.Entry, 1},
		{"boot_params", p.BootParams, phys.PageSize},
	} {
		r, ok := phys.Sized(a.addr, a.size)
		if !ok || a.addr == 0 || r.End > top {
			return fmt.Errorf("%s: %#x: not in (0, %#x)", a.name, a.addr, top)
		}
		if r.Overlaps(image) {
			return fmt.Errorf("%s: %v: in the image, %v", a.name, r, image)
		}
	}
	return nil
}
