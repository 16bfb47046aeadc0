//go:build linux

// Warminit is what the payload runs at every reset: it saves boot memory if
// there is a dump to take, and starts the normal kernel.
//
// u-root's init starts it. Its parameters are on the payload kernel's command
// line (warmcore.*); see warminit(8).
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/warmcore/warmcore/pkg/kmod"
	"github.com/warmcore/warmcore/pkg/payload"
)

// moduleDir has the modules of a payload with a distribution's kernel.
const moduleDir = "/lib/modules/warmcore"

const usage = `Usage: warminit [-n]

Starts the normal kernel from the payload, with a dump to save if the machine
was reset while armed. Parameters are read from the kernel's command line:

  warmcore.window=SIZE@ADDR[,...]  the payload's RAM (default: all that its kernel has)
  warmcore.handoff=SIZE@ADDR       the handoff area (default: 2M@512M)
  warmcore.lost=SIZE@ADDR[,...]    what else firmware overwrites at a reset
  warmcore.bootmem=SIZE            boot memory (default: 512M or 1/16 of RAM)
  warmcore.block=SIZE              memory block of the normal kernel (default: by RAM)
  warmcore.boot=TITLE|KERNEL|UUID=ID[:KERNEL]|LABEL=NAME[:KERNEL]
                                   the boot entry (default: the configuration's)
  warmcore.successor=yes|no        another kernel on that disk may take the dump (default: yes)
  warmcore.max_captures=N          dumps an hour (default: 5; 0: no limit)
  warmcore.max_attempts=N          capture boots for one dump (default: 3)
  warmcore.append="PARAMETERS"     added to the normal kernel's in a capture boot
  warmcore.remove=NAME[,...]       left out of them in a capture boot
  warmcore.off                     no dumps

  -n   print the plan and what would be done; change and boot nothing
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// exitRefused is the exit code outside a payload, or on an unknown architecture.
const exitRefused = 3

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("warminit", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	dry := flags.Bool("n", false, "")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage)
		return 0
	}
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("what is %q? There are no arguments", flags.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(stderr, "warminit: %v\n\n%s", err, usage)
		return 2
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if !*dry && (err != nil || !inInitramfs(string(mounts))) {
		fmt.Fprintln(stderr, "warminit: this is no payload: its root is not an initramfs. Starting the normal kernel from here would end this system; warminit -n prints what would be done")
		return exitRefused
	}
	console := os.Stderr
	if !*dry {
		// The standard error that init gives us may be a pipe. Its last lines
		// would be lost at the jump into the next kernel.
		if f, err := os.OpenFile("/dev/console", os.O_WRONLY|syscall.O_NOCTTY, 0); err == nil {
			console, stderr = f, f
		}
	}
	logger := payload.NewLogger(stderr, uptime)
	log := slog.New(logger)
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		log.Warn("command line", "error", err, "so", "defaults")
	}
	opts, warnings := payload.ParseCmdline(string(cmdline))
	for _, w := range warnings {
		log.Warn(w)
	}
	machine, err := payload.NewLinux(runtime.GOARCH, log, console)
	if err != nil {
		fmt.Fprintf(stderr, "warminit: %v\n", err)
		return exitRefused
	}
	p := payload.New(machine, log, logger.Text, opts, payload.Version)
	if *dry {
		p.Plan()
		p.Describe(stdout)
		return 0
	}
	log.Info("payload", "version", payload.Version)
	if n, err := kmod.LoadAll(moduleDir); err != nil || n > 0 {
		log.Info("modules", "loaded", n, "error", err)
	}
	if err := p.Run(); err != nil {
		log.Error("payload", "error", err)
	}
	return 1
}

// inInitramfs says whether the root file system is the kernel's initial one,
// from the text of /proc/self/mounts. The last mount on / is the one that
// shows.
func inInitramfs(mounts string) (yes bool) {
	for line := range strings.Lines(mounts) {
		if f := strings.Fields(line); len(f) > 2 && f[1] == "/" {
			yes = f[2] == "rootfs"
		}
	}
	return yes
}

// uptime is the time since the kernel started.
func uptime() time.Duration {
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0
	}
	var seconds float64
	fmt.Sscan(string(b), &seconds)
	return time.Duration(seconds * float64(time.Second))
}
