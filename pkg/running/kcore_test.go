package running

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/warmcore/warmcore/pkg/elfcore"
)

func TestReadRAM(t *testing.T) {
	b, err := elfcore.Header{Machine: elfcore.MachineAMD64, Loads: []elfcore.Load{
		{Virt: 0xffffffffc0000000, Phys: 1<<64 - 1, Offset: 0x1000, Size: 0x1000}, // vmalloc: at no address
		{Virt: 0xffff888000100000, Phys: 0x100000, Offset: 0x1000, Size: 0x1000},
		{Virt: 0xffff888000200000, Phys: 0x200000, Offset: 0x4000, Size: 0x1000}, // beyond the file's end
	}}.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, make([]byte, 0x2000-len(b))...)
	copy(b[0x1010:], "memory")
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "proc/kcore"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	k := Kernel{Root: root}
	got := make([]byte, 6)
	if err := k.ReadRAM(got, 0x100010); err != nil || string(got) != "memory" {
		t.Errorf("%q, %v; want memory", got, err)
	}
	for _, addr := range []uint64{0, 0x100ffc, 0x200000, 1<<64 - 2} {
		if err := k.ReadRAM(got, addr); err == nil {
			t.Errorf("read at %#x: no error", addr)
		}
	}
	if err := (Kernel{Root: t.TempDir()}).ReadRAM(got, 0); err == nil {
		t.Error("read without /proc/kcore: no error")
	}
}
