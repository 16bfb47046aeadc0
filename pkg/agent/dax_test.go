package agent

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/printk/printktest"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/target"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
)

// The dump's 4 MiB lie at the end of the destination, half of them behind it:
// no device shows those.
const (
	daxNow    = 15*testBlock - 2*phys.MiB
	daxShown  = 2 * phys.MiB
	daxFirst  = 5 * testBlock // of dax1.0
	daxHeader = 0xc0000       // in the handoff area
	daxOwn    = 5 * 4096      // page of the dump that the device shows otherwise
)

// daxBoot is a captureBoot whose dump is in dax devices, too: regular files
// in the place of devices.
func daxBoot(t *testing.T) *testMachine {
	t.Helper()
	m := captureBoot(t)
	m.coreHeader(elfcore.Load{Virt: printktest.Base, Offset: daxNow, Size: 4 * phys.MiB})
	shown := bytes.Clone(oldMemory(t)[3*4096:][:daxShown])
	copy(shown[daxOwn:], bytes.Repeat([]byte{0xa5}, 4096))
	m.show(shown, daxNow)
	m.OpenDax = func(path, number string) (*os.File, error) {
		if want := map[string]string{"dax0.0": "252:0", "dax1.0": "252:1"}[filepath.Base(path)]; number != want {
			return nil, fmt.Errorf("%s has number %s, want %s", path, number, want)
		}
		return os.Open(path)
	}
	return m
}

// show makes a file for dax1.0, with content at a physical address.
func (m *testMachine) show(content []byte, at uint64) {
	m.t.Helper()
	m.file("dev/dax1.0", "")
	f, err := os.OpenFile(m.path("dev/dax1.0"), os.O_RDWR, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(content, int64(at-daxFirst)); err != nil {
		m.t.Fatal(err)
	}
}

// coreHeader writes the payload's ELF core header.
func (m *testMachine) coreHeader(loads ...elfcore.Load) {
	m.t.Helper()
	b, err := elfcore.Header{Machine: elfcore.MachineAMD64, Loads: loads}.AppendBinary(nil)
	if err != nil {
		m.t.Fatal(err)
	}
	copy(m.memory.bytes[daxHeader:], b)
}

func TestSaveByDax(t *testing.T) {
	for _, tc := range []struct {
		name   string
		byType bool
		target string
	}{
		{name: "v6.1"},
		{name: "v6.12", byType: true},
		{name: "to a pipe", target: target.Stdout},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := daxBoot(t)
			m.kernel.ByType = tc.byType
			var stdout bytes.Buffer
			got, _, err := m.Save(t.Context(), SaveOptions{Dax: true, Target: tc.target, Stdout: &stdout})
			if err != nil {
				t.Fatal(err)
			}
			if got.DaxBytes != daxShown {
				t.Errorf("%#x bytes by dax, want %#x", got.DaxBytes, uint64(daxShown))
			}
			if len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "no page is left out") {
				t.Errorf("warnings %q, want only that no page is left out", got.Warnings)
			}
			b := stdout.Bytes()
			if tc.target != target.Stdout {
				if b, err = os.ReadFile(filepath.Join(got.Directory, manifest.DumpName)); err != nil {
					t.Fatal(err)
				}
			}
			want := oldMemory(t)[3*4096:]
			copy(want[daxOwn:], bytes.Repeat([]byte{0xa5}, 4096))
			if !bytes.Equal(memoryOf(t, b), want) {
				t.Error("the dump is not what device and file have together")
			}
			if tc.target == target.Stdout {
				return
			}
			if _, err := m.Release(false); err != nil {
				t.Errorf("Release after it: %v", err)
			}
			if diff := cmp.Diff(allInUse, m.zones()); diff != "" {
				t.Errorf("zones (-want +got):\n%s", diff)
			}
		})
	}
}

// memoryOf returns the 4 MiB of a dump.
func memoryOf(t *testing.T, b []byte) []byte {
	t.Helper()
	d, err := dumpfile.New(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4*phys.MiB)
	if err := d.ReadPhys(got, 0); err != nil {
		t.Fatal(err)
	}
	return got
}

// Pages that a device can't read are holes.
func TestSaveByDaxHoles(t *testing.T) {
	m := daxBoot(t)
	const bad = daxShown - 3*4096
	if err := os.Truncate(m.path("dev/dax1.0"), int64(daxNow-daxFirst+bad)); err != nil {
		t.Fatal(err)
	}
	got, _, err := m.Save(t.Context(), SaveOptions{Dax: true})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]manifest.Extent{{Address: fmt.Sprintf("%#x", bad), Bytes: 3 * 4096}}, got.Unreadable); diff != "" {
		t.Errorf("unreadable (-want +got):\n%s", diff)
	}
}

// Memory behind the end of a device comes from /proc/vmcore.
func TestSaveByShortDax(t *testing.T) {
	m := daxBoot(t)
	end := uint64(14 * testBlock)
	m.kernel.Soft[1].End = end
	m.coreHeader(elfcore.Load{Virt: printktest.Base, Offset: end - 2*phys.MiB, Size: 4 * phys.MiB})
	m.show(oldMemory(t)[3*4096:], end-2*phys.MiB)
	got, _, err := m.Save(t.Context(), SaveOptions{Dax: true})
	if err != nil {
		t.Fatal(err)
	}
	if got.DaxBytes != 2*phys.MiB {
		t.Errorf("%#x bytes by dax, want 2 MiB", got.DaxBytes)
	}
	b, err := os.ReadFile(filepath.Join(got.Directory, manifest.DumpName))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(memoryOf(t, b), oldMemory(t)[3*4096:]) {
		t.Error("the dump is not what device and file have together")
	}
}

