package running

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/boot/stub"
	"github.com/warmcore/warmcore/pkg/acpi/acpitest"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

// machine is the files of a fake machine.
type machine struct {
	Kernel
	t *testing.T
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	return &machine{Kernel{Root: t.TempDir()}, t}
}

func (m *machine) file(name, content string) {
	m.t.Helper()
	path := m.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// /proc/cpuinfo is the kernel's; what comes of it goes into the stub.
func FuzzCPUInfo(f *testing.F) {
	f.Add("processor\t: 0\napicid\t\t: 0\n\nprocessor\t: 1\napicid\t\t: 2\n")
	f.Add("apicid : 4294967296\n")
	f.Add("apicid:\n:\n")
	f.Fuzz(func(t *testing.T, text string) {
		k := Kernel{Root: t.TempDir()}
		if err := os.MkdirAll(k.path("proc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(k.path("proc/cpuinfo"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		ids, err := k.APICIDs()
		if err == nil && (len(ids) == 0 || len(ids) > stub.MaxCPUs) || err != nil && ids != nil {
			t.Errorf("%d APIC IDs, %v", len(ids), err)
		}
	})
}

// Where registers and VMCOREINFO are goes into the handoff area, and the payload
// reads memory there.
func FuzzParseNote(f *testing.F) {
	f.Add("7f000000", "368")
	f.Add("0x0000000001234000", "1024")
	f.Add("0xffffffffffffff00", "4096")
	f.Add("0x0x1", "+1")
	f.Fuzz(func(t *testing.T, addr, size string) {
		for _, form := range []struct {
			base   int
			format string
		}{{10, "%d"}, {16, "%x"}} {
			n, err := parseNote(addr, 16, size, form.base)
			if err != nil {
				if n != (registration.Note{}) {
					t.Errorf("%+v, and %v", n, err)
				}
				continue
			}
			if r, ok := phys.Sized(n.Addr, n.Size); !ok || r.Empty() || r.Start == 0 || n.Size > registration.MaxNoteSize {
				t.Errorf("note %+v", n)
			}
			again, err := parseNote(fmt.Sprintf("%x", n.Addr), 16, fmt.Sprintf(form.format, n.Size), form.base)
			if again != n || err != nil {
				t.Errorf("written and read again it is %+v, %v; want %+v", again, err, n)
			}
		}
	})
}

func FuzzCrashNotes(f *testing.F) {
	f.Add("cpu0", "7f000000\n", "368\n")
	f.Add("cpu3071", "7f000200", "368")
	f.Add("cpu3072", "7f000200", "368")
	f.Add("cpu01", "7f000200", "368")
	f.Add("cpufreq", "not a CPU\n", "")
	f.Fuzz(func(t *testing.T, name, addr, size string) {
		if name != filepath.Base(name) || name == ".." || strings.Contains(name, "\x00") || len(name) > 255 {
			return // no name of a file
		}
		m := newMachine(t)
		for cpu, text := range map[string][2]string{"cpu1": {"7f000000\n", "368\n"}, name: {addr, size}} {
			m.file(cpus+"/"+cpu+"/crash_notes", text[0])
			m.file(cpus+"/"+cpu+"/crash_notes_size", text[1])
		}
		notes, found, err := m.CrashNotes()
		if err != nil {
			if notes != nil || found != 0 {
				t.Errorf("%d notes, %d found, and %v", len(notes), found, err)
			}
			return
		}
		has := 0
		for _, n := range notes {
			if n != (registration.Note{}) {
				has++
			}
		}
		if has != found || found == 0 || len(notes) > registration.MaxCPUs {
			t.Errorf("%d CPUs found, notes of %d in a list of %d", found, has, len(notes))
		}
	})
}

func TestConduit(t *testing.T) {
	const dt = DeviceTree + "/"
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  stub.Conduit
		bad   string
	}{
		{"hvc", map[string]string{dt + "psci/method": "hvc\x00", dt + "psci/compatible": "arm,psci-1.0\x00"}, stub.ConduitHVC, ""},
		{"smc", map[string]string{dt + "psci/method": "smc\x00", dt + "psci/compatible": "arm,psci-0.2\x00arm,psci\x00"}, stub.ConduitSMC, ""},
		{"with a unit address", map[string]string{dt + "psci@0/method": "smc\x00", dt + "psci@0/compatible": "arm,psci-1.0\x00"}, stub.ConduitSMC, ""},
		{"below firmware", map[string]string{dt + "firmware/psci/method": "smc\x00", dt + "firmware/psci/compatible": "arm,psci-1.0\x00"}, stub.ConduitSMC, ""},
		{"ACPI, smc", map[string]string{acpiTables + "FACP": fadt(1)}, stub.ConduitSMC, ""},
		{"ACPI, hvc", map[string]string{acpiTables + "FACP": fadt(3)}, stub.ConduitHVC, ""},
		{"ACPI before 5.1", map[string]string{acpiTables + "FACP": string(acpitest.Table("FACP", 4, make([]byte, 100)))}, 0, "firmware has no PSCI"},
		{"unknown method", map[string]string{dt + "psci/method": "svc\x00", dt + "psci/compatible": "arm,psci-1.0\x00"}, 0, `method is "svc\x00"`},
		{"no compatible", map[string]string{dt + "psci/method": "hvc\x00"}, 0, "no such file"},
		{"none", nil, 0, "names PSCI"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t)
			for name, content := range tc.files {
				m.file(name, content)
			}
			got, err := m.Conduit()
			if got != tc.want || tc.bad == "" && err != nil || tc.bad != "" && (err == nil || !strings.Contains(err.Error(), tc.bad)) {
				t.Errorf("conduit = %v, %v; want %v, error %q", got, err, tc.want, tc.bad)
			}
		})
	}
}

