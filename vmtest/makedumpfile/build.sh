#!/bin/sh
# build.sh [ARCH] gets a makedumpfile that is newer than the distribution's,
# for comparisons, outside of the tree:
#
#	${XDG_CACHE_HOME:-~/.cache}/warmcore/makedumpfile/VERSION/makedumpfile
#
# and makes "current" beside VERSION a link to it. It needs dpkg, apt and, for
# building, the packages in $needs. makedumpfile reads dumps of its own
# architecture only: with an ARCH other than this machine's, in Debian's words
# such as arm64, VERSION and "current" get -ARCH behind them, and it runs in
# QEMU's user emulation (package qemu-user-static).
#
# Debian's source package of makedumpfile is built with zstd, snappy and lzo.
# Where the archive doesn't serve that, its binary package is used, together
# with the C library and the others that it was linked with: it is called by
# a script, because it is newer than this system's. That one has no snappy.
set -eu

suites="sid trixie"
needs="build-essential libbz2-dev libdw-dev libelf-dev liblzo2-dev libsnappy-dev libzstd-dev zlib1g-dev"
libraries="libc6 libdw1t64 libelf1t64 liblzo2-2 libzstd1 zlib1g libbz2-1.0 liblzma5 libgcc-s1"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
# Where this system gets Debian's packages from.
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | sort -u | head -n 1)
: "${archive:?no Debian archive among this system's package sources}"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/warmcore/makedumpfile

native=$(dpkg --print-architecture)
arch=${1:-$native}
suffix='' emulator=''
if [ "$arch" != "$native" ]; then
	suffix=-$arch
	case $arch in
	amd64) emulator=qemu-x86_64-static ;;
	arm64) emulator=qemu-aarch64-static ;;
	*) echo "build.sh: no emulator for $arch" >&2; exit 2 ;;
	esac
fi

mkdir -p "$cache"
work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# An apt of its own, so that the system's lists and packages stay as they are.
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/sources"
for suite in $suites; do
	for type in deb deb-src; do
		echo "$type [arch=$arch signed-by=$keys] $archive $suite main"
	done
done >"$work/sources.list"
cat >"$work/apt.conf" <<EOF
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$work/lists";
Dir::Cache "$work/cache";
APT::Sandbox::User "root";
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
EOF
APT_CONFIG=$work/apt.conf
export APT_CONFIG
apt-get -q update >&2

# install puts $1, what there is to run, into its place.
install_version() {
	version=$("$1/makedumpfile" -v | sed -n 's/^makedumpfile: version \([0-9.]*\).*/\1/p')
	[ -n "$version" ]
	rm -rf "${cache:?}/$version$suffix"
	mv "$1" "$cache/$version$suffix"
	ln -sfn "$version$suffix" "$cache/current$suffix"
	"$cache/current$suffix/makedumpfile" -v
}

cd "$work/sources"
if [ -z "$suffix" ] && apt-get -q source --only-source makedumpfile >&2; then
	cd makedumpfile-*/
	make -j"$(nproc)" LINKTYPE=dynamic USEZSTD=on USESNAPPY=on USELZO=on >&2
	mkdir "$work/built"
	mv makedumpfile "$work/built/"
	install_version "$work/built"
	exit
fi
echo "build.sh: no source package to be had, or none to be built: the binary package it is (to build: $needs)" >&2

suite=${suites%% *}
mkdir "$work/built"
for package in makedumpfile $libraries; do
	apt-get -q download "$package/$suite" >&2
done
for deb in *.deb; do
	dpkg-deb -x "$deb" "$work/built/root"
done
cat >"$work/built/makedumpfile" <<EOF
#!/bin/sh
# Debian's makedumpfile with the libraries of its own release. Its threads load
# libgcc when they end, which fails now and then while the program does.
here=\$(readlink -f "\$0")
for loader in "\${here%/*}"/root/usr/lib/*/ld-linux-*.so.*; do
	exec $emulator "\$loader" --library-path "\${loader%/*}" --preload "\${loader%/*}/libgcc_s.so.1" "\${here%/*}/root/usr/bin/makedumpfile" "\$@"
done
EOF
chmod +x "$work/built/makedumpfile"
install_version "$work/built"
