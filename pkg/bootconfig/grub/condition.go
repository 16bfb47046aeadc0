package grub

import (
	"strconv"
	"strings"
)

// test is GRUB's command of that name: conditions with !, -a, -o and
// parentheses.
func (in *interpreter) test(args []string) bool {
	c := &condition{in: in, args: args}
	return c.or()
}

type condition struct {
	in    *interpreter
	args  []string
	depth int
}

func (c *condition) peek() string {
	if len(c.args) == 0 {
		return ""
	}
	return c.args[0]
}

func (c *condition) or() bool {
	yes := c.and()
	for len(c.args) > 0 && c.peek() == "-o" {
		c.args = c.args[1:]
		yes = c.and() || yes
	}
	return yes
}

func (c *condition) and() bool {
	yes := c.one()
	for len(c.args) > 0 && c.peek() != "-o" && c.peek() != ")" {
		if c.peek() == "-a" {
			c.args = c.args[1:]
		}
		yes = c.one() && yes
	}
	return yes
}

func (c *condition) one() bool {
	if len(c.args) == 0 {
		return false
	}
	if c.depth++; c.depth > maxDepth {
		c.args = nil
		return false
	}
	defer func() { c.depth-- }()
	if len(c.args) >= 3 {
		if yes, ok := c.compare(c.args[0], c.args[1], c.args[2]); ok {
			c.args = c.args[3:]
			return yes
		}
	}
	a := c.args[0]
	if a == "!" {
		c.args = c.args[1:]
		return !c.one()
	}
	if a == "(" {
		c.args = c.args[1:]
		yes := c.or()
		if c.peek() == ")" {
			c.args = c.args[1:]
		}
		return yes
	}
	if len(c.args) >= 2 {
		b := c.args[1]
		yes, ok := false, true
		switch a {
		case "-n":
			yes = b != ""
		case "-z":
			yes = b == ""
		case "-d":
			info := c.in.stat(b)
			yes = info != nil && info.IsDir()
		case "-e":
			yes = c.in.stat(b) != nil
		case "-f":
			info := c.in.stat(b)
			yes = info != nil && !info.IsDir()
		case "-s":
			info := c.in.stat(b)
			yes = info != nil && info.Size() > 0
		default:
			ok = false
		}
		if ok {
			c.args = c.args[2:]
			return yes
		}
	}
	c.args = c.args[1:]
	return a != ""
}

func (c *condition) compare(a, op, b string) (yes, ok bool) {
	switch op {
	case "=", "==":
		return a == b, true
	case "!=":
		return a != b, true
	case "<":
		return a < b, true
	case "<=":
		return a <= b, true
	case ">":
		return a > b, true
	case ">=":
		return a >= b, true
	case "-eq", "-ne", "-lt", "-le", "-gt", "-ge", "-pgt", "-plt":
	case "-nt", "-ot", "-ef":
		return false, true
	default:
		return false, false
	}
	x, y := number(a), number(b)
	switch op {
	case "-eq":
		return x == y, true
	case "-ne":
		return x != y, true
	case "-lt":
		return x < y, true
	case "-le":
		return x <= y, true
	case "-gt":
		return x > y, true
	case "-ge":
		return x >= y, true
	}
	// -pgt and -plt leave out what comes before the number.
	digits := "0123456789"
	x, y = number(a[max(0, strings.IndexAny(a, digits)):]), number(b[max(0, strings.IndexAny(b, digits)):])
	return op == "-pgt" && x > y || op == "-plt" && x < y, true
}

// number is the one at the beginning of s, 0 if there is none.
func number(s string) int64 {
	s = strings.TrimSpace(s)
	end := 0
	for end < len(s) && (s[end] >= '0' && s[end] <= '9' || end == 0 && s[0] == '-') {
		end++
	}
	n, err := strconv.ParseInt(s[:end], 10, 64)
	if err != nil {
		return 0
	}
	return n
}
