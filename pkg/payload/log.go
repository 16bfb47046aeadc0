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

// Logger is a slog.Handler that writes each record as a line in the kernel's
// style, "[    1.234567] warmcore: ...", to a console and to a buffer for the
// handoff area.
type Logger struct {
	out    *logOutput
	attrs  string // from WithAttrs, as printed
	prefix string // of WithGroup: "group."
}

// logOutput is shared by a Logger and those derived from it.
type logOutput struct {
	mu      sync.Mutex
	console io.Writer
	text    bytes.Buffer
	uptime  func() time.Duration
}

// maxLogText caps the buffer, in case the payload logs in a loop.
const maxLogText = 1 << 20

// NewLogger returns a logger; uptime gives the time since the kernel started.
func NewLogger(console io.Writer, uptime func() time.Duration) *Logger {
	return &Logger{out: &logOutput{console: console, uptime: uptime}}
}

// Text returns the log so far.
func (l *Logger) Text() []byte {
	l.out.mu.Lock()
	defer l.out.mu.Unlock()
	return bytes.Clone(l.out.text.Bytes())
}

// Enabled takes everything but debug messages.
func (l *Logger) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// WithAttrs returns a logger that prints attrs with each record.
func (l *Logger) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *l
	for _, a := range attrs {
		with.attrs += l.format(a)
	}
	return &with
}

// WithGroup returns a logger that puts name before all later keys.
func (l *Logger) WithGroup(name string) slog.Handler {
	with := *l
	if name != "" {
		with.prefix += name + "."
	}
	return &with
}

func (l *Logger) format(a slog.Attr) string {
	text := strings.ReplaceAll(a.Value.Resolve().String(), "\n", "; ")
	if a.Key == "so" {
		return " -> " + text
	}
	return fmt.Sprintf(", %s%s: %s", l.prefix, a.Key, text)
}

// Handle prints a record.
func (l *Logger) Handle(_ context.Context, r slog.Record) error {
	o := l.out
	var b strings.Builder
	fmt.Fprintf(&b, "[%12.6f] warmcore: ", o.uptime().Seconds())
	if r.Level >= slog.LevelWarn {
		fmt.Fprintf(&b, "%s: ", strings.ToLower(r.Level.String()))
	}
	b.WriteString(r.Message)
	b.WriteString(l.attrs)
	r.Attrs(func(a slog.Attr) bool {
		b.WriteString(l.format(a))
		return true
	})
	b.WriteByte('\n')
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.text.Len() < maxLogText {
		o.text.WriteString(b.String())
	}
	_, err := io.WriteString(o.console, b.String())
	return err
}
