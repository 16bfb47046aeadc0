#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
#
# build.sh ARCH OUTDIR [INITRAMFS_CPIO]
#
# Builds the payload's kernel from Debian's source package and ARCH.config over common.config. README.md says why.
# Results are cached by the hash of all that goes in; a new initramfs costs a link, not a compilation.

set -euo pipefail

source=linux-source-6.12
tarball=/usr/src/$source.tar.xz
window=(0x18000000 0x20000000) # amd64: every byte that `qemu -kernel vmlinux` loads must lie in here

say() { printf 'kernel %4ds  %s\n' "$SECONDS" "$*" >&2; }
die() {
	printf 'build.sh: %s\n' "$@" >&2
	exit 1
}

if [ $# -lt 2 ] || [ $# -gt 3 ]; then
	echo "usage: build.sh ARCH OUTDIR [INITRAMFS_CPIO]" >&2
	exit 2
fi
arch=$1 outdir=$2 initramfs=${3:-}
here=$(cd "$(dirname "$0")" && pwd)
[ -f "$here/$arch.config" ] || die "no kernel for $arch: there is no $here/$arch.config"
case $arch in
amd64) srcarch=x86 cross=x86_64-linux-gnu- target=bzImage image=arch/x86/boot/bzImage ;;
arm64) srcarch=arm64 cross=aarch64-linux-gnu- target=Image image=arch/arm64/boot/Image ;;
*) die "ARCH is amd64 or arm64, not $arch" ;;
esac

