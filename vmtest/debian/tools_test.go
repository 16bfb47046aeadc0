package debian

import "testing"

func TestInRoot(t *testing.T) {
	dirs := []string{"/out/dir", "/cache"}
	for name, want := range map[string]string{
		"/out/dir/vmcore":     "/mnt/2/vmcore",
		"/out/dir":            "/mnt/2",
		"/cache/a/vmlinux":    "/mnt/1/a/vmlinux",
		"/out/directory/file": "/out/directory/file",
		"/usr/bin/crash":      "/usr/bin/crash",
		"-d":                  "-d",
		"31":                  "31",
	} {
		if got := inRoot(dirs, name); got != want {
			t.Errorf("inRoot(%q) = %q, want %q", name, got, want)
		}
	}
}
