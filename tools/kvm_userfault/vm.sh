#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Run a program in a VM under the kernel built: vm.sh [PROGRAM [ARG...]], or without one a shell.
#
# The program sees the host's files; what it writes to them is lost with the VM. On a terminal it has
# the terminal; else its standard output and error are kept apart, and its input is empty. Its
# exit status is this script's; 125 if the VM died, 124 after TIMEOUT= seconds.

. "$(dirname "$0")/lib.sh"
. "$here/qemu.sh"

if [ $# -eq 0 ]; then
	[ -t 0 ] || die "make vm gives a shell on a terminal, and this is none: use make vm EXEC=PROGRAM"
	if [ -z "$cross" ]; then
		set -- "${SHELL:-/bin/sh}" -i
	else
		set -- "$("$here/fetch.sh" shell)" sh -i
	fi
else
	program=$(cd "$invoked" && command -v "$1") || die "$1: no such program"
	case $program in
	/*)	;;
	*/*)	program=$invoked/$program ;;
	*)	die "$1: a shell's own word, no program" ;;
	esac
	shift
	set -- "$program" "$@"
fi

mkdir -p "$out/vm"
dir=$(mktemp -d "$out/vm/run.XXXXXX")
stty=
# shellcheck disable=SC2317
clean_up()
{
	[ -z "$stty" ] || stty "$stty"
	rm -rf "$dir"
}
trap clean_up EXIT

if [ -t 0 ] && [ -t 1 ]; then
	size=$(stty size)
	stty=$(stty -g)
	{
		job tty
		job_program vm "${TIMEOUT:-0}" "$invoked" "TERM=${TERM:-dumb} LINES=${size% *} COLUMNS=${size#* }" "$@"
	} >"$dir/job"
	boot "$dir" "" -chardev stdio,id=tty,signal=off \
		-device virtconsole,chardev=tty || :
else
	{ job pipe; job_program vm "${TIMEOUT:-0}" "$invoked" "" "$@"; } >"$dir/job"
	mkfifo "$dir/stdout" "$dir/stderr"
	cat "$dir/stdout" &
	cat "$dir/stderr" >&2 &
	boot "$dir" "" \
		-chardev "file,id=stdout,path=$dir/stdout" -device virtserialport,chardev=stdout,name=stdout \
		-chardev "file,id=stderr,path=$dir/stderr" -device virtserialport,chardev=stderr,name=stderr \
		</dev/null || :
	wait
fi

if grep '^K ' "$dir/report" | grep -E "$splat" >"$dir/splats"; then
	cp "$dir/report" "$out/vm/report"
	echo "the kernel complained ($out/vm/report):" >&2
	sed 's/^K /  /' "$dir/splats" >&2
fi
if ! grep -qx D "$dir/report"; then
	cp "$dir/console.log" "$out/vm/console.log"
	tail -n 30 "$dir/console.log" >&2
	grep -v "TCG doesn't support requested feature" "$dir/qemu.log" >&2 || :
	echo "error: the VM died; its console is in $out/vm/console.log" >&2
	exit 125
fi
# shellcheck disable=SC2046
set -- $(grep '^E ' "$dir/report")
case $4 in
exit)	exit "$5" ;;
signal)	echo "killed by signal $5" >&2; exit $((128 + $5)) ;;
*)	echo "timed out after ${TIMEOUT:-} s" >&2; exit 124 ;;
esac
