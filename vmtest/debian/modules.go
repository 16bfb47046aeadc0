package debian

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// moduleSet is a kernel's modules, as depmod describes them.
type moduleSet struct {
	needs   map[string][]string // module: its file and the files that it needs, directly or not
	builtin map[string]bool     // modules that the kernel has built in
	before  map[string][]string // module: names or aliases that modprobe loads before it if there are such
	aliases map[string][]string // alias without wildcards: modules
}

// moduleName returns the name of a module's file, or the name itself. The
// kernel takes - and _ in it for the same.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// readModules reads modules.dep, modules.builtin and, where they are,
// modules.softdep and modules.alias of a folder lib/modules/RELEASE.
func readModules(dir fs.FS) (moduleSet, error) {
	m := moduleSet{needs: map[string][]string{}, builtin: map[string]bool{}, before: map[string][]string{}, aliases: map[string][]string{}}
	for _, f := range []struct {
		name     string
		optional bool
		line     func(string) error
	}{
		{"modules.dep", false, func(line string) error {
			file, others, ok := strings.Cut(line, ":")
			if !ok {
				return errors.New("want a file, a colon, and files")
			}
			m.needs[moduleName(file)] = append([]string{file}, strings.Fields(others)...)
			return nil
		}},
		{"modules.builtin", false, func(line string) error {
			m.builtin[moduleName(line)] = true
			return nil
		}},
		// softdep MODULE pre: NAME... post: NAME...
		{"modules.softdep", true, func(line string) error {
			words := strings.Fields(line)
			if len(words) < 2 || words[0] != "softdep" {
				return errors.New("want softdep, a module, and names")
			}
			pre := false
			for _, w := range words[2:] {
				switch {
				case strings.HasSuffix(w, ":"):
					pre = w == "pre:"
				case pre:
					m.before[moduleName(words[1])] = append(m.before[moduleName(words[1])], w)
				}
			}
			return nil
		}},
		// alias ALIAS MODULE; an alias may have spaces in it
		{"modules.alias", true, func(line string) error {
			words := strings.Fields(line)
			last := len(words) - 1
			if last < 2 || words[0] != "alias" {
				return errors.New("want alias, the alias, and a module")
			}
			alias := strings.Join(words[1:last], " ")
			m.aliases[alias] = append(m.aliases[alias], moduleName(words[last]))
			return nil
		}},
	} {
		text, err := fs.ReadFile(dir, f.name)
		if f.optional && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return moduleSet{}, err
		}
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
				continue
			}
			if err := f.line(line); err != nil {
				return moduleSet{}, fmt.Errorf("%s: line %q: %w", f.name, line, err)
			}
		}
	}
	return m, nil
}

// closure returns the files of modules called names and of what they need,
// sorted, as modules.dep names them. A name that the kernel neither has as a
// module nor built in is an error; a soft dependency, such as ext4's on the
// ways to compute crc32c, may be missing.
func (m moduleSet) closure(names []string) ([]string, error) {
	files, seen := map[string]bool{}, map[string]bool{}
	var add func(name string)
	add = func(name string) {
		if name = moduleName(name); seen[name] {
			return
		}
		seen[name] = true
		// modules.dep lists what a module needs in full, not only directly.
		for _, f := range m.needs[name] {
			files[f] = true
			add(f)
		}
		for _, soft := range m.before[name] {
			add(soft)
			for _, provider := range slices.Concat(m.aliases[soft], m.aliases["crypto-"+soft]) {
				add(provider)
			}
		}
	}
	for _, name := range names {
		if name = moduleName(name); m.needs[name] == nil && !m.builtin[name] {
			return nil, fmt.Errorf("module %s: neither in modules.dep nor built in", name)
		}
		add(name)
	}
	return slices.Sorted(maps.Keys(files)), nil
}