func TestSaveByDaxRefusals(t *testing.T) {
	attribute := func(name, value string) func(m *testMachine) {
		return func(m *testMachine) {
			for _, module := range []string{"device_dax", "dax_hmem"} {
				if err := m.kernel.Modprobe(module); err != nil {
					m.t.Fatal(err)
				}
			}
			m.file("sys/bus/dax/devices/"+name, value+"\n")
		}
	}
	whole := elfcore.Load{Virt: printktest.Base, Offset: daxNow, Size: 4 * phys.MiB}
	other := func(change func(l *elfcore.Load)) func(m *testMachine) {
		return func(m *testMachine) { l := whole; change(&l); m.coreHeader(l) }
	}
	cmdline := func(text string) func(m *testMachine) {
		return func(m *testMachine) { m.file("proc/cmdline", plainCmdline+" "+text+"\n") }
	}
	for _, tc := range []struct {
		name   string
		change func(m *testMachine)
		want   string
	}{
		{"no handoff area", func(m *testMachine) { m.file("proc/cmdline", "elfcorehdr=1K@0x200c0000") }, "without the handoff area"},
		{"no registration", func(m *testMachine) { clear(m.memory.bytes) }, "holds no registration"},
		{"no place of the header", cmdline(""), "elfcorehdr="},
		{"the header's end only", cmdline("elfcorehdr=0x200c0000"), "elfcorehdr="},
		{"header outside the handoff area", cmdline("elfcorehdr=1K@0x200c0000 elfcorehdr=4K@0x201ff800"), "not in the handoff area"},
		{"header of nothing", cmdline("elfcorehdr=1K@0x200d0000"), "magic"},
		{"short header", cmdline("elfcorehdr=64@0x200c0000"), "program headers"},
		{"more loads", func(m *testMachine) { m.coreHeader(whole, whole) }, "/proc/vmcore has 1 loads"},
		{"other memory", other(func(l *elfcore.Load) { l.Phys = 4096 }), "load 0 of /proc/vmcore"},
		{"other addresses", other(func(l *elfcore.Load) { l.Virt++ }), "load 0 of /proc/vmcore"},
		{"other size", other(func(l *elfcore.Load) { l.Size -= 4096 }), "load 0 of /proc/vmcore"},
		{"memory in no device", other(func(l *elfcore.Load) { l.Offset = 15 * testBlock }), "no dax device shows"},
		{"memory in the window", other(func(l *elfcore.Load) { l.Offset = 3 * testBlock }), "no dax device shows"},
		{"memory in half pages", other(func(l *elfcore.Load) { l.Offset += 512 }), "no whole pages"},
		{"wrong memory", other(func(l *elfcore.Load) { l.Offset -= 4096 }), "is not the dump's"},
		{"no module", func(m *testMachine) { m.kernel.Missing = []string{"device_dax"} }, "load module device_dax"},
		{"no devices", func(m *testMachine) { m.kernel.Soft = nil }, "no dax device shows"},
		{"no such device file", func(m *testMachine) { m.OpenDax = nil; os.Remove(m.path("dev/dax1.0")) }, "dax1.0: no such file"},
		{"a file in its place", func(m *testMachine) { m.OpenDax = nil }, "not character device 252:1"},
		{"kmem", func(m *testMachine) {
			m.kernel.ByType = true
			for _, module := range []string{"kmem", "dax_hmem"} {
				if err := m.kernel.Modprobe(module); err != nil {
					m.t.Fatal(err)
				}
			}
		}, "is with kmem"},
		{"pmem", func(m *testMachine) { m.kernel.AddPmem(blocks(5, 6)) }, "would destroy"},
		{"devices overlap", attribute("dax0.0/size", fmt.Sprint(uint64(3*testBlock))), "another dax device shows"},
		{"size is no number", attribute("dax1.0/size", "all"), "can't be listed"},
		{"size that wraps", attribute("dax1.0/size", "18446744073709551615"), "can't be listed"},
		{"size that isn't aligned", attribute("dax1.0/size", "1048577"), "not aligned"},
		{"alignment beyond a window", attribute("dax1.0/align", fmt.Sprint(uint64(testBlock))), "aligned to 0x8000000"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := daxBoot(t)
			tc.change(m)
			got, _, err := m.Save(t.Context(), SaveOptions{Dax: true})
			if got != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("Save = %v, %v; want an error with %q", got, err, tc.want)
			}
			wantRefusal(t, err, "")
			if _, err := os.Stat(m.path("var/crash")); err == nil {
				t.Error("refused, but there is a directory for the dump")
			}
			if len(m.done) > 0 {
				t.Errorf("refused, but did %v", m.done)
			}
		})
	}
}

// The device is looked for only if that was asked for.
func TestSaveLeavesDevices(t *testing.T) {
	m := daxBoot(t)
	got, _, err := m.Save(t.Context(), SaveOptions{})
	if err != nil || got.DaxBytes != 0 || len(m.kernel.Loaded) > 0 {
		t.Errorf("Save: %v, %d bytes by dax, loaded %v", err, got.DaxBytes, m.kernel.Loaded)
	}
	if m.block().State != registration.Saved {
		t.Errorf("state %v, want saved", m.block().State)
	}
}
