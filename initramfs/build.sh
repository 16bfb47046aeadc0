#!/bin/sh
# Builds the payload's initramfs: u-root's init and warminit in one binary.
#
#   build.sh ARCH OUTFILE [xz|zstd|none] [MODULES]
#
# MODULES is the unpacked tree of a distribution's kernel package, for a
# payload that is that kernel: the folder above lib/modules/. The modules named
# in MODULE_NAMES go in with what they need, numbered in the order to load
# them. A distribution's kernel leaves little of a small window, so the default
# is what most disks need; add xfs, btrfs or usb_storage where it takes them.
#
# The archive is reproducible: no paths of the build machine, no times.
set -eu

arch=${1:?usage: build.sh ARCH OUTFILE [xz|zstd|none]}
out=${2:?usage: build.sh ARCH OUTFILE [xz|zstd|none]}
compress=${3:-xz}
modules=${4:-}
names=${MODULE_NAMES:-virtio_pci virtio_blk nvme ahci sd_mod ext4}
cd "$(dirname "$0")/.."
version=$(git describe --always --dirty 2>/dev/null || echo unknown)

mkdir -p "$(dirname "$out")"
cpio=$(mktemp)
staged=$(mktemp -d)
uroot=$(mktemp)
trap 'rm -rf "$cpio" "$staged" "$uroot"' EXIT

if [ -n "$modules" ]; then
	case $arch in arm64) strip=aarch64-linux-gnu-strip ;; *) strip=strip ;; esac
	release=$(ls "$modules/lib/modules")
	depmod -b "$modules" "$release"
	mkdir -p "$staged/lib/modules/warmcore"
	n=100
	for m in $names; do
		for f in $(modprobe -d "$modules" -S "$release" --show-depends "$m" 2>/dev/null | sed -n 's/^insmod //p'); do
			name=$(basename "${f%.xz}" .ko)
			ls "$staged/lib/modules/warmcore/"*-"$name.ko" >/dev/null 2>&1 && continue
			n=$((n + 1))
			ko=$staged/lib/modules/warmcore/$n-$name.ko
			case $f in *.xz) xz -dc "$f" >"$ko" ;; *) cp "$f" "$ko" ;; esac
			"$strip" --strip-debug "$ko"
		done
	done
fi

# -base=/dev/null: no etc/ of u-root's; init makes what it needs. u-root itself is for the host, whatever GOARCH is.
go build -o "$uroot" github.com/u-root/u-root
GOARCH=$arch GOOS=linux CGO_ENABLED=0 GOFLAGS=-buildvcs=false "$uroot" \
	-format=cpio -build=bb -base=/dev/null -defaultsh= \
	${modules:+-files "$staged/lib:lib"} -initcmd=init -uinitcmd=warminit -o "$cpio" \
	-go-extra-args="-ldflags=-s -w -X=github.com/warmcore/warmcore/pkg/payload.Version=$version" \
	github.com/u-root/u-root/cmds/core/init ./cmds/warminit

# A filter for branches makes programs 6 % smaller (arm64: xz 5.4, read by Linux 6.11 and later).
case $arch in amd64) bcj=--x86 ;; arm64) bcj=--arm64 ;; *) bcj= ;; esac
case $compress in
xz) xz --check=crc32 ${bcj:+"$bcj"} --lzma2=preset=9e,dict=8MiB --stdout "$cpio" >"$out" ;; # the kernel's decoder knows crc32 only
zstd) zstd -q -19 --stdout "$cpio" >"$out" ;;
none) cp "$cpio" "$out" ;;
*) echo "build.sh: compression $compress: want xz, zstd or none" >&2; exit 2 ;;
esac
echo "initramfs: $(stat -c %s "$out") bytes ($compress; $(stat -c %s "$cpio") unpacked): $out"
