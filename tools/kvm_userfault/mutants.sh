#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Show that the tests can fail: break the kernel as mutants.list says, one mutant after the other, and
# see that the test fails which is there for it. In a tree and a build of its own, below build/mutants.
# MUTANTS="name...": only these. LIST= takes another list. With the argument "apply", only see that each still
# finds what it breaks, for both architectures.

[ "${1:-}" = apply ] || BUILD=${BUILD:-$(cd "$(dirname "$0")/../.." && pwd)/build}/mutants
export BUILD

. "$(dirname "$0")/lib.sh"
. "$here/overlay.sh"
. "$here/qemu.sh"

mutants=${LIST:-$here/mutants.list}
tests=$here/tests.list
mkdir -p "$logs"
if [ "${1:-}" != apply ]; then
	exec 8>"$build/mutants.lock"
	flock -n 8 || die "$build is in use by another run"
fi

# The first line of a mutant: its name, architecture, file, tests, and how else they may end.
head_of()
{
	awk -v name="$1" '/^[^#\t]/ && $1 == name' "$mutants"
}

# The lines below it: what sed does to the file.
script_of()
{
	awk -v name="$1" '/^[^\t]/ { on = $1 == name } on && sub(/^\t/, "")' "$mutants"
}

# Its tests, PROGRAM or PROGRAM.SUBTEST, one a line; and, with "ends", how else these may end.
tests_of()
{
	head_of "$1" | awk -v ends="${2:-}" '{
		for (i = 4; i <= NF; i++)
			if (($i ~ /^(splat|hang)$/) == (ends != ""))
				print $i
	}'
}

# mutate FILE NAME OUTPUT: the file as the mutant has it.
mutate()
{
	script_of "$2" >"$tmp/script"
	pristine "$1" "$tmp/pristine"
	sed -f "$tmp/script" "$tmp/pristine" >"$3" || die "$2: not what sed understands"
	! cmp -s "$tmp/pristine" "$3" || die "$2: its script changes nothing in $1"
}

# pristine FILE OUTPUT: what the overlay makes of a file of the tree, ours or the kernel's.
pristine()
{
	if [ -e "$1" ]; then
		cp "$1" "$2"
	else
		wanted "$1" "$2"
	fi
}

# make goes by the time, and a file that is restored is older than what was made of it.
forget_objects()
{
	find "$out/kernel/arch/$karch/kvm" "$out/kernel/virt" -name '.*.o.cmd' -exec grep -lF "/$1" {} + |
		sed 's|/\.\([^/]*\)\.cmd$|/\1|' | xargs -r rm -f
	rm -f "$out/kernel/built"
}

# The note outlives a run that is killed. New files are links, which are never written through.
put_mutant()
{
	echo "$1" >"$build/mutated"
	rm "$tree/$1"
	cp "$tmp/mutant" "$tree/$1"
	forget_objects "$1"
}

restore()
{
	[ -e "$build/mutated" ] || return 0
	file=$(cat "$build/mutated")
	pristine "$file" "$tmp/restored"
	rm -f "$tree/$file"
	if [ -e "$file" ]; then
		ln -s "$top/$file" "$tree/$file"
	else
		cp "$tmp/restored" "$tree/$file"
	fi
	forget_objects "$file"
	rm "$build/mutated"
}

