package grub

import (
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/bootconfig"
	"github.com/warmcore/warmcore/pkg/bootconfig/bls"
	"github.com/warmcore/warmcore/pkg/cmdline"
)

// Caps on what a script may do. Debian's with ten kernels runs 400 commands.
const (
	maxSteps     = 200_000
	maxCalls     = 32      // functions, files and submenus inside one another
	maxArgument  = 1 << 16 // bytes of one word; the kernel takes 2 KiB of command line
	bytesPerStep = 256     // a word that is longer counts as more than one command
	maxWords     = 4096    // of one command
	maxWarnings  = 20
)

// A scope is what GRUB calls a context: variables and a menu. A submenu or
// configfile gets its own, with the exported variables of the one around it.
type scope struct {
	vars     map[string]string
	exported map[string]bool
	items    []item
}

func (s *scope) inner() *scope {
	in := &scope{vars: map[string]string{}, exported: map[string]bool{}}
	for name := range s.exported {
		in.exported[name] = true
		if v, ok := s.vars[name]; ok {
			in.vars[name] = v
		}
	}
	return in
}

// item is a line of a menu.
type item struct {
	title, id string
	args      []string // $1 and on, in the body
	body      list
	submenu   bool
	bls       *bootconfig.Entry // from blscfg, instead of a body
}

// loaded is what linux, initrd and devicetree have loaded.
type loaded struct {
	kernel     bootconfig.Path
	cmdline    string
	initrds    []bootconfig.Path
	devicetree bootconfig.Path
	other      string // a command that loads something else than Linux
}

type interpreter struct {
	m         Machine
	scope     *scope
	functions map[string]list
	args      []string // positional parameters
	status    bool     // of the last command
	steps     int
	calls     int
	loaded    loaded
	ranBLS    bool
	again     bool   // without next_entry
	once      string // names the next_entry that was read
	warnings  []string
}

func (in *interpreter) warn(format string, args ...any) {
	if len(in.warnings) < maxWarnings {
		in.warnings = append(in.warnings, fmt.Sprintf(format, args...))
	}
}

// What ends a body early.
type jump int

const (
	onward jump = iota
	leaveLoop
	nextRound
	leaveFunction
	leaveAll // steps are used up, or the configuration is complete
)

// tired counts steps, and says whether there were too many.
func (in *interpreter) tired(steps int) bool {
	if in.steps <= maxSteps && in.steps+steps > maxSteps {
		in.warn("the script runs more than %d commands; the rest is left out", maxSteps)
	}
	in.steps = min(in.steps+steps, maxSteps+1)
	return in.steps > maxSteps
}

func (in *interpreter) run(l list) jump {
	for _, s := range l {
		if j := in.statement(s); j != onward {
			return j
		}
	}
	return onward
}

func (in *interpreter) statement(s statement) jump {
	if in.tired(1) {
		return leaveAll
	}
	switch s := s.(type) {
	case *command:
		return in.command(s)
	case *branch:
		for i, c := range s.conditions {
			if j := in.run(c); j != onward {
				return j
			}
			if in.status {
				return in.run(s.bodies[i])
			}
		}
		in.status = true
		if len(s.bodies) > len(s.conditions) {
			return in.run(s.bodies[len(s.bodies)-1])
		}
	case *loop:
		for {
			if j := in.run(s.condition); j != onward {
				return j
			}
			if in.status == s.until {
				return onward
			}
			if j, done := in.round(s.body); done {
				return j
			}
		}
	case *each:
		for _, w := range in.expand(s.words) {
			in.scope.vars[s.name] = w
			if j, done := in.round(s.body); done {
				return j
			}
		}
	case *function:
		in.functions[s.name] = s.body
		in.status = true
	}
	return onward
}

// round runs a loop's body once.
func (in *interpreter) round(body list) (j jump, done bool) {
	if in.tired(1) {
		return leaveAll, true
	}
	switch j := in.run(body); j {
	case onward, nextRound:
		return onward, false
	case leaveLoop:
		return onward, true
	default:
		return j, true
	}
}

func (in *interpreter) value(name string) string {
	switch name {
	case "#":
		return strconv.Itoa(len(in.args))
	case "*", "@":
		return strings.Join(in.args, " ")
	case "?":
		if in.status {
			return "0"
		}
		return "1"
	case "0":
		return ""
	}
	if n, err := strconv.Atoi(name); err == nil {
		if n >= 1 && n <= len(in.args) {
			return in.args[n-1]
		}
		return ""
	}
	return in.scope.vars[name]
}

