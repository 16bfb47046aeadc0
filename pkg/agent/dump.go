package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/warmcore/warmcore/pkg/convert"
	"github.com/warmcore/warmcore/pkg/dumpfilter"
	"github.com/warmcore/warmcore/pkg/oldmem"
	"github.com/warmcore/warmcore/pkg/phys"
	corefile "github.com/warmcore/warmcore/pkg/vmcore" // tests here have a function vmcore
	"github.com/warmcore/warmcore/pkg/vmcore/checksum"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/flattened"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// DumpOptions says what kind of dump to write.
type DumpOptions struct {
	Format    convert.Format
	Codec     kdump.Codec // of kdump files
	Effort    int         // compression level, see kdump.NewEncoder
	Level     int         // dump level: what to leave out, 0 to 31
	Workers   int         // 0: one per CPU
	Split     int         // into so many files; 0 and 1: one
	Flattened bool        // makedumpfile's form for pipes
	SHA256    bool        // of each whole file, too: reads it again, on one CPU
}

// MaxSplit caps DumpOptions.Split.
const MaxSplit = 256

func (o DumpOptions) check() error {
	switch {
	case o.Split < 0 || o.Split > MaxSplit:
		return refuse("choose another number", "a dump in %d files: 1 to %d are possible", o.Split, MaxSplit)
	case o.Split > 1 && (o.Format != convert.KDump || o.Flattened):
		return refuse("write kdump format, not flattened", "only kdump files can be split")
	case o.Level < 0 || o.Level > 31:
		return refuse("choose one from 0, all pages, to 31, the kernel's own pages only", "there is no dump level %d", o.Level)
	}
	return nil
}

// DumpInfo is what is in a dump that was written. Counts are pages.
type DumpInfo struct {
	Format      string `json:"format"`      // "kdump", "elf", and "flattened" behind it
	Compression string `json:"compression"` // "none", "zlib", "snappy", "zstd"
	Level       int    `json:"dump_level"`  // of all filters that it went through
	PageSize    uint64 `json:"page_size"`   // bytes
	Pages       uint64 `json:"pages"`       // of memory
	Kept        uint64 `json:"kept"`
	Zero        uint64 `json:"zero"`           // kept, and all zeroes
	Incompress  uint64 `json:"incompressible"` // kept, and stored as they are
	LeftOut     Counts `json:"left_out"`
	Memory      uint64 `json:"memory_bytes"` // of the pages
	Data        uint64 `json:"data_bytes"`   // that they take in the files
}

// Counts are pages that a filter left out, by its reason.
type Counts struct {
	Cache        uint64 `json:"cache"`
	CachePrivate uint64 `json:"cache_private"`
	User         uint64 `json:"user"`
	Free         uint64 `json:"free"`
	HWPoison     uint64 `json:"hwpoison"`
	Offline      uint64 `json:"offline"`
	Absent       uint64 `json:"absent"` // the source hadn't them either
}

// written is what came of writing a dump.
type written struct {
	info     DumpInfo
	files    []File
	missing  convert.Result // Unreadable, MoreUnreadable
	warnings []string
}

// writer writes one dump into files that become visible when it is whole.
type writer struct {
	*System
	DumpOptions
	src    corefile.Dump
	kernel *vmcoreinfo.Info // nil where kernelErr says why
	err    error
	what   string // for progress
	// phase began at started.
	phase   convert.Phase
	started time.Time
	// final and incomplete are the files' names, without the number of a part.
	final, incomplete string

	files   []*os.File
	sums    []*checksum.Writer
	flat    *flattened.Writer
	done    convert.Progress
	sampler sampler
}

// name returns the name of part i.
func (w *writer) name(base string, i int) string {
	if w.Split > 1 {
		return base + "." + strconv.Itoa(i+1)
	}
	return base
}

func (w *writer) parts() int { return max(w.Split, 1) }

// errFull is a full disk; partial files are gone.
type errFull struct {
	err        error
	done, need uint64
}

func (e *errFull) Error() string { return e.err.Error() }
func (e *errFull) Unwrap() error { return e.err }

