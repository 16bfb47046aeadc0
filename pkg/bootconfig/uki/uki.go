// Package uki finds the parts of a unified kernel image: a PE program for EFI
// with kernel, initrd and command line in sections of their own
// (https://uapi-group.org/specifications/specs/unified_kernel_image/).
//
// Of an image with several profiles only the first is read, which is the one
// that boots by itself.
package uki

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// maxSections is the most that Windows' loader accepts; systemd's images have
// 15.
const maxSections = 96

// Section is a part of the file.
type Section struct{ Offset, Size int64 }

// Image says where the parts are; those that aren't there have size 0.
type Image struct {
	Linux, Initrd, Microcode, Cmdline, OSRelease, DeviceTree Section
}

// ErrNone says that a file is no unified kernel image: no PE program, or one
// without a kernel in a section of its own.
var ErrNone = errors.New("no unified kernel image")

// Parse reads the headers of a PE file:
//
//	0x00  "MZ"
//	0x3c  u32  offset of the PE header
//	+0    "PE\0\0"
//	+4    u16  machine
//	+6    u16  number of sections
//	+20   u16  size of the optional header, which follows at +24
//	then for each section, 40 bytes:
//	+0    8 bytes of name, filled up with NUL
//	+8    u32  size in memory
//	+16   u32  size in the file, rounded up
//	+20   u32  offset in the file
func Parse(f io.ReaderAt) (Image, error) {
	var head [0x40]byte
	if _, err := f.ReadAt(head[:], 0); err != nil || string(head[:2]) != "MZ" {
		return Image{}, ErrNone
	}
	at := int64(binary.LittleEndian.Uint32(head[0x3c:]))
	var pe [24]byte
	if _, err := f.ReadAt(pe[:], at); err != nil || string(pe[:4]) != "PE\x00\x00" {
		return Image{}, ErrNone
	}
	count := int(binary.LittleEndian.Uint16(pe[6:]))
	if count > maxSections {
		return Image{}, fmt.Errorf("PE header at %#x: %d sections, want at most %d", at, count, maxSections)
	}
	table := make([]byte, 40*count)
	at += 24 + int64(binary.LittleEndian.Uint16(pe[20:]))
	if _, err := f.ReadAt(table, at); err != nil && count > 0 {
		return Image{}, fmt.Errorf("PE section table at %#x: %w", at, err)
	}
	var img Image
	for ; len(table) > 0; table = table[40:] {
		name := strings.TrimRight(string(table[:8]), "\x00")
		if name == ".profile" {
			break
		}
		s := Section{
			Offset: int64(binary.LittleEndian.Uint32(table[20:])),
			Size:   int64(min(binary.LittleEndian.Uint32(table[8:]), binary.LittleEndian.Uint32(table[16:]))),
		}
		to := map[string]*Section{
			".linux": &img.Linux, ".initrd": &img.Initrd, ".ucode": &img.Microcode,
			".cmdline": &img.Cmdline, ".osrel": &img.OSRelease, ".dtb": &img.DeviceTree,
		}[name]
		if to != nil && to.Size == 0 {
			*to = s
		}
	}
	if img.Linux.Size == 0 {
		return Image{}, ErrNone
	}
	return img, nil
}

// maxText bounds a command line or os-release.
const maxText = 1 << 16

// Text reads a section of text, without NULs and newlines at its end.
func Text(f io.ReaderAt, s Section) (string, error) {
	if s.Size > maxText {
		return "", fmt.Errorf("section of text at %#x: %d bytes, want at most %d", s.Offset, s.Size, maxText)
	}
	b := make([]byte, s.Size)
	if n, err := f.ReadAt(b, s.Offset); n < len(b) {
		return "", fmt.Errorf("section of text at %#x: %w", s.Offset, err)
	}
	text, _, _ := strings.Cut(string(b), "\x00")
	return strings.TrimRight(text, "\r\n \t"), nil
}
