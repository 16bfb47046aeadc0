package dumpwriter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/target"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
)

// ConvertOptions says what to make of dump files.
type ConvertOptions struct {
	In     []string // several for the files of a split dump
	Out    string   // a new file, or target.Stdout
	Stdout io.Writer
	Options
}

// Conversion is what Convert did, as manifest.json's schema says it.
type Conversion struct {
	Schema         int               `json:"schema"`
	Seconds        float64           `json:"seconds"`
	Dump           manifest.Dump     `json:"dump"`
	Files          []manifest.File   `json:"files"`      // none on standard output
	Unreadable     []manifest.Extent `json:"unreadable"` // now, or when the source was written
	MoreUnreadable uint64            `json:"more_unreadable,omitempty"`
	Warnings       []string          `json:"warnings,omitempty"`
}

// Summary is one line for people.
func (c *Conversion) Summary() string {
	return fmt.Sprintf("%s in %s format for %s of memory, %d%% of the pages at dump level %d, in %.1f s",
		phys.FormatSize(c.Dump.Data), c.Dump.Format, phys.FormatSize(c.Dump.Memory), c.Dump.KeptPercent(), c.Dump.DumpLevel, c.Seconds) +
		manifest.UnreadText(c.Unreadable, c.MoreUnreadable*c.Dump.PageSize)
}

// Convert writes the memory of dump files to another one, in another format,
// or with fewer pages. It replaces nothing but what a dead process left of
// another conversion to the same name. When ctx ends, what is incomplete is
// removed.
func (w Writer) Convert(ctx context.Context, o ConvertOptions) (*Conversion, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	var files []dumpfile.File
	var in []fs.FileInfo
	for _, name := range o.In {
		f, st, err := OpenFile(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = append(in, st)
		files = append(files, dumpfile.File{ReaderAt: f, Size: st.Size()})
	}
	src, err := dumpfile.Join(files...)
	if err != nil && len(files) == 1 {
		err = fmt.Errorf("%s: %w", o.In[0], err)
	}
	if err != nil {
		return nil, err
	}
	w.FindVMCOREINFO(src)
	for _, text := range src.Info().Warnings {
		w.log().Warn(text)
	}
	to, name := target.OpenFile(o.Out, o.Stdout, in...)
	defer to.Close()
	started := w.now()
	j := &job{Writer: w, Options: o.Options, src: src, to: to, what: "convert", started: started}
	j.kernel, j.err = src.Info().Kernel()
	if err := j.create(ctx, name); err != nil {
		return nil, err
	}
	out, err := j.write(ctx)
	if err == nil {
		_, err = to.Commit(ctx)
	}
	var disk *fullError
	if errors.As(err, &disk) {
		return nil, fmt.Errorf("%w: %s of about %s were written", err, phys.FormatSize(disk.done), phys.FormatSize(disk.need))
	}
	if err != nil {
		return nil, fmt.Errorf("convert dump: %w", err)
	}
	return &Conversion{
		Schema: manifest.Schema, Seconds: w.now().Sub(started).Seconds(), Dump: out.dump, Files: out.files,
		Unreadable: manifest.Extents(out.missing.Unreadable), MoreUnreadable: out.missing.MoreUnreadable,
		Warnings: append(src.Info().Warnings, out.warnings...),
	}, nil
}
