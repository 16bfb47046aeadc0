package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestRefusalsFit: a refusal is two lines on a terminal, reason and remedy. It
// walks all that are in the source, without what is put in for %v.
func TestRefusalsFit(t *testing.T) {
	var files []string
	for _, dir := range []string{"../..", "../../../cmds"} {
		err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
			if strings.HasSuffix(name, ".go") {
				files = append(files, name)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	found := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		check := func(e ast.Expr) {
			n := 0
			ast.Inspect(e, func(n2 ast.Node) bool {
				if l, ok := n2.(*ast.BasicLit); ok && l.Kind == token.STRING {
					s, err := strconv.Unquote(l.Value)
					if err != nil {
						t.Fatal(err)
					}
					n += len(s)
				}
				return true
			})
			if n > 0 {
				found++
			}
			if n >= 100 {
				t.Errorf("%v: %d characters, want less than 100", set.Position(e.Pos()), n)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				name := ""
				switch f := n.Fun.(type) {
				case *ast.Ident:
					name = f.Name
				case *ast.SelectorExpr:
					name = f.Sel.Name
				}
				if name == "refuse" || name == "Refuse" && len(n.Args) > 1 || name == "warn" && len(n.Args) > 1 || name == "blind" {
					check(n.Args[0])
					check(n.Args[1])
				}
			case *ast.KeyValueExpr:
				if id, ok := n.Key.(*ast.Ident); ok && (id.Name == "What" || id.Name == "Todo") {
					check(n.Value)
				}
			}
			return true
		})
	}
	if found < 60 {
		t.Errorf("%d texts found, want all of them", found)
	}
}
