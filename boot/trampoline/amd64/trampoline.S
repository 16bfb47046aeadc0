# The kexec trampoline for x86-64.
#
# The payload's kexec jumps to `image` (arch/x86/kernel/relocate_kernel_64.S,
# v6.12): 64-bit mode, CR4 = PAE (and LA57 where the payload's kernel uses it),
# interrupts off, no usable GDT, and an identity map of the payload's RAM and
# of what it loaded; not of the memory that the normal kernel gets. The
# trampoline supplies what the 64-bit boot protocol asks for
# (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"): an identity map of
# that memory, flat segments with selectors 0x10 and 0x18, rsi = boot_params,
# interrupts off; and jumps to the kernel. The code runs at any 4 KiB boundary.
#
# The Go package beside this folder fills in the parameters and page tables.

	.intel_syntax noprefix

# ---- offsets in the image, from its first byte ------------------------------
	.equ	P_MAGIC,      0x008	# "WCTRAM01"
	.equ	P_ENTRY,      0x010	# u64 kernel's 64-bit entry point
	.equ	P_BOOTPARAMS, 0x018	# u64 struct boot_params
	.equ	T_OFFSETS,    0x020	# u16 count, then count u16: the values here
	.equ	STACK_TOP,    0x1000
	.equ	PML5,         0x1000	# page tables, made by the builder
	.equ	PML4,         0x2000
	.equ	CR4_LA57, 12

	.section .text
	.code64
	.globl	image
image:
	jmp	start
	.org	P_MAGIC
	.ascii	"WCTRAM01"
	.org	T_OFFSETS
	.word	(offsets_end - offsets) / 2
offsets:
	.word	P_ENTRY, P_BOOTPARAMS, STACK_TOP, PML5, PML4
offsets_end:

	.balign	16
start:
	cli
	cld
	lea	rbp, [rip + image]
	lea	rsp, [rbp + STACK_TOP]

# LA57 can't be changed in 64-bit mode, so follow it. The kernel does the same,
# and goes back to four levels by itself if it has to.
	lea	rax, [rbp + PML4]
	mov	rcx, cr4
	bt	ecx, CR4_LA57
	jnc	1f
	lea	rax, [rbp + PML5]
1:	mov	cr3, rax

	sub	rsp, 16
	lea	rax, [rip + gdt]
	mov	word ptr [rsp], gdt_end - gdt - 1
	mov	[rsp + 2], rax
	lgdt	[rsp]
	mov	word ptr [rsp], 0
	mov	qword ptr [rsp + 2], 0
	lidt	[rsp]			# a fault before the kernel's own: reset
	mov	eax, 0x18
	mov	ds, eax
	mov	es, eax
	mov	ss, eax
	mov	fs, eax
	mov	gs, eax
	mov	rsi, [rbp + P_BOOTPARAMS]
	mov	rax, [rbp + P_ENTRY]
	add	rsp, 16
	xor	ebx, ebx		# the 32-bit protocol wants these three zero;
	xor	edi, edi		# they cost nothing here
	xor	ebp, ebp
	push	0x10
	push	rax
	retfq

	.balign	8
gdt:	.quad	0, 0
	.quad	0x00af9b000000ffff	# 0x10: flat code, execute and read, 64-bit
	.quad	0x00cf93000000ffff	# 0x18: flat data, read and write
gdt_end:
