package dumpwriter

import (
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/warmcore/warmcore/pkg/convert"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/target"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

// changing is a dump that shows each page only once as it is in the text: then
// what again makes of it.
type changing struct {
	vmcore.Dump
	again func(page []byte) error

	mu   sync.Mutex
	seen map[uint64]bool
}

func (c *changing) ReadPhys(p []byte, addr uint64) error {
	if err := c.Dump.ReadPhys(p, addr); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range len(p) / 4096 {
		at := addr + uint64(i)*4096
		if !c.seen[at] {
			c.seen[at] = true
			continue
		}
		if err := c.again(p[i*4096:][:4096]); err != nil {
			return &vmcore.MissingError{Range: phys.Range{Start: at, End: at + 4096}, Reason: vmcore.Unreadable, Err: err}
		}
	}
	return nil
}

// Memory that changes or fails after it was written is no reason to lose the
// dump, and a file with other content than was written is no dump.
func TestCheck(t *testing.T) {
	same := func([]byte) error { return nil }
	for _, tc := range []struct {
		name   string
		again  func([]byte) error
		damage bool
		want   string // in a warning, or the error of damage
	}{
		{"nothing", same, false, ""},
		{"changes", func(b []byte) error { b[7]++; return nil }, false, "40 of 40 pages changed while"},
		{"fails", func([]byte) error { return errors.New("poisoned") }, false, "40 of 40 pages could be read once, but not a second time: memory"},
		{"damaged file", same, true, "is not what was written"},
	} {
		for _, o := range []Options{{}, {Format: convert.ELF}, {Split: 2}, {Flattened: true}} {
			t.Run(tc.name+" "+o.Format.String(), func(t *testing.T) {
				s := vmcoretest.Parse(t, "0x0-0x28000 raw random 7\n0x28000 unreadable")
				b := s.ELF(t)
				src, err := dumpfile.Join(dumpfile.File{ReaderAt: strings.NewReader(string(b)), Size: int64(len(b))})
				if err != nil {
					t.Fatal(err)
				}
				name := filepath.Join(t.TempDir(), "dump")
				to, base := target.OpenFile(name, nil)
				defer to.Close()
				j := &job{
					Options: o, to: to,
					src: &changing{Dump: src, again: tc.again, seen: map[uint64]bool{}}, err: errors.New("no kernel"),
				}
				if err := j.create(t.Context(), base); err != nil {
					t.Fatal(err)
				}
				out, err := j.write(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if got := out.missing.Unreadable.String(); got != s.Unreadable().String() {
					t.Errorf("unreadable is %s, want %v", got, s.Unreadable())
				}
				if tc.damage {
					j.damage(t)
					err := j.check(&out)
					if err == nil || !strings.Contains(err.Error(), tc.want) {
						t.Errorf("check: %v, want %q", err, tc.want)
					}
					return
				}
				text := strings.Join(out.warnings[1:], "\n") // the first is about the kernel
				if (tc.want == "") != (text == "") || !strings.Contains(text, tc.want) {
					t.Errorf("warnings %q, want %q", out.warnings, tc.want)
				}
			})
		}
	}
}

// damage writes another byte into the middle of the first file, where a page is.
func (j *job) damage(t *testing.T) {
	t.Helper()
	f := j.files[0].random
	size, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	at := size / 2
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0]++
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}
