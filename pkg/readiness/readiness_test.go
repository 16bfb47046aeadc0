package readiness

import (
	"io/fs"
	"maps"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/phys"
)

// machine is one that can be armed.
func machine() map[string]string {
	return map[string]string{
		"proc/cmdline":                        "root=/dev/vda1 ro\n",
		"proc/cpuinfo":                        "processor\t: 0\nflags\t\t: fpu sme tme_not\n\nprocessor\t: 1\nflags\t\t: fpu\n",
		"proc/sys/kernel/kexec_load_disabled": "0\n",
		"proc/sys/kernel/hung_task_panic":     "1\n",
		"proc/sys/kernel/panic_on_oops":       "1\n",
		"sys/kernel/kexec_crash_size":         "1048576\n",
		"sys/kernel/security/lockdown":        "[none] integrity confidentiality\n",
	}
}

func files(m map[string]string) fs.FS {
	f := fstest.MapFS{}
	for name, text := range m {
		f[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return f
}

// msr is the register's file: nothing but 8 bytes at 0x982.
func msr(value byte) string {
	return strings.Repeat("\x00", 0x982) + string([]byte{value, 0, 0, 0, 0, 0, 0, 0})
}

func TestKernel(t *testing.T) {
	const mor = overwriteRequestFile
	for _, tc := range []struct {
		name         string
		set          map[string]string // "": no such file
		check        string
		want         Verdict
		reason, todo string
	}{
		{"lockdown", map[string]string{"sys/kernel/security/lockdown": "none [integrity] confidentiality"}, "lockdown", Refuse, "lockdown is integrity", "Secure Boot"},
		{"no kexec", map[string]string{"proc/sys/kernel/kexec_load_disabled": ""}, "kexec", Refuse, "no kexec_load", "CONFIG_KEXEC"},
		{"kexec disabled", map[string]string{"proc/sys/kernel/kexec_load_disabled": "1"}, "kexec", Refuse, "kexec_load_disabled is set", "reboot"},
		{"no crash image", map[string]string{"sys/kernel/kexec_crash_size": ""}, "crash-memory", Refuse, "can't load a crash image", "CONFIG_CRASH_DUMP"},
		{"no crash memory", map[string]string{"sys/kernel/kexec_crash_size": "0"}, "crash-memory", Refuse, "no memory is reserved", "dmesg"},
		{"memory overwrite", map[string]string{mor: "\x07\x00\x00\x00\x11"}, "memory-overwrite", Refuse, "asked to clear memory", "CONFIG_RESET_ATTACK_MITIGATION"},
		{"SEV-SNP", map[string]string{"dev/sev-guest": "x"}, "guest", Refuse, "SEV-SNP", "kdump"},
		{"TDX", map[string]string{"proc/cpuinfo": "flags : fpu tdx_guest\n"}, "guest", Refuse, "tdx_guest", "kdump"},
		{"SME", map[string]string{"proc/cmdline": "mem_encrypt=off mem_encrypt=on"}, "memory-encryption", Refuse, "mem_encrypt=on", "mem_encrypt=off"},
		{"TSME", map[string]string{"sys/bus/pci/devices/0000:03:00.1/tsme_status": "1\n"}, "memory-encryption", Refuse, "TSME", "setup"},
		{"TSME is off", map[string]string{"sys/bus/pci/devices/0000:03:00.1/tsme_status": "0\n"}, "memory-encryption", OK, "", ""},
		{"TME", map[string]string{"proc/cpuinfo": "flags : fpu tme\n", "dev/cpu/0/msr": msr(3)}, "memory-encryption", Refuse, "TME", "setup"},
		{"TME is off", map[string]string{"proc/cpuinfo": "flags : fpu tme\n", "dev/cpu/0/msr": msr(1)}, "memory-encryption", OK, "", ""},
		{"TME, not known", map[string]string{"proc/cpuinfo": "flags : fpu tme\n"}, "memory-encryption", Warn, "not known", "modprobe msr"},
		{"no TME", map[string]string{"dev/cpu/0/msr": msr(3)}, "memory-encryption", OK, "", ""},
		{"hangs", map[string]string{"proc/sys/kernel/hung_task_panic": "0", "proc/sys/kernel/softlockup_panic": "0", "proc/sys/kernel/hardlockup_panic": "0",
			"proc/sys/kernel/unknown_nmi_panic": "0", "proc/sys/kernel/panic_on_oops": "0"}, "panics", Warn, "hung_task_panic, softlockup_panic, hardlockup_panic, unknown_nmi_panic, panic_on_oops", "sysctl kernel.hung_task_panic=1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := machine()
			maps.Copy(m, tc.set)
			maps.DeleteFunc(m, func(_, text string) bool { return text == "" })
			for _, c := range Kernel(files(m)) {
				want := Check{Name: c.Name, Verdict: OK}
				if c.Name == tc.check {
					want.Verdict = tc.want
				}
				if c.Verdict != want.Verdict || c.Name == tc.check && (!strings.Contains(c.Reason, tc.reason) || !strings.Contains(c.Remedy, tc.todo)) {
					t.Errorf("%+v, want %s to be %s: %q, %q", c, tc.check, tc.want, tc.reason, tc.todo)
				}
				if (c.Verdict == OK) != (c.Reason == "" && c.Remedy == "") || len(c.Reason) >= 100 || len(c.Remedy) >= 100 {
					t.Errorf("%s: %d and %d characters", c.Name, len(c.Reason), len(c.Remedy))
				}
			}
		})
	}
}

func TestKernelReady(t *testing.T) {
	list := Kernel(files(machine()))
	if len(list) != len(kernelChecks) {
		t.Errorf("%d checks, want %d", len(list), len(kernelChecks))
	}
	for _, c := range list {
		if diff := cmp.Diff(Check{Name: c.Name, Verdict: OK}, c); diff != "" || c.Name == "" {
			t.Errorf("check (-want +got):\n%s", diff)
		}
	}
}

func TestMemory(t *testing.T) {
	mib := func(start, end uint64) phys.Set { return phys.Set{{Start: start * phys.MiB, End: end * phys.MiB}} }
	dumped := mib(1, 384).Union(mib(514, 2048))
	overwritten := mib(384, 514).Union(mib(2048, 2560))
	for _, tc := range []struct {
		name   string
		inUse  phys.Set
		want   Verdict
		reason string
	}{
		{"as planned", dumped, OK, ""},
		{"less than planned", mib(1, 200), OK, ""},
		{"the destination in zone Normal", dumped.Union(mib(2048, 2176)), Refuse, "overwrites 128 MiB that this kernel uses, from 0x80000000 on"},
		{"memory that was added", dumped.Union(mib(4096, 5120)), Warn, "1 GiB of kernel memory, from 0x100000000 on, would be in no dump"},
		{"a border that is no whole page", dumped.Union(phys.Set{{Start: 2560 * phys.MiB, End: 2560*phys.MiB + 0xf000}}), OK, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := Memory(tc.inUse, dumped, overwritten)
			if c.Name != "memory" || c.Verdict != tc.want || !strings.Contains(c.Reason, tc.reason) || len(c.Reason) >= 100 || len(c.Remedy) >= 100 {
				t.Errorf("%+v, want %s, %q", c, tc.want, tc.reason)
			}
		})
	}
}

func TestKept(t *testing.T) {
	if c := Kept(0); c != (Check{Name: "released", Verdict: OK}) {
		t.Errorf("%+v", c)
	}
	if c := Kept(phys.GiB); c.Verdict != Warn || !strings.Contains(c.Reason, "1 GiB of the last dump") || !strings.Contains(c.Remedy, "warmcore release") {
		t.Errorf("%+v", c)
	}
}

func TestWanted(t *testing.T) {
	if c := Wanted(true); c.Verdict != OK || c.Name != "wanted" {
		t.Errorf("arm=yes: %+v", c)
	}
	if c := Wanted(false); c.Verdict != Refuse || c.Name != "wanted" || c.Remedy == "" {
		t.Errorf("arm=no: %+v", c)
	}
}
