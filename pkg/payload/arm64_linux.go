package payload

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/plan"
)

// linuxARM64 is a payload kernel for arm64.
type linuxARM64 struct{}

func (linuxARM64) arch() plan.Arch { return plan.ARM64 }

// firmwareMap reads the device tree.
func (linuxARM64) firmwareMap(*Linux) (memmap.Map, error) {
	tree, warning, err := readTree(os.DirFS("/sys/firmware"))
	if err != nil {
		return memmap.Map{}, err
	}
	m, err := memmap.DeviceTree(tree)
	if warning != "" {
		m.Warnings = append(m.Warnings, warning)
	}
	return m, err
}

func (linuxARM64) deviceTree() *devicetree.Tree {
	tree, _, err := readTree(os.DirFS("/sys/firmware"))
	if err != nil {
		return nil // firmwareMap has said why
	}
	return tree
}

// rsdp is 0: everything is in the device tree.
func (linuxARM64) rsdp(*Linux, Memory) uint64 { return 0 }

// readTree reads the kernel's copy of the tree, in /sys/firmware. It is
// missing if the kernel found that the tree had changed (of_fdt_raw_init in
// drivers/of/fdt.c, v6.12). Then the tree is read from the kernel's unpacked
// one, and the warning says what that lacks.
func readTree(firmware fs.FS) (tree *devicetree.Tree, warning string, err error) {
	b, err := fs.ReadFile(firmware, "fdt")
	if err != nil {
		err = fmt.Errorf("device tree: /sys/firmware: %w", err)
	} else if tree, err = devicetree.Parse(b); err != nil {
		err = fmt.Errorf("/sys/firmware/fdt: %w", err)
	} else {
		return tree, "", nil
	}
	base, baseErr := fs.Sub(firmware, "devicetree/base")
	if baseErr == nil {
		tree, baseErr = devicetree.ReadFS(base)
	}
	if baseErr != nil {
		return nil, "", errors.Join(err, fmt.Errorf("/sys/firmware/devicetree/base: %w", baseErr))
	}
	return tree, fmt.Sprintf("%v: taking /sys/firmware/devicetree/base, which lacks the reservation block", err), nil
}
