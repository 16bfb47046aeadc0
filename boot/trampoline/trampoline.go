// Package trampoline builds the image through which the payload enters a
// kernel in memory where the payload's kexec can't place one.
//
// BuildAMD64 and BuildARM64 are pure: the same parameters give the same bytes.
// The code is trampoline.S in the architecture's folder; trampoline.bin beside
// it is committed, and a test rebuilds and compares it. An image's first byte
// is its entry. All numbers are little endian.
//
// # x86-64
//
// On x86-64 the page tables of the payload's kexec map only the payload's own
// RAM and the loaded segments. The trampoline has page tables that map all
// memory up to MapTop one to one, and then follows the 64-bit boot protocol.
// It works only at the address it was built for. Its layout, offsets in bytes:
//
//	0x0000 code, with the parameters at 0x0010; stack, down from 0x1000
//	0x1000 page tables: level 5, 4, 3, then one of level 2 for each GiB
//
// The kernel uses the tables until it has its own: neither the kernel nor what
// it unpacks may be placed over the image.
//
// # arm64
//
// On arm64 the payload's kexec places segments only in its own RAM
// (arm64_relocate_new_kernel copies through the linear map, v6.12). The
// trampoline is such a segment; kernel, initrd and device tree have been
// written to their places before. The trampoline does the rest of the boot
// protocol, and works at any address that is a multiple of 8.
package trampoline
