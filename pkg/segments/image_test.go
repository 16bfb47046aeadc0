package segments

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/segments/segmentstest"
)

func TestParseARM64(t *testing.T) {
	plain := segmentstest.DebianARM64(3)
	image := plain.Image()
	want := &ARM64Image{
		Version:   "Linux version 6.12.117+deb12-arm64 (debian-kernel@lists.debian.org) #1 SMP",
		ImageSize: 0x2b30000,
		Pages:     4096,
		code:      image,
	}
	tests := []struct {
		name string
		file []byte
	}{
		{"Image", image},
		{"gzip", segmentstest.Gzip(image)},
		{"EFI zboot", segmentstest.Zboot("gzip", segmentstest.Gzip(image))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseARM64(tt.file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(ARM64Image{})); diff != "" {
				t.Errorf("ParseARM64() (-want +got):\n%s", diff)
			}
		})
	}
	for flags, pages := range map[uint64]uint64{0x8: 0, 0xa: 4 << 10, 0xc: 16 << 10, 0xe: 64 << 10} {
		k := plain
		k.Flags = flags
		got, err := ParseARM64(k.Image())
		if err != nil || got.PageSize() != pages {
			t.Errorf("flags %#x: pages of %d bytes, %v; want %d", flags, got.PageSize(), err, pages)
		}
	}
}

// TestParseARM64Signed: what follows the image in the file is not placed.
func TestParseARM64Signed(t *testing.T) {
	k := segmentstest.DebianARM64(3)
	k.ImageSize = 0x800
	got, err := ParseARM64(k.Image())
	if err != nil || len(got.code) != 0x800 {
		t.Errorf("ParseARM64() = %d bytes, %v; want 2048", len(got.code), err)
	}
	k.Code = k.Code[:10]
	if got, err = ParseARM64(k.Image()); err != nil || got.String() != "Image" {
		t.Errorf("ParseARM64() without a version = %v, %v", got, err)
	}
}

func TestParseARM64Refuses(t *testing.T) {
	image := segmentstest.DebianARM64(3).Image()
	packed := segmentstest.Gzip(image)
	change := func(f func(*segmentstest.ARM64)) []byte {
		k := segmentstest.DebianARM64(3)
		f(&k)
		return k.Image()
	}
	put := func(b []byte, off int, v uint32) []byte {
		b = bytes.Clone(b)
		binary.LittleEndian.PutUint32(b[off:], v)
		return b
	}
	tests := []struct {
		name string
		file []byte
		want string
	}{
		{"nothing", nil, `no arm64 header ("ARMd" at offset 0x38); is it an Image?`},
		{"63 bytes", image[:63], "no arm64 header"},
		{"an x86 kernel", segmentstest.Debian(1).Image(), "no arm64 header"},
		{"magic", put(image, 56, 0), "no arm64 header"},
		{"big-endian", change(func(k *segmentstest.ARM64) { k.Flags |= 1 }), "flags 0xb at offset 0x18: a big-endian kernel"},
		{"older than 4.6", change(func(k *segmentstest.ARM64) { k.Flags = 2 }), "flags 0x2 at offset 0x18: it can't be placed anywhere"},
		{"text_offset of 2 MiB", change(func(k *segmentstest.ARM64) { k.TextOffset = 2 << 20 }), "text_offset 0x200000 at offset 0x8"},
		{"text_offset of half a page", change(func(k *segmentstest.ARM64) { k.TextOffset = 2048 }), "text_offset 0x800 at offset 0x8"},
		{"image_size of 0", change(func(k *segmentstest.ARM64) { k.ImageSize = 0 }), "image_size 0x0 at offset 0x10: want 0x40 to 0x10000000"},
		{"image_size of 16 EiB", change(func(k *segmentstest.ARM64) { k.ImageSize = ^uint64(0) }), "image_size 0xffffffffffffffff"},
		{"gzip of 2 bytes", packed[:2], "gzip: 2 bytes: unexpected EOF"},
		{"gzip cut", append(bytes.Clone(packed[:len(packed)/2]), packed[len(packed)-4:]...), "gzip: unexpected EOF"},
		{"gzip with a wrong sum", put(packed, len(packed)-8, 0), "gzip: gzip: invalid checksum"},
		{"gzip that says less", put(packed, len(packed)-4, 100), "gzip: the size at the end is not that of the data"},
		{"gzip that says more", put(packed, len(packed)-4, 5000), "gzip: gzip: invalid checksum"},
		{"gzip that says 200 MiB", put(packed, len(packed)-4, 200<<20), "gzip: the size at the end is not that of the data"},
		{"gzip that says 4 GiB", put(packed, len(packed)-4, ^uint32(0)), "gzip: size 4294967295 at offset"},
		{"gzip of something else", segmentstest.Gzip([]byte("hello")), "no arm64 header"},
		{"gzip header", put(packed, 2, 0x77), "gzip: invalid header"},
		{"zboot of zstd", segmentstest.Zboot("zstd22", packed), `EFI zboot: compression "zstd22" at offset 0x18: only gzip can be unpacked`},
		{"zboot beyond the end", put(segmentstest.Zboot("gzip", packed), 12, 1<<30), "EFI zboot: 1073741824 bytes from 4096 on (offset 0x8)"},
		{"zboot that wraps", put(segmentstest.Zboot("gzip", packed), 8, ^uint32(0)), "EFI zboot: "},
		{"zboot of nothing", put(segmentstest.Zboot("gzip", packed), 12, 0), "gzip: 0 bytes: unexpected EOF"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseARM64(tt.file)
			if err == nil || !strings.HasPrefix(err.Error(), "kernel image: ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("ParseARM64(): %v, want %q", err, tt.want)
			}
			if got != nil {
				t.Errorf("an error came with %+v", got)
			}
		})
	}
}

