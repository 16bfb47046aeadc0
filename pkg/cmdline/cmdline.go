// Package cmdline reads and edits command lines of the Linux kernel, by the
// kernel's own rules (next_arg in lib/cmdline.c, parse_args and parameq in
// kernel/params.c, v6.12):
//
//   - White space separates parameters, but not inside double quotes. There is
//     no escape character.
//   - Quotes around a parameter or around its value are not part of it; quotes
//     elsewhere are. A quote that is never closed reaches to the end.
//   - In a parameter's name "-" and "_" mean the same.
//   - The word "--" ends the kernel's part. What follows is for init.
//   - Where a parameter has one value, the last one on the line counts.
//
// Invariant: a parameter that an edit doesn't touch keeps its bytes.
package cmdline

import (
	"slices"
	"strings"
)

// Param is one parameter of a command line.
type Param struct {
	Name     string // as written, without quotes
	Value    string // what follows "=", without quotes around it
	HasValue bool   // whether there is a "="
	word     string // with its quotes
}

// String returns the bytes of the parameter, as written, with quotes.
func (p Param) String() string { return p.word }

// Is says whether it is the parameter called name.
func (p Param) Is(name string) bool { return SameName(p.Name, name) }

// open says whether p has a quote that isn't closed, which would swallow what
// follows.
func (p Param) open() bool { return strings.Count(p.word, `"`)%2 != 0 }

// SameName compares names as the kernel does: "-" and "_" are the same.
func SameName(a, b string) bool { return underscores(a) == underscores(b) }

func underscores(name string) string { return strings.ReplaceAll(name, "-", "_") }

// Line is a command line. The zero Line is empty.
type Line struct {
	Params []Param // for the kernel, and for programs that read its command line
	Init   []Param // what follows "--"
	dashes string  // the "--" as written; empty if there is none
}

// Parse reads a command line, such as the contents of /proc/cmdline with its
// newline. It can't fail: every text is a command line. It ends at the first
// NUL.
func Parse(text string) Line {
	text, _, _ = strings.Cut(text, "\x00")
	var l Line
	to := &l.Params
	for {
		text = trimSpace(text)
		if text == "" {
			return l
		}
		p := next(text)
		text = text[len(p.word):]
		if l.dashes == "" && !p.HasValue && p.Name == "--" {
			l.dashes, to = p.word, &l.Init
			continue
		}
		*to = append(*to, p)
	}
}

// next returns the parameter at the start of text.
func next(text string) Param {
	end, equals, quotes := len(text), 0, 0
	body := strings.TrimPrefix(text, `"`)
	start := len(text) - len(body)
	for i := range len(text) {
		if isSpace(text[i]) && quotes%2 == 0 {
			end = i
			break
		}
		switch {
		case text[i] == '"':
			quotes++
		case text[i] == '=' && equals == 0 && i > start: // a name isn't empty
			equals = i
		}
	}
	p := Param{word: text[:end]}
	rest := text[start:end]
	if start > 0 {
		rest = strings.TrimSuffix(rest, `"`)
	}
	if equals == 0 {
		p.Name = rest
		return p
	}
	p.HasValue = true
	p.Name, p.Value = text[start:equals], text[equals+1:end]
	quoted := strings.HasPrefix(p.Value, `"`)
	p.Value = strings.TrimPrefix(p.Value, `"`)
	if quoted || start > 0 {
		p.Value = strings.TrimSuffix(p.Value, `"`)
	}
	return p
}

// isSpace is the kernel's isspace (lib/ctype.c, v6.12). It includes byte 0xa0,
// the no-break space of Latin-1.
func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' || c == 0xa0 }

func trimSpace(s string) string {
	for s != "" && isSpace(s[0]) {
		s = s[1:]
	}
	return s
}

// String writes the line. Parse reads an equal line from the result.
func (l Line) String() string {
	var words []string
	for _, p := range l.Params {
		words = append(words, p.word)
	}
	if l.dashes != "" {
		words = append(words, l.dashes)
	}
	for _, p := range l.Init {
		words = append(words, p.word)
	}
	return strings.Join(words, " ")
}

// All returns the kernel's parameters of that name, in their order.
func (l Line) All(name string) (all []Param) {
	for _, p := range l.Params {
		if p.Is(name) {
			all = append(all, p)
		}
	}
	return all
}

// Last returns the last of the kernel's parameters of that name: the one that
// counts where only one value is used.
func (l Line) Last(name string) (p Param, ok bool) {
	all := l.All(name)
	if len(all) == 0 {
		return Param{}, false
	}
	return all[len(all)-1], true
}

// Has says whether the kernel has a parameter of that name.
func (l Line) Has(name string) bool { return len(l.All(name)) > 0 }

// Remove takes out the kernel's parameters for which drop returns true, and
// returns them.
func (l *Line) Remove(drop func(Param) bool) (removed []Param) {
	var kept []Param
	for _, p := range l.Params {
		if drop(p) {
			removed = append(removed, p)
		} else {
			kept = append(kept, p)
		}
	}
	l.Params = kept
	return removed
}

// Add adds parameters at the end of the kernel's part, where they win over
// earlier ones. If the last parameter has a quote that is never closed, they
// go before it, because it would swallow them. A quote that text leaves open
// is closed; what follows "--" in text is not added.
func (l *Line) Add(text string) {
	added := Parse(text).Params
	if n := len(added); n > 0 && added[n-1].open() {
		added[n-1] = next(added[n-1].word + `"`)
	}
	at := len(l.Params)
	if at > 0 && l.Params[at-1].open() {
		at--
	}
	l.Params = slices.Insert(slices.Clone(l.Params), at, added...)
}
