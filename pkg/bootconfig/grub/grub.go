// Package grub finds out what GRUB would boot: it runs a grub.cfg as GRUB 2
// does, as far as that leads to a Linux kernel.
//
// A configuration is a script. Which entry is the default one may depend on
// the environment block, on conditions, on functions and on other files, and
// an entry's kernel on what search finds. So it is run, not searched: variables,
// if, for, while, functions, test, source, configfile, search, load_env,
// menuentry, submenu and, of Fedora's and openSUSE's GRUB, blscfg. Commands that
// only draw or load drivers succeed and do nothing; any other one fails, as
// one does that GRUB doesn't have.
//
// Where GRUB is not followed:
//   - save_env writes nothing. An entry for one boot (next_entry) is told apart
//     by Entry.Once, so that whoever boots it can remember that it was booted.
//   - the environment block is read before the script runs.
//   - all options lines of a BootLoaderSpec entry count, not only the first.
//   - a BootLoaderSpec entry with "-0-rescue" in its name comes last: by GRUB's
//     order of names one of the two forms that are written would come first.
//
// Not supported: regexp, smbios, cpuid and other questions about the machine
// (they answer no), ZFS, LVM, RAID and encrypted disks, signatures, and
// whatever a user would type.
package grub

import (
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/bootconfig"
	"github.com/warmcore/warmcore/pkg/bootconfig/bls"
)

// By is the property by which Search finds a file system, or which Probe returns.
type By string

// What search and probe know.
const (
	UUID  By = "uuid"
	Label By = "label"
	File  By = "file"
	Type  By = "type" // for Probe only: ext2, btrfs, xfs, fat
)

// Machine is what a script can see of the machine. Devices have the names that
// Search gave them, or those of GRUB that are in the script, such as hd0,gpt2;
// "" is the one that the configuration is on.
type Machine interface {
	// FS is a device's file system; nil if there is no such device.
	FS(device string) fs.FS
	// Search finds a device; hints are devices to try first.
	Search(by By, value string, hints []string) (device string, ok bool)
	// Probe tells about a device; "" if that isn't known.
	Probe(device string, what By) string
	// Platform is efi or pc, Arch amd64 or arm64.
	Platform() string
	Arch() string
}

// Config is what a configuration leads to.
type Config struct {
	// Entries are the Linux entries in the order in which GRUB would try
	// them: the default one, those of the variable fallback, and then those
	// of the menu from top to bottom, with submenus in their place.
	Entries []bootconfig.Entry
	// Default names the default entry if it is none of Linux.
	Default string
	// BLS says that the menu has the BootLoaderSpec entries in it.
	BLS      bool
	Warnings []string
}

// Read runs the configuration at name, with a leading slash, on the device "".
func Read(m Machine, name string) (Config, error) {
	return read(m, name, false)
}

// ReadAgain is what GRUB would boot after the entry for one boot (next_entry)
// was booted: the same without it.
func ReadAgain(m Machine, name string) (Config, error) {
	return read(m, name, true)
}

