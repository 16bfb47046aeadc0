package segments

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/warmcore/warmcore/pkg/segments/segmentstest"
)

var ignoreBytes = cmpopts.IgnoreUnexported(BzImage{})

func TestParseBzImage(t *testing.T) {
	file := segmentstest.Debian(3)
	image := file.Image()
	k, err := ParseBzImage(image)
	if err != nil {
		t.Fatal(err)
	}
	want := &BzImage{
		Version:     "6.1.0-40-amd64 (debian-kernel@lists.debian.org) #1 SMP",
		PrefAddress: 0x1000000,
		InitSize:    0x3000000,
		Alignment:   0x200000,
		Relocatable: true,
		Above4G:     true,
		CmdlineSize: 2047,
		InitrdMax:   0x7fffffff,
	}
	if diff := cmp.Diff(want, k, ignoreBytes); diff != "" {
		t.Errorf("kernel (-want +got):\n%s", diff)
	}
	if !bytes.Equal(k.code, file.Code) {
		t.Error("the code differs from the file's")
	}
	if !bytes.Equal(k.header, image[0x1f1:segmentstest.HeaderEnd]) {
		t.Errorf("header of %#x bytes, want the file's from 0x1f1 to %#x", len(k.header), segmentstest.HeaderEnd)
	}
}

// TestParseBzImageVariants changes what is allowed to differ.
func TestParseBzImageVariants(t *testing.T) {
	tests := []struct {
		name   string
		change func(b []byte) []byte
		want   func(k *BzImage)
	}{
		{"not relocatable", func(b []byte) []byte { b[0x234] = 0; return b }, func(k *BzImage) { k.Relocatable = false }},
		{"initrd below 4 GiB only", func(b []byte) []byte { b[0x236] = 1; return b }, func(k *BzImage) { k.Above4G = false }},
		{"no version", func(b []byte) []byte { binary.LittleEndian.PutUint16(b[0x20e:], 0); return b }, func(k *BzImage) { k.Version = "" }},
		{"version outside the setup code", func(b []byte) []byte { binary.LittleEndian.PutUint16(b[0x20e:], 0xffff); return b }, func(k *BzImage) { k.Version = "" }},
		{"version without end", func(b []byte) []byte {
			for i := 0x300; i < 1024; i++ {
				b[i] = 'v'
			}
			return b
		}, func(k *BzImage) { k.Version = "" }},
		{"protocol 2.12", func(b []byte) []byte { b[0x206] = 0x0c; return b }, func(*BzImage) {}},
		{"setup_sects 0 means 4", func(b []byte) []byte {
			b[0x1f1] = 0
			return append(b[:1024:1024], append(make([]byte, 5*512-1024), b[1024:]...)...)
		}, func(*BzImage) {}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := segmentstest.Debian(1)
			want, err := ParseBzImage(file.Image())
			if err != nil {
				t.Fatal(err)
			}
			tt.want(want)
			got, err := ParseBzImage(tt.change(file.Image()))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, ignoreBytes); diff != "" {
				t.Errorf("kernel (-want +got):\n%s", diff)
			}
			if !bytes.Equal(got.code, file.Code) {
				t.Error("the code differs from the file's")
			}
		})
	}
}

