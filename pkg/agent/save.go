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
	"strings"
	"time"

	"github.com/warmcore/warmcore/pkg/oldmem"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
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
	// Target is a directory; "" makes a new one below /var/crash. Stdout
	// writes the dump, and nothing else, to Stdout; it does not count as
	// saved then.
	Target string
	Stdout io.Writer
	// Dax reads memory from dax devices where they show it, and the rest from
	// /proc/vmcore.
	Dax bool
	DumpOptions
}

// Save writes the dump that this boot offers into a directory and then marks
// it saved. What it wrote is described by the manifest, which is saved beside
// the dump. When ctx ends, what is incomplete is removed, and the dump is still
// offered.
func (s *System) Save(ctx context.Context, o SaveOptions) (*Manifest, error) {
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
	if err := errors.Join(o.check(), x.savable(o.Target)); err != nil {
		return nil, err
	}
	started := s.now()
	if o.Dax {
		done, err := x.spliceDax(src)
		if err != nil {
			return nil, err
		}
		defer done()
	}
	if o.Target == Stdout {
		m := s.manifest(x, started)
		if d, err := readDump(src); err == nil {
			m.describe(d)
		}
		m.Directory = Stdout
		if err := s.saveTo(ctx, o.Stdout, src, o, m, started); err != nil {
			return nil, err
		}
		return m, nil
	}
	if o.Target == "" {
		s.clean()
		if o.Target, err = s.newDir(started); err != nil {
			return nil, err
		}
	}
	m, err := s.save(ctx, src, o, x, started)
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

// dirTime is the time in the names of directories that Save makes.
const dirTime = "2006-01-02-15-04-05"

// maxDirs is how many names newDir tries: a machine whose clock starts anew in
// each boot has some of them already.
const maxDirs = 3600

// newDir makes a directory for a dump.
func (s *System) newDir(started time.Time) (string, error) {
	top := s.path(crashDir)
	if err := os.MkdirAll(top, 0o755); err != nil {
		return "", fmt.Errorf("make directory for the dump: %w", err)
	}
	var err error
	for i := range time.Duration(maxDirs) {
		dir := filepath.Join(top, s.host()+"-"+started.Add(i*time.Second).UTC().Format(dirTime))
		if err = os.Mkdir(dir, 0o700); err == nil {
			return dir, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	return "", fmt.Errorf("make directory for the dump: %w", err)
}

// clean removes dumps that other calls left incomplete, when they were killed or
// the machine went down, in directories that newDir made: the disk may have no
// room for them and this one, and without headers they are no dumps. The logs
// beside them stay.
func (s *System) clean() {
	top := s.path(crashDir)
	dirs, err := os.ReadDir(top)
	if err != nil {
		return // none, or the save will say what is wrong
	}
	for _, d := range dirs {
		date, ours := strings.CutPrefix(d.Name(), s.host()+"-")
		if _, err := time.Parse(dirTime, date); !ours || err != nil || !d.IsDir() {
			continue
		}
		files, err := os.ReadDir(filepath.Join(top, d.Name()))
		if err != nil {
			continue
		}
		for _, f := range files {
			if f.Name() != IncompleteName && !strings.HasPrefix(f.Name(), IncompleteName+".") {
				continue
			}
			path := filepath.Join(top, d.Name(), f.Name())
			size, err := oldmem.Discard(path)
			switch {
			case err == nil:
				s.log().Warn("removed what an earlier save left incomplete", "file", path, "size", phys.FormatSize(uint64(size)))
			case !errors.Is(err, oldmem.ErrClaimed):
				s.log().Warn("what an earlier save left incomplete stays", "err", err)
			}
		}
	}
}

func (s *System) save(ctx context.Context, src *oldmem.Source, o SaveOptions, x *session, started time.Time) (*Manifest, error) {
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

	mapped := src.Mapped()
	defer mapped.Close()
	memory, err := dumpfile.Open(mapped, int64(src.Size()))
	if err != nil {
		return nil, err
	}
	w := &writer{
		System: s, DumpOptions: o.DumpOptions, src: memory, kernel: d.info, err: d.err, what: "save", started: started,
		final: filepath.Join(dir, DumpName), incomplete: filepath.Join(dir, IncompleteName),
	}
	if err := w.claim(); err != nil {
		return nil, s.full(err, dir, 0, 0)
	}
	defer w.close()
	// The log first: it is small, and often all that anyone needs.
	text, lost, err := kernelLog(memory)
	if err != nil {
		s.log().Warn("the crashed kernel's log can't be read", "err", err)
		m.Warnings = append(m.Warnings, fmt.Sprintf("the crashed kernel's log can't be read: %v", err))
	} else {
		file, err := writeFile(filepath.Join(dir, LogName), text)
		if err != nil {
			w.remove()
			return nil, s.full(err, dir, uint64(len(text)), 0)
		}
		m.Files = append(m.Files, file)
		m.LogLost = lost
	}

	if err := w.saveWith(ctx, m, dir); err != nil {
		return nil, err
	}
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := oldmem.SyncDir(d); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// saveWith writes the dump and its manifest. The dump gets its name last, so
// that where there is one all of it is there.
func (w *writer) saveWith(ctx context.Context, m *Manifest, dir string) error {
	out, err := w.write(ctx)
	if err == nil {
		m.finish(out, w.now())
		err = w.writeManifest(m, dir)
	}
	if err == nil {
		err = w.publish()
	}
	var refusal *Refusal
	var stopped *errStopped
	var disk *errFull
	switch {
	case errors.As(err, &disk):
		return w.full(err, dir, disk.need, disk.done)
	case errors.As(err, &refusal):
		return err
	case errors.As(err, &stopped):
		return fmt.Errorf("%w, the dump is still offered", err)
	case err != nil:
		return fmt.Errorf("save dump: %w; what is in %s is not complete, the dump is still offered", err, dir)
	}
	return nil
}

func (w *writer) writeManifest(m *Manifest, dir string) error {
	b, err := m.encode()
	if err != nil {
		return err
	}
	if _, err = writeFile(filepath.Join(dir, ManifestName), b); oldmem.Full(err) {
		w.remove()
		return &errFull{err: err, done: m.Files[len(m.Files)-1].Written, need: m.Files[len(m.Files)-1].Written + uint64(len(b))}
	}
	return err
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
	return fmt.Errorf("%w: %s of about %s were written, about %s more are needed than the %s that are free: free some, or give another directory; the dump is still offered",
		err, phys.FormatSize(done), phys.FormatSize(size), phys.FormatSize(size-min(size, free)), phys.FormatSize(free))
}

// writeFile writes a small file and syncs it; until then it has another name.
// One that an earlier try left is replaced.
func writeFile(path string, content []byte) (File, error) {
	incomplete := path + "-incomplete"
	for _, name := range []string{incomplete, path} {
		if st, err := os.Lstat(name); err == nil && st.Mode().IsRegular() {
			if err := os.Remove(name); err != nil {
				return File{}, err
			}
		}
	}
	f, err := oldmem.Create(incomplete)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	if err = writeSynced(f, content); err == nil {
		err = oldmem.Publish(f, incomplete, path)
	}
	if err != nil {
		os.Remove(incomplete)
		return File{}, fmt.Errorf("write %s: %w", path, err)
	}
	sum := sha256.Sum256(content)
	return File{Name: filepath.Base(path), Bytes: uint64(len(content)), Written: uint64(len(content)), SHA256: hex.EncodeToString(sum[:])}, nil
}

func writeSynced(f *os.File, content []byte) error {
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Sync()
}
