package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/warmcore/warmcore/pkg/oldmem"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

// Names of the files of a dump.
const (
	DumpName       = "vmcore"
	IncompleteName = "vmcore-incomplete" // until it is synced and checked
	LogName        = "vmcore-dmesg.txt"
	ManifestName   = "manifest.json"
)

// crashDir is where distributions keep dumps.
const crashDir = "var/crash"

// SaveOptions says how to save.
type SaveOptions struct {
	Target string // directory; "" makes a new one below /var/crash
	// SHA256 asks for the checksum of the whole dump file beside that of its
	// tree. It is one CPU's work, and slower than most disks.
	SHA256 bool
}

// Save writes the dump that this boot offers into a directory and then marks
// it saved. What it wrote is described by the manifest, which is saved beside
// the dump.
func (s *System) Save(o SaveOptions) (*Manifest, error) {
	if err := s.root(); err != nil {
		return nil, err
	}
	src, err := oldmem.Open(s.path(vmcoreFile))
	if errors.Is(err, oldmem.ErrNone) {
		return nil, s.noDump()
	}
	if err != nil {
		return nil, err
	}
	defer src.Close()

	x, err := s.open(true)
	switch {
	case err == nil:
		defer x.close()
	case errors.Is(err, errBusy):
		return nil, err
	default:
		// A dump is better saved without what the handoff area knows about
		// it than not saved.
		s.log().Warn("saving without the handoff area", "err", err)
		x = nil
	}
	if err := x.savable(o.Target); err != nil {
		return nil, err
	}
	started := s.now()
	if o.Target == "" {
		o.Target = s.path(filepath.Join(crashDir, s.host()+"-"+started.UTC().Format("2006-01-02-15-04-05")))
	}
	m, err := s.save(src, o, x, started)
	if err != nil {
		return nil, err
	}
	if x != nil && x.block != nil && x.block.State == registration.Capturing {
		x.block.State = registration.Saved
		if err := x.store(); err != nil {
			return nil, fmt.Errorf("the dump is in %s, but it can't be marked as saved: %w", o.Target, err)
		}
	}
	return m, nil
}

// noDump says why there is no /proc/vmcore.
func (s *System) noDump() error {
	nothing := &Nothing{"nothing to save: there is no dump in this boot"}
	x, err := s.open(false)
	if err != nil {
		return nothing
	}
	defer x.close()
	if x.block != nil && x.block.State == registration.Capturing {
		return refuse("`dmesg | grep -i -e vmcore -e elfcorehdr` says why; `warmcore release --discard` gives the dump up",
			"the payload handed over a dump, but this kernel offers no /proc/vmcore")
	}
	return nothing
}

// savable says whether what /proc/vmcore shows is a dump that needs saving.
func (x *session) savable(target string) error {
	if x == nil || x.block == nil {
		return nil // better saved than sorry
	}
	switch x.block.State {
	case registration.Saved:
		if target == "" {
			return &Nothing{"the dump is saved already; give a directory to save it there again"}
		}
	case registration.Releasing, registration.Armed:
		return &Nothing{"the dump's memory has been given back, there is no dump any more"}
	}
	return nil
}

// host returns the host name as part of a file name.
func (s *System) host() string {
	name, err := s.read("proc/sys/kernel/hostname")
	name = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
			return r
		}
		return '_'
	}, name)
	// "(none)" before anyone gave it a name.
	if err != nil || strings.Trim(name, ".") == "" || name == "_none_" {
		return "localhost"
	}
	return name[:min(len(name), 64)]
}

