package story

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/warmcore/warmcore/pkg/acpi/acpitest"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

// numaBorder is where node 1 begins. The memory on both sides of it is hidden
// from a capture boot in one piece, unless that is cut there.
const numaBorder = gib

// numa is a crash of a machine with two NUMA nodes, which must have as much
// memory each after the release as before.
func (l *Lab) numa() error {
	table := filepath.Join(l.Out, "srat")
	if err := os.WriteFile(table, srat(l.Memory, l.CPUs), 0o644); err != nil {
		return err
	}
	// RAM stays one file for the truth's sake, so QEMU's own -numa, which
	// wants one for each node, is of no use.
	l.qemuArgs = []string{"-acpitable", "file=" + table}
	painting, err := l.begin()
	if err != nil {
		return err
	}
	before, err := l.nodes()
	if err != nil {
		return err
	}
	ram, err := l.CrashNow(wire.Trigger{Kind: l.Trigger}, wire.Capture)
	if err != nil {
		return err
	}
	l.Report.Memory.CaptureKiB = l.Guest.MemTotalKiB
	d, err := l.save("/var/crash/dump", ram, painting)
	if err != nil {
		return err
	}
	if err := l.Warmcore("release", "arm"); err != nil {
		return err
	}
	if err := l.memoryBack(); err != nil {
		return err
	}
	after, err := l.nodes()
	if err != nil {
		return err
	}
	for n, want := range before {
		if diff(after[n], want) > want/100 {
			return l.Machine.Fail("release", fmt.Errorf("nodes have %d KiB, and had %d KiB before the crash", after, before))
		}
	}
	if err := l.PowerOff(); err != nil {
		return err
	}
	return l.judge([]saved{d})
}

// srat is ACPI's table of a machine with two nodes, whose CPUs take turns
// (ACPI 6.5, 5.2.16).
func srat(memory uint64, cpus int) []byte {
	le := binary.LittleEndian
	b := make([]byte, 12)
	le.PutUint32(b, 1)
	const enabled = 1
	for i := range cpus {
		cpu := make([]byte, 16) // processor local APIC affinity, 5.2.16.1
		cpu[1], cpu[2], cpu[3], cpu[4] = 16, byte(i%2), byte(i), enabled
		b = append(b, cpu...)
	}
	for node, r := range []phys.Range{{End: numaBorder}, {Start: numaBorder, End: memory}} {
		m := make([]byte, 40) // memory affinity, 5.2.16.2
		m[0], m[1], m[2], m[28] = 1, 40, byte(node), enabled
		le.PutUint64(m[8:], r.Start)
		le.PutUint64(m[16:], r.Size())
		b = append(b, m...)
	}
	return acpitest.Table("SRAT", 3, b)
}

// nodes returns the memory of both nodes, in KiB. It is what zones call present,
// not MemTotal, which lacks the kernel's image, and that is at random in one
// node or the other.
func (l *Lab) nodes() (kib [2]uint64, err error) {
	text, err := l.Guest.ReadFile(l.ctx, "/proc/zoneinfo")
	if err != nil {
		return kib, err
	}
	node := 0
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "Node %d, zone", &node); err == nil && node >= len(kib) {
			return kib, l.Machine.Fail("/proc/zoneinfo", fmt.Errorf("node %d of %d", node, len(kib)))
		}
		var pages uint64
		if _, err := fmt.Sscanf(line, " present %d", &pages); err == nil {
			kib[node] += pages * phys.PageSize / phys.KiB
		}
	}
	l.Step("NUMA nodes: %d and %d MiB", kib[0]/1024, kib[1]/1024)
	return kib, nil
}
