#include "textflag.h"

// CPUID leaf 7, EBX bit 23: CLFLUSHOPT.
#define HAS_CLFLUSHOPT (1<<23)

// func hasFlushOpt() bool
TEXT ·hasFlushOpt(SB), NOSPLIT, $0-1
	MOVB $0, ret+0(FP)
	XORL AX, AX
	CPUID
	CMPL AX, $7
	JB   none
	MOVL $7, AX
	XORL CX, CX
	CPUID
	ANDL $HAS_CLFLUSHOPT, BX
	JZ   none
	MOVB $1, ret+0(FP)
none:
	RET

// func flush(b []byte)
TEXT ·flush(SB), NOSPLIT, $0-24
	MOVQ b_base+0(FP), AX
	MOVQ b_len+8(FP), CX
	TESTQ CX, CX
	JZ   done
	ADDQ AX, CX
	ANDQ $~63, AX // CLFLUSH lines are 64 bytes on every x86-64 CPU
	CMPB ·flushOpt(SB), $0
	JNE  optimized
line:
	CLFLUSH (AX)
	ADDQ $64, AX
	CMPQ AX, CX
	JB   line
	MFENCE
	RET
optimized:
	CLFLUSHOPT (AX)
	ADDQ $64, AX
	CMPQ AX, CX
	JB   optimized
	MFENCE
done:
	RET

// The loop with AVX takes so many bytes a turn, and asks for what it will read so far ahead.
#define BLOCK 128
#define AHEAD 2048

// func stream(dst, src []byte)
TEXT ·stream(SB), NOSPLIT, $0-48
	MOVQ dst_base+0(FP), DI
	MOVQ dst_len+8(FP), CX
	MOVQ src_base+24(FP), SI
	CMPB ·useAVX(SB), $0
	JEQ  lines
	SUBQ $BLOCK, CX
	JB   upper
block:
	PREFETCHT0 AHEAD(SI)
	PREFETCHT0 (AHEAD+64)(SI)
	VMOVDQU 0(SI), Y0
	VMOVDQU 32(SI), Y1
	VMOVDQU 64(SI), Y2
	VMOVDQU 96(SI), Y3
	VMOVNTDQ Y0, 0(DI)
	VMOVNTDQ Y1, 32(DI)
	VMOVNTDQ Y2, 64(DI)
	VMOVNTDQ Y3, 96(DI)
	ADDQ $BLOCK, SI
	ADDQ $BLOCK, DI
	SUBQ $BLOCK, CX
	JAE  block
upper:
	VZEROUPPER
	ADDQ $BLOCK, CX
lines:
	SUBQ $64, CX
	JB   done
line:
	MOVOU 0(SI), X0
	MOVOU 16(SI), X1
	MOVOU 32(SI), X2
	MOVOU 48(SI), X3
	MOVNTO X0, 0(DI)
	MOVNTO X1, 16(DI)
	MOVNTO X2, 32(DI)
	MOVNTO X3, 48(DI)
	ADDQ $64, SI
	ADDQ $64, DI
	SUBQ $64, CX
	JAE  line
done:
	SFENCE
	RET
