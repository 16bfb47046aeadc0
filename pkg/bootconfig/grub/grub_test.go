package grub

import (
	"io/fs"
	"maps"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// disk is a machine with one file system, and others by UUID.
type disk struct {
	files  fstest.MapFS
	others map[string]fstest.MapFS
}

func (d disk) FS(device string) fs.FS {
	if o, ok := d.others[device]; ok {
		return o
	}
	return d.files
}

func (d disk) Search(by By, value string, _ []string) (string, bool) {
	_, ok := d.others[value]
	return value, by == UUID && ok
}

func (d disk) Probe(device string, what By) string {
	if what == UUID {
		return "uuid-of-" + device
	}
	return ""
}
func (disk) Platform() string { return "efi" }
func (disk) Arch() string     { return "amd64" }

func files(content map[string]string) fstest.MapFS {
	m := fstest.MapFS{}
	for name, text := range content {
		m[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return m
}

// run is what a script leads to, each entry as "TITLE: KERNEL [+INITRD...] COMMAND LINE".
func run(t testing.TB, script string, more map[string]string) (entries []string, c Config) {
	t.Helper()
	content := map[string]string{"grub/grub.cfg": script}
	maps.Copy(content, more)
	c, err := Read(disk{files: files(content), others: map[string]fstest.MapFS{"b007": files(map[string]string{"marker": ""})}}, "/grub/grub.cfg")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range c.Entries {
		line := e.Title + ": "
		if e.Kernel.Device != "" {
			line += "(" + e.Kernel.Device + ")"
		}
		line += e.Kernel.Name
		for _, i := range e.Initrds {
			line += " +" + i.Name
		}
		entries = append(entries, strings.TrimSpace(line+" "+e.Cmdline))
	}
	return entries, c
}

const entry = "menuentry a { linux /a }\nmenuentry b --id B { linux /b }\nsubmenu s --id S { menuentry c { linux /c }; menuentry d --id D { linux /d }; }\nmenuentry e { linux /e }\n"

// TestDefault is GRUB's choice, and the order of the rest.
func TestDefault(t *testing.T) {
	for _, tt := range []struct{ name, vars, want string }{
		{"none", "", "a b c d e"},
		{"index", "set default=1", "b a c d e"},
		{"index after a submenu", "set default=3", "e a b c d"},
		{"index with spaces", "set default=' 1 '", "b a c d e"},
		{"octal, as strtoul reads it", "set default=01", "b a c d e"},
		{"out of range", "set default=4", "a b c d e"},
		{"title", "set default=b", "b a c d e"},
		{"id", "set default=B", "b a c d e"},
		{"unknown", "set default=x", "a b c d e"},
		{"path of indices", "set default='2>1'", "d a b c e"},
		{"path of ids", "set default='S>D'", "d a b c e"},
		{"path of titles", "set default='s>d'", "d a b c e"},
		{"path with a wrong end", "set default='S>x'", "c a b d e"},
		{"submenu without path", "set default=S", "c a b d e"},
		{"an entry in a submenu without its path", "set default=D", "a b c d e"},
		{"fallback", "set default=1\nset fallback='3 0'", "b e a c d"},
		{"an id that begins with digits", "set default=0123abc\nmenuentry z --id 0123abc { linux /z }", "z a b c d e"},
		{"a title with >", "set default='x>>y'\nmenuentry 'x>y' { linux /z }", "x>y a b c d e"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, c := run(t, tt.vars+"\n"+entry, nil)
			var got []string
			for _, e := range c.Entries {
				got = append(got, e.Title)
			}
			if g := strings.Join(got, " "); g != tt.want {
				t.Errorf("entries %s, want %s", g, tt.want)
			}
		})
	}
}

// TestScript is what the language does, each with an entry to show it.
func TestScript(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		want         []string
	}{
		{"quotes", `menuentry 'a b' { linux /k one "two words" 'it''s' "q\"q" b\\s x"y"'z' "" }`,
			[]string{`a b: /k one "two words" its q\"q b\\s xyz`}},
		{"no brace in a word", "set x=a;menuentry m{linux /k $x;}", []string{"m: /k a"}},
		{"hex escapes stay", `menuentry m { linux /k 'a\x20b' 'c\d' }`, []string{`m: /k a\x20b c\\d`}},
		{"variables", `set a="1 2"; set b=; menuentry m { linux /k $a "$a" $b "$b" ${a}x x$a }`, []string{`m: /k 1 2 "1 2"  1 2x x1 2`}},
		{"a variable that isn't set", `menuentry m { linux /k ro$vt_handoff $vt_handoff quiet }`, []string{"m: /k ro quiet"}},
		{"a variable in single quotes", `menuentry m { linux /k '$a' "\$a" }`, []string{"m: /k $a $a"}},
		{"a text to translate", `menuentry $"a b" { linux /k $ "$" a$ }`, []string{"a b: /k $ $ a$"}},
		{"continued line", "menuentry m { linux /k a \\\n b }", []string{"m: /k a b"}},
		{"comments", "# menuentry x { linux /x }\nmenuentry m { # text }\n linux /k a#b # c\n}", []string{"m: /k a#b"}},
		{"set without set", `x=5; menuentry m { linux /k $x }`, []string{"m: /k 5"}},
		{"if, elif, else", `if false; then x=1; elif [ a = b ]; then x=2; elif true; then x=3; else x=4; fi; menuentry m { linux /k $x }`, []string{"m: /k 3"}},
		{"nested if", "if true; then\nif false\nthen x=1\nelse\nx=2\nfi\nfi\nmenuentry m { linux /k $x }", []string{"m: /k 2"}},
		{"for", `for i in a "b c" $none; do menuentry "$i" "x$i" { linux /k "$2" } done`, []string{`a: /k xa`, `b c: /k "xb c"`}},
		{"break and continue", `for i in 1 2 3 4; do if [ $i = 2 ]; then continue; fi; if [ $i = 4 ]; then break; fi; menuentry $i { linux /k }; done`, []string{"1: /k", "3: /k"}},
		{"while", `while [ "$x" != aaa ]; do x=a$x; done; until true; do x=b; done; menuentry m { linux /k $x }`, []string{"m: /k aaa"}},
		{"function", "function f { linux /k $1 $# \"$@\" ; return 1 ; x=1 }\nmenuentry m { f a 'b c' ; initrd /i$? }", []string{`m: /k +/i1 a 2 a "b c"`}},
		{"not", `if ! false; then x=1; fi; if [ ! -n "$y" -a ! ( a = b -o c = d ) ]; then y=2; fi; menuentry m { linux /k $x$y }`, []string{"m: /k 12"}},
		{"numbers", `if [ 10 -gt 9 -a a10 -pgt a9 ]; then x=1; fi; menuentry m { linux /k $x }`, []string{"m: /k 1"}},
		{"files", `if [ -f /grub/grub.cfg -a -d /grub -a -s $prefix/grub.cfg -a ! -e /x ]; then x=1; fi; menuentry m { linux /k $x }`, []string{"m: /k 1"}},
		{"search", `search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt2 --hint hd1 b007; menuentry m { linux /k }`, []string{"m: (b007)/k"}},
		{"search in vain", `set root=hd0,gpt2; search -u -s root nothing; menuentry m { linux /k }`, []string{"m: (hd0,gpt2)/k"}},
		{"search with a status", `if search -s -u b007; then x=1; fi; menuentry m { linux ($root)/k $x }`, []string{"m: (b007)/k 1"}},
		{"search.fs_uuid", `search.fs_uuid b007 root hd0,gpt1; menuentry m { linux /k }`, []string{"m: (b007)/k"}},
		{"probe", `probe --set=u --fs-uuid ($root); probe -s v -u hd0; menuentry m { linux /k $u $v }`, []string{"m: /k uuid-of- uuid-of-hd0"}},
		{"root in an entry stays there", `menuentry a { set root=hd9; linux /a }; menuentry b { linux /b }`, []string{"a: (hd9)/a", "b: /b"}},
		{"a submenu sees exported variables only", `set a=1; set b=2; export b; submenu s { menuentry m { linux /k $a$b } }`, []string{"m: /k 2"}},
		{"several initrds, several times", `menuentry m { linux /k; initrd /x; initrd /u /i }`, []string{"m: /k +/u +/i"}},
		{"other commands that load Linux", `menuentry m { linuxefi /k a; initrdefi /i }; menuentry n { linux16 /k b; initrd16 /i }`, []string{"m: /k +/i a", "n: /k +/i b"}},
		{"not Linux", `menuentry x { chainloader /x.efi }; menuentry y { multiboot2 /xen; module2 /k }; menuentry m { linux /k }`, []string{"m: /k"}},
		{"options of menuentry", `menuentry --class x m --users "" --hotkey=k --unrestricted --id=i { linux /k }`, []string{"m: /k"}},
		{"source", `source $prefix/more.cfg; . /grub/gone.cfg; menuentry m { linux /k $x }`, []string{"more: /more", "m: /k 5"}},
		{"configfile", `menuentry x { linux /x }; set x=1; export x; configfile /grub/other.cfg; menuentry y { linux /y }`, []string{"other: /other 1"}},
		{"configfile that isn't there", `configfile /grub/gone.cfg; menuentry m { linux /k }`, []string{"m: /k"}},
		{"eval", `eval "menuentry m { linux /k 'a b' }"`, []string{`m: /k "a b"`}},
		{"glob", `for f in /grub/m*.cfg /none*; do menuentry $f { linux /k }; done`, []string{"/grub/more.cfg: /k", "/none*: /k"}},
		{"no menu", `linux /k a; initrd /i; boot; menuentry x { linux /x }`, []string{"/grub/grub.cfg: /k +/i a"}},
		{"an error doesn't end the script", "menuentry a { linux /a }\nfi\n}\nmenuentry m { linux /k }", []string{"a: /a", "m: /k"}},
		{"environment", `load_env; menuentry m { linux /k $kernelopts }`, []string{`m: /k root=/dev/sda1 quiet`}},
		{"environment, chosen", `unset kernelopts; unset other; load_env --file /grub/grubenv other; menuentry m { linux /k $kernelopts $other }`, []string{`m: /k o`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, c := run(t, tt.script, map[string]string{
				"grub/more.cfg": "x=5\nmenuentry more { linux /more }\n", "grub/other.cfg": "menuentry other { linux /other $x }",
				"grub/grubenv": "# GRUB Environment Block\nkernelopts=root=/dev/sda1 quiet\nother=o\n####",
			})
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("entries (-want +got):\n%s\nwarnings: %q", diff, c.Warnings)
			}
		})
	}
}

