package payload

import (
	"encoding/binary"
	"errors"
	"os"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/acpi"
	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/zeropage"
)

// linuxAMD64 is a payload kernel for x86-64.
type linuxAMD64 struct{}

func (linuxAMD64) arch() plan.Arch { return plan.AMD64 }

// firmwareMap reads /sys/firmware/memmap, which memmap= does not change. A
// payload kernel without it (CONFIG_FIRMWARE_MEMMAP) still has the e820
// table in its zero page.
func (linuxAMD64) firmwareMap(l *Linux) (memmap.Map, error) {
	m, err := memmap.Sysfs(os.DirFS("/sys/firmware/memmap"))
	if err == nil {
		return m, nil
	}
	page, pageErr := zeropage.Parse(l.BootParams())
	if pageErr != nil {
		return memmap.Map{}, errors.Join(err, pageErr)
	}
	table, tableErr := page.E820()
	if tableErr != nil {
		return memmap.Map{}, errors.Join(err, tableErr)
	}
	if m, tableErr = memmap.E820(table); tableErr != nil {
		return memmap.Map{}, errors.Join(err, tableErr)
	}
	l.log.Warn("/sys/firmware/memmap", "error", err, "so", "using the zero page's memory map")
	return m, nil
}

// deviceTree is nil: x86 has no tree that describes memory.
func (linuxAMD64) deviceTree() *devicetree.Tree { return nil }

// rsdp asks the zero page, then EFI's table, then searches where the ACPI
// specification (6.5, section 5.2.5.1) lets a BIOS put it.
func (linuxAMD64) rsdp(l *Linux, mem Memory) uint64 {
	if page, err := zeropage.Parse(l.BootParams()); err == nil && page.RSDP() != 0 {
		return page.RSDP()
	}
	if b, err := os.ReadFile("/sys/firmware/efi/systab"); err == nil {
		for line := range strings.Lines(string(b)) {
			if hex, ok := strings.CutPrefix(strings.TrimSpace(line), "ACPI20="); ok {
				if at, err := strconv.ParseUint(hex, 0, 64); err == nil {
					return at
				}
			}
		}
	}
	search := phys.NewSet(phys.Range{Start: 0xe0000, End: 0x100000})
	var segment [2]byte // of the extended BIOS data area
	if mem.ReadPhys(segment[:], 0x40e) == nil {
		if ebda := uint64(binary.LittleEndian.Uint16(segment[:])) << 4; ebda >= 0x400 && ebda < 0xa0000 {
			search = search.Union(phys.Set{{Start: ebda, End: ebda + phys.KiB}})
		}
	}
	for _, r := range search {
		b := make([]byte, r.Size())
		if mem.ReadPhys(b, r.Start) != nil {
			continue
		}
		if off, ok := acpi.FindRSDP(b); ok {
			return r.Start + uint64(off)
		}
	}
	return 0
}
