package handoff

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/phys"
)

func TestParse(t *testing.T) {
	area := phys.Range{Start: 512 * phys.MiB, End: 514 * phys.MiB}
	for _, tc := range []struct {
		name, cmdline string
		want          phys.Range
		wantErr       string // part of the error
	}{
		{name: "as the payload writes it", cmdline: "root=/dev/vda1 ro warmcore.handoff=0x20000000,0x200000", want: area},
		{name: "with suffixes", cmdline: "warmcore.handoff=512M,2M quiet", want: area},
		{name: "the last counts", cmdline: "warmcore.handoff=0x100000,2M warmcore.handoff=512M,2M", want: area},
		{name: "none", cmdline: "root=/dev/vda1", wantErr: "no warmcore.handoff="},
		{name: "init's", cmdline: "quiet -- warmcore.handoff=512M,2M", wantErr: "no warmcore.handoff="},
		{name: "dashes in another's quotes", cmdline: `systemd.run="a -- b warmcore.handoff=1" warmcore.handoff=512M,2M`, want: area},
		{name: "in quotes", cmdline: `"warmcore.handoff=512M,2M"`, want: area},
		{name: "no value", cmdline: "warmcore.handoff", wantErr: "want ADDR,SIZE"},
		{name: "a longer name", cmdline: "xwarmcore.handoff=512M,2M warmcore.handoffs=1,2", wantErr: "no warmcore.handoff="},
		{name: "no size", cmdline: "warmcore.handoff=512M", wantErr: "want ADDR,SIZE"},
		{name: "no number", cmdline: "warmcore.handoff=here,2M", wantErr: "address"},
		{name: "no size number", cmdline: "warmcore.handoff=512M,", wantErr: "size"},
		{name: "wraps", cmdline: "warmcore.handoff=0xffffffffffff0000,2M", wantErr: "beyond 64 bits"},
		{name: "too small", cmdline: "warmcore.handoff=512M,4K", wantErr: "want 64 KiB to 64 MiB"},
		{name: "too large", cmdline: "warmcore.handoff=512M,1G", wantErr: "want 64 KiB to 64 MiB"},
		{name: "low", cmdline: "warmcore.handoff=0,2M", wantErr: "below 1 MiB"},
		{name: "not aligned", cmdline: "warmcore.handoff=0x20000001,2M", wantErr: "not whole pages"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse(tc.cmdline)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("Parse(%q) (-want +got):\n%s", tc.cmdline, diff)
			}
			if tc.wantErr == "" && err != nil || tc.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tc.wantErr)) {
				t.Errorf("Parse(%q) error = %v, want %q", tc.cmdline, err, tc.wantErr)
			}
		})
	}
	if _, err := Parse(""); !errors.Is(err, ErrNone) {
		t.Errorf("Parse of nothing: %v, want ErrNone", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("warmcore.handoff=0x20000000,0x200000")
	f.Add("warmcore.handoff=1T,64K --")
	f.Fuzz(func(t *testing.T, cmdline string) {
		r, err := Parse(cmdline)
		if err != nil {
			if r != (phys.Range{}) {
				t.Errorf("Parse(%q) = %v with error %v", cmdline, r, err)
			}
			return
		}
		if n := r.Size(); n < MinSize || n > MaxSize || r.Start < phys.MiB {
			t.Errorf("Parse(%q) = %v", cmdline, r)
		}
	})
}

// memory is RAM from base on.
type memory struct {
	base  uint64
	bytes []byte
	err   error
}

func (m *memory) ReadPhys(p []byte, addr uint64) error {
	copy(p, m.bytes[addr-m.base:][:len(p)])
	return m.err
}

func (m *memory) WritePhys(p []byte, addr uint64) error {
	copy(m.bytes[addr-m.base:][:len(p)], p)
	return m.err
}

func TestArea(t *testing.T) {
	where := phys.Range{Start: 0x1000000, End: 0x1000000 + MinSize}
	m := &memory{base: where.Start, bytes: make([]byte, where.Size())}
	a := New(where, m)
	if a.Range() != where {
		t.Errorf("Range() = %v, want %v", a.Range(), where)
	}
	if err := a.WriteAt([]byte("word"), MinSize-4); err != nil {
		t.Fatal(err)
	}
	got, err := a.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, m.bytes) || string(got[MinSize-4:]) != "word" {
		t.Error("ReadAll is not what is in memory")
	}
	got[0] = 1
	if m.bytes[0] != 0 {
		t.Error("ReadAll's result is not a private copy")
	}
	for _, off := range []uint64{MinSize - 3, MinSize, 1<<64 - 2} {
		if err := a.WriteAt([]byte("word"), off); err == nil {
			t.Errorf("WriteAt(%#x) beyond the end: no error", off)
		}
	}
	m.err = errors.New("bus error")
	if b, err := a.ReadAll(); b != nil || !errors.Is(err, m.err) {
		t.Errorf("ReadAll of bad memory = %d bytes, %v", len(b), err)
	}
	if err := a.WriteAt([]byte{1}, 0); !errors.Is(err, m.err) {
		t.Errorf("WriteAt to bad memory: %v", err)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(path); !errors.Is(err, ErrLocked) {
		t.Errorf("second Lock: %v, want ErrLocked", err)
	}
	unlock()
	unlock, err = Lock(path)
	if err != nil {
		t.Fatalf("Lock after unlock: %v", err)
	}
	unlock()
	if _, err := Lock(filepath.Join(path, "no")); err == nil || errors.Is(err, ErrLocked) {
		t.Errorf("Lock of an impossible path: %v", err)
	}
}
