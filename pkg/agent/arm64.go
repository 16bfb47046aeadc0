package agent

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/warmcore/warmcore/boot/stub"
	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

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
	if m.conduit, err = s.running().Conduit(); err != nil {
		return arm64{}, err
	}
	if m.cpus, err = s.running().MPIDRs(); err != nil {
		return arm64{}, fmt.Errorf("list the CPUs: %w", err)
	}
	if len(m.cpus) > stub.MaxCPUs {
		return arm64{}, refuse("boot with nr_cpus=", "there are %d CPUs, and the stub knows at most %d", len(m.cpus), stub.MaxCPUs)
	}
	return m, nil
}

// check refuses to arm if memory could not be given back after a crash.
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
