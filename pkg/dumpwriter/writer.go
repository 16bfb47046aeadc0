// Package dumpwriter writes dumps: from a crashed kernel's memory, or from a
// dump file, to a target, with the log and a manifest beside it where the
// target has room for them. It also checks and reads what was written. All of it
// works on any machine.
//
// Invariants: a dump gets its name when all of it is written, synced and read
// back as far as the target can do that; the log is there before, for it is
// often all that anyone needs. A disk that is full is left as it was found. A
// source is only read.
package dumpwriter

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/warmcore/warmcore/pkg/convert"
	"github.com/warmcore/warmcore/pkg/dumpfilter"
	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/target"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/checksum"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/flattened"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// Options says what kind of dump to write.
type Options struct {
	Format    convert.Format
	Codec     kdump.Codec // of kdump files
	Effort    int         // of compression, see kdump.NewEncoder
	DumpLevel int         // what to leave out, 0 to 31, as makedumpfile -d
	Workers   int         // 0: one per CPU, at most convert.DefaultWorkers
	Split     int         // into so many files; 0 and 1: one
	Flattened bool        // makedumpfile's form for pipes; always where the target has no random access
	SHA256    bool        // of each whole file, too: reads it again, on one CPU
}

// MaxSplit caps Options.Split.
const MaxSplit = 256

// Check refuses options that don't fit together, or are out of range.
func (o Options) Check() error {
	switch {
	case o.Split < 0 || o.Split > MaxSplit:
		return outcome.Refuse("choose another number", "a dump in %d files: 1 to %d are possible", o.Split, MaxSplit)
	case o.Split > 1 && (o.Format != convert.KDump || o.Flattened):
		return outcome.Refuse("write kdump format, not flattened", "only kdump files can be split")
	case o.DumpLevel < 0 || o.DumpLevel > 31:
		return outcome.Refuse("choose one from 0, all pages, to 31, the kernel's own pages only", "there is no dump level %d", o.DumpLevel)
	}
	return nil
}

// Writer writes dumps. The zero value tells nobody how it goes.
type Writer struct {
	Log      *slog.Logger           // nil discards
	Progress func(outcome.Progress) // nil discards
	Now      func() time.Time       // nil: the clock
}

func (w Writer) log() *slog.Logger {
	if w.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return w.Log
}

func (w Writer) now() time.Time {
	if w.Now == nil {
		return time.Now()
	}
	return w.Now()
}

func (w Writer) progress(p outcome.Progress) {
	if w.Progress != nil {
		w.Progress(p)
	}
}

// job is one dump being written.
type job struct {
	Writer
	Options
	src    vmcore.Dump
	kernel *vmcoreinfo.Info // nil if it is not known, for the reason in err
	err    error
	to     target.Target
	what   string // for progress
	// phase began at started.
	phase   convert.Phase
	started time.Time

	files   []*file
	done    convert.Progress
	sampler sampler
	pages   *dumpfilter.Filter // nil if no page can be judged
}

// written is the result of writing a dump.
type written struct {
	dump     manifest.Dump
	files    []manifest.File
	missing  convert.Result // Unreadable, MoreUnreadable
	warnings []string
}

// file is a file of the dump, and what lies between it and the converter.
type file struct {
	target.File
	random target.RandomAccess // nil if it is none
	serial *inOrder            // then
	sums   *checksum.Writer
	flat   *flattened.Writer // nil if the file isn't flattened
	buffer *bufio.Writer     // below flat
}

// flatBuffer is how much of a flattened file is written at once, in bytes.
const flatBuffer = 1 << 20

// create makes the files, before anything else is done, so that no other
// process writes there.
func (j *job) create(ctx context.Context, name string) error {
	files, err := j.to.Create(ctx, name, max(j.Split, 1))
	if err != nil {
		return err
	}
	for _, f := range files {
		own := &file{File: f}
		if own.random, _ = f.(target.RandomAccess); own.random != nil {
			own.sums = checksum.NewWriter(own.random)
		} else {
			own.serial = &inOrder{w: f, hash: sha256.New()}
			own.sums = checksum.NewWriter(own.serial)
			j.Flattened = true
		}
		j.files = append(j.files, own)
	}
	if err := j.Check(); err != nil { // again: a target may want the flattened form
		return errors.Join(err, j.to.Abort())
	}
	return nil
}

