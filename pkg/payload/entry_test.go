package payload

import (
	"crypto/sha256"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/normalboot"
	"github.com/warmcore/warmcore/pkg/registration"
)

// on puts an entry on a file system.
func on(e normalboot.Entry, uuid string) normalboot.Entry {
	e.FileSystem = uuid
	return e
}

func kernelSum(e normalboot.Entry) [32]byte {
	b := make([]byte, 64<<20)
	n, _ := e.Kernel.ReadAt(b, 0)
	return sha256.Sum256(b[:n])
}

// TestBooted: at a plain boot H records which files were booted, and from
// where.
func TestBooted(t *testing.T) {
	m := newMachine(t)
	m.entries = []normalboot.Entry{on(debian("Debian", 1), "11d6-cafe")}
	m.entries[0].Once = "next_entry=1@7"
	m.run()
	want := registration.Booted{FileSystem: "11d6-cafe", KernelSum: kernelSum(m.entries[0]), InitrdSum: sha256.Sum256(initrd), Once: "next_entry=1@7"}
	if got := m.block().Booted; got != want {
		t.Errorf("booted %+v, want %+v", got, want)
	}
	if got := m.block().Mounting; got != "" {
		t.Errorf("mounting %q", got)
	}
}

// TestCaptureSystem: a dump goes to the system that crashed.
func TestCaptureSystem(t *testing.T) {
	const mine, other = "11d6-cafe", "bad0-bad0"
	same := on(debian("Debian", 1), mine)
	stick := on(debian("Debian", 1), other)
	successor := on(debian("Debian, newer", 3), mine)
	update := on(debian("Debian", 4), mine)
	for _, tt := range []struct {
		name    string
		entries []normalboot.Entry
		cmdline string
		want    string // what is started; "" for a plain boot
		log     string
	}{
		{"the same", []normalboot.Entry{successor, same}, "", "Debian", ""},
		{"a stick with the same name comes first", []normalboot.Entry{stick, same}, "", "Debian", ""},
		{"only the stick is there", []normalboot.Entry{stick}, "", "", "no entry of the system that crashed: file system 11d6-cafe -> waiting for its disk"},
		{"an update with another kernel", []normalboot.Entry{stick, successor}, "", "Debian, newer", "changed_since_the_crash: kernel"},
		{"an update in place", []normalboot.Entry{update}, "", "Debian", "changed_since_the_crash: kernel"},
		{"an update, but only the same may", []normalboot.Entry{update}, "warmcore.successor=no", "", "kernel changed since the boot that crashed, and warmcore.successor=no"},
		{"the administrator's choice counts more", []normalboot.Entry{same, stick}, "warmcore.boot=UUID=BAD0-BAD0:/boot/vmlinuz", "Debian", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newCrash(t)
			sum := kernelSum(same)
			m.register(func(b *registration.Block) {
				b.Booted = registration.Booted{FileSystem: mine, KernelSum: sum, InitrdSum: sha256.Sum256(initrd)}
			})
			m.entries, m.cmdline, m.waits = tt.entries, tt.cmdline, scanPatience+1
			r := m.run()
			if got := strings.Contains(r.cmdline, "elfcorehdr="); got != (tt.want != "") || !r.started {
				t.Errorf("started %t, with a dump: %t; log:\n%s", r.started, got, r.log)
			}
			if !strings.Contains(r.log, tt.log) {
				t.Errorf("log:\n%s\nwant %q", r.log, tt.log)
			}
			if tt.want != "" && m.block().Kernel.Title != tt.want {
				t.Errorf("booted %q, want %q", m.block().Kernel.Title, tt.want)
			}
		})
	}
}

func TestNamed(t *testing.T) {
	e := on(debian("Debian", 1), "11D6-CAFE")
	e.Label = "root"
	for name, want := range map[string]bool{
		"Debian": true, "/boot/vmlinuz": true, "UUID=11d6-cafe:/boot/vmlinuz": true, "UUID=11d6-cafe": true, "LABEL=root:/boot/vmlinuz": true,
		"UUID=11d6-cafe:/boot/other": false, "UUID=": false, "LABEL=:/boot/vmlinuz": false, "UUID=root": false, "debian": false,
	} {
		if named(e, name) != want {
			t.Errorf("%s: %t", name, !want)
		}
	}
	if named(debian("Debian", 1), "UUID=:/boot/vmlinuz") {
		t.Error("a file system without UUID has an empty one")
	}
}

