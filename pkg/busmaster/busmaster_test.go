package busmaster

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func config(class uint32, command uint16) []byte {
	b := make([]byte, 256)
	binary.LittleEndian.PutUint16(b[0x04:], command)
	b[0x09], b[0x0a], b[0x0b] = byte(class), byte(class>>8), byte(class>>16)
	return b
}

func TestQuiet(t *testing.T) {
	const all = 0x0547 // I/O, memory, bus master, parity, SERR, no INTx
	tests := []struct {
		name   string
		device Device
		want   []uint16 // command register written
	}{
		{"Ethernet that nobody drives", Device{"0000:00:02.0", "", config(0x020000, all)}, []uint16{0x0543}},
		{"Ethernet that is driven", Device{"0000:00:02.0", "e1000e", config(0x020000, all)}, nil},
		{"not a master", Device{"0000:00:02.0", "", config(0x020000, 0x0003)}, nil},
		{"NVMe that nobody drives", Device{"0000:01:00.0", "", config(0x010802, 0x0006)}, []uint16{0x0002}},
		{"graphics", Device{"0000:00:01.0", "", config(0x030000, 0x0007)}, []uint16{0x0003}},
		{"host bridge", Device{"0000:00:00.0", "", config(0x060000, all)}, nil},
		{"PCI bridge, with a disk behind it", Device{"0000:00:1c.0", "", config(0x060400, all)}, nil},
		{"interrupt controller", Device{"0000:00:05.4", "", config(0x080020, all)}, nil},
		{"DMA controller", Device{"0000:00:05.5", "", config(0x080100, all)}, []uint16{0x0543}},
		{"IOMMU", Device{"0000:00:00.2", "", config(0x080600, all)}, nil},
		{"no answer", Device{"0000:00:02.0", "", []byte(strings.Repeat("\xff", 64))}, nil},
		{"short", Device{"0000:00:02.0", "", config(0x020000, all)[:0x3f]}, nil},
		{"empty", Device{Address: "0000:00:02.0"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []uint16
			for _, w := range Quiet([]Device{tt.device}) {
				got = append(got, w.Command)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("writes (-want +got):\n%s", diff)
			}
		})
	}
}

// tree is a /sys/bus/pci/devices.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []Device{
		{"0000:00:00.0", "", config(0x060000, 0x0006)},
		{"0000:00:02.0", "", config(0x020000, 0x0507)},
		{"0000:00:03.0", "nvme", config(0x010802, 0x0406)},
		{"0000:00:04.0", "", config(0x020000, 0x0007)[:0x10]},
	} {
		if err := os.MkdirAll(filepath.Join(dir, d.Address), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, d.Address, "config"), d.Config, 0o600); err != nil {
			t.Fatal(err)
		}
		if d.Driver != "" {
			if err := os.Symlink("../../../bus/pci/drivers/"+d.Driver, filepath.Join(dir, d.Address, "driver")); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func TestDevices(t *testing.T) {
	dir := tree(t)
	devices, err := Devices(dir)
	if err == nil || !strings.Contains(err.Error(), "PCI device 0000:00:04.0: EOF") {
		t.Errorf("devices: %v, want an error for the one whose configuration space is short", err)
	}
	var got []string
	for _, d := range devices {
		got = append(got, d.String()+" "+d.Driver)
	}
	want := []string{"0000:00:00.0 (class 060000) ", "0000:00:02.0 (class 020000) ", "0000:00:03.0 (class 010802) nvme"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	if devices, err := Devices(filepath.Join(dir, "nothing")); devices != nil || err != nil {
		t.Errorf("no PCI: %v, %v; want neither devices nor an error", devices, err)
	}
}

func TestApply(t *testing.T) {
	dir := tree(t)
	devices, _ := Devices(dir)
	writes := Quiet(devices)
	gone := Write{Device: Device{Address: "0000:00:09.0", Config: config(0x020000, 7)}}
	quiet, err := Apply(dir, append([]Write{gone}, writes...))
	if err == nil || !strings.Contains(err.Error(), "PCI device 0000:00:09.0 (class 020000): command register") {
		t.Errorf("apply: %v, want an error for the device that is gone", err)
	}
	if len(quiet) != 1 || quiet[0].Address != "0000:00:02.0" {
		t.Errorf("quiet: %v, want 0000:00:02.0", quiet)
	}
	b, err := os.ReadFile(filepath.Join(dir, "0000:00:02.0", "config"))
	if diff := cmp.Diff(config(0x020000, 0x0503), b); err != nil || diff != "" {
		t.Errorf("configuration space (%v, -want +got):\n%s", err, diff)
	}
	devices, _ = Devices(dir)
	if again := Quiet(devices); again != nil {
		t.Errorf("a second time there is still %v to do", again)
	}
}

// TestApplyStays: a device that keeps the bit is named.
func TestApplyStays(t *testing.T) {
	dir := tree(t)
	_, err := Apply(dir, []Write{{Device: Device{Address: "0000:00:02.0", Config: config(0x020000, 7)}, Command: 7}})
	if err == nil || !strings.Contains(err.Error(), "0x0007 after writing 0x0007") {
		t.Errorf("apply: %v, want an error that says that the bit stays", err)
	}
}