// expand puts variables into words. One that isn't quoted is divided at its
// spaces, and is no word at all if it is empty.
func (in *interpreter) expand(words []word) []string {
	var out []string
	for _, w := range words {
		var text strings.Builder
		pattern := false // a character of an unquoted piece matches others
		some := false
		add := func() {
			if !some {
				return
			}
			word := text.String()
			in.tired(len(word) / bytesPerStep)
			if pattern {
				out = append(out, in.glob(word)...)
			} else {
				out = append(out, word)
			}
			text.Reset()
			some, pattern = false, false
		}
		for _, p := range w {
			if !p.variable {
				some = true
				text.WriteString(p.text)
				pattern = pattern || !p.quoted && strings.ContainsAny(p.text, "*?[")
				continue
			}
			v := in.value(p.text)
			if len(v) > maxArgument || text.Len()+len(v) > maxArgument {
				in.tired(maxArgument / bytesPerStep)
				continue
			}
			if p.quoted {
				some = true
				if p.text == "@" { // "$@" is a word for each parameter
					for i, a := range in.args {
						if i > 0 {
							add()
							some = true
						}
						text.WriteString(a)
					}
					continue
				}
				text.WriteString(v)
				continue
			}
			for i, field := range strings.FieldsFunc(" "+v+" ", func(r rune) bool { return r == ' ' || r == '\t' || r == '\n' }) {
				if i > 0 || v[0] == ' ' || v[0] == '\t' || v[0] == '\n' {
					add()
				}
				some = true
				text.WriteString(field)
			}
			if v != "" && strings.HasSuffix(v, " ") {
				add()
			}
		}
		add()
		if len(out) > maxWords {
			in.warn("a command has more than %d words; the rest is left out", maxWords)
			return out[:maxWords]
		}
	}
	return out
}

// glob is the files that a pattern matches, or the pattern if there are none.
func (in *interpreter) glob(pattern string) []string {
	p, prefix := in.path(pattern), ""
	if strings.HasPrefix(pattern, "(") {
		prefix = "(" + p.Device + ")"
	} else if !strings.HasPrefix(pattern, "/") {
		return []string{pattern}
	}
	fsys := in.m.FS(p.Device)
	if fsys == nil {
		return []string{pattern}
	}
	found, err := fs.Glob(fsys, bootconfig.Clean(p.Name))
	if err != nil || len(found) == 0 {
		return []string{pattern}
	}
	if len(found) > maxWords {
		found = found[:maxWords]
	}
	for i, f := range found {
		found[i] = prefix + "/" + f
	}
	return found
}

// path divides (device)/name; without a device it is $root's.
func (in *interpreter) path(s string) bootconfig.Path {
	if rest, ok := strings.CutPrefix(s, "("); ok {
		if device, name, ok := strings.Cut(rest, ")"); ok {
			return bootconfig.Path{Device: device, Name: name}
		}
	}
	return bootconfig.Path{Device: in.scope.vars["root"], Name: s}
}

func (in *interpreter) readFile(p bootconfig.Path) ([]byte, error) {
	fsys := in.m.FS(p.Device)
	if fsys == nil {
		return nil, fmt.Errorf("no file system %q", p.Device)
	}
	return bootconfig.ReadFile(fsys, p.Name)
}

func (in *interpreter) stat(s string) fs.FileInfo {
	p := in.path(s)
	fsys := in.m.FS(p.Device)
	if fsys == nil || p.Name == "" {
		return nil
	}
	info, err := fs.Stat(fsys, bootconfig.Clean(p.Name))
	if err != nil {
		return nil
	}
	return info
}

func (in *interpreter) command(c *command) jump {
	argv := in.expand(c.words)
	if len(argv) == 0 {
		in.status = true
		return onward
	}
	name, args := argv[0], argv[1:]
	if body, ok := in.functions[name]; ok {
		return in.call(body, args)
	}
	if c.has {
		if name == "menuentry" || name == "submenu" {
			in.status = true
			in.menuentry(name == "submenu", args, c.block)
		} else {
			in.status = false
		}
		return onward
	}
	if variable, value, ok := strings.Cut(name, "="); ok && variable != "" {
		in.set(variable, value)
		in.status = true
		return onward
	}
	switch name {
	case "break":
		return leaveLoop
	case "continue":
		return nextRound
	case "return":
		in.status = len(args) == 0 || args[0] == "0"
		return leaveFunction
	case "boot", "exit":
		return leaveAll
	case "source", ".":
		return in.source(args)
	case "configfile":
		return in.configfile(args)
	case "eval":
		l, warnings := parseScript(strings.Join(args, " "))
		in.warnings = append(in.warnings, warnings...)
		return in.nested(func() jump { return in.run(l) })
	}
	in.status = in.builtin(name, args)
	return onward
}