func (s *System) save(src *oldmem.Source, o SaveOptions, x *session, started time.Time) (*Manifest, error) {
	dir := o.Target
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("make directory for the dump: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make directory for the dump: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, DumpName)); err == nil {
		return nil, refuse("give another directory", "%s has a dump already", dir)
	}
	m := s.manifest(x, started)
	m.Directory = dir
	d, err := readDump(src)
	if err != nil {
		return nil, fmt.Errorf("read the dump's headers: %w", err)
	}
	m.describe(d)

	// The log first: it is small, and often all that anyone needs.
	text, lost, err := d.log(src)
	if err != nil {
		s.log().Warn("the crashed kernel's log can't be read", "err", err)
		m.Warnings = append(m.Warnings, fmt.Sprintf("the crashed kernel's log can't be read: %v", err))
	} else {
		file, err := writeFile(filepath.Join(dir, LogName), text)
		if err != nil {
			return nil, s.full(err, dir, uint64(len(text)), 0)
		}
		m.Files = append(m.Files, file)
		m.LogLost = lost
	}

	if free, err := oldmem.Free(dir); err == nil && free < src.Size() {
		s.log().Warn("the dump may not fit, unless enough of it is zero", "free", phys.FormatSize(free), "dump", phys.FormatSize(src.Size()))
	}
	incomplete := filepath.Join(dir, IncompleteName)
	if st, err := os.Lstat(incomplete); err == nil && st.Mode().IsRegular() {
		// What an earlier try left behind.
		if err := os.Remove(incomplete); err != nil {
			return nil, err
		}
	}
	out, err := oldmem.Create(incomplete)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	var done uint64
	r, err := src.Copy(out, oldmem.Options{SHA256: o.SHA256, Progress: func(n uint64) {
		done = n
		s.progress(Progress{What: "save", Done: n, Total: src.Size(), Elapsed: s.now().Sub(started)})
	}})
	if err == nil {
		err = out.Sync()
	}
	if err != nil {
		if oldmem.Full(err) {
			// A part of a dump is worth less than room for the system to run.
			os.Remove(incomplete)
			return nil, s.full(err, dir, src.Size(), done)
		}
		return nil, fmt.Errorf("save dump: %w; %s is not complete, the dump is still offered", err, incomplete)
	}
	if err := check(src, out, d, r); err != nil {
		return nil, fmt.Errorf("check %s: %w; the dump is still offered", incomplete, err)
	}
	if err := os.Rename(incomplete, filepath.Join(dir, DumpName)); err != nil {
		return nil, err
	}
	m.finish(r, s.now())
	b, err := m.encode()
	if err != nil {
		return nil, err
	}
	if _, err := writeFile(filepath.Join(dir, ManifestName), b); err != nil {
		return nil, s.full(err, dir, uint64(len(b)), 0)
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := oldmem.SyncDir(d); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// full explains that a disk is full; other errors it returns as they are.
func (s *System) full(err error, dir string, size, done uint64) error {
	if !oldmem.Full(err) {
		return err
	}
	free, statErr := oldmem.Free(dir)
	if statErr != nil {
		return fmt.Errorf("%w: %w", err, statErr)
	}
	return fmt.Errorf("%w: %s of %s were written, at most %s more are needed than the %s that are free: free some, or give another directory; the dump is still offered",
		err, phys.FormatSize(done), phys.FormatSize(size), phys.FormatSize(size-min(size, free)), phys.FormatSize(free))
}

// writeFile writes a new small file and syncs it. One that an earlier try left is
// replaced.
func writeFile(path string, content []byte) (File, error) {
	if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() {
		if err := os.Remove(path); err != nil {
			return File{}, err
		}
	}
	f, err := oldmem.Create(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return File{}, fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Sync(); err != nil {
		return File{}, fmt.Errorf("sync %s: %w", path, err)
	}
	sum := sha256.Sum256(content)
	return File{Name: filepath.Base(path), Bytes: uint64(len(content)), Written: uint64(len(content)), SHA256: hex.EncodeToString(sum[:])}, nil
}

// samples is how many places of a dump are read back, of sampleSize bytes each.
const (
	samples    = 64
	sampleSize = 4 << 10
)

// check reads back what was written: the headers and notes, and samples of
// the memory, which must be what the source says.
func check(src io.ReaderAt, out *os.File, want dump, r oldmem.Result) error {
	st, err := out.Stat()
	if err != nil {
		return err
	}
	if uint64(st.Size()) != r.Size {
		return fmt.Errorf("size is %d, want %d", st.Size(), r.Size)
	}
	got, err := readDump(out)
	if err != nil {
		return err
	}
	if !slices.Equal(got.header.Loads, want.header.Loads) || !slices.Equal(got.header.Notes, want.header.Notes) {
		return errors.New("program headers differ from the dump's")
	}
	if len(got.cpus) != len(want.cpus) {
		return fmt.Errorf("registers of %d CPUs, want %d", len(got.cpus), len(want.cpus))
	}
	a, b := make([]byte, sampleSize), make([]byte, sampleSize)
	for range samples {
		off := rand.Uint64N(r.Size) &^ (sampleSize - 1)
		n := min(sampleSize, r.Size-off)
		if slices.ContainsFunc(r.Unreadable, func(u phys.Range) bool { return u.Overlaps(phys.Range{Start: off, End: off + n}) }) || r.MoreUnreadable > 0 {
			continue
		}
		if _, err := src.ReadAt(a[:n], int64(off)); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read the dump at offset %#x again: %w", off, err)
		}
		if _, err := out.ReadAt(b[:n], int64(off)); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read back at offset %#x: %w", off, err)
		}
		if !bytes.Equal(a[:n], b[:n]) {
			return fmt.Errorf("the %d bytes at offset %#x differ from the dump's", n, off)
		}
	}
	return nil
}
