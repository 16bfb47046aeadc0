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

// arch is what is particular to the kernels of one architecture.
type arch struct {
	name    string // as GOARCH has it
	machine uint16 // in ELF headers

	// mark is the NUMBER that VMCOREINFO has on this architecture and on none
	// of the others.
	mark string

	// imageOffset is what to add to a virtual address of the kernel's image
	// for the physical one; it wraps.
	imageOffset func(*vmcoreinfo.Info) uint64
	// image is from where on an image whose text is at text can lie, and the
	// most bytes that it takes.
	image func(info *vmcoreinfo.Info, text uint64) (base, size uint64, err error)
	// tables are the page tables with the top level at the physical address
	// root.
	tables func(r vmcoreinfo.Reader, info *vmcoreinfo.Info, root uint64) (*PageTables, error)
	// directBase is the virtual address of physical 0 in the direct map.
	directBase func(*kernel) (uint64, error)
	// textBase is the same by what the text says alone; nil where it doesn't.
	textBase func(*vmcoreinfo.Info) (uint64, error)

	physBase string // the NUMBER that goes into the header of a kdump file

	// defaultBase is where a kernel without KASLR maps physical 0 if RAM
	// begins there; else the start of RAM, rounded down to defaultAlign.
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

// FromText is what VMCOREINFO says of the mapping by itself, for memory whose
// page tables can't be read: DirectBase, on architectures whose text tells.
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

// PhysBase returns what the header of a kdump file has as the physical address
// of the kernel's text mapping: phys_base on x86-64 (negative, as a large
// number, where the kernel runs below its link address), PHYS_OFFSET on arm64.
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
