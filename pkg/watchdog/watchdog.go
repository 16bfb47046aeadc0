// Package watchdog sets a deadline for each phase of a program, and has the
// machine reset when one is missed: by a hardware watchdog, or by the caller
// if there is none.
//
// The hardware's own time-out is short, and this package answers the hardware
// until the present deadline is over. So a deadline may be longer than any
// watchdog can wait, and if the kernel hangs, and this program with it, the
// machine is reset after the short time-out.
package watchdog

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Timeout is how long the hardware waits for an answer, if it can: long enough
// for a machine that is slow to schedule anything, such as an emulated one.
const Timeout = 60 * time.Second

// longTimeout is for hardware that can't be stopped when the next kernel takes
// over: that kernel's driver must answer it within this time. Few watchdogs
// can wait longer.
const longTimeout = 600 * time.Second

// device is a watchdog of the machine.
type device interface {
	ping() error
	// setTimeout returns the time-out that the hardware really uses.
	setTimeout(time.Duration) (time.Duration, error)
	// stop says with stopped that the hardware has stopped.
	stop() (stopped bool, err error)
}

// Watchdog holds the program to its deadlines. Make it with Start.
type Watchdog struct {
	dev    device // nil if there is no hardware
	missed func(phase string, limit time.Duration)
	done   chan struct{}
	ended  chan struct{}

	mu       sync.Mutex
	phase    string
	limit    time.Duration
	deadline time.Time
}

// ErrNone is Open's error on a machine without a watchdog for which the
// running kernel has a driver.
var ErrNone = errors.New("no hardware watchdog")

// Hardware is an opened watchdog, for Start.
type Hardware struct {
	dev     device
	Name    string        // as its driver calls it
	Timeout time.Duration // after which it resets
	Fired   bool          // it caused the last reset, if its driver can tell
}

// Open opens path, /dev/watchdog in production, which starts the hardware.
func Open(path string) (*Hardware, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("open watchdog: %w", err)
	}
	fd := int(f.Fd())
	h := &Hardware{Name: "unnamed"}
	info, err := unix.IoctlGetWatchdogInfo(fd)
	if err != nil {
		// It seems not to be a watchdog. If it is one after all, it
		// must not be left running.
		_, _ = f.Write([]byte("V"))
		return nil, errors.Join(fmt.Errorf("watchdog %s: WDIOC_GETSUPPORT: %w", path, err), f.Close())
	}
	h.Name = unix.ByteSliceToString(info.Identity[:])
	if status, err := unix.IoctlGetInt(fd, unix.WDIOC_GETBOOTSTATUS); err == nil {
		h.Fired = status&unix.WDIOF_CARDRESET != 0
	}
	file := &file{f, info.Options}
	h.dev = file
	// A watchdog whose time-out is fixed keeps its own.
	if h.Timeout, err = file.setTimeout(Timeout); err != nil {
		h.Timeout = file.timeout()
	}
	return h, nil
}

// Start begins the first phase. hardware may be nil. missed is called once,
// when a deadline is over, from a goroutine of its own: it should reset the
// machine. If it hangs too, the hardware resets the machine.
func Start(hardware *Hardware, phase string, limit time.Duration, missed func(phase string, limit time.Duration)) *Watchdog {
	w := &Watchdog{missed: missed, done: make(chan struct{}), ended: make(chan struct{})}
	interval := time.Second
	if hardware != nil {
		w.dev = hardware.dev
		interval = min(interval, max(hardware.Timeout/4, 10*time.Millisecond))
	}
	w.Within(phase, limit)
	go w.run(interval)
	return w
}

// Within ends the present phase and begins the next, which may take limit.
func (w *Watchdog) Within(phase string, limit time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.phase, w.limit, w.deadline = phase, limit, time.Now().Add(limit)
}

func (w *Watchdog) run(interval time.Duration) {
	defer close(w.ended)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		w.mu.Lock()
		phase, limit, over := w.phase, w.limit, !time.Now().Before(w.deadline)
		w.mu.Unlock()
		if over {
			// From now on nobody answers the hardware.
			go w.missed(phase, limit)
			return
		}
		if w.dev != nil {
			_ = w.dev.ping() // ignored: after an error the hardware fires, and nothing else can be done
		}
		select {
		case <-tick.C:
		case <-w.done:
			return
		}
	}
}

// Stop ends the last phase, before another kernel is started. It stops the
// hardware too. If it can't be stopped, it gets its longest time-out, and the
// error says after which time the next kernel must have answered it.
func (w *Watchdog) Stop() error {
	close(w.done)
	<-w.ended
	if w.dev == nil {
		return nil
	}
	timeout, setErr := w.dev.setTimeout(longTimeout)
	stopped, err := w.dev.stop()
	switch {
	case stopped:
		return nil
	case setErr != nil:
		return fmt.Errorf("stop watchdog: it goes on running, with its own time-out: %w", errors.Join(err, setErr))
	}
	return fmt.Errorf("stop watchdog: it goes on running, and resets in %v unless the next kernel answers it: %w", timeout, err)
}

// file is /dev/watchdog (Documentation/watchdog/watchdog-api.rst, v6.12).
type file struct {
	f       *os.File
	options uint32
}

func (d *file) ping() error { return unix.IoctlWatchdogKeepalive(int(d.f.Fd())) }

func (d *file) setTimeout(t time.Duration) (time.Duration, error) {
	if err := unix.IoctlSetPointerInt(int(d.f.Fd()), unix.WDIOC_SETTIMEOUT, int(t/time.Second)); err != nil {
		return 0, fmt.Errorf("WDIOC_SETTIMEOUT: %w", err)
	}
	return d.timeout(), nil
}

// timeout is the hardware's; Timeout if it doesn't say.
func (d *file) timeout() time.Duration {
	n, err := unix.IoctlGetInt(int(d.f.Fd()), unix.WDIOC_GETTIMEOUT)
	if err != nil || n <= 0 {
		return Timeout
	}
	return time.Duration(n) * time.Second
}

// stop closes the device by the magic close: without the V the driver takes it
// for a program that died, and leaves the hardware running.
func (d *file) stop() (bool, error) {
	_, writeErr := d.f.Write([]byte("V"))
	disableErr := unix.IoctlSetPointerInt(int(d.f.Fd()), unix.WDIOC_SETOPTIONS, unix.WDIOS_DISABLECARD)
	err := errors.Join(writeErr, disableErr, d.f.Close())
	if d.options&unix.WDIOF_MAGICCLOSE == 0 && disableErr != nil {
		return false, errors.Join(errors.New("its driver can't stop it"), err)
	}
	return err == nil || disableErr == nil, err
}
