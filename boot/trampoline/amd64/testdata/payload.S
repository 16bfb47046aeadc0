# What TestIntegrationTrampoline enters instead of a kernel: it writes what it
# finds to RESULT, 8 bytes each, and resets the machine by CF9.
	.intel_syntax noprefix
	.equ	RESULT, 0x600000
	.equ	DISTANT, 0x148000000	# 5 GiB + 128 MiB, RAM
	.section .text
	.code64
	.globl	_start
_start:
	mov	r8d, RESULT
	mov	[r8 + 0x08], rsi
	mov	rax, [rsi]		# boot_params is mapped
	mov	[r8 + 0x10], rax
	mov	eax, cs
	mov	[r8 + 0x18], rax
	mov	eax, ds
	mov	[r8 + 0x20], rax
	mov	eax, es
	mov	[r8 + 0x28], rax
	mov	eax, ss
	mov	[r8 + 0x30], rax
	pushfq
	pop	rax
	and	eax, 0x600		# interrupt and direction flags
	mov	[r8 + 0x38], rax
	mov	rax, cr3
	mov	[r8 + 0x40], rax
	mov	rdx, DISTANT
	mov	rax, [rdx]		# far memory can be read, and written
	mov	[r8 + 0x48], rax
	mov	eax, 0x7fffabcd
	mov	[rdx + 8], rax
	mov	rax, 0x004b4f5f44414f4c	# "LOAD_OK\0"
	mov	[r8], rax
	mov	dx, 0xcf9
	mov	al, 0x02
	out	dx, al
	mov	al, 0x06
	out	dx, al
1:	hlt
	jmp	1b
