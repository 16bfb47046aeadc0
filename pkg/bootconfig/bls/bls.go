// Package bls reads Boot Loader Specification entries and finds out which one
// systemd-boot would start
// (https://uapi-group.org/specifications/specs/boot_loader_specification/).
//
// Entries are loader/entries/*.conf (type 1) and unified kernel images in
// EFI/Linux (type 2), on the EFI system partition or on an extended boot
// partition. An entry that counts its tries (+LEFT-DONE in the file's name) is
// not renamed: nothing is written. With no tries left it comes last, as for
// systemd-boot.
package bls

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/warmcore/warmcore/pkg/bootconfig"
	"github.com/warmcore/warmcore/pkg/bootconfig/uki"
)

// Entry is an entry and what determines its place in the menu.
type Entry struct {
	bootconfig.Entry
	File       string // its name, with counters and suffix
	SortKey    string
	MachineID  string
	HasOptions bool // there was an options line
	// TriesLeft is -1 for an entry without a try counter.
	TriesLeft, TriesDone int
}

// maxEntry bounds the text of an entry; the command line is most of it.
const maxEntry = 1 << 16

// ReadEntries reads the type 1 entries in a folder that are for an
// architecture (amd64 or arm64), in the order of their names.
func ReadEntries(fsys fs.FS, dir, arch string) (entries []Entry, warnings []string) {
	names, err := fs.ReadDir(fsys, dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			warnings = append(warnings, fmt.Sprintf("%s: %v", dir, err))
		}
		return nil, warnings
	}
	for _, n := range names {
		if n.IsDir() || !strings.HasSuffix(strings.ToLower(n.Name()), ".conf") {
			continue
		}
		if len(entries) == bootconfig.MaxEntries {
			return entries, append(warnings, fmt.Sprintf("%s: more than %d entries; the rest is left out", dir, bootconfig.MaxEntries))
		}
		b, err := bootconfig.ReadFile(fsys, path.Join(dir, n.Name()))
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("%s: %v", path.Join(dir, n.Name()), err))
			continue
		}
		if len(b) > maxEntry {
			warnings = append(warnings, fmt.Sprintf("%s: larger than %d bytes; left out", path.Join(dir, n.Name()), maxEntry))
			continue
		}
		if e, ok := ParseEntry(n.Name(), b, arch); ok {
			entries = append(entries, e)
		}
	}
	return entries, warnings
}

// lines yields the keys and values of an entry or of loader.conf: words
// divided by spaces or tabs, without comments, and without quotes around the
// whole value.
func lines(b []byte) func(yield func(key, value string) bool) {
	return func(yield func(key, value string) bool) {
		text := strings.TrimPrefix(string(b), "\ufeff") // as some editors begin a file
		for line := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '\n' || r == '\r' }) {
			line = strings.Trim(line, " \t")
			if line == "" || line[0] == '#' {
				continue
			}
			end := strings.IndexAny(line, " \t")
			if end < 0 {
				continue
			}
			key, value := line[:end], strings.TrimLeft(line[end:], " \t")
			if len(value) >= 2 && value[0] == '"' && strings.IndexByte(value[1:], '"') == len(value)-2 {
				value = value[1 : len(value)-1]
			}
			if !yield(key, value) {
				return
			}
		}
	}
}

// ParseEntry reads one entry; ok says whether it may be a Linux entry for arch.
func ParseEntry(file string, b []byte, arch string) (e Entry, ok bool) {
	e.File = file
	e.ID, e.TriesLeft, e.TriesDone = cutTries(file)
	ok = true
	var options []string
	for key, value := range lines(b) {
		switch key {
		case "title":
			e.Title = value
		case "version":
			e.Version = value
		case "machine-id":
			e.MachineID = value
		case "sort-key":
			e.SortKey = value
		case "architecture":
			ok = ok && isArch(value, arch)
		case "linux":
			e.Kernel.Name, e.EFI = slashes(value), false
		case "efi", "uki":
			e.Kernel.Name, e.EFI = slashes(value), true
		case "initrd":
			e.Initrds = append(e.Initrds, bootconfig.Path{Name: slashes(value)})
		case "devicetree":
			e.DeviceTree.Name = slashes(value)
		case "options":
			e.HasOptions = true
			options = append(options, value)
		}
	}
	e.Cmdline = strings.Join(options, " ")
	if e.Title == "" {
		e.Title = e.ID
	}
	return e, ok && e.Kernel.Name != ""
}