// TestOnce: the entry for one boot comes first, and is known as such; again,
// it isn't.
func TestOnce(t *testing.T) {
	m := disk{files: files(map[string]string{
		"grub/grub.cfg": "load_env\nif [ \"${next_entry}\" ]; then set default=\"${next_entry}\"; set next_entry=; save_env next_entry; else set default=0; fi\n" + entry,
		"grub/grubenv":  "# GRUB Environment Block\nnext_entry=S>D\n###",
	})}
	c, err := Read(m, "/grub/grub.cfg")
	if err != nil || c.Entries[0].Title != "d" || c.Entries[0].Once != "next_entry=S>D@-6795364578871345152" {
		t.Errorf("first entry %+v, %v; want d, once", c.Entries[0], err)
	}
	c, err = ReadAgain(m, "/grub/grub.cfg")
	if err != nil || c.Entries[0].Title != "a" || c.Entries[0].Once != "" {
		t.Errorf("again: first entry %+v, %v; want a", c.Entries[0], err)
	}
}

// TestLimits: scripts that would never end do.
func TestLimits(t *testing.T) {
	for _, tt := range []struct{ name, script, warning string }{
		{"endless loop", "while true; do x=1; done", "commands"},
		{"empty endless loop", "while true; do true; done", "commands"},
		{"a function that calls itself", "function f { f; f; }\nf\n", "deep"},
		{"a file that reads itself", "source /grub/grub.cfg", "deep"},
		{"words that grow", "x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done", "commands"},
		{"nested blocks", strings.Repeat("if true; then ", 1000), "nested"},
		{"nested submenus", strings.Repeat("submenu s { ", 1000), "nested"},
		{"entries in a loop", "while true; do menuentry m { linux /k }; done", "entries"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, c := run(t, tt.script, nil)
			if !strings.Contains(strings.Join(c.Warnings, "\n"), tt.warning) {
				t.Errorf("warnings %q, want one about %s", c.Warnings, tt.warning)
			}
		})
	}
}

