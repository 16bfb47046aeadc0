package main

import (
	"strings"
	"testing"
)

// What is wrong is said before anything is built or started.
func TestArguments(t *testing.T) {
	for _, tc := range []struct {
		args           string
		want           int
		stdout, stderr string // part of it
	}{
		{"", 2, "", "a verb is missing"},
		{"help", 0, "usage: warmlab VERB", ""},
		{"-h", 0, "usage: warmlab VERB", ""},
		{"--help", 0, "usage: warmlab VERB", ""},
		{"run --help", 0, "usage: warmlab VERB", ""},
		{"list", 0, "crash ", ""},
		{"crash", 2, "", `no verb "crash"`},
		{"run crash", 2, "", `what is "crash"?`},
		{"run --force", 2, "", "-force"},
		{"run --story none", 2, "", `no story "none"; there are crash, stock`},
		{"run --arch none", 2, "", `no architecture "none"; there are amd64, arm64`},
		{"run --story uboot", 2, "", "story uboot is for arm64 only"},
		{"run --firmware uboot", 2, "", `no firmware "uboot" on amd64`},
		{"run --handover dax", 2, "", "--handover dax: only vmcore"},
		{"run --payload-kernel mine", 2, "", "--payload-kernel mine: want own or stock"},
		{"run --kernel vmlinuz", 2, "", "--kernel and --modules go together"},
		{"run --release trixie --kernel vmlinuz --modules m", 2, "", "--release and --kernel don't go together"},
		{"run --release ../sid", 2, "", "--release ../sid: want a name"},
		{"run --trigger power", 2, "", "--trigger power: want sysrq-c or watchdog"},
		{"run --mem x", 2, "", "--mem: size"},
		{"run --mem 0", 2, "", "--mem 0: want at least 256 MiB"},
		{"run --mem 2", 2, "", "--mem 2: want at least 256 MiB"},
		{"run --cpus -1", 2, "", "--cpus -1"},
		{"run --cycles -1", 2, "", "--cycles -1"},
		{"run --timeout 0s", 2, "", "--timeout 0s"},
		// A test runs in its own folder, not in the module's root.
		{"run", 1, "", "run it in the module's root"},
		{"demo", 1, "", "run it in the module's root"},
		{"bench", 1, "", "run it in the module's root"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			var stdout, stderr strings.Builder
			if got := run(t.Context(), strings.Fields(tc.args), &stdout, &stderr); got != tc.want {
				t.Errorf("exit code %d, want %d", got, tc.want)
			}
			if !strings.Contains(stdout.String(), tc.stdout) || tc.stdout == "" && stdout.Len() > 0 {
				t.Errorf("stdout = %q, want %q", stdout.String(), tc.stdout)
			}
			if !strings.Contains(stderr.String(), tc.stderr) || tc.stderr == "" && stderr.Len() > 0 {
				t.Errorf("stderr = %q, want %q", stderr.String(), tc.stderr)
			}
		})
	}
}
