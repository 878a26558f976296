#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Run everything that must pass: the overlay's form, unit tests, builds, and the tests in VMs, for
# ARCHS (by default what ARCH says, without that both architectures). Writes build/check.tap and
# closes with the counts. Names of tests as arguments: only these. A program that fails in a VM is
# run once more, unless ONCE=1. LIST= takes another list of tests, TAP= another file for the results.
# VARIANT= as for kernel.sh.
#
# The VMs of a kernel run as soon as it is built, while the next is being built: most tests wait more
# than they compute. Without names, what tests.list says runs on x86_64's kernel of DEBUG=1, too.

archs=${ARCHS:-${ARCH:-x86_64 arm64}}

. "$(dirname "$0")/lib.sh"
. "$here/qemu.sh"

mkdir -p "$logs"
results=$(mktemp)
tmp=$(mktemp -d)
# What runs in the background does not hear of a Ctrl-C.
# shellcheck disable=SC2317
clean_up()
{
	for pid in "$tmp"/*/pid; do
		[ ! -s "$pid" ] || kill "$(cat "$pid")" 2>/dev/null || :
	done
	rm -rf "$results" "$tmp"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
begin=$(now)
tests=${LIST:-$here/tests.list}
tap=${TAP:-$build/check.tap}

# Where there is little room for huge pages, tests are skipped for want of some.
may_skip=
case $variant in
16k|64k)	may_skip=yes ;;
esac

result()
{
	printf '%s %s\t%s\n' "$1" "$2" "$3" >>"$results"
}

# check NAME COMMAND...: one result by the command's exit status.
check()
{
	name=$1
	shift
	if try "$name" "$logs/$(echo "$name" | tr / -).log" "$@"; then
		result pass "$name" ""
	else
		tail -n 15 "$try_log"
		say "" "see $try_log"
		result fail "$name" "see $try_log"
		return 1
	fi
}

# The unit tests speak for themselves, in KTAP.
unit_tests()
{
	unit_log=$logs/host-unit.log
	if try host/unit "$unit_log" make -C tools/testing/kvm_userfault check \
		O="$build/unit" MEMORY_MODEL="$tree/tools/memory-model"; then
		end="exit 0"
	else
		end="exit 1"
		tail -n 15 "$unit_log"
		say "" "see $unit_log"
	fi
	{
		echo "S unit"
		sed 's/^/O /' "$unit_log"
		echo "E unit 0 $end"
		echo D
	} >"$tmp/report"
	to_results host "$logs"
}

# to_results ARCH LOGS: what $tmp/report says, into the results.
to_results()
{
	mkdir -p "$2"
	awk -f "$here/tap.awk" -v arch="$1" -v logs="$2" -v splat="$splat" \
		-v boot="${boot_name:-}" -v may_skip="$may_skip" "$tmp/report" >"$tmp/results"
	cat "$tmp/results" >>"$results"
}

# watch_report SECONDS: say how each program ended, while $tmp/watch is there and this script lives.
# End a VM that has said nothing for that long: init would have, if the kernel were well.
watch_report()
{
	patience=$1
	watched=0
	last_look=
	while [ -z "$last_look" ]; do
		sleep 0.5 >/dev/null 2>&1
		[ -e "$tmp/watch" ] && kill -0 $$ 2>/dev/null || last_look=yes
		if [ $(($(date +%s) - $(stat -c %Y "$tmp/report"))) -gt "$patience" ] && [ -s "$tmp/pid" ]; then
			say "  $flavour: the VM has hung" "$patience s without a word"
			kill -KILL "$(cat "$tmp/pid")" 2>/dev/null || :
			rm -f "$tmp/pid"
		fi
		{ grep '^E ' "$tmp/report" || :; } | tail -n +$((watched + 1)) >"$tmp/ended"
		while read -r _ name seconds how; do
			watched=$((watched + 1))
			case $how in
			"exit 0")	say "  $flavour/$name" "$seconds s" ;;
			"exit 4")	say "  $flavour/$name" "$seconds s, skipped" ;;
			*)		say "  $flavour/$name" "$seconds s, FAILED: $how" ;;
			esac
		done <"$tmp/ended"
	done
}

# The programs that results on standard input say have failed.
failed_programs()
{
	sed -n "s|^fail $flavour/||p" | sed 's/[.\t].*//' | awk '!seen[$0]++'
}

# What the tests said that failed: where only the output is kept, it has to tell all.
show_failures()
{
	sed -n 's/^fail //p' "$tmp/results" | while read -r name comment; do
		say "  FAILED: $name" "$comment"
	done
	failed_programs <"$tmp/results" | while read -r name; do
		[ -e "$logs/$flavour/$name.log" ] || continue
		awk '
		/^# +RUN / { n = 0 }
		{ line[n++ % 30] = $0 }
		/^not ok/ { show() }
		END { if (!shown) show() }
		function show(	i) {
			for (i = n > 30 ? n - 30 : 0; i < n; i++)
				print "    " line[i % 30]
			shown = 1
			n = 0
		}' "$logs/$flavour/$name.log"
	done
}

