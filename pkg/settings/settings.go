// Package settings reads /etc/warmcore.conf, and decides by it what becomes of
// a dump that could not be saved.
//
// Invariant: whatever the text is, there are settings. A line that can't be
// understood leaves the default in place, and is a warning: after a crash
// nobody is there to correct it.
package settings

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Action is what to do after a save that failed.
type Action string

// Actions.
const (
	Keep     Action = "keep"     // the dump stays offered, in this boot and the next
	Release  Action = "release"  // give the dump up, and production its memory
	PowerOff Action = "poweroff" // the machine stays off until somebody looks
)

// Settings are the administrator's.
type Settings struct {
	OnFailure Action
	// KeepBoots is in how many capture boots a dump is kept; if the save
	// fails in one more, it is released. 0: as often as the payload offers it.
	KeepBoots uint32
	// SaveTimeout is how long an unattended save may take in all, and
	// SaveStall how long it may write nothing; 0 is for ever.
	SaveTimeout, SaveStall time.Duration
	Arm                    bool // false: kdump is to take the dumps
}

// Default is what counts without a file.
var Default = Settings{OnFailure: Keep, SaveTimeout: time.Hour, SaveStall: 5 * time.Minute, Arm: true}

// Parse reads lines of NAME=VALUE. # begins a comment. Of a name that occurs
// twice the last line counts.
func Parse(text string) (s Settings, warnings []string) {
	s = Default
	n := 0
	for line := range strings.Lines(text) {
		n++
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		name, value, _ := strings.Cut(line, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		set, ok := fields[name]
		if !ok {
			warnings = append(warnings, fmt.Sprintf("line %d: %q is no setting", n, name))
		} else if want := set(&s, value); want != "" {
			warnings = append(warnings, fmt.Sprintf("line %d: %s=%q: want %s", n, name, value, want))
		}
	}
	return s, warnings
}

// fields set a field, or say what they want.
var fields = map[string]func(s *Settings, value string) (want string){
	"save-failed": func(s *Settings, value string) string {
		switch a := Action(value); a {
		case Keep, Release, PowerOff:
			s.OnFailure = a
			return ""
		}
		return "keep, release or poweroff"
	},
	"keep-boots": func(s *Settings, value string) string {
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return "a number of boots"
		}
		s.KeepBoots = uint32(n)
		return ""
	},
	"save-timeout": func(s *Settings, value string) string { return duration(&s.SaveTimeout, value) },
	"save-stall":   func(s *Settings, value string) string { return duration(&s.SaveStall, value) },
	"arm": func(s *Settings, value string) string {
		switch value {
		case "yes":
			s.Arm = true
		case "no":
			s.Arm = false
		default:
			return "yes or no"
		}
		return ""
	},
}

func duration(d *time.Duration, value string) string {
	v, err := time.ParseDuration(value)
	if err != nil || v < 0 {
		return "a time such as 90s, 10m or 2h"
	}
	*d = v
	return ""
}

// Failed says what to do with a dump that was not saved in as many capture
// boots, this one included.
func (s Settings) Failed(boots uint32) (Action, string) {
	switch {
	case s.OnFailure == Keep && s.KeepBoots > 0 && boots > s.KeepBoots:
		return Release, fmt.Sprintf("it could not be saved in %d boots, and keep-boots is %d", boots, s.KeepBoots)
	case s.OnFailure == Keep:
		return Keep, "the next boot offers it again, up to the payload's warmcore.max_attempts="
	}
	return s.OnFailure, "save-failed=" + string(s.OnFailure)
}
