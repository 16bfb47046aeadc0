package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestWithin(t *testing.T) {
	const short, long = 50 * time.Millisecond, time.Minute
	full := errors.New("no space left")
	hang := func(context.Context, func()) error { select {} }
	obeys := func(ctx context.Context, _ func()) error { <-ctx.Done(); return ctx.Err() }
	for _, tc := range []struct {
		name string
		l    limits
		save func(context.Context, func()) error
		want string
	}{
		{"saved", limits{long, long, long}, func(context.Context, func()) error { return nil }, ""},
		{"failed", limits{long, long, long}, func(context.Context, func()) error { return full }, "no space left"},
		{"stalls", limits{long, short, long}, obeys, "nothing was written for 50ms (save-stall)"},
		{"hangs", limits{long, short, short}, hang, "(save-stall), and doesn't stop"},
		{"hangs in all", limits{short, long, short}, hang, "took more than 50ms (save-timeout), and doesn't stop"},
		{"no end", limits{4 * short, 2 * short, long}, func(ctx context.Context, progressed func()) error {
			for ctx.Err() == nil {
				progressed()
				time.Sleep(time.Millisecond)
			}
			return ctx.Err()
		}, "save-timeout"},
		{"slow, with progress", limits{long, 4 * short, long}, func(ctx context.Context, progressed func()) error {
			for range 8 {
				progressed()
				time.Sleep(short)
			}
			return ctx.Err()
		}, ""},
		{"no limits", limits{0, 0, long}, func(ctx context.Context, _ func()) error { time.Sleep(short); return ctx.Err() }, ""},
		{"saved in the last moment", limits{short, long, long}, func(ctx context.Context, _ func()) error { <-ctx.Done(); return nil }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.l.within(t.Context(), tc.save)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}
