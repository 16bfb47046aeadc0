// Command warmcore is the agent: it arms a running system for a crash dump,
// saves the dump after a crash, and gives memory back.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/agent"
	"github.com/warmcore/warmcore/pkg/dumpwriter"
	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
)

// Exit codes. Scripts and units rely on them.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 3 // for a reason that was printed
	exitNothing = 4 // nothing to do
)

// version is set when a release is built; else it comes from the build.
var version = ""

func main() {
	os.Exit(run(os.Args[1:], environment{
		stdout:   os.Stdout,
		stderr:   os.Stderr,
		system:   agent.System{Root: "/"},
		terminal: terminal(os.Stderr),
	}))
}

// environment is everything that a run depends on, so that a test can
// replace it.
type environment struct {
	stdout, stderr io.Writer
	system         agent.System
	terminal       bool         // stderr is one
	off            func() error // nil: systemctl poweroff
}

// verb is a command of warmcore.
type verb struct {
	name, args, does string
	flags            func(*flag.FlagSet, *options)
	maxArgs          int
	run              func(*call) error
}

type options struct {
	json, discard, verbose, verify bool
	check                          bool // exit code by what status says
	keep                           bool // arm again only what was armed
	alone                          bool // nobody watches the save
	failed                         bool // the save has failed: do as the settings say
	dump                           dumpFlags
	read                           string // where save reads memory
}

// call is one verb being run.
type call struct {
	environment
	options
	args []string
}

var verbs = []verb{
	{name: "status", does: "say whether a crash now would be dumped, and where memory is", run: status, flags: func(f *flag.FlagSet, o *options) {
		f.BoolVar(&o.check, "check", false, "exit with 0 only if a crash now would be dumped, else with 3: for monitoring")
	}},
	{name: "arm", does: "register this kernel and load the stub: a crash from now on is dumped", run: arm, flags: func(f *flag.FlagSet, o *options) {
		f.BoolVar(&o.keep, "keep", false, "arm only if this boot was armed and the stub has been lost: for a timer")
	}},
	{name: "disarm", does: "undo arm: a reset is no crash any more", run: disarm},
	{name: "save", args: "[DIRECTORY | -]", does: "write the dump (default: into a new directory below /var/crash)", maxArgs: 1, run: saveDump, flags: func(f *flag.FlagSet, o *options) {
		o.dump.register(f, 31)
		f.StringVar(&o.read, "read", "vmcore", "where to read memory: `SOURCE` is vmcore, all from /proc/vmcore; or dax, from dax devices\nwhere they show it, which is faster (x86-64 only)")
		f.BoolVar(&o.alone, "unattended", false, "stop when the limits in /etc/warmcore.conf are over")
	}},
	{name: "release", does: "give preserved memory back to this kernel", run: release, flags: func(f *flag.FlagSet, o *options) {
		f.BoolVar(&o.discard, "discard", false, "release although the dump is not saved: it is lost")
		f.BoolVar(&o.failed, "failed", false, "the dump could not be saved: do what /etc/warmcore.conf says")
	}},
	{name: "lend", does: "let user pages use the window and the destination", run: lend},
	{name: "reclaim", does: "take window and destination back from user pages", run: reclaim},
	{name: "dmesg", args: "[FILE]", does: "print the crashed kernel's log, from this boot's dump or a dump file", maxArgs: 1, run: dmesg},
	{name: "convert", args: "FILE... NEW", does: "write a dump in another format, or with fewer pages", maxArgs: 256, run: convertDump, flags: func(f *flag.FlagSet, o *options) {
		o.dump.register(f, 0)
	}},
	{name: "inspect", args: "FILE...", does: "say what is in a dump file; several can be the parts of a split one", maxArgs: kdump.MaxParts, run: inspect, flags: func(f *flag.FlagSet, o *options) {
		f.BoolVar(&o.verify, "verify", false, "compare the file with the checksums in manifest.json beside it")
	}},
	{name: "log", does: "print the payload's log of this boot and the one before", run: payloadLog},
	{name: "version", does: "print the version", run: printVersion},
}

const examples = `
examples:
  warmcore status                 is this machine ready for a crash?
  warmcore arm                    make it ready
  warmcore save && warmcore release && warmcore arm
                                  after a crash: save, memory back, ready again
  warmcore save /mnt/dumps/42     save elsewhere
  warmcore dmesg | tail           what the crashed kernel said last
  warmcore inspect --verify /var/crash/*/vmcore
                                  what is in the dumps, and are they whole?
  warmcore release --discard      the dump is not wanted

exit codes: 0 done, 1 failed, 2 usage, 3 refused for the reason printed,
4 nothing to do
`

