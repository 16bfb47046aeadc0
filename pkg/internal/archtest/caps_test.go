package archtest

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The largest machine that caps are measured by is larger than any that is
// sold: 8192 CPUs, which is as many as x86-64 kernels take (MAXSMP in
// arch/x86/Kconfig, v6.12), 32 nodes, 64 TiB of RAM in 1000 ranges, and 2048
// virtual functions with six BARs.
const (
	cpus    = 8192
	ranges  = 1000
	ram     = 64 << 40
	block   = 128 << 20 // the smallest memory block
	page    = 4 << 10
	vfLines = 2048 * 6 * 2 // in /proc/iomem: of each BAR, and of the driver that claimed it

	note = 412 // a CPU's NT_PRSTATUS on arm64, with its header
)

// caps are the constants that bound what a real machine shows. Cap is at least
// margin times what the largest machine has, unless a format bounds it: then
// it is less, and beyond says what happens.
var caps = []struct {
	dir, name string
	largest   int64
	margin    int64
	beyond    string
}{
	{"pkg/memmap", "MaxIOMemLines", vfLines + 4*ranges, 8, ""},
	{"pkg/memmap", "MaxEntries", ranges, 4, ""},          // the e820 table of a kernel has at most 3200
	{"pkg/running", "maxFile", 80*cpus + 16*cpus, 8, ""}, // arm64's MADT: GICC, and GICR or ITS, for each CPU
	{"pkg/running", "maxCPUInfo", 2048 * cpus, 4, ""},
	{"pkg/running", "maxList", cpus, 4, ""},
	{"pkg/hotplug", "maxBlocks", ram / block, 4, ""},
	{"pkg/hotplug", "maxModules", 700 << 10, 4, ""},
	{"pkg/devicetree", "MaxNodes", 8192 * 2, 4, ""},
	{"pkg/devicetree", "MaxProperties", 8192 * 6, 2, ""},
	{"pkg/elfcore", "MaxPhdrs", cpus + 4*ranges, 4, ""},
	{"pkg/elfcore", "MaxNotes", note * cpus, 8, ""}, // /proc/vmcore has them in one segment
	{"pkg/elfcore", "MaxNoteSize", 64 << 10, 8, ""},
	{"pkg/vmcore/elfdump", "MaxSegments", ranges, 8, ""},
	{"pkg/vmcore/kdump", "MaxPages", ram / page, 8, ""},
	{"pkg/vmcore/kdump", "maxRanges", ranges, 8, ""},
	{"pkg/vmcore/kdump", "MaxVMCOREINFO", 16 << 10, 4, ""},
	{"pkg/vmcore/checksum", "maxBlocks", ram >> 20, 2, ""}, // of 1 MiB
	{"pkg/manifest", "maxSize", ram >> 20 * 4 * 4 / 3, 2, ""},
	{"pkg/vmcoreinfo", "MaxText", 16 << 10, 4, ""},
	{"pkg/printk", "MaxRecords", cpus << 12 / 32, 2, ""}, // a log of 4 KiB for each CPU (LOG_CPU_MAX_BUF_SHIFT), of 32 bytes a record (PRB_AVGBITS)
	{"pkg/printk", "MaxText", cpus << 12, 2, ""},
	{"pkg/binding", "MaxHandoff", 0x0C0000 + 56*(cpus+4*ranges), 8, ""},

	// Two copies of the registration are of 64 KiB each, in a handoff area of
	// 2 MiB: it has room for the notes of 3072 CPUs and a plan of 1024 ranges.
	{"pkg/registration", "MaxCPUs", cpus, 0, "x86-64 and arm64: arm refuses, and asks for nr_cpus="},
	{"boot/stub", "MaxCPUs", cpus, 0, "x86-64 and arm64: arm refuses, and asks for nr_cpus="},
	{"pkg/registration", "MaxPlan", ranges, 1, "the payload makes no plan, and asks for larger memory blocks"},
}

// TestCaps: every cap on what a real machine shows is far above what the
// largest machine has, or it is known what happens beyond.
func TestCaps(t *testing.T) {
	root := moduleRoot(t)
	for _, c := range caps {
		got, err := constantIn(filepath.Join(root, c.dir), c.name)
		if err != nil {
			t.Errorf("%s.%s: %v", c.dir, c.name, err)
			continue
		}
		if got < c.margin*c.largest {
			t.Errorf("%s.%s is %d, want at least %d times the %d of the largest machine", c.dir, c.name, got, c.margin, c.largest)
		}
		if small := c.margin < 2; small != (c.beyond != "") {
			t.Errorf("%s.%s: margin %d, beyond it %q", c.dir, c.name, c.margin, c.beyond)
		}
	}
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
		dir = filepath.Dir(dir)
	}
}

// constantIn returns the value of an integer constant of the package in dir.
func constantIn(dir, name string) (int64, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return 0, err
	}
	values := map[string]ast.Expr{}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), f, nil, 0)
		if err != nil {
			return 0, err
		}
		for _, d := range file.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				for i, n := range v.Names {
					if i < len(v.Values) {
						values[n.Name] = v.Values[i]
					}
				}
			}
		}
	}
	v, err := evaluate(values, &ast.Ident{Name: name}, 0)
	if err != nil {
		return 0, err
	}
	n, exact := constant.Int64Val(v)
	if !exact {
		return 0, fmt.Errorf("%v is no int64", v)
	}
	return n, nil
}

// units are the sizes of pkg/phys.
var units = map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PageSize": 1 << 12}

func evaluate(values map[string]ast.Expr, e ast.Expr, depth int) (constant.Value, error) {
	if depth > 10 {
		return nil, fmt.Errorf("nested too deep")
	}
	switch e := e.(type) {
	case *ast.BasicLit:
		return constant.MakeFromLiteral(e.Value, e.Kind, 0), nil
	case *ast.ParenExpr:
		return evaluate(values, e.X, depth+1)
	case *ast.Ident:
		if v, ok := values[e.Name]; ok {
			return evaluate(values, v, depth+1)
		}
		return nil, fmt.Errorf("no constant %s", e.Name)
	case *ast.SelectorExpr:
		if n, ok := units[e.Sel.Name]; ok {
			return constant.MakeInt64(n), nil
		}
		return nil, fmt.Errorf("constant of another package: %s", e.Sel.Name)
	case *ast.BinaryExpr:
		x, err := evaluate(values, e.X, depth+1)
		if err != nil {
			return nil, err
		}
		y, err := evaluate(values, e.Y, depth+1)
		if err != nil {
			return nil, err
		}
		if e.Op == token.SHL || e.Op == token.SHR {
			n, _ := constant.Uint64Val(y)
			return constant.Shift(x, e.Op, uint(n)), nil
		}
		return constant.BinaryOp(x, e.Op, y), nil
	}
	return nil, fmt.Errorf("an expression of kind %T", e)
}
