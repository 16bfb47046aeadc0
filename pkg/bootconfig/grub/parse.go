package grub

import (
	"errors"
	"fmt"
	"strings"
)

// A list is a sequence of statements.
type list []statement

// statement is one of *command, *branch, *loop, *each, *function.
type statement any

// command is words, with a block for menuentry and submenu.
type command struct {
	words []word
	block list
	has   bool // it has a block, be it an empty one
}

// branch is if, elif, else, fi.
type branch struct {
	conditions []list // one more body than conditions if there is an else
	bodies     []list
}

// loop is while and until.
type loop struct {
	condition, body list
	until           bool
}

// each is for NAME in WORDS.
type each struct {
	name  string
	words []word
	body  list
}

type function struct {
	name string
	body list
}

// A word is made of pieces that are put together after variables have got
// their values.
type word []piece

type piece struct {
	text     string // or a variable's name
	variable bool
	quoted   bool // a variable's spaces don't divide the word
}

// plain is the text of a word without quotes and variables, and if it is one.
func (w word) plain() (string, bool) {
	if len(w) != 1 || w[0].variable || w[0].quoted {
		return "", false
	}
	return w[0].text, true
}

type tokenKind int

const (
	tokenWord tokenKind = iota
	tokenEnd            // of a command: newline or semicolon
	tokenOpen
	tokenClose
	tokenEOF
)

type token struct {
	kind tokenKind
	word word
}

// maxDepth bounds nesting: the deepest script that a distribution writes has
// five levels.
const maxDepth = 64

// parser is GRUB's: the lexer of script/yylex.l and the grammar of
// script/parser.y (2.06), without pipes and background jobs, which have never
// had a meaning.
type parser struct {
	text   string
	at     int
	peeked *token
	depth  int
}

var errEOF = errors.New("the script ends in the middle of a statement")

// parseScript reads a script. A statement with an error is left out, as GRUB
// does, which goes on with the next line; the errors are returned beside the
// rest.
func parseScript(text string) (l list, warnings []string) {
	p := &parser{text: text}
	for {
		p.depth = 0
		s, err := p.statement()
		if err != nil {
			line := 1 + strings.Count(p.text[:min(p.at, len(p.text))], "\n")
			if len(warnings) < maxWarnings {
				warnings = append(warnings, fmt.Sprintf("line %d: %v", line, err))
			}
			p.skipLine()
			continue
		}
		if s == nil {
			return l, warnings
		}
		l = append(l, s)
	}
}

func (p *parser) skipLine() {
	p.peeked = nil
	if i := strings.IndexByte(p.text[p.at:], '\n'); i >= 0 && p.at > 0 && p.text[p.at-1] != '\n' {
		p.at += i + 1
	} else if i < 0 {
		p.at = len(p.text)
	}
}

func (p *parser) peek() (token, error) {
	if p.peeked == nil {
		t, err := p.lex()
		if err != nil {
			return token{}, err
		}
		p.peeked = &t
	}
	return *p.peeked, nil
}

func (p *parser) next() (token, error) {
	t, err := p.peek()
	p.peeked = nil
	return t, err
}

