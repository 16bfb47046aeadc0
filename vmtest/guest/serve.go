package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

// server answers the rig's requests, one after the other.
type server struct {
	mu       sync.Mutex // one line at a time
	port     io.ReadWriter
	pending  *wire.Trigger // answered, and to be carried out at Go
	painting [][]byte      // held: the pages must stay where they are
}

func (s *server) send(m wire.Message) error {
	m.T = uptime()
	line, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := fmt.Fprintf(s.port, "\n%s\n", line); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

func (s *server) serve() error {
	lines := bufio.NewScanner(s.port)
	lines.Buffer(nil, wire.MaxLine)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var req wire.Request
		if err := json.Unmarshal(lines.Bytes(), &req); err != nil {
			// The rest of a request to the boot before this one.
			if err := s.send(wire.Message{Event: wire.EventNote, Text: fmt.Sprintf("request %q: %v", lines.Bytes(), err)}); err != nil {
				return err
			}
			continue
		}
		answer, err := s.do(req)
		if err != nil {
			answer = wire.Message{Error: err.Error()}
		}
		answer.ID = req.ID
		if err := s.send(answer); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read requests: %w", err)
	}
	return io.ErrUnexpectedEOF
}

func (s *server) do(req wire.Request) (wire.Message, error) {
	switch {
	case len(req.Run) > 0:
		res, err := command(req.Run)
		return wire.Message{Result: &res}, err
	case req.Paint != nil:
		pages, runs, err := paint(*req.Paint)
		if err != nil {
			return wire.Message{}, err
		}
		s.painting = append(s.painting, pages)
		return wire.Message{Pages: runs}, nil
	case req.Trigger != nil:
		if triggers[req.Trigger.Kind] == nil {
			return wire.Message{}, fmt.Errorf("trigger %q: unknown", req.Trigger.Kind)
		}
		s.pending = req.Trigger
		return wire.Message{}, nil
	case req.Go:
		if s.pending == nil {
			return wire.Message{}, errors.New("go: no trigger before it")
		}
		t := *s.pending
		s.pending = nil
		return wire.Message{}, pull(t)
	case req.Read != "":
		data, err := os.ReadFile(req.Read)
		return wire.Message{Data: data}, err
	case req.Sync:
		unix.Sync()
		return wire.Message{}, nil
	}
	return wire.Message{}, errors.New("request asks for nothing")
}

// limited keeps the first max bytes written to it.
type limited struct {
	bytes.Buffer
	max int
}

func (l *limited) Write(b []byte) (int, error) {
	l.Buffer.Write(b[:min(len(b), l.max-l.Len())])
	return len(b), nil
}

// command runs argv. Any exit status of the program is no error; that it can't
// be started is one.
func command(argv []string) (wire.Result, error) {
	stdout, stderr := &limited{max: wire.MaxOutput}, &limited{max: wire.MaxOutput}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return wire.Result{}, err
	}
	return wire.Result{Exit: cmd.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String()}, nil
}
