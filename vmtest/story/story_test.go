package story

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/warmcore/warmcore/vmtest/machine"
)

// TestStories runs every story but the long ones on each architecture that it is
// for. It runs in
// the module's root, as warmlab does, and leaves reports and logs in
// build/vmtest/ARCH/STORY.
func TestStories(t *testing.T) {
	if err := os.Chdir("../.."); err != nil {
		t.Fatal(err)
	}
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range boards {
		t.Run(b.Name, func(t *testing.T) {
			for _, s := range Stories {
				if s.on(b.Name) && !s.Long {
					t.Run(s.Name, func(t *testing.T) {
						t.Parallel() // make vmtest bounds how many
						tell(t, root, b, s)
					})
				}
			}
		})
	}
}

func tell(t *testing.T, root string, b *board, s Story) {
	out := filepath.Join(root, "build", "vmtest", b.Name, s.Name)
	if err := os.RemoveAll(out); err != nil {
		t.Fatal(err)
	}
	report, err := runOnce(t, b, s, out)
	if errors.Is(err, machine.ErrHung) {
		// One machine in some hundreds does, and nobody knows yet whether it
		// is QEMU. Record it, but don't let it fail all the others.
		hung := out + "-hung"
		t.Logf("HUNG, and is told once more; please report what is in %s: %v", hung, err)
		if err := errors.Join(os.RemoveAll(hung), os.Rename(out, hung)); err != nil {
			t.Fatal(err)
		}
		report, err = runOnce(t, b, s, out)
	}
	if err != nil {
		t.Fatal(err)
	}
	if report.Result != "pass" {
		t.Errorf("result %q in %s, want pass", report.Result, filepath.Join(out, "report.json"))
	}
	if err := Tidy(out); err != nil {
		t.Error(err)
	}
}

// runOnce runs a story. The error wraps machine.ErrHung if it waited too long for
// the machine, or for a program.
func runOnce(t *testing.T, b *board, s Story, out string) (*Report, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	start := time.Now()
	report, err := Run(ctx, s, Options{
		Arch: b.Name,
		Out:  out,
		Say: func(format string, args ...any) {
			t.Logf("%6.1f  "+format, append([]any{time.Since(start).Seconds()}, args...)...)
		},
	})
	if ctx.Err() != nil {
		err = errors.Join(err, machine.ErrHung)
	}
	return report, err
}

// TestTable checks what the compiler can't of the list of stories.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Stories {
		if seen[s.Name] || s.Name == "" || s.Tells == "" || s.Run == nil {
			t.Errorf("story %+v: want a name of its own, a line that tells it, and what runs", s.Name)
		}
		seen[s.Name] = true
		if s.Debuggers && !s.Tools {
			t.Errorf("story %s: debuggers without tools: they would never run", s.Name)
		}
		for _, b := range boards {
			if err := Check(s, Options{Arch: b.Name}); (err == nil) != s.on(b.Name) {
				t.Errorf("story %s on %s: %v", s.Name, b.Name, err)
			}
		}
	}
}
