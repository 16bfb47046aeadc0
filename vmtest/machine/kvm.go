package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"
)

// probeTime bounds ProbeKVM.
const probeTime = 3 * time.Second

// probeMark is what the probe's guest prints.
const probeMark = 'W'

// probeFirmware returns a firmware image whose first instructions write
// probeMark to QEMU's debug port 0xe9 and stop.
func probeFirmware() []byte {
	const size, resetVector = 64 << 10, 64<<10 - 16
	image := bytes.Repeat([]byte{0xf4}, size)
	copy(image[resetVector:], []byte{
		0xb0, probeMark, // mov al, mark
		0xe6, 0xe9, // out 0xe9, al
		0xfa,       // cli
		0xf4,       // hlt
		0xeb, 0xfd, // jmp back to hlt
	})
	return image
}

// ProbeKVM returns nil if KVM really runs a guest of a here: that /dev/kvm
// exists says little where the host is a virtual machine itself. The processor
// is the one that a Machine gets: some hosts run a simpler one and then fail.
// There is no probe for arm64, so it is always emulated.
func (a *Arch) ProbeKVM(ctx context.Context) error {
	if a != AMD64 || runtime.GOARCH != a.Name {
		return fmt.Errorf("probe kvm: no probe for %s on this host", a.Name)
	}
	return probe(ctx, KVM, hostCPU)
}

func probe(ctx context.Context, accel Accel, cpu string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	dir, err := os.MkdirTemp("", "warmcore-probe")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	bios := filepath.Join(dir, "bios")
	if err := os.WriteFile(bios, probeFirmware(), 0o644); err != nil {
		return err
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, AMD64.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35",
		"-accel", string(accel), "-cpu", cpu, "-m", "16M", "-bios", bios, "-debugcon", "stdio")
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("probe %s: %w", accel, err)
	}
	// Killing QEMU at the deadline ends the read.
	var mark [1]byte
	n, _ := stdout.Read(mark[:])
	cancel()
	_ = cmd.Wait() // it was killed
	if n != 1 || mark[0] != probeMark {
		return fmt.Errorf("probe %s: the guest said nothing within %v: %s", accel, probeTime, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}
