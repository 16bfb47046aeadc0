package payload

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/cmdline"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/verdict"
)

// Version is set by initramfs/build.sh. It is not in package main, because
// u-root's builder renames that package and the linker would not find it.
var Version = "development"

// Options are the warmcore.* parameters of the payload kernel's command line.
type Options struct {
	Window     phys.Set   // warmcore.window=SIZE@ADDR[,...]; default: the payload kernel's RAM
	Handoff    phys.Range // warmcore.handoff=SIZE@ADDR; empty: the device tree's, or DefaultHandoff
	Lost       phys.Set   // warmcore.lost=SIZE@ADDR[,...]: firmware overwrites it at each reset
	BootMemory uint64     // warmcore.bootmem=SIZE
	BlockSize  uint64     // warmcore.block=SIZE
	Boot       string     // warmcore.boot=: title or kernel path of the entry to boot, UUID=...:PATH, LABEL=...:PATH
	// NoSuccessor is warmcore.successor=no: a dump only goes to the very kernel
	// and initrd that crashed.
	NoSuccessor bool
	Limits      verdict.Limits
	Owner       plan.Owner // warmcore.remove=, warmcore.append=: a capture boot's command line
	Off         bool       // warmcore.off: no dumps, the normal kernel gets all memory
}

// DefaultHandoff is H's place if neither warmcore.handoff= nor the device tree
// gives one: no x86 firmware that was tried touches it, and every PC with 1 GiB
// of RAM has it.
var DefaultHandoff = phys.Range{Start: 512 * phys.MiB, End: 514 * phys.MiB}

// ParseCmdline reads the parameters. Unknown and malformed ones are returned
// as warnings and keep the default, because the machine must boot anyway.
func ParseCmdline(text string) (o Options, warnings []string) {
	o = Options{Limits: verdict.DefaultLimits}
	for _, p := range cmdline.Parse(text).Params {
		name, ok := strings.CutPrefix(p.Name, "warmcore.")
		if !ok {
			continue
		}
		if err := o.set(name, p.Value); err != nil {
			warnings = append(warnings, fmt.Sprintf("parameter %s: %v; ignored", p, err))
		}
	}
	return o, warnings
}

func (o *Options) set(name, value string) (err error) {
	switch strings.ReplaceAll(name, "-", "_") { // as the kernel does
	case "window":
		return parseRanges(value, &o.Window)
	case "lost":
		return parseRanges(value, &o.Lost)
	case "handoff":
		r, err := phys.ParseRange(value)
		if err == nil {
			o.Handoff = r
		}
		return err
	case "bootmem":
		return parseSize(value, &o.BootMemory)
	case "block":
		return parseSize(value, &o.BlockSize)
	case "boot":
		o.Boot = value
	case "successor":
		if value != "yes" && value != "no" {
			return fmt.Errorf("want yes or no")
		}
		o.NoSuccessor = value == "no"
	case "max_captures":
		n, err := strconv.ParseUint(value, 10, 16)
		if err != nil {
			return fmt.Errorf("want a number of dumps an hour, 0 for no limit")
		}
		o.Limits.Captures = int(n)
	case "max_attempts":
		n, err := strconv.ParseUint(value, 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("want a number of capture boots for a dump, at least 1")
		}
		o.Limits.Attempts = uint32(n)
	case "remove":
		o.Owner.Remove = append(o.Owner.Remove, strings.Split(value, ",")...)
	case "append":
		o.Owner.Append = strings.TrimSpace(o.Owner.Append + " " + value)
	case "off":
		o.Off = true
	default:
		return fmt.Errorf("no such parameter")
	}
	return nil
}

func parseSize(value string, to *uint64) error {
	n, err := phys.ParseSize(value)
	if err == nil {
		*to = n
	}
	return err
}

func parseRanges(value string, to *phys.Set) error {
	var ranges []phys.Range
	for word := range strings.SplitSeq(value, ",") {
		r, err := phys.ParseRange(word)
		if err != nil {
			return err
		}
		ranges = append(ranges, r)
	}
	*to = phys.NewSet(ranges...)
	return nil
}