func TestParseEnv(t *testing.T) {
	got := ParseEnv([]byte("# GRUB Environment Block\n# comment\na=1\nb=x\\\\y\\\nz\nempty=\nnone\n=v\nlast=2\n#####"))
	want := map[string]string{"a": "1", "b": "x\\y\nz", "empty": "", "last": "2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}
	if got := ParseEnv([]byte("a=1\n")); got != nil {
		t.Errorf("without signature: %v", got)
	}
}

func TestCompareRPM(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"1", "1", 0}, {"1.0", "1.1", -1}, {"1.10", "1.9", 1}, {"1.010", "1.10", 0}, {"70.22.1.el9_0", "427.13.1.el9_4", -1},
		{"1a", "1", 1}, {"1.a", "1.1", -1}, {"1~rc1", "1", -1}, {"1~rc1", "1~rc2", -1}, {"a_b", "a.b", 0}, {"", "1", -1},
	} {
		if got := compareRPM(tt.a, tt.b); (got > 0) != (tt.want > 0) || (got < 0) != (tt.want < 0) {
			t.Errorf("%s and %s: %d, want %d", tt.a, tt.b, got, tt.want)
		}
		if got := compareRPM(tt.b, tt.a); (got > 0) != (tt.want < 0) || (got < 0) != (tt.want > 0) {
			t.Errorf("%s and %s: %d, want %d", tt.b, tt.a, got, -tt.want)
		}
	}
}

