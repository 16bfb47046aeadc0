package machine

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

// Source is where an Event came from.
type Source string

// Sources of events.
const (
	FromRig     Source = "rig"     // what the rig did: Name
	FromQMP     Source = "qmp"     // QEMU: Name and Data
	FromConsole Source = "console" // one line: Text
	FromGuest   Source = "guest"   // Message; Name is its event
	FromPayload Source = "payload" // one JSON object: Data; Name is its "event"
)

// Event is something that happened in a story.
type Event struct {
	T       time.Duration // since the machine was started for the first time
	Source  Source
	Name    string
	Text    string
	Data    json.RawMessage
	Message *wire.Message
}

// Timeline is the list of a story's events. It only grows.
type Timeline struct {
	start   time.Time
	mu      sync.Mutex
	events  []Event
	changed chan struct{} // closed and replaced when events grows
}

func newTimeline() *Timeline {
	return &Timeline{start: time.Now(), changed: make(chan struct{})}
}

func (t *Timeline) add(e Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.T = time.Since(t.start)
	t.events = append(t.events, e)
	close(t.changed)
	t.changed = make(chan struct{})
}

// Note records something that the story did.
func (t *Timeline) Note(name, text string) {
	t.add(Event{Source: FromRig, Name: name, Text: text})
}

// Events returns the events so far.
func (t *Timeline) Events() []Event {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.events)
}

// Mark returns the number of events so far, for Wait.
func (t *Timeline) Mark() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.events)
}

// Console returns the last n lines of console output.
func (t *Timeline) Console(n int) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	for _, e := range slices.Backward(t.events) {
		if len(lines) == n {
			break
		}
		if e.Source == FromConsole {
			lines = append(lines, fmt.Sprintf("%9.3f %s", e.T.Seconds(), e.Text))
		}
	}
	slices.Reverse(lines)
	return lines
}

// waitLimit is how long one event may take: several times what a boot does on
// a busy host. A machine that hangs is not worth more of a suite's time.
const waitLimit = 6 * time.Minute

// ErrHung is in the chain of the error of a wait that ended after waitLimit.
var ErrHung = fmt.Errorf("nothing came in %v", waitLimit)

// wait returns the first event at index from or later that match accepts,
// and the index after it. It ends early with ctx, when lost is closed, or
// after waitLimit.
func (t *Timeline) wait(ctx context.Context, lost <-chan struct{}, from int, match func(Event) bool) (Event, int, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, waitLimit, ErrHung)
	defer cancel()
	for {
		t.mu.Lock()
		events, changed := t.events, t.changed
		t.mu.Unlock()
		for ; from < len(events); from++ {
			if match(events[from]) {
				return events[from], from + 1, nil
			}
		}
		select {
		case <-changed:
			continue
		default:
		}
		select {
		case <-changed:
		case <-lost:
			// Its last events may have come just before its end.
			if t.Mark() > from {
				continue
			}
			return Event{}, from, errLost
		case <-ctx.Done():
			return Event{}, from, context.Cause(ctx)
		}
	}
}
