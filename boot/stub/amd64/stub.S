# The crash stub for x86-64.
#
# The crashed kernel's kexec code (arch/x86/kernel/relocate_kernel_64.S, v6.12)
# jumps to `image` on the CPU that panicked: 64-bit mode, ring 0, CR4 = PAE
# (and LA57 where the kernel used it), interrupts off, no usable GDT or IDT,
# no SSE, and an identity map that is only certain to hold this image. The
# other CPUs are halted in an NMI handler, with dirty caches.
#
# The stub writes the crash record, has every CPU write its caches back, and
# resets the machine warm. The code runs at any 4 KiB boundary below 4 GiB.
# The interrupt table is empty on purpose: any fault here is a triple fault,
# and so a reset, which is what we are here for.
#
# The Go package beside this folder fills in the parameters, the page tables
# and the list of CPUs. It knows the offsets below; the table at T_OFFSETS
# lets its test check that.

	.intel_syntax noprefix

# ---- offsets in the image, from its first byte ------------------------------
	.equ	P_MAGIC,     0x008	# "WCSTUB01"
	.equ	P_RECORD,    0x010	# u64 physical address of the crash record
	.equ	P_LOWPAGE,   0x018	# u64 page below 640 KiB for `lowpage`
	.equ	P_NONCE,     0x020	# 16 bytes, copied into the record
	.equ	P_BSP,       0x030	# u32 APIC ID of the bootstrap processor
	.equ	P_COUNT,     0x034	# u32 entries at LIST
	.equ	P_RESETADDR, 0x038	# u64 ACPI reset register; 0 = none
	.equ	P_RESETSPACE,0x040	# u8 0 = memory, 1 = I/O port
	.equ	P_RESETVALUE,0x041	# u8
	.equ	P_SKIP,      0x044	# u32 reset methods to leave out: SKIP_*
	.equ	P_PROGRESS,  0x048	# u32 how far the stub got: AT_*
	.equ	T_OFFSETS,   0x050	# u16 count, then count u16: the values here
	.equ	PML5,        0x1000	# page tables, made by the builder
	.equ	PML4,        0x2000
	.equ	PD,          0x4000	# four of them (PDPT at 0x3000)
	.equ	LIST,        0x8000	# u32 APIC IDs
	.equ	STACK_TOP,   0xc000
	.equ	IMAGE_SIZE,  0xc000

	.equ	SKIP_CF9, 0
	.equ	SKIP_ACPI, 1
	.equ	SKIP_KEYBOARD, 2

	.equ	AT_ENTRY, 1
	.equ	AT_RECORD, 2		# first record written
	.equ	AT_STARTED, 3		# INIT and SIPIs sent
	.equ	AT_FLUSHED, 4		# second record written
	.equ	AT_CF9, 5
	.equ	AT_ACPI, 6
	.equ	AT_KEYBOARD, 7
	.equ	AT_TRIPLE, 8

# ---- the crash record (pkg/registration, Record) ------------------------------
	.equ	R_VERSION,   8
	.equ	R_FLAGS,     12
	.equ	R_NONCE,     16
	.equ	R_APIC,      32
	.equ	R_EXPECTED,  36
	.equ	R_FLUSHED,   40
	.equ	R_TSC,       48
	.equ	R_BITMAP,    64
	.equ	R_CHECKSUM,  120

# ---- hardware -----------------------------------------------------------------
	.equ	MSR_APIC_BASE, 0x1b
	.equ	APIC_BASE_BSP, 8	# bit numbers
	.equ	APIC_BASE_EXTD, 10
	.equ	APIC_BASE_EN, 11
	.equ	APIC_ID, 0x20		# xAPIC registers
	.equ	APIC_SVR, 0xf0
	.equ	APIC_ICR, 0x300
	.equ	APIC_ICR_HIGH, 0x310
	.equ	X2APIC_ID, 0x802	# x2APIC registers
	.equ	X2APIC_SVR, 0x80f
	.equ	X2APIC_ICR, 0x830
	.equ	ICR_INIT, 0x4500	# edge, assert; no deassert since the Pentium 4
	.equ	ICR_SIPI, 0x4600
	.equ	ICR_BUSY, 0x1000
	.equ	SVR_ENABLE, 0x100
	.equ	CR4_LA57, 12
	.equ	PTE_UNCACHED, 0x18	# PWT | PCD: PAT entry 3, UC

