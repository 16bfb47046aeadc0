package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/warmcore/warmcore/vmtest/story"
)

// matrix lists the stories to run with each kernel: that of Debian 12, that
// of Debian 13, and the newest for Debian 13.
var matrix = struct{ releases, arches, stories []string }{
	[]string{"bookworm", "trixie", "trixie-backports"},
	[]string{"amd64", "arm64"},
	[]string{"crash", "reset", "early"},
}

// cell is one run of the matrix, in matrix.json.
type cell struct {
	Release string `json:"release"`
	Arch    string `json:"arch"`
	Story   string `json:"story"`
	// Report is the story's own; a story that couldn't begin has only Error.
	Report *story.Report `json:"report,omitempty"`
	Error  string        `json:"error,omitempty"`
}

// runMatrix runs all stories of the matrix even if one fails, and prints each
// result at the end. --arch, --release and --story select a part of it.
func runMatrix(ctx context.Context, f flags, stdout io.Writer) error {
	cells := f.cells()
	failed := 0
	for i := range cells {
		c := &cells[i]
		s, err := story.Find(c.Story)
		if err != nil {
			return err
		}
		o := f.options
		o.Arch, o.Release = c.Arch, c.Release
		o.Out = filepath.Join(f.options.Out, c.Release+"-"+c.Arch+"-"+c.Story)
		fmt.Fprintf(stdout, "\n%s, %s, %s\n", c.Release, c.Arch, c.Story)
		each, cancel := context.WithTimeout(ctx, f.timeout)
		c.Report, err = story.Run(each, s, o)
		cancel()
		if err != nil {
			c.Error = err.Error()
			failed++
			fmt.Fprintf(stdout, "FAILED: %v\n", err)
		} else if err := story.Tidy(o.Out); err != nil {
			return err
		}
		if err := writeMatrix(f.options.Out, cells[:i+1]); err != nil {
			return err
		}
	}
	printMatrix(stdout, cells)
	if failed > 0 {
		return fmt.Errorf("%d of %d stories failed; reports are below %s", failed, len(cells), f.options.Out)
	}
	return nil
}

// cells returns the runs that the flags select.
func (f flags) cells() (cells []cell) {
	only := func(all []string, flag, value string) []string {
		if f.set[flag] {
			return []string{value}
		}
		return all
	}
	for _, release := range only(matrix.releases, "release", f.options.Release) {
		for _, arch := range only(matrix.arches, "arch", f.options.Arch) {
			for _, name := range only(matrix.stories, "story", f.story) {
				cells = append(cells, cell{Release: release, Arch: arch, Story: name})
			}
		}
	}
	return cells
}

func writeMatrix(dir string, cells []cell) error {
	b, err := json.MarshalIndent(cells, "", " ")
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "matrix.json"), append(b, '\n'), 0o644))
}

// printMatrix prints a line for each run.
func printMatrix(w io.Writer, cells []cell) {
	fmt.Fprintf(w, "\n%-17s %-6s %-6s %-22s %-6s %9s %6s %8s %s\n", "release", "arch", "story", "kernel", "result", "compared", "wrong", "missing", "memory back")
	for _, c := range cells {
		kernel, result, back := "", "fail", ""
		var o story.Oracle
		if r := c.Report; r != nil {
			kernel, _, _ = strings.Cut(r.NormalKernel, " ")
			result = r.Result
			if r.Oracle != nil {
				o = *r.Oracle
			}
			if m := r.Memory; m != nil && m.AloneKiB > 0 && m.ReleasedKiB > 0 {
				back = fmt.Sprintf("%.1f %%", 100*float64(m.ReleasedKiB)/float64(m.AloneKiB))
			}
		}
		fmt.Fprintf(w, "%-17s %-6s %-6s %-22s %-6s %9d %6d %8d %s\n", c.Release, c.Arch, c.Story, kernel, result, o.Preserved, o.Wrong, o.Missing, back)
	}
}
