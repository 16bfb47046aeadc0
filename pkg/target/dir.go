//go:build linux

package target

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/pkg/outcome"
)

// Dir is a directory of this machine. Until Commit a dump's file is called
// NAME-incomplete, or NAME-incomplete.1 and so on if there are several.
type Dir struct {
	prefix string // of paths in it: the directory with its slash, or ""
	made   bool   // for this dump alone, by MakeDir
	keep   []fs.FileInfo
	files  []*dirFile
	named  bool // the files have their names

	// What Commit calls, replaced by a test of the order; nil means publish
	// and syncDir.
	publish func(f *os.File, from, to string) error
	sync    func(dir string) error
}

// dirFile is a file of a dump, and the claim on its incomplete name.
type dirFile struct {
	*os.File
	incomplete, final string // paths
}

// Name implements File, in place of the name that the file was opened with.
func (f *dirFile) Name() string { return filepath.Base(f.final) }

// Size implements RandomAccess.
func (f *dirFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Sync implements RandomAccess.
func (f *dirFile) Sync() error {
	if err := f.File.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", f.incomplete, err)
	}
	return nil
}

// MakeDir makes a directory for one dump, with its parents. It may exist.
func MakeDir(path string) (*Dir, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make directory for the dump: %w", err)
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make directory for the dump: %w", err)
	}
	return &Dir{prefix: path + "/", made: true}, nil
}

func (d *Dir) dir() string { return filepath.Dir(d.prefix + "x") }

func (d *Dir) path(name string) string {
	if d.made {
		return filepath.Join(d.prefix, name)
	}
	return d.prefix + name // as the user wrote it
}

func (d *Dir) String() string {
	if d.made {
		return d.prefix[:len(d.prefix)-1]
	}
	return d.dir()
}

// suffix follows the name of a dump that is not whole.
const suffix = "-incomplete"

// IncompleteName returns the name that part i of a dump has until Commit.
func IncompleteName(name string, i, parts int) string { return PartName(name+suffix, i, parts) }

// Create implements Target. Other processes can't create the same files until the
// target is closed, or until this process ends in any way. What a process that
// ended left under an incomplete name is replaced.
func (d *Dir) Create(_ context.Context, name string, parts int) ([]File, error) {
	if _, err := os.Lstat(d.path(name)); err == nil && d.made {
		return nil, outcome.Refuse("give another directory", "%s has a dump already", d)
	}
	for i := range parts {
		if err := d.spare(d.path(IncompleteName(name, i, parts))); err != nil {
			return nil, err
		}
	}
	if err := d.taken(name, parts); err != nil {
		return nil, err
	}
	var files []File
	for i := range parts {
		incomplete := d.path(IncompleteName(name, i, parts))
		f, err := claim(incomplete)
		if errors.Is(err, errClaimed) {
			err = outcome.Refuse("wait until it is done, or give another name", "another process is writing %s", incomplete)
		}
		if err != nil {
			return nil, errors.Join(err, d.Abort())
		}
		own := &dirFile{f, incomplete, d.path(PartName(name, i, parts))}
		d.files = append(d.files, own)
		files = append(files, own)
	}
	// Checked again: another process may have committed in between.
	if err := d.taken(name, parts); err != nil {
		return nil, errors.Join(err, d.Abort())
	}
	return files, nil
}

// spare refuses the name of a source file: an incomplete file may be one
// that somebody wants to read, and claim would remove it.
func (d *Dir) spare(path string) error {
	st, err := os.Lstat(path)
	if err != nil {
		return nil // no such file, or claim will say what is wrong
	}
	if slices.ContainsFunc(d.keep, func(k fs.FileInfo) bool { return os.SameFile(st, k) }) {
		return outcome.Refuse("give another name", "%s is to be read, and would be replaced", path)
	}
	return nil
}

// taken refuses if a file has one of the final names. Without the first of
// them the others are no dump: they are left from a commit that was killed.
func (d *Dir) taken(name string, parts int) error {
	first := d.path(PartName(name, 0, parts))
	for i := range parts {
		path := d.path(PartName(name, i, parts))
		if _, err := os.Lstat(path); err != nil {
			continue
		}
		if _, err := os.Lstat(first); err != nil {
			return outcome.Refuse("remove it, or give another name", "%s exists already, without %s: it may be left from a run that was killed", path, first)
		}
		return exists(path)
	}
	return nil
}

func exists(path string) error {
	return outcome.Refuse("give another name", "%s exists already", path)
}

// Put implements Putter. The content is on disk when Put returns, its name when
// Commit does.
func (d *Dir) Put(_ context.Context, name string, content []byte) error {
	path := d.path(name)
	incomplete := path + suffix
	for _, old := range []string{incomplete, path} {
		if st, err := os.Lstat(old); err == nil && st.Mode().IsRegular() {
			if err := os.Remove(old); err != nil {
				return err
			}
		}
	}
	f, err := create(incomplete)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.Write(content); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = publish(f, incomplete, path)
	}
	if err != nil {
		os.Remove(incomplete)
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Commit implements Target. It syncs the directory before part 1 gets its name, so
// that after a loss of power, too, all parts have their names if part 1 has.
func (d *Dir) Commit(context.Context) (durable bool, err error) {
	publish, sync := publish, syncDir
	if d.publish != nil {
		publish, sync = d.publish, d.sync
	}
	for i := len(d.files) - 1; i >= 0; i-- {
		if i == 0 && len(d.files) > 1 {
			if err := sync(d.dir()); err != nil {
				d.unname(1)
				return false, err
			}
		}
		f := d.files[i]
		err := publish(f.File, f.incomplete, f.final)
		if err == nil {
			continue
		}
		d.unname(i + 1)
		if errors.Is(err, fs.ErrExist) {
			return false, errors.Join(exists(f.final), d.Abort())
		}
		return false, err
	}
	d.named = true
	if err := sync(d.dir()); err != nil {
		return false, err
	}
	if d.made {
		if err := sync(filepath.Dir(d.String())); err != nil {
			return false, err
		}
	}
	return true, nil
}

// unname takes the final names back from the files from number i on.
func (d *Dir) unname(i int) {
	for _, f := range d.files[i:] {
		publish(f.File, f.final, f.incomplete) // what fails here is explained by what failed before
	}
}

// Abort implements Target. If another file has the name by now, that stays.
func (d *Dir) Abort() error {
	if d.named {
		return nil
	}
	var errs []error
	for _, f := range d.files {
		errs = append(errs, remove(f.File, f.incomplete))
	}
	return errors.Join(errs...)
}

// Close implements Target.
func (d *Dir) Close() error {
	var errs []error
	for _, f := range d.files {
		errs = append(errs, f.Close())
	}
	d.files = nil
	return errors.Join(errs...)
}

// Free implements Target.
func (d *Dir) Free() (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir(), &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", d.dir(), err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// syncDir makes the names in dir survive a loss of power.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}