func TestParse(t *testing.T) {
	x86, arm := segmentstest.Debian(1).Image(), segmentstest.DebianARM64(1).Image()
	tests := []struct {
		arch string
		file []byte
		want string // of the kernel, or of the error
		err  bool
	}{
		{"amd64", x86, "6.1.0-40-amd64", false},
		{"arm64", arm, "6.12.117+deb12-arm64", false},
		{"amd64", arm, "no x86 boot header", true},
		{"arm64", x86, "no arm64 header", true},
		{"riscv64", x86, `kernel image for "riscv64": no such architecture`, true},
	}
	for _, tt := range tests {
		k, err := Parse(tt.arch, tt.file)
		switch {
		case tt.err && (err == nil || k != nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("Parse(%s): %v, %v; want the error %q", tt.arch, k, err, tt.want)
		case !tt.err && (err != nil || !strings.Contains(k.String(), tt.want) || k.PageSize() != 4096):
			t.Errorf("Parse(%s): %v, %v; want %q", tt.arch, k, err, tt.want)
		}
	}
	if img, err := Place(Linux{}); err == nil || img != nil {
		t.Errorf("Place() of no kernel = %v, %v", img, err)
	}
	// Each refuses the other's kernel.
	l := linux(t)
	if img, err := ARM64(l); err == nil || img != nil || !strings.Contains(err.Error(), "not for arm64") {
		t.Errorf("ARM64() of a bzImage = %v, %v", img, err)
	}
	l.Kernel = &ARM64Image{}
	if img, err := AMD64(l); err == nil || img != nil || !strings.Contains(err.Error(), "not for x86-64") {
		t.Errorf("AMD64() of an Image = %v, %v", img, err)
	}
}

func FuzzParseARM64(f *testing.F) {
	image := segmentstest.DebianARM64(3).Image()
	f.Add(image)
	f.Add(segmentstest.Gzip(image))
	f.Add(segmentstest.Zboot("gzip", segmentstest.Gzip(image)))
	f.Add(segmentstest.Zboot("zstd22", image))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseARM64(b)
		if err != nil {
			if k != nil {
				t.Fatal("a kernel came with an error")
			}
			return
		}
		if k.TextOffset+k.ImageSize > maxImage+imageAlignment || uint64(len(k.code)) > k.ImageSize || len(k.Version) > maxImageVersion {
			t.Fatalf("kernel %+v", k)
		}
		again, err := ParseARM64(slices.Clone(k.code))
		if err != nil || again.ImageSize != k.ImageSize {
			t.Fatalf("its own code: %v", err)
		}
	})
}
