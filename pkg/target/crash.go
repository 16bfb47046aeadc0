//go:build linux

package target

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/warmcore/warmcore/pkg/phys"
)

// CrashDir is a directory that gets a new one for each dump, called
// HOST-YYYY-MM-DD-HH-MM-SS, as kdump's /var/crash.
type CrashDir struct {
	Path string
	Host string // with nothing in it that a file name can't have
}

const dirTime = "2006-01-02-15-04-05"

// maxDirs is how many names New tries: a machine whose clock starts anew in
// each boot has some of them already.
const maxDirs = 3600

// New makes the directory for a dump that is saved at started, and returns its
// path.
func (c CrashDir) New(started time.Time) (string, error) {
	if err := os.MkdirAll(c.Path, 0o755); err != nil {
		return "", fmt.Errorf("make directory for the dump: %w", err)
	}
	var err error
	for i := range time.Duration(maxDirs) {
		dir := filepath.Join(c.Path, c.Host+"-"+started.Add(i*time.Second).UTC().Format(dirTime))
		if err = os.Mkdir(dir, 0o700); err == nil {
			return dir, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	return "", fmt.Errorf("make directory for the dump: %w", err)
}

// Clean removes dumps called name that earlier calls left incomplete, when they
// were killed or the machine went down, in directories that New made: the disk
// may have no room for them and the next one, and without headers they are no
// dumps. The logs beside them stay. It tells log what it did.
func (c CrashDir) Clean(name string, log *slog.Logger) {
	dirs, err := os.ReadDir(c.Path)
	if err != nil {
		return // none, or New will say what is wrong
	}
	incomplete := IncompleteName(name, 0, 1)
	for _, d := range dirs {
		date, ours := strings.CutPrefix(d.Name(), c.Host+"-")
		if _, err := time.Parse(dirTime, date); !ours || err != nil || !d.IsDir() {
			continue
		}
		files, err := os.ReadDir(filepath.Join(c.Path, d.Name()))
		if err != nil {
			continue
		}
		for _, f := range files {
			if f.Name() != incomplete && !strings.HasPrefix(f.Name(), incomplete+".") {
				continue
			}
			path := filepath.Join(c.Path, d.Name(), f.Name())
			size, err := discard(path)
			switch {
			case err == nil:
				log.Warn("removed what an earlier save left incomplete", "file", path, "size", phys.FormatSize(uint64(size)))
			case !errors.Is(err, errClaimed):
				log.Warn("what an earlier save left incomplete stays", "err", err)
			}
		}
	}
}
