package machine

import (
	"errors"
	"fmt"
	"strings"
)

// consoleLines is how much of the console a Failure shows.
const consoleLines = 30

// Failure is an error of a machine, with what a person needs to look into it.
type Failure struct {
	Op        string   // what was being done
	Err       error    // what went wrong
	Reproduce string   // command line
	Console   []string // last lines, with the time in seconds
	CPUs      []string // where they are, if the machine hangs
	Dir       string   // folder of the logs
}

func (f *Failure) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %v\n", f.Op, f.Err)
	if len(f.Console) > 0 {
		fmt.Fprintf(&b, "last %d console lines:\n", len(f.Console))
		for _, l := range f.Console {
			fmt.Fprintf(&b, "  | %s\n", l)
		}
	} else {
		b.WriteString("no console output\n")
	}
	for _, c := range f.CPUs {
		fmt.Fprintf(&b, "CPU: %s\n", c)
	}
	fmt.Fprintf(&b, "logs: %s\nrun again: %s", f.Dir, f.Reproduce)
	return b.String()
}

func (f *Failure) Unwrap() error { return f.Err }

// LostError says that QEMU ended by itself: a fault of the rig, of QEMU or of
// the host, and no verdict on what was tested.
type LostError struct {
	Reason string // how the process ended
	Log    string // the end of what QEMU wrote to its standard error
}

func (e *LostError) Error() string {
	if e.Log == "" {
		return "QEMU ended: " + e.Reason
	}
	return "QEMU ended: " + e.Reason + ": " + e.Log
}

// errLost is what waits return when QEMU ended; Machine.fail turns it into a
// LostError.
var errLost = errors.New("QEMU ended")

// ErrReset is in the chain of the error for a guest that was reset while the
// rig waited for something else from it.
var ErrReset = errors.New("the machine was reset or shut down meanwhile")
