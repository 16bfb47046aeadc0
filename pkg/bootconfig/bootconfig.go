// Package bootconfig has what the readers of boot configurations share: an
// entry, and the file systems that a configuration may refer to.
//
// There is one package for each format: grub, bls (which chooses as systemd-boot
// does), extlinux, and uki for unified kernel images. Each answers one question:
// which entries are there, and which one would the loader itself start? They
// read []byte and fs.FS, and write nothing, not even what a loader writes while
// it boots (GRUB's next_entry, systemd-boot's counters).
//
// u-root has parsers for these formats, too (pkg/boot/grub and bls, v0.16). They
// are not used because a wrong answer boots the wrong kernel, or one without its
// root=: loader.conf's default is read and dropped; versions are sorted as
// strings; of several options or initrd lines only the last counts, of GRUB's
// initrds only the first; indices don't count submenus; conditions in a script
// are not evaluated. They bring HTTP and TFTP clients into the payload as well.
package bootconfig

import (
	"io"
	"io/fs"
	"path"
	"strings"
)

// Caps on a configuration. The largest real one known, of a machine with some
// hundred btrfs snapshots, has 5 MiB and 1200 entries.
const (
	MaxFile    = 16 << 20 // bytes of one configuration file
	MaxEntries = 4096
)

// Path names a file on a file system.
type Path struct {
	// Device is the name of the file system in its format's terms; "" is the
	// one that the configuration is on.
	Device string
	Name   string // from the file system's top, with a leading slash
}

// Entry is a Linux boot entry.
type Entry struct {
	ID         string // in its configuration; "" if it has none
	Title      string
	Version    string
	Kernel     Path
	Initrds    []Path // in the order in which they are to be unpacked
	DeviceTree Path   // Name "" for none
	Cmdline    string
	// EFI says that the entry starts Kernel as an EFI program, which need not
	// be Linux.
	EFI bool
	// Image says that Kernel is a unified kernel image: kernel, initrd and,
	// where Cmdline is empty, the command line are sections of it.
	Image bool
	// Once is not empty if the loader would start this entry in one boot only,
	// and then forget the request. It identifies the request: another request,
	// even for the same entry, has another value.
	Once string
}

// ReadFile reads a whole file of at most MaxFile bytes. name may have a
// leading slash and dots, as paths in configurations do.
func ReadFile(fsys fs.FS, name string) ([]byte, error) {
	f, err := fsys.Open(Clean(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > MaxFile:
		return nil, &fs.PathError{Op: "read", Path: name, Err: errTooLarge}
	}
	return b, nil
}

type constError string

func (e constError) Error() string { return string(e) }

const errTooLarge = constError("larger than 16 MiB")

// Clean converts name to the form that package fs wants: without a leading
// slash, without dots.
func Clean(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		return "."
	}
	return name
}
