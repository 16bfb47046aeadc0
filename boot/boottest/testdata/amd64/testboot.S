# A boot image for QEMU's -kernel (Multiboot 1) that brings the machine into
# the state in which a crashed Linux enters a crash image, as far as the image
# can tell, and enters one:
#   - every CPU was started once by INIT and SIPI, runs in 64-bit mode and is
#     halted with interrupts off; its local APIC is disabled by software
#   - the CPU that "crashed" has no usable GDT or IDT, and page tables that map
#     2 MiB here, and the 2 MiB that hold the image; nothing else
# Parameters lie at PARAMS: u32 APIC ID of the CPU that crashes, u32 number of
# CPUs, u32 flags (bit 0: 5-level paging), u32 entry.

	.intel_syntax noprefix
	.equ	ORIGIN, 0x400000	# 2 MiB aligned; also the linker's -Ttext
	.equ	PARAMS, 0x500000
	.equ	TABLES, 0x510000	# PML5, PML4, PDPT, PD
	.equ	STACKS, 0x520000	# 4 KiB for each CPU
	.equ	LOW, 0x8000		# where the other CPUs start
	.equ	APIC, 0xfee00000

	.section .text
	.globl	_start
_start:
	jmp	main32
	.balign	4
header:
	.long	0x1badb002, 0x00010000, -(0x1badb002 + 0x00010000)
	.long	header, _start, 0, 0, main32

	.code32
main32:
	cli
	cld
	mov	esp, STACKS + 0x1000
	lgdt	[gdtr]
	mov	eax, 0x10
	mov	ds, eax
	mov	es, eax
	mov	ss, eax

# Page tables; the memory is zero. PAGE is present, writable and 2 MiB.
	.equ	TABLE, 0x3
	.equ	PAGE, 0x83
	mov	dword ptr [TABLES], TABLES + 0x1000 + TABLE
	mov	dword ptr [TABLES + 0x1000], TABLES + 0x2000 + TABLE
	mov	dword ptr [TABLES + 0x2000], TABLES + 0x3000 + TABLE
	mov	dword ptr [TABLES + 0x3000 + (ORIGIN >> 21) * 8], ORIGIN + PAGE
	mov	eax, [PARAMS + 12]
	mov	ecx, eax
	and	eax, 0xffe00000
	or	eax, PAGE
	shr	ecx, 21
	mov	[TABLES + 0x3000 + ecx * 8], eax

# Start the others: INIT and SIPI to all but self. One SIPI only: a second one
# that QEMU's thread for a CPU hasn't got round to when the image's INIT comes
# would start that CPU here again, and not where the image wants it.
	mov	esi, offset low
	mov	edi, LOW
	mov	ecx, low_end - low
	rep	movsb
	or	dword ptr [APIC + 0xf0], 0x100
	mov	dword ptr [APIC + 0x300], 0xc4500
	mov	ecx, 10000
	call	delay
	mov	dword ptr [APIC + 0x300], 0xc4600 + (LOW >> 12)
	jmp	common32

delay:	out	0x80, al
	dec	ecx
	jnz	delay
	ret

# Every CPU, in 32-bit mode: on to 64 bits. edi = APIC ID.
ap32:
	mov	eax, 0x10
	mov	ds, eax
	mov	es, eax
	mov	ss, eax
common32:
	mov	edi, [APIC + 0x20]
	shr	edi, 24
	mov	esp, edi
	shl	esp, 12
	add	esp, STACKS + 0x1000
	and	dword ptr [APIC + 0xf0], ~0x100
	mov	eax, 0x20		# PAE
	mov	ecx, TABLES + 0x1000
	test	dword ptr [PARAMS + 8], 1
	jz	1f
	or	eax, 0x1000		# LA57
	mov	ecx, TABLES
1:	mov	cr4, eax
	mov	cr3, ecx
	mov	ecx, 0xc0000080
	rdmsr
	or	eax, 0x100		# LME
	wrmsr
	mov	eax, 0x80000001		# PG, PE; caching on
	mov	cr0, eax
	.byte	0xea			# jmp far 0x08:main64
	.long	main64
	.word	0x08

	.code64
main64:
	lock inc dword ptr [running]
1:	pause
	mov	eax, [PARAMS + 4]
	cmp	[running], eax
	jb	1b
	cmp	edi, [PARAMS]
	je	crash
halt:	cli
	hlt
	jmp	halt

crash:
	mov	ecx, 1000		# the others are halted by then
1:	out	0x80, al
	dec	ecx
	jnz	1b
	lgdt	[none]
	lidt	[none]
	mov	eax, [PARAMS + 12]
	jmp	rax

	.balign	8
gdt:	.quad	0
	.quad	0x00af9b000000ffff	# 0x08: 64-bit code
	.quad	0x00cf93000000ffff	# 0x10: data
	.quad	0x00cf9b000000ffff	# 0x18: 32-bit code
gdt_end:
gdtr:	.word	gdt_end - gdt - 1
	.long	gdt
none:	.word	0
	.quad	0
	.balign	4
running: .long	0

	.code16
low:
	cli
	xor	ax, ax
	mov	ds, ax
	.byte	0x66			# lgdt with a 32-bit base
	lgdt	[LOW + low_gdtr - low]
	mov	eax, cr0
	and	eax, 0x9fffffff		# caching on
	or	eax, 1
	mov	cr0, eax
	.byte	0x66, 0xea		# jmp far 0x18:ap32
	.long	ap32
	.word	0x18
low_gdtr: .word	gdt_end - gdt - 1
	.long	gdt
low_end:
