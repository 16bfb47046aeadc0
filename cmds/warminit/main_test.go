//go:build linux

package main

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/payload"
)

// No case may get past the arguments: what follows boots the machine.
func TestArguments(t *testing.T) {
	tests := []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string
	}{
		{"help", []string{"-h"}, 0, usage, ""},
		{"long help", []string{"--help"}, 0, usage, ""},
		{"help wins", []string{"-n", "-h"}, 0, usage, ""},
		{"unknown flag", []string{"-x"}, 2, "", "warminit: flag provided but not defined: -x\n\n" + usage},
		{"argument", []string{"now"}, 2, "", "warminit: what is \"now\"? There are no arguments\n\n" + usage},
		{"argument behind a flag", []string{"-n", "now"}, 2, "", "warminit: what is \"now\"? There are no arguments\n\n" + usage},
		{"value that is none", []string{"-n=maybe"}, 2, "", "warminit: invalid boolean value \"maybe\" for -n: parse error\n\n" + usage},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr strings.Builder
			if code := run(tt.args, &stdout, &stderr); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if stdout.String() != tt.stdout || stderr.String() != tt.stderr {
				t.Errorf("stdout %q, stderr %q\nwant %q and %q", stdout.String(), stderr.String(), tt.stdout, tt.stderr)
			}
		})
	}
}

// TestUsageParses gives each parameter that the usage text names, with what
// it says of its values, to the parser.
func TestUsageParses(t *testing.T) {
	values := strings.NewReplacer("[,...]", ",1M@1G", "SIZE@ADDR", "128M@384M", "SIZE", "256M", "TITLE|KERNEL", "Debian", "yes|no", "no", "=N", "=2")
	words := regexp.MustCompile(`(?m)^  (warmcore\.\S+)`).FindAllStringSubmatch(usage, -1)
	if len(words) < 10 {
		t.Fatalf("the usage text names %d parameters, want all", len(words))
	}
	defaults, _ := payload.ParseCmdline("")
	for _, w := range words {
		cmdline := values.Replace(w[1])
		opts, warnings := payload.ParseCmdline(cmdline)
		if len(warnings) > 0 {
			t.Errorf("%s: %q", cmdline, warnings)
		}
		if same(opts, defaults) {
			t.Errorf("%s changes nothing", cmdline)
		}
	}
	for _, line := range strings.Split(usage, "\n") {
		if len(line) > 100 {
			t.Errorf("a line of %d characters on a console: %q", len(line), line)
		}
	}
}

func same(a, b payload.Options) bool {
	return a.Window.String() == b.Window.String() && a.Lost.String() == b.Lost.String() && a.Handoff == b.Handoff &&
		a.BootMemory == b.BootMemory && a.BlockSize == b.BlockSize && a.Boot == b.Boot &&
		a.Limits == b.Limits && a.Off == b.Off && a.NoSuccessor == b.NoSuccessor && slices.Equal(a.Owner.Remove, b.Owner.Remove) && a.Owner.Append == b.Owner.Append
}
