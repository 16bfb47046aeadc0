package dumpwriter

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/target"
	"github.com/warmcore/warmcore/pkg/vmcore"
)

// Save writes the dump src, which this boot offers, to a target: first the log,
// then the dump, then the manifest m, to which it adds what the dump says about
// itself and what it did; the dump gets its name last, so that where there is
// one all of it is there. durable is target.Target.Commit's. When ctx ends, what
// is incomplete is removed.
func (w Writer) Save(ctx context.Context, to target.Target, src vmcore.Dump, m *manifest.Manifest, o Options) (durable bool, err error) {
	j := &job{Writer: w, Options: o, src: src, to: to, what: "save", started: w.now()}
	j.kernel, j.err = src.Info().Kernel()
	if err := j.create(ctx, manifest.DumpName); err != nil {
		return false, j.full(err, 0, 0)
	}
	describe(m, src.Info())
	beside, _ := to.(target.Putter)
	if beside != nil {
		if err := j.saveLog(ctx, beside, m); err != nil {
			return false, err
		}
	}
	durable, err = j.saveDump(ctx, beside, m)
	var refusal *outcome.Refusal
	var stopped *stoppedError
	var disk *fullError
	switch {
	case err == nil:
		return durable, nil
	case errors.As(err, &disk):
		return false, j.full(err, disk.need, disk.done)
	case errors.As(err, &refusal):
		return false, err
	case errors.As(err, &stopped):
		return false, fmt.Errorf("%w, the dump is still offered", err)
	case beside == nil:
		return false, fmt.Errorf("save dump: %w; the dump is still offered", err)
	}
	return false, fmt.Errorf("save dump: %w; what is in %s is not complete, the dump is still offered", err, to)
}

// describe adds what the dump says about itself, which wins over what
// the manifest has already: it is what the kernel wrote at its end.
func describe(m *manifest.Manifest, info *vmcore.Info) {
	m.Warnings = append(m.Warnings, info.Warnings...)
	var notes []elfcore.ELFNote
	for n, err := range vmcore.Notes(info.Notes) {
		if err == nil { // else it is among the warnings
			notes = append(notes, n)
		}
	}
	// Without registers there is still the memory.
	cpus, err := elfcore.PRStatuses(info.Machine, notes)
	if err != nil {
		m.Warnings = append(m.Warnings, fmt.Sprintf("registers in the notes: %v", err))
	}
	for _, c := range cpus {
		m.CPUs = append(m.CPUs, manifest.CPU{PID: c.PID, PC: fmt.Sprintf("%#x", c.PC), SP: fmt.Sprintf("%#x", c.SP)})
	}
	kernel, err := info.Kernel()
	if err != nil {
		if info.VMCOREINFO == nil { // else it is among the warnings
			m.Warnings = append(m.Warnings, err.Error())
		}
		return
	}
	if m.Release != "" && m.Release != kernel.Release {
		m.Warnings = append(m.Warnings, fmt.Sprintf("registered kernel is %q", m.Release))
	}
	m.Release = kernel.Release
	if len(kernel.BuildID) > 0 {
		m.BuildID = hex.EncodeToString(kernel.BuildID)
	}
	m.Crashed = manifest.Time(kernel.CrashTime)
}

// saveLog saves the crashed kernel's log. One that can't be read is a warning.
func (j *job) saveLog(ctx context.Context, beside target.Putter, m *manifest.Manifest) error {
	text, lost, err := KernelLog(j.src)
	if err != nil {
		j.log().Warn("the crashed kernel's log can't be read", "err", err)
		m.Warnings = append(m.Warnings, fmt.Sprintf("the crashed kernel's log can't be read: %v", err))
		return nil
	}
	if err := beside.Put(ctx, manifest.LogName, text); err != nil {
		j.to.Abort() // the error is of the disk
		return j.full(err, uint64(len(text)), 0)
	}
	sum := sha256.Sum256(text)
	m.Files = append(m.Files, manifest.File{Name: manifest.LogName, Bytes: uint64(len(text)), Written: uint64(len(text)), SHA256: hex.EncodeToString(sum[:])})
	m.LogLost = lost
	return nil
}

func (j *job) saveDump(ctx context.Context, beside target.Putter, m *manifest.Manifest) (durable bool, err error) {
	out, err := j.write(ctx)
	if err != nil {
		return false, err
	}
	finish(m, out)
	j.sampled(m)
	j.notDumped(m)
	m.Finished = j.now().UTC()
	m.Seconds = m.Finished.Sub(m.Started).Seconds()
	if beside != nil {
		if err := j.saveManifest(ctx, beside, m); err != nil {
			return false, err
		}
	}
	return j.to.Commit(ctx)
}

// sampled compares the dump's memory with the samples that the payload took.
func (j *job) sampled(m *manifest.Manifest) {
	samples := j.src.Info().Samples
	changed, read := vmcore.Changed(j.src, samples)
	if len(changed) == 0 {
		return
	}
	text := fmt.Sprintf("%d of %d sampled pages changed after the payload had handed over the dump: a device or firmware writes into memory, first at %#x",
		changed.Size()/vmcore.SampleSize, read, changed[0].Start)
	j.warn(&m.Warnings, text, nil)
	m.Changed = manifest.Extents(changed)
}

// maxAdded caps the ranges of added memory in the manifest: a machine has a few.
const maxAdded = 1024

// notDumped names the memory that the kernel had added after its boot and that
// isn't in the dump.
func (j *job) notDumped(m *manifest.Manifest) {
	var added phys.Set
	if j.pages != nil {
		var err error
		if added, err = j.pages.Added(maxAdded); err != nil {
			j.warn(&m.Warnings, "memory that the kernel had added after its boot is not known", err)
		}
	}
	m.NotDumped = manifest.Extents(added.Minus(j.src.Info().Memory))
}

func finish(m *manifest.Manifest, out written) {
	m.Dump = out.dump
	m.Files = append(m.Files, out.files...)
	m.Unreadable = manifest.Extents(out.missing.Unreadable)
	m.MoreUnreadable = out.missing.MoreUnreadable
	m.Warnings = append(m.Warnings, out.warnings...)
}

func (j *job) saveManifest(ctx context.Context, beside target.Putter, m *manifest.Manifest) error {
	b, err := m.Encode()
	if err != nil {
		return err
	}
	if err = beside.Put(ctx, manifest.FileName, b); target.Full(err) {
		j.to.Abort() // the error is of the disk
		done := m.Files[len(m.Files)-1].Written
		return &fullError{err: err, done: done, need: done + uint64(len(b))}
	}
	return err
}

// full explains that a disk is full; other errors it returns as they are.
func (j *job) full(err error, size, done uint64) error {
	if !target.Full(err) {
		return err
	}
	free, freeErr := j.to.Free()
	if errors.Is(freeErr, errors.ErrUnsupported) {
		return fmt.Errorf("%w: %s of about %s were written; the dump is still offered", err, phys.FormatSize(done), phys.FormatSize(size))
	}
	if freeErr != nil {
		return fmt.Errorf("%w: %w", err, freeErr)
	}
	return fmt.Errorf("%w: %s of about %s were written, about %s more are needed than the %s that are free: free some, or give another directory; the dump is still offered",
		err, phys.FormatSize(done), phys.FormatSize(size), phys.FormatSize(size-min(size, free)), phys.FormatSize(free))
}