# The lines of tests.list for the programs of the tests on standard input, with their subtests last.
programs()
{
	awk -v arch="$arch" '
	NR == FNR {
		split($1, t, ".")
		if (!(t[1] in args))
			order[++n] = t[1]
		args[t[1]] = args[t[1]] (t[2] == "" ? "" : " -t " t[2])
		next
	}
	{ sub(/#.*/, ""); sub(/\+debug$/, "", $1) }
	$1 == "all" || $1 == arch { line[$2] = $0 }
	END {
		for (i = 1; i <= n; i++) {
			if (!(order[i] in line)) {
				print "error: tests.list has no " order[i] " for " arch >"/dev/stderr"
				exit 1
			}
			print line[order[i]] args[order[i]]
		}
	}' - "$tests"
}

# run_tests NAME: run the tests on standard input, with one boot for all that have the same kernel
# parameters. Results go to $tmp/results, output to the directory of logs NAME.
run_tests()
{
	name=$1
	rm -rf "${logs:?}/$name"
	mkdir -p "$logs/$name"
	: >"$tmp/results"
	sort -u | programs >"$tmp/programs"
	awk '!seen[$4]++ { print $4 }' "$tmp/programs" >"$tmp/boots"
	while read -r parameters <&3; do
		awk -v p="$parameters" '$4 == p { $1 = $4 = ""; print }' "$tmp/programs" >"$tmp/group"
		job_of "$tmp/group" >"$tmp/job"
		total=$(awk -v boot="$boot_seconds" '{ boot += $2 } END { print boot }' "$tmp/group")
		(
			boot_with "$parameters"
			boot "$tmp" "$total" </dev/null
		) || :
		awk -f "$here/tap.awk" -v arch="$arch" -v logs="$logs/$name" -v splat="$splat" \
			"$tmp/report" >>"$tmp/results"
		cat "$tmp/console.log" >>"$logs/$name/console.log"
	done 3<"$tmp/boots"
}

# How TEST ended, by the results: passed, failed, hang, splat, or died, which no mutant may; and why.
outcome()
{
	program=${1%%.*}
	subtest=${1#"$program"}
	how=$(awk -F '\t' -v p="$arch/$program" -v s="$subtest" '
		{ verdict = substr($1, 1, 4); test = substr($1, 6) }
		(test == p || index(test, p ".") == 1) &&
			(s == "" || substr(test, length(test) - length(s) + 1) == s) { n[verdict]++ }
		END { print n["fail"] + n["skip"] ? "failed" : n["pass"] ? "passed" : "died" }' "$tmp/results")
	if grep -q "^fail $arch/$program	timed out" "$tmp/results"; then
		how=hang
	elif grep -q "^fail $arch/$program	the VM died" "$tmp/results"; then
		how=died
	fi
	why=
	case $how in
	failed)	why=$(failure "${subtest:-.}" <"$logs/$name/$program.log")
		case $why in
		*"terminated by timeout"*) how=hang ;;
		esac ;;
	died)	why=$(grep -E "$splat" "$logs/$name/console.log" | head -n 1 | sed 's/^\[[^]]*\] *//')
		[ -z "$why" ] || how=splat ;;
	esac
}

# What the subtest, or with "." the first that failed, has to say about its failure.
failure()
{
	awk -v subtest="$1" '
	/^\[kernel\] / { next }
	/^# +RUN / { n = 0 }
	{ line[++n] = $0 }
	/^not ok/ && (subtest == "." || index($0 " ", subtest " ")) { exit }
	END {
		why = line[n]
		for (i = n; i > 0; i--)
			if (line[i] ~ /^# .*\.c:[0-9]+:/)
				why = line[i]
		for (i = n; i > 0; i--)
			if (line[i] ~ /Test Assertion Failure/)
				why = line[i + 1]
		for (i = n; i > 0; i--)
			if (line[i] ~ /terminated by timeout|goes wrong: /)
				why = line[i]
		gsub(/^[# \t]+|[ \t]+$/, "", why)
		print why
	}'
}

# Are the tests good on the kernel as it is? Under emulation one fails by accident once in a while.
baseline()
{
	for mutant in $selected; do
		tests_of "$mutant"
	done >"$tmp/all"
	run_tests baseline <"$tmp/all"
	bad_tests >"$tmp/bad"
	[ -s "$tmp/bad" ] || return 0
	cp "$tmp/bad" "$tmp/all"
	run_tests baseline <"$tmp/all"
	bad_tests >"$tmp/bad"
	[ ! -s "$tmp/bad" ]
}

bad_tests()
{
	sort -u "$tmp/all" | while read -r test; do
		outcome "$test"
		if [ "$how" != passed ]; then
			echo "$test"
			echo "$test fails without any mutant: $why" >&2
		fi
	done
}

# Was the mutant noticed? Each of its tests has to fail, in a way that the list allows.
verdict()
{
	ends=$(tests_of "$mutant" ends)
	tests_of "$mutant" >"$tmp/mine"
	run_tests "$mutant" <"$tmp/mine"
	killed=yes
	text=
	while read -r test <&4; do
		outcome "$test"
		case $how in
		failed)	;;
		*)	echo "$ends" | grep -qx "$how" || killed= ;;
		esac
		text="$text${text:+; }$test $how${why:+: $why}"
	done 4<"$tmp/mine"
}

check_mutant()
{
	start=$(now)
	# shellcheck disable=SC2046
	set -- $(head_of "$mutant")
	mutate "$3" "$mutant" "$tmp/mutant"
	put_mutant "$3"
	if "$here/kernel.sh" >"$logs/$mutant.build.log" 2>&1; then
		verdict
	else
		killed=
		text="does not build, see $logs/$mutant.build.log"
	fi
	restore
	if [ -n "$killed" ]; then
		nr_killed=$((nr_killed + 1))
		say "$mutant" "$(since "$start"), $text"
	else
		nr_survived=$((nr_survived + 1))
		survivors="$survivors $mutant"
		say "$mutant" "$(since "$start"), SURVIVED: $text"
	fi
}

tmp=$(mktemp -d)
if [ "${1:-}" = apply ]; then
	trap 'rm -rf "$tmp"' EXIT
	bad=0
	awk '/^[^#\t]/ { print $1, $3 }' "$mutants" >"$tmp/heads"
	while read -r mutant file; do
		(mutate "$file" "$mutant" "$tmp/mutant") || bad=1
	done <"$tmp/heads"
	exit "$bad"
fi
trap 'restore; rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

twice=$(awk '/^[^#\t]/ && seen[$1]++ { print $1 }' "$mutants")
[ -z "$twice" ] || die "$mutants has more than one $twice"
for mutant in ${MUTANTS:-}; do
	[ -n "$(head_of "$mutant")" ] || die "$mutants has no $mutant"
done
selected=$(awk -v arch="$arch" -v only=" ${MUTANTS:-} " '
	/^[^#\t]/ && ($2 == "all" || $2 == arch) && (only == "  " || index(only, " " $1 " ")) { print $1 }' "$mutants")
[ -n "$selected" ] || die "there is nothing to do for $arch"

restore
"$here/tree.sh"
for mutant in $selected; do
	# shellcheck disable=SC2046
	set -- $(head_of "$mutant")
	mutate "$3" "$mutant" "$tmp/mutant"
	tests_of "$mutant" | programs >/dev/null
done
"$here/kernel.sh"
"$here/selftests.sh"
host_cpu=$(one_host_cpu 0)
start=$(now)
baseline || die "these have to pass first"
say "all tests of these mutants, without any" "$(since "$start")"

nr_killed=0
nr_survived=0
survivors=
for mutant in $selected; do
	check_mutant
done
[ -z "$(base_git diff --name-only)" ] || die "$tree is not as it was"
[ -z "$survivors" ] || say "survived" "$survivors"
echo "$nr_killed killed, $nr_survived survived"
[ "$nr_survived" -eq 0 ]
