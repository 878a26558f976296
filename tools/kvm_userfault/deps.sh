#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Install the Debian packages that are missing here, and say what to do where that cannot be done.

. "$(dirname "$0")/lib.sh"

# What must be there, and the package that brings it.
needs="
gcc gcc
make make
git git
patch patch
flex flex
bison bison
bc bc
cpio cpio
perl perl
pydoc3 python3
rsync rsync
xz xz-utils
ccache ccache
sparse sparse
shellcheck shellcheck
spin spin
/usr/include/stdio.h libc6-dev
/usr/include/libelf.h libelf-dev
/usr/include/openssl/opensslv.h libssl-dev
/usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
"
for arch in ${ARCHS:-$arch}; do
	set_arch "$arch"
	case $arch in
	x86_64)
		needs="$needs
qemu-system-x86_64 qemu-system-x86" ;;
	arm64)
		needs="$needs
qemu-system-aarch64 qemu-system-arm
${cross}gcc gcc${cross:+-aarch64-linux-gnu}"
		[ -z "$cross" ] || needs="$needs
/usr/aarch64-linux-gnu/include/stdio.h libc6-dev-arm64-cross" ;;
	esac
done
case ${NEED:-} in
bench)	needs="$needs
gnuplot gnuplot-nox" ;;
long)	needs="$needs
spatch coccinelle
clang-tidy clang-tidy" ;;
esac

missing=$(echo "$needs" | while read -r thing package; do
	case $thing in
	"")	continue ;;
	/*)	[ -e "$thing" ] ;;
	*)	command -v "$thing" >/dev/null ;;
	esac || echo "$package"
done | sort -u | tr '\n' ' ')
[ -n "$missing" ] || exit 0

ask="install these packages, then run this again: $missing"
command -v apt-get >/dev/null || die "no apt-get here; $ask"
if [ "$(id -u)" -eq 0 ]; then
	sudo=
elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
	sudo=sudo
else
	die "neither root nor sudo; $ask"
fi

apt()
{
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=150 "$@"
}

# The time-out is not for the lists, which another apt may be fetching: a machine that has just booted does.
update()
{
	for pause in 5 10 20 40 80 ""; do
		apt update 2>"$logs/deps.err" && return
		cat "$logs/deps.err"
		[ -n "$pause" ] && grep -q 'Could not get lock' "$logs/deps.err" || return
		sleep "$pause"
	done
}

install_missing()
{
	# shellcheck disable=SC2086
	update && apt install -y --no-install-recommends $missing
}

mkdir -p "$logs"
echo "missing: $missing"
try "install what is missing" "$logs/deps.log" install_missing || {
	tail -n 5 "$logs/deps.log" >&2
	die "$ask"
}