# Times, in writes to port 0x80, about a microsecond each on real hardware and
# much less where the port is emulated. So the wait for the others looks at
# the time stamp counter as well, 2^31 being half a second to a second. Both
# start again whenever a CPU answers, since write-back on thousands of CPUs
# that share a cache takes long; WAIT_NO_TSC bounds it where the counter stands
# still. CPUs that never answer cost one such wait, all together.
	.equ	WAIT_INIT, 10000
	.equ	WAIT_SIPI, 200
	.equ	WAIT_FLUSH, 1000000
	.equ	WAIT_FLUSH_TSC_SHIFT, 31
	.equ	WAIT_NO_TSC, 16000000
	.equ	WAIT_ICR, 1000
	.equ	WAIT_CF9, 50
	.equ	WAIT_RESET, 10000

# Registers that keep their meaning throughout:
#   rbp image   ebx own APIC ID   r12 IA32_APIC_BASE   r13 xAPIC registers
#   r14d APIC mode (0 none, 1 xAPIC, 2 x2APIC)   r15 time stamp at entry
#   r10d CPUs that should flush   r9d CPUs that were told to, with this one

	.section .text
	.code64
	.globl	image
image:
	jmp	start
	.org	P_MAGIC
	.ascii	"WCSTUB01"
	.org	T_OFFSETS
	.word	(offsets_end - offsets) / 2
offsets:
	.word	P_RECORD, P_LOWPAGE, P_NONCE, P_BSP, P_COUNT
	.word	P_RESETADDR, P_RESETSPACE, P_RESETVALUE, P_SKIP, P_PROGRESS
	.word	PML5, PML4, PD, LIST, STACK_TOP, IMAGE_SIZE
offsets_end:

	.balign	16
start:
	cli
	cld
	lea	rbp, [rip + image]
	lea	rsp, [rbp + STACK_TOP]
	mov	dword ptr [rbp + P_PROGRESS], AT_ENTRY
	rdtsc
	shl	rdx, 32
	or	rax, rdx
	mov	r15, rax

# Which kind of local APIC, and where. Its page must be uncached; that is set
# in our own tables before they are used, so no stale translation can exist.
	mov	ecx, MSR_APIC_BASE
	rdmsr
	shl	rdx, 32
	or	rax, rdx
	mov	r12, rax
	mov	r13, 0x000ffffffffff000
	and	r13, rax
	xor	r14d, r14d
	bt	r12d, APIC_BASE_EN
	jnc	apic_known
	mov	r14d, 2
	bt	r12d, APIC_BASE_EXTD
	jc	apic_known
	xor	r14d, r14d
	mov	rax, r13
	shr	rax, 32			# moved above what we map: leave it alone
	jnz	apic_known
	mov	eax, r13d
	shr	eax, 21
	or	qword ptr [rbp + PD + rax * 8], PTE_UNCACHED
	mov	r14d, 1
apic_known:

# Own page tables. LA57 can't be changed in 64-bit mode, so follow it.
	lea	rax, [rbp + PML4]
	mov	rcx, cr4
	bt	ecx, CR4_LA57
	jnc	1f
	lea	rax, [rbp + PML5]
1:	mov	cr3, rax

# Own GDT, no IDT.
	sub	rsp, 16
	lea	rax, [rip + gdt]
	mov	word ptr [rsp], gdt_end - gdt - 1
	mov	[rsp + 2], rax
	lgdt	[rsp]
	mov	word ptr [rsp], 0
	mov	qword ptr [rsp + 2], 0
	lidt	[rsp]
	mov	eax, 0x18
	mov	ds, eax
	mov	es, eax
	mov	ss, eax
	lea	rax, [rip + reloaded]
	push	0x10
	push	rax
	retfq
reloaded:
	add	rsp, 16
	call	own_id

# How many should flush: this CPU and everyone in the list but itself.
	mov	r10d, 1
	xor	esi, esi
1:	cmp	esi, [rbp + P_COUNT]
	jae	2f
	cmp	ebx, [rbp + LIST + rsi * 4]
	setne	al
	movzx	eax, al
	add	r10d, eax
	inc	esi
	jmp	1b
2:

# This CPU first: should the rest go wrong, the record that says "flushed 1"
# is true and in memory. The low page counts this CPU too.
	lea	rsi, [rip + lowpage]
	mov	rdi, [rbp + P_LOWPAGE]
	mov	ecx, lowpage_end - lowpage
	rep	movsb
	cmp	ebx, 256
	jae	1f
	mov	rdi, [rbp + P_LOWPAGE]
	bts	dword ptr [rdi + LOW_BITMAP], ebx
1:	wbinvd
	call	put_record
	mov	dword ptr [rbp + P_PROGRESS], AT_RECORD

