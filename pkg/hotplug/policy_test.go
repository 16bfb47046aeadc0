package hotplug

import (
	"testing"

	"github.com/warmcore/warmcore/pkg/cmdline"
)

func TestOwnPolicy(t *testing.T) {
	const ours = " memhp_default_state=offline warmcore.handoff=1,2"
	for _, tc := range []struct {
		name, line, config, want string
	}{
		{"nothing known", "ro" + ours, "CONFIG_X=y\n", ""},
		{"boot entry", "ro memhp_default_state=online_movable" + ours, "CONFIG_MEMORY_HOTPLUG_DEFAULT_ONLINE=y\n", "online_movable"},
		{"other spelling", "ro memhp-default-state=online" + ours, "", "online"},
		{"twice", "memhp_default_state=online memhp_default_state=online_kernel" + ours, "", "online_kernel"},
		{"what kernels ignore", "memhp_default_state=online memhp_default_state=yes" + ours, "", "online"},
		{"6.1, offline", "ro" + ours, "CONFIG_A=y\n# CONFIG_MEMORY_HOTPLUG_DEFAULT_ONLINE is not set\nCONFIG_B=y\n", "offline"},
		{"6.1, online", "ro" + ours, "CONFIG_MEMORY_HOTPLUG_DEFAULT_ONLINE=y\n", "online"},
		{"6.12", "ro" + ours, "# CONFIG_MHP_DEFAULT_ONLINE_TYPE_OFFLINE is not set\nCONFIG_MHP_DEFAULT_ONLINE_TYPE_ONLINE_AUTO=y\n", "online"},
		{"movable", "ro" + ours, "\nCONFIG_MHP_DEFAULT_ONLINE_TYPE_ONLINE_MOVABLE=y\n", "online_movable"},
		{"not at a line's start", "ro" + ours, "XCONFIG_MHP_DEFAULT_ONLINE_TYPE_ONLINE_MOVABLE=y\n", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, ok := OwnPolicy(cmdline.Parse(tc.line), tc.config)
			if got != tc.want || ok != (tc.want != "") {
				t.Errorf("%q, %v; want %q", got, ok, tc.want)
			}
		})
	}
}
