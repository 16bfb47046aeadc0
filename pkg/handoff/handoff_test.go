package handoff

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"github.com/warmcore/warmcore/pkg/phys"
)

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
	const size = 64 * phys.KiB
	where := phys.Range{Start: 0x1000000, End: 0x1000000 + size}
	m := &memory{base: where.Start, bytes: make([]byte, where.Size())}
	a := New(where, m)
	if a.Range() != where {
		t.Errorf("Range() = %v, want %v", a.Range(), where)
	}
	if err := a.WriteAt([]byte("word"), size-4); err != nil {
		t.Fatal(err)
	}
	got, err := a.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, m.bytes) || string(got[size-4:]) != "word" {
		t.Error("ReadAll is not what is in memory")
	}
	got[0] = 1
	if m.bytes[0] != 0 {
		t.Error("ReadAll's result is not a private copy")
	}
	for _, off := range []uint64{size - 3, size, 1<<64 - 2} {
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
