package cmdline

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func value(name, value, word string) Param {
	return Param{Name: name, Value: value, HasValue: true, word: word}
}

func flag(name, word string) Param { return Param{Name: name, word: word} }

func TestParse(t *testing.T) {
	tests := []struct {
		name, text   string
		params, init []Param
	}{
		{name: "empty"},
		{name: "white space", text: " \t\n"},
		{"plain", "root=/dev/vda1 ro\n", []Param{value("root", "/dev/vda1", "root=/dev/vda1"), flag("ro", "ro")}, nil},
		{"empty value", "a=", []Param{value("a", "", "a=")}, nil},
		{"second equals sign", "root=UUID=1-2", []Param{value("root", "UUID=1-2", "root=UUID=1-2")}, nil},
		{"value in quotes", `a="b c" d`, []Param{value("a", "b c", `a="b c"`), flag("d", "d")}, nil},
		{"parameter in quotes", `"a=b c" d`, []Param{value("a", "b c", `"a=b c"`), flag("d", "d")}, nil},
		{"parameter and value in quotes", `"a="b c" d`, []Param{value("a", "b", `"a="b`), flag(`c" d`, `c" d`)}, nil},
		{"flag in quotes", `"a b"`, []Param{flag("a b", `"a b"`)}, nil},
		{"quotes within", `a=b"c d"e`, []Param{value("a", `b"c d"e`, `a=b"c d"e`)}, nil},
		{"quotes in the name", `a" "b=c`, []Param{value(`a" "b`, "c", `a" "b=c`)}, nil},
		{"quote at the end only", `a=b"`, []Param{value("a", `b"`, `a=b"`)}, nil},
		{"quote never closed", `a="b c `, []Param{value("a", "b c ", `a="b c `)}, nil},
		{"value is one quote", `a="`, []Param{value("a", "", `a="`)}, nil},
		{"no name", "=a=b", []Param{value("=a", "b", "=a=b")}, nil},
		{"equals sign only", "=", []Param{flag("=", "=")}, nil},
		{"two quotes", `"" a`, []Param{flag("", `""`), flag("a", "a")}, nil},
		{"no-break space", "a\xa0b", []Param{flag("a", "a"), flag("b", "b")}, nil},
		{"NUL", "a\x00b", []Param{flag("a", "a")}, nil},
		{"dashes", "a -- b -- c=d", []Param{flag("a", "a")}, []Param{flag("b", "b"), flag("--", "--"), value("c", "d", "c=d")}},
		{"dashes in quotes", `systemd.run="a -- b" c`, []Param{value("systemd.run", "a -- b", `systemd.run="a -- b"`), flag("c", "c")}, nil},
		{"quotes around dashes", `a "--" b`, []Param{flag("a", "a")}, []Param{flag("b", "b")}},
		{"dashes with a value", "--=x --a", []Param{value("--", "x", "--=x"), flag("--a", "--a")}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := Parse(tt.text)
			if diff := cmp.Diff([2][]Param{tt.params, tt.init}, [2][]Param{l.Params, l.Init}, cmp.AllowUnexported(Param{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNames(t *testing.T) {
	l := Parse("memhp-default_state=a quiet memhp_default-state=b Quiet -- quiet=c")
	if p, ok := l.Last("memhp_default_state"); !ok || p.Value != "b" {
		t.Errorf("last is %q, %v, want that with the value b", p, ok)
	}
	if all := l.All("memhp-default-state"); len(all) != 2 || all[0].Value != "a" {
		t.Errorf("all are %q, want two, the first with the value a", all)
	}
	if all := l.All("quiet"); len(all) != 1 || all[0].HasValue {
		t.Errorf("%q, want quiet without a value: case counts, and init's words don't", all)
	}
	if _, ok := l.Last("memhp"); ok || l.Has("memhp") {
		t.Error("a part of a name is no name")
	}
}

func TestEdit(t *testing.T) {
	tests := []struct{ name, text, remove, add, want string }{
		{"nothing", `a="b  c"`, "x", "", `a="b  c"`},
		{"add to nothing", "", "", "a b", "a b"},
		{"add", "a", "", "b=c", "a b=c"},
		{"add before dashes", "a -- b", "", "c", "a c -- b"},
		{"dashes in quotes", `systemd.run="a -- b"`, "", "c", `systemd.run="a -- b" c`},
		{"dashes first", "-- b", "", "c", "c -- b"},
		{"quote never closed", `a "b -- c`, "", "d e", `a d e "b -- c`},
		{"quote never closed in what is added", "a -- b", "", `c="d`, `a c="d" -- b`},
		{"dashes in what is added", "a", "", "b -- c", "a b"},
		{"remove", "a b=1 c -- b", "b", "", "a c -- b"},
		{"remove by the other spelling", `a-b="x y" a_b c`, "a_b", "", "c"},
		{"remove all", "a -- b", "a", "", "-- b"},
		{"replace", "p=0 x", "p", "p=10", "x p=10"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := Parse(tt.text)
			before := slices.Clone(l.Params)
			removed := l.Remove(func(p Param) bool { return p.Is(tt.remove) })
			if len(removed)+len(l.Params) != len(before) {
				t.Errorf("removed %q of %q, left %q", removed, before, l.Params)
			}
			l.Add(tt.add)
			if got := l.String(); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

// TestAddKeepsCopies: a Line is a value.
func TestAddKeepsCopies(t *testing.T) {
	a := Parse("x y z")
	a.Remove(func(p Param) bool { return p.Is("z") })
	b := a
	a.Add("one")
	b.Add("two")
	if a.String() != "x y one" || b.String() != "x y two" {
		t.Errorf("%q and %q", a, b)
	}
}

// kernelArg is what the kernel calls next_arg, step by step as it changes the
// line in place: lib/cmdline.c, v6.12. line ends with a NUL.
func kernelArg(line []byte) (name, value string, hasValue bool, rest []byte) {
	text := func(b []byte) string { s, _, _ := strings.Cut(string(b), "\x00"); return s }
	inQuotes, quoted := false, false
	if line[0] == '"' {
		line, inQuotes, quoted = line[1:], true, true
	}
	equals, i := 0, 0
	for ; line[i] != 0; i++ {
		if isSpace(line[i]) && !inQuotes {
			break
		}
		if equals == 0 && line[i] == '=' {
			equals = i
		}
		if line[i] == '"' {
			inQuotes = !inQuotes
		}
	}
	at := equals + 1
	if equals != 0 {
		line[equals] = 0
		if line[at] == '"' {
			at++
			if line[i-1] == '"' {
				line[i-1] = 0
			}
		}
	}
	if quoted && i > 0 && line[i-1] == '"' {
		line[i-1] = 0
	}
	rest = line[i:]
	if line[i] != 0 {
		line[i] = 0
		rest = line[i+1:]
	}
	name = text(line)
	if equals != 0 {
		value, hasValue = text(line[at:]), true
	}
	for isSpace(rest[0]) {
		rest = rest[1:]
	}
	return name, value, hasValue, rest
}

type kernelParam struct {
	Name, Value string
	HasValue    bool
}

// kernelParams is what the kernel's parse_args hands out, for the kernel and
// then for init (start_kernel in init/main.c, v6.12).
func kernelParams(text string) (params, init []kernelParam) {
	line := []byte(text + "\x00")
	for isSpace(line[0]) {
		line = line[1:]
	}
	to, dashes := &params, false
	for line[0] != 0 {
		var p kernelParam
		p.Name, p.Value, p.HasValue, line = kernelArg(line)
		if !dashes && !p.HasValue && p.Name == "--" {
			dashes, to = true, &init
			continue
		}
		*to = append(*to, p)
	}
	return params, init
}

func plain(params []Param) (list []kernelParam) {
	for _, p := range params {
		list = append(list, kernelParam{p.Name, p.Value, p.HasValue})
	}
	return list
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "root=/dev/vda1 ro", `a="b c" "d=e f" -- g`, `systemd.run="a -- b"`, `x="never closed -- `, `"--" b`, `=""=`, "a\xa0b\x00c", `"a"b "`} {
		f.Add(s, "added=1", "ro")
	}
	f.Fuzz(func(t *testing.T, text, add, remove string) {
		l := Parse(text)
		params, init := kernelParams(text)
		if diff := cmp.Diff([2][]kernelParam{params, init}, [2][]kernelParam{plain(l.Params), plain(l.Init)}); diff != "" {
			t.Fatalf("%q is read differently from the kernel:\n%s", text, diff)
		}
		if again := Parse(l.String()); !cmp.Equal(l, again, cmp.AllowUnexported(Line{}, Param{})) {
			t.Fatalf("%q is written as %q, which is another line", text, l)
		}
		// What is not touched keeps its bytes, and what is added arrives.
		added, _ := kernelParams(add)
		gone := l.Remove(func(p Param) bool { return p.Is(remove) })
		kept := slices.Clone(l.Params)
		l.Add(add)
		var want []string
		for _, p := range params {
			if !SameName(p.Name, remove) {
				want = append(want, p.Name)
			}
		}
		if len(gone)+len(want) != len(params) {
			t.Fatalf("removed %q of %q", gone, text)
		}
		now, nowInit := kernelParams(l.String())
		if len(now) != len(want)+len(added) || !slices.Equal(nowInit, init) {
			t.Fatalf("%q plus %q is %q: %d parameters, want %d and %d; init's are %v, want %v", text, add, l, len(now), len(want), len(added), nowInit, init)
		}
		for _, p := range kept {
			if !strings.Contains(l.String(), p.String()) || !strings.Contains(text, p.String()) {
				t.Fatalf("%q of %q has changed in %q", p, text, l)
			}
		}
		for _, p := range added {
			// A quote that was open has been closed, and may be in the name.
			name := strings.TrimRight(p.Name, `"`)
			if !slices.ContainsFunc(now, func(n kernelParam) bool { return strings.HasPrefix(n.Name, name) && n.HasValue == p.HasValue }) {
				t.Fatalf("%q plus %q is %q, without %q", text, add, l, p.Name)
			}
		}
	})
}
