package machine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

// process is one QEMU.
type process struct {
	cmd    *exec.Cmd
	log    string // file of its standard error
	qmp    *qmp
	events io.Writer     // to the guest program
	ended  chan struct{} // closed when it has ended and all its output is in the timeline
	err    error         // how it ended; to be read when ended is closed
}

// launch starts argv and waits until it has connected to all sockets of dir.
// The CPUs don't run yet.
func launch(ctx context.Context, argv []string, dir, log string, t *Timeline) (_ *process, err error) {
	listeners := map[string]*net.UnixListener{}
	for _, name := range sockets {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unix"})
		if err != nil {
			return nil, fmt.Errorf("listen for %s: %w", name, err)
		}
		defer l.Close()
		listeners[name] = l
	}
	logFile, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	// A rig that is killed must not leave machines behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	p := &process{cmd: cmd, log: log, ended: make(chan struct{})}
	exited := make(chan struct{})
	var readers sync.WaitGroup
	readers.Add(1) // this function, until it has started all
	go func() {
		p.err = cmd.Wait()
		close(exited)
		readers.Wait()
		t.Note("qemu-end", cmd.ProcessState.String())
		close(p.ended)
	}()
	defer func() {
		readers.Done()
		if err != nil {
			p.kill()
			if errors.Is(err, errLost) {
				err = p.lost()
			}
		}
	}()

	conns := map[string]*net.UnixConn{}
	for _, name := range sockets {
		c, err := accept(ctx, listeners[name], exited)
		if err != nil {
			return nil, fmt.Errorf("connect to %s: %w", name, err)
		}
		conns[name] = c
	}
	readers.Go(func() { readConsole(conns[socketConsole], t) })
	readers.Go(func() { readGuest(conns[socketEvents], t) })
	readers.Go(func() { readPayload(conns[socketPayload], t) })
	p.events = conns[socketEvents]
	p.qmp = newQMP(conns[socketQMP], func(name string, data json.RawMessage) {
		t.add(Event{Source: FromQMP, Name: name, Data: data})
	})
	readers.Go(func() { <-p.qmp.ended })
	if err := p.qmp.do(ctx, "qmp_capabilities", nil, nil); err != nil {
		return nil, err
	}
	return p, nil
}

// kill ends the process and waits for it.
func (p *process) kill() {
	// The only error is that it has ended.
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// lost says how the process ended.
func (p *process) lost() error {
	<-p.ended
	e := &LostError{Reason: p.cmd.ProcessState.String()}
	if b, err := os.ReadFile(p.log); err == nil {
		const most = 1000
		e.Log = strings.TrimSpace(string(b[max(0, len(b)-most):]))
	}
	return e
}

// accept waits for QEMU to connect.
func accept(ctx context.Context, l *net.UnixListener, exited <-chan struct{}) (*net.UnixConn, error) {
	type result struct {
		conn *net.UnixConn
		err  error
	}
	got := make(chan result, 1)
	go func() {
		c, err := l.AcceptUnix()
		got <- result{c, err}
	}()
	var cause error
	select {
	case r := <-got:
		return r.conn, r.err
	case <-exited:
		cause = errLost
	case <-ctx.Done():
		cause = context.Cause(ctx)
	}
	return nil, errors.Join(cause, l.Close())
}

// readConsole turns output into one event a line. A line that has no end yet
// isn't one.
func readConsole(r io.Reader, t *Timeline) {
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		line, _, err := br.ReadLine()
		if err != nil {
			return
		}
		t.add(Event{Source: FromConsole, Text: printable(string(line))})
	}
}

// printable takes terminal control out of a console line, so that a report
// can't change the terminal that shows it.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, s)
}

// readGuest turns messages of the guest program into events.
func readGuest(r io.Reader, t *Timeline) {
	readLines(r, func(line []byte) {
		m := &wire.Message{}
		if err := json.Unmarshal(line, m); err != nil {
			t.Note("guest-garbled", err.Error())
			return
		}
		t.add(Event{Source: FromGuest, Name: m.Event, Message: m})
	})
}

// readPayload turns JSON objects of the payload into events.
func readPayload(r io.Reader, t *Timeline) {
	readLines(r, func(line []byte) {
		var head struct {
			Event string `json:"event"`
		}
		if err := json.Unmarshal(line, &head); err != nil {
			t.Note("payload-garbled", err.Error())
			return
		}
		t.add(Event{Source: FromPayload, Name: head.Event, Data: bytes.Clone(line)})
	})
}

func readLines(r io.Reader, do func([]byte)) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, wire.MaxLine)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) > 0 {
			do(lines.Bytes())
		}
	}
}
