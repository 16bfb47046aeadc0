package hotplugtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
)

// region is a pmem region: a device tree node, and its devices once of_pmem is
// loaded. Names and attributes are those of Debian's 6.12 for arm64.
type region struct {
	memory phys.Range
	number int
}

const (
	ndDevices = "sys/bus/nd/devices/"
	ndDrivers = "sys/bus/nd/drivers/"

	infoBlock = 2 * phys.MiB
)

// AddPmem adds device tree nodes for pmem regions.
func (k *Kernel) AddPmem(ranges ...phys.Range) {
	for _, r := range ranges {
		k.file(fmt.Sprintf("sys/bus/platform/devices/%x.pmem/modalias", r.Start), "of:NpmemT(null)Cpmem-region\n")
		k.pmem = append(k.pmem, region{r, len(k.pmem)})
	}
	k.file("sys/bus/platform/devices/9000000.pl011/modalias", "of:Npl011T(null)Carm,pl011Carm,primecell\n")
	k.file("sys/bus/platform/devices/alarmtimer/modalias", "platform:alarmtimer\n")
}

func (r region) name() string      { return fmt.Sprintf("region%d", r.number) }
func (r region) namespace() string { return fmt.Sprintf("namespace%d.0", r.number) }
func (r region) seed() string      { return fmt.Sprintf("dax%d.0", r.number) }

// ofPmem makes the devices of all regions.
func (k *Kernel) ofPmem() {
	k.file("sys/bus/platform/drivers/of_pmem/bind", "")
	for _, r := range k.pmem {
		if k.exists(ndDevices + r.name()) {
			continue
		}
		k.file(ndDevices+fmt.Sprintf("ndbus%d/wait_probe", r.number), "1\n")
		for name, value := range map[string]string{
			r.name() + "/resource":             fmt.Sprintf("%#x", r.memory.Start),
			r.name() + "/size":                 fmt.Sprint(r.memory.Size()),
			r.name() + "/dax_seed":             r.seed(),
			r.namespace() + "/holder":          "",
			r.seed() + "/mode":                 "none",
			r.seed() + "/align":                "2097152",
			r.seed() + "/supported_alignments": "4096 [2097152] ",
			r.seed() + "/uuid":                 "",
			r.seed() + "/namespace":            "",
		} {
			k.file(ndDevices+name, value+"\n")
		}
		k.symlink("../../drivers/nd_region", ndDevices+r.name()+"/driver")
		if k.exists(ndDrivers + "nd_pmem") {
			k.symlink("../../drivers/nd_pmem", ndDevices+r.namespace()+"/driver")
		}
	}
}

// ndDriver registers a driver of the nvdimm bus. nd_pmem takes every
// namespace that it finds.
func (k *Kernel) ndDriver(name string) {
	k.file(ndDrivers+name+"/bind", "")
	k.file(ndDrivers+name+"/unbind", "")
	for _, r := range k.pmem {
		link := ndDevices + r.namespace() + "/driver"
		if name == "nd_pmem" && k.exists(ndDevices+r.namespace()) && !k.exists(link) {
			k.symlink("../../drivers/nd_pmem", link)
		}
	}
}

// nd reacts to what is written below sys/bus/nd.
func (k *Kernel) nd(path, data string) error {
	data = strings.TrimSpace(data)
	dir, attribute := filepath.Split(path)
	for _, r := range k.pmem {
		switch {
		case dir == ndDevices+r.seed()+"/":
			return k.configure(r, attribute, data)
		case strings.HasPrefix(path, ndDrivers) && (data == r.seed() || data == r.namespace()):
			return k.ndBind(r, filepath.Base(dir), attribute, data)
		}
	}
	return os.ErrNotExist
}

func (k *Kernel) value(name string) string {
	b, err := os.ReadFile(filepath.Join(k.Root, name))
	if err != nil {
		k.tb.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// configure sets an attribute of a region's seed.
func (k *Kernel) configure(r region, attribute, value string) error {
	seed := ndDevices + r.seed()
	if k.exists(seed + "/driver") {
		return errBusy
	}
	switch {
	case attribute == "align" && !slices.Contains(k.alignments(seed), value),
		attribute == "mode" && value != "ram",
		attribute == "uuid" && len(value) != 36:
		return errInvalid
	case attribute == "namespace" && value == "":
		k.file(ndDevices+r.namespace()+"/holder", "\n")
		k.file(seed+"/mode", "none\n")
		k.file(seed+"/uuid", "\n")
	case attribute == "namespace":
		if value != r.namespace() || k.value(ndDevices+r.namespace()+"/holder") != "" {
			return errBusy
		}
		k.file(ndDevices+r.namespace()+"/holder", r.seed()+"\n")
	}
	k.file(seed+"/"+attribute, value+"\n")
	return nil
}

func (k *Kernel) alignments(seed string) []string {
	return strings.Fields(strings.NewReplacer("[", "", "]", "").Replace(k.value(seed + "/supported_alignments")))
}

// ndBind gives a device to a driver, or takes it away. What dax_pmem takes
// becomes a dax device.
func (k *Kernel) ndBind(r region, driver, attribute, name string) error {
	link := ndDevices + name + "/driver"
	if attribute == "unbind" {
		if target, _ := os.Readlink(filepath.Join(k.Root, link)); filepath.Base(target) != driver {
			return os.ErrNotExist
		}
		k.remove(link)
		return nil
	}
	seed := ndDevices + r.seed()
	if attribute != "bind" || driver != "dax_pmem" || name != r.seed() || k.exists(ndDevices+r.namespace()+"/driver") {
		return errBusy
	}
	if k.value(seed+"/mode") != "ram" || k.value(seed+"/uuid") == "" || k.value(seed+"/namespace") != r.namespace() {
		return os.ErrNotExist // ENODEV
	}
	k.symlink("../../drivers/dax_pmem", link)
	d := device{r.seed(), phys.Range{Start: r.memory.Start + infoBlock, End: r.memory.End}}
	k.addDevice(d)
	k.match(d)
	return nil
}
