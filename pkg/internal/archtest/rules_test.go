package archtest

// module is the import path of this module.
const module = "github.com/warmcore/warmcore/"

// A layer imports its own and lower ones.
type layer int

const (
	values  layer = iota // L0: arithmetic on values
	formats              // L1: bytes to values and back
	pure                 // L2: decisions
	system               // L3: one kernel interface each
	places               // where dumps go: files, and the network
	flows                // L4: what composes the above
	command              // flags, one call, print
	support              // tests and their tools: may import everything
)

// layers has every package of the module; vmtest, packages whose name ends in
// test, and those of nothing but tests are support without being listed.
var layers = map[string]layer{
	"pkg/phys":      values,
	"pkg/cmdline":   values,
	"boot/identmap": values,
	"pkg/outcome":   values,

	"pkg/bootconfig":          formats,
	"pkg/bootconfig/bls":      formats,
	"pkg/bootconfig/extlinux": formats,
	"pkg/bootconfig/grub":     formats,
	"pkg/bootconfig/uki":      formats,
	"pkg/superblock":          formats,

	"pkg/registration":     formats,
	"pkg/memmap":           formats,
	"pkg/acpi":             formats,
	"pkg/zeropage":         formats,
	"pkg/devicetree":       formats,
	"pkg/elfcore":          formats,
	"pkg/hugetlb":          formats,
	"pkg/binding":          formats,
	"pkg/vmcoreinfo":       formats,
	"pkg/kernelmap":        formats,
	"pkg/printk":           formats,
	"pkg/vmcore":           formats,
	"pkg/vmcore/elfdump":   formats,
	"pkg/vmcore/kdump":     formats,
	"pkg/vmcore/flattened": formats,
	"pkg/vmcore/checksum":  formats,
	"pkg/vmcore/dumpfile":  formats,
	"pkg/vmcore/summary":   formats,
	"pkg/image/cpio":       formats,
	"pkg/image/gpt":        formats,
	"pkg/image/uboot":      formats,
	"boot/stub":            formats,
	"boot/trampoline":      formats,
	"pkg/manifest":         formats,
	"pkg/settings":         formats,

	"pkg/convert":    pure,
	"pkg/plan":       pure,
	"pkg/verdict":    pure,
	"pkg/dumpfilter": pure,
	"pkg/segments":   pure,

	"pkg/physmem":   system,
	"pkg/oldmem":    system,
	"pkg/kexec":     system,
	"pkg/kmod":      system,
	"pkg/handoff":   system,
	"pkg/hotplug":   system,
	"pkg/watchdog":  system,
	"pkg/busmaster": system,
	"pkg/running":   system,

	"pkg/target": places,

	"pkg/normalboot": flows,
	"pkg/payload":    flows,
	"pkg/readiness":  flows,
	"pkg/agent":      flows,
	"pkg/dumpwriter": flows,

	"cmds/warminit": command,
	"cmds/warmcore": command,
}

// layerReason is why arrows point down only; crossReason is why L2 and L3,
// though one lies above the other, don't know each other.
const (
	layerReason = "arrows point down only: what decides must not depend on what carries out"
	crossReason = "decisions and kernel interfaces exchange phys.Copy and phys.Segment only, so that each is tested without the other"
)

// forbidden imports, a path and all below it.
var forbidden = []struct {
	in     []layer
	path   string
	except []string // packages
	reason string
}{
	{[]layer{values, formats, pure}, "os", nil, "a plan is a function of values: the same on a laptop, in CI and in the payload"},
	{[]layer{values, formats, pure}, "syscall", nil, "these layers run on every system"},
	{[]layer{values, formats, pure}, "golang.org/x/sys", nil, "these layers run on every system"},
	{[]layer{values, formats, pure}, "unsafe", nil, "a parser of hostile bytes stays inside Go's checks"},
	{[]layer{values, formats, pure, system, flows, command}, "net", []string{"pkg/normalboot"}, "only a target of dumps talks to anybody"}, // u-root calls files by URL
	{[]layer{values, formats, pure, system, flows, command}, module + "pkg/target", []string{"pkg/dumpwriter", "pkg/agent", "cmds/warmcore"},
		"the payload saves no dump, and has no network"},
	{[]layer{values, formats, pure, system, flows, command}, module + "pkg/dumpwriter", []string{"pkg/agent", "cmds/warmcore"},
		"the payload saves no dump, and has no network"},
	{[]layer{values, formats, pure}, "log", nil, "what is worth telling is in the result: warnings and errors are values"},
	{[]layer{flows}, "golang.org/x/sys", nil, "system calls belong to layer 3"},
	{[]layer{places, flows, command}, "unsafe", nil, "only layer 3 leaves Go's checks"},
	{[]layer{flows}, "syscall", nil, "system calls belong to layer 3"}, // a command needs its names for signals and open flags
	{[]layer{values, formats, pure, system, places, flows, command}, "testing", nil, "it brings its flags into the program"},
	{[]layer{values, formats, pure, system, places, flows, command}, "github.com/u-root/u-root", []string{"pkg/normalboot"},
		"one place adapts to u-root's changes; elsewhere it is a tool that builds the initramfs"},
	{[]layer{values, formats, pure, system, places, flows}, "flag", nil, "parameters are a command's business"},
	{[]layer{values, formats, pure, system, places, flows, command, support}, "github.com/stretchr", nil, "go-cmp is the only test helper"},
}

