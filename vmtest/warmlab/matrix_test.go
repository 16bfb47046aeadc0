package main

import (
	"strings"
	"testing"

	"github.com/warmcore/warmcore/vmtest/story"
)

// The matrix is whole unless a flag bounds it, and all that it names exists.
func TestCells(t *testing.T) {
	for args, want := range map[string]int{
		"matrix": 18, "matrix --arch amd64": 9, "matrix --arch arm64 --story early": 3,
		"matrix --release trixie-backports": 6, "matrix --release sid --arch arm64 --story crash": 1,
	} {
		_, f, err := parse(strings.Fields(args))
		if err != nil {
			t.Fatal(err)
		}
		cells := f.cells()
		if len(cells) != want {
			t.Errorf("%s: %d runs, want %d", args, len(cells), want)
		}
		for _, c := range cells {
			s, err := story.Find(c.Story)
			if err != nil {
				t.Fatal(err)
			}
			if err := story.Check(s, story.Options{Arch: c.Arch}); err != nil {
				t.Errorf("%s: %v", args, err)
			}
		}
	}
}

func TestPrintMatrix(t *testing.T) {
	var out strings.Builder
	printMatrix(&out, []cell{
		{Release: "trixie", Arch: "amd64", Story: "crash", Report: &story.Report{
			NormalKernel: "6.12.1 (x.deb)", Result: "pass", Oracle: &story.Oracle{Preserved: 7}, Memory: &story.Memory{AloneKiB: 200, ReleasedKiB: 199}}},
		{Release: "trixie", Arch: "arm64", Story: "crash", Error: "no kernel"},
	})
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, want := range []string{"release arch story kernel result compared wrong missing memory back",
		"trixie amd64 crash 6.12.1 pass 7 0 0 99.5 %", "trixie arm64 crash fail 0 0 0"} {
		if got := strings.Join(strings.Fields(lines[i]), " "); got != want {
			t.Errorf("line %d: %q, want %q", i, got, want)
		}
	}
}
