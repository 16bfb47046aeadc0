// Package kernelmap says where a Linux kernel has mapped its memory: the
// direct map, the kernel's image, and page tables in the memory of a crashed
// kernel.
//
// The sources are a kernel's VMCOREINFO and page tables (Read), the text of
// VMCOREINFO alone (FromText, Symbol), or the program headers of /proc/kcore
// (FromCore). What depends on the architecture is data: amd64.go and arm64.go
// each define an arch. A further architecture is another such file and a line
// in arches. A kernel of any other architecture is refused.
//
// Invariants: everything here reads memory that a crashed or hostile system
// wrote. Every walk is bounded, and page tables are trusted only if they agree
// with themselves and with the text.
package kernelmap

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// maxKernelImage is the most that a kernel's image takes, in bytes: x86-64's
// largest KERNEL_IMAGE_SIZE; modules follow it. arm64 sets no bound of its own
// below 2 GiB.
const maxKernelImage = phys.GiB

// Mapping is where a kernel mapped its memory, for p_vaddr of a dump. Unit:
// bytes. The zero value means that the mapping isn't known.
type Mapping struct {
	// DirectBase is the virtual address of physical 0 in the direct map,
	// as if the map began with physical 0. On arm64, whose linear map
	// begins with the first RAM, it may wrap.
	DirectBase uint64
	TextVirt   uint64 // virtual address of the kernel's image
	TextPhys   uint64 // physical address of the same
	TextSize   uint64 // whole pages, from _stext to the last one mapped
}

// ErrStale: the page tables that VMCOREINFO names are not those of the kernel
// that wrote it. The VMCOREINFO was left by an earlier boot whose memory a
// later one overwrote in part, or it is forged. What an earlier boot left
// intact can't be told from the crashed kernel's own; see vmcoreinfo.Find.
var ErrStale = errors.New("page tables don't belong to this VMCOREINFO")

// Read derives the mapping of a kernel from its VMCOREINFO and its page
// tables. The text says which architecture it is. The error is ErrStale unless
// three things hold: the top table maps its own address to itself, it maps the
// text where the text says, and the release in init_uts_ns is the one in the
// text. The direct map must map the top table and the text too.
func Read(r vmcoreinfo.Reader, info *vmcoreinfo.Info) (Mapping, error) {
	m, err := read(r, info)
	if err != nil {
		return Mapping{}, fmt.Errorf("find mapping of kernel %s: %w", info.Release, err)
	}
	return m, nil
}

// Tables returns the page tables of the kernel that wrote info. They are not
// checked; Read does that.
func Tables(r vmcoreinfo.Reader, info *vmcoreinfo.Info) (*PageTables, error) {
	k, err := newKernel(r, info)
	if err != nil {
		return nil, fmt.Errorf("find page tables of kernel %s: %w", info.Release, err)
	}
	return k.tables, nil
}

func read(r vmcoreinfo.Reader, info *vmcoreinfo.Info) (Mapping, error) {
	k, err := newKernel(r, info)
	if err != nil {
		return Mapping{}, err
	}
	if err := k.checkLive(); err != nil {
		return Mapping{}, err
	}
	base, err := k.arch.directBase(k)
	if err != nil {
		return Mapping{}, err
	}
	for _, virt := range []uint64{k.root, k.text} {
		want := k.symbolPhys(virt)
		ok, err := k.maps(base+want, want)
		if err != nil {
			return Mapping{}, err
		}
		if !ok {
			return Mapping{}, fmt.Errorf("direct map at %#x doesn't map %#x", base, want)
		}
	}
	size, err := k.textSize()
	if err != nil {
		return Mapping{}, err
	}
	return Mapping{DirectBase: base, TextVirt: k.text, TextPhys: k.symbolPhys(k.text), TextSize: size}, nil
}

// kernel is one kernel's addresses, and the memory to read them in.
type kernel struct {
	arch      *arch
	r         vmcoreinfo.Reader
	info      *vmcoreinfo.Info
	tables    *PageTables
	imageBase uint64 // virtual address where an image may begin
	imageSize uint64 // most bytes from there
	root      uint64 // virtual address of swapper_pg_dir
	text      uint64 // virtual address of the page of _stext
}

func newKernel(r vmcoreinfo.Reader, info *vmcoreinfo.Info) (*kernel, error) {
	root, haveRoot := info.Symbols["swapper_pg_dir"]
	stext, haveText := info.Symbols["_stext"]
	if !haveRoot || !haveText {
		return nil, errors.New("VMCOREINFO lacks SYMBOL(swapper_pg_dir) or SYMBOL(_stext)")
	}
	a, err := archOf(info)
	if err != nil {
		return nil, err
	}
	k := &kernel{arch: a, r: r, info: info, root: root, text: phys.AlignDown(stext, phys.PageSize)}
	if k.imageBase, k.imageSize, err = a.image(info, k.text); err != nil {
		return nil, err
	}
	for _, virt := range []uint64{k.root, k.text} {
		if virt < k.imageBase || virt-k.imageBase >= k.imageSize {
			return nil, fmt.Errorf("symbol at %#x is outside the kernel's image", virt)
		}
	}
	k.tables, err = a.tables(r, info, k.symbolPhys(root))
	return k, err
}

func (k *kernel) symbolPhys(virt uint64) uint64 { return virt + k.arch.imageOffset(k.info) }

// maps says whether virt is mapped to want.
func (k *kernel) maps(virt, want uint64) (bool, error) {
	got, ok, err := k.tables.Translate(virt)
	return ok && got == want, err
}

// utsRelease is the offset of release in struct new_utsname: after sysname and
// nodename, 65 bytes each (include/uapi/linux/utsname.h).
const utsRelease = 2 * 65

// checkLive returns ErrStale unless memory still agrees with the text.
func (k *kernel) checkLive() error {
	for _, virt := range []uint64{k.root, k.text} {
		ok, err := k.maps(virt, k.symbolPhys(virt))
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("%#x is not mapped to %#x: %w", virt, k.symbolPhys(virt), ErrStale)
		}
	}
	uts, have := k.info.Symbols["init_uts_ns"]
	if !have {
		return nil
	}
	want := append([]byte(k.info.Release), 0)
	got := make([]byte, min(len(want), 65))
	if err := k.r.ReadPhys(got, k.symbolPhys(uts+k.info.Offsets["uts_namespace.name"]+utsRelease)); err != nil {
		return fmt.Errorf("read init_uts_ns: %w", err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("init_uts_ns is of release %q: %w", got, ErrStale)
	}
	return nil
}

// textSize returns the number of bytes from _stext to the end of the image:
// the last page before the modules that is mapped where the image is. Holes
// are skipped: with page table isolation, init sections are unmapped once they
// are freed (free_kernel_image_pages in arch/x86/mm/init.c), and .bss comes
// after them.
func (k *kernel) textSize() (uint64, error) {
	end, limit := k.text, k.imageBase+k.imageSize
	err := k.tables.walk(k.text, limit-1, func(l leaf) bool {
		if l.phys != k.symbolPhys(l.virt) {
			return false
		}
		end = min(l.virt+l.size, limit)
		return true
	})
	return end - k.text, err
}
