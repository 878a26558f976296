#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Check litmus tests with Spin: is the outcome that each asks for possible "Never" or "Sometimes"?
# check.sh DIRECTORY FIRST TEST...: work in the directory, print KTAP from number FIRST on.

set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$1
n=$2
shift 2
bad=0

# What Spin finds: Never, Sometimes, or what went wrong.
verdict()
{
	mkdir -p "$work/$name"
	cd "$work/$name"
	python3 "$here/litmus2spin.py" <"$test" >model.pml 2>log || { cat log; return; }
	spin -a model.pml >log 2>&1 || { cat log; return; }
	${CC:-cc} -O0 -w -DSAFETY -DNOREDUCE -o pan pan.c
	./pan -m1000000 >log 2>&1 || { cat log; return; }
	if grep -q 'pan:1: assertion violated' log; then
		echo Sometimes
	elif grep -q 'errors: 0$' log && ! grep -q 'max search depth too small' log; then
		echo Never
	else
		cat log
	fi
}

for test in "$@"; do
	name=$(basename "$test" .litmus)
	want=$(sed -n 's/^ \* Result: //p' "$test")
	got=$(verdict)
	if [ "$got" = "$want" ]; then
		echo "ok $n litmus.$name # $want"
	else
		echo "$got" | sed 's/^/# /'
		echo "not ok $n litmus.$name # it should be $want"
		bad=1
	fi
	n=$((n + 1))
done
exit "$bad"
