// Warmlab runs one crash story in QEMU and writes a report.
//
// The demo and the tests use it; `warmlab list` says which stories there are.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
	"github.com/warmcore/warmcore/vmtest/story"
)

const usage = `usage: warmlab VERB [FLAGS]

  list                 the stories
  run --story NAME     run one; --out DIR gets report.json, the dump and the logs
  demo                 crash a stock Debian kernel and show what came of it
  matrix               the stories of make vmtest-matrix: more kernels, both architectures;
                       --arch, --release, --story bound it
  bench                measure speed and size

flags:
  --arch ARCH          amd64 or arm64 (default: amd64)
  --story NAME         default crash
  --mem SIZE           RAM, such as 2G (default: the story's)
  --cpus N             (default: the story's)
  --kernel FILE        the normal kernel (default: what Debian's archive has today)
  --release NAME       the normal kernel is that of this release of Debian, such as trixie-backports
  --modules DIR        its lib/modules/RELEASE, with modules.dep
  --payload-kernel K   own or stock: ours or Debian's (default: the story's)
  --payload DIR        what make images built (default: build/ARCH/payload)
  --trigger KIND       sysrq-c, watchdog (default: the story's)
  --handover vmcore    the only one so far
  --firmware F         direct, QEMU's own loader, or on arm64 uboot (default: the story's)
  --cycles N           crashes in a row (default: the story's)
  --out DIR            default build/STORY, build/STORY-arm64
  --keep               keep the guest's RAM image at the reset
  --vmcore FILE        bench: the dump writer alone, on this ELF dump
  --timeout D          default 20m

exit codes: 0 passed, 1 failed, 2 usage
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// leastMemory is less than any payload starts in: a slip of the pen.
const leastMemory = 256 * phys.MiB

// releaseName is what a release of Debian may be called: it gets into file
// names and a sources.list.
var releaseName = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

type flags struct {
	options              story.Options
	story, mem, handover string
	timeout              time.Duration
	vmcore               string          // bench: the dump writer alone, on this ELF dump
	set                  map[string]bool // flags that were given
}

func parse(args []string) (verb string, f flags, err error) {
	if len(args) == 0 {
		return "", f, errors.New("a verb is missing")
	}
	switch verb = args[0]; verb {
	case "help", "-h", "-help", "--help":
		return "", f, flag.ErrHelp
	case "list", "run", "demo", "matrix", "bench":
	default:
		return "", f, fmt.Errorf("no verb %q", verb)
	}
	set := flag.NewFlagSet("warmlab", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&f.options.Arch, "arch", "amd64", "")
	set.StringVar(&f.story, "story", "crash", "")
	set.StringVar(&f.mem, "mem", "", "")
	set.IntVar(&f.options.CPUs, "cpus", 0, "")
	set.StringVar(&f.options.Kernel, "kernel", "", "")
	set.StringVar(&f.options.Release, "release", "", "")
	set.StringVar(&f.options.Modules, "modules", "", "")
	set.StringVar(&f.options.Payload, "payload-kernel", "", "")
	set.StringVar(&f.options.PayloadDir, "payload", "", "")
	set.StringVar(&f.options.Trigger, "trigger", "", "")
	set.StringVar(&f.handover, "handover", "vmcore", "")
	set.StringVar(&f.options.Firmware, "firmware", "", "")
	set.IntVar(&f.options.Cycles, "cycles", 0, "")
	set.StringVar(&f.options.Out, "out", "", "")
	set.BoolVar(&f.options.Keep, "keep", false, "")
	set.StringVar(&f.vmcore, "vmcore", "", "")
	set.DurationVar(&f.timeout, "timeout", 20*time.Minute, "")
	if err := set.Parse(args[1:]); err != nil {
		return "", f, err
	}
	f.set = map[string]bool{}
	set.Visit(func(given *flag.Flag) { f.set[given.Name] = true })
	switch {
	case set.NArg() > 0:
		return "", f, fmt.Errorf("what is %q?", set.Arg(0))
	case f.handover != "vmcore":
		return "", f, fmt.Errorf("--handover %s: only vmcore so far", f.handover)
	case (f.options.Kernel == "") != (f.options.Modules == ""):
		return "", f, errors.New("--kernel and --modules go together")
	case f.options.Release != "" && f.options.Kernel != "":
		return "", f, errors.New("--release and --kernel don't go together")
	case f.options.Release != "" && !releaseName.MatchString(f.options.Release):
		return "", f, fmt.Errorf("--release %s: want a name as in sources.list, such as trixie-backports", f.options.Release)
	case f.options.Payload != "" && f.options.Payload != "own" && f.options.Payload != "stock":
		return "", f, fmt.Errorf("--payload-kernel %s: want own or stock", f.options.Payload)
	case f.options.Trigger != "" && f.options.Trigger != wire.SysrqC && f.options.Trigger != wire.Watchdog:
		return "", f, fmt.Errorf("--trigger %s: want %s or %s", f.options.Trigger, wire.SysrqC, wire.Watchdog)
	case f.options.CPUs < 0 || f.options.Cycles < 0 || f.timeout <= 0:
		return "", f, fmt.Errorf("--cpus %d, --cycles %d, --timeout %v: want none below zero, and time", f.options.CPUs, f.options.Cycles, f.timeout)
	}
	if verb == "demo" {
		f.story, f.options.Payload = "stock", "stock"
	}
	s, err := story.Find(f.story)
	if err != nil {
		return "", f, err
	}
	if err := story.Check(s, f.options); err != nil {
		return "", f, err
	}
	if f.mem != "" {
		if f.options.Memory, err = phys.ParseSize(f.mem); err != nil {
			return "", f, fmt.Errorf("--mem: %w", err)
		}
		if f.options.Memory < leastMemory {
			return "", f, fmt.Errorf("--mem %s: want at least %s", f.mem, phys.FormatSize(leastMemory))
		}
	}
	return verb, f, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	verb, f, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage)
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "warmlab: %v\n\n%s", err, usage)
		return 2
	}
	if verb != "matrix" { // which bounds each story
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.timeout)
		defer cancel()
	}
	start := time.Now()
	f.options.Say = func(format string, args ...any) {
		fmt.Fprintf(stdout, "%6.1f  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
	if verb != "list" {
		// Guest and agent are built from here, and build/ is below.
		if _, err := os.Stat("go.mod"); err != nil {
			fmt.Fprintf(stderr, "warmlab: there is no go.mod here: run it in the module's root\n")
			return 1
		}
	}
	switch verb {
	case "list":
		for _, s := range story.Stories {
			tells := s.Tells
			if len(s.Arches) > 0 {
				tells += " (" + strings.Join(s.Arches, ", ") + " only)"
			}
			fmt.Fprintf(stdout, "%-9s %s\n", s.Name, tells)
		}
		return 0
	case "matrix":
		if f.options.Out == "" {
			f.options.Out = filepath.Join("build", "matrix")
		}
		return fail(stderr, runMatrix(ctx, f, stdout))
	case "bench":
		return fail(stderr, runBench(ctx, f, stdout))
	}
	return fail(stderr, runStory(ctx, verb, f, stdout))
}

func fail(stderr io.Writer, err error) int {
	if err != nil {
		fmt.Fprintf(stderr, "warmlab: %v\n", err)
		return 1
	}
	return 0
}

func runStory(ctx context.Context, verb string, f flags, stdout io.Writer) error {
	s, err := story.Find(f.story)
	if err != nil {
		return err
	}
	if f.options.Out == "" {
		name := s.Name
		if verb == "demo" {
			name = "demo"
		}
		if f.options.Arch != "amd64" {
			name += "-" + f.options.Arch
		}
		f.options.Out = filepath.Join("build", name)
	}
	report, err := story.Run(ctx, s, f.options)
	if err != nil {
		return err
	}
	picture(stdout, report, f.options.Out)
	return nil
}
