package vmcore_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/elfdump"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// Two loads that are neighbours in virtual memory and far apart in physical.
const mapped = `
load 0xffffffff81000000 0x1000 0x2000
load 0xffffffff81002000 0x8000 0x2000
0x1000-0x3000 raw random 1
0x8000 raw random 2
0x9000 excluded
`

func TestReadVirtual(t *testing.T) {
	s := vmcoretest.Parse(t, mapped)
	file := s.ELF(t)
	d, err := elfdump.New(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	info, err := vmcoreinfo.Parse([]byte("OSRELEASE=6.1.0-test\n"))
	if err != nil {
		t.Fatal(err)
	}
	v := vmcore.NewVirtual(d, info)
	const base = 0xffffffff81000000
	got := make([]byte, 0x2800)
	if err := v.ReadVirtual(got, base+0x800); err != nil {
		t.Fatal(err)
	}
	var want []byte
	for _, p := range s.Pages[:3] {
		want = append(want, p.Data...)
	}
	if !bytes.Equal(got, want[0x800:]) {
		t.Error("wrong content across loads")
	}
	for _, tt := range []struct {
		name string
		addr uint64
		want string
	}{
		{"excluded", base + 0x3000, "memory 00009000-0000900f is excluded"},
		{"noTables", base + 0x4000, "read 16 bytes at virtual address 0xffffffff81004000: "},
		{"user", 0x1000, "read 16 bytes at virtual address 0x1000: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := v.ReadVirtual(make([]byte, 16), tt.addr); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&vmcore.MissingError{Reason: vmcore.Hole}, "memory 00000000-empty is hole"},
		{&vmcore.FormatError{Off: 8, Field: "f", Problem: "p"}, "offset 0x8: f: p"},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
	if got := vmcore.Reason(9).String(); got != "reason 9" {
		t.Errorf("unknown reason: %q", got)
	}
}