# What must be installed, each with the Debian package that has it.
missing=()
triplet=${cross%-} triplet=${triplet//_/-}
need() {
	case $1 in
	/*) [ -e "$1" ] || missing+=("$2") ;;
	*) command -v "$1" >/dev/null || missing+=("$2") ;;
	esac
}
need "$tarball" $source
need gcc gcc
need "${cross}gcc" "gcc-$triplet"
need "${cross}ld" "binutils-$triplet"
need make make
need flex flex
need bison bison
need bc bc
need xz xz-utils
need flock util-linux
need /usr/include/libelf.h libelf-dev
[ ${#missing[@]} -eq 0 ] || die "to build the kernel, first: apt-get install ${missing[*]}"

# The kernel reads a plain cpio, or one in xz with CRC32, or zstd. Find out here and not in the boot.
if [ -n "$initramfs" ]; then
	[ -f "$initramfs" ] || die "no initramfs $initramfs"
	case $(od -An -tx1 -N8 "$initramfs" | tr -d ' ') in
	303730373031* | 28b52ffd*) ;;
	fd377a585a000001) ;;
	fd377a585a00*) die "$initramfs: the kernel wants xz --check=crc32" ;;
	*) die "$initramfs is no cpio (newc), plain or in xz or zstd" ;;
	esac
fi

# The key of everything but the initramfs, and the key of the result.
version=$(dpkg-query -W -f '${Version}' $source)
toolchain=$("${cross}gcc" --version | head -n1 && "${cross}ld" --version | head -n1 && xz --version | head -n1)
base=$({
	echo "$arch $version $toolchain"
	cat "$here/build.sh" "$here/common.config" "$here/$arch.config"
} | sha256sum | cut -c1-16)
key=$base
[ -z "$initramfs" ] || key=$base-$(sha256sum <"$initramfs" | cut -c1-16)

cache=${XDG_CACHE_HOME:-$HOME/.cache}/warmcore/kernel
src=$cache/${source}_$version
obj=$cache/$arch/obj-$base # one for each configuration: branches that differ in it don't undo each other's work
out=$cache/$arch/out
mkdir -p "$obj" "$out" "$outdir"

deliver() { # copies the cached result, if there is one
	[ -d "$out/$key" ] || return 1
	touch "$out/$key"
	cp --remove-destination "$out/$key"/* "$outdir/" # QEMU maps vmlinux: never change the one it runs
	say "$1 $outdir/$target ($(($(stat -c %s "$outdir/$target") / 1024)) KiB), $(head -n1 "$outdir/version")"
	exit 0
}

deliver "from the cache:" || true
exec 9>"$obj/lock"
if ! flock -n 9; then
	say "waiting for another build.sh $arch"
	flock 9
	deliver "from the cache:" || true
fi

# Kbuild must see the same world on every machine, whatever make or shell has called us.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES KCONFIG_CONFIG KCONFIG_ALLCONFIG KCFLAGS KAFLAGS
export LC_ALL=C TZ=UTC
export KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' KBUILD_BUILD_VERSION=1
export KBUILD_BUILD_USER=warmcore KBUILD_BUILD_HOST=warmcore
log=$obj/log
: >"$log"
quiet() { "$@" >>"$log" 2>&1 || die "failed: $*" "$(tail -n 15 "$log")" "the whole log is $log"; }
# The rest is compiled for size; page tables for /dev/mem, a part of each copy, are filled by mm/memory.c, for speed.
kmake() { make -C "$src" O="$obj" ARCH=$srcarch CROSS_COMPILE=$cross CFLAGS_memory.o=-O2 "$@"; }

if [ ! -d "$src" ]; then
	say "unpacking $source $version (once)"
	rm -rf "$src.part" && mkdir "$src.part"
	quiet tar -xJf "$tarball" -C "$src.part" --strip-components=1
	mv "$src.part" "$src"
fi

# Configure, and prove that every line that was asked for has been taken.
if [ "$(cat "$obj/key" 2>/dev/null)" != "$base" ]; then
	if [ ! -f "$obj/.config" ]; then # begin with what the configuration before has compiled, unless that is at work
		before=$(ls -td "$cache/$arch"/obj-*/ | sed -n 2p)
		[ -z "$before" ] || flock -n "$before/lock" cp -a "$before/." "$obj/" || true
	fi
	say "configuring $arch"
	rm -f "$obj/key"
	{
		cat "$src"/kernel/configs/tiny*.config
		cat "$src/arch/$srcarch/configs/tiny.config" 2>/dev/null || true
		cat "$here/common.config" "$here/$arch.config"
		echo 'CONFIG_INITRAMFS_SOURCE="initramfs.cpio"' # always: a new one then changes no configuration
		echo 'CONFIG_INITRAMFS_COMPRESSION_NONE=y'
	} >"$obj/asked.config"
	quiet kmake KCONFIG_ALLCONFIG="$obj/asked.config" allnoconfig
	lost=$(awk '
		/^CONFIG_/ || /^# CONFIG_.* is not set$/ {
			name = $0; sub(/^# /, "", name); sub(/[ =].*/, "", name)
			value = /^#/ ? "n" : substr($0, length(name) + 2)
			if (FILENAME == ARGV[1]) got[name] = value
			else asked[name] = value
		}
		END {
			for (name in asked) {
				have = (name in got) ? got[name] : "n"
				if (have != asked[name]) print name "=" asked[name] " became " have
			}
		}' "$obj/.config" "$here/common.config" "$here/$arch.config" | sort)
	[ -z "$lost" ] || die "the kernel did not take these lines of common.config or $arch.config:" "$lost"
	echo "$base" >"$obj/key"
fi

# The default archive comes first: it has /dev/console, without which init has no output. Archives may follow each other.
quiet gcc -o "$obj/gen_init_cpio" "$src/usr/gen_init_cpio.c"
{
	"$obj/gen_init_cpio" -t 0 "$src/usr/default_cpio_list"
	[ -z "$initramfs" ] || cat "$initramfs"
} >"$obj/initramfs.cpio"

if [ -f "$obj/vmlinux" ]; then say "building what has changed, and linking"; else
	say "compiling everything, once: 11 CPU minutes for amd64, 14 for arm64"
fi
(while sleep 30 9>&- >/dev/null 2>&1; do say "  files compiled so far: $(grep -cE '^ +(CC|AS) ' "$log" || true)"; done) &
ticker=$!
trap 'kill $ticker 2>/dev/null || true' EXIT
quiet kmake -j"$(nproc)" $target
kill $ticker

part=$out/.part
rm -rf "$part" && mkdir "$part"
cp "$obj/$image" "$part/$target"
cp "$obj/.config" "$part/config"
cp "$obj/System.map" "$part/"
printf '%s\n' "$(cat "$obj/include/config/kernel.release")" "$source $version" "$toolchain" >"$part/version"

case $arch in
amd64)
	quiet "${cross}objcopy" --strip-all "$obj/vmlinux" "$part/vmlinux"
	readelf -nW "$part/vmlinux" | grep -q '^  *Xen .*0x00000012' || die "$part/vmlinux has lost its PVH note"
	while read -r _ _ _ start _ size _; do
		((start >= window[0] && start + size <= window[1])) ||
			die "$part/vmlinux loads $start+$size, outside the window ${window[0]}-${window[1]}"
	done < <(readelf -lW "$part/vmlinux" | grep '^  LOAD')
	;;
arm64) # Documentation/arch/arm64/booting.rst (v6.12): text_offset at 8, flags at 24, "ARMd" at 56
	[ "$(od -An -tx8 -j8 -N8 "$part/Image" | tr -d ' ')" = 0000000000000000 ] &&
		[ "$(od -An -tx8 -j24 -N8 "$part/Image" | tr -d ' ')" = 000000000000000a ] &&
		[ "$(od -An -tx4 -j56 -N4 "$part/Image" | tr -d ' ')" = 644d5241 ] ||
		die "$part/Image is no kernel with 4K pages that runs at any multiple of 2 MiB"
	# An Image does not unpack itself: for flash. Each U-Boot knows gzip, lzma is a sixth smaller.
	gzip -n9 <"$part/Image" >"$part/Image.gz"
	xz --format=lzma -9e --stdout "$part/Image" >"$part/Image.lzma"
	;;
esac

rm -rf "${out:?}/$key"
mv "$part" "$out/$key"
ls -td "$out"/*/ | tail -n +17 | xargs -r rm -rf # keep the latest 16 results, and objects of 3 configurations
ls -td "$cache/$arch"/obj-*/ | tail -n +4 | xargs -r rm -rf
deliver "built"
