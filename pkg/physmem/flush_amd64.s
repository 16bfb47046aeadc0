#include "textflag.h"

// func flush(b []byte)
TEXT ·flush(SB), NOSPLIT, $0-24
	MOVQ b_base+0(FP), AX
	MOVQ b_len+8(FP), CX
	TESTQ CX, CX
	JZ   done
	ADDQ AX, CX
	ANDQ $~63, AX // CLFLUSH lines are 64 bytes on every x86-64 CPU
line:
	CLFLUSH (AX)
	ADDQ $64, AX
	CMPQ AX, CX
	JB   line
	MFENCE
done:
	RET
