// Package outcome has the types with which an operation such as arm or save
// tells the command that started it more than its result: how far it is, that
// there is nothing to do, or that it refuses. The command turns that into an
// exit code, a line or JSON.
package outcome

import (
	"fmt"
	"time"
)

// Refusal is the error of an operation that was not carried out, for a reason
// that someone can do something about.
type Refusal struct {
	What string // the reason
	Todo string // what to do about it
}

func (r *Refusal) Error() string { return r.What + ": " + r.Todo }

// Refuse returns a Refusal; format and args are the reason.
func Refuse(todo, format string, args ...any) error {
	return &Refusal{What: fmt.Sprintf(format, args...), Todo: todo}
}

// Nothing says that there is nothing to do.
type Nothing struct {
	What string // why
}

func (n *Nothing) Error() string { return n.What }

// Progress says how far a long operation is.
type Progress struct {
	What        string // such as "save"
	Done, Total uint64 // bytes
	Elapsed     time.Duration
}
