package story

import (
	"bytes"
	"fmt"
	"time"

	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

// dmaSize is how much memory the device of story dma writes to: enough for some
// of the pages that the payload watches to be in it.
const dmaSize = 32 * mib

// dma is a crash of a machine that has a device which no reset stops and which
// writes into the crashed kernel's memory. The rig plays the device. The machine
// must boot, and the dump must say that memory changed.
func (l *Lab) dma() error {
	painting, err := l.begin()
	if err != nil {
		return err
	}
	b, err := l.Registration()
	if err != nil {
		return l.Machine.Fail("registration", err)
	}
	ring, err := dmaRing(b)
	if err != nil {
		return l.Machine.Fail("plan", err)
	}
	if err := l.crashAndPause(); err != nil {
		return err
	}
	l.Step("a device writes to %v, and goes on", ring)
	stop := l.device(ring)
	ram, err := l.resetPaused()
	if err == nil {
		err = l.waitGuest()
	}
	if failed := stop(); err == nil {
		err = failed
	}
	if err != nil {
		return err
	}
	if err := l.want(wire.Capture); err != nil {
		return err
	}
	l.Report.Memory.CaptureKiB = l.Guest.MemTotalKiB
	d, err := l.save("/var/crash/dump", ram, painting)
	if err != nil {
		return err
	}
	d.written = phys.Set{ring}
	if err := l.Warmcore("release", "arm"); err != nil {
		return err
	}
	if err := l.armed(true); err != nil {
		return err
	}
	if err := l.PowerOff(); err != nil {
		return err
	}
	if err := l.judge([]saved{d}); err != nil {
		return err
	}
	return l.changed(ring)
}

// device writes to ring, always other bytes than before, until stop is called.
func (l *Lab) device(ring phys.Range) (stop func() error) {
	done, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := byte(0); ; n++ {
			junk := bytes.Repeat([]byte{n}, int(ring.Size()))
			if err := l.Machine.Poke(ring.Start, junk); err != nil {
				ended <- err
				return
			}
			select {
			case <-done:
				ended <- nil
				return
			case <-time.After(time.Second): // a device's pace, nothing waits for it
			}
		}
	}()
	return func() error {
		close(done)
		return <-ended
	}
}

// dmaRing is in preserved memory, away from the pages that are painted first.
func dmaRing(b *registration.Block) (phys.Range, error) {
	for _, r := range b.Plan {
		if r.Role == registration.RolePreserved && r.Range.Size() >= 4*dmaSize {
			mid := phys.AlignDown(r.Range.Start+r.Range.Size()/2, mib)
			return phys.Range{Start: mid, End: mid + dmaSize}, nil
		}
	}
	return phys.Range{}, fmt.Errorf("no preserved memory of %s in one piece", phys.FormatSize(4*dmaSize))
}

// changed checks that the manifest names changed pages, all in ring.
func (l *Lab) changed(ring phys.Range) error {
	m, err := l.manifest()
	if err != nil {
		return err
	}
	for _, e := range m.Changed {
		var at uint64
		if _, err := fmt.Sscanf(e.Address, "0x%x", &at); err != nil || !ring.Contains(phys.Range{Start: at, End: at + e.Bytes}) {
			return l.Machine.Fail(manifest.FileName, fmt.Errorf("%v changed, but the device wrote to %v", e, ring))
		}
	}
	if len(m.Changed) == 0 {
		return l.Machine.Fail(manifest.FileName, fmt.Errorf("no changed pages; the device wrote to %v; warnings %q", ring, m.Warnings))
	}
	l.Step("named as changed: %d of the watched pages", len(m.Changed))
	return nil
}
