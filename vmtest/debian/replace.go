package debian

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Replace gives a file of the image new contents, while nothing has the file
// system mounted for writing.
func (i Image) Replace(ctx context.Context, name string, contents []byte) error {
	dir, err := os.MkdirTemp("", "replace")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	source := filepath.Join(dir, "file")
	if err := os.WriteFile(source, contents, 0o644); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "debugfs", "-w", "-f", "-", i.device())
	cmd.Stdin = strings.NewReader(fmt.Sprintf("rm %q\nwrite %q %q\n", name, source, name))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("replace %s on %s: %w\n%s", name, i.Path, err, out)
	}
	// debugfs exits with 0 whatever happens: look.
	var got strings.Builder
	if err := i.debugfs(ctx, "cat", name, &got); err != nil {
		return err
	}
	if got.String() != string(contents) {
		return fmt.Errorf("replace %s on %s: it has %d bytes afterwards, not %d", name, i.Path, got.Len(), len(contents))
	}
	return nil
}
