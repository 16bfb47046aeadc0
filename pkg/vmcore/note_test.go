package vmcore_test

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

func note(t testing.TB, name string, size int) []byte {
	t.Helper()
	b, err := elfcore.AppendNote(nil, elfcore.ELFNote{Name: name, Type: 1, Desc: bytes.Repeat([]byte{7}, size)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestNotes(t *testing.T) {
	a, b := note(t, "CORE", 5), note(t, "X", 0)
	both := append(bytes.Clone(a), b...)
	tests := []struct {
		name  string
		b     []byte
		want  []string
		error string
	}{
		{"none", nil, nil, ""},
		{"two", both, []string{"CORE", "X"}, ""},
		{"padding", append(bytes.Clone(both), make([]byte, 50)...), []string{"CORE", "X"}, ""},
		{"endBetween", append(append(bytes.Clone(a), make([]byte, 12)...), b...), []string{"CORE"}, ""},
		{"headerCutOff", both[:len(a)+11], []string{"CORE"}, ""},
		{"descriptorCutOff", a[:len(a)-1], nil, "offset 0x0: note: name of 0x5 and descriptor of 0x5 bytes, but 0x1b bytes"},
		{"nameHuge", vmcoretest.Patch(t, both, len(a), 4, math.MaxUint32), []string{"CORE"}, "offset 0x1c: note: name of 0xffffffff"},
		{"descriptorHuge", vmcoretest.Patch(t, both, 4, 4, math.MaxUint32), nil, "descriptor of 0xffffffff"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			var failed string
			for n, err := range vmcore.Notes(tt.b) {
				if err != nil {
					failed = err.Error()
					continue
				}
				got = append(got, n.Name)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || tt.error == "" != (failed == "") || !strings.Contains(failed, tt.error) {
				t.Errorf("error %q, want %q; names (-want +got):\n%s", failed, tt.error, diff)
			}
			var info vmcore.Info
			info.AddNotes(tt.b)
			if (len(info.Warnings) > 0) != (tt.error != "") {
				t.Errorf("warnings %q", info.Warnings)
			}
		})
	}
}

// More CPUs than elfcore reads at once: 4096 of 356 bytes.
func TestNotesOfManyCPUs(t *testing.T) {
	all := bytes.Repeat(note(t, "CORE", 336), 4096)
	all = append(all, note(t, "VMCOREINFO", 10)...)
	n := 0
	for _, err := range vmcore.Notes(all) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 4097 {
		t.Errorf("%d notes, want 4097", n)
	}
}

func TestWarnIsBounded(t *testing.T) {
	var info vmcore.Info
	for range 1000 {
		info.Warn("again")
	}
	if n := len(info.Warnings); n > 40 || info.Warnings[n-1] != "there are more warnings" {
		t.Errorf("%d warnings, the last %q", n, info.Warnings[n-1])
	}
}

func TestReadNotes(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       vmcore.Info
	}{
		{"arm64", "OSRELEASE=6.12\nPAGESIZE=65536\n", vmcore.Info{PageSize: 65536, Uname: vmcore.Uname{Release: "6.12"}}},
		{"oddPageSize", "OSRELEASE=6.12\nPAGESIZE=5000\n", vmcore.Info{PageSize: 4096, Uname: vmcore.Uname{Release: "6.12"}}},
		{"garbage", "x=y\n", vmcore.Info{PageSize: 4096}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := elfcore.AppendNote(nil, elfcore.ELFNote{Name: elfcore.NameVMCoreInfo, Desc: []byte(tt.text)})
			if err != nil {
				t.Fatal(err)
			}
			var got vmcore.Info
			got.AddNotes(b)
			got.ReadNotes()
			if string(got.VMCOREINFO) != tt.text || got.PageSize != tt.want.PageSize || got.Uname != tt.want.Uname {
				t.Errorf("VMCOREINFO %q, page size %d, %+v", got.VMCOREINFO, got.PageSize, got.Uname)
			}
			if (tt.name == "garbage") != (got.Warnings != nil) {
				t.Errorf("warnings %q", got.Warnings)
			}
		})
	}
}

func FuzzNotes(f *testing.F) {
	f.Add(note(f, "CORE", 336))
	f.Add(append(note(f, "VMCOREINFO", 20), note(f, "X", 1)...))
	f.Add(make([]byte, 40))
	f.Fuzz(func(t *testing.T, b []byte) {
		var info vmcore.Info
		info.AddNotes(b)
		info.ReadNotes()
		// What was taken over reads back as it is.
		var again vmcore.Info
		again.AddNotes(info.Notes)
		if again.Warnings != nil || !bytes.Equal(again.Notes, info.Notes) {
			t.Fatalf("notes % x read back as % x, warnings %q", info.Notes, again.Notes, again.Warnings)
		}
	})
}
