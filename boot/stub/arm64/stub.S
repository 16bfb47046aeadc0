// The crash stub for arm64.
//
// The crashed kernel's kexec code (arch/arm64/kernel/cpu-reset.S, v6.12) jumps
// to `image` on the CPU that panicked: MMU and data cache off, all exceptions
// masked, at EL2 if the kernel was started there, else at EL1. The other CPUs
// went off by PSCI CPU_OFF, or are parked. What the kernel wrote last is in the
// caches of this CPU and, where firmware wrote them back only so far, in
// those that the CPUs share.
//
// The stub writes the caches back by set and way, writes the crash record,
// asks PSCI which of the other CPUs are off, and resets the machine warm. The
// code runs wherever it lies; it uses no stack. With the MMU off every access
// is Device-nGnRnE: uncached, and faulting unless it is aligned.
//
// An exception goes on with what x28 says, the next thing to try: a hypervisor
// that forbids set and way, or a conduit that isn't there, must not keep the
// machine from being reset. Whoever sets x28 sets it to a later stage, so
// there is an end.
//
// The Go package beside this folder fills in the parameters and the list of
// CPUs. It knows the offsets below; the table at T_OFFSETS lets its test check
// that.

// ---- offsets in the image, from its first byte -------------------------------
	.equ	P_MAGIC,    0x008	// "WCSTUBA1"
	.equ	P_RECORD,   0x010	// u64 physical address of the crash record
	.equ	P_NONCE,    0x020	// 16 bytes, copied into the record
	.equ	P_CONDUIT,  0x030	// u32 how to call PSCI: CONDUIT_*
	.equ	P_COUNT,    0x034	// u32 entries at LIST
	.equ	P_SKIP,     0x038	// u32 reset methods to leave out: SKIP_*
	.equ	P_PROGRESS, 0x03c	// u32 how far the stub got: AT_*
	.equ	P_CLEANED,  0x040	// u64 caches' lines that the last cleaning visited
	.equ	P_FAULTS,   0x048	// u32 exceptions
	.equ	P_RESULT,   0x04c	// u32 what the last reset method returned
	.equ	P_SYNDROME, 0x050	// u64 ESR of the last exception
	.equ	P_BITMAP,   0x060	// 32 bytes: CPUs below 256 that are clean
	.equ	T_OFFSETS,  0x080	// u16 count, then count u16: the values here, the last in pages
	.equ	VECTORS,    0x800	// 2 KiB aligned, as VBAR wants it
	.equ	LIST,       0x1000	// u64 MPIDRs, affinity fields only
	.equ	IMAGE_SIZE, 0x10000	// a page, whatever the kernel's page size

	.equ	CONDUIT_HVC, 1
	.equ	SKIP_RESET2, 0
	.equ	SKIP_RESET, 1

	.equ	AT_ENTRY, 1
	.equ	AT_RECORD, 2		// first record written
	.equ	AT_COUNTED, 3		// the other CPUs are off, or time is over
	.equ	AT_CLEANED, 4		// second record written
	.equ	AT_RESET2, 5
	.equ	AT_RESET, 6
	.equ	AT_HALTED, 7		// nothing has worked

// ---- the crash record (pkg/registration, Record) -------------------------------
	.equ	R_VERSION,   8		// u32, and u32 flags
	.equ	R_NONCE,     16
	.equ	R_CPU,       32		// u32, and u32 expected
	.equ	R_CLEAN,     40		// u32, and u32 zero
	.equ	R_TIME,      48		// u64, and u64 zero
	.equ	R_BITMAP,    64		// 32 bytes, and 24 zero bytes
	.equ	R_CHECKSUM,  120
	.equ	R_SIZE,      128

// ---- PSCI (Arm DEN 0022, "Functions") ------------------------------------------
	.equ	PSCI_AFFINITY_INFO, 0xc4000004
	.equ	PSCI_SYSTEM_RESET,  0x84000009
	.equ	PSCI_FEATURES,      0x8400000a
	.equ	PSCI_SYSTEM_RESET2, 0xc4000012
	.equ	AFFINITY_OFF, 1

	.equ	EL2, 2 << 2		// CurrentEL
	.equ	SCTLR_I, 1 << 12
	.equ	CTYPE_DATA, 2		// CLIDR: from here on a level has a data cache
	.equ	BITMAP_CPUS, 256
	.equ	NOT_LISTED, 0xffffffff