func usage(w io.Writer) {
	fmt.Fprint(w, "usage: warmcore VERB [--json] [-v] [ARGUMENT]\n       warmcore help [VERB]\n\nverbs:\n")
	for _, v := range verbs {
		fmt.Fprintf(w, "  %-20s %s\n", strings.TrimSpace(v.name+" "+v.args), v.does)
	}
	fmt.Fprint(w, examples)
}

// run runs the verb in args and returns the exit code.
func run(args []string, env environment) int {
	if len(args) == 0 {
		usage(env.stderr)
		return exitUsage
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		if len(args) == 1 {
			usage(env.stdout)
			return exitDone
		}
		args = []string{args[1], "--help"}
	case "-version", "--version":
		args = []string{"version"}
	}
	for _, v := range verbs {
		if v.name == args[0] {
			return v.call(args[1:], env)
		}
	}
	if strings.HasPrefix(args[0], "-") {
		fmt.Fprintf(env.stderr, "warmcore: %s: options follow the verb: `warmcore help` lists verbs\n", args[0])
		return exitUsage
	}
	fmt.Fprintf(env.stderr, "warmcore: %q is no verb: `warmcore help` lists them\n", args[0])
	return exitUsage
}

func (v verb) call(args []string, env environment) int {
	c := &call{environment: env}
	f := flag.NewFlagSet(v.name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.BoolVar(&c.json, "json", false, "print the result as JSON")
	f.BoolVar(&c.verbose, "v", false, "say what is being done")
	if v.flags != nil {
		v.flags(f, &c.options)
	}
	// Flags may follow an argument, too.
	for rest := args; ; rest = rest[1:] {
		err := f.Parse(rest)
		if errors.Is(err, flag.ErrHelp) {
			v.usage(env.stdout, f)
			return exitDone
		}
		if err != nil {
			return c.finish(v.name, &usageError{err.Error()})
		}
		if rest = f.Args(); len(rest) == 0 {
			break
		}
		c.args = append(c.args, rest[0])
	}
	if len(c.args) > v.maxArgs {
		return c.finish(v.name, &usageError{fmt.Sprintf("too many arguments: %d, want at most %d", len(c.args), v.maxArgs)})
	}
	// Most likely a shell variable that isn't set: don't take it for the
	// default.
	if slices.Contains(c.args, "") {
		return c.finish(v.name, &usageError{"an argument is empty"})
	}
	level := slog.LevelWarn
	if c.verbose {
		level = slog.LevelInfo
	}
	c.system.Log = slog.New(plainHandler{c.stderr, level})
	line := newProgressLine(c.stderr, c.terminal)
	c.system.Progress = line.show
	err := v.run(c)
	line.end()
	return c.finish(v.name, err)
}

func (v verb) usage(w io.Writer, f *flag.FlagSet) {
	fmt.Fprintf(w, "usage: warmcore %s\n  %s\n\n", strings.TrimSpace(v.name+" [FLAGS] "+v.args), v.does)
	f.SetOutput(w)
	f.PrintDefaults()
}

// failure is what --json prints for an error.
type failure struct {
	Schema int    `json:"schema"`
	Verb   string `json:"verb"`
	Exit   int    `json:"exit"`
	Error  string `json:"error"`
	Todo   string `json:"todo,omitempty"`
}

// finish reports err and returns the exit code. Wrong usage prints no JSON: it
// concerns whoever wrote the script, not whoever reads its output.
func (c *call) finish(name string, err error) int {
	if err == nil {
		return exitDone
	}
	if errors.Is(err, errNotArmed) {
		return exitRefused // status has printed all there is to say
	}
	out := failure{Schema: 1, Verb: name, Exit: exitFailed, Error: err.Error()}
	var refusal *outcome.Refusal
	var nothing *outcome.Nothing
	var usage *usageError
	switch {
	case errors.As(err, &usage):
		fmt.Fprintf(c.stderr, "warmcore: %s: %v: `warmcore %s --help` says what there is\n", name, err, name)
		return exitUsage
	case errors.As(err, &refusal):
		out.Exit, out.Error, out.Todo = exitRefused, refusal.What, refusal.Todo
	case errors.As(err, &nothing):
		out.Exit = exitNothing
	}
	quiet := c.keep && out.Exit == exitNothing && !c.verbose // a timer's log needs no line that all is well
	switch {
	case quiet:
	case out.Todo != "":
		fmt.Fprintf(c.stderr, "warmcore: %s: %s\nto do: %s\n", name, out.Error, out.Todo)
	default:
		fmt.Fprintf(c.stderr, "warmcore: %s: %v\n", name, err)
	}
	var reported reportedError
	if c.json && !errors.As(err, &reported) {
		if err := c.printJSON(out); err != nil {
			return exitFailed
		}
	}
	return out.Exit
}

// print prints a result: as JSON if --json was given, else the lines.
func (c *call) print(result any, lines ...string) error {
	if c.json {
		return c.printJSON(result)
	}
	for _, l := range lines {
		if _, err := fmt.Fprintln(c.stdout, l); err != nil {
			return err
		}
	}
	return nil
}

func (c *call) printJSON(v any) error {
	e := json.NewEncoder(c.stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func arm(c *call) error {
	do := c.system.Arm
	if c.keep {
		do = c.system.Keep
	}
	done, err := do()
	if err != nil {
		return err
	}
	for _, w := range done.Warnings {
		fmt.Fprintf(c.stderr, "warmcore: arm: warning: %s\n  %s\n", w.Reason, w.Remedy)
	}
	return c.print(done, fmt.Sprintf("armed: kernel %s, registers of %d CPUs, stub of %v", done.Release, done.CPUs, done.CrashArea))
}

// writer returns what writes and checks dumps on any machine.
func (c *call) writer() dumpwriter.Writer {
	return dumpwriter.Writer{Log: c.system.Log, Progress: c.system.Progress, Now: c.system.Now}
}

// state is the result of verbs that have no other.
type state struct {
	State string `json:"state"`
}

func disarm(c *call) error {
	if err := c.system.Disarm(); err != nil {
		return err
	}
	return c.print(state{"disarmed"}, "disarmed: a reset from now on is not dumped")
}

func release(c *call) error {
	if c.failed {
		return c.unsaved()
	}
	m, err := c.system.Release(c.discard)
	return c.moved(m, err, "released")
}

func lend(c *call) error {
	m, err := c.system.Lend()
	return c.moved(m, err, "lent")
}

func reclaim(c *call) error {
	m, err := c.system.Reclaim()
	return c.moved(m, err, "reclaimed")
}

func (c *call) moved(m agent.Moved, err error, done string) error {
	if err != nil && len(m.Left) == 0 {
		return err
	}
	// If blocks are left over, print what was done, which blocks those are, and
	// the error.
	text := fmt.Sprintf("%s: %s in %d memory blocks, MemTotal %d kB -> %d kB",
		done, phys.FormatSize(m.Bytes), m.Blocks, m.MemTotalKiB[0], m.MemTotalKiB[1])
	for _, h := range m.HugePages {
		text += "\n" + h.String()
	}
	if len(m.Missing) > 0 {
		text += "\nmissing until the next plain boot: " + strings.Join(m.Missing, ", ")
	}
	printErr := c.print(m, text)
	if err != nil {
		err = reportedError{err}
	}
	return errors.Join(printErr, err)
}

// dmesgResult is what dmesg --json prints.
type dmesgResult struct {
	Lost int    `json:"lost"` // messages that could not be read
	Text string `json:"text"`
}

func dmesg(c *call) error {
	read := c.system.Dmesg
	if len(c.args) > 0 {
		read = func() ([]byte, int, error) { return c.writer().Dmesg(c.args[0]) }
	}
	text, lost, err := read()
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(dmesgResult{lost, string(text)})
	}
	if lost > 0 {
		fmt.Fprintf(c.stderr, "warmcore: dmesg: %d messages could not be read\n", lost)
	}
	_, err = c.stdout.Write(text)
	return err
}

func payloadLog(c *call) error {
	logs, err := c.system.Logs()
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(logs)
	}
	// The older boot first, so that the latest messages are at the end.
	for i := len(logs) - 1; i >= 0; i-- {
		fmt.Fprintf(c.stdout, "--- boot %d\n%s", logs[i].Boot, logs[i].Text)
		if !strings.HasSuffix(logs[i].Text, "\n") {
			fmt.Fprintln(c.stdout)
		}
	}
	return nil
}

func printVersion(c *call) error {
	v := version
	if info, ok := debug.ReadBuildInfo(); v == "" && ok {
		v = info.Main.Version
	}
	return c.print(map[string]string{"version": v}, "warmcore "+v)
}

// plainHandler prints warnings in the form of errors: one line, no time.
type plainHandler struct {
	w     io.Writer
	level slog.Level
}

func (h plainHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h plainHandler) Handle(_ context.Context, r slog.Record) error {
	line := "warmcore: " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += fmt.Sprintf(": %s %v", a.Key, a.Value)
		return true
	})
	_, err := fmt.Fprintln(h.w, line)
	return err
}

func (h plainHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h plainHandler) WithGroup(string) slog.Handler      { return h }