// fadt is a Fixed ACPI Description Table with ARM_BOOT_ARCH flags.
func fadt(flags byte) string {
	b := make([]byte, 276-36)
	b[129-36] = flags
	return string(acpitest.Table("FACP", 6, b))
}

// madt is a MADT with CPUs, each enabled or not.
func madt(mpidr uint16, enabled byte) string {
	b := make([]byte, 44-36+82)
	c := b[44-36:]
	c[0], c[1], c[12] = 0xb, 82, enabled
	c[68], c[69] = byte(mpidr), byte(mpidr>>8)
	return string(acpitest.Table("APIC", 5, b))
}

func TestMPIDRs(t *testing.T) {
	const dir = "sys/devices/system/cpu/"
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  []uint64
		bad   string
	}{
		{"one cell", map[string]string{dir + "online": "0-1\n", dir + "cpu0/of_node/reg": "\x00\x00\x00\x01", dir + "cpu1/of_node/reg": "\x00\x01\x02\x03"}, []uint64{1, 0x10203}, ""},
		{"two cells", map[string]string{dir + "online": "0\n", dir + "cpu0/of_node/reg": "\x00\x00\x00\x05\x00\x00\x00\x01"}, []uint64{0x500000001}, ""},
		{"some offline", map[string]string{dir + "online": "0,2\n", dir + "cpu0/of_node/reg": "\x00\x00\x00\x00", dir + "cpu2/of_node/reg": "\x00\x00\x02\x00"}, []uint64{0, 0x200}, ""},
		{"MADT", map[string]string{dir + "online": "0\n", acpiTables + "APIC": madt(0x100, 1)}, []uint64{0x100}, ""},
		{"MADT without CPUs", map[string]string{dir + "online": "0\n", acpiTables + "APIC": madt(0x100, 0)}, nil, "names no CPU"},
		{"neither", map[string]string{dir + "online": "0-1\n"}, nil, "no such file"},
		{"one without a node", map[string]string{dir + "online": "0-1\n", dir + "cpu0/of_node/reg": "\x00\x00\x00\x00"}, nil, "cpu1"},
		{"three bytes", map[string]string{dir + "online": "0\n", dir + "cpu0/of_node/reg": "abc"}, nil, "3 bytes, want 4 or 8"},
		{"no list", map[string]string{dir + "online": "all\n"}, nil, "invalid syntax"},
		{"list runs backwards", map[string]string{dir + "online": "3-1\n"}, nil, "no list of numbers"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t)
			for name, content := range tc.files {
				m.file(name, content)
			}
			got, err := m.MPIDRs()
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("MPIDRs (-want +got):\n%s", diff)
			}
			if tc.bad == "" && err != nil || tc.bad != "" && (err == nil || !strings.Contains(err.Error(), tc.bad)) {
				t.Errorf("error %v, want %q", err, tc.bad)
			}
		})
	}
}

func FuzzParseList(f *testing.F) {
	f.Add("0-3,7")
	f.Add("0-65535,0-65535,0")
	f.Add("3-0")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseList(text)
		if err != nil && list != nil || err == nil && len(list) == 0 || len(list) > maxList {
			t.Fatalf("%d numbers, %v", len(list), err)
		}
		for _, n := range list {
			if n < 0 || n > math.MaxUint16 {
				t.Fatalf("number %d of %q", n, text)
			}
		}
	})
}