// nested runs what is inside something else, as deep as maxCalls.
func (in *interpreter) nested(f func() jump) jump {
	if in.calls++; in.calls > maxCalls {
		in.calls--
		in.warn("functions and files that call one another more than %d deep", maxCalls)
		in.status = false
		return onward
	}
	j := f()
	in.calls--
	return j
}

func (in *interpreter) call(body list, args []string) jump {
	outer := in.args
	in.args = args
	j := in.nested(func() jump { return in.run(body) })
	in.args = outer
	if j == leaveFunction {
		return onward
	}
	return j
}

func (in *interpreter) source(args []string) jump {
	if len(args) == 0 {
		in.status = false
		return onward
	}
	text, err := in.readFile(in.path(args[0]))
	if err != nil {
		in.status = false // not worth a warning: custom.cfg is rarely there
		return onward
	}
	l, warnings := parseScript(string(text))
	for _, w := range warnings {
		in.warn("%s: %s", args[0], w)
	}
	return in.nested(func() jump { return in.run(l) })
}

// configfile starts again with another file: its menu is what counts.
func (in *interpreter) configfile(args []string) jump {
	outer := in.scope
	in.scope = outer.inner()
	in.preloadEnv()
	j := in.source(args)
	if len(in.scope.items) == 0 {
		in.scope = outer // GRUB comes back from a menu without entries
		return j
	}
	return leaveAll
}

func (in *interpreter) set(name, value string) {
	if len(in.scope.vars) > maxWords {
		return
	}
	if name == "root" { // GRUB takes both "hd0,1" and "(hd0,1)"
		value = strings.TrimSuffix(strings.TrimPrefix(value, "("), ")")
	}
	in.scope.vars[name] = value
}

// preloadEnv reads the environment block beside the configuration before the
// script does: scripts are written that count on it being there.
func (in *interpreter) preloadEnv() {
	vars, _ := in.readEnv(in.path(in.scope.vars["prefix"] + "/grubenv"))
	maps.Copy(in.scope.vars, vars)
}

func (in *interpreter) readEnv(p bootconfig.Path) (map[string]string, error) {
	b, err := in.readFile(p)
	if err != nil {
		return nil, err
	}
	vars := ParseEnv(b)
	if in.again {
		delete(vars, "next_entry")
	}
	if next := vars["next_entry"]; next != "" {
		// A later request for the same entry is another one: grub-reboot
		// writes the file again.
		in.once = "next_entry=" + next
		if info, err := fs.Stat(in.m.FS(p.Device), bootconfig.Clean(p.Name)); err == nil {
			in.once += "@" + strconv.FormatInt(info.ModTime().UnixNano(), 10)
		}
	}
	return vars, nil
}

// harmless commands change nothing that leads to a kernel.
var harmless = []string{
	"insmod", "rmmod", "echo", "true", ":", "clear", "loadfont", "terminal_input", "terminal_output", "terminal",
	"serial", "background_image", "background_color", "play", "save_env", "hidden", "password",
	"password_pbkdf2", "videoinfo", "gfxmode", "load_video", "savedefault", "recordfail",
	"cryptomount", "fwconfig", "increment", "decrement", "sleep", "loadkey", "keymap", "acpi",
	"normal", "initrdfail", "cutmem", "badram", "outb", "stall", "bli", "sync", "lsefi", "nativedisk",
}

func (in *interpreter) builtin(name string, args []string) bool {
	switch name {
	case "[", "test":
		if name == "[" {
			if len(args) == 0 || args[len(args)-1] != "]" {
				return false
			}
			args = args[:len(args)-1]
		}
		return in.test(args)
	case "false":
		return false
	case "!":
		return len(args) == 0 || !in.builtin(args[0], args[1:])
	case "set":
		for _, a := range args {
			if n, v, ok := strings.Cut(a, "="); ok && n != "" {
				in.set(n, v)
			}
		}
		return true
	case "unset":
		for _, a := range args {
			delete(in.scope.vars, a)
		}
		return true
	case "export":
		for _, a := range args {
			if n, v, ok := strings.Cut(a, "="); ok {
				a = n
				in.set(n, v)
			}
			in.scope.exported[a] = true
		}
		return true
	case "load_env":
		return in.loadEnv(args)
	case "search", "search.fs_uuid", "search.fs_label", "search.file":
		return in.search(name, args)
	case "probe":
		return in.probe(args)
	case "linux", "linux16", "linuxefi":
		return in.linux(args)
	case "initrd", "initrd16", "initrdefi":
		return in.initrd(args)
	case "devicetree":
		if len(args) > 0 {
			in.loaded.devicetree = in.path(args[0])
		}
		return true
	case "chainloader", "multiboot", "multiboot2", "xen_hypervisor", "kfreebsd", "knetbsd", "kopenbsd", "ntldr", "freedos",
		"appleloader", "fwsetup", "reboot", "halt", "xnu_kernel", "xnu_kernel64":
		if in.loaded.other == "" {
			in.loaded.other = name
		}
		return true
	case "blscfg":
		return in.blscfg()
	case "shift":
		if len(in.args) > 0 {
			in.args = in.args[1:]
		}
		return true
	case "setparams":
		in.args = args
		return true
	}
	return slices.Contains(harmless, name)
}

