package archtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath, Dir, Name, Doc string
	GoFiles, IgnoredGoFiles    []string
	TestGoFiles, XTestGoFiles  []string
	Imports, Deps              []string
	TestImports, XTestImports  []string
}

// path is relative to the module.
func (p pkg) path() string { return strings.TrimPrefix(p.ImportPath, module) }

func (p pkg) layer() (layer, bool) {
	if len(p.GoFiles)+len(p.IgnoredGoFiles) == 0 {
		return support, true
	}
	return layerOf(p.ImportPath)
}

func layerOf(importPath string) (layer, bool) {
	path := strings.TrimPrefix(importPath, module)
	if l, ok := layers[path]; ok {
		return l, true
	}
	if strings.HasSuffix(path, "test") || strings.HasPrefix(path, "vmtest/") {
		return support, true
	}
	return 0, false
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Name,Doc,GoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles,Imports,Deps,TestImports,XTestImports", module+"...")
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		all = append(all, p)
	}
	if len(all) < 20 {
		t.Fatalf("go list has %d packages, want the whole module", len(all))
	}
	return all
}

func TestImports(t *testing.T) {
	for _, p := range list(t) {
		for _, problem := range slices.Concat(checkImports(p), checkPackage(p)) {
			t.Error(problem)
		}
	}
}

// TestListed finds packages in the rules that are gone.
func TestListed(t *testing.T) {
	all := list(t)
	for path := range layers {
		if !slices.ContainsFunc(all, func(p pkg) bool { return p.path() == path }) {
			t.Errorf("%s is in the list of layers, and is no package", path)
		}
	}
}

// below says whether path is root or lies below it.
func below(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

func checkImports(p pkg) (problems []string) {
	fail := func(format string, args ...any) {
		problems = append(problems, p.path()+": "+fmt.Sprintf(format, args...))
	}
	own, known := p.layer()
	if !known {
		fail("is in no layer: add it to the list in rules_test.go")
		return problems
	}
	for _, imported := range p.Imports {
		if l, ok := layerOf(imported); ok && strings.HasPrefix(imported, module) {
			switch {
			case l == support && own != support:
				fail("imports %s, which is for tests", imported)
			case l > own:
				fail("imports %s of a higher layer; %s", imported, layerReason)
			case own == system && l == pure:
				fail("imports %s; %s", imported, crossReason)
			}
		}
		for _, f := range forbidden {
			if below(imported, f.path) && slices.Contains(f.in, own) && !slices.Contains(f.except, p.path()) {
				fail("imports %s; %s", imported, f.reason)
			}
		}
	}
	for _, a := range apart {
		if p.path() == a.path && slices.Contains(p.Deps, module+a.not) {
			fail("depends on %s; %s", a.not, a.reason)
		}
	}
	for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
		first, _, _ := strings.Cut(imported, "/")
		if !strings.Contains(first, ".") || strings.HasPrefix(imported, module) {
			continue
		}
		allowed := false
		for root := range thirdParty {
			allowed = allowed || below(imported, root)
		}
		if !allowed {
			fail("imports %s; the standard library comes first, and the list in rules_test.go says what else there is", imported)
		}
		if below(imported, "github.com/google/go-cmp") && slices.Contains(p.Imports, imported) && own != support {
			fail("imports %s outside tests", imported)
		}
	}
	return problems
}

func checkPackage(p pkg) (problems []string) {
	fail := func(format string, args ...any) {
		problems = append(problems, p.path()+": "+fmt.Sprintf(format, args...))
	}
	want := []string{"Package " + p.Name + " "}
	if p.Name == "main" {
		name := p.path()[strings.LastIndex(p.path(), "/")+1:]
		want = []string{"Command " + name + " ", strings.ToUpper(name[:1]) + name[1:] + " "}
	}
	if len(p.GoFiles) > 0 && !slices.ContainsFunc(want, func(w string) bool { return strings.HasPrefix(p.Doc, w) }) {
		fail("package comment %q, want it to begin with %q", p.Doc, want)
	}
	for _, word := range []string{"util", "utils", "common", "helper", "helpers", "misc", "base", "types"} {
		if below(p.path(), word) || strings.HasSuffix(p.path(), "/"+word) {
			fail("is named %q: a package is named for what it has", word)
		}
	}
	return problems
}