// isName says whether c may be in a variable's name.
func isName(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func (p *parser) lex() (token, error) {
	for p.at < len(p.text) {
		switch c := p.text[p.at]; {
		case c == ' ' || c == '\t' || c == '\r':
			p.at++
		case strings.HasPrefix(p.text[p.at:], "\\\n"):
			p.at += 2
		case c == '#':
			if i := strings.IndexByte(p.text[p.at:], '\n'); i >= 0 {
				p.at += i
			} else {
				p.at = len(p.text)
			}
		case c == '\n' || c == ';':
			p.at++
			return token{kind: tokenEnd}, nil
		case c == '{':
			p.at++
			return token{kind: tokenOpen}, nil
		case c == '}':
			p.at++
			return token{kind: tokenClose}, nil
		default:
			w, err := p.lexWord()
			return token{kind: tokenWord, word: w}, err
		}
	}
	return token{kind: tokenEOF}, nil
}

func (p *parser) lexWord() (w word, err error) {
	var text strings.Builder
	quoted := false // an empty "" is a word, too
	flush := func() {
		if text.Len() > 0 || quoted {
			w = append(w, piece{text: text.String(), quoted: quoted})
			text.Reset()
		}
		quoted = false
	}
	for p.at < len(p.text) {
		switch c := p.text[p.at]; c {
		case ' ', '\t', '\r', '\n', ';', '{', '}':
			flush()
			return w, nil
		case '\\':
			p.at++
			if p.at < len(p.text) {
				if p.text[p.at] != '\n' {
					flush()
					text.WriteByte(p.text[p.at])
					quoted = true
					flush()
				}
				p.at++
			}
		case '\'':
			flush()
			i := strings.IndexByte(p.text[p.at+1:], '\'')
			if i < 0 {
				p.at = len(p.text)
				return nil, errors.New("quote ' is not closed")
			}
			text.WriteString(p.text[p.at+1 : p.at+1+i])
			quoted = true
			flush()
			p.at += i + 2
		case '"':
			flush()
			if w, err = p.lexQuoted(w); err != nil {
				return nil, err
			}
		case '$':
			if name, n := variableName(p.text[p.at:]); n > 0 {
				flush()
				w = append(w, piece{text: name, variable: true})
				p.at += n
				continue
			}
			if p.at++; p.at < len(p.text) && p.text[p.at] == '"' {
				continue // $"..." is a text that may be translated
			}
			text.WriteByte(c)
		default:
			text.WriteByte(c)
			p.at++
		}
	}
	flush()
	return w, nil
}

// lexQuoted reads "..." and adds its pieces to w.
func (p *parser) lexQuoted(w word) (word, error) {
	var text strings.Builder
	start := len(w)
	flush := func() {
		if text.Len() > 0 {
			w = append(w, piece{text: text.String(), quoted: true})
			text.Reset()
		}
	}
	for p.at++; p.at < len(p.text); {
		switch c := p.text[p.at]; c {
		case '"':
			p.at++
			flush()
			if len(w) == start {
				w = append(w, piece{quoted: true})
			}
			return w, nil
		case '\\':
			p.at++
			if p.at == len(p.text) {
				break
			}
			switch c := p.text[p.at]; c {
			case '\n':
			case '$', '"', '\\':
				text.WriteByte(c)
			default:
				text.WriteByte('\\')
				text.WriteByte(c)
			}
			p.at++
		case '$':
			if name, n := variableName(p.text[p.at:]); n > 0 {
				flush()
				w = append(w, piece{text: name, variable: true, quoted: true})
				p.at += n
				continue
			}
			text.WriteByte(c)
			p.at++
		default:
			text.WriteByte(c)
			p.at++
		}
	}
	return nil, errors.New(`quote " is not closed`)
}

// variableName reads $NAME or ${NAME} at the beginning of s, and how long that
// is; 0 if it is neither.
func variableName(s string) (name string, n int) {
	s = s[1:]
	if strings.HasPrefix(s, "{") {
		end := strings.IndexByte(s, '}')
		if end < 2 {
			return "", 0
		}
		for i := 1; i < end; i++ {
			if !isName(s[i]) && !strings.ContainsRune("#*@?", rune(s[i])) {
				return "", 0
			}
		}
		return s[1:end], end + 2
	}
	if s != "" && strings.IndexByte("#*@?", s[0]) >= 0 {
		return s[:1], 2
	}
	if s != "" && s[0] >= '0' && s[0] <= '9' {
		for n < len(s) && s[n] >= '0' && s[n] <= '9' {
			n++
		}
		return s[:n], n + 1
	}
	for n < len(s) && isName(s[n]) {
		n++
	}
	if n == 0 {
		return "", 0
	}
	return s[:n], n + 1
}

// statement reads one; nil at the end of the text.
func (p *parser) statement() (statement, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, fmt.Errorf("nested more than %d deep", maxDepth)
	}
	defer func() { p.depth-- }()
	for {
		t, err := p.peek()
		if err != nil {
			return nil, err
		}
		switch t.kind {
		case tokenEOF:
			return nil, nil
		case tokenEnd:
			p.peeked = nil
			continue
		case tokenOpen, tokenClose:
			p.peeked = nil
			return nil, errors.New("a brace that belongs to nothing")
		}
		name, _ := t.word.plain()
		switch name {
		case "if":
			p.peeked = nil
			return p.branch()
		case "while", "until":
			p.peeked = nil
			condition, _, err := p.until("do")
			if err != nil {
				return nil, err
			}
			body, _, err := p.until("done")
			return &loop{condition, body, name == "until"}, err
		case "for":
			p.peeked = nil
			return p.each()
		case "function":
			p.peeked = nil
			return p.function()
		case "then", "elif", "else", "fi", "do", "done":
			p.peeked = nil
			return nil, fmt.Errorf("%s that belongs to nothing", name)
		}
		return p.command()
	}
}

