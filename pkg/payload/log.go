package payload

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Logger writes one short line a record, "[    1.234567] warmcore: ...", as
// the kernel does around it, to a console and to a buffer for the handoff
// area.
type Logger struct {
	mu      sync.Mutex
	console io.Writer
	text    bytes.Buffer
	uptime  func() time.Duration
}

// maxLogText stops a payload that logs in a loop from eating its memory.
const maxLogText = 1 << 20

// NewLogger returns a logger; uptime gives the time since the kernel started.
func NewLogger(console io.Writer, uptime func() time.Duration) *Logger {
	return &Logger{console: console, uptime: uptime}
}

// Text is what was logged so far.
func (l *Logger) Text() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.text.Bytes())
}

// Enabled takes everything but debug messages.
func (l *Logger) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// WithAttrs and WithGroup are not used by the payload.
func (l *Logger) WithAttrs([]slog.Attr) slog.Handler { return l }

// WithGroup does nothing.
func (l *Logger) WithGroup(string) slog.Handler { return l }

// Handle prints a record.
func (l *Logger) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	fmt.Fprintf(&b, "[%12.6f] warmcore: ", l.uptime().Seconds())
	if r.Level >= slog.LevelWarn {
		fmt.Fprintf(&b, "%s: ", strings.ToLower(r.Level.String()))
	}
	b.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		text := strings.ReplaceAll(a.Value.String(), "\n", "; ")
		if a.Key == "so" {
			fmt.Fprintf(&b, " -> %s", text)
		} else {
			fmt.Fprintf(&b, ", %s: %s", a.Key, text)
		}
		return true
	})
	b.WriteByte('\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text.Len() < maxLogText {
		l.text.WriteString(b.String())
	}
	_, err := io.WriteString(l.console, b.String())
	return err
}
