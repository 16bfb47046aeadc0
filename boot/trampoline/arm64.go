package trampoline

import (
	_ "embed"
	"encoding/binary"
	"fmt"

	"github.com/warmcore/warmcore/pkg/phys"
)

// arm64Size is the size of every image, in bytes. Once the kernel runs, the
// image isn't needed any more.
const arm64Size = 0x5c

const (
	arm64OffEntry      = 0x010
	arm64OffDeviceTree = 0x018

	arm64AddressTop = 1 << 48
)

// ARM64Params are the parameters of an image. Addresses are physical.
type ARM64Params struct {
	// Entry is the first byte of the kernel's Image: page aligned, because
	// it is a multiple of 2 MiB plus the text_offset in its header.
	Entry uint64

	// DeviceTree is the address of the device tree: 8-byte aligned, handed
	// over in x0.
	DeviceTree uint64
}

//go:embed arm64/trampoline.bin
var arm64Code []byte

// BuildARM64 returns the image, of arm64Size bytes. Before the image is
// entered, the kernel at Entry and the device tree must have been written back
// from the caches to memory.
func BuildARM64(p ARM64Params) (image []byte, err error) {
	for _, a := range []struct {
		name        string
		addr, align uint64
	}{
		{"entry", p.Entry, phys.PageSize},
		{"device tree", p.DeviceTree, 8},
	} {
		if a.addr >= arm64AddressTop {
			return nil, fmt.Errorf("build trampoline: %s: %#x: beyond %#x", a.name, a.addr, uint64(arm64AddressTop))
		}
		if a.addr%a.align != 0 {
			return nil, fmt.Errorf("build trampoline: %s: %#x: not a multiple of %#x", a.name, a.addr, a.align)
		}
	}
	// Address 0 is RAM on some boards, but here it can only be a mistake.
	if p.DeviceTree == 0 {
		return nil, fmt.Errorf("build trampoline: device tree: none")
	}
	image = append(image, arm64Code...)
	binary.LittleEndian.PutUint64(image[arm64OffEntry:], p.Entry)
	binary.LittleEndian.PutUint64(image[arm64OffDeviceTree:], p.DeviceTree)
	return image, nil
}
