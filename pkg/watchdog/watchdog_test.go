package watchdog

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// dog is a watchdog that resets its machine.
type dog struct {
	mu       sync.Mutex
	pings    int
	last     time.Time
	timeout  time.Duration
	stopped  bool
	stopErr  error
	fixed    error // of setting a time-out
	timeouts []time.Duration
}

func (d *dog) ping() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pings, d.last = d.pings+1, time.Now()
	return nil
}

func (d *dog) setTimeout(t time.Duration) (time.Duration, error) {
	if d.fixed != nil {
		return 0, d.fixed
	}
	d.timeouts = append(d.timeouts, t)
	return t, nil
}

func (d *dog) stop() (bool, error) {
	d.stopped = d.stopErr == nil
	return d.stopped, d.stopErr
}

// unanswered says whether the hardware would have reset the machine by now.
func (d *dog) unanswered() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Since(d.last) >= d.timeout
}

func TestDeadlines(t *testing.T) {
	tests := []struct {
		name     string
		hardware bool
		// took is how long each phase of a limit of 100 s takes.
		took   []time.Duration
		missed string
	}{
		{"all in time", true, []time.Duration{99 * time.Second, 0, 99 * time.Second}, ""},
		{"all in time, no hardware", false, []time.Duration{99 * time.Second, 99 * time.Second}, ""},
		{"the first is late", true, []time.Duration{101 * time.Second}, "phase 0"},
		{"the last is late", true, []time.Duration{50 * time.Second, 50 * time.Second, 102 * time.Second}, "phase 2"},
		{"late, no hardware", false, []time.Duration{50 * time.Second, 102 * time.Second}, "phase 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &dog{timeout: 20 * time.Second}
				var hardware *Hardware
				if tt.hardware {
					hardware = &Hardware{dev: d, Timeout: d.timeout}
				}
				var got string
				var after time.Duration
				began := time.Now()
				w := Start(hardware, "phase 0", 100*time.Second, func(phase string, limit time.Duration) {
					if got != "" {
						t.Errorf("a deadline was missed twice: %s, %s", got, phase)
					}
					got, after = phase, time.Since(began)
					if limit != 100*time.Second {
						t.Errorf("limit %v, want 100s", limit)
					}
				})
				for i, took := range tt.took {
					if i > 0 {
						began = time.Now()
						w.Within("phase "+string(rune('0'+i)), 100*time.Second)
					}
					time.Sleep(took)
					synctest.Wait()
					if late := took > 100*time.Second; tt.hardware && !late && d.unanswered() {
						t.Errorf("phase %d is in time, and the hardware has waited for 20 s", i)
					}
				}
				if got != tt.missed {
					t.Errorf("missed %q, want %q", got, tt.missed)
				}
				if tt.missed != "" && (after < 100*time.Second || after > 102*time.Second) {
					t.Errorf("missed after %v, want 100s", after)
				}
				if tt.missed != "" && tt.hardware {
					time.Sleep(d.timeout)
					if !d.unanswered() {
						t.Error("the hardware is still answered after the deadline")
					}
				}
				if err := w.Stop(); err != nil {
					t.Error(err)
				}
				if tt.hardware && !d.stopped {
					t.Error("the hardware runs on")
				}
				pings := d.pings
				time.Sleep(time.Hour)
				if d.pings != pings || got != tt.missed {
					t.Error("it goes on after Stop")
				}
			})
		})
	}
}

func TestCantStop(t *testing.T) {
	for _, tt := range []struct {
		name string
		dog  *dog
		want string
	}{
		{"long time-out", &dog{stopErr: errors.New("nowayout")}, "resets in 10m0s unless the next kernel answers it: nowayout"},
		{"fixed time-out", &dog{stopErr: errors.New("nowayout"), fixed: errors.New("fixed")}, "with its own time-out"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := Start(&Hardware{dev: tt.dog, Timeout: time.Minute}, "start", time.Minute, nil)
			if err := w.Stop(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("stop: %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	if h, err := Open(filepath.Join(dir, "watchdog")); h != nil || !errors.Is(err, ErrNone) {
		t.Errorf("no device: %v, %v; want %v", h, err, ErrNone)
	}
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if h, err := Open(path); h != nil || err == nil || !strings.Contains(err.Error(), "WDIOC_GETSUPPORT") {
		t.Errorf("no watchdog: %v, %v; want an error that says so", h, err)
	}
}