// slashes makes a path that EFI understands, too, one with slashes.
func slashes(s string) string {
	return "/" + strings.TrimLeft(strings.ReplaceAll(s, `\`, "/"), "/")
}

// DecodeVariable reads a variable as efivarfs shows it: 4 bytes of attributes,
// then UTF-16 with a NUL at the end.
func DecodeVariable(b []byte) string {
	var units []uint16
	for i := 4; i+1 < len(b) && i < maxEntry; i += 2 {
		unit := uint16(b[i]) | uint16(b[i+1])<<8
		if unit == 0 {
			break
		}
		units = append(units, unit)
	}
	return string(utf16.Decode(units))
}

func isArch(value, arch string) bool {
	names := map[string][]string{"amd64": {"x64", "x86-64", "x86_64", "amd64"}, "arm64": {"aa64", "arm64", "aarch64"}}[arch]
	return slices.Contains(names, strings.ToLower(value))
}

// cutTries takes the counters out of a file's name: NAME+LEFT-DONE.conf or
// NAME+LEFT.conf.
func cutTries(file string) (id string, left, done int) {
	suffix := path.Ext(file)
	name := strings.TrimSuffix(file, suffix)
	plus := strings.LastIndexByte(name, '+')
	if plus < 0 {
		return file, -1, 0
	}
	l, d, hasDone := strings.Cut(name[plus+1:], "-")
	left, err := strconv.Atoi(l)
	if err == nil && hasDone {
		done, err = strconv.Atoi(d)
	}
	if err != nil || left < 0 || done < 0 || l[0] == '+' {
		return file, -1, 0
	}
	return name[:plus] + suffix, left, done
}

// compare orders entries as systemd-boot's menu does (boot_entry_compare
// in src/boot/boot.c, v256).
func compare(a, b Entry) int {
	if r := trueLast(a.TriesLeft == 0, b.TriesLeft == 0); r != 0 {
		return r
	}
	if r := trueLast(a.SortKey == "", b.SortKey == ""); r != 0 {
		return r
	}
	if a.SortKey != "" {
		if r := cmp.Or(strings.Compare(a.SortKey, b.SortKey), strings.Compare(a.MachineID, b.MachineID), CompareVersions(b.Version, a.Version)); r != 0 {
			return r
		}
	}
	if r := CompareVersions(strings.ToLower(b.ID), strings.ToLower(a.ID)); r != 0 {
		return r
	}
	if a.TriesLeft < 0 || b.TriesLeft < 0 {
		return 0
	}
	return cmp.Or(cmp.Compare(b.TriesLeft, a.TriesLeft), cmp.Compare(a.TriesDone, b.TriesDone))
}

func trueLast(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// Variables are systemd-boot's EFI variables; empty ones are not set.
type Variables struct {
	OneShot    string // LoaderEntryOneShot
	Default    string // LoaderEntryDefault
	LastBooted string // LoaderEntryLastBooted, for "@saved"
}

// Config is the menu that systemd-boot would show.
type Config struct {
	Entries  []bootconfig.Entry // the default one first, then in the order of its menu
	Warnings []string
}

// Read finds what systemd-boot would boot from a file system with entries.
func Read(fsys fs.FS, arch string, v Variables) Config {
	var c Config
	all, warnings := ReadEntries(fsys, "loader/entries", arch)
	if len(all) == 0 {
		// Without a boot partition, kernel-install writes the entries into
		// the folder boot of the root file system.
		var more []string
		all, more = ReadEntries(fsys, "boot/loader/entries", arch)
		warnings = append(warnings, more...)
	}
	images, more := readImages(fsys)
	c.Warnings = append(warnings, more...)
	all = append(all, images...)
	slices.SortStableFunc(all, compare)
	preferred := defaultPattern(fsys, v)
	for _, pattern := range []string{v.OneShot, preferred} {
		if i := match(all, pattern); i >= 0 {
			e := all[i]
			if pattern == v.OneShot {
				e.Once = "LoaderEntryOneShot=" + pattern
			}
			c.Entries = append(c.Entries, e.Entry)
			all = slices.Delete(all, i, i+1)
			if e.Once != "" {
				continue
			}
			break
		}
	}
	for _, e := range all {
		c.Entries = append(c.Entries, e.Entry)
	}
	return c
}

// defaultPattern is the pattern of the permanent default entry: from the
// variable, else from loader.conf.
func defaultPattern(fsys fs.FS, v Variables) string {
	pattern := v.Default
	if pattern == "" {
		for _, name := range []string{"loader/loader.conf", "boot/loader/loader.conf"} {
			b, err := bootconfig.ReadFile(fsys, name)
			if err != nil {
				continue
			}
			for key, value := range lines(b) {
				if key == "default" {
					pattern = value
				}
			}
			break
		}
	}
	if pattern == "@saved" {
		return v.LastBooted
	}
	return pattern
}

// match finds the first entry that matches a pattern with *, ? and []. Old
// versions of systemd-boot wanted the pattern without the suffix .conf.
func match(entries []Entry, pattern string) int {
	if pattern == "" {
		return -1
	}
	pattern = strings.ToLower(pattern)
	return slices.IndexFunc(entries, func(e Entry) bool {
		id := strings.ToLower(e.ID)
		for _, name := range []string{id, strings.TrimSuffix(id, path.Ext(id))} {
			if ok, err := path.Match(pattern, name); ok && err == nil || name == pattern {
				return true
			}
		}
		return false
	})
}

// readImages finds unified kernel images.
func readImages(fsys fs.FS) (entries []Entry, warnings []string) {
	for _, dir := range []string{"EFI/Linux", "boot/EFI/Linux"} {
		names, err := fs.ReadDir(fsys, dir)
		if err != nil {
			continue
		}
		for _, n := range names {
			if n.IsDir() || !strings.HasSuffix(strings.ToLower(n.Name()), ".efi") || len(entries) == bootconfig.MaxEntries {
				continue
			}
			name := path.Join(dir, n.Name())
			e, err := readImage(fsys, name)
			if err != nil {
				warnings = append(warnings, fmt.Sprintf("%s: %v", name, err))
				continue
			}
			entries = append(entries, e)
		}
	}
	return entries, warnings
}

func readImage(fsys fs.FS, name string) (e Entry, err error) {
	f, err := fsys.Open(name)
	if err != nil {
		return e, err
	}
	defer f.Close()
	at, ok := f.(io.ReaderAt)
	if !ok {
		return e, errors.New("can't be read at an offset")
	}
	img, err := uki.Parse(at)
	if err != nil {
		return e, err
	}
	e.File = path.Base(name)
	e.ID, e.TriesLeft, e.TriesDone = cutTries(e.File)
	e.Kernel.Name, e.EFI, e.Image = "/"+name, true, true
	release, err := uki.Text(at, img.OSRelease)
	if err != nil {
		return Entry{}, err
	}
	os := map[string]string{}
	for line := range strings.Lines(release) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			os[key] = strings.Trim(value, `"'`)
		}
	}
	e.Title = cmp.Or(os["PRETTY_NAME"], os["IMAGE_ID"], os["NAME"], os["ID"], e.ID)
	e.Version = cmp.Or(os["IMAGE_VERSION"], os["VERSION"], os["VERSION_ID"], os["BUILD_ID"])
	e.SortKey = cmp.Or(os["IMAGE_ID"], os["ID"])
	return e, nil
}
