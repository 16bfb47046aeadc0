// Package machine runs machines in QEMU: each really resets with its RAM kept,
// and its RAM at the moment of the reset is the truth that a dump is compared
// with (package truth).
//
// Invariants:
//
//   - A reset by the guest pauses the machine before the firmware runs
//     (-action reboot=shutdown,shutdown=pause). Nothing has then touched RAM
//     since the guest's last instruction, so a copy of the RAM file is QEMU's
//     own view of what a dump must hold. Machine.Reset then really resets.
//   - Every wait is for an event, bounded by a context. Nothing sleeps.
//   - A verdict comes from typed messages of the guest (package wire), from
//     QMP or from files. Console output is kept for people.
//   - An error of a Machine is a *Failure, which says how to run it again, the
//     console's last lines and where the logs are. A QEMU that ended by itself
//     is a *LostError inside.
//
// Deciding (Options, Layout) is apart from doing and is
// tested without QEMU.
package machine
