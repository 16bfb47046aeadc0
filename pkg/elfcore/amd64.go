package elfcore

// MachineAMD64 is x86-64's e_machine (ELF gABI).
const MachineAMD64 uint16 = 62

// prstatusAMD64 contains struct user_regs_struct, 27 registers: ip is the
// 17th, sp the 20th.
var prstatusAMD64 = prstatusLayout{size: 336, pid: 32, pc: 112 + 16*8, sp: 112 + 19*8}