func (in *interpreter) loadEnv(args []string) bool {
	file := in.scope.vars["prefix"] + "/grubenv"
	var only []string
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == "-f" || a == "--file":
			if i++; i < len(args) {
				file = args[i]
			}
		case strings.HasPrefix(a, "--file="):
			file = a[len("--file="):]
		case a == "-s" || a == "--skip-sig":
		default:
			only = append(only, a)
		}
	}
	if !strings.HasPrefix(file, "/") && !strings.HasPrefix(file, "(") {
		file = in.scope.vars["prefix"] + "/" + file
	}
	vars, err := in.readEnv(in.path(file))
	if err != nil {
		return false
	}
	for name, value := range vars {
		if len(only) == 0 || slices.Contains(only, name) {
			in.set(name, value)
		}
	}
	return true
}

// search finds a file system by UUID, label or a file.
func (in *interpreter) search(name string, args []string) bool {
	variable, by, value := "", By(""), ""
	var hints []string
	switch name {
	case "search.fs_uuid":
		by = UUID
	case "search.fs_label":
		by = Label
	case "search.file":
		by = File
	}
	if by != "" { // search.fs_uuid UUID [VARIABLE [HINT...]]
		if len(args) == 0 {
			return false
		}
		value, variable = args[0], "root"
		if len(args) > 1 {
			variable, hints = args[1], args[2:]
		}
	} else {
		by = File
		for i := 0; i < len(args); i++ {
			a := args[i]
			option, of, hasOf := strings.Cut(a, "=")
			switch {
			case option == "--file" || a == "-f":
				by = File
			case option == "--label" || option == "--fs-label" || a == "-l":
				by = Label
			case option == "--fs-uuid" || a == "-u":
				by = UUID
			case option == "--set" || a == "-s":
				if variable = "root"; hasOf {
					variable = of
				}
			case strings.HasPrefix(option, "--hint") || a == "-h":
				if !hasOf {
					if i++; i >= len(args) {
						continue
					}
					of = args[i]
				}
				hints = append(hints, of)
			case strings.HasPrefix(a, "-"):
			case value == "":
				value = a
			default:
				hints = append(hints, a)
			}
		}
	}
	if value == "" {
		return false
	}
	device, ok := in.m.Search(by, value, hints)
	if ok && variable != "" {
		in.set(variable, device)
	}
	return ok
}

// probe tells about a file system.
func (in *interpreter) probe(args []string) bool {
	variable, device, what := "", "", By("")
	for i := 0; i < len(args); i++ {
		a := args[i]
		option, of, hasOf := strings.Cut(a, "=")
		switch {
		case option == "--set" || a == "-s":
			if !hasOf {
				if i++; i < len(args) {
					of = args[i]
				}
			}
			variable = of
		case a == "--fs-uuid" || a == "-u":
			what = UUID
		case a == "--label" || a == "-l":
			what = Label
		case a == "--fs" || a == "-f":
			what = Type
		case strings.HasPrefix(a, "-"):
		default:
			device = strings.Trim(a, "()")
		}
	}
	value := in.m.Probe(device, what)
	if value == "" {
		return false
	}
	if variable != "" {
		in.set(variable, value)
	}
	return true
}

// linux loads a kernel. Its words are put together as GRUB puts them: one with
// spaces in quotes, and backslashes before quotes and backslashes
// (grub-core/lib/cmdline.c, 2.06).
func (in *interpreter) linux(args []string) bool {
	if len(args) == 0 {
		return false
	}
	in.loaded.kernel = in.path(args[0])
	var line strings.Builder
	for i, a := range args[1:] {
		if i > 0 {
			line.WriteByte(' ')
		}
		quote := strings.Contains(a, " ")
		if quote {
			line.WriteByte('"')
		}
		for j := 0; j < len(a); j++ {
			if c := a[j]; c == '\'' || c == '"' || c == '\\' && !isHexEscape(a[j:]) {
				line.WriteByte('\\')
			}
			line.WriteByte(a[j])
		}
		if quote {
			line.WriteByte('"')
		}
	}
	in.loaded.cmdline = line.String()
	return true
}

