package memmap

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// ErrUnprivileged says that every address in /proc/iomem is zero, which is
// what readers without CAP_SYS_ADMIN see.
var ErrUnprivileged = errors.New("all addresses are zero: reading them takes CAP_SYS_ADMIN")

// ErrTooManyLines says that /proc/iomem has more than MaxIOMemLines lines.
var ErrTooManyLines = fmt.Errorf("more than %d lines", MaxIOMemLines)

// Caps of /proc/iomem.
const (
	maxIOMemLine = 4096 // bytes in a line
	// MaxIOMemLines is how many lines IOMem accepts. Most lines are of
	// devices: each virtual function of a network card has a line for each
	// of its up to six BARs, and another one for the driver that has
	// claimed it.
	MaxIOMemLines = 1 << 20
)

// IOMem reads /proc/iomem from r. A resource that isn't memory of a known
// kind, such as "Kernel code" or a device, gets the kind of the resource that
// contains it, or Unknown at the top level; its Name tells what it is. Below
// depth 5 the kernel prints all resources as if at 5 (kernel/resource.c:
// r_show, v6.12).
func IOMem(r io.Reader) (Map, error) {
	m, err := readIOMem(r)
	if err != nil {
		return Map{}, fmt.Errorf("read iomem: %w", err)
	}
	return m, nil
}

func readIOMem(r io.Reader) (Map, error) {
	var m Map
	var kinds []Kind // of the entries that the next line may be nested in
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxIOMemLine)
	n, zeroes := 0, 0
	for lines.Scan() {
		n++
		if n > MaxIOMemLines {
			return Map{}, ErrTooManyLines
		}
		l, err := parseIOMemLine(lines.Text())
		if err != nil {
			return Map{}, fmt.Errorf("line %d: %w", n, err)
		}
		if l.depth > len(kinds) {
			return Map{}, fmt.Errorf("line %d: nested by more than one step", n)
		}
		if l.start == 0 && l.last == 0 {
			zeroes++
		}
		kinds = kinds[:l.depth]
		kind, ok := parseIOMemKind(l.name)
		if !ok && l.depth > 0 {
			kind = kinds[l.depth-1]
		}
		kinds = append(kinds, kind)
		if err := m.add(l.start, l.last, kind, l.name, l.depth); err != nil {
			return Map{}, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return Map{}, fmt.Errorf("line %d: %w", n+1, err)
	}
	if n > 0 && zeroes == n {
		return Map{}, ErrUnprivileged
	}
	return m.checked()
}

// parseIOMemKind returns the kind of a resource by its name. Besides the names
// of the e820 table it knows those of arm64 ("reserved") and of the kmem
// driver.
func parseIOMemKind(name string) (Kind, bool) {
	switch name {
	case "System RAM (kmem)":
		return RAM, true
	case "reserved":
		return Reserved, true
	}
	return parseKind(name)
}

type ioMemLine struct {
	start, last uint64
	name        string
	depth       int
}

// parseIOMemLine reads " START-LAST : NAME", indented by two spaces for each
// level of nesting, with both addresses in hexadecimal.
func parseIOMemLine(s string) (ioMemLine, error) {
	text := strings.TrimLeft(s, " ")
	indent := len(s) - len(text)
	addrs, name, ok := strings.Cut(text, " : ")
	from, to, dash := strings.Cut(addrs, "-")
	start, err1 := strconv.ParseUint(from, 16, 64)
	last, err2 := strconv.ParseUint(to, 16, 64)
	if !ok || !dash || err1 != nil || err2 != nil || indent%2 != 0 || name == "" || !printable(name) {
		return ioMemLine{}, fmt.Errorf("%.80q is not START-END : NAME", s)
	}
	return ioMemLine{start, last, name, indent / 2}, nil
}
