#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Measure what KVM userfault costs, by userfault_bench in VMs whose clock counts instructions.
#
# Everything is measured twice, in two VMs, the second time in reverse order. Writes
# build/bench.log (what was measured), build/bench.json (the means) and build/bench.svg,
# and prints tables. PAGES= is how many pages each vCPU fetches, without it 4096.

. "$(dirname "$0")/lib.sh"
. "$here/qemu.sh"

tmp=$(mktemp -d)
jobs_running=
# shellcheck disable=SC2317
clean_up()
{
	for i in 1 2; do
		[ ! -s "$tmp/$i/pid" ] || kill "$(cat "$tmp/$i/pid")" || :
	done
	rm -rf "$tmp"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
begin=$(now)
huge=/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages

# One CPU, one instruction each nanosecond, and idle time is skipped.
ACCEL=tcg,thread=single
SMP=1
MEM=${MEM:-4G}
QEMU_ARGS="-icount shift=0,sleep=off"

# One program for each line: name, seconds, settings, arguments.
programs()
{
	echo "clear 600 - clear"
	[ "$arch" != x86_64 ] || echo "poison 900 huge=520 poison"
	for vcpus in 1 2 4 8 16; do
		echo "fetch_${vcpus}_vcpus 3600 - fetch -v $vcpus -n ${PAGES:-4096}"
	done
	echo "fetch_2_vcpus_shmem 3600 - fetch -v 2 -n ${PAGES:-4096} -s shmem"
}

# round N LIST: boot, run the list, leave the report in $tmp/N/report.
round()
{
	mkdir "$tmp/$1"
	job list >"$tmp/$1/job"
	while read -r name seconds settings args; do
		settings=$(echo "$settings" | sed "s|^-$||; s|^huge=|$huge=|")
		# shellcheck disable=SC2086
		job_program "$name" "$seconds" "$out/selftests" "$settings" ./userfault_bench $args \
			>>"$tmp/$1/job"
	done <"$2"
	: >"$tmp/$1/report"
	boot "$tmp/$1" "" -pidfile "$tmp/$1/pid" </dev/null &
	jobs_running="$jobs_running $!"
}

# Say how the programs end, until both VMs are gone.
watch_rounds()
{
	alive=yes
	while [ -n "$alive" ]; do
		sleep 1
		alive=
		for pid in $jobs_running; do
			! kill -0 "$pid" 2>/dev/null || alive=yes
		done
		for i in 1 2; do
			sed -n "s/^E \([^ ]*\) \([^ ]*\) \(.*\)/\1 $i \3/p" "$tmp/$i/report"
		done >"$tmp/ended"
		while read -r name i how; do
			! grep -qx "$name $i" "$tmp/said" || continue
			echo "$name $i" >>"$tmp/said"
			[ "$how" = "exit 0" ] && how= || how=", FAILED: $how"
			say "  $name, round $i" "$(since "$begin")$how"
		done <"$tmp/ended"
	done
}

build_init
programs >"$tmp/list.1"
# The same in reverse; within a program -r does that.
sed '1!G; h; $!d' "$tmp/list.1" | sed '/ fetch /s/$/ -r/' >"$tmp/list.2"
: >"$tmp/said"
say "two VMs, $(wc -l <"$tmp/list.1") programs each" ""
round 1 "$tmp/list.1"
round 2 "$tmp/list.2"
watch_rounds
for pid in $jobs_running; do
	wait "$pid" || :
done
jobs_running=

for i in 1 2; do
	cp "$tmp/$i/report" "$logs/bench.$i.log"
	grep -qx D "$tmp/$i/report" || {
		tail -n 20 "$tmp/$i/console.log" "$tmp/$i/qemu.log" >&2
		die "the VM of round $i died; see $logs/bench.$i.log"
	}
	! grep '^K ' "$tmp/$i/report" | grep -E "$splat" || die "the kernel complained, see above"
	! grep '^E ' "$tmp/$i/report" | grep -v ' exit 0$' || die "a program failed; see $logs/bench.$i.log"
	! grep '^O clock exact=false' "$tmp/$i/report" || die "the clock does not count instructions"
	sed -n 's/^O \(fetch\|off\|clear\|arm\|poison\) \(.*\)/\1 round='"$i"' \2/p' "$tmp/$i/report"
done >"$build/bench.log"

awk -v svg="$tmp/plot" -f "$here/bench.awk" -v json="$build/bench.json" "$build/bench.log"
plot()
{
	(cd "$tmp" && gnuplot plot) && mv "$tmp/bench.svg" "$build/bench.svg"
}
try "draw" "$logs/gnuplot.log" plot || die "gnuplot failed; see $logs/gnuplot.log"
echo
say "build/bench.json, bench.svg, bench.log" "$(since "$begin")"
