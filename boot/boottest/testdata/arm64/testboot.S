// A boot image for QEMU's generic loader that brings the machine into the
// state in which a crashed Linux enters a crash image, and enters one:
//   - every CPU was started once by PSCI CPU_ON; those that didn't crash went
//     off again or, if their bit is set in parked, wait for ever
//   - the CPU that crashed has its MMU and caches off, exceptions masked, and
//     nothing known in its registers
// With FLAG_GUEST the image runs at EL1 below a hypervisor, which is this file:
// it logs each set and way operation, write to SCTLR_EL1 and PSCI call, and
// answers as its flags say.
//
// Parameters lie at PARAMS: u32 number of the CPU that crashes, u32 number of
// CPUs, u32 flags, u32 parked, u64 entry, u64 MPIDR that the guest sees, 0 for
// its own; with FLAG_CACHES u64 ID_AA64MMFR2_EL1, u64 CLIDR_EL1, and
// u64 CCSIDR_EL1 of each level. Every CPU's own MPIDR is its number.
	.equ	PARAMS, 0x40300000
	.equ	SLOTS,  0x40301000	// u64 for each CPU: 1 when it has started
	.equ	CSSELR, 0x40302000	// u64 what the guest has written there
	.equ	STACK,  0x40310000	// the hypervisor's, down from here
	.equ	LOG,    0x40400000	// u64 count; from 64 on 32 bytes an entry
	.equ	LOG_MAX, 0x20000	// entries: what is more is counted, not kept

	.equ	FLAG_E2H, 0		// bit numbers
	.equ	FLAG_GUEST, 1
	.equ	FLAG_FEATURES, 2	// SYSTEM_RESET2 is there, says PSCI_FEATURES
	.equ	FLAG_RESET2, 3		// SYSTEM_RESET2 works
	.equ	FLAG_RESET, 4		// SYSTEM_RESET works
	.equ	FLAG_NO_SETWAY, 5	// set and way operations are undefined
	.equ	FLAG_NO_PSCI, 6		// hvc and smc are undefined
	.equ	FLAG_NO_AFFINITY, 7	// AFFINITY_INFO isn't there
	.equ	FLAG_CACHES, 8		// the guest's CPU has the caches in PARAMS

	.equ	TRAP_CSSELR, 0x308000	// of ESR: system register, without direction
	.equ	TRAP_SCTLR,  0x300400
	.equ	TRAP_CCSIDR, 0x304000
	.equ	TRAP_CLIDR,  0x324000
	.equ	TRAP_MMFR2,  0x34000e

	.equ	PSCI_CPU_OFF, 0x84000002
	.equ	PSCI_CPU_ON, 0xc4000003
	.equ	PSCI_AFFINITY_INFO, 0xc4000004
	.equ	PSCI_SYSTEM_RESET, 0x84000009
	.equ	PSCI_FEATURES, 0x8400000a
	.equ	PSCI_SYSTEM_RESET2, 0xc4000012

	.section .text
	.globl	_start
