package running

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/boot/stub"
	"github.com/warmcore/warmcore/pkg/outcome"
)

const maxCPUInfo = 128 << 20 // bytes of /proc/cpuinfo, about 2 KiB a CPU

// APICIDs returns the APIC IDs in /proc/cpuinfo, in its order.
func (k Kernel) APICIDs() ([]uint32, error) {
	var ids []uint32
	err := k.cpuInfo(func(key, value string) error {
		if key != "apicid" {
			return nil
		}
		id, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return fmt.Errorf("apicid: %w", err)
		}
		ids = append(ids, uint32(id))
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		// A kernel without SMP support prints none: the one CPU has 0.
		ids = []uint32{0}
	}
	if len(ids) > stub.MaxCPUs {
		return nil, outcome.Refuse("boot with nr_cpus=", "there are %d CPUs, and the stub stops at most %d", len(ids), stub.MaxCPUs)
	}
	return ids, nil
}

// cpuInfo calls f for each line of /proc/cpuinfo.
func (k Kernel) cpuInfo(f func(key, value string) error) error {
	file, err := os.Open(k.path("proc/cpuinfo"))
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 64<<10)
	read := 0
	for lines.Scan() {
		if read += len(lines.Bytes()); read > maxCPUInfo {
			return fmt.Errorf("%s: more than %d bytes", file.Name(), maxCPUInfo)
		}
		key, value, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			continue
		}
		if err := f(strings.TrimSpace(key), strings.TrimSpace(value)); err != nil {
			return err
		}
	}
	return lines.Err()
}
