package convert

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

const unameField = 65 // __NEW_UTS_LEN + 1

// describe returns the contents of the headers: what the source says about
// itself, completed from its memory. It returns an error for a machine that
// the format can't name: a file that silently names another machine is worse
// than none.
func (j *job) describe() (info vmcore.Info, physBase uint64, err error) {
	info, physBase = j.complete()
	machine := info.Uname.Machine
	switch {
	case j.Format == ELF && info.Machine == 0 && machine == "":
		err = errors.New("the source doesn't tell its machine, which an ELF file must name: write kdump format")
	case j.Format == ELF && info.Machine == 0:
		err = fmt.Errorf("machine %q has no number here that an ELF file could name: write kdump format", machine)
	case j.Format == KDump && info.Machine != 0 && machine == "":
		err = fmt.Errorf("machine %d of the source's ELF header has no name here that a kdump file could give: write ELF format", info.Machine)
	}
	return info, physBase, err
}

func (j *job) complete() (info vmcore.Info, physBase uint64) {
	info = *j.info
	if info.CPUs == 0 {
		for n, err := range vmcore.Notes(info.Notes) {
			if err == nil && n.Type == elfcore.TypePRStatus && n.Name == elfcore.NameCore {
				info.CPUs++
			}
		}
	}
	if info.Uname.Machine == "" {
		info.Uname.Machine = vmcore.MachineName(info.Machine)
	}
	if info.VMCOREINFO == nil {
		return info, 0
	}
	v, err := info.Kernel()
	if err != nil {
		j.result.Warnings = append(j.result.Warnings, err.Error())
		return info, 0
	}
	if info.Created == 0 {
		info.Created = v.CrashTime
	}
	if info.Machine != elfcore.MachineAMD64 && info.Machine != elfcore.MachineARM64 {
		return info, 0
	}
	if u, err := j.uname(v); err == nil && info.Uname.Nodename == "" {
		info.Uname = u
	}
	// For a kernel of an unknown architecture it isn't known. There is no
	// warning here: the code that needs the kernel's addresses has given
	// one.
	physBase, _ = kernelmap.PhysBase(v)
	return info, physBase
}

// uname reads init_uts_ns.
func (j *job) uname(v *vmcoreinfo.Info) (vmcore.Uname, error) {
	virt, ok := v.Symbols["init_uts_ns"]
	off, ok2 := v.Offsets["uts_namespace.name"]
	if !ok || !ok2 {
		return vmcore.Uname{}, errors.New("VMCOREINFO has no init_uts_ns")
	}
	at, err := kernelmap.Symbol(v, virt+off)
	if err != nil {
		return vmcore.Uname{}, err
	}
	b := make([]byte, 6*unameField)
	if err := j.src.ReadPhys(b, at); err != nil {
		return vmcore.Uname{}, err
	}
	var u vmcore.Uname
	for i, name := range []*string{&u.Sysname, &u.Nodename, &u.Release, &u.Version, &u.Machine, &u.Domain} {
		text, _, _ := bytes.Cut(b[i*unameField:(i+1)*unameField], []byte{0})
		*name = string(text)
	}
	if u.Release != v.Release {
		return vmcore.Uname{}, fmt.Errorf("init_uts_ns has release %q, want %q", u.Release, v.Release)
	}
	return u, nil
}

// loads returns the source's loads or, if a kdump file doesn't keep them, new
// ones: all memory in the direct map, and the kernel's image.
func (j *job) loads() ([]vmcore.Load, error) {
	if len(j.info.Loads) > 0 {
		return j.info.Loads, nil
	}
	var image []vmcore.Load
	direct := func(uint64) uint64 { return 0 }
	if v, err := j.info.Kernel(); err != nil {
		j.warn("where the kernel mapped its memory is not known", err)
	} else if m, err := mapping(j.src, v); err != nil {
		j.warn("where the kernel mapped its memory is not known", err)
	} else {
		direct = func(addr uint64) uint64 { return m.DirectBase + addr }
		if m.TextSize > 0 {
			image = []vmcore.Load{{Virt: m.TextVirt, Phys: m.TextPhys, Size: m.TextSize}}
		}
	}
	loads := image
	for _, r := range j.info.Memory {
		loads = append(loads, vmcore.Load{Virt: direct(r.Start), Phys: r.Start, Size: r.Size()})
	}
	return loads, nil
}

func (j *job) warn(what string, err error) {
	j.result.Warnings = append(j.result.Warnings, fmt.Sprintf("%s: %v", what, err))
}

// mapping returns where a kernel mapped its memory, as far as that is known if
// page tables are not in the dump.
func mapping(src vmcore.Dump, v *vmcoreinfo.Info) (kernelmap.Mapping, error) {
	m, err := kernelmap.Read(src, v)
	if err == nil {
		return m, nil
	}
	if m, textErr := kernelmap.FromText(v); textErr == nil {
		return m, nil
	}
	return kernelmap.Mapping{}, err
}