// A CPU that parks never goes off. All those together cost one wait of a second;
// it starts again whenever a CPU is found off. WAIT_CALLS bounds it where the
// counter stands still, and WAIT_TICKS is for firmware that left CNTFRQ 0.
	.equ	WAIT_CALLS, 1 << 22
	.equ	WAIT_TICKS, 100000000
	.equ	WAIT_RESET_SHIFT, 3	// an eighth of a second for a reset to happen

// Registers that keep their meaning throughout; PSCI keeps x18 and up (Arm DEN
// 0028, SMCCC 1.0):
//   x19 image   x20 record   x21 time at entry   w22 own number in the list
//   w23 CPUs that should be clean   w24 CPUs that are   x26 own MPIDR
//   x28 where an exception goes on

	.macro	progress stage
	mov	w0, #\stage
	str	w0, [x19, #P_PROGRESS]
	.endm

	.macro	on_exception label
	adr	x28, \label
	.endm

	.macro	const reg, value	// of 32 bits
	movz	\reg, #((\value) & 0xffff)
	movk	\reg, #((\value) >> 16), lsl #16
	.endm

	.section .text
	.globl	image
image:
	b	start
	.org	P_MAGIC
	.ascii	"WCSTUBA1"
	.org	T_OFFSETS
	.hword	(offsets_end - offsets) / 2
offsets:
	.hword	P_RECORD, P_NONCE, P_CONDUIT, P_COUNT, P_SKIP, P_PROGRESS
	.hword	P_CLEANED, P_FAULTS, P_RESULT, P_SYNDROME, P_BITMAP
	.hword	VECTORS, LIST, IMAGE_SIZE >> 12
offsets_end:

	.balign	16
start:
	msr	daifset, #0xf
	adr	x19, image
	progress AT_ENTRY
	on_exception reset

// Own vectors, and the instruction cache: without it a loop over the lines of a
// large cache takes seconds. It needs no MMU, and makes nothing dirty.
	adr	x0, vectors
	ic	iallu
	dsb	sy
	isb
	mrs	x1, CurrentEL
	cmp	x1, #EL2
	b.ne	1f
	msr	vbar_el2, x0
	mrs	x1, sctlr_el2
	orr	x1, x1, #SCTLR_I
	msr	sctlr_el2, x1
	b	2f
1:	msr	vbar_el1, x0
	mrs	x1, sctlr_el1
	orr	x1, x1, #SCTLR_I
	msr	sctlr_el1, x1
2:	isb
	mrs	x21, cntvct_el0
	ldr	x20, [x19, #P_RECORD]

// Own number, and how many should be clean: this CPU and everyone in the list
// but itself.
	mrs	x0, mpidr_el1
	mov	x1, #0xffffff
	movk	x1, #0xff, lsl #32	// Aff3
	and	x26, x0, x1
	mov	w22, #NOT_LISTED
	mov	w23, #1
	ldr	w1, [x19, #P_COUNT]
	add	x2, x19, #LIST
	mov	w3, #0
1:	cmp	w3, w1
	b.hs	2f
	ldr	x4, [x2, w3, uxtw #3]
	cmp	x4, x26
	csel	w22, w3, w22, eq
	cinc	w23, w23, ne
	add	w3, w3, #1
	b	1b
2:

// This CPU first: should the rest go wrong, the record that says "1" is true.
// It is 0 if cleaning isn't possible.
	mov	w24, #0
	on_exception first_record
	bl	clean
	mov	w0, w22
	bl	count_cpu
first_record:
	on_exception reset
	bl	put_record
	progress AT_RECORD

// The others: the kernel doesn't wait until they are really off.
	on_exception counted
	bl	count_others
counted:
	progress AT_COUNTED

// What the others' firmware has moved into a shared cache, now that nobody is
// adding to it. The new count is only true when that has been done.
	on_exception reset
	bl	clean
	bl	put_record
	progress AT_CLEANED

// ---- reset: one method after the other until one works -------------------------
reset:
	on_exception reset_cold
	ldr	w0, [x19, #P_SKIP]
	tbnz	w0, #SKIP_RESET2, reset_cold
	const	w0, PSCI_FEATURES
	const	w1, PSCI_SYSTEM_RESET2
	bl	psci
	tbnz	w0, #31, reset_cold	// not supported
	progress AT_RESET2
	const	w0, PSCI_SYSTEM_RESET2
	mov	w1, #0			// SYSTEM_WARM_RESET
	mov	x2, #0
	bl	psci_reset

reset_cold:
	on_exception halt
	ldr	w0, [x19, #P_SKIP]
	tbnz	w0, #SKIP_RESET, halt
	progress AT_RESET
	const	w0, PSCI_SYSTEM_RESET
	bl	psci_reset

halt:	on_exception 1f
	progress AT_HALTED
1:	wfi
	b	1b

// psci_reset: a call that should not return. If it does, say with what, and
// give the reset time to happen: it may have been only asked for.
psci_reset:
	mov	x27, x30
	bl	psci
	str	w0, [x19, #P_RESULT]
	bl	ticks
	lsr	x5, x5, #WAIT_RESET_SHIFT
	const	w6, WAIT_CALLS
	mrs	x7, cntvct_el0
1:	mrs	x8, cntvct_el0
	sub	x8, x8, x7
	cmp	x8, x5
	b.hs	2f
	subs	w6, w6, #1
	b.ne	1b
2:	ret	x27

// psci: call it with what is in x0 to x3; the result is in w0.
psci:	ldr	w4, [x19, #P_CONDUIT]
	cmp	w4, #CONDUIT_HVC
	b.ne	1f
	hvc	#0
	ret
1:	smc	#0
	ret

// ticks: x5, the counter's ticks in a second.
ticks:	mrs	x5, cntfrq_el0
	cbnz	x5, 1f
	const	w5, WAIT_TICKS
1:	ret

// count_cpu: the CPU with number w0 in the list is clean.
count_cpu:
	add	w24, w24, #1
	cmp	w0, #BITMAP_CPUS
	b.hs	1f
	lsr	w1, w0, #6
	add	x2, x19, #P_BITMAP
	ldr	x3, [x2, w1, uxtw #3]
	mov	x4, #1
	lsl	x4, x4, x0		// modulo 64
	orr	x3, x3, x4
	str	x3, [x2, w1, uxtw #3]
1:	ret

// count_others: wait for the other CPUs in the list to go off, and count those
// that do. A CPU that is off has been cleaned by firmware, to where it shares a
// cache with us (Arm DEN 0022, CPU_OFF, "Implementation responsibilities").
count_others:
	mov	x18, x30
	mov	w25, #0
	const	w29, WAIT_CALLS
1:	mrs	x27, cntvct_el0
2:	ldr	w0, [x19, #P_COUNT]
	cmp	w25, w0
	b.hs	5f
	add	x1, x19, #LIST
	ldr	x1, [x1, w25, uxtw #3]
	cmp	x1, x26
	b.eq	4f
	const	w0, PSCI_AFFINITY_INFO
	mov	x2, #0			// of this CPU, not of its cluster
	bl	psci
	cmp	w0, #AFFINITY_OFF
	b.ne	3f
	mov	w0, w25
	bl	count_cpu
	add	w25, w25, #1
	b	1b
3:	tbnz	w0, #31, 4f		// no such CPU, or PSCI can't tell
	cbz	w29, 4f
	sub	w29, w29, #1
	bl	ticks
	mrs	x0, cntvct_el0
	sub	x0, x0, x27
	cmp	x0, x5
	b.lo	2b
4:	add	w25, w25, #1
	b	2b
5:	ret	x18

// clean: clean and invalidate all data caches up to the point of coherency, by
// set and way (Arm DDI 0487, CLIDR_EL1, CCSIDR_EL1 and DC CISW).
clean:	dsb	sy
	mov	x15, #0			// lines
	mrs	x0, clidr_el1
	ubfx	x1, x0, #24, #3		// LoC: the first level that need not be cleaned
	mrs	x2, s3_0_c0_c7_2	// ID_AA64MMFR2_EL1
	ubfx	x2, x2, #20, #4		// CCIDX: wide fields in CCSIDR
	mov	x3, #0			// level, from 0
1:	cmp	x3, x1
	b.hs	7f
	add	x4, x3, x3, lsl #1
	lsr	x4, x0, x4
	and	x4, x4, #7
	cmp	x4, #CTYPE_DATA
	b.lo	6f
	lsl	x5, x3, #1		// the level, as CSSELR and DC CISW have it
	msr	csselr_el1, x5
	isb
	mrs	x6, ccsidr_el1
	and	x7, x6, #7
	add	x7, x7, #4		// log2 of a line's bytes: where the set goes
	ubfx	x8, x6, #3, #10		// ways - 1
	ubfx	x9, x6, #13, #15	// sets - 1
	cbz	x2, 2f
	ubfx	x8, x6, #3, #21
	ubfx	x9, x6, #32, #24
2:	clz	w10, w8			// where the way goes: at the top of 32 bits
3:	mov	x11, x9
	lsl	x12, x8, x10
	orr	x12, x12, x5
4:	lsl	x13, x11, x7
	orr	x13, x13, x12
	dc	cisw, x13
	add	x15, x15, #1
	subs	x11, x11, #1
	b.hs	4b
	subs	x8, x8, #1
	b.hs	3b
	dsb	sy
6:	add	x3, x3, #1
	b	1b
7:	msr	csselr_el1, xzr
	dsb	sy
	isb
	str	x15, [x19, #P_CLEANED]
	ret

// put_record: the record, with the count in w24 and the bitmap. Without its
// magic while it is changed, so that a reset in between leaves none at all
// instead of a wrong one. Stores go to memory in order; lines that a cache may
// have of it would hide them, or be written over them.
put_record:
	mov	x0, #R_SIZE
1:	sub	x0, x0, #16		// no line is shorter
	add	x1, x20, x0
	dc	civac, x1
	cbnz	x0, 1b
	dsb	sy
	str	xzr, [x20]
	dsb	sy
	mov	w0, #1
	str	w0, [x20, #R_VERSION]
	str	w0, [x20, #R_VERSION + 4]	// flags: panic
	ldp	x0, x1, [x19, #P_NONCE]
	stp	x0, x1, [x20, #R_NONCE]
	str	w22, [x20, #R_CPU]
	str	w23, [x20, #R_CPU + 4]
	str	w24, [x20, #R_CLEAN]
	str	wzr, [x20, #R_CLEAN + 4]
	stp	x21, xzr, [x20, #R_TIME]
	ldp	x0, x1, [x19, #P_BITMAP]
	stp	x0, x1, [x20, #R_BITMAP]
	ldp	x0, x1, [x19, #P_BITMAP + 16]
	stp	x0, x1, [x20, #R_BITMAP + 16]
	stp	xzr, xzr, [x20, #R_BITMAP + 32]
	str	xzr, [x20, #R_BITMAP + 48]
	ldr	x0, magic
	ldr	x1, seed
	add	x1, x1, x0
	mov	x2, #8
1:	ldr	x3, [x20, x2]
	add	x1, x1, x3
	add	x2, x2, #8
	cmp	x2, #R_CHECKSUM
	b.lo	1b
	str	x1, [x20, #R_CHECKSUM]
	dsb	sy
	str	x0, [x20]
	dsb	sy
	ret

	.balign	8
magic:	.ascii	"WCRECORD"
seed:	.quad	0x574152434f524531	// so that zeros have no valid sum

exception:
	ldr	w0, [x19, #P_FAULTS]
	add	w0, w0, #1
	str	w0, [x19, #P_FAULTS]
	mrs	x0, CurrentEL
	cmp	x0, #EL2
	b.ne	1f
	mrs	x0, esr_el2
	b	2f
1:	mrs	x0, esr_el1
2:	str	x0, [x19, #P_SYNDROME]
	br	x28

	.org	VECTORS
vectors:
	.rept	16
	.balign	0x80
	b	exception
	.endr
