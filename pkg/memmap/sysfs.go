package memmap

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
)

// maxAttribute caps how much of a sysfs attribute is read, in bytes: one page.
const maxAttribute = 4096

// Sysfs reads /sys/firmware/memmap, the map as firmware gave it to the running
// kernel, from fsys, which has a folder for each entry (0, 1, ...) with the
// files start, end (inclusive) and type. Source: drivers/firmware/memmap.c
// (v6.12). Hot-added memory is in it too, except for memory that the kmem
// driver added.
func Sysfs(fsys fs.FS) (Map, error) {
	m, err := readSysfs(fsys)
	if err != nil {
		return Map{}, fmt.Errorf("read firmware memory map: %w", err)
	}
	return m, nil
}

func readSysfs(fsys fs.FS) (Map, error) {
	dirs, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return Map{}, err
	}
	if len(dirs) > MaxEntries {
		return Map{}, ErrTooMany
	}
	// ReadDir sorts by name, 10 before 2; the kernel's order is by number.
	byNumber := make(map[int]string, len(dirs))
	for _, d := range dirs {
		n, err := strconv.Atoi(d.Name())
		if err != nil || n < 0 || n >= MaxEntries || strconv.Itoa(n) != d.Name() {
			return Map{}, fmt.Errorf("entry %q: not a number below %d", d.Name(), MaxEntries)
		}
		byNumber[n] = d.Name()
	}
	var m Map
	for n := range MaxEntries {
		if dir, ok := byNumber[n]; ok {
			if err := m.readEntry(fsys, dir); err != nil {
				return Map{}, fmt.Errorf("entry %s: %w", dir, err)
			}
		}
	}
	return m.checked()
}

func (m *Map) readEntry(fsys fs.FS, dir string) error {
	start, err := readHex(fsys, dir+"/start")
	if err != nil {
		return err
	}
	last, err := readHex(fsys, dir+"/end")
	if err != nil {
		return err
	}
	name, err := readLine(fsys, dir+"/type")
	if err != nil {
		return err
	}
	// The kernel subtracts 1 from the end. An entry of size 0 therefore
	// ends before it starts, or, if it starts at 0, seems to cover all
	// addresses.
	if last == start-1 {
		m.warnf("firmware memory map entry %s at %#x has no size", dir, start)
		return nil
	}
	kind, ok := parseKind(name)
	if !ok {
		m.warnf("firmware memory map entry %s has the unknown type %q", dir, name)
	}
	return m.add(start, last, kind, name, 0)
}

// add appends an entry with an inclusive end.
func (m *Map) add(start, last uint64, kind Kind, name string, depth int) error {
	if last < start {
		return fmt.Errorf("%#x-%#x: ends before it starts", start, last)
	}
	end := last + 1
	if last == math.MaxUint64 {
		// A half-open range can't include the last byte, and no RAM
		// lies there.
		end = last
		m.warnf("%#x-%#x (%s) is cut by its last byte", start, last, name)
	}
	r := phys.Range{Start: start, End: end}
	if r.Empty() {
		return fmt.Errorf("%#x-%#x: beyond 64 bits", start, last)
	}
	m.Entries = append(m.Entries, Entry{r, kind, name, depth})
	return nil
}

func readHex(fsys fs.FS, name string) (uint64, error) {
	s, err := readLine(fsys, name)
	if err != nil {
		return 0, err
	}
	digits, ok := strings.CutPrefix(s, "0x")
	v, err := strconv.ParseUint(digits, 16, 64)
	if !ok || err != nil {
		return 0, fmt.Errorf("%s: %q is not 0x and a hexadecimal number", name, s)
	}
	return v, nil
}

// readLine reads an attribute: text of one line.
func readLine(fsys fs.FS, name string) (string, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxAttribute+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	s := strings.TrimSuffix(string(b), "\n")
	if len(b) > maxAttribute || s == "" || !printable(s) {
		return "", fmt.Errorf("%s: not a line of text", name)
	}
	return s, nil
}

// printable says whether s is ASCII without control characters.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
