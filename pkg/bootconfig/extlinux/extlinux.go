// Package extlinux reads extlinux.conf, as U-Boot's distribution boot and
// syslinux do: labels, each with a kernel, and a default label.
//
// Not supported: menus that include other files, and a default that is a
// command line instead of a label.
package extlinux

import (
	"path"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/bootconfig"
	"github.com/warmcore/warmcore/pkg/cmdline"
)

// Parse reads a configuration in the folder dir, which begins with a slash;
// names without a leading slash are relative to it. The default entry comes
// first: the one that default names, else the one with "menu default", else
// the first.
func Parse(b []byte, dir string) []bootconfig.Entry {
	var entries []bootconfig.Entry
	var global string // append before the first label
	preferred, marked := "", ""
	file := func(name string) bootconfig.Path {
		if !strings.HasPrefix(name, "/") {
			name = path.Join(dir, name)
		}
		return bootconfig.Path{Name: name}
	}
	hasAppend := map[int]bool{}
	for line := range strings.Lines(string(b)) {
		key, value := cutWord(line)
		n := len(entries) - 1
		switch key = strings.ToLower(key); {
		case key == "label":
			if len(entries) == bootconfig.MaxEntries {
				break
			}
			entries = append(entries, bootconfig.Entry{ID: value, Title: value})
		case key == "default" || key == "ontimeout" && preferred == "":
			preferred = value
		case key == "append" && n < 0:
			global = value
		case n < 0:
		case key == "kernel" || key == "linux":
			name, rest := cutWord(value)
			entries[n].Kernel = file(name)
			if rest != "" {
				entries[n].Cmdline = rest
			}
		case key == "initrd":
			for name := range strings.SplitSeq(value, ",") {
				if name = strings.TrimSpace(name); name != "" {
					entries[n].Initrds = append(entries[n].Initrds, file(name))
				}
			}
		case key == "fdt" || key == "devicetree":
			entries[n].DeviceTree = file(value)
		case key == "append":
			hasAppend[n] = true
			if value != "-" {
				entries[n].Cmdline = strings.TrimSpace(entries[n].Cmdline + " " + value)
			}
		case key == "menu":
			switch what, rest := cutWord(value); strings.ToLower(what) {
			case "label":
				entries[n].Title = strings.ReplaceAll(rest, "^", "")
			case "default":
				marked = entries[n].ID
			}
		}
	}
	for i := range entries {
		e := &entries[i]
		if !hasAppend[i] && global != "" {
			e.Cmdline = strings.TrimSpace(e.Cmdline + " " + global)
		}
		// syslinux takes the initrd out of the command line, too.
		if params := cmdline.Parse(e.Cmdline).All("initrd"); len(params) > 0 && len(e.Initrds) == 0 {
			for name := range strings.SplitSeq(params[0].Value, ",") {
				e.Initrds = append(e.Initrds, file(name))
			}
		}
	}
	if preferred == "" || !slices.ContainsFunc(entries, func(e bootconfig.Entry) bool { return e.ID == preferred }) {
		preferred = marked
	}
	for i, e := range entries {
		if e.ID == preferred && i > 0 {
			entries = slices.Insert(slices.Delete(entries, i, i+1), 0, e)
			break
		}
	}
	return slices.DeleteFunc(entries, func(e bootconfig.Entry) bool { return e.Kernel.Name == "" })
}

func cutWord(s string) (word, rest string) {
	s = strings.TrimSpace(s)
	if i := strings.IndexAny(s, " \t"); i >= 0 {
		return s[:i], strings.TrimSpace(s[i:])
	}
	return s, ""
}
