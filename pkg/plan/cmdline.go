package plan

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/binding"
	"github.com/warmcore/warmcore/pkg/cmdline"
	"github.com/warmcore/warmcore/pkg/hugetlb"
	"github.com/warmcore/warmcore/pkg/phys"
)

// panicSeconds is how long a kernel that panics with no stub loaded waits
// before it resets: long enough to read a console, or a console server's
// record; kdump-utils uses the same. With 0, distributions' default, it would
// wait for ever.
const panicSeconds = 10

// Owner is what the machine's owner changes in a capture boot's command line.
type Owner struct {
	Remove []string // names of parameters
	Append string   // parameters, as on a command line
}

// Cmdline returns the normal kernel's command line: the boot entry's own and
// what the plan needs. header is where the ELF core header lies in a capture
// boot. What is left out of the entry is returned, each parameter with the
// reason.
//
//   - crashkernel= holds the stub; kdump's own reservation would waste memory.
//   - memhp_default_state=offline, after the entry's own, and the blacklist (which stops automatic
//     loading only) keep the kernel from bringing hidden memory online
//     before the dump is saved: MHP_DEFAULT_ONLINE_TYPE_ONLINE_AUTO=y in
//     Debian's 6.12. On arm64 they also keep user space from looking for
//     disks in hidden memory, on /dev/pmem0: what a page cache held would
//     look like one.
//   - panic= is as [Resets] says.
//   - A capture boot has boot memory only, and becomes production once that is
//     released. So it goes without what production reserves for itself, and
//     [binding.ParamHugePages] and [binding.ParamDropped] tell the agent what that was.
func (p *Plan) Cmdline(entry string, kind Kind, header phys.Range) (line string, dropped []string) {
	l := cmdline.Parse(entry)
	own := l.All("panic")
	leftOut := func(params []cmdline.Param, why string) {
		for _, w := range params {
			dropped = append(dropped, fmt.Sprintf("%s: %s", w, why))
		}
	}
	contradicts := func() {
		for _, r := range contradictions {
			leftOut(l.Remove(func(w cmdline.Param) bool { return w.Is(r.name) }), r.why)
		}
		leftOut(l.Remove(p.changesMap), "the plan says what is RAM, and where the kernel is")
	}
	contradicts()
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
	if kind == Capture {
		pools := hugetlb.Pools(l)
		leftOut(l.Remove(hugetlb.IsParameter), "huge pages would fill boot memory; released memory has room for them")
		var gone []cmdline.Param
		for _, r := range harmful {
			removed := l.Remove(func(w cmdline.Param) bool { return r.is(w) && (r.when == nil || r.when(w)) })
			leftOut(removed, r.why)
			gone = append(gone, removed...)
		}
		removed := l.Remove(p.reservesInVain)
		leftOut(removed, "it reserves memory that this kernel doesn't have")
		gone = append(gone, removed...)
		removed = l.Remove(func(w cmdline.Param) bool { return slices.ContainsFunc(p.Owner.Remove, w.Is) })
		leftOut(removed, "warmcore.remove= says so")
		gone = append(gone, removed...)
		l.Add(p.Owner.Append)
		contradicts()
		tellAgent(&l, pools, gone)
	}
	l.Add(p.Arch.crashkernel)
	l.Add("memhp_default_state=offline")
	l.Add("modprobe.blacklist=" + p.Arch.blacklist)
	l.Add(binding.FormatHandoff(p.Handoff))
	leftOut(resets(&l, kind), "the machine must come back after a panic")
	if kind == Capture && p.Arch.elfcorehdr {
		l.Add(fmt.Sprintf("elfcorehdr=%dK@%#x", (header.Size()+phys.KiB-1)/phys.KiB, header.Start))
	}
	for _, word := range []string{binding.ParamDropped, binding.ParamHugePages, "panic"} {
		if len(l.String()) <= maxCmdline {
			break
		}
		// A dump, or a boot with a plan, is worth more.
		l.Remove(func(w cmdline.Param) bool { return w.Is(word) && !slices.Contains(own, w) })
	}
	return l.String(), dropped
}

