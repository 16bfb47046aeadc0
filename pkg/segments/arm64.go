package segments

import (
	"fmt"
	"math/bits"

	"github.com/warmcore/warmcore/boot/trampoline"
	"github.com/warmcore/warmcore/pkg/phys"
)

// maxARM64Cmdline is the longest command line, without NUL (COMMAND_LINE_SIZE
// in arch/arm64/include/uapi/asm/setup.h, v6.12).
const maxARM64Cmdline = 2047

// Image and initrd must fit in one 32 GiB window, which begins at a multiple
// of 1 GiB (booting.rst, v6.12).
const initrdWindow = 32 * phys.GiB

// ARM64 places an Image as Documentation/arch/arm64/booting.rst (v6.12) says:
// it goes to the lowest multiple of 2 MiB (plus its text_offset), the initrd
// as high as possible within 32 GiB of it, the ELF core header where the
// kernel has RAM, and the device tree where it crosses no multiple of 2 MiB.
// The trampoline goes to the running kernel's own memory, because kexec can't
// place anything elsewhere.
func ARM64(l Linux) (*Image, error) {
	k, ok := l.Kernel.(*ARM64Image)
	switch {
	case !ok:
		return nil, fmt.Errorf("kernel %v: not for arm64", l.Kernel)
	case len(l.Cmdline) > maxARM64Cmdline:
		return nil, fmt.Errorf("command line of %d bytes: the kernel takes %d", len(l.Cmdline), maxARM64Cmdline)
	case l.Tree == nil:
		return nil, fmt.Errorf("kernel %v: there is no device tree of the machine", l.Kernel)
	}
	free := l.Allowed.AlignIn(phys.PageSize)
	take := func(r phys.Range) { free = free.Minus(phys.Set{{Start: r.Start, End: roundUp(r.End)}}) }
	var img Image
	at, err := lowest(free, k.TextOffset+k.ImageSize, imageAlignment)
	if err != nil {
		return nil, fmt.Errorf("place kernel: %w", err)
	}
	kernel := phys.Range{Start: at.Start + k.TextOffset, End: at.End}
	take(kernel)
	img.Segments = append(img.Segments, phys.Segment{Name: "kernel", Range: kernel, Data: k.code})
	img.Entry = kernel.Start

	if l.InitrdSize > 0 {
		img.Initrd, err = highest(free.Intersect(phys.Set{around(kernel)}), l.InitrdSize)
		if err != nil {
			return nil, fmt.Errorf("place initrd: %w", err)
		}
		take(img.Initrd)
	}
	var header phys.Range
	if len(l.CoreHeader) > 0 {
		if header, err = lowest(free, uint64(len(l.CoreHeader)), phys.PageSize); err != nil {
			return nil, fmt.Errorf("place ELF core header: %w", err)
		}
		take(header)
		img.Segments = append(img.Segments, phys.Segment{Name: "ELF core header", Range: header, Data: l.CoreHeader})
	}

	tree, err := l.normalTree(img.Initrd, header)
	if err != nil {
		return nil, err
	}
	blob, err := tree.Append(nil)
	if err != nil {
		return nil, err
	}
	place, err := lowest(free, uint64(len(blob)), max(phys.PageSize, 1<<bits.Len(uint(len(blob)-1))))
	if err != nil {
		return nil, fmt.Errorf("place device tree: %w", err)
	}
	take(place)
	img.Segments = append(img.Segments, phys.Segment{Name: "device tree", Range: place, Data: blob})

	code, err := trampoline.BuildARM64(trampoline.ARM64Params{Entry: img.Entry, DeviceTree: place.Start})
	if err != nil {
		return nil, err
	}
	own := l.Own.AlignIn(phys.PageSize)
	for _, s := range append(img.Segments, phys.Segment{Range: img.Initrd}) {
		own = own.Minus(phys.Set{{Start: phys.AlignDown(s.Range.Start, phys.PageSize), End: roundUp(s.Range.End)}})
	}
	if place, err = lowest(own, roundUp(uint64(len(code))), phys.PageSize); err != nil {
		return nil, fmt.Errorf("place trampoline: %w", err)
	}
	img.Trampoline = phys.Segment{Name: "trampoline", Range: place, Data: code}
	return &img, nil
}

// around returns the range in which the initrd of a kernel may lie. Any place
// in it that doesn't overlap the kernel fits in one 32 GiB window with the
// kernel.
func around(kernel phys.Range) phys.Range {
	r := phys.Range{End: phys.AlignDown(kernel.Start, phys.GiB) + initrdWindow}
	if top, ok := phys.AlignUp(kernel.End, phys.GiB); ok && top > initrdWindow {
		r.Start = top - initrdWindow
	}
	return r
}
