package payload

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/normalboot"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/registration"
)

// hungPatience is the number of the scan that again includes disks that hung the
// machine. If no other disk has a kernel by then, there is nothing to lose.
const hungPatience = 10

// scan looks for boot entries: first only on the file system that booted last
// time, then on all disks. A disk that did not answer before the last reset is
// left out until a normal kernel has been started.
func (p *Payload) scan(try int) (*normalboot.Disks, error) {
	var booted registration.Booted
	if p.block != nil {
		booted = p.block.Booted
	}
	if try == 0 && p.block != nil && p.block.Mounting != "" {
		p.hung = strings.Fields(p.block.Mounting)
		p.log.Warn("disks that did not answer before the last reset", "disks", p.block.Mounting, "so", "left out in this boot")
	}
	if try == hungPatience && len(p.hung) > 0 {
		p.log.Warn("no normal kernel without them", "disks", strings.Join(p.hung, " "), "so", "looking at them, too")
		p.hung = nil
	}
	o := normalboot.Options{
		Used:     func(once string) bool { return p.plan == nil || once == booted.Once || p.decision.Kind == plan.Capture },
		LeaveOut: func(device string) bool { return slices.Contains(p.hung, device) },
		Before:   func(device string) { p.mounting(append(slices.Clone(p.hung), device)) },
		After:    func(string) { p.mounting(p.hung) },
		Silent:   func(device string) { p.hung = append(p.hung, device) },
	}
	if try == 0 && booted.FileSystem != "" && p.opts.Boot == "" {
		o.First = booted.FileSystem
		disks, err := p.sys.Scan(o)
		if err == nil && len(disks.Entries) > 0 {
			return disks, nil
		}
		if disks != nil {
			disks.Close()
		}
		p.log.Warn("file system that booted last", "uuid", o.First, "so", "looking at all others")
		o.First = ""
	}
	return p.sys.Scan(o)
}

// mounting records in H which disks are being waited for: if they hang the
// machine, the next boot leaves them out.
func (p *Payload) mounting(devices []string) {
	if p.plan == nil || p.mem == nil {
		return
	}
	b := registration.Block{State: registration.Empty}
	if p.block != nil {
		b = *p.block
	}
	text := strings.Join(devices, " ")
	if text == b.Mounting || len(text) > registration.MaxMounting {
		return
	}
	b.Mounting = text
	if err := p.store(&b); err != nil {
		p.log.Warn("disks being mounted", "error", err)
	}
}

// errOtherSystem says that the disk of the system that crashed isn't there.
var errOtherSystem = errors.New("no entry of the system that crashed")

// candidates returns the entries to try, in order. warmcore.boot= comes first.
// A dump is for the system that crashed: a capture boot tries only entries on
// the file system that it was booted from, beginning with the one that is
// known to run on this machine.
func (p *Payload) candidates(entries []normalboot.Entry) ([]normalboot.Entry, error) {
	if p.opts.Boot != "" {
		first, rest := split(entries, func(e normalboot.Entry) bool { return named(e, p.opts.Boot) })
		if len(first) == 0 {
			p.log.Warn("warmcore.boot", "entry", p.opts.Boot, "error", "no such entry", "so", "the default entry")
		}
		return append(first, rest...), nil
	}
	if p.decision.Kind != plan.Capture || p.block == nil {
		return entries, nil
	}
	if uuid := p.block.Booted.FileSystem; uuid != "" && len(entries) > 0 {
		entries, _ = split(entries, func(e normalboot.Entry) bool { return e.FileSystem == uuid })
		if len(entries) == 0 {
			return nil, fmt.Errorf("%w: file system %s", errOtherSystem, uuid)
		}
	}
	first, rest := split(entries, func(e normalboot.Entry) bool {
		return p.block.Kernel.Path == clip(e.Kernel.Path, registration.MaxPath) && p.block.Kernel.Title == clip(e.Title, registration.MaxTitle)
	})
	return append(first, rest...), nil
}

func split(entries []normalboot.Entry, wanted func(normalboot.Entry) bool) (yes, no []normalboot.Entry) {
	for _, e := range entries {
		if wanted(e) {
			yes = append(yes, e)
		} else {
			no = append(no, e)
		}
	}
	return yes, no
}

// named says whether warmcore.boot= means this entry: by its title, its
// kernel's path, or UUID=...:PATH or LABEL=...:PATH.
func named(e normalboot.Entry, name string) bool {
	if e.Title == name || e.Kernel.Path == name {
		return true
	}
	for prefix, is := range map[string]string{"UUID=": e.FileSystem, "LABEL=": e.Label} {
		if rest, ok := strings.CutPrefix(name, prefix); ok && is != "" {
			of, path, _ := strings.Cut(rest, ":")
			return strings.EqualFold(of, is) && (path == "" || path == e.Kernel.Path)
		}
	}
	return false
}

// sameBytes compares the kernel and initrd of a capture boot with those that
// crashed. After an update they may differ; they still get the dump, unless
// warmcore.successor=no.
func (p *Payload) sameBytes(old, now registration.Booted) error {
	none := [32]byte{}
	var changed []string
	if old.KernelSum != none && old.KernelSum != now.KernelSum {
		changed = append(changed, "kernel")
	}
	if old.KernelSum != none && old.InitrdSum != now.InitrdSum {
		changed = append(changed, "initrd")
	}
	if len(changed) == 0 {
		return nil
	}
	what := strings.Join(changed, " and ")
	if p.opts.NoSuccessor {
		return fmt.Errorf("%s changed since the boot that crashed, and warmcore.successor=no", what)
	}
	p.log.Warn("capture boot", "changed_since_the_crash", what, "so", "this system gets the dump")
	return nil
}
