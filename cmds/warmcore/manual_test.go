package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/elfdump"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

// TestManualFormats: what the manual says about the formats that are read is
// what the code reads: each of them, and no more.
func TestManualFormats(t *testing.T) {
	b, err := os.ReadFile("../../docs/warmcore.8")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(b), ".It Cm inspect Ar\n")
	text, _, _ = strings.Cut(text, ".Bl -tag")
	text = strings.Join(strings.Fields(text), " ")

	if want := fmt.Sprintf("kdump-compressed files of header versions 1 to %d with pages compressed by zlib, lzo, snappy, zstd or not at all", kdump.MaxVersion); !strings.Contains(text, want) {
		t.Errorf("the manual doesn't say %q: %s", want, text)
	}
	open := func(b []byte) (vmcore.Dump, error) { return dumpfile.New(bytes.NewReader(b), int64(len(b))) }
	for version := int32(0); version <= kdump.MaxVersion+1; version++ {
		for _, codec := range []string{"raw", "zlib", "lzo", "snappy", "zstd"} {
			s := vmcoretest.Parse(t, "0x0-0x4000 "+codec+" text some words")
			s.Version = version
			d, err := open(s.Kdump(t))
			if ok := version >= 1 && version <= kdump.MaxVersion; (err == nil) != ok {
				t.Errorf("header version %d: %v", version, err)
			} else if ok {
				s.Check(t, d)
			}
		}
	}

	for _, machine := range []string{"riscv64", "ppc64le", "loongarch64"} {
		if !strings.Contains(text, machine) {
			t.Errorf("the manual doesn't name %s", machine)
		}
		s := vmcoretest.Parse(t, "machine "+machine+"\n0x0-0x4000 raw text some words")
		for _, file := range [][]byte{s.Kdump(t), s.ELF(t), vmcoretest.Flatten(t, s.ELF(t), 1000)} {
			d, err := open(file)
			if err != nil {
				t.Fatal(err)
			}
			s.Check(t, d)
			if got := d.Info().Uname.Machine; got != machine {
				t.Errorf("machine is %q, want %q", got, machine)
			}
		}
	}
	if !strings.Contains(text, "The files must be of 64-bit little-endian machines.") {
		t.Errorf("the manual doesn't say which machines' files are read: %s", text)
	}
	elf := vmcoretest.Parse(t, "0x0 raw").ELF(t)
	for _, field := range []struct {
		off   int
		value byte
	}{{4, 1}, {5, 2}} { // EI_CLASS, EI_DATA
		other := bytes.Clone(elf)
		other[field.off] = field.value
		if _, err := elfdump.New(bytes.NewReader(other), int64(len(other))); err == nil {
			t.Errorf("an ELF file with %d at offset %d is read", field.value, field.off)
		}
	}
}
