#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Print the path of the base kernel's tarball, after downloading it where that is needed; with the
# argument "shell" that of a static shell for ARCH, for VMs that cannot run the host's.
#
# The base is Debian's linux-source-7.2, from the mirror this machine's apt uses and through an
# apt state of our own, so that the machine's own package lists stay as they are. apt checks the
# signature against Debian's keyring. KERNEL_TARBALL= names another 7.2.

. "$(dirname "$0")/lib.sh"

package=linux-source-7.2
suites="trixie-backports forky sid"
deb_arch=$(dpkg --print-architecture 2>/dev/null) || deb_arch=amd64
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
advice="set KERNEL_TARBALL= to a tarball of Linux 7.2"

if [ -n "${KERNEL_TARBALL:-}" ]; then
	[ -r "$KERNEL_TARBALL" ] || die "KERNEL_TARBALL=$KERNEL_TARBALL: no such file"
	readlink -f "$KERNEL_TARBALL"
	exit
fi

newest()
{
	find "$cache" -name "${package}_*.tar.xz" 2>/dev/null | sort -V | tail -n 1
}

# A private apt: sources.list is its only input, and its package lists are its own.
private_apt()
{
	apt-get -q -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
		-o Dir::State::lists="$apt/lists" -o Dir::State::status=/dev/null \
		-o Dir::Cache="$apt/cache" -o APT::Sandbox::User="$(id -un)" \
		-o APT::Architecture="$deb_arch" -o APT::Architectures::="$deb_arch" "$@"
}

# Where the machine's own apt gets Debian from; one that is not Debian's fails on the signature.
mirrors()
{
	# shellcheck disable=SC2016
	apt-get --no-release-info indextargets \
		--format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 2>/dev/null |
		awk '$3 == "main" && $2 !~ /security|\// { print $1 }' | awk '!seen[$0]++'
}

# download PACKAGE, into $work
download()
{
	apt=$work/apt
	for mirror in $(mirrors); do
		for suite in $suites; do
			echo "== $suite"
			rm -rf "$apt"
			mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
			echo "deb [signed-by=$keyring] $mirror $suite main" >"$apt/sources.list"
			private_apt update && (cd "$work" && private_apt download "$1") && return
		done
	done
	return 1
}

unpack_package()
{
	deb=$(find "$work" -maxdepth 1 -name "${package}_*.deb") &&
	dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/src/$package.tar.xz" >"$work/tarball" &&
	name=$(basename "$deb" | sed 's/%3a/:/; s/_all\.deb$//') &&
	mv "$work/tarball" "$cache/$name.tar.xz"
}

unpack_shell()
{
	deb=$(find "$work" -maxdepth 1 -name "busybox-static_*.deb") &&
	dpkg-deb --fsys-tarfile "$deb" | tar -xO --wildcards './*bin/busybox' >"$work/busybox" &&
	chmod +x "$work/busybox" &&
	mv "$work/busybox" "$shell"
}

make_work()
{
	need_space "$cache" 600 "the download"
	work=$(mktemp -d "$cache/download.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	mkdir -p "$logs"
}

if [ "${1:-}" = shell ]; then
	shell=$cache/busybox-$arch
	if [ ! -e "$shell" ]; then
		command -v apt-get >/dev/null || die "no apt-get here to fetch a shell for $arch with"
		make_work
		[ "$arch" != arm64 ] || deb_arch=arm64
		try "download a shell for $arch" "$logs/download.log" download busybox-static >&2 ||
			die "no busybox-static for $arch to be had (see $logs/download.log)"
		unpack_shell || die "cannot unpack busybox-static"
	fi
	echo "$shell"
	exit
fi

tarball=$(newest)
if [ -z "$tarball" ]; then
	command -v apt-get >/dev/null || die "no apt-get here to fetch $package with: $advice"
	make_work
	try "download $package" "$logs/download.log" download "$package" >&2 ||
		die "no $package to be had from this machine's Debian mirror (see $logs/download.log): $advice"
	try "take the source out of the package" "$logs/download.log" unpack_package >&2 ||
		die "cannot unpack $package (see $logs/download.log): $advice"
	tarball=$(newest)
fi
echo "$tarball"