func read(m Machine, name string, again bool) (Config, error) {
	fsys := m.FS("")
	if fsys == nil {
		return Config{}, fmt.Errorf("%s: no file system", name)
	}
	text, err := bootconfig.ReadFile(fsys, name)
	if err != nil {
		return Config{}, err
	}
	dir := name[:max(0, strings.LastIndexByte(name, '/'))]
	in := &interpreter{m: m, functions: map[string]list{}, scope: &scope{
		vars: map[string]string{
			"root": "", "prefix": dir, "config_directory": dir, "config_file": name, "grub_platform": m.Platform(), "grub_cpu": m.Arch(),
			"pager": "", "color_normal": "", "menuentry_id_option": "--id",
		},
		exported: map[string]bool{},
	}}
	if m.Arch() == "amd64" {
		in.scope.vars["grub_cpu"] = "x86_64"
		if m.Platform() == "pc" {
			in.scope.vars["grub_cpu"] = "i386"
		}
	}
	for _, f := range []string{"chainloader_bpb", "ntldr", "platform_search_hint", "default_font_path", "all_video_module",
		"menuentry_id", "menuentry_options", "200_final", "nativedisk_cmd", "timeout_style"} {
		in.scope.vars["feature_"+f] = "y"
	}
	for v := range in.scope.vars {
		in.scope.exported[v] = true
	}
	in.again = again
	in.preloadEnv()
	l, warnings := parseScript(string(text))
	for _, w := range warnings {
		in.warn("%s: %s", name, w)
	}
	in.run(l)

	c := &chooser{interpreter: in, chosen: map[string]bool{}}
	c.choose(in.scope, in.scope.vars["default"], "")
	if len(c.out.Entries) == 0 && in.loaded.kernel.Name != "" {
		c.add(in.loaded, item{title: name}) // a script without a menu
	}
	c.out.BLS = in.ranBLS
	c.out.Warnings = in.warnings
	if in.once != "" && len(c.out.Entries) > 0 {
		c.out.Entries[0].Once = in.once
	}
	return c.out, nil
}

// Substitute replaces the variables of an environment block in a BootLoaderSpec
// entry's text, as blscfg does; those that aren't set by nothing.
func Substitute(text string, vars map[string]string) string {
	in := &interpreter{scope: &scope{vars: vars}}
	return in.substitute(text)
}

// chooser turns menus into entries.
type chooser struct {
	*interpreter
	out    Config
	chosen map[string]bool // keys of items that are in out
}

// choose adds the entries of a menu: that of the default first, if it is not
// there yet.
func (c *chooser) choose(menu *scope, preferred, at string) {
	first := find(menu.items, preferred)
	_, rest := cutPath(preferred)
	c.item(menu, first, rest, at, true)
	for _, f := range strings.Fields(menu.vars["fallback"]) {
		if n, ok := index(menu.items, f); ok {
			_, rest := cutPath(f)
			c.item(menu, n, rest, at, false)
		}
	}
	for n := range menu.items {
		c.item(menu, n, "", at, false)
	}
}

func (c *chooser) item(menu *scope, n int, rest, at string, isDefault bool) {
	if n >= len(menu.items) || len(c.out.Entries) >= bootconfig.MaxEntries {
		return
	}
	it := menu.items[n]
	key := at + ">" + strconv.Itoa(n)
	if c.chosen[key] {
		return
	}
	before := len(c.out.Entries)
	switch {
	case it.bls != nil:
		c.chosen[key] = true
		if it.bls.Kernel.Name != "" {
			c.out.Entries = append(c.out.Entries, *it.bls)
		}
	case it.submenu:
		if !isDefault {
			c.chosen[key] = true // all of it
		}
		if c.calls++; c.calls <= maxCalls {
			inner := c.enter(menu, it, rest)
			if isDefault {
				c.item(inner, find(inner.items, rest), cutRest(rest), key, true)
			} else {
				c.choose(inner, "", key)
			}
		}
		c.calls--
	default:
		c.chosen[key] = true
		c.add(c.execute(menu, it), it)
	}
	if isDefault && len(c.out.Entries) == before && before == 0 && c.out.Default == "" {
		c.out.Default = it.title
	}
}

func cutRest(s string) string {
	_, rest := cutPath(s)
	return rest
}

// enter runs a submenu's body in a scope of its own.
func (c *chooser) enter(menu *scope, it item, rest string) *scope {
	inner := menu.inner()
	if rest != "" {
		inner.vars["default"] = rest
	} else {
		delete(inner.vars, "default")
	}
	c.scope, c.args, c.loaded = inner, it.args, loaded{}
	c.run(it.body)
	return c.scope
}

// execute runs an entry's body without leaving a trace.
func (c *chooser) execute(menu *scope, it item) loaded {
	c.scope = &scope{vars: maps.Clone(menu.vars), exported: maps.Clone(menu.exported)}
	c.args, c.loaded = it.args, loaded{}
	c.scope.vars["chosen"] = it.title
	functions := maps.Clone(c.functions)
	c.run(it.body)
	c.functions = functions
	return c.loaded
}

