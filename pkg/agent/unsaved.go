package agent

import (
	"errors"
	"io/fs"

	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/settings"
)

const settingsFile = "etc/warmcore.conf"

// Settings reads /etc/warmcore.conf. Errors in it are logged, and the
// defaults used instead.
func (s *System) Settings() settings.Settings {
	text, err := s.running().Text(settingsFile)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log().Warn("settings are the defaults", "err", err)
		}
		return settings.Default
	}
	set, warnings := settings.Parse(text)
	for _, w := range warnings {
		s.log().Warn(s.path(settingsFile)+" is ignored in part", "err", w)
	}
	return set
}

// Unsaved says what was done with a dump that could not be saved.
type Unsaved struct {
	Action settings.Action `json:"action"`
	Why    string          `json:"why"`
	Moved  *Moved          `json:"released,omitempty"`
}

// Unsaved does with a dump that could not be saved what the settings say.
// Powering off is left to the caller.
func (s *System) Unsaved() (Unsaved, error) {
	x, err := s.open(false)
	if err != nil {
		return Unsaved{}, err
	}
	b := x.block
	x.close()
	if b == nil || b.State != registration.Capturing {
		return Unsaved{}, &outcome.Nothing{What: "there is no dump that is not saved"}
	}
	var done Unsaved
	done.Action, done.Why = s.Settings().Failed(b.Counters.Attempts)
	if done.Action != settings.Release {
		return done, nil
	}
	m, err := s.Release(true)
	done.Moved = &m
	return done, err
}
