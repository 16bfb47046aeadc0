package debian

import (
	"path/filepath"
	"testing"
)

func TestTakesMemory(t *testing.T) {
	const with, without = "CONFIG_SPARSEMEM=y\nCONFIG_ZONE_DEVICE=y\n", "# CONFIG_ZONE_DEVICE is not set\n"
	for _, tt := range []struct {
		name, image, config, text string
		want                      bool
	}{
		{"in boot", "vmlinuz-6.12", "config-6.12", with, true},
		{"in boot, without", "vmlinuz-6.12", "config-6.12", without, false},
		{"beside the modules", "vmlinuz", "config", with, true},
		{"beside the modules, without", "vmlinuz", "config", without, false},
		{"somebody's own", "Image", "", "", true},
	} {
		dir := t.TempDir()
		if tt.config != "" {
			writeFile(t, filepath.Join(dir, tt.config), []byte(tt.text))
		}
		if got, err := (Kernel{Release: "6.12", Image: filepath.Join(dir, tt.image)}).TakesMemory(); err != nil || got != tt.want {
			t.Errorf("%s: %v, %v; want %v", tt.name, got, err, tt.want)
		}
	}
}
