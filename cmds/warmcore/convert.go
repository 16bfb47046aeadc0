package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/warmcore/warmcore/pkg/agent"
	"github.com/warmcore/warmcore/pkg/convert"
	"github.com/warmcore/warmcore/pkg/dumpwriter"
	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/target"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
)

// maxWorkers keeps a mistyped number from taking all memory: a worker needs about
// 1.5 MiB.
const maxWorkers = 1024

// dumpFlags are the flags of verbs that write a dump.
type dumpFlags struct {
	format, compress                  string
	dumpLevel, effort, workers, split int
	flattened, sha256                 bool
}

// register adds the flags; level is the default dump level.
func (d *dumpFlags) register(f *flag.FlagSet, level int) {
	f.StringVar(&d.format, "format", "kdump", "`FORMAT` of the dump: kdump, or elf")
	f.StringVar(&d.compress, "compress", "zstd", "how to compress the pages of a kdump dump: `METHOD` is zstd, zlib, snappy or none")
	f.IntVar(&d.effort, "level", 0, "compression level `N`: 1, the fastest, to 22 (default 1)")
	f.IntVar(&d.dumpLevel, "dump-level", level, "what to leave out, as makedumpfile -d: the sum `N` of\n1 zeroes, 2 page cache, 4 page cache with private data, 8 memory of processes, 16 free pages")
	f.IntVar(&d.dumpLevel, "d", level, "the same as -dump-level")
	f.IntVar(&d.workers, "workers", 0, fmt.Sprintf("how many pages `N` to compress at a time (default: one for each CPU, at most %d)", convert.DefaultWorkers))
	f.IntVar(&d.split, "split", 1, "write the kdump dump in `N` files, with .1, .2 and so on behind the name")
	f.BoolVar(&d.flattened, "flattened", false, "write makedumpfile's flattened form")
	f.BoolVar(&d.sha256, "sha256", false, "compute the checksum of each whole dump file, too: it is read again, by one CPU")
}

func (d *dumpFlags) options() (o dumpwriter.Options, err error) {
	o = dumpwriter.Options{
		Effort: d.effort, DumpLevel: d.dumpLevel, Workers: d.workers, Split: d.split, Flattened: d.flattened, SHA256: d.sha256,
	}
	if o.Format, err = convert.ParseFormat(d.format); err != nil {
		return dumpwriter.Options{}, &usageError{err.Error()}
	}
	if o.Codec, err = kdump.ParseCodec(d.compress); err != nil {
		return dumpwriter.Options{}, &usageError{err.Error()}
	}
	wrong := ""
	switch {
	case d.workers < 0 || d.workers > maxWorkers:
		wrong = fmt.Sprintf("%d workers, want 1 to %d, or 0, one for each CPU up to %d", d.workers, maxWorkers, convert.DefaultWorkers)
	case d.effort < 0 || d.effort > kdump.MaxEffort:
		wrong = fmt.Sprintf("compression level %d, want 1 to %d, or 0, the default", d.effort, kdump.MaxEffort)
	case d.dumpLevel < 0 || d.dumpLevel > 31:
		wrong = fmt.Sprintf("dump level %d, want 0, all pages, to 31, the kernel's own", d.dumpLevel)
	case d.split < 1 || d.split > dumpwriter.MaxSplit:
		wrong = fmt.Sprintf("%d files, want 1 to %d", d.split, dumpwriter.MaxSplit)
	case d.split > 1 && (o.Format != convert.KDump || d.flattened):
		wrong = "only kdump files that are not flattened can be split"
	}
	if wrong != "" {
		return dumpwriter.Options{}, &usageError{wrong}
	}
	return o, nil
}

// usageError is a flag value that makes no sense.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// context returns the context in which a dump is written. A signal that asks the
// program to end cancels it, and incomplete files are removed; a second signal
// ends the program at once, in case the disk is what it waits for. Signals that
// were ignored at the start stay ignored. With a dump on standard output no
// signal is caught: there is nothing to remove, and a reader that has stopped
// would keep the program from ending.
//
// If the reader of the messages, or of the dump, has gone away, that is an error
// of the write, not a signal: it must not end a save, nor end it without a
// message.
func (c *call) context(where string) (ctx context.Context, stop func()) {
	signal.Ignore(syscall.SIGPIPE)
	var end []os.Signal
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			end = append(end, s)
		}
	}
	if where == target.Stdout || len(end) == 0 {
		return context.Background(), func() {}
	}
	ctx, stop = signal.NotifyContext(context.Background(), end...)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

func saveDump(c *call) error {
	o := agent.SaveOptions{Stdout: c.stdout}
	switch c.read {
	case "vmcore":
	case "dax":
		o.Dax = true
	default:
		return &usageError{fmt.Sprintf("read from %q: want vmcore or dax", c.read)}
	}
	if len(c.args) > 0 {
		o.Target = c.args[0]
	}
	var err error
	if o.Options, err = c.dump.options(); err != nil {
		return err
	}
	ctx, stop := c.context(o.Target)
	defer stop()
	var m *manifest.Manifest
	var saved bool
	save := func(ctx context.Context) (err error) {
		m, saved, err = c.system.Save(ctx, o)
		return err
	}
	if c.alone {
		err = c.unattended(ctx, save)
	} else {
		err = save(ctx)
	}
	if err != nil {
		return err
	}
	if o.Target == target.Stdout {
		c.stdout = c.stderr // the dump went there
	}
	if !saved {
		return c.print(m, "written, but not known to be saved: "+m.Summary())
	}
	return c.print(m, "saved: "+m.Summary())
}

func convertDump(c *call) error {
	if len(c.args) < 2 {
		return &usageError{"want the dump, all files of it, and the name of a new file"}
	}
	last := len(c.args) - 1
	o := dumpwriter.ConvertOptions{In: c.args[:last], Out: c.args[last], Stdout: c.stdout}
	var err error
	if o.Options, err = c.dump.options(); err != nil {
		return err
	}
	ctx, stop := c.context(o.Out)
	defer stop()
	done, err := c.writer().Convert(ctx, o)
	if err != nil {
		return err
	}
	if o.Out == target.Stdout {
		c.stdout = c.stderr
	}
	return c.print(done, "converted: "+done.Summary())
}
