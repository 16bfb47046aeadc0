// What TestIntegrationARM64 enters instead of a kernel: it writes what it finds
// to RESULT, 8 bytes each, and resets the machine by PSCI.
	.equ	RESULT, 0x40600000
	.section .text
	.globl	_start
_start:
	ldr	x10, =RESULT
	stp	x0, x1, [x10, #0x08]
	stp	x2, x3, [x10, #0x18]
	ldr	x1, [x0]
	str	x1, [x10, #0x28]
	mrs	x1, daif
	str	x1, [x10, #0x30]
	mrs	x4, CurrentEL
	str	x4, [x10, #0x38]
	mrs	x1, sctlr_el1
	cmp	x4, #8
	b.ne	1f
	mrs	x1, sctlr_el2
1:	mov	x5, #5
	and	x1, x1, x5		// MMU and data cache
	str	x1, [x10, #0x40]
	adr	x1, _start
	str	x1, [x10, #0x48]
	ldr	x1, mark
	str	x1, [x10]
	ldr	x0, =0x84000009
	cmp	x4, #8
	b.eq	2f
	hvc	#0
2:	smc	#0
	b	.
	.balign	8
mark:	.ascii	"LOAD_OK\0"