// apart are packages of which one must not import another, not even through
// others, though the layers would allow it.
var apart = []struct{ path, not, reason string }{
	{"pkg/plan", "pkg/registration", "nothing that the crashed system wrote may say where the payload writes"},
}

// thirdParty are the modules that code, besides tools, may import at all.
var thirdParty = map[string]string{
	"golang.org/x/sys":              "system calls that the standard library has no name for",
	"github.com/u-root/u-root":      "mounting file systems",
	"github.com/klauspost/compress": "zlib, snappy and zstd pages of dumps",
	"github.com/google/go-cmp":      "readable differences in tests",
}

// calls that code may not make, by what the import path and name are; a name
// without a path is a builtin.
var calls = []struct {
	in           []layer
	path, name   string
	except       []string
	reason       string
	alsoInTests  bool
	alsoOnValues bool // any method of that name
}{
	{in: clockless, path: "time", name: "Now", reason: clockReason},
	{in: clockless, path: "time", name: "Since", reason: clockReason},
	{in: clockless, path: "time", name: "Until", reason: clockReason},
	{in: clockless, path: "time", name: "Sleep", reason: clockReason},
	{in: clockless, path: "time", name: "After", reason: clockReason},
	{in: clockless, path: "time", name: "Tick", reason: clockReason},
	{in: clockless, path: "time", name: "NewTimer", reason: clockReason},
	{in: clockless, path: "time", name: "NewTicker", reason: clockReason},
	{in: libraries, path: "os", name: "Exit", reason: "only main ends the program: the payload must get to the next rung of its ladder"},
	{in: libraries, path: "log", name: "Fatal", reason: "only main ends the program"},
	{in: libraries, path: "log", name: "Fatalf", reason: "only main ends the program"},
	{in: libraries, path: "log", name: "Print", reason: "flows take a *slog.Logger, the others return errors"},
	{in: libraries, path: "log", name: "Printf", reason: "flows take a *slog.Logger, the others return errors"},
	{in: libraries, path: "log", name: "Println", reason: "flows take a *slog.Logger, the others return errors"},
	{in: libraries, path: "log/slog", name: "Default", reason: "a logger is a parameter"},
	{in: libraries, path: "log/slog", name: "Info", reason: "a logger is a parameter"},
	{in: libraries, path: "log/slog", name: "Warn", reason: "a logger is a parameter"},
	{in: libraries, path: "log/slog", name: "Error", reason: "a logger is a parameter"},
	{in: libraries, name: "panic", reason: "whatever fails, the normal kernel still boots",
		except: []string{"pkg/physmem", "pkg/oldmem"}}, // they pass on a panic that is no memory fault
	{in: everything, name: "Skip", alsoInTests: true, alsoOnValues: true, reason: "a test that does not run finds nothing"},
	{in: everything, name: "Skipf", alsoInTests: true, alsoOnValues: true, reason: "a test that does not run finds nothing"},
	{in: everything, name: "SkipNow", alsoInTests: true, alsoOnValues: true, reason: "a test that does not run finds nothing"},
}

const clockReason = "time is a parameter of a decision"

var (
	clockless  = []layer{values, formats, pure}
	libraries  = []layer{values, formats, pure, system, places, flows}
	everything = []layer{values, formats, pure, system, places, flows, command, support}
)

// targets are what layers 0 to 2 are vetted for, with what each one finds.
var targets = []struct{ os, arch, reason string }{
	{"darwin", "amd64", "another kernel: nothing of Linux"},
	{"linux", "386", "32 bits: int holds no address"},
	{"linux", "arm", "32 bits, and 64-bit words are not aligned by themselves"},
	{"linux", "s390x", "big endian"},
}
