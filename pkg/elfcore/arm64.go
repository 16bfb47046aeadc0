package elfcore

// MachineARM64 is arm64's e_machine (ELF gABI).
const MachineARM64 uint16 = 183

// prstatusARM64 contains struct user_pt_regs, 34 registers: x0 to x30, sp, pc,
// pstate.
var prstatusARM64 = prstatusLayout{size: 392, pid: 32, pc: 112 + 32*8, sp: 112 + 31*8}
