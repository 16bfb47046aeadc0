#!/bin/sh
# Builds the payload's initramfs: u-root's init and warminit in one binary.
#
#   build.sh ARCH OUTFILE [xz|zstd|none]
#
# The archive is reproducible: no paths of the build machine, no times.
set -eu

arch=${1:?usage: build.sh ARCH OUTFILE [xz|zstd|none]}
out=${2:?usage: build.sh ARCH OUTFILE [xz|zstd|none]}
compress=${3:-xz}
cd "$(dirname "$0")/.."
version=$(git describe --always --dirty 2>/dev/null || echo unknown)

mkdir -p "$(dirname "$out")"
cpio=$(mktemp)
trap 'rm -f "$cpio"' EXIT

# -base=/dev/null: no etc/ of u-root's; init makes what it needs.
GOARCH=$arch GOOS=linux CGO_ENABLED=0 GOFLAGS=-buildvcs=false go tool u-root \
	-format=cpio -build=bb -base=/dev/null -defaultsh= \
	-initcmd=init -uinitcmd=warminit -o "$cpio" \
	-go-extra-args="-ldflags=-s -w -X=github.com/warmcore/warmcore/cmds/warminit.version=$version" \
	github.com/u-root/u-root/cmds/core/init ./cmds/warminit

case $compress in
xz) xz --check=crc32 --lzma2=preset=9e,dict=8MiB --stdout "$cpio" >"$out" ;; # the kernel's decoder knows crc32 only
zstd) zstd -q -19 --stdout "$cpio" >"$out" ;;
none) cp "$cpio" "$out" ;;
*) echo "build.sh: compression $compress: want xz, zstd or none" >&2; exit 2 ;;
esac
echo "initramfs: $(stat -c %s "$out") bytes ($compress; $(stat -c %s "$cpio") unpacked): $out"
