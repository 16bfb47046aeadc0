package dumpwriter

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/printk/printktest"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

// crashedKernel is a dump whose kernel's image, the log, lies at physical
// 16 MiB; the pages behind it are the page tables that map it.
const crashedKernel = `
0x1000000 zlib
0x1001000 zlib
0x1002000 zlib
0x1003000 zlib
0x2000000-0x2003000 raw random 1
`

// pageTables is what VMCOREINFO says about them.
const pageTables = `PAGESIZE=4096
SYMBOL(swapper_pg_dir)=ffffffff81001000
SYMBOL(_stext)=ffffffff81000000
NUMBER(phys_base)=0
`

const testLog = "[    0.000000] Linux version\n[    1.500000] Kernel panic - not syncing\n"

func writeFile(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dump")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func crashed(t *testing.T, info string, memory []byte) *vmcoretest.Spec {
	t.Helper()
	s := vmcoretest.Parse(t, crashedKernel)
	s.VMCOREINFO = info + pageTables
	copy(s.Pages[0].Data, memory)
	for _, e := range []struct{ page, index, entry uint64 }{
		{1, 511, 0x1002003},
		{2, 510, 0x1003003},
		{3, 8, 0x1000083}, // a page of 2 MiB
	} {
		binary.LittleEndian.PutUint64(s.Pages[e.page].Data[e.index*8:], e.entry)
	}
	return s
}

// Dumps of all formats that are read, of kernels with either log.
func TestDmesgOfFiles(t *testing.T) {
	ring := printktest.New()
	ring.Print(0, "Linux version", printktest.Finalized)
	ring.Print(1, "Kernel panic - not syncing", printktest.Finalized)
	buffer := printktest.NewLogBuffer()
	buffer.Print(0, "Linux version", "")
	buffer.Print(1, "Kernel panic - not syncing", "")
	for _, kernel := range []struct {
		name, info string
		memory     []byte
	}{
		{"6.12", printktest.VMCoreInfo, ring.Memory},
		{"5.4", printktest.LogBufferInfo, buffer.Memory},
	} {
		s := crashed(t, kernel.info, kernel.memory)
		for _, format := range []struct {
			name string
			file []byte
		}{
			{"kdump", s.Kdump(t)},
			{"kdump flattened", vmcoretest.Flatten(t, s.Kdump(t), 4096)},
			{"elf", s.ELF(t)},
		} {
			t.Run(kernel.name+" "+format.name, func(t *testing.T) {
				text, lost, err := Writer{}.Dmesg(writeFile(t, format.file))
				if string(text) != testLog || lost != 0 || err != nil {
					t.Errorf("Dmesg = %q, %d lost, %v; want %q", text, lost, err, testLog)
				}
			})
		}
	}
}

func TestDmesgRefuses(t *testing.T) {
	s := crashed(t, printktest.VMCoreInfo, printktest.New().Memory)
	old := crashed(t, "OSRELEASE=3.4.0\n", nil)
	for _, tt := range []struct {
		name string
		file []byte
		want string
	}{
		{"text", []byte("no dump"), "neither that of an ELF file"},
		{"kdump cut off", s.Kdump(t)[:5000], "dump: "},
		{"no log", old.Kdump(t), "VMCOREINFO describes no log"},
		{"no VMCOREINFO", bytes.ReplaceAll(s.ELF(t), []byte("VMCOREINFO\x00"), []byte("VMCOREINFX\x00")), "has no VMCOREINFO"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text, _, err := Writer{}.Dmesg(writeFile(t, tt.file))
			if err == nil || !strings.Contains(err.Error(), tt.want) || text != nil {
				t.Errorf("Dmesg = %q, %v; want an error with %q", text, err, tt.want)
			}
		})
	}
}
