package binding

import (
	"fmt"

	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/phys"
)

// CoreHeaderProperty is the property of /chosen that says where the ELF core
// header is. Only a capture boot has it.
const CoreHeaderProperty = "linux,elfcorehdr"

// stale lists the properties of /chosen that were meant for the payload's
// kernel.
//
//   - A seed must be used only once, and the payload's kernel has used these.
//   - What an older kexec handed over lies in memory that has another owner
//     now.
var stale = []string{
	"bootargs",
	"linux,usable-memory-range", CoreHeaderProperty,
	"linux,initrd-start", "linux,initrd-end",
	"kaslr-seed", "rng-seed",
	"linux,ima-kexec-buffer", "linux,ima-kexec-buffer-size", "linux,kho-fdt", "linux,kho-scratch",
}

// staleEFI lists EFI's properties of /chosen. A kernel that finds them uses
// EFI's memory map instead of the memory nodes (efi_init in
// drivers/firmware/efi/efi-init.c, v6.12).
var staleEFI = []string{
	"linux,uefi-system-table", "linux,uefi-mmap-start", "linux,uefi-mmap-size", "linux,uefi-mmap-desc-size",
	"linux,uefi-mmap-desc-ver", "linux,uefi-secure-boot",
}

// Chosen is what the payload tells the normal kernel in /chosen.
type Chosen struct {
	Cmdline    string
	Initrd     phys.Range // empty if there is none
	CoreHeader phys.Range // empty in a plain boot
	Seed       uint64     // for KASLR; 0 for none
	KeepEFI    bool       // keep EFI's properties: the kernel finds its memory in EFI's tables
}

// Set writes c to /chosen and deletes the properties that were meant for the
// payload's kernel.
func (c Chosen) Set(t *devicetree.Tree) error {
	n := t.Root.Add("chosen")
	n.Delete(stale...)
	if !c.KeepEFI {
		n.Delete(staleEFI...)
	}
	n.SetString("bootargs", c.Cmdline)
	if !c.Initrd.Empty() {
		n.SetUint64("linux,initrd-start", c.Initrd.Start)
		n.SetUint64("linux,initrd-end", c.Initrd.End)
	}
	if !c.CoreHeader.Empty() {
		// Written with the root's cell sizes, as
		// early_init_dt_check_for_elfcorehdr in drivers/of/fdt.c
		// (v6.12) reads it.
		cells, err := t.Root.Cells()
		if err != nil {
			return err
		}
		v, err := cells.Value(c.CoreHeader)
		if err != nil {
			return fmt.Errorf("%s: %w", CoreHeaderProperty, err)
		}
		n.Set(CoreHeaderProperty, v)
	}
	if c.Seed != 0 {
		n.SetUint64("kaslr-seed", c.Seed)
	}
	return nil
}

// UsableMemory returns the memory to which linux,usable-memory-range confines
// the kernel that gets the tree; none if nothing confines it.
func UsableMemory(t *devicetree.Tree) (phys.Set, error) {
	chosen := t.Find("/chosen")
	if chosen == nil {
		return nil, nil
	}
	v, ok := chosen.Property("linux,usable-memory-range")
	if !ok {
		return nil, nil
	}
	cells, err := t.MemoryCells()
	if err != nil {
		return nil, err
	}
	ranges, err := cells.Ranges(v)
	if err != nil {
		return nil, fmt.Errorf("linux,usable-memory-range: %w", err)
	}
	return phys.NewSet(ranges...), nil
}

// Initrd returns where the boot loader put the initrd of the kernel that gets
// the tree; ok is false if there is none.
func Initrd(t *devicetree.Tree) (r phys.Range, ok bool) {
	chosen := t.Find("/chosen")
	if chosen == nil {
		return phys.Range{}, false
	}
	start, ok1 := chosen.Uint64("linux,initrd-start")
	end, ok2 := chosen.Uint64("linux,initrd-end")
	if !ok1 || !ok2 || end <= start {
		return phys.Range{}, false
	}
	return phys.Range{Start: start, End: end}, true
}