// dst returns what the converter writes to.
func (f *file) dst(flat bool) (io.WriterAt, error) {
	if !flat {
		return f.sums, nil
	}
	f.buffer = bufio.NewWriterSize(io.NewOffsetWriter(f.sums, 0), flatBuffer)
	var err error
	if f.flat, err = flattened.NewWriter(f.buffer); err != nil {
		return nil, err
	}
	return &oneByOne{dst: f.flat}, nil
}

// end writes what is still to be written.
func (f *file) end() error {
	if f.flat == nil {
		return nil
	}
	return errors.Join(f.flat.Close(), f.buffer.Flush())
}

// inOrder is an io.WriterAt of what can only be written from start to end.
type inOrder struct {
	w    io.Writer
	at   int64
	hash hash.Hash // of what was written: it can't be read back
}

func (o *inOrder) WriteAt(p []byte, off int64) (int, error) {
	if off != o.at {
		return 0, fmt.Errorf("write at offset %#x: %#x is next", off, o.at)
	}
	n, err := o.w.Write(p)
	o.at += int64(n)
	o.hash.Write(p[:n])
	return n, err
}

// oneByOne lets one goroutine at a time write.
type oneByOne struct {
	mu  sync.Mutex
	dst io.WriterAt
}

func (s *oneByOne) WriteAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dst.WriteAt(p, off)
}

// write writes the dump into the files that were created, syncs and checks it.
func (j *job) write(ctx context.Context) (written, error) {
	var dst []io.WriterAt
	for _, f := range j.files {
		d, err := f.dst(j.Flattened)
		if err != nil {
			return written{}, j.failed(ctx, err)
		}
		dst = append(dst, d)
	}
	out, err := j.convert(ctx, dst)
	for _, f := range j.files {
		if err == nil {
			err = f.end()
		}
	}
	if err != nil {
		return written{}, j.failed(ctx, err)
	}
	for _, f := range j.files {
		if f.random != nil {
			if err := f.random.Sync(); err != nil {
				return written{}, j.failed(ctx, err)
			}
		}
		about, err := j.describe(ctx, f)
		if err != nil {
			return written{}, j.failed(ctx, err)
		}
		if about.Name != "" {
			out.files = append(out.files, about)
		}
	}
	if err := j.check(&out); err != nil {
		return written{}, j.failed(ctx, fmt.Errorf("check %s: %w", j.to, err))
	}
	if ctx.Err() != nil {
		return written{}, j.failed(ctx, context.Cause(ctx))
	}
	return out, nil
}

// fullError is a full disk; partial files are gone.
type fullError struct {
	err        error
	done, need uint64
}

func (e *fullError) Error() string { return e.err.Error() }
func (e *fullError) Unwrap() error { return e.err }

// stoppedError is the end of the context.
type stoppedError struct {
	cause error
	left  error // why partial files are not gone, nil if they are
}

func (e *stoppedError) Error() string {
	switch {
	case e.left == nil:
		return fmt.Sprintf("stopped: %v; what was written is removed", e.cause)
	case errors.Is(e.left, errors.ErrUnsupported):
		return fmt.Sprintf("stopped: %v", e.cause)
	}
	return fmt.Sprintf("stopped: %v; what was written could not be removed: %v", e.cause, e.left)
}
func (e *stoppedError) Unwrap() error { return e.cause }

// failed explains an error of writing. With a full disk it makes room: a part
// of a dump is worth less than that the system can run. What was stopped leaves
// nothing either: without its headers, a part of a dump is worth nothing.
func (j *job) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return &stoppedError{context.Cause(ctx), j.to.Abort()}
	}
	if !target.Full(err) {
		return err
	}
	var done uint64
	for _, f := range j.files {
		done += uint64(f.sums.Written())
	}
	j.to.Abort() // the error is of the disk that is full
	need := done
	if j.done.Phase == convert.Writing && j.done.Done > 0 {
		need = uint64(float64(done) / float64(j.done.Done) * float64(j.done.Total))
	}
	return &fullError{err, done, need}
}