_start:
	ldr	x19, =PARAMS
	mov	x20, #0
	ldr	w21, [x19, #4]
	mov	x22, #1
1:	cmp	w22, w21
	b.hs	2f
	ldr	x0, =PSCI_CPU_ON
	mov	x1, x22
	adr	x2, secondary
	mov	x3, x22
	bl	psci
	cbnz	x0, .			// hang: the test says that it timed out
	add	x22, x22, #1
	b	1b
secondary:
	mov	x20, x0
2:	ldr	x19, =PARAMS
	ldr	x0, =SLOTS
	mov	x1, #1
	str	x1, [x0, x20, lsl #3]
	ldr	w1, [x19]
	cmp	w1, w20
	b.eq	crash
	ldr	w1, [x19, #12]
	lsr	w1, w1, w20
	tbnz	w1, #0, park
	mov	x1, #0x100000		// go off late: the image has to wait
1:	subs	x1, x1, #1
	b.ne	1b
	ldr	x0, =PSCI_CPU_OFF
	bl	psci
park:	wfi
	b	park

crash:	ldr	w21, [x19, #4]
	ldr	x0, =SLOTS
1:	subs	w21, w21, #1
	b.lo	3f
2:	ldr	x1, [x0, w21, uxtw #3]
	cbz	x1, 2b
	b	1b
3:	ldr	w1, [x19, #8]
	ldr	x2, [x19, #16]
	tbz	w1, #FLAG_E2H, 4f
	ldr	x3, =(1 << 34 | 1 << 27 | 1 << 31)	// E2H, TGE, RW
	msr	hcr_el2, x3
	isb
4:	tbnz	w1, #FLAG_GUEST, guest
	bl	junk
	br	x2
junk:	ldr	x0, =0xdeadbeefdeadbeef
	.irp	n, 1,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29
	mov	x\n, x0
	.endr
	mov	sp, x0
	ret

// psci: by hvc at EL1, where that is QEMU's, and by smc at EL2.
psci:	mrs	x4, CurrentEL
	cmp	x4, #8
	b.eq	1f
	hvc	#0
	ret
1:	smc	#0
	ret

// ---- the hypervisor ------------------------------------------------------------
guest:	adr	x0, vectors
	msr	vbar_el2, x0
	ldr	x0, =(1 << 31 | 1 << 26 | 1 << 22 | 1 << 19 | 1 << 13)	// RW, TVM, TSW, TSC, TWI
	tbz	w1, #FLAG_CACHES, 1f
	orr	x0, x0, #3 << 17	// TID2, TID3
1:	msr	hcr_el2, x0
	mov	x0, #3
	msr	cnthctl_el2, x0
	msr	cntvoff_el2, xzr
	ldr	x0, [x19, #24]
	cbnz	x0, 1f
	mrs	x0, mpidr_el1
1:	msr	vmpidr_el2, x0
	ldr	x0, =0x30d00800
	msr	sctlr_el1, x0
	mov	x0, #0x3c5		// EL1h, all masked
	msr	spsr_el2, x0
	msr	elr_el2, x2
	bl	junk
	ldr	x0, =STACK
	mov	sp, x0
	isb
	eret

	.macro	registers op
	\op	x0, x1, [sp, #0]
	\op	x2, x3, [sp, #16]
	\op	x4, x5, [sp, #32]
	\op	x6, x7, [sp, #48]
	\op	x8, x9, [sp, #64]
	\op	x10, x11, [sp, #80]
	\op	x12, x13, [sp, #96]
	\op	x14, x15, [sp, #112]
	\op	x16, x17, [sp, #128]
	\op	x18, x19, [sp, #144]
	\op	x20, x21, [sp, #160]
	\op	x22, x23, [sp, #176]
	\op	x24, x25, [sp, #192]
	\op	x26, x27, [sp, #208]
	\op	x28, x29, [sp, #224]
	.endm

trap:	sub	sp, sp, #256
	registers stp
	str	x30, [sp, #240]
	mrs	x19, esr_el2
	lsr	x20, x19, #26
	ldr	x21, =PARAMS
	ldr	w21, [x21, #8]
// What to log: ESR and x0 to x2; for set and way the register that it names.
	ldp	x1, x2, [sp]
	ldr	x3, [sp, #16]
	cmp	x20, #0x18
	b.ne	1f
	ubfx	x4, x19, #5, #5
	mov	x1, #0
	cmp	x4, #31
	b.eq	1f
	ldr	x1, [sp, x4, lsl #3]
1:	ldr	x5, =LOG
	ldr	x6, [x5]
	add	x7, x6, #1
	str	x7, [x5]
	ldr	x7, =LOG_MAX
	cmp	x6, x7
	b.hs	2f
	add	x5, x5, #64
	add	x5, x5, x6, lsl #5
	stp	x19, x1, [x5]
	stp	x2, x3, [x5, #16]
2:	cmp	x20, #0x18
	b.eq	set_way
	cmp	x20, #0x16
	b.eq	call
	cmp	x20, #0x17
	b.eq	call
reset:	ldr	x0, =PSCI_SYSTEM_RESET	// WFI, and what nobody expects
	smc	#0
	b	.

set_way:
	ldr	x4, =0x3ffc1e
	and	x4, x4, x19
	tbnz	x19, #0, id_register
	ldr	x5, =TRAP_CSSELR
	ldr	x6, =CSSELR
	cmp	x4, x5
	b.ne	1f
	str	x1, [x6]
	b	next
1:	ldr	x5, =TRAP_SCTLR
	cmp	x4, x5
	b.ne	1f
	msr	sctlr_el1, x1
	b	next
1:	tbnz	w21, #FLAG_NO_SETWAY, undefined
	b	next

id_register:
	ldr	x7, =PARAMS
	mov	x0, #0
	ldr	x5, =TRAP_CCSIDR
	cmp	x4, x5
	b.eq	1f
	ldr	x5, =TRAP_CLIDR
	cmp	x4, x5
	b.eq	2f
	ldr	x5, =TRAP_MMFR2
	cmp	x4, x5
	b.ne	3f
	ldr	x0, [x7, #32]
	b	3f
1:	ldr	x6, =CSSELR
	ldr	x6, [x6]
	lsr	x6, x6, #1
	add	x7, x7, #48
	ldr	x0, [x7, x6, lsl #3]
	b	3f
2:	ldr	x0, [x7, #40]
3:	ubfx	x4, x19, #5, #5
	cmp	x4, #31
	b.eq	next
	str	x0, [sp, x4, lsl #3]
	b	next

undefined:
	mrs	x0, elr_el2
	msr	elr_el1, x0
	mrs	x0, spsr_el2
	msr	spsr_el1, x0
	mov	x0, #1 << 25		// exception class 0, 32-bit instruction
	msr	esr_el1, x0
	mrs	x0, vbar_el1
	add	x0, x0, #0x200
	msr	elr_el2, x0
	mov	x0, #0x3c5
	msr	spsr_el2, x0
	b	leave

call:	tbnz	w21, #FLAG_NO_PSCI, undefined
	mov	x0, #-1			// NOT_SUPPORTED
	ldr	x2, =PSCI_FEATURES
	cmp	x1, x2
	b.eq	features
	ldr	x2, =PSCI_SYSTEM_RESET2
	cmp	x1, x2
	b.eq	reset2
	ldr	x2, =PSCI_SYSTEM_RESET
	cmp	x1, x2
	b.eq	cold
	ldr	x2, =PSCI_AFFINITY_INFO
	cmp	x1, x2
	b.ne	answer
	tbnz	w21, #FLAG_NO_AFFINITY, answer
	ldp	x0, x1, [sp]
	ldp	x2, x3, [sp, #16]
	smc	#0
	b	answer
features:
	tbz	w21, #FLAG_FEATURES, answer
	mov	x0, #0
	b	answer
reset2:	tbnz	w21, #FLAG_RESET2, reset
	mov	x0, #-2			// INVALID_PARAMETERS
	b	answer
cold:	tbnz	w21, #FLAG_RESET, reset
	mov	x0, #-6			// INTERNAL_FAILURE
answer:	ldr	x1, =0xbadc0ffeebadc0ff	// what SMCCC 1.0 lets a call clobber
	stp	x0, x1, [sp]
	stp	x1, x1, [sp, #16]
	stp	x1, x1, [sp, #32]
	stp	x1, x1, [sp, #48]
	stp	x1, x1, [sp, #64]
	stp	x1, x1, [sp, #80]
	stp	x1, x1, [sp, #96]
	stp	x1, x1, [sp, #112]
	stp	x1, x1, [sp, #128]
	cmp	x20, #0x16		// hvc returns behind itself, a trapped smc to itself
	b.eq	leave
next:	mrs	x0, elr_el2
	add	x0, x0, #4
	msr	elr_el2, x0
leave:	registers ldp
	ldr	x30, [sp, #240]
	add	sp, sp, #256
	eret

	.balign	0x800
vectors:
	.rept	8
	.balign	0x80
	b	.
	.endr
	.balign	0x80
	b	trap			// synchronous, from EL1
	.rept	7
	.balign	0x80
	b	.
	.endr
