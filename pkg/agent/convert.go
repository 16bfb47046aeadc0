package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/warmcore/warmcore/pkg/oldmem"
	"github.com/warmcore/warmcore/pkg/phys"
	corefile "github.com/warmcore/warmcore/pkg/vmcore" // tests here have a function vmcore
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/flattened"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// Stdout as a target is ConvertOptions.Stdout or SaveOptions.Stdout, in
// flattened form, for it may be a pipe.
const Stdout = "-"

// ConvertOptions says what to make of dump files.
type ConvertOptions struct {
	In     []string // several for the files of a split dump
	Out    string   // a new file, or Stdout
	Stdout io.Writer
	DumpOptions
}

// Conversion is what Convert did, as manifest.json's schema says it.
type Conversion struct {
	Schema         int      `json:"schema"`
	Seconds        float64  `json:"seconds"`
	Dump           DumpInfo `json:"dump"`
	Files          []File   `json:"files"`      // none on Stdout
	Unreadable     []Extent `json:"unreadable"` // now, or when the source was written
	MoreUnreadable uint64   `json:"more_unreadable,omitempty"`
	Warnings       []string `json:"warnings,omitempty"`
}

// Summary is one line for people.
func (c *Conversion) Summary() string {
	return fmt.Sprintf("%s in %s format for %s of memory, %d%% of the pages at dump level %d, in %.1f s",
		phys.FormatSize(c.Dump.Data), c.Dump.Format, phys.FormatSize(c.Dump.Memory), percent(c.Dump.Kept, c.Dump.Pages), c.Dump.Level, c.Seconds) +
		unreadText(c.Unreadable, c.MoreUnreadable*c.Dump.PageSize)
}

// Convert writes the memory of dump files to another one, in another format,
// or with fewer pages. It overwrites nothing: what is incomplete has
// "-incomplete" behind its name. When ctx ends, that is removed.
func (s *System) Convert(ctx context.Context, o ConvertOptions) (*Conversion, error) {
	if o.Out == Stdout {
		o.Flattened = true
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	var files []dumpfile.File
	var in []fs.FileInfo
	for _, name := range o.In {
		f, st, err := OpenDump(name)
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
	s.FindVMCOREINFO(src)
	for _, text := range src.Info().Warnings {
		s.log().Warn(text)
	}
	started := s.now()
	w := &writer{System: s, DumpOptions: o.DumpOptions, src: src, what: "convert", started: started}
	w.kernel, w.err = kernelOf(src)
	var out written
	if o.Out == Stdout {
		out, err = w.stream(ctx, o.Stdout)
	} else {
		w.final, w.incomplete = o.Out, o.Out+"-incomplete"
		if err := w.spare(in); err != nil {
			return nil, err
		}
		if err := w.claim(); err != nil {
			return nil, err
		}
		defer w.close()
		if out, err = w.write(ctx); err == nil {
			err = w.publish()
		}
	}
	var disk *errFull
	if errors.As(err, &disk) {
		return nil, fmt.Errorf("%w: %s of about %s were written", err, phys.FormatSize(disk.done), phys.FormatSize(disk.need))
	}
	if err != nil {
		return nil, fmt.Errorf("convert dump: %w", err)
	}
	c := &Conversion{
		Schema: ManifestSchema, Seconds: s.now().Sub(started).Seconds(), Dump: out.info, Files: out.files,
		Unreadable: extents(out.missing.Unreadable), MoreUnreadable: out.missing.MoreUnreadable, Warnings: append(src.Info().Warnings, out.warnings...),
	}
	return c, nil
}

// spare refuses names that are those of the source: what is incomplete may be
// what somebody wants to read, and claim would remove it.
func (w *writer) spare(in []fs.FileInfo) error {
	for i := range w.parts() {
		name := w.name(w.incomplete, i)
		st, err := os.Lstat(name)
		if err != nil {
			continue
		}
		for _, f := range in {
			if os.SameFile(st, f) {
				return refuse("give another name", "%s is to be read, and would be replaced", name)
			}
		}
	}
	return nil
}

// kernelOf returns what the kernel of a dump says about itself.
func kernelOf(src corefile.Dump) (*vmcoreinfo.Info, error) {
	if src.Info().VMCOREINFO == nil {
		return nil, errors.New("the dump has no VMCOREINFO")
	}
	return vmcoreinfo.Parse(src.Info().VMCOREINFO)
}

// pipeBuffer is what is written to a pipe at once, in bytes.
const pipeBuffer = 1 << 20

// stream writes the dump to a pipe, in flattened form.
func (w *writer) stream(ctx context.Context, to io.Writer) (written, error) {
	buffered := bufio.NewWriterSize(to, pipeBuffer)
	flat, err := flattened.NewWriter(buffered)
	if err != nil {
		return written{}, err
	}
	out, err := w.convert(ctx, []io.WriterAt{&serial{dst: flat}})
	if err == nil {
		err = errors.Join(flat.Close(), buffered.Flush())
	}
	if err != nil {
		return written{}, err
	}
	return out, nil
}

func extents(ranges []phys.Range) []Extent {
	out := []Extent{}
	for _, r := range ranges {
		out = append(out, Extent{fmt.Sprintf("%#x", r.Start), r.Size()})
	}
	return out
}

// saveTo writes the dump of this boot to a pipe. Nobody here knows whether it
// arrived: the dump stays offered.
func (s *System) saveTo(ctx context.Context, to io.Writer, src *oldmem.Source, o SaveOptions, m *Manifest, started time.Time) error {
	mapped := src.Mapped()
	defer mapped.Close()
	memory, err := dumpfile.Open(mapped, int64(src.Size()))
	if err != nil {
		return err
	}
	w := &writer{System: s, DumpOptions: o.DumpOptions, src: memory, what: "save", started: started}
	w.Flattened = true
	w.kernel, w.err = kernelOf(memory)
	out, err := w.stream(ctx, to)
	if err != nil {
		return fmt.Errorf("save dump: %w; the dump is still offered", err)
	}
	m.finish(out, s.now())
	return nil
}
