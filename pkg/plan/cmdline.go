package plan

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/cmdline"
	"github.com/warmcore/warmcore/pkg/phys"
)

// panicSeconds is after how long a kernel that panics with no stub loaded
// resets: long enough to read a console, or to see what a console server has
// recorded, and what kdump-utils appends as well. On a distribution's default,
// 0, it would wait for ever.
const panicSeconds = 10

// Cmdline returns the normal kernel's command line: the boot entry's own and
// what the plan needs. header is where the ELF core header lies in a capture
// boot. What is left out of the entry is returned, each parameter with the
// reason.
//
//   - crashkernel= holds the stub; kdump's own reservation would waste memory.
//   - memhp_default_state=offline and the blacklist (which stops automatic
//     loading only) keep the kernel from bringing hidden memory online
//     before the dump is saved: MHP_DEFAULT_ONLINE_TYPE_ONLINE_AUTO=y in
//     Debian's 6.12. On arm64 they also keep user space from looking for
//     disks in hidden memory, on /dev/pmem0: what a page cache held would
//     look like one.
//   - panic= is as [Resets] says.
func (p *Plan) Cmdline(entry string, kind Kind, header phys.Range) (line string, dropped []string) {
	l := cmdline.Parse(entry)
	leftOut := func(params []cmdline.Param, why string) {
		for _, w := range params {
			dropped = append(dropped, fmt.Sprintf("%s: %s", w, why))
		}
	}
	for _, r := range contradictions {
		leftOut(l.Remove(func(w cmdline.Param) bool { return w.Is(r.name) }), r.why)
	}
	// The kernel looks for crashkernel= in all of the line, init's part
	// included, and takes the last (get_last_crashkernel in
	// kernel/crash_reserve.c, v6.12).
	l.Init = slices.DeleteFunc(l.Init, func(w cmdline.Param) bool {
		drop := strings.HasPrefix(w.String(), "crashkernel=")
		if drop {
			leftOut([]cmdline.Param{w}, "the kernel would take it for its own")
		}
		return drop
	})
	l.Add(p.Arch.crashkernel)
	l.Add("memhp_default_state=offline")
	l.Add("modprobe.blacklist=" + p.Arch.blacklist)
	l.Add(fmt.Sprintf("warmcore.handoff=%#x,%#x", p.Handoff.Start, p.Handoff.Size()))
	leftOut(resets(&l, kind), "the machine must come back after a panic")
	if kind == Capture && p.Arch.elfcorehdr {
		l.Add(fmt.Sprintf("elfcorehdr=%dK@%#x", (header.Size()+phys.KiB-1)/phys.KiB, header.Start))
	}
	return l.String(), dropped
}

// contradictions are parameters that contradict the plan in any boot.
var contradictions = []struct{ name, why string }{
	{"crashkernel", "the payload sets it, for the stub"},
	{"elfcorehdr", "the payload says whether there is a dump"},
	{"memhp_default_state", "hidden memory stays offline until it is lent or released"},
	{"warmcore.handoff", "the payload sets it"},
}

// Resets returns a boot entry's command line with panic= in it, if it has none:
// without a stub that is loaded, before `warmcore arm` and while a dump is
// saved, a kernel that panics must reset by itself. A line that no kernel would
// take with it is returned as it is: to boot comes first.
func Resets(entry string) string {
	l := cmdline.Parse(entry)
	resets(&l, Plain)
	if s := l.String(); len(s) <= maxCmdline {
		return s
	}
	return entry
}

// maxCmdline is COMMAND_LINE_SIZE of x86 and arm64 without the NUL, in bytes
// (v6.12).
const maxCmdline = 2047

// resets makes a panic end in a reset. What somebody has set stays, but for 0
// in a capture boot: a crash there would keep the machine down and the dump
// from being offered again. It returns what it takes out.
func resets(l *cmdline.Line, kind Kind) (dropped []cmdline.Param) {
	if kind == Capture {
		dropped = l.Remove(func(w cmdline.Param) bool {
			seconds, ok := timeout(w)
			return ok && seconds == 0 && (w.Is("panic") || isSysctl(w, "kernel.panic"))
		})
	}
	for _, w := range l.All("panic") {
		if _, ok := timeout(w); ok {
			return dropped
		}
	}
	l.Add(fmt.Sprintf("panic=%d", panicSeconds))
	return dropped
}

// timeout reads a number of seconds as the kernel does. Where it is none, the
// kernel keeps what it has.
func timeout(w cmdline.Param) (seconds int64, ok bool) {
	seconds, err := strconv.ParseInt(w.Value, 0, 32)
	return seconds, err == nil
}

// isSysctl says whether w sets the sysctl called name, as sysctl.NAME=
// (process_sysctl_arg in fs/proc/proc_sysctl.c, v6.12: "." and "/" are the
// same, "-" and "_" are not).
func isSysctl(w cmdline.Param, name string) bool {
	return strings.ReplaceAll(w.Name, "/", ".") == "sysctl."+name
}
