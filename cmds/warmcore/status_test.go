package main

import (
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/agent"
	"github.com/warmcore/warmcore/pkg/phys"
)

func TestStatusLines(t *testing.T) {
	for _, armed := range []bool{true, false} {
		st := agent.Status{Armed: armed, Why: "so", State: "armed", Last: &agent.StatusCapture{Reason: "panic"}}
		kept := uint64(phys.MiB)
		st.Memory.Kept = &kept
		text := strings.Join(statusLines(st), "\n")
		if strings.HasPrefix(text, "armed: so\n") != armed || strings.HasPrefix(text, "not armed: so\n") == armed {
			t.Errorf("armed %v: %q", armed, text)
		}
		for _, want := range []string{"kept:         1 MiB not given back", "last capture: panic, at an unknown time"} {
			if !strings.Contains(text, want) {
				t.Errorf("%q: no %q", text, want)
			}
		}
	}
	if lines := statusLines(agent.Status{Why: "no payload"}); len(lines) != 2 {
		t.Errorf("without a registration: %q", lines)
	}
}
