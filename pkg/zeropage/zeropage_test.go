package zeropage_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/zeropage"
)

func TestParse(t *testing.T) {
	const want = "zero page of 4095 bytes: want 4096"
	if p, err := zeropage.Parse(make([]byte, 4095)); err == nil || !strings.Contains(err.Error(), want) || p != nil {
		t.Errorf("%d bytes, error %v, want %q", len(p), err, want)
	}
	b := make([]byte, 5000)
	le := binary.LittleEndian
	le.PutUint64(b[0x070:], 0x7fffe014_12345678)
	le.PutUint32(b[0x218:], 0x7d00_0000)
	le.PutUint32(b[0x0c0:], 0x1)
	le.PutUint32(b[0x21c:], 0x10_0000)
	b[0x1e8] = 2
	b[0x2d0+39] = 0xee
	p, err := zeropage.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(p) != 4096 || p.RSDP() != 0x7fffe014_12345678 {
		t.Errorf("%d bytes, RSDP %#x", len(p), p.RSDP())
	}
	want1 := phys.Range{Start: 0x1_7d00_0000, End: 0x1_7d10_0000}
	if r, ok := p.Initrd(); r != want1 || !ok {
		t.Errorf("initrd %v, %v; want %v", r, ok, want1)
	}
	if table, err := p.E820(); len(table) != 40 || table[39] != 0xee || err != nil {
		t.Errorf("e820 table % x, %v", table, err)
	}
}

func TestParseBadFields(t *testing.T) {
	b := make([]byte, 4096)
	p, err := zeropage.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := p.Initrd(); ok {
		t.Errorf("initrd %v in an empty zero page", r)
	}
	le := binary.LittleEndian
	le.PutUint32(b[0x218:], 0xfffff000)
	le.PutUint32(b[0x0c0:], 0xffffffff)
	le.PutUint32(b[0x21c:], 0x2000)
	if r, ok := p.Initrd(); ok {
		t.Errorf("initrd %v wraps", r)
	}
	for n, want := range map[byte]string{0: "0 e820 entries at offset 0x1e8", 129: "129 e820 entries at offset 0x1e8"} {
		b[0x1e8] = n
		if table, err := p.E820(); err == nil || !strings.Contains(err.Error(), want) || table != nil {
			t.Errorf("%d bytes, error %v, want %q", len(table), err, want)
		}
	}
}

func TestNew(t *testing.T) {
	header := bytes.Repeat([]byte{0xaa}, zeropage.MaxHeader)
	p, err := zeropage.New(header)
	if err != nil {
		t.Fatal(err)
	}
	if p[0x1f1] != 0xaa || p[0x2cf] != 0xaa || p[0x2d0] != 0 || p[0x210] != 0xff {
		t.Errorf("header % x", p[0x1f0:0x2d8])
	}
	if r, ok := p.Initrd(); ok || binary.LittleEndian.Uint64(p[0x250:]) != 0 {
		t.Errorf("initrd %v and setup_data of the image's header", r)
	}
	if p, err := zeropage.New(append(header, 0)); err == nil || p != nil {
		t.Errorf("a header over the e820 table gives %d bytes, error %v", len(p), err)
	}
}

func TestSetE820(t *testing.T) {
	for _, tc := range []struct{ entries, rest int }{{1, 0}, {128, 0}, {129, 1}, {4096, 3968}} {
		p, err := zeropage.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		table := make([]byte, tc.entries*20)
		for i := range table {
			table[i] = byte(i * 7)
		}
		rest := p.SetE820(table)
		got, err := p.E820()
		if err != nil || !bytes.Equal(append(got[:len(got):len(got)], rest...), table) || len(rest) != tc.rest*20 {
			t.Errorf("%d entries: %d bytes in the page (%v), %d left", tc.entries, len(got), err, len(rest))
		}
	}
}

// FuzzPage reads what a boot loader left, whatever it is, and writes it again.
func FuzzPage(f *testing.F) {
	page := make([]byte, zeropage.Size)
	page[0x1e8] = 2
	binary.LittleEndian.PutUint32(page[0x218:], 0x7d00_0000)
	binary.LittleEndian.PutUint32(page[0x21c:], 0x10_0000)
	f.Add(page)
	f.Add(page[:100])
	f.Add(bytes.Repeat([]byte{0xff}, zeropage.Size))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := zeropage.Parse(b)
		if err != nil {
			return
		}
		again, err := zeropage.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		again.CopyScreen(p)
		again.SetRSDP(p.RSDP())
		if r, ok := p.Initrd(); ok {
			if r.Empty() {
				t.Errorf("initrd %v", r)
			}
			again.SetInitrd(r)
			if got, ok := again.Initrd(); got != r || !ok {
				t.Errorf("written and read again, the initrd is at %v, want %v", got, r)
			}
		}
		if again.RSDP() != p.RSDP() {
			t.Errorf("RSDP %#x, want %#x", again.RSDP(), p.RSDP())
		}
		table, err := p.E820()
		if err != nil {
			return
		}
		if len(table) == 0 || len(table)%zeropage.EntrySize != 0 {
			t.Errorf("a table of %d bytes", len(table))
		}
		if rest := again.SetE820(table); len(rest) != 0 {
			t.Errorf("%d bytes of the table are left", len(rest))
		}
		if got, err := again.E820(); err != nil || !bytes.Equal(got, table) {
			t.Errorf("table of %d bytes, %v; want %d", len(got), err, len(table))
		}
	})
}
