// Package trampoline builds the image through which the payload enters a kernel
// that lies outside of the memory that its own kexec can place.
//
// BuildAMD64 and BuildARM64 are pure: the same parameters give the same bytes.
// The code is trampoline.S in the architecture's folder; trampoline.bin beside
// it is committed, and a test rebuilds and compares it. An image's first byte
// is its entry. All numbers are little endian.
//
// # x86-64
//
// On x86-64 the payload's kexec maps only what it owns or loaded. The
// trampoline brings page tables that map everything up to MapTop onto itself,
// and then follows the 64-bit boot protocol. It works only at the address it
// was built for. Its layout, offsets in bytes:
//
//	0x0000 code, with the parameters at 0x0010; stack, down from 0x1000
//	0x1000 page tables: level 5, 4, 3, then one of level 2 for each GiB
//
// The kernel uses the tables until it has its own: neither it nor what it
// unpacks may be placed over the image.
//
// # arm64
//
// On arm64 the payload's kexec places segments only in its own RAM
// (arm64_relocate_new_kernel copies through the linear map, v6.12). The
// trampoline lies there; kernel, initrd and device tree have been written to
// their places before. It does what is left of the boot protocol, and works
// at any address that is a multiple of 8.
package trampoline