// TestScanOptions: what the payload asks for when it looks at the disks.
func TestScanOptions(t *testing.T) {
	m := newMachine(t)
	m.entries = []normalboot.Entry{on(debian("Debian", 1), "11d6-cafe")}
	var first []string
	m.onScan = func(o normalboot.Options) {
		first = append(first, o.First)
		o.Before("sda")
		if got := m.block().Mounting; got != "sda" {
			t.Errorf("H says %q is being mounted, want sda", got)
		}
		o.After("sda")
		if got := m.block().Mounting; got != "" {
			t.Errorf("H says %q is being mounted, want nothing", got)
		}
		o.Before("sdb")
		o.Silent("sdb")
		if !o.LeaveOut("sdb") || o.LeaveOut("sda") {
			t.Error("a disk that doesn't answer is looked at again")
		}
	}
	m.run()
	if len(first) != 1 || first[0] != "" {
		t.Errorf("first boot: looked first at %q", first)
	}
	first = nil
	m.onScan = func(o normalboot.Options) { first = append(first, o.First) }
	m.run()
	if len(first) != 1 || first[0] != "11d6-cafe" {
		t.Errorf("second boot: looked first at %q, want only at what booted last", first)
	}
	first = nil
	m.entries, m.waits = nil, 1
	m.run()
	if len(first) < 2 || first[0] != "11d6-cafe" || first[1] != "" {
		t.Errorf("its entries are gone: looked first at %q, want then at all", first)
	}
}

// TestHungDisk: a reset while a disk was waited for leaves it out of the next
// boot, unless nothing else boots.
func TestHungDisk(t *testing.T) {
	m := newMachine(t)
	m.run()
	m.register(func(b *registration.Block) { b.State, b.Mounting = registration.Disarmed, "sdb sdc" })
	var out []bool
	m.onScan = func(o normalboot.Options) { out = append(out, o.LeaveOut("sda"), o.LeaveOut("sdb"), o.LeaveOut("sdc")) }
	r := m.run()
	if len(out) < 3 || out[0] || !out[1] || !out[2] {
		t.Errorf("left out: %v", out)
	}
	wantLog(t, r.log, "disks that did not answer before the last reset, disks: sdb sdc -> left out in this boot")
	if got := m.block().Mounting; got != "" {
		t.Errorf("after a normal kernel was started: %q", got)
	}
	m.register(func(b *registration.Block) { b.State, b.Mounting = registration.Disarmed, "sdb" })
	m.entries, out, m.waits = nil, nil, hungPatience+1
	r = m.run()
	wantLog(t, r.log, "no normal kernel without them, disks: sdb -> looking at them, too")
	if len(out) < 3 || out[len(out)-2] {
		t.Errorf("left out in the end: %v", out)
	}
}

// TestOnceOnly: an entry for one boot is asked for once.
func TestOnceOnly(t *testing.T) {
	m := newMachine(t)
	e := debian("Debian", 1)
	e.Once = "next_entry=1@7"
	m.entries = []normalboot.Entry{e}
	var used []bool
	m.onScan = func(o normalboot.Options) { used = append(used, o.Used("next_entry=1@7"), o.Used("next_entry=1@8")) }
	clean := func(b *registration.Block) { b.State = registration.Disarmed }
	m.run()
	m.register(clean)
	m.entries[0].Once = ""
	m.run()
	m.register(clean)
	m.run()
	want := []bool{false, false, true, false, true, false}
	if len(used) != len(want) {
		t.Fatalf("asked %d times", len(used))
	}
	for i := range want {
		if used[i] != want[i] {
			t.Errorf("used: %v, want %v", used, want)
			break
		}
	}
}
