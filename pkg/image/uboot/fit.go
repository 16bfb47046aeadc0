// Package uboot makes what U-Boot starts a payload from: a FIT image, which
// has kernel, initramfs and device tree in one file, and an environment, whose
// variables say what to start. It is what U-Boot's mkimage -E and mkenvimage
// write; the same input gives the same bytes.
package uboot

import (
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/warmcore/warmcore/pkg/devicetree"
)

// FIT is a flattened image tree for an arm64 board
// (doc/usage/fit/source_file_format.rst in U-Boot 2023.10).
type FIT struct {
	Description string
	Kernel      Part // an arm64 Image, not compressed
	Ramdisk     Part // the initramfs; none without data, if it is in the kernel
	DeviceTree  Part // a blob
}

// Part is a file in a FIT, and the physical address to which U-Boot copies it.
// A kernel is started there, too.
type Part struct {
	Load uint64
	Data []byte
}

// maxPart caps a part, in bytes: U-Boot's sizes have 32 bits.
const maxPart = 1 << 30

// Append appends the image to dst: a device tree that describes the parts, and
// after it their data, each at a multiple of 4 bytes. That the data is not in
// the tree itself, as in an image of mkimage without -E, keeps the tree small.
func (f FIT) Append(dst []byte) ([]byte, error) {
	if len(f.Kernel.Data) == 0 || len(f.DeviceTree.Data) == 0 {
		return nil, errors.New("FIT image: want a kernel and a device tree")
	}
	root := &devicetree.Node{}
	root.SetString("description", f.Description)
	root.SetUint32("timestamp", 0) // U-Boot wants one
	root.SetUint32("#address-cells", 1)
	images := root.Add("images")
	configurations := root.Add("configurations")
	configurations.SetString("default", "payload")
	payload := configurations.Add("payload")
	payload.SetString("description", f.Description)
	var data []byte
	for _, p := range []struct {
		Part
		name, kind string
	}{{f.Kernel, "kernel", "kernel"}, {f.Ramdisk, "ramdisk", "ramdisk"}, {f.DeviceTree, "fdt", "flat_dt"}} {
		if len(p.Data) == 0 {
			continue
		}
		if len(p.Data) > maxPart {
			return nil, fmt.Errorf("FIT image: %s of %d bytes: want at most %d", p.name, len(p.Data), maxPart)
		}
		n := images.Add(p.name)
		n.SetString("description", p.name)
		n.SetString("type", p.kind)
		n.SetString("arch", "arm64")
		n.SetString("os", "linux")
		n.SetString("compression", "none")
		n.SetUint64("load", p.Load)
		if p.kind == "kernel" {
			n.SetUint64("entry", p.Load)
		}
		n.SetUint32("data-size", uint32(len(p.Data)))
		n.SetUint32("data-offset", uint32(len(data))) // from the end of the tree, rounded up to 4
		hash := n.Add("hash-1")
		hash.SetString("algo", "crc32")
		hash.SetUint32("value", crc32.ChecksumIEEE(p.Data))
		payload.SetString(p.name, p.name)
		data = align(append(data, p.Data...), 0)
	}
	start := len(dst)
	dst, err := (&devicetree.Tree{Root: root}).Append(dst)
	if err != nil {
		return nil, fmt.Errorf("FIT image: %w", err)
	}
	return append(align(dst, start), data...), nil
}

// align pads b, from start on, to a multiple of 4 bytes.
func align(b []byte, start int) []byte {
	return append(b, make([]byte, -(len(b)-start)&3)...)
}
