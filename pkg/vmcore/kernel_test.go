package vmcore_test

import (
	"testing"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/vmcore"
)

// VMCOREINFO is read once, with the notes; what is wrong with it is told each
// time.
func TestKernel(t *testing.T) {
	info := vmcore.Info{Notes: noteOf(t, "VMCOREINFO", []byte("OSRELEASE=6.1.0-test\nPAGESIZE=4096\n"))}
	info.ReadNotes(nil)
	first, err := info.Kernel()
	if err != nil || first.Release != "6.1.0-test" {
		t.Fatalf("Kernel = %+v, %v", first, err)
	}
	if again, err := info.Kernel(); again != first || err != nil {
		t.Errorf("Kernel again = %p, %v; want the same %p", again, err, first)
	}
	for name, want := range map[string]string{"": "the dump has no VMCOREINFO", "\x00nonsense": ""} {
		var info vmcore.Info
		if name != "" {
			info.Notes = noteOf(t, "VMCOREINFO", []byte(name))
		}
		info.ReadNotes(nil)
		for range 2 {
			if v, err := info.Kernel(); err == nil || want != "" && err.Error() != want {
				t.Errorf("VMCOREINFO %q: %v, %v; want %q", name, v, err, want)
			}
		}
	}
}

func noteOf(t *testing.T, name string, desc []byte) []byte {
	t.Helper()
	b, err := elfcore.AppendNote(nil, elfcore.ELFNote{Name: name, Desc: desc})
	if err != nil {
		t.Fatal(err)
	}
	return b
}