// tellAgent adds the agent's parameters. None has white space or quotes in it:
// programs that split the line at spaces must not find what was left out.
func tellAgent(l *cmdline.Line, pools []hugetlb.Pool, gone []cmdline.Param) {
	if len(pools) > 0 {
		l.Add(binding.ParamHugePages + "=" + hugetlb.Format(pools))
	}
	var names []string
	for _, w := range gone {
		plain := strings.Trim(w.Name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/") == ""
		if plain && !slices.Contains(names, w.Name) && !l.Has(w.Name) {
			names = append(names, w.Name)
		}
	}
	if len(names) > 0 {
		l.Add(binding.ParamDropped + "=" + strings.Join(names, ","))
	}
}

// contradictions are parameters that contradict the plan in any boot.
var contradictions = []struct{ name, why string }{
	{"crashkernel", "the payload sets it, for the stub"},
	{"elfcorehdr", "the payload says whether there is a dump"},
	{binding.ParamHandoff, "the payload sets it"},
	{binding.ParamHugePages, "the payload sets it"},
	{binding.ParamDropped, "the payload sets it"},
	{binding.ParamKdump, "the payload sets it"},
}

// harmful are parameters that harm a capture boot. They are what kdump-utils
// and kdump-tools take out for a crash kernel (KDUMP_COMMANDLINE_REMOVE,
// kdump-config), as far as they do harm in boot memory, and others of the kind.
// What only costs a little of it stays, such as slub_debug=: what is left out
// here is missing until the next plain boot.
var harmful = []harm{
	{[]string{"hugetlb_cma", "cma", "cma_pernuma", "numa_cma"}, nil, "it would take boot memory"},
	{[]string{"movablecore", "kernelcore", "movable_node"}, nil, "the kernel needs boot memory for itself"},
	{[]string{"log_buf_len"}, nil, "it would take boot memory"},
	{[]string{"swiotlb"}, countsSlabs, "it would take boot memory"},
	{[]string{"isolcpus"}, nil, "all CPUs save the dump"},
	{[]string{"kexec_load_disabled", "sysctl.kernel.kexec_load_disabled"}, nil, "the stub must be loaded again after the release"},
	{[]string{"ignition.firstboot"}, nil, "this is no first boot"},
}

type harm struct {
	names []string
	when  func(w cmdline.Param) bool // nil: always
	why   string
}

func (h harm) is(w cmdline.Param) bool {
	return slices.ContainsFunc(h.names, func(name string) bool {
		sysctl, ok := strings.CutPrefix(name, "sysctl.")
		return w.Is(name) || ok && isSysctl(w, sysctl)
	})
}

// countsSlabs says whether swiotlb= asks for memory; "force" and "noforce"
// don't (setup_io_tlb_npages in kernel/dma/swiotlb.c, v6.12).
func countsSlabs(w cmdline.Param) bool {
	return w.Value != "" && w.Value[0] >= '0' && w.Value[0] <= '9'
}

// changesMap says whether w gives the kernel another memory map than the
// plan's, or cuts it where the payload puts the kernel. memmap= may also
// reserve memory, for a device, for ramoops, for bad RAM: such a parameter is
// removed only if hardly any boot memory would be left (parse_memmap_one in
// arch/x86/kernel/e820.c, early_mem in arch/arm64/mm/init.c, v6.12).
func (p *Plan) changesMap(w cmdline.Param) bool {
	if !w.Is("memmap") {
		return w.Is("mem")
	}
	reserved, ok := memmapReserves(w.Value)
	return !ok || p.bootMemory(reserved) > p.Boot.Size()/reserveFraction
}

// reservesInVain says whether w reserves no boot memory at all. A capture
// boot has no other memory.
func (p *Plan) reservesInVain(w cmdline.Param) bool {
	reserved, ok := memmapReserves(w.Value)
	return w.Is("memmap") && (!ok || p.bootMemory(reserved) == 0)
}

// reserveFraction is the divisor for the share of boot memory that memmap=
// may reserve: a kernel and its user space can do without that much.
const reserveFraction = 8

func (p *Plan) bootMemory(s phys.Set) uint64 { return s.Intersect(p.Boot).Size() }

// memmapReserves returns the memory that memmap=value reserves; ok is false if
// the parameter does anything else.
func memmapReserves(value string) (reserved phys.Set, ok bool) {
	var ranges []phys.Range
	for part := range strings.SplitSeq(value, ",") {
		i := strings.IndexAny(part, "$#!")
		if i < 0 {
			return nil, false
		}
		size, err1 := phys.ParseSize(part[:i])
		start, err2 := phys.ParseSize(part[i+1:])
		r, ok := phys.Sized(start, size)
		if err1 != nil || err2 != nil || !ok {
			return nil, false
		}
		ranges = append(ranges, r)
	}
	return phys.NewSet(ranges...), true
}

// Resets returns a boot entry's command line with panic= added if it has none:
// while no stub is loaded, before `warmcore arm` and while a dump is saved, a
// kernel that panics must reset by itself. If the line would become too long
// for a kernel it is returned unchanged: booting matters more.
func Resets(entry string) string {
	l := cmdline.Parse(entry)
	resets(&l, Plain)
	if s := l.String(); len(s) <= maxCmdline {
		return s
	}
	return entry
}

// KdumpCmdline returns the command line of a boot that is left to kdump: the entry's own,
// with its crashkernel=, and parameters that tell the agent where the handoff area is and
// that this boot can't be armed.
func (p *Plan) KdumpCmdline(entry string) string {
	l := cmdline.Parse(entry)
	for _, name := range []string{binding.ParamHandoff, binding.ParamHugePages, binding.ParamDropped, binding.ParamKdump} {
		l.Remove(func(w cmdline.Param) bool { return w.Is(name) })
	}
	l.Add(binding.FormatHandoff(p.Handoff))
	l.Add(binding.ParamKdump)
	return Resets(l.String())
}

// LocksDown returns the parameter of a boot entry's command line that makes the
// kernel refuse kexec_load and /dev/mem, so that nobody can arm it.
func LocksDown(entry string) (parameter string, ok bool) {
	p, ok := cmdline.Parse(entry).Last("lockdown")
	return p.String(), ok && (p.Value == "integrity" || p.Value == "confidentiality")
}

// maxCmdline is COMMAND_LINE_SIZE of x86 and arm64 without the NUL, in bytes
// (v6.12).
const maxCmdline = 2047

// resets makes a panic end in a reset. A timeout that somebody has set stays,
// except for 0 in a capture boot: a crash would halt the machine and keep the
// dump from being offered again. It returns what it removes.
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

// timeout reads a number of seconds as the kernel does. If it is not a
// number, the kernel keeps its value.
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
