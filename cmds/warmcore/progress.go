package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/phys"
)

// How often progress is shown. A serial console of 9600 baud writes a line of
// 80 characters in a twelfth of a second.
const (
	everyTerminal = 200 * time.Millisecond
	everyConsole  = 5 * time.Second
)

// progressLine shows how far a verb is: on a terminal one line that is
// rewritten, else a line now and then.
type progressLine struct {
	w        io.Writer
	terminal bool
	what     string        // of the last one
	shown    time.Duration // Elapsed of the last one shown
	any      bool
	width    int
}

func newProgressLine(w io.Writer, terminal bool) *progressLine {
	return &progressLine{w: w, terminal: terminal}
}

func (l *progressLine) show(p outcome.Progress) {
	every := everyConsole
	if l.terminal {
		every = everyTerminal
	}
	if p.What != l.what { // another step: its time starts at 0
		l.what, l.shown = p.What, 0
	}
	if p.Elapsed < l.shown+every && (p.Done < p.Total || !l.any) {
		return // and nothing at all for a step that ends at once
	}
	l.shown, l.any = p.Elapsed, true
	text := progressText(p)
	if !l.terminal {
		fmt.Fprintln(l.w, text)
		return
	}
	fmt.Fprintf(l.w, "\r%-*s", l.width, text)
	l.width = len(text)
}

// end makes room for what is printed next.
func (l *progressLine) end() {
	if l.terminal && l.any {
		fmt.Fprintln(l.w)
	}
}

func progressText(p outcome.Progress) string {
	text := fmt.Sprintf("%s: %s of %s", p.What, phys.FormatSize(p.Done), phys.FormatSize(p.Total))
	if p.Total > 0 {
		text += fmt.Sprintf(" (%d%%)", uint64(float64(p.Done)/float64(p.Total)*100))
	}
	if s := p.Elapsed.Seconds(); s > 0 && p.Done > 0 {
		rate := float64(p.Done) / s
		text += fmt.Sprintf(", %.0f MiB/s", rate/float64(phys.MiB))
		if p.Done < p.Total {
			left := time.Duration(float64(p.Total-p.Done) / rate * float64(time.Second))
			text += fmt.Sprintf(", %v left", left.Round(time.Second))
		}
	}
	return text
}

func terminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}
