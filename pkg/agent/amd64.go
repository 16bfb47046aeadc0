package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/warmcore/warmcore/boot/stub"
	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

// amd64 is an x86-64 machine.
type amd64 struct {
	apicIDs []uint32 // of all CPUs that are online
	bsp     uint32
	lowPage uint64
	reset   stub.ResetRegister
}

func (amd64) elf() uint16 { return elfcore.MachineAMD64 }

func (m amd64) stub(area, handoff phys.Range, nonce [16]byte) (phys.Segment, uint64, error) {
	image, entry, err := stub.BuildAMD64(stub.AMD64Params{
		Base:          area.Start,
		Record:        handoff.Start + registration.RecordOff,
		LowPage:       m.lowPage,
		Nonce:         nonce,
		APICIDs:       m.apicIDs,
		BSP:           m.bsp,
		ResetRegister: m.reset,
	})
	if err != nil {
		return phys.Segment{}, 0, err
	}
	load, err := segment(image, area)
	return load, entry, err
}

// area returns what memory will do: the stub's page tables map the first 4 GiB.
func (amd64) area() stubArea {
	return stubArea{size: stub.AMD64Size, align: phys.PageSize, top: 4 * phys.GiB, kernel: "crashkernel=1M"}
}

func (amd64) check(*session) error { return nil }

func (s *System) amd64() (m amd64, err error) {
	if m.apicIDs, err = s.running().APICIDs(); err != nil {
		return amd64{}, fmt.Errorf("list the CPUs: %w", err)
	}
	// Linux numbers the CPU that it booted on 0.
	m.bsp = m.apicIDs[0]
	if m.lowPage, err = s.lowPage(); err != nil {
		return amd64{}, err
	}
	fadt, err := s.running().FADT()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log().Warn("the stub resets without ACPI's reset register", "err", err)
	}
	m.reset = stub.FADTReset(fadt)
	return m, nil
}

// usualLowPage is RAM on every PC. It is below the memory that boot loaders
// and firmware use, and Linux puts its own trampoline elsewhere, at the top.
const usualLowPage = 0x8000

// lowPage chooses the page in which the stub starts the other CPUs. By then
// the kernel that owned the page is dead, and no dump shows the first MiB,
// so any RAM there will do that is not firmware's.
func (s *System) lowPage() (uint64, error) {
	m, err := memmap.Sysfs(os.DirFS(s.path("sys/firmware/memmap")))
	if err != nil {
		return 0, err
	}
	// Page 0 has the interrupt vectors; extended BIOS data lies at the top.
	low := m.Set(memmap.RAM).Intersect(phys.Set{{Start: phys.PageSize, End: 0x90000}}).AlignIn(phys.PageSize)
	if usual := (phys.Range{Start: usualLowPage, End: usualLowPage + phys.PageSize}); low.Contains(usual) {
		return usualLowPage, nil
	}
	if len(low) == 0 {
		return 0, refuse("report it with /sys/firmware/memmap", "there is no RAM below 640 KiB in which the stub can start the other CPUs")
	}
	return low[0].Start, nil
}
