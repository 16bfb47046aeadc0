package bls

import (
	"cmp"
	"strings"
)

// CompareVersions orders versions as the specification says
// (https://uapi-group.org/specifications/specs/version_format_specification/):
// numbers as numbers; ~ before the end, before - before ^ before . before the
// rest.
func CompareVersions(a, b string) int {
	for {
		a, b = skipOthers(a), skipOthers(b)
		if x, y := strings.HasPrefix(a, "~"), strings.HasPrefix(b, "~"); x || y {
			if x != y {
				return before(x)
			}
			a, b = a[1:], b[1:]
			continue
		}
		if a == "" || b == "" {
			return cmp.Compare(len(a), len(b))
		}
		same := false
		for _, separator := range []string{"-", "^", "."} {
			x, y := strings.HasPrefix(a, separator), strings.HasPrefix(b, separator)
			if x != y {
				return before(x)
			}
			if x {
				a, b, same = a[1:], b[1:], true
				break
			}
		}
		if same {
			continue
		}
		number, kind := isDigit(a[0]) || isDigit(b[0]), isLetter
		if number {
			kind = isDigit
		}
		x, y := prefix(a, kind), prefix(b, kind)
		a, b = a[len(x):], b[len(y):]
		if number {
			if (x == "") != (y == "") {
				return cmp.Compare(len(x), len(y)) // a number is newer than a word
			}
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if len(x) != len(y) {
				return cmp.Compare(len(x), len(y))
			}
		}
		if r := strings.Compare(x, y); r != 0 {
			return r
		}
	}
}

// before is the result where a separator follows in only one of the
// versions.
func before(first bool) int {
	if first {
		return -1
	}
	return 1
}

func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

func skipOthers(s string) string {
	for s != "" && !isDigit(s[0]) && !isLetter(s[0]) && strings.IndexByte("~-^.", s[0]) < 0 {
		s = s[1:]
	}
	return s
}

func prefix(s string, kind func(byte) bool) string {
	n := 0
	for n < len(s) && kind(s[n]) {
		n++
	}
	return s[:n]
}
