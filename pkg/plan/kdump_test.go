package plan

import (
	"slices"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

func TestKdumpCmdline(t *testing.T) {
	p, err := Make(Input{Arch: AMD64, Firmware: q35(2 * gib), Policy: usual})
	if err != nil {
		t.Fatal(err)
	}
	const ours = "warmcore.handoff=0x20000000,0x200000 warmcore.kdump"
	for entry, want := range map[string]string{
		"":                                   ours + " panic=10",
		"ro crashkernel=256M hugepages=9":    "ro crashkernel=256M hugepages=9 " + ours + " panic=10",
		"ro mem=1G -- single":                "ro mem=1G " + ours + " panic=10 -- single",
		"panic=0 memhp_default_state=online": "panic=0 memhp_default_state=online " + ours,
		// As a kernel has it that was started by kexec from such a boot.
		"ro warmcore.handoff=1,2 warmcore.kdump warmcore.dropped=cma warmcore.hugepages=1": "ro " + ours + " panic=10",
	} {
		if got := p.KdumpCmdline(entry); got != want {
			t.Errorf("%q: %q, want %q", entry, got, want)
		}
	}
	// The parameter of a boot before must not turn the units off.
	if line, _ := p.Cmdline("ro warmcore.kdump", Plain, phys.Range{}); strings.Contains(line, "kdump") {
		t.Errorf("planned again: %q", line)
	}
}

func TestWholeMap(t *testing.T) {
	p, err := Make(Input{Arch: AMD64, Firmware: q35(2 * gib), Policy: usual})
	if err != nil {
		t.Fatal(err)
	}
	m := p.WholeMap()
	h := phys.Set{p.Handoff}
	if got, want := m.Set(memmap.RAM), p.Firmware.Set(memmap.RAM).Minus(h); !slices.Equal(got, want) {
		t.Errorf("RAM %v, want %v", got, want)
	}
	if !m.Set(memmap.Reserved).Contains(p.Handoff) || len(m.Set(memmap.SoftReserved)) > 0 {
		t.Errorf("reserved %v, Soft Reserved %v; want the handoff area, none", m.Set(memmap.Reserved), m.Set(memmap.SoftReserved))
	}
}

func TestLocksDown(t *testing.T) {
	for entry, want := range map[string]string{
		"": "", "ro lockdown=none": "", "lockdown": "", "lockdown=integrity ro": "lockdown=integrity",
		"lockdown=integrity lockdown=none": "", "lockdown=confidentiality": "lockdown=confidentiality", "ro -- lockdown=integrity": "",
	} {
		if got, ok := LocksDown(entry); ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v; want %q", entry, got, ok, want)
		}
	}
}