// FuzzRead: whatever is on a disk, the script ends, and each entry has a
// kernel.
func FuzzRead(f *testing.F) {
	f.Add(entry, "# GRUB Environment Block\nnext_entry=1>2\n")
	f.Add("function f { f $@ $1; }\nf a\nfor i in /*; do menuentry $i { linux $i; initrd $i } done\nsource $prefix/grub.cfg\nblscfg", "")
	f.Add("set root='hd0,gpt2'\nif [ x$a = xy -o ! -f ${b} ]; then\nsearch --set=root -u 1 --hint\nelse\nconfigfile (hd0)/x\nfi", "")
	f.Fuzz(func(t *testing.T, script, env string) {
		m := disk{files: files(map[string]string{"grub/grub.cfg": script, "grub/grubenv": env, "loader/entries/a.conf": script})}
		c, err := Read(m, "/grub/grub.cfg")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range c.Entries {
			if e.Kernel.Name == "" {
				t.Errorf("entry %+v has no kernel", e)
			}
		}
		if len(c.Warnings) > maxWarnings {
			t.Errorf("%d warnings", len(c.Warnings))
		}
	})
}

func TestSubstitute(t *testing.T) {
	vars := map[string]string{"kernelopts": `root=/dev/sda1 dyndbg="file a.c  +p"`}
	got := Substitute(`$kernelopts  ${unset} quiet`, vars)
	if want := `root=/dev/sda1 dyndbg="file a.c  +p" quiet`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