// add makes an entry of what was loaded, if that is Linux.
func (c *chooser) add(l loaded, it item) {
	if l.kernel.Name == "" || l.other != "" {
		return
	}
	c.out.Entries = append(c.out.Entries, bootconfig.Entry{
		ID: it.id, Title: it.title, Kernel: l.kernel, Initrds: l.initrds, DeviceTree: l.devicetree, Cmdline: l.cmdline,
	})
}

// find is the item that GRUB takes for a value of default: the first if there
// is none of that name or number.
func find(items []item, spec string) int {
	if n, ok := index(items, spec); ok {
		return n
	}
	return 0
}

// index looks an entry up by number, title or id, in the first step of a path
// such as "1>2" or "submenu>entry".
func index(items []item, spec string) (int, bool) {
	step, _ := cutPath(spec)
	if n, err := strconv.ParseUint(strings.TrimSpace(step), 0, 31); err == nil {
		return int(n), int(n) < len(items)
	}
	if step == "" {
		return 0, false
	}
	n := slices.IndexFunc(items, func(it item) bool { return it.title == step || it.id == step })
	return n, n >= 0
}

// cutPath divides a path at its first >; >> stands for the character.
func cutPath(s string) (step, rest string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '>' {
			if i+1 == len(s) || s[i+1] != '>' {
				return b.String(), s[i+1:]
			}
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}

// sortBLS puts entries into blscfg's order, the newest first: by file names,
// as if these were of packages, NAME-VERSION-RELEASE.
func sortBLS(entries []bls.Entry) {
	slices.SortStableFunc(entries, func(a, b bls.Entry) int {
		if x, y := isRescue(a.File), isRescue(b.File); x != y {
			if x {
				return 1
			}
			return -1
		}
		an, av, ar := splitPackage(a.File)
		bn, bv, br := splitPackage(b.File)
		for _, pair := range [][2]string{{bn, an}, {bv, av}, {br, ar}} {
			if r := compareRPM(pair[0], pair[1]); r != 0 {
				return r
			}
		}
		return strings.Compare(b.File, a.File)
	})
}

func isRescue(file string) bool { return strings.Contains(file, "-0-rescue") }

func splitPackage(file string) (name, version, release string) {
	name = strings.TrimSuffix(file, ".conf")
	if i := strings.LastIndexByte(name, '-'); i >= 0 {
		name, release = name[:i], name[i+1:]
	}
	if i := strings.LastIndexByte(name, '-'); i >= 0 {
		name, version = name[:i], name[i+1:]
	}
	return name, version, release
}

// compareRPM compares versions as rpm does: numbers and words in turn, what
// separates them doesn't count; a number is newer than a word.
func compareRPM(a, b string) int {
	isDigit := func(c byte) bool { return c >= '0' && c <= '9' }
	isAlpha := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
	for {
		for a != "" && !isDigit(a[0]) && !isAlpha(a[0]) && a[0] != '~' {
			a = a[1:]
		}
		for b != "" && !isDigit(b[0]) && !isAlpha(b[0]) && b[0] != '~' {
			b = b[1:]
		}
		at, bt := strings.HasPrefix(a, "~"), strings.HasPrefix(b, "~")
		switch {
		case at && bt:
			a, b = a[1:], b[1:]
			continue
		case at:
			return -1
		case bt:
			return 1
		case a == "" || b == "":
			return len(a) - len(b) // whoever has something left is newer
		}
		kind := isAlpha
		if isDigit(a[0]) {
			kind = isDigit
		}
		i, j := 0, 0
		for i < len(a) && kind(a[i]) {
			i++
		}
		for j < len(b) && kind(b[j]) {
			j++
		}
		if j == 0 { // of another kind
			if isDigit(a[0]) {
				return 1
			}
			return -1
		}
		x, y := a[:i], b[:j]
		if isDigit(a[0]) {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
		}
		if r := strings.Compare(x, y); r != 0 {
			return r
		}
		a, b = a[i:], b[j:]
	}
}
