package agent

import (
	"fmt"

	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

// facts are what the running kernel says about itself.
type facts struct {
	identity   registration.Identity // without Nonce, Machine and Time
	notes      []registration.Note
	cpus       int // with notes
	vmcoreinfo registration.Note
	mapping    kernelmap.Mapping
	crashArea  phys.Range
}

func (s *System) facts(m machine) (f facts, err error) {
	if f.identity, err = s.running().Identity(); err != nil {
		return facts{}, fmt.Errorf("identify the running kernel: %w", err)
	}
	if f.notes, f.cpus, err = s.running().CrashNotes(); err != nil {
		return facts{}, fmt.Errorf("find the crash notes: %w", err)
	}
	if f.vmcoreinfo, err = s.running().VMCoreInfo(); err != nil {
		return facts{}, fmt.Errorf("find VMCOREINFO: %w", err)
	}
	if f.crashArea, err = s.crashArea(m.area()); err != nil {
		return facts{}, err
	}
	// A dump without the mapping is harder to read but complete: the payload
	// can find it in the page tables.
	if f.mapping, err = s.running().Mapping(); err != nil {
		s.log().Warn("the kernel's mappings are not known", "err", err)
	}
	return f, nil
}

// crashArea returns the part of the memory reserved by crashkernel= that the
// stub can be in.
func (s *System) crashArea(want stubArea) (phys.Range, error) {
	m, err := s.running().IOMem()
	if err != nil {
		return phys.Range{}, err
	}
	areas := m.Named("Crash kernel")
	for _, r := range areas {
		r = phys.Range{Start: r.Start, End: min(r.End, want.top)}.AlignIn(want.align)
		if r.Size() >= want.size {
			return r, nil
		}
	}
	return phys.Range{}, refuse("see why in `dmesg | grep -i crash`: the payload asks for "+want.kernel,
		"the memory reserved for the stub is %v, want %s below %s", areas, phys.FormatSize(want.size), phys.FormatSize(want.top))
}