func TestFiles(t *testing.T) {
	for _, p := range list(t) {
		l, ok := p.layer()
		if !ok {
			continue // TestImports tells
		}
		for _, name := range slices.Concat(p.GoFiles, p.IgnoredGoFiles, p.TestGoFiles, p.XTestGoFiles) {
			path := filepath.Join(p.Dir, name)
			src, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			problems, err := checkFile(p.path(), l, name, src)
			if err != nil {
				t.Fatal(err)
			}
			for _, problem := range problems {
				t.Errorf("%s/%s:%s", p.path(), name, problem)
			}
		}
	}
}

// checkFile looks at one file for what its imports don't tell. Problems start
// with the line.
func checkFile(path string, l layer, name string, src []byte) (problems []string, err error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, src, parser.SkipObjectResolution|parser.ParseComments)
	if err != nil {
		return nil, err
	}
	fail := func(at ast.Node, format string, args ...any) {
		problems = append(problems, fmt.Sprintf("%d: %s", set.Position(at.Pos()).Line, fmt.Sprintf(format, args...)))
	}
	test := strings.HasSuffix(name, "_test.go")
	imports := map[string]string{} // by the name in the file
	for _, i := range file.Imports {
		imported := strings.Trim(i.Path.Value, `"`)
		as := imported[strings.LastIndex(imported, "/")+1:]
		if i.Name != nil {
			as = i.Name.Name
		}
		imports[as] = imported
		if imported == "unsafe" && !strings.HasSuffix(strings.TrimSuffix(name, "_test.go"), "_unsafe") && !strings.HasSuffix(name, "_unsafe.go") {
			fail(i, "imports unsafe in a file that is not named *_unsafe.go: its name is where a reviewer looks")
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		from, called := "", ""
		switch f := call.Fun.(type) {
		case *ast.Ident:
			called = f.Name
		case *ast.SelectorExpr:
			called, from = f.Sel.Name, "."
			if x, ok := f.X.(*ast.Ident); ok && imports[x.Name] != "" {
				from = imports[x.Name]
			}
		}
		for _, c := range calls {
			if c.name != called || c.path != from && !(c.alsoOnValues && from == ".") ||
				test && !c.alsoInTests || !slices.Contains(c.in, l) || slices.Contains(c.except, path) {
				continue
			}
			fail(call, "calls %s; %s", called, c.reason)
		}
		return true
	})
	if !test && l != support {
		for _, d := range file.Decls {
			for _, leak := range leaks(d, imports) {
				fail(leak, "a type of u-root in an exported declaration: its changes would be ours")
			}
		}
	}
	for _, group := range file.Comments {
		for _, word := range []string{"TO" + "DO", "FIX" + "ME", "XX" + "X"} {
			if strings.Contains(group.Text(), word) {
				fail(group, "%s: what is left to do is an issue, not a comment", word)
			}
		}
	}
	return problems, nil
}

// leaks returns the uses of u-root's types in what d exports.
func leaks(d ast.Decl, imports map[string]string) (found []ast.Node) {
	search := func(n ast.Node) {
		ast.Inspect(n, func(n ast.Node) bool {
			if f, ok := n.(*ast.Field); ok && len(f.Names) > 0 && !slices.ContainsFunc(f.Names, (*ast.Ident).IsExported) {
				return false // of a struct; parameters are looked at below
			}
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && below(imports[x.Name], "github.com/u-root/u-root") {
					found = append(found, s)
				}
			}
			return true
		})
	}
	switch d := d.(type) {
	case *ast.FuncDecl:
		if !d.Name.IsExported() {
			return nil
		}
		for _, list := range []*ast.FieldList{d.Type.TypeParams, d.Type.Params, d.Type.Results} {
			if list == nil {
				continue
			}
			for _, f := range list.List {
				search(f.Type)
			}
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() {
					search(s.Type)
				}
			case *ast.ValueSpec:
				if s.Type != nil && slices.ContainsFunc(s.Names, (*ast.Ident).IsExported) {
					search(s.Type)
				}
			}
		}
	}
	return found
}

// TestPortable vets layers 0 to 2 for systems that the project does not run
// on: what compiles there has no Linux, no word size and no byte order in it.
func TestPortable(t *testing.T) {
	var paths []string
	for path, l := range layers {
		if l <= pure {
			paths = append(paths, module+path)
		}
	}
	slices.Sort(paths)
	for _, target := range targets {
		t.Run(target.os+"/"+target.arch, func(t *testing.T) {
			cmd := exec.Command("go", append([]string{"vet"}, paths...)...)
			cmd.Env = append(os.Environ(), "GOOS="+target.os, "GOARCH="+target.arch, "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: go vet: %v\n%s", target.reason, err, out)
			}
		})
	}
}
