package uki_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/bootconfig/uki"
	"github.com/warmcore/warmcore/pkg/bootconfig/uki/ukitest"
)

var image = ukitest.Image(ukitest.Sections{".linux": "the kernel", ".initrd": "the initrd", ".ucode": "microcode", ".cmdline": "root=UUID=1 ro\n\x00", ".osrel": "ID=debian\n", ".text": "x"})

func TestParse(t *testing.T) {
	r := bytes.NewReader(image)
	img, err := uki.Parse(r)
	if err != nil {
		t.Fatal(err)
	}
	for want, s := range map[string]uki.Section{"the kernel": img.Linux, "the initrd": img.Initrd, "microcode": img.Microcode, "root=UUID=1 ro": img.Cmdline, "ID=debian": img.OSRelease, "": img.DeviceTree} {
		if got, err := uki.Text(r, s); got != want || err != nil {
			t.Errorf("section %+v: %q, %v; want %q", s, got, err, want)
		}
	}
	if _, err := uki.Text(r, uki.Section{Offset: 0, Size: 1 << 20}); err == nil || !strings.Contains(err.Error(), "want at most 65536") {
		t.Errorf("long text: %v", err)
	}
	if _, err := uki.Text(r, uki.Section{Offset: 1 << 20, Size: 10}); err == nil {
		t.Error("text after the end of the file: no error")
	}
}

func TestParseRefuses(t *testing.T) {
	many := bytes.Clone(image)
	many[0x86], many[0x87] = 0xff, 0xff
	for name, tt := range map[string]struct {
		b    []byte
		want error
		text string
	}{
		"empty":             {nil, uki.ErrNone, ""},
		"an ELF file":       {append([]byte("\x7fELF"), make([]byte, 100)...), uki.ErrNone, ""},
		"no PE header":      {append([]byte("MZ"), make([]byte, 100)...), uki.ErrNone, ""},
		"no kernel":         {ukitest.Image(ukitest.Sections{".text": "x"}), uki.ErrNone, ""},
		"too many sections": {many, nil, "65535 sections, want at most 96"},
		"cut off":           {image[:0x100], nil, "PE section table"},
	} {
		if _, err := uki.Parse(bytes.NewReader(tt.b)); err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(image)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		img, err := uki.Parse(r)
		if err != nil {
			return
		}
		if img.Linux.Size <= 0 {
			t.Error("an image without kernel")
		}
		_, _ = uki.Text(r, img.Cmdline)
	})
}