# run_group LABEL PARAMETERS LIST: boot with these parameters and run the list's programs; where
# one takes the VM down, the rest gets a new one.
run_group()
{
	label=$1
	list=$3
	while [ -s "$list" ]; do
		job_of "$list" >"$tmp/job"
		total=$(awk '{ total += $2 } END { print total }' "$list")
		say "$label" "$(wc -l <"$list") programs"
		: >"$tmp/report"
		: >"$tmp/watch"
		watch_report "$(awk '{ if ($2 > most) most = $2 } END { print most + 60 }' "$list")" &
		status=0
		(
			boot_with "$2"
			boot "$tmp" $((total + boot_seconds)) -pidfile "$tmp/pid" </dev/null
		) || status=$?
		rm "$tmp/watch"
		wait
		to_results "$flavour" "$logs/$flavour"
		cp "$tmp/console.log" "$logs/$flavour/$boot_name.console.log"
		show_failures
		last=$(sed -n 's/^S //p' "$tmp/report" | tail -n 1)
		if grep -qx D "$tmp/report"; then
			return
		elif [ -z "$last" ]; then
			tail -n 15 "$tmp/console.log" "$tmp/qemu.log"
			say "" "see $logs/$flavour/$boot_name.console.log"
			while read -r name _; do
				result fail "$flavour/$name" "the VM did not come up"
			done <"$list"
			return
		fi
		tail -n 40 "$tmp/console.log" | sed 's/^/    /'
		grep -v "TCG doesn't support requested feature" "$tmp/qemu.log" | sed 's/^/    /' || :
		say "  the VM died of $last, QEMU's exit status $status" "see $logs/$flavour/$last.console.log"
		mv "$logs/$flavour/$boot_name.console.log" "$logs/$flavour/$last.console.log"
		awk -v last="$last" 'found; $1 == last { found = 1 }' "$list" >"$tmp/rest"
		mv "$tmp/rest" "$list"
		boot_name=$boot_name.again
	done
}

# no_accident NAME: may the program's failure not be QEMU's doing? Ours is in a complaint of the kernel, or a
# random test says itself what is wrong, which it need not meet again.
no_accident()
{
	grep -Eqs '^\[kernel\] .*(userfault_[a-z_]*\+0x|/userfault\.c|KASAN|possible circular|suspicious RCU)' \
		"$logs/$flavour/$1.log" && return
	case $1 in
	userfault_stress*|userfault_model*)
		grep -q "^fail $flavour/$1	exit " "$results" ;;
	*)	false ;;
	esac
}

# run_group_twice LABEL PARAMETERS LIST: QEMU loses an interrupt now and then, or corrupts a guest (README,
# "Status"), with the unpatched kernel as well. Hence run what fails once more, in a VM of its own: what is
# broken fails again. ONCE=1: don't. Nor with more than three programs, or what is no accident.
run_group_twice()
{
	cp "$3" "$tmp/all"
	before=$(wc -l <"$results")
	run_group "$@"
	tail -n +$((before + 1)) "$results" | failed_programs | while read -r name; do
		no_accident "$name" || echo "$name"
	done >"$tmp/failed"
	awk 'NR == FNR { failed[$1]; next } $1 in failed' "$tmp/failed" "$tmp/all" >"$tmp/again"
	[ -z "${ONCE:-}" ] && [ -s "$tmp/again" ] && [ "$(wc -l <"$tmp/again")" -le 3 ] || return 0

	awk -F '\t' -v flavour="$flavour" '
		NR == FNR { split($1, program, " "); again[flavour "/" program[1]]; next }
		{ name = substr($1, 6); sub(/\..*/, "", name) }
		!(name in again) && !/^fail [^\t]*\/boot[^\t]*\tthe VM did not come up/' "$tmp/again" "$results" >"$tmp/rest"
	cp "$tmp/rest" "$results"
	while read -r name _; do
		if [ -e "$logs/$flavour/$name.log" ]; then
			mv "$logs/$flavour/$name.log" "$logs/$flavour/$name.first.log"
		fi
		echo "$flavour/$name" >>"$tmp/twice"
	done <"$tmp/again"
	boot_name=$boot_name.twice
	run_group "$1, what failed once more" "$2" "$tmp/again"
}

# What of x86_64's tests make check runs on the debug kernel, too.
debug_tests()
{
	sed 's/#.*//' "$tests" | awk '$1 ~ /^(all|x86_64)[-+]debug$/ { print $2 }'
}

# listed "ARCH..." [NAME...]: lines of the list, all or with these names, for these architectures and the
# kernel at hand; one with slow checks has twice the time.
listed()
{
	listed_archs=" all $1 "
	shift
	sed 's/#.*//' "$tests" | awk -v archs="$listed_archs" -v variant="$variant" -v only=" $* " '
		sub(/-debug(-long)?$/, "", $1) && variant != "debug" { next }
		{ sub(/\+debug$/, "", $1) }
		!NF || !index(archs, " " $1 " ") || (only != "  " && !index(only, " " $2 " ")) { next }
		variant == "debug" || variant == "kcsan" { $3 *= 2 }
		{ print }'
}

