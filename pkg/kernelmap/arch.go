package kernelmap

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// arch describes how the kernels of one architecture map their memory.
type arch struct {
	name    string // as GOARCH has it
	machine uint16 // in ELF headers

	// mark is a NUMBER that VMCOREINFO has on this architecture only.
	mark string

	// imageOffset is added to a virtual address in the kernel's image to
	// get the physical one; the sum may wrap.
	imageOffset func(*vmcoreinfo.Info) uint64
	// image returns the lowest virtual address at which a kernel image can
	// begin whose text is at text, and the most bytes that the image takes
	// from there.
	image func(info *vmcoreinfo.Info, text uint64) (base, size uint64, err error)
	// tables returns the page tables with the top level at the physical
	// address root.
	tables func(r vmcoreinfo.Reader, info *vmcoreinfo.Info, root uint64) (*PageTables, error)
	// directBase returns the virtual address of physical 0 in the direct
	// map.
	directBase func(*kernel) (uint64, error)
	// textBase returns the same from the text alone; it is nil if the text
	// doesn't say it.
	textBase func(*vmcoreinfo.Info) (uint64, error)

	physBase string // name of the NUMBER that goes into the header of a kdump file

	// defaultBase is the virtual address to which a kernel without KASLR
	// maps the start of RAM, rounded down to defaultAlign.
	defaultBase, defaultAlign uint64
}

// arches are the architectures whose kernels are understood.
var arches = []arch{amd64, arm64}

// archOf returns the architecture of the kernel that wrote info.
func archOf(info *vmcoreinfo.Info) (found *arch, err error) {
	var marks []string
	for i := range arches {
		a := &arches[i]
		marks = append(marks, fmt.Sprintf("NUMBER(%s) of %s", a.mark, a.name))
		if _, ok := info.Numbers[a.mark]; !ok {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("VMCOREINFO is of two architectures, %s and %s", found.name, a.name)
		}
		found = a
	}
	if found == nil {
		return nil, fmt.Errorf("VMCOREINFO is of no known architecture: it lacks %s", strings.Join(marks, " and "))
	}
	return found, nil
}

// DefaultDirectBase is the virtual address of physical 0 in the direct map of
// a kernel without KASLR, on a machine whose RAM begins at start. Machine is
// ELF's e_machine.
func DefaultDirectBase(machine uint16, start uint64) (uint64, error) {
	for _, a := range arches {
		if a.machine == machine {
			return a.defaultBase - phys.AlignDown(start, a.defaultAlign), nil
		}
	}
	return 0, fmt.Errorf("direct map: ELF machine %d is of no known architecture", machine)
}

// FromText returns what VMCOREINFO alone says about the mapping, for memory
// whose page tables can't be read: DirectBase, on architectures whose
// VMCOREINFO has it.
func FromText(info *vmcoreinfo.Info) (Mapping, error) {
	a, err := archOf(info)
	if err != nil {
		return Mapping{}, err
	}
	if a.textBase == nil {
		return Mapping{}, fmt.Errorf("VMCOREINFO of %s doesn't say where the direct map is", a.name)
	}
	base, err := a.textBase(info)
	if err != nil {
		return Mapping{}, err
	}
	return Mapping{DirectBase: base}, nil
}

// Symbol returns the physical address of a virtual one in the kernel's image.
func Symbol(info *vmcoreinfo.Info, virt uint64) (uint64, error) {
	a, err := archOf(info)
	if err != nil {
		return 0, err
	}
	return virt + a.imageOffset(info), nil
}

// PhysBase returns the value that the header of a kdump file has for the
// physical address of the kernel's text mapping: phys_base on x86-64
// (negative, as a large number, where the kernel runs below its link address),
// PHYS_OFFSET on arm64.
func PhysBase(info *vmcoreinfo.Info) (uint64, error) {
	a, err := archOf(info)
	if err != nil {
		return 0, err
	}
	return uint64(info.Numbers[a.physBase]), nil
}

// FromCore reads the running kernel's mapping out of the program headers of
// /proc/kcore. Those of RAM and of the kernel's text have a physical address,
// all others have p_paddr -1 (read_kcore_iter in fs/proc/kcore.c, v6.12). The
// text lies above the direct map (x86: __START_KERNEL_map, arm64: the vmalloc
// area). On arm64 the direct map need not begin with physical 0: the address
// of that wraps.
func FromCore(h elfcore.Header) (Mapping, error) {
	loads := slices.DeleteFunc(slices.Clone(h.Loads), func(l elfcore.Load) bool { return l.Phys == 1<<64-1 })
	if len(loads) == 0 {
		return Mapping{}, errors.New("no direct map in it")
	}
	slices.SortFunc(loads, func(a, b elfcore.Load) int { return cmp.Compare(a.Virt, b.Virt) })
	m := Mapping{DirectBase: loads[0].Virt - loads[0].Phys}
	text := len(loads) - 1
	if l := loads[text]; l.Virt-l.Phys != m.DirectBase {
		m.TextVirt, m.TextPhys, m.TextSize = l.Virt, l.Phys, l.Size
		loads = loads[:text]
	}
	for _, l := range loads {
		if base := l.Virt - l.Phys; base != m.DirectBase {
			return Mapping{}, fmt.Errorf("two direct maps, at %#x and %#x", m.DirectBase, base)
		}
	}
	return m, nil
}