// damaged are images with one thing wrong each, and the offset or words that
// the error names.
var damaged = []struct {
	name   string
	change func(b []byte) []byte
	want   string
}{
	{"empty", func([]byte) []byte { return nil }, "no x86 boot header"},
	{"cut in the header", func(b []byte) []byte { return b[:0x263] }, "no x86 boot header"},
	{"no magic", func(b []byte) []byte { b[0x202] = 'h'; return b }, `"HdrS" at offset 0x202`},
	{"an ELF file", func(b []byte) []byte { copy(b, "\x7fELF"); clear(b[4:]); return b }, "no x86 boot header"},
	{"old protocol", func(b []byte) []byte { b[0x206] = 0x0b; return b }, "boot protocol 2.11 at offset 0x206"},
	{"32-bit kernel", func(b []byte) []byte { b[0x236] = 0x3e; return b }, "xloadflags 0x3e at offset 0x236: no 64-bit entry point"},
	{"cut in the setup code", func(b []byte) []byte { return b[:0x300] }, "ends in its 1 setup sectors"},
	{"cut before the entry point", func(b []byte) []byte { return b[:1024+512] }, "ends in its 1 setup sectors"},
	{"too many setup sectors", func(b []byte) []byte { b[0x1f1] = 0xff; return b }, "ends in its 255 setup sectors"},
	{"header too short", func(b []byte) []byte { b[0x201] = 0x61; return b }, "header ends at offset 0x263 (byte at 0x201)"},
	{"header over the e820 table", func(b []byte) []byte { b[0x201] = 0xcf; return b }, "header ends at offset 0x2d1"},
	{"init_size smaller than the code", func(b []byte) []byte { binary.LittleEndian.PutUint32(b[0x260:], 4095); return b }, "init_size 0xfff at offset 0x260"},
	{"init_size above a GiB", func(b []byte) []byte { binary.LittleEndian.PutUint32(b[0x260:], 1<<30+1); return b }, "init_size 0x40000001 at offset 0x260"},
	{"alignment 0", func(b []byte) []byte { clear(b[0x230:0x234]); return b }, "kernel_alignment 0x0 at offset 0x230"},
	{"alignment no power of two", func(b []byte) []byte { b[0x230] = 1; return b }, "kernel_alignment 0x200001 at offset 0x230"},
	{"alignment of 2 GiB", func(b []byte) []byte { binary.LittleEndian.PutUint32(b[0x230:], 1<<31); return b }, "kernel_alignment 0x80000000"},
	{"cmdline_size 0", func(b []byte) []byte { clear(b[0x238:0x23c]); return b }, "cmdline_size 0 at offset 0x238"},
	{"cmdline_size too large", func(b []byte) []byte { b[0x23a] = 1; return b }, "cmdline_size 67583 at offset 0x238"},
	{"too large", func([]byte) []byte { return make([]byte, maxBzImage+1) }, "268435457 bytes: more than 268435456"},
}

func TestParseBzImageDamaged(t *testing.T) {
	for _, tt := range damaged {
		t.Run(tt.name, func(t *testing.T) {
			k, err := ParseBzImage(tt.change(segmentstest.Debian(1).Image()))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
			if k != nil {
				t.Errorf("an error came with the kernel %+v", k)
			}
		})
	}
}

// FuzzParseBzImage checks what AMD64 relies on of every image that parses.
func FuzzParseBzImage(f *testing.F) {
	f.Add(segmentstest.Debian(1).Image())
	for _, d := range damaged {
		if b := d.change(segmentstest.Debian(1).Image()); len(b) <= maxBzImage {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		k, err := ParseBzImage(b)
		if !bytes.Equal(b, before) {
			t.Fatal("the image was changed")
		}
		if err != nil {
			if k != nil {
				t.Fatalf("an error came with the kernel %+v", k)
			}
			return
		}
		switch {
		case len(k.code) <= 512 || uint64(len(k.code)) > k.InitSize || !bytes.HasSuffix(b, k.code):
			t.Errorf("%d bytes of code, init_size %d", len(k.code), k.InitSize)
		case len(k.header) < 0x264-0x1f1 || 0x1f1+len(k.header) > 0x2d0 || !bytes.Equal(k.header, b[0x1f1:][:len(k.header)]):
			t.Errorf("header of %d bytes", len(k.header))
		case k.Alignment == 0 || k.Alignment&(k.Alignment-1) != 0:
			t.Errorf("alignment %#x", k.Alignment)
		case k.InitSize > 1<<30 || k.CmdlineSize > 64<<10 || len(k.Version) > 256:
			t.Errorf("beyond the caps: %+v", k)
		}
	})
}
