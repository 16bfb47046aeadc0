package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/warmcore/warmcore/pkg/agent"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/checksum"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/summary"
)

const (
	manifestFile = "manifest.json" // beside the dump
	maxManifest  = 1 << 30         // bytes: the checksums of maxBlocks blocks
	maxBadShown  = 8               // damaged blocks shown to people
)

// inspectResult is what inspect --json prints. Each dump is a
// summary.Summary; the files of a split dump are one.
type inspectResult struct {
	Schema int             `json:"schema"` // 1
	Dumps  []inspectedDump `json:"dumps"`
}

type inspectedDump struct {
	Files []inspectedFile `json:"files"`
	*summary.Summary
}

type inspectedFile struct {
	Name   string        `json:"name"`
	Bytes  int64         `json:"bytes"`
	Verify *verification `json:"verify,omitempty"` // with --verify
	file   *os.File
}

// verification is how a file compares with its manifest.
type verification struct {
	Blocks int     `json:"blocks"`
	Block  int     `json:"block_bytes"`
	Bad    []block `json:"bad"`             // in the order of the file
	Error  string  `json:"error,omitempty"` // why it could not be verified to the end
}

type block struct {
	Offset int64 `json:"offset"`
	Bytes  int64 `json:"bytes"`
}

// reportedError is a failure whose particulars are in the result that was
// printed: --json adds nothing to it.
type reportedError struct{ error }

func (e reportedError) Unwrap() error { return e.error }

func inspect(c *call) error {
	if len(c.args) == 0 {
		return &usageError{"want the name of a dump file"}
	}
	var files []inspectedFile
	defer func() {
		for _, f := range files {
			f.file.Close()
		}
	}()
	for _, name := range c.args {
		f, err := openDump(name)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	result := inspectResult{Schema: 1}
	if err := result.open(files, c.system.FindVMCOREINFO); err != nil {
		return err
	}
	var failed error
	if c.verify {
		for _, d := range result.Dumps {
			for i := range d.Files {
				if err := d.Files[i].verify(c); err != nil {
					failed = errors.Join(failed, err)
				}
			}
		}
	}
	if err := c.print(result, result.lines()...); err != nil {
		return err
	}
	if failed != nil {
		return reportedError{failed}
	}
	return nil
}

func openDump(name string) (inspectedFile, error) {
	f, st, err := agent.OpenDump(name)
	if err != nil {
		return inspectedFile{}, err
	}
	return inspectedFile{Name: name, Bytes: st.Size(), file: f}, nil
}

// open opens files as the parts of one split dump if they are that, else each
// by itself. Complete looks for what the file of a dump lacks.
func (r *inspectResult) open(files []inspectedFile, complete func(vmcore.Dump)) error {
	var dumps []vmcore.Dump
	var parts []dumpfile.File
	for _, f := range files {
		d, err := dumpfile.Open(f.file, f.Bytes)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		dumps = append(dumps, d)
		parts = append(parts, dumpfile.File{ReaderAt: f.file, Size: f.Bytes})
	}
	if len(files) > 1 && !slices.ContainsFunc(dumps, func(d vmcore.Dump) bool { return !dumpfile.IsPart(d) }) {
		d, err := dumpfile.Join(parts...)
		if err != nil {
			return err
		}
		complete(d)
		r.Dumps = []inspectedDump{{files, summary.Of(d)}}
		return nil
	}
	for i, d := range dumps {
		complete(d)
		r.Dumps = append(r.Dumps, inspectedDump{files[i : i+1], summary.Of(d)})
	}
	return nil
}

// verify compares the file with the checksums in the manifest beside it. The
// error says in one line what is wrong.
func (f *inspectedFile) verify(c *call) error {
	v := &verification{Block: checksum.BlockSize, Bad: []block{}}
	f.Verify = v
	fail := func(err error) error {
		v.Error = err.Error()
		return fmt.Errorf("verify %s: %w", f.Name, err)
	}
	sums, err := manifestSums(f.Name)
	if err != nil {
		return fail(err)
	}
	v.Blocks = len(sums.Blocks)
	started := time.Now()
	err = checksum.Verify(f.file, f.Bytes, *sums, func(b checksum.Bad) {
		v.Bad = append(v.Bad, block{b.Offset, b.Size})
	}, func(done int64) {
		c.system.Progress(agent.Progress{What: "verify " + filepath.Base(f.Name), Done: uint64(done), Total: uint64(f.Bytes), Elapsed: time.Since(started)})
	})
	if err != nil {
		return fail(err)
	}
	if n := len(v.Bad); n > 0 {
		return fmt.Errorf("verify %s: %d of %d blocks are damaged, the first at offset %#x", f.Name, n, v.Blocks, v.Bad[0].Offset)
	}
	return nil
}

// manifestSums returns the checksums of the file name out of the manifest.json
// beside it.
func manifestSums(name string) (*checksum.Sums, error) {
	path := filepath.Join(filepath.Dir(name), manifestFile)
	m, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s with its checksums beside it", manifestFile)
	}
	if err != nil {
		return nil, err
	}
	defer m.Close()
	text, err := io.ReadAll(io.LimitReader(m, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(text) > maxManifest {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxManifest)
	}
	var manifest agent.Manifest
	if err := json.Unmarshal(text, &manifest); err != nil {
		return nil, fmt.Errorf("decode %s: %w", path, err)
	}
	for _, f := range manifest.Files {
		if f.Name == filepath.Base(name) && f.CRC32C != nil {
			return f.CRC32C, nil
		}
	}
	return nil, fmt.Errorf("%s has no checksums of %s", path, filepath.Base(name))
}

// lines prints the dumps for people, with an empty line between two.
func (r inspectResult) lines() []string {
	var lines []string
	for i, d := range r.Dumps {
		if i > 0 {
			lines = append(lines, "")
		}
		for _, f := range d.Files {
			lines = append(lines, summary.Line("file", fmt.Sprintf("%s, %s", f.Name, phys.FormatSize(uint64(f.Bytes)))))
		}
		lines = append(lines, d.Summary.Lines()...)
		for _, f := range d.Files {
			lines = append(lines, f.Verify.lines(f.Name)...)
		}
	}
	return lines
}

func (v *verification) lines(name string) []string {
	switch {
	case v == nil:
		return nil
	case v.Error != "":
		return []string{summary.Line("verify", fmt.Sprintf("%s: %s", name, v.Error))}
	case len(v.Bad) == 0:
		return []string{summary.Line("verified", fmt.Sprintf("%s: all %d blocks are as they were written", name, v.Blocks))}
	}
	lines := []string{summary.Line("DAMAGED", fmt.Sprintf("%s: %d of %d blocks", name, len(v.Bad), v.Blocks))}
	for i, b := range v.Bad {
		if i == maxBadShown {
			return append(lines, summary.Line("", fmt.Sprintf("and %d more", len(v.Bad)-i)))
		}
		lines = append(lines, summary.Line("", fmt.Sprintf("%d bytes at offset %#x", b.Bytes, b.Offset)))
	}
	return lines
}
