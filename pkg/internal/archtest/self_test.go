package archtest

import (
	"strings"
	"testing"
)

// The rules are tests that pass; these show that they can fail.

func TestImportsFind(t *testing.T) {
	tests := []struct {
		name    string
		p       pkg
		want    string // empty: it is allowed
		imports string
	}{
		{"down", pkg{ImportPath: module + "pkg/plan"}, "", module + "pkg/phys"},
		{"same layer", pkg{ImportPath: module + "pkg/printk"}, "", module + "pkg/elfcore"},
		{"up", pkg{ImportPath: module + "pkg/phys"}, "higher layer", module + "pkg/memmap"},
		{"plan to physmem", pkg{ImportPath: module + "pkg/plan"}, "higher layer", module + "pkg/physmem"},
		{"physmem to plan", pkg{ImportPath: module + "pkg/physmem"}, "exchange phys.Copy", module + "pkg/plan"},
		{"test support", pkg{ImportPath: module + "pkg/payload"}, "is for tests", module + "pkg/physmem/physmemtest"},
		{"test support in test support", pkg{ImportPath: module + "vmtest/story"}, "", module + "pkg/registration/registrationtest"},
		{"unknown package", pkg{ImportPath: module + "pkg/new"}, "is in no layer", "fmt"},
		{"os in plan", pkg{ImportPath: module + "pkg/plan"}, "a function of values", "os"},
		{"os/exec in plan", pkg{ImportPath: module + "pkg/plan"}, "a function of values", "os/exec"},
		{"os in payload", pkg{ImportPath: module + "pkg/payload"}, "", "os"},
		{"slog in elfcore", pkg{ImportPath: module + "pkg/elfcore"}, "warnings and errors are values", "log/slog"},
		{"x/sys in payload", pkg{ImportPath: module + "pkg/payload"}, "belong to layer 3", "golang.org/x/sys/unix"},
		{"x/sys in kexec", pkg{ImportPath: module + "pkg/kexec"}, "", "golang.org/x/sys/unix"},
		{"net in target", pkg{ImportPath: module + "pkg/target"}, "", "net/http"},
		{"x/sys in target", pkg{ImportPath: module + "pkg/target"}, "", "golang.org/x/sys/unix"},
		{"target to dumpwriter", pkg{ImportPath: module + "pkg/target"}, "higher layer", module + "pkg/dumpwriter"},
		{"net in agent", pkg{ImportPath: module + "pkg/agent"}, "only a target", "net"},
		{"net in warmcore", pkg{ImportPath: module + "cmds/warmcore"}, "only a target", "net/http"},
		{"net in hotplug", pkg{ImportPath: module + "pkg/hotplug"}, "only a target", "net"},
		{"target in agent", pkg{ImportPath: module + "pkg/agent"}, "", module + "pkg/target"},
		{"target in payload", pkg{ImportPath: module + "pkg/payload"}, "the payload saves no dump", module + "pkg/target"},
		{"dump writer in warminit", pkg{ImportPath: module + "cmds/warminit"}, "the payload saves no dump", module + "pkg/dumpwriter"},
		{"u-root in payload", pkg{ImportPath: module + "pkg/payload"}, "one place", "github.com/u-root/u-root/pkg/boot"},
		{"u-root in normalboot", pkg{ImportPath: module + "pkg/normalboot"}, "", "github.com/u-root/u-root/pkg/boot"},
		{"another module", pkg{ImportPath: module + "pkg/agent"}, "standard library comes first", "github.com/pkg/errors"},
		{"go-cmp in code", pkg{ImportPath: module + "pkg/agent"}, "outside tests", "github.com/google/go-cmp/cmp"},
		{"testing in code", pkg{ImportPath: module + "cmds/warmcore"}, "its flags", "testing"},
		{"flag in agent", pkg{ImportPath: module + "pkg/agent"}, "command's business", "flag"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.p.GoFiles = []string{"a.go"}
			tt.p.Imports = []string{tt.imports}
			wantProblem(t, checkImports(tt.p), tt.want)
		})
	}
}

func TestApartFinds(t *testing.T) {
	p := pkg{ImportPath: module + "pkg/plan", GoFiles: []string{"a.go"}, Imports: []string{module + "pkg/memmap"}, Deps: []string{module + "pkg/memmap"}}
	wantProblem(t, checkImports(p), "")
	p.Deps = append(p.Deps, module+"pkg/registration")
	wantProblem(t, checkImports(p), "where the payload writes")
}

func TestPackageOfTests(t *testing.T) {
	p := pkg{ImportPath: module + "boot/new", TestGoFiles: []string{"a_test.go"}, TestImports: []string{"os"}}
	wantProblem(t, checkImports(p), "")
}