// isHexEscape says whether s begins with \xHH, which GRUB leaves as it is.
func isHexEscape(s string) bool {
	if len(s) < 4 || s[1] != 'x' {
		return false
	}
	_, err := strconv.ParseUint(s[2:4], 16, 8)
	return err == nil
}

func (in *interpreter) initrd(args []string) bool {
	in.loaded.initrds = nil // a second initrd command loads others in their place
	for _, a := range args {
		if rest, ok := strings.CutPrefix(a, "newc:"); ok {
			in.warn("initrd %s: files that GRUB packs itself are not supported; left out", rest)
			continue
		}
		in.loaded.initrds = append(in.loaded.initrds, in.path(a))
	}
	return true
}

// menuentry adds a line to the menu.
func (in *interpreter) menuentry(submenu bool, args []string, body list) {
	if len(in.scope.items) >= bootconfig.MaxEntries {
		in.warn("a menu has more than %d entries; the rest is left out", bootconfig.MaxEntries)
		return
	}
	var it item
	it.submenu, it.body = submenu, body
	for i := 0; i < len(args); i++ {
		a := args[i]
		option, of, hasOf := strings.Cut(a, "=")
		switch option {
		case "--class", "--users", "--hotkey", "--source", "--id":
			if !hasOf {
				if i++; i < len(args) {
					of = args[i]
				}
			}
			if option == "--id" {
				it.id = of
			}
		case "--unrestricted":
		default:
			it.args = append(it.args, a)
		}
	}
	if len(it.args) == 0 {
		in.warn("a menu entry without a title is left out")
		return
	}
	if it.title = it.args[0]; it.id == "" {
		it.id = it.title
	}
	in.scope.items = append(in.scope.items, it)
}

// blscfg puts BootLoaderSpec entries into the menu, as Fedora's and openSUSE's
// GRUB do.
func (in *interpreter) blscfg() bool {
	in.ranBLS = true
	device := in.scope.vars["root"]
	if boot := in.scope.vars["boot"]; boot != "" {
		device = strings.Trim(boot, "()")
	}
	fsys := in.m.FS(device)
	if fsys == nil {
		return false
	}
	dirs := []string{"loader/entries", "boot/loader/entries"}
	if dir := in.scope.vars["blsdir"]; dir != "" {
		dirs = []string{bootconfig.Clean(dir)}
	}
	for _, dir := range dirs {
		found, warnings := bls.ReadEntries(fsys, dir, in.m.Arch())
		for _, w := range warnings {
			in.warn("%s", w)
		}
		if len(found) == 0 {
			continue
		}
		sortBLS(found)
		for _, b := range found {
			e := in.blsEntry(b, device)
			in.scope.items = append(in.scope.items, item{title: e.Title, id: e.ID, bls: &e})
		}
		return true
	}
	return true
}

// blsEntry has the variables in an entry replaced by their values, and the
// initrds that early_initrd names beside the kernel.
func (in *interpreter) blsEntry(b bls.Entry, device string) bootconfig.Entry {
	e := b.Entry
	e.ID = strings.TrimSuffix(b.File, ".conf")
	e.Kernel.Device = device
	dir := path.Dir(e.Kernel.Name)
	var initrds []bootconfig.Path
	for _, early := range strings.Fields(in.scope.vars["early_initrd"]) {
		initrds = append(initrds, bootconfig.Path{Device: device, Name: path.Join(dir, early)})
	}
	for _, i := range e.Initrds {
		for _, name := range strings.Fields(in.substitute(i.Name)) {
			initrds = append(initrds, bootconfig.Path{Device: device, Name: name})
		}
	}
	e.Initrds = initrds
	if !b.HasOptions {
		e.Cmdline = in.scope.vars["default_kernelopts"]
	}
	e.Cmdline = in.substitute(e.Cmdline)
	e.DeviceTree.Device = device
	return e
}

// substitute replaces $name and ${name}. One space is left where a variable was
// empty; spaces in quotes stay as they are.
func (in *interpreter) substitute(s string) string {
	var out strings.Builder
	for s != "" && out.Len() < maxArgument {
		if s[0] == '$' {
			if name, n := variableName(s); n > 0 {
				out.WriteString(in.value(name))
				s = s[n:]
				continue
			}
		}
		out.WriteByte(s[0])
		s = s[1:]
	}
	return cmdline.Parse(out.String()).String()
}
