#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Build the KVM selftests, ours among them, against the headers of the kernel built for ARCH.

. "$(dirname "$0")/lib.sh"

lock_build
[ -e "$out/kernel/usr/include/linux/kvm.h" ] || die "no kernel headers in $out/kernel: run make kernel"
log=$logs/selftests-$flavour.log
o=$selftests
mkdir -p "$o/tools"
export KHDR_INCLUDES="-isystem $out/kernel/usr/include"

# Static, so that what runs is the same wherever it is built. -MT: with a base directory, ccache would
# have make look for dependencies of a relative path, which is none of its targets.
build_selftests()
{
	# shellcheck disable=SC2016
	make -C "$tree/tools/testing/selftests/kvm" -j"$jobs" ARCH="$karch" CROSS_COMPILE="$cross" CC="$cc" \
		OUTPUT="$o" abs_objdir="$o" LINUX_HDR_PATH="$out/kernel/usr/include" LDFLAGS=-static \
		CPPFLAGS='-MT $@' all
}

step "build $flavour selftests" "$log" build_selftests
