// The kexec trampoline for arm64.
//
// The payload's kexec jumps to `image` (arch/arm64/kernel/relocate_kernel.S,
// v6.12): MMU and data cache off, all exceptions masked, at EL2 or EL1; x0 is
// what kexec_load leaves there, no device tree. The normal kernel and its
// device tree lie outside of what that kexec can place, and have been written
// there already. The trampoline does what is left of the boot protocol
// (Documentation/arch/arm64/booting.rst, "Call the kernel image"): x0 = device
// tree, x1 = x2 = x3 = 0, nothing stale in the instruction cache. The code runs
// wherever it lies.
//
// The Go package beside this folder fills in the parameters.

// ---- offsets in the image, from its first byte -------------------------------
	.equ	P_MAGIC,      0x008	// "WCTRAMA1"
	.equ	P_ENTRY,      0x010	// u64 first byte of the kernel's Image
	.equ	P_DEVICETREE, 0x018	// u64 device tree
	.equ	T_OFFSETS,    0x020	// u16 count, then count u16: the values here

	.section .text
	.globl	image
image:
	b	start
	.org	P_MAGIC
	.ascii	"WCTRAMA1"
	.org	T_OFFSETS
	.hword	(offsets_end - offsets) / 2
offsets:
	.hword	P_ENTRY, P_DEVICETREE
offsets_end:

	.balign	16
start:
	adr	x4, image
	ldr	x5, [x4, #P_ENTRY]
	ldr	x0, [x4, #P_DEVICETREE]
	mov	x1, xzr
	mov	x2, xzr
	mov	x3, xzr
	dsb	sy			// what was written is in memory
	ic	iallu
	dsb	sy
	isb
	br	x5
