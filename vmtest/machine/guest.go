package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/vmtest/command"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
	"github.com/warmcore/warmcore/vmtest/truth"
)

// Guest is the guest program of one boot of the normal kernel.
type Guest struct {
	wire.Boot         // what it said when it was ready
	Event     Event   // of its boot message; Event.Message.T is the kernel's clock
	Notes     []Event // what it complained about before that

	m *Machine
}

// WaitGuest waits until the guest program of the boot that began with Start,
// Reset or PowerCycle is ready.
func (m *Machine) WaitGuest(ctx context.Context) (*Guest, error) {
	const op = "wait for the guest to boot"
	g := &Guest{m: m}
	e, _, err := m.Timeline.wait(ctx, m.proc.ended, m.booted, func(e Event) bool {
		if e.Source == FromGuest && e.Name == wire.EventNote {
			g.Notes = append(g.Notes, e)
		}
		return e.Source == FromGuest && e.Name == wire.EventBoot && e.Message.Boot != nil || shutdownReason(e) != ""
	})
	if err != nil {
		return nil, m.fail(op, err)
	}
	if reason := shutdownReason(e); reason != "" {
		return nil, m.fail(op, fmt.Errorf("%w: %s", ErrReset, reason))
	}
	g.Boot, g.Event = *e.Message.Boot, e
	return g, nil
}

// ask sends a request and waits for its answer.
func (g *Guest) ask(ctx context.Context, req wire.Request) (wire.Message, error) {
	from := g.m.Timeline.Mark()
	if err := g.send(&req); err != nil {
		return wire.Message{}, err
	}
	e, _, err := g.m.Timeline.wait(ctx, g.m.proc.ended, from, func(e Event) bool {
		return e.Source == FromGuest && e.Message.ID == req.ID || shutdownReason(e) != ""
	})
	if err != nil {
		return wire.Message{}, err
	}
	if reason := shutdownReason(e); reason != "" {
		return wire.Message{}, fmt.Errorf("%w: %s", ErrReset, reason)
	}
	if e.Message.Error != "" {
		return wire.Message{}, errors.New(e.Message.Error)
	}
	return *e.Message, nil
}

// send gives req a new ID and sends it.
func (g *Guest) send(req *wire.Request) error {
	g.m.lastID++
	req.ID = g.m.lastID
	line, err := json.Marshal(req)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(g.m.proc.events, "\n%s\n", line)
	return err
}

// Run runs argv in the guest. An exit status other than 0 is no error.
func (g *Guest) Run(ctx context.Context, argv ...string) (wire.Result, error) {
	op := "run in the guest: " + command.Line(argv)
	g.m.Timeline.Note("run", command.Line(argv))
	m, err := g.ask(ctx, wire.Request{Run: argv})
	if err == nil && m.Result == nil {
		err = errors.New("answer without a result")
	}
	if err != nil {
		return wire.Result{}, g.m.fail(op, err)
	}
	g.m.Timeline.Note("exit", strconv.Itoa(m.Result.Exit))
	return *m.Result, nil
}

// MustRun is Run for a command whose failure fails the story. It returns the
// standard output.
func (g *Guest) MustRun(ctx context.Context, argv ...string) (string, error) {
	res, err := g.Run(ctx, argv...)
	if err != nil {
		return "", err
	}
	if res.Exit != 0 {
		return "", g.m.fail("run in the guest: "+command.Line(argv),
			fmt.Errorf("exit %d: %s", res.Exit, strings.TrimSpace(res.Stderr+res.Stdout)))
	}
	return res.Stdout, nil
}

// Paint fills mib mebibytes of locked user pages with the pattern of seed.
func (g *Guest) Paint(ctx context.Context, mib int, seed uint64) (truth.Painting, error) {
	m, err := g.ask(ctx, wire.Request{Paint: &wire.Paint{MiB: mib, Seed: seed}})
	if err != nil {
		return truth.Painting{}, g.m.fail(fmt.Sprintf("paint %d MiB", mib), err)
	}
	return truth.Painting{Seed: seed, Runs: m.Pages}, nil
}

// Trigger ends the guest in the manner of t. It returns when the guest was
// told: the caller waits for what happens then.
func (g *Guest) Trigger(ctx context.Context, t wire.Trigger) error {
	_, err := g.ask(ctx, wire.Request{Trigger: &t})
	if err == nil {
		g.m.Timeline.Note("trigger", t.Kind)
		err = g.send(&wire.Request{Go: true})
	}
	return g.m.fail("trigger "+t.Kind, err)
}

// ReadFile returns the contents of a file of the guest.
func (g *Guest) ReadFile(ctx context.Context, path string) ([]byte, error) {
	m, err := g.ask(ctx, wire.Request{Read: path})
	if err != nil {
		return nil, g.m.fail("read "+path+" of the guest", err)
	}
	return m.Data, nil
}

// Sync writes the guest's disk out.
func (g *Guest) Sync(ctx context.Context) error {
	_, err := g.ask(ctx, wire.Request{Sync: true})
	return g.m.fail("sync the guest's disk", err)
}

// MemInfo returns the guest's /proc/meminfo: names without the colon, values
// in KiB (counts of huge pages as they are).
func (g *Guest) MemInfo(ctx context.Context) (map[string]uint64, error) {
	b, err := g.ReadFile(ctx, "/proc/meminfo")
	if err != nil {
		return nil, err
	}
	info, err := parseMemInfo(string(b))
	return info, g.m.fail("read the guest's memory", err)
}

func parseMemInfo(s string) (map[string]uint64, error) {
	info := map[string]uint64{}
	for line := range strings.Lines(s) {
		name, value, ok := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if !ok || len(fields) == 0 {
			return nil, fmt.Errorf("meminfo line %q: want NAME: VALUE", line)
		}
		n, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("meminfo line %q: %w", line, err)
		}
		info[name] = n
	}
	return info, nil
}
