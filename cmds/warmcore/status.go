package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/warmcore/warmcore/pkg/agent"
	"github.com/warmcore/warmcore/pkg/phys"
)

func status(c *call) error {
	st, err := c.system.Status()
	if err != nil {
		return err
	}
	if err := c.print(st, statusLines(st)...); err != nil {
		return err
	}
	// A machine without the payload gets the same exit code from every verb.
	if st.Handoff == "" || c.check && !st.Armed {
		return errNotArmed
	}
	return nil
}

// errNotArmed is status' error; standard output says what is missing.
var errNotArmed = errors.New("not armed")

// statusLines returns the status for people.
func statusLines(st agent.Status) []string {
	yes := "not armed"
	if st.Armed {
		yes = "armed"
	}
	out := []string{fmt.Sprintf("%s: %s", yes, st.Why)}
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	add("kernel:       %s, %s boot", st.Kernel, st.Boot)
	if st.State == "" {
		return out
	}
	add("registration: %s", st.State)
	add("payload:      %s", st.Payload)
	if p := st.Memory.StatusPlan; p != nil {
		add("memory:       %s for this kernel, boot memory %s, preserved %s",
			phys.FormatSize(st.Memory.TotalKiB*phys.KiB), phys.FormatSize(p.Boot), phys.FormatSize(p.Preserved))
		if n := st.Memory.Lent; n != nil {
			add("lent:         %s of %s in window and destination", phys.FormatSize(*n), phys.FormatSize(p.Lendable))
		}
	}
	if n := st.Memory.Kept; n != nil && *n > 0 {
		add("kept:         %s not given back", phys.FormatSize(*n))
	}
	if c := st.Counters; c != nil {
		add("counted:      %d boots, %d captures", c.Boots, c.Captures)
	}
	if c := st.Last; c != nil {
		when := "at an unknown time"
		if c.Time != nil {
			when = c.Time.Format(time.RFC3339)
		}
		add("last capture: %s, %s, %s copied in %.2f s, registers of %d CPUs, caches of %d of %d flushed",
			c.Reason, when, phys.FormatSize(c.CopyBytes), c.CopySecs, c.CPUs, c.Flushed, c.Seen)
	}
	return out
}
