package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/settings"
)

// giveUpAfter is how long a cancelled save may take to remove incomplete
// files.
const giveUpAfter = 10 * time.Second

// limits bound a save that nobody watches; 0 is no limit.
type limits struct {
	total, stall, giveUp time.Duration
}

// within runs save, which reports its progress, for as long as the limits
// allow. Then it cancels save's context, and returns without waiting for
// save if that doesn't help: a target that hangs may never let it go.
func (l limits) within(ctx context.Context, save func(ctx context.Context, progressed func()) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	alive, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		done <- save(ctx, func() {
			select {
			case alive <- struct{}{}:
			default:
			}
		})
	}()
	timer := func(d time.Duration) <-chan time.Time {
		if d == 0 {
			return nil
		}
		return time.After(d)
	}
	total, stall := timer(l.total), timer(l.stall)
	var over error
	for {
		select {
		case err := <-done:
			if err != nil && over != nil {
				return over // it stopped because it was cancelled
			}
			return err
		case <-alive:
			if over == nil {
				stall = timer(l.stall)
			}
			continue
		case <-total:
			over = fmt.Errorf("it took more than %v (save-timeout)", l.total)
		case <-stall:
			if over != nil {
				return fmt.Errorf("%w, and doesn't stop: its target may hang", over)
			}
			over = fmt.Errorf("nothing was written for %v (save-stall)", l.stall)
		}
		stop()
		total, stall = nil, time.After(l.giveUp)
	}
}

// unattended runs save within the limits of the settings.
func (c *call) unattended(ctx context.Context, save func(ctx context.Context) error) error {
	set := c.system.Settings()
	show := c.system.Progress
	return limits{set.SaveTimeout, set.SaveStall, giveUpAfter}.within(ctx, func(ctx context.Context, progressed func()) error {
		c.system.Progress = func(p outcome.Progress) {
			progressed()
			if show != nil {
				show(p)
			}
		}
		return save(ctx)
	})
}

// unsaved is `release --failed`.
func (c *call) unsaved() error {
	done, err := c.system.Unsaved()
	if err != nil {
		return err
	}
	text := fmt.Sprintf("the dump is not saved: %s: %s", done.Action, done.Why)
	if m := done.Moved; m != nil {
		text += fmt.Sprintf("\nreleased: %s in %d memory blocks", phys.FormatSize(m.Bytes), m.Blocks)
	}
	err = c.print(done, text)
	if done.Action == settings.PowerOff {
		err = errors.Join(err, c.powerOff())
	}
	return err
}

func (c *call) powerOff() error {
	if c.off != nil {
		return c.off()
	}
	if out, err := exec.Command("systemctl", "--no-block", "poweroff").CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl poweroff: %w: %s", err, out)
	}
	return nil
}