func TestPackagesFind(t *testing.T) {
	tests := []struct {
		name string
		p    pkg
		want string
	}{
		{"good", pkg{ImportPath: module + "pkg/phys", Name: "phys", Doc: "Package phys holds ranges."}, ""},
		{"no comment", pkg{ImportPath: module + "pkg/phys", Name: "phys"}, "package comment"},
		{"another's comment", pkg{ImportPath: module + "pkg/phys", Name: "phys", Doc: "Package physmem reads."}, "package comment"},
		{"command", pkg{ImportPath: module + "cmds/warminit", Name: "main", Doc: "Warminit is what runs."}, ""},
		{"command without", pkg{ImportPath: module + "cmds/warminit", Name: "main", Doc: "This is what runs."}, "package comment"},
		{"named for nothing", pkg{ImportPath: module + "pkg/util", Name: "util", Doc: "Package util has."}, "a package is named for what it has"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.p.GoFiles = []string{"a.go"}
			wantProblem(t, checkPackage(tt.p), tt.want)
		})
	}
}

func TestFilesFind(t *testing.T) {
	const uroot = "import \"github.com/u-root/u-root/pkg/boot\"\n"
	tests := []struct {
		name string
		path string
		file string
		src  string
		want string
	}{
		{"nothing", "pkg/plan", "a.go", "func f() {}", ""},
		{"clock in plan", "pkg/plan", "a.go", "import \"time\"\nfunc f() { time.Now() }", "4: calls Now; time is a parameter"},
		{"clock by another name", "pkg/plan", "a.go", "import clock \"time\"\nfunc f() { clock.Since(x) }", "calls Since"},
		{"clock in a test of plan", "pkg/plan", "a_test.go", "import \"time\"\nfunc f() { time.Now() }", ""},
		{"clock in payload", "pkg/payload", "a.go", "import \"time\"\nfunc f() { time.Now() }", ""},
		{"a method called Now", "pkg/plan", "a.go", "func f() { p.Now(r) }", ""},
		{"exit", "pkg/payload", "a.go", "import \"os\"\nfunc f() { os.Exit(1) }", "calls Exit; only main"},
		{"exit in a command", "cmds/warminit", "main.go", "import \"os\"\nfunc f() { os.Exit(1) }", ""},
		{"panic", "pkg/phys", "a.go", "func f() { panic(1) }", "calls panic"},
		{"panic that is passed on", "pkg/physmem", "a.go", "func f() { panic(1) }", ""},
		{"log", "pkg/agent", "a.go", "import \"log\"\nfunc f() { log.Printf(x) }", "calls Printf; flows take"},
		{"slog without a logger", "pkg/agent", "a.go", "import \"log/slog\"\nfunc f() { slog.Info(x) }", "calls Info"},
		{"slog with a logger", "pkg/agent", "a.go", "import \"log/slog\"\nfunc f(l *slog.Logger) { l.Info(x) }", ""},
		{"skipped test", "pkg/agent", "a_test.go", "func f(t *testing.T) { t.Skip() }", "finds nothing"},
		{"unsafe", "pkg/kexec", "a.go", "import \"unsafe\"", "*_unsafe.go"},
		{"unsafe where it belongs", "pkg/kexec", "a_unsafe.go", "import \"unsafe\"", ""},
		{"not done", "pkg/kexec", "a.go", "// TO" + "DO: more\nfunc f() {}", "is an issue"},
		{"u-root parameter", "pkg/normalboot", "a.go", uroot + "func F(i boot.OSImage) {}", "a type of u-root"},
		{"u-root result", "pkg/normalboot", "a.go", uroot + "func F() map[string][]*boot.OSImage { return nil }", "a type of u-root"},
		{"u-root field", "pkg/normalboot", "a.go", uroot + "type T struct { A int; B boot.OSImage }", "a type of u-root"},
		{"u-root embedded", "pkg/normalboot", "a.go", uroot + "type T struct { boot.OSImage }", "a type of u-root"},
		{"u-root alias", "pkg/normalboot", "a.go", uroot + "type T = boot.OSImage", "a type of u-root"},
		{"u-root in a method of an interface", "pkg/normalboot", "a.go", uroot + "type T interface { M() boot.OSImage }", "a type of u-root"},
		{"u-root variable", "pkg/normalboot", "a.go", uroot + "var V boot.OSImage", "a type of u-root"},
		{"u-root inside", "pkg/normalboot", "a.go", uroot + "type T struct { a boot.OSImage }\nfunc f(i boot.OSImage) {}\nfunc F() { var i boot.OSImage; _ = i }", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			problems, err := checkFile(tt.path, layers[tt.path], tt.file, []byte("package p\n\n"+tt.src+"\n"))
			if err != nil {
				t.Fatal(err)
			}
			wantProblem(t, problems, tt.want)
		})
	}
}

func wantProblem(t *testing.T, problems []string, want string) {
	t.Helper()
	switch {
	case want == "" && len(problems) > 0:
		t.Errorf("found %q in what is allowed", problems)
	case want != "" && (len(problems) != 1 || !strings.Contains(problems[0], want)):
		t.Errorf("found %q, want one problem with %q", problems, want)
	}
}
