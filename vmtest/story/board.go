package story

import (
	"fmt"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/debian"
	"github.com/warmcore/warmcore/vmtest/machine"
)

// board is what stories know about the machine of an architecture.
type board struct {
	*machine.Arch
	debian    *debian.Arch
	handoff   phys.Range // where the payload has H
	firmwares []string   // that can start the payload; the first is the usual one
	// payload puts the payload into the machine, as l.Firmware starts it.
	payload func(l *Lab, o *machine.Options) error
	// undumped is RAM that no dump has, though no plan says so.
	undumped func(memory uint64) phys.Set
	// emulated are parameters of every kernel on an emulated machine, if any.
	emulated string
	// entry is the function through which user space enters the kernel.
	entry string
	// unplanned is arm's message after a boot without a plan.
	unplanned string
	// dax says that a dump can be read from dax devices here.
	dax bool
	// stockPercent of the memory that a kernel has without us comes back
	// with Debian's kernel as payload.
	stockPercent uint64
	// flushed is how many CPUs' caches are written back when cpu panics.
	flushed func(cpus, cpu int) int
	// tools lets programs that people trust read the last dump.
	tools func(l *Lab, d saved) error
}

// boards are all of them, the usual one first.
var boards = []*board{amd64, arm64}

func boardNamed(name string) (*board, error) {
	var names []string
	for _, b := range boards {
		if b.Name == name || name == "" {
			return b, nil
		}
		names = append(names, b.Name)
	}
	return nil, fmt.Errorf("no architecture %q; there are %s", name, strings.Join(names, ", "))
}

// Check returns an error for a story that there isn't with these options.
func Check(s Story, o Options) error {
	b, err := boardNamed(o.Arch)
	if err != nil {
		return err
	}
	if !s.on(b.Name) {
		return fmt.Errorf("story %s is for %s only", s.Name, strings.Join(s.Arches, ", "))
	}
	if firmware := or(o.Firmware, s.Default.Firmware); firmware != "" && !slices.Contains(b.firmwares, firmware) {
		return fmt.Errorf("no firmware %q on %s; there are %s", firmware, b.Name, strings.Join(b.firmwares, ", "))
	}
	return nil
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// lostParameter tells the payload what is overwritten outside its window.
func lostParameter(lost phys.Set) string {
	var words []string
	for _, r := range lost {
		words = append(words, sizeAt(r))
	}
	return "warmcore.lost=" + strings.Join(words, ",")
}

// sizeAt is how parameters write a range.
func sizeAt(r phys.Range) string { return fmt.Sprintf("%dK@%#x", r.Size()/phys.KiB, r.Start) }
