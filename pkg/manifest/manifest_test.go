package manifest

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore/checksum"
)

func example() *Manifest {
	crashed := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	return &Manifest{
		Schema: Schema, Directory: "/var/crash/x", Started: crashed, Finished: crashed, Crashed: &crashed,
		CPUs: []CPU{{PID: 1, PC: "0xffffffff81000000", SP: "0xffffc90000000000"}},
		Dump: Dump{Format: "kdump", PageSize: 4096, Pages: 8, Kept: 3, DumpLevel: 31, Memory: 8 * 4096},
		Files: []File{
			{Name: LogName, Bytes: 3, Written: 3},
			{Name: DumpName, Bytes: 2 << 20, Written: 1 << 20, CRC32C: &checksum.Sums{Size: 2 << 20, Blocks: []uint32{1, 2}}},
		},
		Unreadable: Extents(nil),
	}
}

func TestRead(t *testing.T) {
	want := example()
	text, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Read(bytes.NewReader(text), "m")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("manifest (-written +read):\n%s", diff)
	}
	for name, sums := range map[string]*checksum.Sums{DumpName: want.Files[1].CRC32C, LogName: nil, "vmcore.1": nil} {
		if diff := cmp.Diff(sums, got.Sums(name)); diff != "" {
			t.Errorf("sums of %s (-want +got):\n%s", name, diff)
		}
	}
	if got := want.Summary(); !strings.Contains(got, "/var/crash/x: 1 MiB in kdump format for 32 KiB of memory, 38% of the pages at dump level 31") {
		t.Errorf("summary %q", got)
	}
	if _, err := read(bytes.NewReader(text), "m", int64(len(text))-1); err == nil || !strings.Contains(err.Error(), "m has more than") {
		t.Errorf("a manifest that is too long: %v", err)
	}
	if _, err := Read(bytes.NewReader(text[:len(text)/2]), "m"); err == nil || !strings.Contains(err.Error(), "decode m: ") {
		t.Errorf("half a manifest: %v", err)
	}
}

func TestExtents(t *testing.T) {
	want := []Extent{{Address: "0x1000", Bytes: 0x2000}}
	if diff := cmp.Diff(want, Extents([]phys.Range{{Start: 0x1000, End: 0x3000}})); diff != "" {
		t.Errorf("extents (-want +got):\n%s", diff)
	}
	if got := Extents(nil); got == nil {
		t.Error("no extents are null in JSON")
	}
}

// What is read is written and read as the same.
func FuzzRead(f *testing.F) {
	text, err := example().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"files": [{"crc32c": {"size": -1}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Read(bytes.NewReader(b), "m")
		if err != nil {
			return
		}
		text, err := m.Encode()
		if err != nil {
			return // a year that RFC 3339 doesn't have
		}
		again, err := Read(bytes.NewReader(text), "m")
		if err != nil {
			t.Fatalf("read what was encoded: %v", err)
		}
		back, err := again.Encode()
		if err != nil || !bytes.Equal(text, back) {
			t.Errorf("encoded twice, %v:\n%s\n%s", err, text, back)
		}
		m.Sums(DumpName)
		_ = m.Summary()
	})
}