# The tests of tests.list, one boot for all that have the same kernel parameters.
vm_tests()
{
	listed "$arch" "$@" >"$tmp/tests"
	awk '!seen[$4]++ { print $4 }' "$tmp/tests" >"$tmp/groups"
	while read -r parameters <&3; do
		awk -v p="$parameters" '$4 == p { $1 = $4 = ""; print }' "$tmp/tests" >"$tmp/list"
		if [ "$parameters" = - ]; then
			boot_name=$boot
			run_group_twice "VM $flavour" - "$tmp/list"
		else
			boot_name=$boot.$(echo "$parameters" | tr -c 'A-Za-z0-9\n' _)
			run_group_twice "VM $flavour, $parameters" "$parameters" "$tmp/list"
		fi
	done 3<"$tmp/groups"
}

# vm_stream DIR NAME...: run the tests with files of their own in DIR, whose suffix tells logs apart.
vm_stream()
{
	tmp=$1
	boot=boot.${1##*.}
	results=$tmp/results.all
	shift
	mkdir "$tmp"
	: >"$results"
	vm_tests "$@"
	: >"$tmp/ended"
}

# build_and_start VARIANT ARCH NR NAME...: build that kernel, and run the tests in the background, in NR VMs at
# a time.
build_and_start()
{
	variant=$1
	set_arch "$2"
	nr=$3
	shift 3
	check "$flavour/kernel" env VARIANT="$variant" "$here/kernel.sh" &&
		check "$flavour/selftests" env VARIANT="$variant" "$here/selftests.sh" || return 0
	rm -f "$logs/$flavour/races.log"
	prepare_boots
	for part in $(seq "$nr"); do
		names=$(listed "$arch" "$@" | awk -v nr="$nr" -v part="$part" 'NR % nr + 1 == part { print $2 }')
		[ -n "$names" ] || continue
		host_cpu=$(one_host_cpu "$(echo "$streams" | wc -w)")
		streams="$streams $flavour.$part"
		# shellcheck disable=SC2086
		vm_stream "$tmp/$flavour.$part" $names &
	done
}

# TAP from the results.
write_tap()
{
	mkdir -p "$build"
	awk -F '\t' '
	{ line[NR] = $0 }
	END {
		print "KTAP version 1"
		print "1.." NR
		for (i = 1; i <= NR; i++) {
			split(line[i], f, "\t")
			name = substr(f[1], 6)
			if (line[i] ~ /^fail/)
				printf "not ok %d %s%s\n", i, name, f[2] == "" ? "" : " # " f[2]
			else if (line[i] ~ /^skip/)
				printf "ok %d %s # SKIP %s\n", i, name, f[2]
			else
				printf "ok %d %s\n", i, name
		}
	}' "$results" >"$tap"
}

for name in "$@"; do
	[ -n "$(listed "$archs" "$name")" ] ||
		die "$tests has no $name for $archs and DEBUG=${DEBUG:-}"
done
check host/tree "$here/tree.sh" || :
if [ $# -eq 0 ]; then
	for lint in patches spdx scripts mutants style; do
		check "host/$lint" "$here/lint.sh" "$lint" || :
	done
	[ ! -e tools/testing/kvm_userfault/Makefile ] || unit_tests
fi
streams=
kind=$variant
for arch in $archs; do
	# Nothing else runs beside what is built last.
	nr=1
	[ $# -gt 0 ] || [ "$arch" != "${archs##* }" ] || nr=2
	build_and_start "$kind" "$arch" "$nr" "$@"
	[ $# -gt 0 ] || check "$flavour/warnings" "$here/lint.sh" warnings || :
	case "$# $kind $arch" in
	"0  x86_64")
		# shellcheck disable=SC2046
		build_and_start debug x86_64 1 $(debug_tests) ;;
	esac
done
wait
for stream in $streams; do
	cat "$tmp/$stream/results.all" >>"$results"
	[ -e "$tmp/$stream/ended" ] || result fail "$stream/vm" "the run of its tests broke off"
	[ ! -e "$tmp/$stream/twice" ] || cat "$tmp/$stream/twice" >>"$tmp/twice"
done
if [ "$kind" = kcsan ] && [ -e "$logs/$flavour/races.log" ]; then
	say "data races of upstream's functions alone" "see $logs/$flavour/*.log"
	sed 's/.*data-race in /  /' "$logs/$flavour/races.log" | sort | uniq -c
fi

write_tap
passed=$(grep -c '^pass' "$results") || :
failed=$(grep -c '^fail' "$results") || :
skipped=$(grep -c '^skip' "$results") || :
echo
grep '^not ok' "$tap" || :
if [ -s "$tmp/twice" ]; then
	say "run twice, as they failed at first" "$(sort "$tmp/twice" | tr '\n' ' ')"
fi
say "results in $tap" "$(since "$begin")"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
