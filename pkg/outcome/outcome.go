// Package outcome has what a flow tells the command that started it, besides
// its result: how far it is, that there is nothing to do, or that it refuses.
// The command makes an exit code, a line or JSON of it.
package outcome

import (
	"fmt"
	"time"
)

// Refusal says that a flow was not carried out, for a reason that someone can
// do something about.
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

// Progress is how far a long flow has come.
type Progress struct {
	What        string // such as "save"
	Done, Total uint64 // bytes
	Elapsed     time.Duration
}
