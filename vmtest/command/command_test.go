package command

import (
	"strings"
	"testing"
)

func TestLine(t *testing.T) {
	if got, want := Line([]string{"a", "", "b c", "it's"}), `a '' 'b c' 'it'\''s'`; got != want {
		t.Errorf("Line: %s, want %s", got, want)
	}
}

func TestOutput(t *testing.T) {
	out, err := Output(t.Context(), "sh", "-c", "echo out; echo err >&2")
	if err != nil || out != "out\n" {
		t.Errorf("Output = %q, %v; want only the standard output", out, err)
	}
	out, err = Output(t.Context(), "sh", "-c", "echo why >&2; exit 3")
	if err == nil || out != "" || !strings.Contains(err.Error(), "sh -c 'echo why") || !strings.HasSuffix(err.Error(), ": exit status 3: why") {
		t.Errorf("Output of a failure = %q, %v; want the command line, the status and the standard error", out, err)
	}
}