// claim makes the files, before anything else is done, so that no other process
// writes there.
func (w *writer) claim() error {
	if err := w.taken(); err != nil {
		return err
	}
	for i := range w.parts() {
		f, err := oldmem.Claim(w.name(w.incomplete, i))
		if errors.Is(err, oldmem.ErrClaimed) {
			err = refuse("wait until it is done, or give another name", "another process is writing %s", w.name(w.incomplete, i))
		}
		if err != nil {
			w.remove()
			return err
		}
		w.files = append(w.files, f)
		w.sums = append(w.sums, checksum.NewWriter(f))
	}
	// Again: whoever had the files may have been done in between.
	if err := w.taken(); err != nil {
		w.remove()
		return err
	}
	return nil
}

// taken refuses if a file has one of the final names.
func (w *writer) taken() error {
	for i := range w.parts() {
		if _, err := os.Lstat(w.name(w.final, i)); err == nil {
			return exists(w.name(w.final, i))
		}
	}
	return nil
}

func exists(name string) error { return refuse("give another name", "%s exists already", name) }

// close closes the files.
func (w *writer) close() {
	for _, f := range w.files {
		f.Close()
	}
}

// remove removes the files that have no other name yet.
func (w *writer) remove() {
	for _, f := range w.files {
		oldmem.Remove(f)
	}
}

// write writes the dump into the files that were claimed, syncs and checks it.
func (w *writer) write(ctx context.Context) (written, error) {
	var dst []io.WriterAt
	for i := range w.parts() {
		dst = append(dst, w.sums[i])
	}
	if w.Flattened {
		flat, err := flattened.NewWriter(io.NewOffsetWriter(w.sums[0], 0))
		if err != nil {
			return written{}, w.failed(ctx, err)
		}
		w.flat = flat
		dst[0] = &serial{dst: flat}
	}
	out, err := w.convert(ctx, dst)
	if err == nil && w.flat != nil {
		err = w.flat.Close()
	}
	if err != nil {
		return written{}, w.failed(ctx, err)
	}
	for i, f := range w.files {
		if err := f.Sync(); err != nil {
			return written{}, w.failed(ctx, fmt.Errorf("sync %s: %w", f.Name(), err))
		}
		file, err := w.describe(ctx, i)
		if err != nil {
			return written{}, w.failed(ctx, err)
		}
		out.files = append(out.files, file)
	}
	if err := w.check(&out); err != nil {
		return written{}, w.failed(ctx, fmt.Errorf("check %s: %w", w.incomplete, err))
	}
	if ctx.Err() != nil {
		return written{}, w.failed(ctx, context.Cause(ctx))
	}
	return out, nil
}

// publish gives what was written its name. Nothing stops it: some of the names
// may be there.
func (w *writer) publish() error {
	for i, f := range w.files {
		err := oldmem.Publish(f, w.name(w.incomplete, i), w.name(w.final, i))
		if errors.Is(err, fs.ErrExist) {
			w.remove()
			return exists(w.name(w.final, i))
		}
		if err != nil {
			return err
		}
	}
	return oldmem.SyncDir(filepath.Dir(w.final))
}

// serial lets one goroutine at a time write.
type serial struct {
	mu  sync.Mutex
	dst io.WriterAt
}

func (s *serial) WriteAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dst.WriteAt(p, off)
}

// errStopped is the end of the context; partial files are gone.
type errStopped struct{ cause error }

func (e *errStopped) Error() string {
	return fmt.Sprintf("stopped: %v; what was written is removed", e.cause)
}
func (e *errStopped) Unwrap() error { return e.cause }

// failed explains an error of writing. With a full disk it makes room: a part
// of a dump is worth less than that the system can run. What was stopped leaves
// nothing either, for without its headers a part of a dump is no dump.
func (w *writer) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		w.remove()
		return &errStopped{context.Cause(ctx)}
	}
	if !oldmem.Full(err) {
		return err
	}
	var done uint64
	for _, f := range w.files {
		if st, err := f.Stat(); err == nil {
			done += uint64(st.Size())
		}
	}
	w.remove()
	need := done
	if w.done.Phase == convert.Writing && w.done.Done > 0 {
		need = uint64(float64(done) / float64(w.done.Done) * float64(w.done.Total))
	}
	return &errFull{err, done, need}
}

