// Package dumpfile opens dump files of all known formats; the first bytes of a
// file tell its format.
package dumpfile

import (
	"fmt"
	"io"

	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/elfdump"
	"github.com/warmcore/warmcore/pkg/vmcore/flattened"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
)

// File is a file and its size in bytes.
type File struct {
	io.ReaderAt
	Size int64
}

// FormatFlattened is appended to Info.Format of a dump in makedumpfile's flattened
// form.
const FormatFlattened = " flattened"

// others lists, by their first bytes, files that people mistake for readable
// dumps, and what to tell those people.
var others = []struct{ magic, what string }{
	{"\x1f\x8b", "the file is compressed by gzip: decompress it first"},
	{"\xfd7zXZ\x00", "the file is compressed by xz: decompress it first"},
	{"\x28\xb5\x2f\xfd", "the file is compressed by zstd: decompress it first"},
	{"BZh", "the file is compressed by bzip2: decompress it first"},
	{"\x04\x22\x4d\x18", "the file is compressed by lz4: decompress it first"},
	{"DISKDUMP", "a file of diskdump, the predecessor of kdump, which is not understood"},
	{"LibvirtQemudSave", "the saved state of a libvirt guest, which is not understood: dump its memory with virsh dump --memory-only"},
	{"LibvirtQemudPart", "the saved state of a libvirt guest, cut off: dump its memory with virsh dump --memory-only"},
	{"QEVM", "the saved state of a QEMU guest, which is not understood: dump its memory with dump-guest-memory"},
	{"\xd0\xbe\xd2\xbe", vmware},
	{"\xd1\xba\xd1\xba", vmware},
	{"\xd2\xbe\xd2\xbe", vmware},
	{"\xd3\xbe\xd3\xbe", vmware},
	{"EMiL", "a file of LiME, which is not understood"},
	{"PAGEDU", "a dump of Windows, which is not understood"},
	{"[    0.000000]", "the text of a log, not a dump"},
}

const vmware = "the saved state of a VMware guest, which is not understood: make an ELF file of it with vmss2core"

// New opens the dump in r, of size bytes: an ELF core file, a kdump file, or
// one of these in makedumpfile's flattened form, which is read in place after
// a walk through its records.
func New(r io.ReaderAt, size int64) (vmcore.Dump, error) {
	magic := make([]byte, len(flattened.Signature))
	n, err := r.ReadAt(magic, 0)
	magic = magic[:n]
	is := func(want string) bool { return len(magic) >= len(want) && string(magic[:len(want)]) == want }
	switch {
	case is(elfdump.Magic):
		return elfdump.New(r, size)
	case is(kdump.Signature):
		return opened(kdump.New(r, size))
	case is(flattened.Signature):
		return openFlattened(r, size)
	case n == 0 && size > 0:
		return nil, fmt.Errorf("open dump: %w", err)
	case n == 0:
		return nil, fmt.Errorf("open dump: the file is empty")
	}
	for _, o := range others {
		if is(o.magic) {
			return nil, fmt.Errorf("open dump: %s", o.what)
		}
	}
	return nil, fmt.Errorf("open dump: %w", &vmcore.FormatError{Field: "magic",
		Problem: fmt.Sprintf("%q is neither that of an ELF file (%q) nor of kdump (%q) nor of makedumpfile's flattened form", magic, elfdump.Magic, kdump.Signature)})
}

// opened converts a pointer that may be nil to an interface that is then nil,
// too.
func opened(d *kdump.Dump, err error) (vmcore.Dump, error) {
	if err != nil {
		return nil, err
	}
	return d, nil
}

func openFlattened(r io.ReaderAt, size int64) (vmcore.Dump, error) {
	f, err := flattened.NewReader(r, size)
	if err != nil {
		return nil, fmt.Errorf("open dump: %w", err)
	}
	magic := make([]byte, len(kdump.Signature))
	if _, err := f.ReadAt(magic, 0); err == nil && string(magic) == flattened.Signature[:len(magic)] {
		// A flattened form inside another one could go on without end,
		// and no program makes one.
		return nil, fmt.Errorf("open dump: %w", &vmcore.FormatError{Field: "magic", Problem: "a flattened file in a flattened file"})
	}
	d, err := New(f, f.Size())
	if err != nil {
		return nil, fmt.Errorf("in flattened form: %w", err)
	}
	info := d.Info()
	info.Format += FormatFlattened
	if !f.Complete() {
		info.Incomplete = true
		info.Warn("the flattened file has no end: it was cut off")
	}
	return d, nil
}

// IsPart says whether d is a file of a split dump, and not all of it.
func IsPart(d vmcore.Dump) bool {
	k, ok := d.(*kdump.Dump)
	return ok && k.SubHeader().Split != 0
}

// Join opens the files of a split dump as one, in any order. A single file is
// opened as by New.
func Join(files ...File) (vmcore.Dump, error) {
	if len(files) == 1 {
		return New(files[0], files[0].Size)
	}
	parts := make([]*kdump.Dump, len(files))
	for i, f := range files {
		d, err := New(f, f.Size)
		if err != nil {
			return nil, fmt.Errorf("file %d of split dump: %w", i+1, err)
		}
		k, ok := d.(*kdump.Dump)
		if !ok {
			return nil, fmt.Errorf("file %d of split dump: it is of format %s, and only kdump files are split", i+1, d.Info().Format)
		}
		if !IsPart(d) {
			return nil, fmt.Errorf("file %d of split dump: it is a dump by itself, not a part of one", i+1)
		}
		parts[i] = k
	}
	j, err := kdump.Join(parts...)
	if err != nil {
		return nil, err
	}
	return j, nil
}
