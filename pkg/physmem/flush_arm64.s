#include "textflag.h"

// func flush(b []byte)
TEXT ·flush(SB), NOSPLIT, $0-24
	MOVD b_base+0(FP), R0
	MOVD b_len+8(FP), R1
	CBZ  R1, done
	ADD  R0, R1, R1
	MRS  CTR_EL0, R2
	UBFX $16, R2, $4, R2 // DminLine: log2 of the smallest line, in words of 4 bytes
	MOVD $4, R3
	LSL  R2, R3, R3
	SUB  $1, R3, R4
	BIC  R4, R0, R0
	DSB  $15             // what was stored to device memory is there first
line:
	DC   CIVAC, R0
	ADD  R3, R0, R0
	CMP  R1, R0
	BLO  line
	DSB  $15
done:
	RET

// func copyWords(dst, src []byte)
TEXT ·copyWords(SB), NOSPLIT, $0-48
	MOVD dst_base+0(FP), R0
	MOVD src_base+24(FP), R1
	MOVD src_len+32(FP), R2
	SUBS $64, R2, R2
	BLO  rest
block:
	LDP  0(R1), (R4, R5)
	LDP  16(R1), (R6, R7)
	LDP  32(R1), (R8, R9)
	LDP  48(R1), (R10, R11)
	STP  (R4, R5), 0(R0)
	STP  (R6, R7), 16(R0)
	STP  (R8, R9), 32(R0)
	STP  (R10, R11), 48(R0)
	ADD  $64, R0, R0
	ADD  $64, R1, R1
	SUBS $64, R2, R2
	BHS  block
rest:
	ADDS $64, R2, R2
	BEQ  done
word:
	MOVD.P 8(R1), R4
	MOVD.P R4, 8(R0)
	SUBS $8, R2, R2
	BNE  word
done:
	RET

// func copyBytes(dst, src []byte)
TEXT ·copyBytes(SB), NOSPLIT, $0-48
	MOVD dst_base+0(FP), R0
	MOVD src_base+24(FP), R1
	MOVD src_len+32(FP), R2
	CBZ  R2, done
byte:
	MOVBU.P 1(R1), R4
	MOVB.P R4, 1(R0)
	SUBS $1, R2, R2
	BNE  byte
done:
	RET