# The other CPUs, all at once. Nobody waits for one of them before the next
# is told: write-back of a large cache takes milliseconds.
	test	r14d, r14d
	jz	flushed
	call	enable_apic
	mov	r11d, ICR_INIT
	call	send_all
	cmp	r9d, 1
	je	flushed
	mov	ecx, WAIT_INIT
	call	delay
	mov	r11, [rbp + P_LOWPAGE]
	shr	r11d, 12
	or	r11d, ICR_SIPI
	call	send_all
	mov	ecx, WAIT_SIPI
	call	delay
	call	send_all		# ignored by a CPU that runs already
	mov	dword ptr [rbp + P_PROGRESS], AT_STARTED
	call	wait_flushed
	call	put_record
flushed:
	mov	dword ptr [rbp + P_PROGRESS], AT_FLUSHED
	wbinvd

# ---- reset: one method after the other until one works ------------------------

# Chipset, warm. Bit 3 would be a power cycle, which loses memory; the other
# bits are kept as they are.
	bt	dword ptr [rbp + P_SKIP], SKIP_CF9
	jc	1f
	mov	dword ptr [rbp + P_PROGRESS], AT_CF9
	mov	dx, 0xcf9
	in	al, dx
	and	al, 0xf1
	or	al, 0x02
	out	dx, al
	mov	ecx, WAIT_CF9
	call	delay
	or	al, 0x06
	out	dx, al
	mov	ecx, WAIT_RESET
	call	delay
1:

# ACPI's reset register.
	bt	dword ptr [rbp + P_SKIP], SKIP_ACPI
	jc	2f
	mov	rdx, [rbp + P_RESETADDR]
	test	rdx, rdx
	jz	2f
	mov	dword ptr [rbp + P_PROGRESS], AT_ACPI
	mov	al, [rbp + P_RESETVALUE]
	cmp	byte ptr [rbp + P_RESETSPACE], 1
	je	1f
	mov	[rdx], al
	mfence
	jmp	3f
1:	out	dx, al
3:	mov	ecx, WAIT_RESET
	call	delay
2:

# Keyboard controller: pulse the reset line once its input buffer is empty.
	bt	dword ptr [rbp + P_SKIP], SKIP_KEYBOARD
	jc	2f
	mov	dword ptr [rbp + P_PROGRESS], AT_KEYBOARD
	mov	ecx, WAIT_RESET
1:	in	al, 0x64
	test	al, 2
	jz	1f
	out	0x80, al
	dec	ecx
	jnz	1b
1:	mov	al, 0xfe
	out	0x64, al
	mov	ecx, WAIT_RESET
	call	delay
2:

# Triple fault: there is no IDT.
	mov	dword ptr [rbp + P_PROGRESS], AT_TRIPLE
	int3
1:	hlt
	jmp	1b

# ---- subroutines --------------------------------------------------------------

# delay: ecx microseconds. Keeps all but ecx.
delay:
	out	0x80, al
	dec	ecx
	jnz	delay
	ret

# own_id: ebx = this CPU's APIC ID, from the APIC as the kernel does it.
own_id:
	cmp	r14d, 1
	jb	2f
	je	1f
	mov	ecx, X2APIC_ID
	rdmsr
	mov	ebx, eax
	ret
1:	mov	ebx, [r13 + APIC_ID]
	shr	ebx, 24
	ret
2:	mov	eax, 1
	cpuid
	shr	ebx, 24
	ret

# enable_apic: the crashed kernel has disabled it (lapic_shutdown). Its local
# vector table stays masked.
enable_apic:
	cmp	r14d, 2
	je	1f
	or	dword ptr [r13 + APIC_SVR], SVR_ENABLE
	ret
1:	mov	ecx, X2APIC_SVR
	rdmsr
	or	eax, SVR_ENABLE
	wrmsr
	ret

# send_all: the IPI r11d to every CPU in the list but this one. The bootstrap
# processor is left out too: INIT would send it to firmware's reset vector,
# while other CPUs still flush. r9d = 1 + IPIs sent.
send_all:
	mov	r9d, 1
	xor	esi, esi
1:	cmp	esi, [rbp + P_COUNT]
	jae	9f
	mov	eax, [rbp + LIST + rsi * 4]
	inc	esi
	cmp	eax, ebx
	je	1b
	bt	r12d, APIC_BASE_BSP
	jc	2f			# this CPU is it, so no other one is
	cmp	eax, [rbp + P_BSP]
	je	1b
2:	cmp	r14d, 2
	je	5f
	cmp	eax, 255		# xAPIC: out of reach, and 255 is everyone
	jae	1b
	mov	ecx, WAIT_ICR
3:	test	dword ptr [r13 + APIC_ICR], ICR_BUSY
	jz	4f
	out	0x80, al
	dec	ecx
	jnz	3b
4:	shl	eax, 24
	mov	[r13 + APIC_ICR_HIGH], eax
	mov	[r13 + APIC_ICR], r11d
	jmp	6f
5:	mov	edx, eax
	mov	eax, r11d
	mov	ecx, X2APIC_ICR
	mfence				# this write doesn't order stores before it
	lfence
	wrmsr
