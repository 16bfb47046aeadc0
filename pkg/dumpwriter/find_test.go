package dumpwriter

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/printk/printktest"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
)

// TestWithoutVMCOREINFO: a dump that has VMCOREINFO in its memory only has a
// log, and what is made of it has the note.
func TestWithoutVMCOREINFO(t *testing.T) {
	le := binary.LittleEndian
	ring := printktest.New()
	ring.Print(0, "Kernel panic - not syncing", printktest.Finalized)
	s := crashed(t, printktest.VMCoreInfo, ring.Memory)
	text := s.VMCOREINFO
	s.VMCOREINFO, s.Release = "", "6.12.0-test"
	page := func(addr uint64) []byte {
		p, ok := s.Page(addr)
		if !ok {
			t.Fatalf("no page %#x", addr)
		}
		clear(p.Data)
		return p.Data
	}
	note := page(0x2001000)
	le.PutUint32(note, 11)
	le.PutUint32(note[4:], uint32(len(text)))
	copy(note[12:], "VMCOREINFO")
	copy(note[24:], text)
	root, _ := s.Page(0x1001000)
	le.PutUint64(root.Data[273*8:], 0x2002003) // the direct map, of 1 GiB
	le.PutUint64(page(0x2002000), 0x83)

	dir := t.TempDir()
	name := filepath.Join(dir, "dump")
	if err := os.WriteFile(name, s.Kdump(t), 0o600); err != nil {
		t.Fatal(err)
	}
	var asked []string
	w := Writer{Progress: func(p outcome.Progress) { asked = append(asked, p.What) }}
	log, lost, err := w.Dmesg(name)
	if err != nil || lost != 0 || !strings.Contains(string(log), "Kernel panic - not syncing") {
		t.Errorf("Dmesg: %q, %d lost, %v", log, lost, err)
	}
	if len(asked) == 0 || asked[0] != "look for VMCOREINFO" {
		t.Errorf("progress %q", asked)
	}
	out := filepath.Join(dir, "out")
	done, err := w.Convert(t.Context(), ConvertOptions{In: []string{name}, Out: out})
	if err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(done.Warnings, "\n"); !strings.Contains(all, "it was found at 0x2001000") {
		t.Errorf("warnings %q", done.Warnings)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	d, err := dumpfile.New(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if got := d.Info(); string(got.VMCOREINFO) != text || got.Machine != 62 {
		t.Errorf("VMCOREINFO %q, machine %d", got.VMCOREINFO, got.Machine)
	}
}
