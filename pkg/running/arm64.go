package running

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/boot/stub"
	"github.com/warmcore/warmcore/pkg/acpi"
	"github.com/warmcore/warmcore/pkg/outcome"
)

// Conduit returns how firmware's PSCI is called.
func (k Kernel) Conduit() (stub.Conduit, error) {
	const todo = "use kdump: without PSCI the stub can't reset the machine"
	nodes, err := filepath.Glob(k.path(filepath.Join(DeviceTree, "psci*")))
	if err != nil {
		return 0, err
	}
	for _, dir := range append(nodes, k.path(filepath.Join(DeviceTree, "firmware/psci"))) {
		dir, err := filepath.Rel(k.Root, dir)
		if err != nil {
			return 0, err
		}
		method, err := k.property(dir, "method")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		compatible, err := k.property(dir, "compatible")
		if err != nil {
			return 0, err
		}
		// "arm,psci" alone is version 0.1, which has no reset.
		if !strings.Contains(compatible, "arm,psci-0.2\x00") && !strings.Contains(compatible, "arm,psci-1.0\x00") {
			return 0, outcome.Refuse(todo, "firmware's PSCI is version 0.1")
		}
		for _, c := range []stub.Conduit{stub.ConduitHVC, stub.ConduitSMC} {
			if method == c.String()+"\x00" {
				return c, nil
			}
		}
		return 0, fmt.Errorf("%s/method is %q, want hvc or smc", dir, method)
	}
	f, err := k.FADT()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, outcome.Refuse(todo, "neither the device tree nor ACPI names PSCI")
	case err != nil:
		return 0, err
	case !f.PSCI:
		return 0, outcome.Refuse(todo, "firmware has no PSCI, by ARM_BOOT_ARCH in the FADT")
	case f.HVC:
		return stub.ConduitHVC, nil
	}
	return stub.ConduitSMC, nil
}

// property reads a property of a device tree node, NULs and all.
func (k Kernel) property(dir, name string) (string, error) {
	b, err := k.Bytes(filepath.Join(dir, name))
	return string(b), err
}

const cpus = "sys/devices/system/cpu"

// MPIDRs returns the MPIDRs of the CPUs that are online, by number: the reg
// properties of their device tree nodes
// (Documentation/devicetree/bindings/arm/cpus.yaml), or what the MADT says.
func (k Kernel) MPIDRs() ([]uint64, error) {
	text, err := k.Text(cpus + "/online")
	if err != nil {
		return nil, err
	}
	online, err := parseList(text)
	if err != nil {
		return nil, fmt.Errorf("%s/online: %w", cpus, err)
	}
	var list []uint64
	for i, n := range online {
		reg, err := k.Bytes(fmt.Sprintf("%s/cpu%d/of_node/reg", cpus, n))
		if errors.Is(err, fs.ErrNotExist) && i == 0 {
			return k.madt()
		}
		if err != nil {
			return nil, err
		}
		switch len(reg) { // #address-cells of /cpus
		case 4:
			list = append(list, uint64(binary.BigEndian.Uint32(reg)))
		case 8:
			list = append(list, binary.BigEndian.Uint64(reg))
		default:
			return nil, fmt.Errorf("cpu%d/of_node/reg: %d bytes, want 4 or 8", n, len(reg))
		}
	}
	return list, nil
}

// maxList is how many numbers a list has at most: CPU numbers are of 16 bits.
const maxList = 1 << 16

// parseList reads a list of numbers as the kernel writes it: 0-3,7.
func parseList(text string) ([]int, error) {
	var list []int
	for _, part := range strings.Split(text, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return nil, err
		}
		to, err := strconv.ParseUint(last, 10, 16)
		if err != nil {
			return nil, err
		}
		if from > to || uint64(len(list))+to-from >= maxList {
			return nil, fmt.Errorf("%q is no list of numbers", text)
		}
		for ; from <= to; from++ {
			list = append(list, int(from))
		}
	}
	return list, nil
}

// madt returns the MPIDRs of the CPUs that the MADT says are enabled.
func (k Kernel) madt() ([]uint64, error) {
	b, err := k.Bytes(acpiTables + "APIC")
	if err != nil {
		return nil, err
	}
	m, err := acpi.ParseMADT(b)
	if err != nil {
		return nil, err
	}
	if len(m.MPIDRs) == 0 {
		return nil, errors.New("ACPI table APIC: it names no CPU")
	}
	return m.MPIDRs, nil
}
