#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Run what is random for long, on kernels with slow checks: all userfault tests once, and stress,
# model and fuzz for MINUTES= (60) in all, on each of KERNELS=: "debug", and on x86_64 "kcsan" as well.
# Besides, what Coccinelle and clang-tidy find in the code, and builds: without CONFIG_KVM_USERFAULT, and on x86_64
# KVM as modules and for hosts of 32 bits.
# A seed that something fails with is in its log.
# Results as of check.sh, in build/check-long.ARCH-KERNEL.tap.

. "$(dirname "$0")/lib.sh"

minutes=${MINUTES:-60}
list=$(mktemp)
trap 'rm -f "$list"' EXIT

# Architecture, name, share of the time, boot parameters, settings, command: as in tests.list.
runs="
all	userfault_long_stress		4  -             -        ./userfault_stress_test -v 4
all	userfault_long_thp		4  -             -        ./userfault_stress_test -v 8 -b anonymous_thp
all	userfault_long_hugetlb		4  -             huge=64  ./userfault_stress_test -v 2 -t 2 -b anonymous_hugetlb_2mb
all	userfault_long_shmem		2  -             -        ./userfault_stress_test -v 3 -b shmem
all	userfault_long_gmem		2  -             -        ./userfault_stress_test -v 4 -b guest_memfd
all	userfault_long_smp		4  smp=8         huge=64  ./userfault_stress_test -v 8 -b anonymous_hugetlb_2mb
x86_64	userfault_long_private		2  -             -        ./userfault_stress_test -v 4 -p
all	userfault_long_model		3  -             huge=64  ./userfault_model_test -o 100
all	userfault_long_fuzz		3  -             -        ./userfault_fuzz_test
x86_64	userfault_long_shadow		2  kvm_amd.npt=0 huge=64  ./userfault_stress_test -v 4 -b anonymous_hugetlb_2mb
x86_64	userfault_long_model_shadow	1  kvm_amd.npt=0 huge=64  ./userfault_model_test -o 100
x86_64	userfault_long_no_tdp_mmu	2  kvm.tdp_mmu=0 huge=64  ./userfault_stress_test -v 4 -b anonymous_hugetlb_2mb
x86_64	userfault_long_model_no_tdp_mmu	1  kvm.tdp_mmu=0 huge=64  ./userfault_model_test -o 100
"

# Ours of the short list, then these; what is bound by time may take three times as long.
{
	grep -E '^(all|x86_64|arm64)([-+]debug|-debug-long)? +userfault_' "$here/tests.list"
	echo "$runs" | awk -v arch="$arch" -v seconds="$((minutes * 60))" '
		$1 == "all" || $1 == arch { line[++n] = $0; sum += $3 }
		END {
			for (i = 1; i <= n; i++) {
				$0 = line[i]
				share = int(seconds * $3 / sum) + 1
				$3 = 3 * share + 300
				print $0 " -s " share
			}
		}'
} >"$list"

# look_with TOOL: what it finds, and how much code it has looked at.
look_with()
{
	log=$logs/$1-$arch.log
	try "$1, KVM of $arch" "$log" "$here/lint.sh" "$1" || bad=1
	cat "$log"
}

# also COMMAND LABEL: one of make's, for the plain kernel.
also()
{
	log=$logs/$1-$arch.log
	try "$2" "$log" env -u DEBUG make "$1" || { tail -n 15 "$log"; bad=1; }
}

bad=0
"$here/tree.sh"
also unused "without CONFIG_KVM_USERFAULT, $arch"
[ "$arch" != x86_64 ] || also builds "KVM as modules, and for 32 bits"
look_with coccinelle
kernels=debug
[ "$arch" != x86_64 ] || kernels="debug kcsan"
for kernel_kind in ${KERNELS:-$kernels}; do
	case $kernel_kind in
	debug)	DEBUG=1 ;;
	kcsan)	DEBUG=kcsan ;;
	*)	die "KERNELS=$kernel_kind: must be debug or kcsan" ;;
	esac
	export DEBUG
	"$here/kernel.sh"
	look_with clang-tidy
	say "$(date -u '+%F %H:%M')" "make check-long MINUTES=$minutes KERNELS=$kernel_kind ARCH=$arch"
	# shellcheck disable=SC2046
	ARCHS=$arch LIST=$list TAP=$build/check-long.$arch-$kernel_kind.tap ONCE=1 "$here/check.sh" \
		$(awk -v arch="$arch" -v kernel="$kernel_kind" '
			{ sub(/\+debug$/, "", $1); sub("-" kernel "(-long)?$", "", $1) }
			$1 == "all" || $1 == arch { print $2 }' "$list") || bad=1
done
exit "$bad"