6:	inc	r9d
	jmp	1b
9:	ret

# wait_flushed: until r9d CPUs have flushed, or no further one does.
wait_flushed:
	mov	rdi, [rbp + P_LOWPAGE]
	mov	esi, [rdi + LOW_COUNT]
1:	xor	ecx, ecx		# esi CPUs were counted; a new wait
	rdtsc
	shl	rdx, 32
	or	rax, rdx
	mov	r8, rax
2:	mov	eax, [rdi + LOW_COUNT]
	cmp	eax, r9d
	jae	9f
	cmp	eax, esi
	mov	esi, eax
	jne	1b
	out	0x80, al
	inc	ecx
	cmp	ecx, WAIT_FLUSH
	jb	2b
	cmp	ecx, WAIT_NO_TSC
	jae	9f
	rdtsc
	shl	rdx, 32
	or	rax, rdx
	sub	rax, r8
	shr	rax, WAIT_FLUSH_TSC_SHIFT
	jz	2b
9:	ret

# put_record: the record, with the low page's count and bitmap. Without its
# magic while it is changed, so that a reset in between leaves none at all
# instead of a wrong one; and in memory, not in a cache, when this returns.
put_record:
	mov	rdi, [rbp + P_RECORD]
	mov	rsi, [rbp + P_LOWPAGE]
	xor	eax, eax
	mov	[rdi], rax
	mfence
	clflush	[rdi]
	mfence
	mov	dword ptr [rdi + R_VERSION], 1
	mov	dword ptr [rdi + R_FLAGS], 1	# panic
	mov	rdx, [rbp + P_NONCE]
	mov	[rdi + R_NONCE], rdx
	mov	rdx, [rbp + P_NONCE + 8]
	mov	[rdi + R_NONCE + 8], rdx
	mov	[rdi + R_APIC], ebx
	mov	[rdi + R_EXPECTED], r10d
	mov	edx, [rsi + LOW_COUNT]
	mov	[rdi + R_FLUSHED], edx
	mov	[rdi + R_FLUSHED + 4], eax
	mov	[rdi + R_TSC], r15
	mov	[rdi + R_TSC + 8], rax
	xor	ecx, ecx
1:	mov	rdx, [rsi + LOW_BITMAP + rcx * 8]
	mov	[rdi + R_BITMAP + rcx * 8], rdx
	inc	ecx
	cmp	ecx, 4
	jb	1b
	mov	[rdi + R_BITMAP + 32], rax
	mov	[rdi + R_BITMAP + 40], rax
	mov	[rdi + R_BITMAP + 48], rax
	mov	rax, 0x44524f4345524357		# "WCRECORD"
	mov	rdx, 0x574152434f524531		# so that zeros have no valid sum
	add	rdx, rax
	mov	ecx, 1
1:	add	rdx, [rdi + rcx * 8]
	inc	ecx
	cmp	ecx, R_CHECKSUM / 8
	jb	1b
	mov	[rdi + R_CHECKSUM], rdx
	mfence
	clflush	[rdi]
	clflush	[rdi + 64]
	mfence
	mov	[rdi], rax
	mfence
	clflush	[rdi]
	mfence
	ret

# Boot protocol's selectors, for want of better ones: 0x10 code, 0x18 data.
	.balign	8
gdt:	.quad	0, 0
	.quad	0x00af9b000000ffff
	.quad	0x00cf93000000ffff
gdt_end:

# ---- what the other CPUs run, in real mode at P_LOWPAGE ------------------------
# Flush, then say so. The count comes last: who has seen it needs no more.
	.equ	LOW_COUNT, low_count - lowpage
	.equ	LOW_BITMAP, low_bitmap - lowpage
	.balign	16
	.code16
lowpage:
	cli
	wbinvd
	mov	ax, cs
	mov	ds, ax
# The x2APIC ID where CPUID has it: leaf 1 keeps only its low 8 bits, which
# would name another CPU.
	xor	eax, eax
	cpuid
	cmp	eax, 0x0b
	jb	1f
	mov	eax, 0x0b
	xor	ecx, ecx
	cpuid
	test	ebx, ebx
	jz	1f
	mov	eax, edx
	jmp	2f
1:	mov	eax, 1
	cpuid
	mov	eax, ebx
	shr	eax, 24
2:	cmp	eax, 256
	jae	3f
	lock bts dword ptr ds:[LOW_BITMAP], eax
3:	lock inc dword ptr ds:[LOW_COUNT]
4:	cli
	hlt
	jmp	4b
	.balign	16
low_count:
	.long	1, 0, 0, 0		# the crashing CPU
low_bitmap:
	.fill	32, 1, 0
lowpage_end:
	.code64
