package segments

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Offsets in an arm64 Image (Documentation/arch/arm64/booting.rst, "Call the
// kernel image", v6.12).
const (
	offTextOffset   = 0x08 // u64
	offImageSize    = 0x10 // u64
	offImageFlags   = 0x18 // u64
	offImageMagic   = 0x38 // "ARM\x64"
	imageHeaderSize = 0x40

	imageBigEndian  = 1 << 0
	imagePageShift  = 1 // two bits
	imageAnywhere   = 1 << 3
	imageMagic      = "ARM\x64"
	imageAlignment  = 2 << 20
	maxImage        = 256 << 20
	maxImageVersion = 256
)

// Offsets in an EFI zboot image, a program that unpacks an Image
// (drivers/firmware/efi/libstub/zboot-header.S, v6.12).
const (
	offZbootType    = 0x04 // "zimg"
	offZbootPayload = 0x08 // u32, offset of the compressed Image
	offZbootSize    = 0x0c // u32
	offZbootMethod  = 0x18 // text that ends with NUL
	zbootMethodEnd  = 0x38
)

// imagePages are the page sizes, indexed by the header's two bits.
var imagePages = [4]uint64{0, 4 * phys.KiB, 16 * phys.KiB, 64 * phys.KiB}

// ARM64Image is an arm64 Linux kernel: what is needed to load it.
type ARM64Image struct {
	Version    string // "Linux version 6.12.0 ...", empty if the file has none
	TextOffset uint64 // distance of the image from a multiple of 2 MiB, in bytes
	ImageSize  uint64 // bytes from the image's start that it needs
	Pages      uint64 // size of a page in bytes; 0 if the header doesn't say
	code       []byte
}

// ParseARM64 reads a kernel: an Image, a gzip-compressed Image, or an EFI
// zboot image with gzip in it. If b is an Image, the result keeps b.
func ParseARM64(b []byte) (*ARM64Image, error) {
	if len(b) > maxImage {
		return nil, fmt.Errorf("kernel image of %d bytes: more than %d", len(b), maxImage)
	}
	var err error
	switch {
	case len(b) >= zbootMethodEnd && string(b[:2]) == "MZ" && string(b[offZbootType:][:4]) == "zimg":
		b, err = unpackZboot(b)
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		b, err = gunzip(b)
	}
	if err != nil {
		return nil, fmt.Errorf("kernel image: %w", err)
	}
	k, err := parseImage(b)
	if err != nil {
		return nil, fmt.Errorf("kernel image: %w", err)
	}
	return k, nil
}

func parseImage(b []byte) (*ARM64Image, error) {
	if len(b) < imageHeaderSize || string(b[offImageMagic:][:4]) != imageMagic {
		return nil, fmt.Errorf("no arm64 header (%q at offset %#x); is it an Image?", imageMagic, offImageMagic)
	}
	le := binary.LittleEndian
	flags := le.Uint64(b[offImageFlags:])
	k := &ARM64Image{
		TextOffset: le.Uint64(b[offTextOffset:]),
		ImageSize:  le.Uint64(b[offImageSize:]),
		Pages:      imagePages[flags>>imagePageShift&3],
	}
	switch {
	case flags&imageBigEndian != 0:
		return nil, fmt.Errorf("flags %#x at offset %#x: a big-endian kernel", flags, offImageFlags)
	case flags&imageAnywhere == 0:
		// Kernels have this flag since v4.6. An older kernel can't use
		// memory below itself.
		return nil, fmt.Errorf("flags %#x at offset %#x: it can't be placed anywhere, it is older than 4.6", flags, offImageFlags)
	case k.TextOffset >= imageAlignment || k.TextOffset%phys.PageSize != 0:
		return nil, fmt.Errorf("text_offset %#x at offset %#x: want whole pages below %#x", k.TextOffset, offTextOffset, imageAlignment)
	case k.ImageSize < imageHeaderSize || k.ImageSize > maxImage:
		return nil, fmt.Errorf("image_size %#x at offset %#x: want %#x to %#x", k.ImageSize, offImageSize, imageHeaderSize, maxImage)
	}
	// What follows the image in the file, such as a signature, is not part
	// of the kernel.
	k.code = b[:min(uint64(len(b)), k.ImageSize)]
	k.Version = imageVersion(k.code)
	return k, nil
}

// imageVersion finds linux_banner (init/version-timestamp.c, v6.12).
func imageVersion(b []byte) string {
	for {
		i := bytes.Index(b, []byte("Linux version "))
		if i < 0 {
			return ""
		}
		text := b[i:min(len(b), i+maxImageVersion)]
		if n := bytes.IndexFunc(text, func(r rune) bool { return r < ' ' || r > '~' }); n >= 0 {
			text = text[:n]
		}
		// The kernel also contains format strings that begin so, but
		// without a digit after it.
		if n := len("Linux version "); len(text) > n && text[n] >= '0' && text[n] <= '9' {
			return string(text)
		}
		b = b[i+1:]
	}
}

func unpackZboot(b []byte) ([]byte, error) {
	start, size := binary.LittleEndian.Uint32(b[offZbootPayload:]), binary.LittleEndian.Uint32(b[offZbootSize:])
	if uint64(start)+uint64(size) > uint64(len(b)) {
		return nil, fmt.Errorf("EFI zboot: %d bytes from %d on (offset %#x): the file has %d", size, start, offZbootPayload, len(b))
	}
	method, _, _ := bytes.Cut(b[offZbootMethod:zbootMethodEnd], []byte{0})
	if string(method) != "gzip" {
		return nil, fmt.Errorf("EFI zboot: compression %q at offset %#x: only gzip can be unpacked", method, offZbootMethod)
	}
	return gunzip(b[start:][:size])
}

var errGzipSize = errors.New("gzip: the size at the end is not that of the data")

// gunzip unpacks b into a buffer of exactly the size that the end of b says,
// because the payload has little memory.
func gunzip(b []byte) ([]byte, error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("gzip: %d bytes: %w", len(b), io.ErrUnexpectedEOF)
	}
	size := binary.LittleEndian.Uint32(b[len(b)-4:])
	if size > maxImage {
		return nil, fmt.Errorf("gzip: size %d at offset %#x: more than %d", size, len(b)-4, maxImage)
	}
	// One byte unpacks to at most 1032 (RFC 1951). A file that lies about
	// its size is refused before anything is allocated.
	if uint64(size) > 1032*uint64(len(b)) {
		return nil, errGzipSize
	}
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	r.Multistream(false)
	out := make([]byte, size)
	if _, err := io.ReadFull(r, out); err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	switch n, err := r.Read(make([]byte, 1)); {
	case n > 0:
		return nil, errGzipSize
	case !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("gzip: %w", err)
	}
	return out, nil
}

// String returns the version, or "Image" if there is none.
func (k *ARM64Image) String() string {
	if k.Version == "" {
		return "Image"
	}
	return k.Version
}

// PageSize returns Pages.
func (k *ARM64Image) PageSize() uint64 { return k.Pages }
