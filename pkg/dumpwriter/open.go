package dumpwriter

import (
	"fmt"
	"io/fs"
	"os"
)

// OpenFile opens a dump file that somebody names. What isn't a regular file,
// or is empty, is an error: a dump is not read from its start to its end, and
// to open a pipe would wait for whoever writes to it.
func OpenFile(name string) (*os.File, fs.FileInfo, error) {
	if err := checkFile(name); err != nil {
		return nil, nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, fmt.Errorf("open dump: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("open dump: %w", err)
	}
	return f, st, nil
}

func checkFile(name string) error {
	st, err := os.Stat(name)
	switch {
	case err != nil:
		return fmt.Errorf("open dump: %w", err)
	case st.IsDir():
		return fmt.Errorf("open dump: %s is a directory: name the file in it", name)
	case !st.Mode().IsRegular():
		return fmt.Errorf("open dump: %s is not a regular file: write the dump to one first", name)
	case st.Size() == 0:
		return fmt.Errorf("open dump: %s: the file is empty", name)
	}
	return nil
}
