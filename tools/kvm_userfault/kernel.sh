#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Configure and build the kernel for ARCH, and its headers. DEBUG=1: one with slow checks, DEBUG=kcsan:
# one that looks for data races, VARIANT=lockstat: one that counts its locks, VARIANT=off: one
# without CONFIG_KVM_USERFAULT, VARIANT=16k, 64k: arm64 with pages of that size, VARIANT=modules, 32bit: x86
# with KVM as modules, or of 32 bits.

. "$(dirname "$0")/lib.sh"

lock_build
o=$out/kernel
log=$logs/kernel-$flavour.log
# On top of allnoconfig; where a symbol comes twice, the last counts.
fragments()
{
	cat "$here/config/kernel.config" "$here/config/$arch.config"
	[ ! -e "$here/config/$variant.config" ] || cat "$here/config/$variant.config"
}

kmake()
{
	make -C "$tree" O="$o" ARCH="$kbuild_arch" CROSS_COMPILE="$cross" CC="$cc" HOSTCC="$hostcc" \
		KBUILD_BUILD_TIMESTAMP=@0 KBUILD_BUILD_USER=kvm KBUILD_BUILD_HOST=userfault \
		KBUILD_BUILD_VERSION=1 -s "$@"
}

# Each line of a fragment must have survived; Kconfig drops what lacks a dependency in silence, and has no word
# for what cannot be set.
check_config()
{
	lost=$(fragments | awk '
		/^CONFIG_/ { name = $1; sub(/=.*/, "", name); value = $0 }
		/^# CONFIG_.* is not set/ { name = $2; value = "" }
		!/^CONFIG_|^# CONFIG_.* is not set/ { next }
		FILENAME == "-" { wanted[name] = value; next }
		{ is[name] = value }
		END { for (name in wanted) if (is[name] != wanted[name]) printf "%s ", name }' "$o/.config" -)
	[ -z "$lost" ] || die "Kconfig wants otherwise: $lost(a dependency is missing, or forbids it; see $o/.config)"
	if [ "$variant" = off ]; then
		! grep -q 'CONFIG_KVM_USERFAULT=y' "$o/.config" || die "CONFIG_KVM_USERFAULT is set"
	elif grep -q 'select KVM_USERFAULT$' "$tree/arch/$karch/kvm/Kconfig"; then
		grep -qx 'CONFIG_KVM_USERFAULT=y' "$o/.config" ||
			die "CONFIG_KVM_USERFAULT is not set, though $karch selects it"
	fi
}

mkdir -p "$o"
# Architectures select it, nobody is asked. Kconfig looks for its files here before it looks in the tree.
if [ "$variant" = off ]; then
	mkdir -p "$o/arch/$karch/kvm"
	sed '/select KVM_USERFAULT$/d' "$tree/arch/$karch/kvm/Kconfig" >"$o/arch/$karch/kvm/Kconfig"
fi
fragments >"$o/fragments.new"
if ! cmp -s "$o/fragments.new" "$o/fragments" || [ ! -e "$o/.config" ]; then
	need_space "$build" 1500 "the kernel build"
	rm -f "$o/fragments"
	step "configure $flavour kernel" "$log" kmake KCONFIG_ALLCONFIG="$o/fragments.new" allnoconfig
	check_config
	mv "$o/fragments.new" "$o/fragments"
else
	rm "$o/fragments.new"
	kmake olddefconfig </dev/null >"$log" 2>&1 || die "make olddefconfig failed; see $log"
	check_config
fi

# To find that nothing is to be done make takes long, and links anew: look for files that are newer first.
up_to_date()
{
	[ -e "$o/built" ] && [ -e "$o/$image" ] &&
		newer=$(find -L "$tree" "$o/.config" "$here/kernel.sh" -path "$tree/Documentation" -prune -o \
			-path "$tree/tools/testing" -prune -o -newer "$o/built" -print -quit) && [ -z "$newer" ]
}

if up_to_date; then
	say "$flavour kernel" "is up to date"
	exit
fi
touch "$o/built.new"
set -- "$(basename "$image")" headers
[ "$variant" != modules ] || set -- "$@" modules
step "build $flavour kernel" "$log" kmake -j"$jobs" "$@"
mv "$o/built.new" "$o/built"
! grep -i 'warning:' "$log" || say "" "(warnings above; see $log)"
