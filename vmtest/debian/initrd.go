package debian

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/warmcore/warmcore/pkg/image/cpio"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
	"github.com/warmcore/warmcore/vmtest/holes"
)

// Modules that the stories need on each architecture, besides its own.
// Those that they depend on are added, not listed: they differ between
// kernels. Modules built into a kernel are left out.
var Modules = []string{
	"virtio_pci", "virtio_blk", "virtio_console", "ext4", // disk and port
	"i6300esb",
}

// memoryModules are needed to give preserved memory back. A kernel that can't
// take memory lacks some of them.
var memoryModules = []string{"kmem", "device_dax", "dax_pmem", "nd_pmem", "nd_btt", "libnvdimm"}

// moduleIndex are the files beside modules.dep that modprobe reads.
var moduleIndex = []string{
	"modules.dep", "modules.dep.bin", "modules.alias", "modules.alias.bin", "modules.softdep", "modules.symbols.bin",
	"modules.builtin", "modules.builtin.bin", "modules.builtin.alias.bin", "modules.builtin.modinfo", "modules.order", "modules.devname",
}

// Initrd is the contents of the normal kernel's initrd.
type Initrd struct {
	Kernel  Kernel
	Kmod    Programs
	Init    string            // the guest program, of package build
	Files   map[string]string // executables: path in the guest to path on the host
	Padding int64             // bytes of a file that doesn't compress
}

// Write writes the archive to file. The same input gives the same bytes.
func (i Initrd) Write(file string) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, holes.Chunk)
	if err := i.write(cpio.NewWriter(w)); err != nil {
		return fmt.Errorf("write initrd %s: %w", file, err)
	}
	return w.Flush()
}

func (i Initrd) write(c *cpio.Writer) error {
	if err := addFile(c, "init", i.Init); err != nil {
		return err
	}
	kmod, err := i.Kmod.files(kmodProgram)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(kmod)) {
		if err := addFile(c, name, kmod[name]); err != nil {
			return err
		}
	}
	for _, name := range []string{"modprobe", "depmod", "insmod", "rmmod", "lsmod", "modinfo"} {
		c.Link("sbin/"+name, "/"+kmodProgram)
	}
	index, err := readModules(os.DirFS(i.Kernel.Modules))
	if err != nil {
		return err
	}
	names := Modules
	takes, err := i.Kernel.TakesMemory()
	if err != nil {
		return err
	}
	if takes {
		names = slices.Concat(names, memoryModules, i.Kmod.Arch.modules)
	}
	modules, err := index.closure(names)
	if err != nil {
		return err
	}
	lib := path.Join("lib/modules", i.Kernel.Release)
	for _, name := range slices.Concat(moduleIndex, modules) {
		from := filepath.Join(i.Kernel.Modules, name)
		if _, err := os.Stat(from); err != nil && slices.Contains(moduleIndex, name) {
			continue // not every depmod writes them all
		}
		if err := addFile(c, path.Join(lib, name), from); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(i.Files)) {
		if err := addFile(c, name, i.Files[name]); err != nil {
			return err
		}
	}
	if i.Padding > 0 {
		c.File("padding", i.Padding, &noise{})
	}
	return c.Close()
}

// addFile adds an executable with the contents of the host's file at from.
func addFile(c *cpio.Writer, name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	c.File(name, fi.Size(), f)
	return nil
}

// noise is bytes that look random, always the same.
type noise struct {
	page  [phys.PageSize]byte
	index uint64
	left  []byte
}

func (n *noise) Read(b []byte) (int, error) {
	if len(n.left) == 0 {
		if err := wire.Fill(n.page[:], 0, n.index); err != nil {
			return 0, err
		}
		binary.LittleEndian.PutUint64(n.page[:], ^n.index)
		n.index++
		n.left = n.page[:]
	}
	k := copy(b, n.left)
	n.left = n.left[k:]
	return k, nil
}

var _ io.Reader = (*noise)(nil)

// shortHash returns 16 hexadecimal digits that stand for s.
func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}
