// Package build builds Go programs of this module for guests.
package build

import (
	"context"
	"fmt"
	"os"
	"os/exec"
)

// guestPackage is the guest program.
const guestPackage = "github.com/warmcore/warmcore/vmtest/guest"

// Guest builds the guest program into the file out, static, for the
// architecture arch as Go calls it.
func Guest(ctx context.Context, arch, out string) error { return Program(ctx, arch, guestPackage, out) }

// Program builds the program pkg in the same way. It must run inside the
// module.
func Program(ctx context.Context, arch, pkg, out string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", pkg, err, b)
	}
	return nil
}
