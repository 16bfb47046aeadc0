package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/warmcore/warmcore/pkg/dumpwriter"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/summary"
)

const maxBadShown = 8 // damaged blocks shown to people

// inspectResult is what inspect --json prints. Each dump is a
// summary.Summary; the files of a split dump are one.
type inspectResult struct {
	Schema int             `json:"schema"` // 1
	Dumps  []inspectedDump `json:"dumps"`
}

type inspectedDump struct {
	Files []inspectedFile `json:"files"`
	*summary.Summary
}

type inspectedFile struct {
	Name   string                   `json:"name"`
	Bytes  int64                    `json:"bytes"`
	Verify *dumpwriter.Verification `json:"verify,omitempty"` // with --verify
	file   *os.File
}

// reportedError is a failure whose particulars are in the result that was
// printed: --json adds nothing to it.
type reportedError struct{ error }

func (e reportedError) Unwrap() error { return e.error }

func inspect(c *call) error {
	if len(c.args) == 0 {
		return &usageError{"want the name of a dump file"}
	}
	var files []inspectedFile
	defer func() {
		for _, f := range files {
			f.file.Close()
		}
	}()
	for _, name := range c.args {
		f, err := openDump(name)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	result := inspectResult{Schema: 1}
	if err := result.open(files, c.writer().FindVMCOREINFO); err != nil {
		return err
	}
	var failed error
	if c.verify {
		for _, d := range result.Dumps {
			for i := range d.Files {
				f := &d.Files[i]
				var err error
				if f.Verify, err = c.writer().Verify(f.file, f.Name, f.Bytes); err != nil {
					failed = errors.Join(failed, err)
				}
			}
		}
	}
	if err := c.print(result, result.lines()...); err != nil {
		return err
	}
	if failed != nil {
		return reportedError{failed}
	}
	return nil
}

func openDump(name string) (inspectedFile, error) {
	f, st, err := dumpwriter.OpenFile(name)
	if err != nil {
		return inspectedFile{}, err
	}
	return inspectedFile{Name: name, Bytes: st.Size(), file: f}, nil
}

// open opens files as the parts of one split dump if they are that, else each
// by itself. Complete looks for what the file of a dump lacks.
func (r *inspectResult) open(files []inspectedFile, complete func(vmcore.Dump)) error {
	var dumps []vmcore.Dump
	var parts []dumpfile.File
	for _, f := range files {
		d, err := dumpfile.New(f.file, f.Bytes)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		dumps = append(dumps, d)
		parts = append(parts, dumpfile.File{ReaderAt: f.file, Size: f.Bytes})
	}
	if len(files) > 1 && !slices.ContainsFunc(dumps, func(d vmcore.Dump) bool { return !dumpfile.IsPart(d) }) {
		d, err := dumpfile.Join(parts...)
		if err != nil {
			return err
		}
		complete(d)
		r.Dumps = []inspectedDump{{files, summary.Of(d)}}
		return nil
	}
	for i, d := range dumps {
		complete(d)
		r.Dumps = append(r.Dumps, inspectedDump{files[i : i+1], summary.Of(d)})
	}
	return nil
}

// lines prints the dumps for people, with an empty line between two.
func (r inspectResult) lines() []string {
	var lines []string
	for i, d := range r.Dumps {
		if i > 0 {
			lines = append(lines, "")
		}
		for _, f := range d.Files {
			lines = append(lines, summary.Line("file", fmt.Sprintf("%s, %s", f.Name, phys.FormatSize(uint64(f.Bytes)))))
		}
		lines = append(lines, d.Summary.Lines()...)
		for _, f := range d.Files {
			lines = append(lines, verified(f)...)
		}
	}
	return lines
}

// verified says for people how a file compares with its manifest.
func verified(f inspectedFile) []string {
	v := f.Verify
	switch {
	case v == nil:
		return nil
	case v.Error != "":
		return []string{summary.Line("verify", fmt.Sprintf("%s: %s", f.Name, v.Error))}
	case len(v.Bad) == 0:
		return []string{summary.Line("verified", fmt.Sprintf("%s: all %d blocks are as they were written", f.Name, v.Blocks))}
	}
	lines := []string{summary.Line("DAMAGED", fmt.Sprintf("%s: %d of %d blocks", f.Name, len(v.Bad), v.Blocks))}
	for i, b := range v.Bad {
		if i == maxBadShown {
			return append(lines, summary.Line("", fmt.Sprintf("and %d more", len(v.Bad)-i)))
		}
		lines = append(lines, summary.Line("", fmt.Sprintf("%d bytes at offset %#x", b.Bytes, b.Offset)))
	}
	return lines
}
