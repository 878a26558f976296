# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=sh
# shellcheck disable=SC2034
# Sourced by every script here: where things lie, and how steps and errors are shown.

set -eu
unset CDPATH
export LC_ALL=C

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
build=${BUILD:-$top/build}
invoked=$PWD
cd "$top"
tree=$build/tree
cache=${KVM_USERFAULT_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/kvm-userfault}
logs=$build/log
jobs=${JOBS:-$(nproc)}

# Directories of this repository that are no part of the kernel tree.
own_dirs="tools/kvm_userfault tools/testing/kvm_userfault"

die()
{
	echo "error: $*" >&2
	exit 1
}

# Kernels other than the plain one: debug (DEBUG=1) with slow checks, kcsan (DEBUG=kcsan) that looks
# for data races; off and lockstat, with which bench.sh compares; arm64 with larger pages, 16k and 64k; x86 of
# 32bit and with KVM as modules, which are only built.
case ${DEBUG:-} in
""|kcsan)	variant=${VARIANT:-${DEBUG:-}} ;;
*)		variant=debug ;;
esac

# set_arch ARCH: one of the two architectures, and what the kernel and the tool chain call it.
set_arch()
{
	arch=$1
	case $arch in
	x86_64)	karch=x86; image=arch/x86/boot/bzImage; cross= ;;
	arm64)	karch=arm64; image=arch/arm64/boot/Image; cross=aarch64-linux-gnu- ;;
	*)	die "ARCH=$arch: must be x86_64 or arm64" ;;
	esac
	[ "$(uname -m)" != aarch64 ] || [ "$arch" != arm64 ] || cross=
	kbuild_arch=$arch
	[ "$variant" != 32bit ] || kbuild_arch=i386
	flavour=$arch${variant:+-$variant}
	out=$build/$flavour
	selftests=$build/$arch/selftests
	kernel=$out/kernel/$image
	cc=${ccache}${cross}gcc
	export ARCH="$arch"
}

# What one clone has compiled serves every other: no option may make the result depend on where it is. The namespace
# leaves behind what has been cached with .incbin unseen.
export CCACHE_BASEDIR="$build" CCACHE_NOHASHDIR=1 CCACHE_IGNOREOPTIONS='-fmacro-prefix-map=*' CCACHE_NAMESPACE=kvm-userfault
ccache=
! command -v ccache >/dev/null || ccache="$here/ccache.sh "
hostcc=${ccache}gcc
set_arch "${ARCH:-x86_64}"
export karch image cross cc hostcc out selftests logs jobs

# git on the base kernel: HEAD is the pristine base, the index the overlay as it was
# last laid, and the work tree what is being edited.
base_git()
{
	GIT_DIR=$build/base.git GIT_WORK_TREE=$tree GIT_CONFIG_NOSYSTEM=1 \
		GIT_CONFIG_GLOBAL=/dev/null git --literal-pathspecs "$@"
}

# One build at a time in one build directory.
lock_build()
{
	mkdir -p "$logs"
	exec 9>"$build/lock"
	flock -n 9 && return
	echo "waiting for another build in $build ..."
	flock 9
}

need_space()
{
	mkdir -p "$1"
	free=$(df -Pm "$1" | awk 'NR == 2 { print $4 }')
	[ "$free" -ge "$2" ] ||
		die "$1 has $free MiB free and $3 needs $2: make room, or set BUILD= to a directory on another disk"
}

now()
{
	date +%s%N
}

since()
{
	awk -v ns="$(($(now) - $1))" 'BEGIN { printf "%.1f s", ns / 1e9 }'
}

# say LABEL TEXT: one line of the report.
say()
{
	printf '%-44s %s\n' "$1" "$2"
}

# step LABEL LOG COMMAND...: run a command that may take long, its output in LOG, and
# say how long it took; stop with the end of the log if it fails.
step()
{
	if try "$@"; then
		return
	fi
	tail -n 25 "$2" >&2
	die "$1 failed; the whole log is in $2"
}

try()
{
	try_label=$1 try_log=$2
	shift 2
	try_start=$(now)
	try_progress 9>&- &
	try_ticker=$!
	if "$@" >"$try_log" 2>&1 </dev/null; then
		try_result=
	else
		try_result="FAILED after "
	fi
	kill "$try_ticker" 2>/dev/null || :
	wait "$try_ticker" 2>/dev/null || :
	[ ! -t 1 ] || printf '\r\033[K'
	say "$try_label" "$try_result$(since "$try_start")"
	[ -z "$try_result" ]
}

# On a terminal a line that counts, elsewhere a line every half minute, as long as the script lives.
try_progress()
{
	try_ticks=0
	while sleep 1 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
		try_ticks=$((try_ticks + 1))
		if [ -t 1 ]; then
			printf '\r%-44s %s, %s lines of log\033[K' "$try_label" \
				"$(since "$try_start")" "$(wc -l <"$try_log")"
		elif [ $((try_ticks % 30)) -eq 0 ]; then
			say "  ... $try_label" "$(since "$try_start")"
		fi
	done
}