// convert makes the filter and writes to dst.
func (j *job) convert(ctx context.Context, dst []io.WriterAt) (out written, err error) {
	var filter convert.Filter
	info := j.src.Info()
	if j.kernel == nil {
		j.warn(&out.warnings, "no page is left out, because what the kernel says about its pages can't be read", j.err)
	} else if pages, err := dumpfilter.New(j.src, j.kernel, info.Memory, dumpfilter.Level(j.DumpLevel)); err != nil {
		j.warn(&out.warnings, "no page is left out", err)
	} else {
		j.pages, filter = pages, pages
	}
	level := j.DumpLevel
	if filter == nil {
		level = 0
	}
	level |= max(info.Level, 0)
	r, err := convert.Convert(ctx, j.src, filter, dst, convert.Options{
		Format: j.Format, Codec: j.Codec, Effort: j.Effort, DumpLevel: level, Workers: j.Workers, NoHoles: j.Flattened,
		Planned: j.planned, Written: j.sampler.page,
		Progress: func(p convert.Progress) {
			if p.Phase != j.phase { // each has its own rate
				j.phase, j.started = p.Phase, j.now()
			}
			j.done = p
			what := j.what
			if p.Phase == convert.Scanning {
				what += " (looking at pages)"
			}
			j.progress(outcome.Progress{What: what, Done: p.Done, Total: p.Total, Elapsed: j.now().Sub(j.started)})
		},
	})
	if err != nil {
		return written{}, err
	}
	if j.pages != nil {
		for _, text := range j.pages.Warnings() {
			j.warn(&out.warnings, text, nil)
		}
	}
	for _, text := range r.Warnings {
		j.warn(&out.warnings, text, nil)
	}
	out.missing = r
	out.dump = manifest.Dump{
		Format: j.Format.String(), Compression: j.Codec.String(), DumpLevel: level, PageSize: r.PageSize,
		Pages: r.Pages, Kept: r.Kept, Zero: r.Zero, Incompress: r.Raw, Memory: r.Pages * r.PageSize, Data: r.Data,
		LeftOut: manifest.Counts{
			Cache: r.Counts.Cache, CachePrivate: r.Counts.CachePrivate, User: r.Counts.User, Free: r.Counts.Free,
			HWPoison: r.Counts.HWPoison, Offline: r.Counts.Offline, Absent: r.Absent,
		},
	}
	if j.Format == convert.ELF {
		out.dump.Compression = kdump.Codec(0).String()
	}
	if j.Flattened {
		out.dump.Format += dumpfile.FormatFlattened
	}
	return out, nil
}

func (j *job) warn(warnings *[]string, what string, err error) {
	if err != nil {
		what = fmt.Sprintf("%s: %v", what, err)
	}
	j.log().Warn(what)
	*warnings = append(*warnings, what)
}

// planned warns if the dump may not fit, and decides which pages are sampled:
// none where they can't be read back.
func (j *job) planned(r convert.Result) error {
	if j.files[0].random != nil {
		j.sampler.step = max(r.Kept/samples, 1)
	}
	need := r.Kept * r.PageSize
	if free, err := j.to.Free(); err == nil && free < need {
		j.log().Warn("the dump may not fit, unless it compresses well", "free", phys.FormatSize(free), "to save", phys.FormatSize(need))
	}
	return nil
}

// describe returns what the manifest says about a file that is written.
func (j *job) describe(ctx context.Context, f *file) (manifest.File, error) {
	size := int64(-1) // as it was written
	if f.random != nil {
		var err error
		if size, err = f.random.Size(); err != nil {
			return manifest.File{}, err
		}
	}
	sums, err := f.sums.Sums(size)
	if err != nil {
		return manifest.File{}, fmt.Errorf("sum up %s: %w", f.Name(), err)
	}
	out := manifest.File{Name: f.Name(), Bytes: uint64(sums.Size), Written: uint64(f.sums.Written()), CRC32C: &sums}
	switch {
	case !j.SHA256:
	case f.random == nil:
		out.SHA256 = hex.EncodeToString(f.serial.hash.Sum(nil))
	default:
		h := sha256.New()
		if _, err := io.Copy(h, stopReader{ctx, io.NewSectionReader(f.random, 0, size)}); err != nil {
			return manifest.File{}, fmt.Errorf("read back %s: %w", f.Name(), err)
		}
		out.SHA256 = hex.EncodeToString(h.Sum(nil))
	}
	return out, nil
}

// stopReader ends with its context.
type stopReader struct {
	ctx context.Context
	r   io.Reader
}

func (s stopReader) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(p)
}
