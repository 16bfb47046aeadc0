// Package memmaptest has the memory maps of machines, for tests.
package memmaptest

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"testing/fstest"
)

// captures holds, for each machine, NAME.sysfs: comment lines, then one line
// for each folder in /sys/firmware/memmap, "NUMBER START END TYPE"; and, if it
// was captured, NAME.iomem: /proc/iomem unchanged.
//
//go:embed captures
var captures embed.FS

// Capture is what one machine shows of its memory.
type Capture struct {
	Name  string
	Sysfs fs.FS  // /sys/firmware/memmap
	IOMem string // /proc/iomem; empty if it wasn't captured
}

// Captures returns all captures, by name. It panics if a capture is not in the
// form that is described above.
func Captures() []Capture {
	files, err := fs.Glob(captures, "captures/*.sysfs")
	if err != nil {
		panic(fmt.Sprintf("memmaptest: list captures: %v", err))
	}
	var out []Capture
	for _, file := range files {
		text, err := captures.ReadFile(file)
		if err != nil {
			panic(fmt.Sprintf("memmaptest: %v", err))
		}
		base := strings.TrimSuffix(file, ".sysfs")
		// A machine that is made up has no iomem.
		iomem, _ := captures.ReadFile(base + ".iomem")
		out = append(out, Capture{path.Base(base), Sysfs(string(text)), string(iomem)})
	}
	return out
}

// Named returns one capture. It panics if there is none.
func Named(name string) Capture {
	for _, c := range Captures() {
		if c.Name == name {
			return c
		}
	}
	panic(fmt.Sprintf("memmaptest: no capture %q", name))
}

// Sysfs makes a /sys/firmware/memmap from lines "NUMBER START END TYPE". Lines
// that begin with # are ignored. An attribute that is "-" or missing gets no
// file.
func Sysfs(text string) fs.FS {
	fsys := fstest.MapFS{".": {Mode: fs.ModeDir | 0o555}}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.SplitN(line, " ", 4)
		for i, attribute := range []string{"", "start", "end", "type"} {
			if i > 0 && i < len(fields) && fields[i] != "-" {
				fsys[fields[0]+"/"+attribute] = &fstest.MapFile{Data: []byte(fields[i] + "\n"), Mode: 0o400}
			}
		}
	}
	return fsys
}
