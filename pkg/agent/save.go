package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/warmcore/warmcore/pkg/dumpwriter"
	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/oldmem"
	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/target"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
)

// crashDir is where distributions keep dumps.
const crashDir = "var/crash"

// SaveOptions says how to save.
type SaveOptions struct {
	// Target is as target.Open takes it; "" makes a new directory below
	// /var/crash. Standard output is Stdout.
	Target string
	Stdout io.Writer
	// Dax reads memory from dax devices where they show it, and the rest from
	// /proc/vmcore.
	Dax bool
	dumpwriter.Options
}

// Save writes the dump that this boot offers to a target. It marks the dump
// saved if the target has proof that it is durable, and then saved is true. m
// describes what was written; it is put beside the dump if the target can
// take it. When ctx ends, incomplete files are removed, and the dump is still
// offered.
func (s *System) Save(ctx context.Context, o SaveOptions) (m *manifest.Manifest, saved bool, err error) {
	if err := s.root(); err != nil {
		return nil, false, err
	}
	src, err := oldmem.Open(s.path(vmcoreFile))
	if errors.Is(err, oldmem.ErrNone) {
		return nil, false, s.noDump("nothing to save: ")
	}
	if err != nil {
		return nil, false, err
	}
	defer src.Close()

	x, err := s.open(true)
	switch {
	case err == nil:
		defer x.close()
	case errors.Is(err, errBusy):
		return nil, false, err
	default:
		// A dump saved without the handoff area's facts is better than none.
		s.log().Warn("saving without the handoff area", "err", err)
		x = nil
	}
	if err := errors.Join(o.Check(), x.savable(o.Target)); err != nil {
		return nil, false, err
	}
	started := s.now()
	if o.Dax {
		done, err := x.spliceDax(src)
		if err != nil {
			return nil, false, err
		}
		defer done()
	}
	if o.Target == "" {
		crashes := target.CrashDir{Path: s.path(crashDir), Host: s.running().HostName()}
		crashes.Clean(manifest.DumpName, s.log())
		if o.Target, err = crashes.New(started); err != nil {
			return nil, false, err
		}
	}
	to, err := target.Open(o.Target, o.Stdout)
	if err != nil {
		return nil, false, err
	}
	defer to.Close()
	mapped := src.Mapped()
	defer mapped.Close()
	memory, err := dumpfile.New(mapped, int64(src.Size()))
	if err != nil {
		return nil, false, fmt.Errorf("read the dump's headers: %w", err)
	}
	m = s.manifest(x, started)
	m.Directory = to.String()
	if saved, err = s.writer().Save(ctx, to, memory, m, o.Options); err != nil {
		return nil, false, err
	}
	if saved && x != nil && x.block != nil && x.block.State == registration.Capturing {
		x.block.State = registration.Saved
		if err := x.store(); err != nil {
			return nil, false, fmt.Errorf("the dump is in %s, but it can't be marked as saved: %w", to, err)
		}
	}
	return m, saved, nil
}

// noDump says why there is no /proc/vmcore. what is the start of its
// sentence.
func (s *System) noDump(what string) error {
	nothing := &outcome.Nothing{What: what + "there is no dump in this boot"}
	x, err := s.open(false)
	if errors.Is(err, errNoPayload) {
		return err
	}
	if err != nil {
		return nothing
	}
	defer x.close()
	if x.block != nil && x.block.State == registration.Capturing {
		return refuse("`dmesg | grep -i -e vmcore -e elfcorehdr` says why; `warmcore release --discard` gives the dump up",
			"the payload handed over a dump, but this kernel offers no /proc/vmcore")
	}
	return nothing
}

// savable returns an error unless /proc/vmcore shows a dump that still
// needs saving.
func (x *session) savable(target string) error {
	if x == nil || x.block == nil {
		return nil // better saved than sorry
	}
	switch x.block.State {
	case registration.Saved:
		if target == "" {
			return &outcome.Nothing{What: "the dump is saved already; give a directory to save it there again"}
		}
	case registration.Releasing, registration.Armed:
		return &outcome.Nothing{What: "the dump's memory has been given back, there is no dump any more"}
	}
	return nil
}

// manifest begins a manifest with what the handoff area says. x and its block
// may be nil.
func (s *System) manifest(x *session, started time.Time) *manifest.Manifest {
	m := &manifest.Manifest{
		Schema: manifest.Schema, Started: started.UTC(),
		CPUs: []manifest.CPU{}, Files: []manifest.File{}, Unreadable: []manifest.Extent{}, NotDumped: []manifest.Extent{},
	}
	switch {
	case x == nil:
		m.Warnings = append(m.Warnings, "saved without the handoff area")
		return m
	case x.block == nil:
		m.Warnings = append(m.Warnings, fmt.Sprintf("no registration: %v", x.err))
		return m
	}
	m.DaxBytes = x.dax.bytes
	m.Warnings = append(m.Warnings, x.dax.warnings...)
	b := x.block
	m.Release = b.Identity.Release
	m.BuildID = hex.EncodeToString(b.Identity.BuildID)
	m.Nonce = hex.EncodeToString(b.Identity.Nonce[:])
	if b.Identity.BootID != [16]byte{} {
		m.BootID = uuid(b.Identity.BootID)
	}
	m.Payload = b.PayloadVersion
	if b.Capture.Reason != registration.ReasonNone {
		m.Reason = b.Capture.Reason.String()
	}
	m.Capture = manifest.Time(b.Capture.Time)
	m.CPUsSeen, m.CPUsFlushed = b.Capture.CPUsSeen, b.Capture.CPUsFlushed
	return m
}

func uuid(b [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
