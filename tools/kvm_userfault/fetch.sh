#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Print the path of the base kernel's tarball, after downloading it where that is needed.
#
# The base is Debian's linux-source-7.2, from the mirror this machine's apt uses and through an
# apt state of our own, so that the machine's own package lists stay as they are. apt checks the
# signature against Debian's keyring. KERNEL_TARBALL= names another 7.2.

. "$(dirname "$0")/lib.sh"

package=linux-source-7.2
suites="trixie-backports forky sid"
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
		-o Dir::Cache="$apt/cache" -o APT::Sandbox::User="$(id -un)" "$@"
}

# Where the machine's own apt gets Debian from; one that is not Debian's fails on the signature.
mirrors()
{
	# shellcheck disable=SC2016
	apt-get --no-release-info indextargets \
		--format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 2>/dev/null |
		awk '$3 == "main" && $2 !~ /security|\// { print $1 }' | awk '!seen[$0]++'
}

download()
{
	apt=$work/apt
	for mirror in $(mirrors); do
		for suite in $suites; do
			echo "== $suite"
			rm -rf "$apt"
			mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
			echo "deb [signed-by=$keyring] $mirror $suite main" >"$apt/sources.list"
			private_apt update && (cd "$work" && private_apt download "$package") && return
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

tarball=$(newest)
if [ -z "$tarball" ]; then
	command -v apt-get >/dev/null || die "no apt-get here to fetch $package with: $advice"
	need_space "$cache" 600 "the base kernel's download"
	work=$(mktemp -d "$cache/download.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	mkdir -p "$logs"
	try "download $package" "$logs/download.log" download >&2 ||
		die "no $package to be had from this machine's Debian mirror (see $logs/download.log): $advice"
	try "take the source out of the package" "$logs/download.log" unpack_package >&2 ||
		die "cannot unpack $package (see $logs/download.log): $advice"
	tarball=$(newest)
fi
echo "$tarball"
