package hotplug

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/cmdline"
	"github.com/warmcore/warmcore/pkg/phys"
)

// autoOnline holds the policy for memory that is added.
var autoOnline = filepath.Join(memory, "auto_online_blocks")

// policies are the values of memhp_default_state= and of auto_online_blocks.
var policies = []string{"offline", "online", "online_kernel", "online_movable"}

// HoldBack keeps memory that is added offline until SetPolicy. It returns the
// policy that was in force, "" on a kernel that has none.
func (s System) HoldBack() (policy string, err error) {
	policy, err = s.read(autoOnline)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", err
	case policy == "offline":
		return policy, nil
	}
	return policy, s.SetPolicy("offline")
}

// SetPolicy sets the policy for memory that is added.
func (s System) SetPolicy(policy string) error {
	if err := s.write(autoOnline, policy); err != nil {
		return fmt.Errorf("set %s to %s: %w", s.path(autoOnline), policy, err)
	}
	return nil
}

// OwnPolicy returns the policy that the running kernel would have without the
// payload: the one on its command line before the payload's own parameter,
// else that of config, the kernel's configuration. ok is false if neither has
// one.
func OwnPolicy(line cmdline.Line, config string) (policy string, ok bool) {
	given := line.All("memhp_default_state")
	// The kernel ignores what it doesn't know (setup_memhp_default_state in
	// mm/memory_hotplug.c, v6.12).
	for i := len(given) - 2; i >= 0; i-- {
		if slices.Contains(policies, given[i].Value) {
			return given[i].Value, true
		}
	}
	// The second option is from later kernels, such as Debian's 6.12.
	for option, policy := range map[string]string{
		"CONFIG_MEMORY_HOTPLUG_DEFAULT_ONLINE=y":            "online",
		"# CONFIG_MEMORY_HOTPLUG_DEFAULT_ONLINE is not set": "offline",
		"CONFIG_MHP_DEFAULT_ONLINE_TYPE_OFFLINE=y":          "offline",
		"CONFIG_MHP_DEFAULT_ONLINE_TYPE_ONLINE_AUTO=y":      "online",
		"CONFIG_MHP_DEFAULT_ONLINE_TYPE_ONLINE_KERNEL=y":    "online_kernel",
		"CONFIG_MHP_DEFAULT_ONLINE_TYPE_ONLINE_MOVABLE=y":   "online_movable",
	} {
		if strings.HasPrefix(config, option+"\n") || strings.Contains(config, "\n"+option+"\n") {
			return policy, true
		}
	}
	return "", false
}

// errNoPolicy is why memory that is added stays offline.
var errNoPolicy = errors.New("neither memhp_default_state= nor the kernel's configuration in /boot or /lib/modules says what to do with it")

// GiveBack gives memory that is not in ours back to the policy that the kernel
// has without the payload. was is what HoldBack returned; if that is "offline",
// this is the first time in this boot, and memory that was added meanwhile is
// switched online as it would have been. line and config are as for [OwnPolicy].
// It loads the modules, too, that the payload keeps from loading by themselves:
// the last modprobe.blacklist= in line. One that is missing is no error.
func (s System) GiveBack(was string, line cmdline.Line, config string, ours phys.Set) error {
	if was == "" {
		return nil
	}
	list, _ := line.Last("modprobe.blacklist")
	for name := range strings.SplitSeq(list.Value, ",") {
		if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == "" && name != "" {
			_ = s.modprobe(name)
		}
	}
	policy, first := was, was == "offline"
	if first {
		var ok bool
		if policy, ok = OwnPolicy(line, config); !ok {
			return errNoPolicy
		}
	}
	if policy == "offline" {
		return nil
	}
	var errs []error
	if first {
		errs = append(errs, s.onlineOthers(policy, ours))
	}
	return errors.Join(append(errs, s.SetPolicy(policy))...)
}

// onlineOthers switches memory online that is not in ours.
func (s System) onlineOthers(policy string, ours phys.Set) error {
	blocks, err := s.Blocks(phys.Set{{Start: 0, End: 1 << 63}})
	errs := []error{err}
	for i := range blocks {
		if b := &blocks[i]; !b.Online() && !ours.Overlaps(b.Range) {
			errs = append(errs, s.state(b, policy))
		}
	}
	return errors.Join(errs...)
}
