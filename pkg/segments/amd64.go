package segments

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/warmcore/warmcore/boot/trampoline"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/zeropage"
)

const fourGiB = 4 * phys.GiB

// trampolineSize bounds the trampoline with its page tables.
const trampolineSize = 64 * phys.KiB

// AMD64 places a bzImage, by the 64-bit boot protocol
// (Documentation/arch/x86/boot.rst, v6.12).
//
// The kernel goes below 4 GiB: to its preferred address if that is allowed,
// else to the lowest allowed place above it that has the kernel's alignment.
// The trampoline's page tables map those 4 GiB one to one; the kernel maps an
// initrd above them itself.
func AMD64(l Linux) (*Image, error) {
	k, ok := l.Kernel.(*BzImage)
	if !ok {
		return nil, fmt.Errorf("kernel %v: not for x86-64", l.Kernel)
	}
	if uint64(len(l.Cmdline)) > k.CmdlineSize {
		return nil, fmt.Errorf("command line of %d bytes: the kernel takes %d", len(l.Cmdline), k.CmdlineSize)
	}
	free := l.Allowed.AlignIn(phys.PageSize)
	low := free.Intersect(phys.Set{{Start: 0, End: fourGiB}})
	kernel, err := k.where(low)
	if err != nil {
		return nil, err
	}
	var img Image
	take := func(r phys.Range) { free, low = free.Minus(phys.Set{r}), low.Minus(phys.Set{r}) }
	take(kernel)
	img.Segments = append(img.Segments, phys.Segment{Name: "kernel", Range: kernel, Data: k.code})
	img.Entry = kernel.Start + entry64

	if l.InitrdSize > 0 {
		where := free
		if !k.Above4G {
			where = low.Intersect(phys.Set{{Start: 0, End: k.InitrdMax + 1}}).AlignIn(phys.PageSize)
		}
		if img.Initrd, err = highest(where, l.InitrdSize); err != nil {
			return nil, fmt.Errorf("place initrd: %w", err)
		}
		take(phys.Range{Start: img.Initrd.Start, End: roundUp(img.Initrd.End)})
	}

	table, err := memmap.AppendE820(nil, l.Map.Normalize().Entries)
	if err != nil {
		return nil, err
	}
	page, err := zeropage.New(k.header)
	if err != nil {
		return nil, err
	}
	extra := page.SetE820(table)
	// Zero page, command line, and setup_data, one after the other.
	cmdlineSize := roundUp(uint64(len(l.Cmdline)) + 1)
	size := zeropage.Size + cmdlineSize
	if len(extra) > 0 {
		size += roundUp(setupDataHeader + uint64(len(extra)))
	}
	at, err := lowest(low, size, phys.PageSize)
	if err != nil {
		return nil, fmt.Errorf("place zero page and command line: %w", err)
	}
	take(at)
	if running, err := zeropage.Parse(l.BootParams); err == nil {
		page.CopyScreen(running)
	}
	page.SetRSDP(l.RSDP)
	page.SetInitrd(img.Initrd)
	page.SetCmdline(at.Start + zeropage.Size)
	data := make([]byte, size)
	copy(data[zeropage.Size:], l.Cmdline)
	if len(extra) > 0 {
		off := zeropage.Size + cmdlineSize
		appendSetupData(data[off:off], setupE820Ext, extra)
		page.SetSetupData(at.Start + off)
	}
	copy(data, page)
	img.Segments = append(img.Segments, phys.Segment{Name: "zero page", Range: at, Data: data})

	place, err := lowest(low, trampolineSize, phys.PageSize)
	if err != nil {
		return nil, fmt.Errorf("place trampoline: %w", err)
	}
	code, err := trampoline.BuildAMD64(trampoline.AMD64Params{Base: place.Start, Entry: img.Entry, BootParams: at.Start, MapTop: fourGiB})
	if err != nil {
		return nil, err
	}
	if uint64(len(code)) > trampolineSize {
		return nil, fmt.Errorf("trampoline of %d bytes: more than %d", len(code), trampolineSize)
	}
	place.End = roundUp(place.Start + uint64(len(code)))
	img.Trampoline = phys.Segment{Name: "trampoline", Range: place, Data: code}
	return &img, nil
}

// where returns the kernel's place. A relocatable kernel moves itself up to
// PrefAddress, or to the next multiple of Alignment, before it decompresses
// ("init_size" in boot.rst, v6.12), so it must be placed at or above
// PrefAddress, at a multiple of Alignment.
func (k *BzImage) where(low phys.Set) (phys.Range, error) {
	size := roundUp(k.InitSize)
	align := phys.PageSize
	if k.Relocatable {
		align = max(k.Alignment, phys.PageSize)
	}
	want, ok := phys.Sized(k.PrefAddress, size)
	if ok && low.Contains(want) && want.Start%align == 0 {
		return want, nil
	}
	if !k.Relocatable {
		return phys.Range{}, fmt.Errorf("place kernel: it is not relocatable and its place %v is not boot memory (%v)", want, low)
	}
	r, err := lowest(low.Intersect(phys.Set{{Start: k.PrefAddress, End: fourGiB}}), size, align)
	if err != nil {
		return phys.Range{}, fmt.Errorf("place kernel: %w", err)
	}
	return r, nil
}

const (
	setupE820Ext    = 1  // SETUP_E820_EXT
	setupDataHeader = 16 // struct setup_data: next u64, type u32, len u32
)

func appendSetupData(b []byte, kind uint32, data []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, 0)
	b = binary.LittleEndian.AppendUint32(b, kind)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func roundUp(n uint64) uint64 { return (n + phys.PageSize - 1) &^ (phys.PageSize - 1) }

// lowest returns the first place for size bytes at a multiple of align.
func lowest(s phys.Set, size, align uint64) (phys.Range, error) {
	for _, r := range s {
		start, ok := phys.AlignUp(r.Start, align)
		if at, fits := phys.Sized(start, size); ok && fits && r.Contains(at) {
			return at, nil
		}
	}
	return phys.Range{}, noRoom(s, size)
}

// highest returns the last page-aligned place for size bytes.
func highest(s phys.Set, size uint64) (phys.Range, error) {
	for _, r := range slices.Backward(s) {
		if whole := roundUp(size); whole >= size && r.Size() >= whole {
			start := r.End - whole
			return phys.Range{Start: start, End: start + size}, nil
		}
	}
	return phys.Range{}, noRoom(s, size)
}

func noRoom(s phys.Set, size uint64) error {
	if len(s) == 0 {
		return fmt.Errorf("no room for %s: nothing is left", phys.FormatSize(size))
	}
	most := slices.MaxFunc(s, func(a, b phys.Range) int { return cmp.Compare(a.Size(), b.Size()) })
	return fmt.Errorf("no room for %s: the largest piece left is %v, %s", phys.FormatSize(size), most, phys.FormatSize(most.Size()))
}
