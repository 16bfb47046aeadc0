package agent

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
	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

const deviceTree = "proc/device-tree"

// arm64 is an arm64 machine.
type arm64 struct {
	cpus    []uint64 // MPIDRs of all that are online, affinity fields only
	conduit stub.Conduit
}

func (arm64) elf() uint16 { return elfcore.MachineARM64 }

func (arm64) area() stubArea {
	return stubArea{size: stub.ARM64Size, align: stub.ARM64Size, top: 1 << 48, kernel: "crashkernel=2M"}
}

func (m arm64) stub(area, handoff phys.Range, nonce [16]byte) (phys.Segment, uint64, error) {
	image, entry, err := stub.BuildARM64(stub.ARM64Params{
		Base:    area.Start,
		Record:  handoff.Start + registration.RecordOff,
		Nonce:   nonce,
		Conduit: m.conduit,
		CPUs:    m.cpus,
	})
	if err != nil {
		return phys.Segment{}, 0, err
	}
	load, err := segment(image, area)
	return load, entry, err
}

func (s *System) arm64() (m arm64, err error) {
	if m.conduit, err = s.conduit(); err != nil {
		return arm64{}, err
	}
	if m.cpus, err = s.mpidrs(); err != nil {
		return arm64{}, fmt.Errorf("list the CPUs: %w", err)
	}
	if len(m.cpus) > stub.MaxCPUs {
		return arm64{}, refuse("boot with nr_cpus=", "there are %d CPUs, and the stub knows at most %d", len(m.cpus), stub.MaxCPUs)
	}
	return m, nil
}

// check refuses where memory could not be given back after a crash.
func (arm64) check(x *session) error {
	size, err := x.hotplug().BlockSize()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no memory hotplug: Missing warns
	}
	if err != nil {
		return err
	}
	if planned := x.block.Policy.BlockSize; planned != 0 && size > planned {
		return refuse("boot a kernel with pages of 4 KiB, or start the payload with warmcore.block= of that size",
			"this kernel's memory blocks are %s, and the payload planned with %s: no memory would come back",
			phys.FormatSize(size), phys.FormatSize(planned))
	}
	return nil
}

// conduit returns how firmware's PSCI is called.
func (s *System) conduit() (stub.Conduit, error) {
	const todo = "use kdump: without PSCI the stub can't reset the machine"
	nodes, err := filepath.Glob(s.path(filepath.Join(deviceTree, "psci*")))
	if err != nil {
		return 0, err
	}
	for _, dir := range append(nodes, s.path(filepath.Join(deviceTree, "firmware/psci"))) {
		dir, err := filepath.Rel(s.Root, dir)
		if err != nil {
			return 0, err
		}
		method, err := s.property(dir, "method")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		compatible, err := s.property(dir, "compatible")
		if err != nil {
			return 0, err
		}
		// "arm,psci" alone is version 0.1, which has no reset.
		if !strings.Contains(compatible, "arm,psci-0.2\x00") && !strings.Contains(compatible, "arm,psci-1.0\x00") {
			return 0, refuse(todo, "firmware's PSCI is version 0.1")
		}
		for _, c := range []stub.Conduit{stub.ConduitHVC, stub.ConduitSMC} {
			if method == c.String()+"\x00" {
				return c, nil
			}
		}
		return 0, fmt.Errorf("%s/method is %q, want hvc or smc", dir, method)
	}
	f, err := s.fadt()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, refuse(todo, "neither the device tree nor ACPI names PSCI")
	case err != nil:
		return 0, err
	case !f.PSCI:
		return 0, refuse(todo, "firmware has no PSCI, by ARM_BOOT_ARCH in the FADT")
	case f.HVC:
		return stub.ConduitHVC, nil
	}
	return stub.ConduitSMC, nil
}

// property reads a property of a device tree node, NULs and all.
func (s *System) property(dir, name string) (string, error) {
	b, err := s.readBytes(filepath.Join(dir, name))
	return string(b), err
}

const cpus = "sys/devices/system/cpu"

// mpidrs returns the MPIDRs of the CPUs that are online, by number: the reg
// properties of their device tree nodes
// (Documentation/devicetree/bindings/arm/cpus.yaml), or what the MADT says.
func (s *System) mpidrs() ([]uint64, error) {
	text, err := s.read(cpus + "/online")
	if err != nil {
		return nil, err
	}
	online, err := parseList(text)
	if err != nil {
		return nil, fmt.Errorf("%s/online: %w", cpus, err)
	}
	var list []uint64
	for i, n := range online {
		reg, err := s.readBytes(fmt.Sprintf("%s/cpu%d/of_node/reg", cpus, n))
		if errors.Is(err, fs.ErrNotExist) && i == 0 {
			return s.madt()
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
func (s *System) madt() ([]uint64, error) {
	b, err := s.readBytes(acpiTables + "APIC")
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
