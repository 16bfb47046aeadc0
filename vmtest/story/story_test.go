package story

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestStories runs every story on each architecture that it is for. It runs in
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
				if s.on(b.Name) {
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
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	out := filepath.Join(root, "build", "vmtest", b.Name, s.Name)
	if err := os.RemoveAll(out); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	report, err := Run(ctx, s, Options{
		Arch: b.Name,
		Out:  out,
		Say: func(format string, args ...any) {
			t.Logf("%6.1f  "+format, append([]any{time.Since(start).Seconds()}, args...)...)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if report.Result != "pass" {
		t.Errorf("result %q in %s, want pass", report.Result, filepath.Join(out, "report.json"))
	}
	if err := tidy(out); err != nil {
		t.Error(err)
	}
}

// tidy removes the large files of a story that passed.
func tidy(out string) error {
	for _, name := range []string{"vmcore", wholeName, convertedName, "filtered", "disk.img", "initrd", "initramfs", "payload.itb", "flash.img"} {
		if err := os.RemoveAll(filepath.Join(out, name)); err != nil {
			return err
		}
	}
	return nil
}
