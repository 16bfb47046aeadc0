package hotplug

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

func (s System) path(name string) string { return filepath.Join(s.Root, name) }

func (s System) exists(name string) bool {
	_, err := os.Stat(s.path(name))
	return err == nil
}

// read returns an attribute without the newline at its end.
func (s System) read(name string) (string, error) {
	text, err := s.readAll(name, maxAttribute)
	return strings.TrimSpace(text), err
}

// readAll returns at most limit bytes of a file.
func (s System) readAll(name string, limit int64) (string, error) {
	f, err := os.Open(s.path(name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", s.path(name), err)
	}
	return string(b), nil
}

// number reads an attribute that is a number; base 0 accepts 0x and decimal.
func (s System) number(name string, base int) (uint64, error) {
	text, err := s.read(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, base, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.path(name), err)
	}
	return n, nil
}

func (s System) write(name, data string) error {
	if s.Write != nil {
		return s.Write(name, data)
	}
	// No O_CREATE: an attribute that isn't there is an error to report.
	f, err := os.OpenFile(s.path(name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(data)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

func (s System) modprobe(name string) error {
	if s.Modprobe != nil {
		return s.Modprobe(name)
	}
	out, err := exec.Command("modprobe", name).CombinedOutput()
	if err != nil {
		return fmt.Errorf("modprobe %s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}