// convert makes the filter and writes to dst.
func (w *writer) convert(ctx context.Context, dst []io.WriterAt) (out written, err error) {
	var filter convert.Filter
	var pages *dumpfilter.Filter
	info := w.src.Info()
	if w.kernel == nil {
		w.warn(&out, "no page is left out, because what the kernel says about its pages can't be read", w.err)
	} else if pages, err = dumpfilter.New(w.src, w.kernel, info.Memory, dumpfilter.Level(w.Level)); err != nil {
		w.warn(&out, "no page is left out", err)
	} else {
		filter = pages
	}
	level := w.Level
	if filter == nil {
		level = 0
	}
	level |= max(info.Level, 0)
	r, err := convert.Convert(ctx, w.src, filter, dst, convert.Options{
		Format: w.Format, Codec: w.Codec, Level: w.Effort, DumpLevel: level, Workers: w.Workers, NoHoles: w.Flattened,
		Planned: w.planned, Written: w.sampler.page,
		Progress: func(p convert.Progress) {
			if p.Phase != w.phase { // each has its own rate
				w.phase, w.started = p.Phase, w.now()
			}
			w.done = p
			what := w.what
			if p.Phase == convert.Scanning {
				what += " (looking at pages)"
			}
			w.progress(Progress{What: what, Done: p.Done, Total: p.Total, Elapsed: w.now().Sub(w.started)})
		},
	})
	if err != nil {
		return written{}, err
	}
	if pages != nil {
		for _, text := range pages.Warnings() {
			w.warn(&out, text, nil)
		}
	}
	for _, text := range r.Warnings {
		w.warn(&out, text, nil)
	}
	out.missing = r
	out.info = DumpInfo{
		Format: w.Format.String(), Compression: w.Codec.String(), Level: level, PageSize: r.PageSize,
		Pages: r.Pages, Kept: r.Kept, Zero: r.Zero, Incompress: r.Raw, Memory: r.Pages * r.PageSize, Data: r.Data,
		LeftOut: Counts{r.Counts.Cache, r.Counts.CachePrivate, r.Counts.User, r.Counts.Free, r.Counts.HWPoison, r.Counts.Offline, r.Absent},
	}
	if w.Format == convert.ELF {
		out.info.Compression = kdump.Codec(0).String()
	}
	if w.Flattened {
		out.info.Format += dumpfile.FormatFlattened
	}
	return out, nil
}

func (w *writer) warn(out *written, what string, err error) {
	if err != nil {
		what = fmt.Sprintf("%s: %v", what, err)
	}
	w.log().Warn(what)
	out.warnings = append(out.warnings, what)
}

// planned warns if the dump may not fit.
func (w *writer) planned(r convert.Result) error {
	if w.final == "" {
		return nil
	}
	w.sampler.step = max(r.Kept/samples, 1)
	need := r.Kept * r.PageSize
	if free, err := oldmem.Free(filepath.Dir(w.final)); err == nil && free < need {
		w.log().Warn("the dump may not fit, unless it compresses well", "free", phys.FormatSize(free), "to save", phys.FormatSize(need))
	}
	return nil
}

// describe returns what the manifest says about part i.
func (w *writer) describe(ctx context.Context, i int) (File, error) {
	f := w.files[i]
	st, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	sums, err := w.sums[i].Sums(st.Size())
	if err != nil {
		return File{}, fmt.Errorf("sum up %s: %w", f.Name(), err)
	}
	out := File{Name: filepath.Base(w.name(w.final, i)), Bytes: uint64(st.Size()), Written: uint64(w.sums[i].Written()), CRC32C: &sums}
	if w.SHA256 {
		h := sha256.New()
		if _, err := io.Copy(h, stopReader{ctx, io.NewSectionReader(f, 0, st.Size())}); err != nil {
			return File{}, fmt.Errorf("read back %s: %w", f.Name(), err)
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
