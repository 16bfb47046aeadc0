package dumpwriter

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/vmcore/checksum"
)

// Verification is how a file compares with its manifest.
type Verification struct {
	Blocks int     `json:"blocks"`
	Block  int     `json:"block_bytes"`
	Bad    []Block `json:"bad"`             // in the order of the file
	Error  string  `json:"error,omitempty"` // why it could not be verified to the end
}

// Block is a damaged part of a file.
type Block struct {
	Offset int64 `json:"offset"`
	Bytes  int64 `json:"bytes"`
}

// Verify compares the file r, of size bytes, with the checksums in the
// manifest beside name. There is a Verification also with an error, which says
// in one line what is wrong.
func (w Writer) Verify(r io.ReaderAt, name string, size int64) (*Verification, error) {
	v := &Verification{Block: checksum.BlockSize, Bad: []Block{}}
	fail := func(err error) (*Verification, error) {
		v.Error = err.Error()
		return v, fmt.Errorf("verify %s: %w", name, err)
	}
	sums, err := sumsBeside(name)
	if err != nil {
		return fail(err)
	}
	v.Blocks = len(sums.Blocks)
	started := w.now()
	err = checksum.Verify(r, size, *sums, func(b checksum.Bad) {
		v.Bad = append(v.Bad, Block{b.Offset, b.Size})
	}, func(done int64) {
		w.progress(outcome.Progress{What: "verify " + filepath.Base(name), Done: uint64(done), Total: uint64(size), Elapsed: w.now().Sub(started)})
	})
	if err != nil {
		return fail(err)
	}
	if n := len(v.Bad); n > 0 {
		return v, fmt.Errorf("verify %s: %d of %d blocks are damaged, the first at offset %#x", name, n, v.Blocks, v.Bad[0].Offset)
	}
	return v, nil
}

// sumsBeside returns the checksums of the file name out of the manifest beside
// it.
func sumsBeside(name string) (*checksum.Sums, error) {
	path := filepath.Join(filepath.Dir(name), manifest.FileName)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s with its checksums beside it", manifest.FileName)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := manifest.Read(f, path)
	if err != nil {
		return nil, err
	}
	sums := m.Sums(filepath.Base(name))
	if sums == nil {
		return nil, fmt.Errorf("%s has no checksums of %s", path, filepath.Base(name))
	}
	return sums, nil
}