// until reads statements up to one of the words, which it returns.
func (p *parser) until(ends ...string) (l list, end string, err error) {
	for {
		t, err := p.peek()
		if err != nil {
			return nil, "", err
		}
		if t.kind == tokenEnd {
			p.peeked = nil
			continue
		}
		if t.kind == tokenEOF {
			return nil, "", errEOF
		}
		if t.kind == tokenClose && ends[0] == "}" {
			p.peeked = nil
			return l, "}", nil
		}
		if t.kind == tokenWord {
			name, _ := t.word.plain()
			for _, e := range ends {
				if name == e {
					p.peeked = nil
					return l, name, nil
				}
			}
		}
		s, err := p.statement()
		if err != nil {
			return nil, "", err
		}
		if s != nil {
			l = append(l, s)
		}
	}
}

func (p *parser) branch() (statement, error) {
	var b branch
	for {
		condition, _, err := p.until("then")
		if err != nil {
			return nil, err
		}
		b.conditions = append(b.conditions, condition)
		body, end, err := p.until("elif", "else", "fi")
		if err != nil {
			return nil, err
		}
		b.bodies = append(b.bodies, body)
		switch end {
		case "fi":
			return &b, nil
		case "else":
			body, _, err := p.until("fi")
			b.bodies = append(b.bodies, body)
			return &b, err
		}
	}
}

func (p *parser) each() (statement, error) {
	name, err := p.next()
	if err != nil {
		return nil, err
	}
	e := &each{}
	if e.name, _ = name.word.plain(); e.name == "" {
		return nil, errors.New("for without a name")
	}
	in, err := p.next()
	if err != nil {
		return nil, err
	}
	if text, _ := in.word.plain(); text != "in" {
		return nil, errors.New("for without in")
	}
	for {
		t, err := p.next()
		if err != nil {
			return nil, err
		}
		if t.kind != tokenWord {
			break
		}
		e.words = append(e.words, t.word)
	}
	if before, _, err := p.until("do"); err != nil || len(before) > 0 {
		return nil, errors.Join(err, errors.New("for without do"))
	}
	e.body, _, err = p.until("done")
	return e, err
}

func (p *parser) function() (statement, error) {
	t, err := p.next()
	if err != nil {
		return nil, err
	}
	name, ok := t.word.plain()
	if !ok {
		return nil, errors.New("function without a name")
	}
	if err := p.open(); err != nil {
		return nil, err
	}
	body, _, err := p.until("}")
	return &function{name, body}, err
}

// open reads newlines and a brace.
func (p *parser) open() error {
	for {
		t, err := p.next()
		if err != nil {
			return err
		}
		switch t.kind {
		case tokenOpen:
			return nil
		case tokenEnd:
		default:
			return errors.New("function without {")
		}
	}
}

func (p *parser) command() (statement, error) {
	c := &command{}
	for {
		t, err := p.next()
		if err != nil {
			return nil, err
		}
		switch t.kind {
		case tokenWord:
			c.words = append(c.words, t.word)
		case tokenOpen:
			c.has = true
			if c.block, _, err = p.until("}"); err != nil {
				return nil, err
			}
			return c, nil
		case tokenClose:
			// It ends the block that this command is in, as a newline would.
			p.peeked = &t
			return c, nil
		default:
			return c, nil
		}
	}
}
