# SPDX-License-Identifier: GPL-2.0-only
# Turn what init.c reports from a VM into results, one line each: "pass|fail|skip NAME<tab>comment".
#
# A program that prints TAP is taken apart into its subtests; any other is one result by its exit
# status (4: skipped). A complaint of the kernel is a failure of the program that ran. Each
# program's output goes to LOGS/NAME.log.
#
# A test of userfault must not be skipped, but with may_skip.
#
# Of the kernel's complaints, these are none of ours: a data race whose two functions are both
# upstream's, which goes to LOGS/races.log; that a test has no memory which it wants to have none.
#
# Variables: arch, logs, splat (a regular expression), boot (what to call coming up itself;
# nothing where there is no VM).

function result(verdict, name, comment)
{
	print verdict " " arch "/" name "\t" comment
}

function skip(name, why)
{
	if (test ~ /userfault/ && !may_skip)
		result("fail", name, "skipped, which a test of userfault must not: " why)
	else
		result("skip", name, why)
}

# ok 3 - suite.name # SKIP reason
function subtest(line,	good, why, stem)
{
	seen++
	good = line ~ /^ok/
	sub(/^(not )?ok *[0-9]* *(- *)?/, "", line)
	why = ""
	if (match(line, / *# */)) {
		why = substr(line, RSTART + RLENGTH)
		line = substr(line, 1, RSTART - 1)
	}
	stem = test
	sub(/_test.*/, "", stem)
	if (line ~ /^global\./ || index(line, stem) == 1)
		sub(/^[^.]*\./, "", line)
	gsub(/[ \t]+/, "_", line)
	if (!good) {
		bad++
		result("fail", test "." line, "see " file)
	} else if (why ~ /^SKIP/) {
		sub(/^SKIP *:? */, "", why)
		skip(test "." line, why)
	} else {
		result("pass", test "." line, "")
	}
}

function start(name)
{
	test = name
	file = logs "/" (name == "" ? "report" : name) ".log"
	printf "" >file
	tap = seen = bad = 0
	plan = -1
	complaint = last = expected = ""
}

BEGIN { start(boot) }

{ letter = substr($0, 1, 1); text = substr($0, 3) }

letter == "K" {
	print "[kernel] " text >file
	if (text ~ /BUG: KCSAN: data-race in / && text !~ /userfault|kvm_gmem_rebind|kvm_gmem_is_/)
		print text >>(logs "/races.log")
	else if (test ~ /inject/ && text ~ /: (vmalloc error|page allocation failure)/)
		expected = 1
	else if (expected && text ~ /Call Trace/)
		expected = 0
	else if (text ~ splat && complaint == "")
		complaint = text
}

letter == "S" {
	if (test == boot)
		finish()
	# Of this there is one with each boot.
	start(text == "kmemleak" ? text substr(boot, 5) : text)
}

letter == "O" {
	sub(/\r$/, "", text)
	print text >file
	last = text
	if (text ~ /^K?TAP version/)
		tap = 1
	else if (tap && plan < 0 && text ~ /^1\.\.[0-9]+/)
		plan = substr(text, 4) + 0
	else if (tap && text ~ /^(not )?ok [0-9]+/)
		subtest(text)
}

letter == "E" {
	split($0, e, " ")
	how = e[4] " " e[5]
	if (how ~ /^timeout/)
		complaint = ""	# init.c has asked the kernel what its tasks wait for
	if (how == "exit 4" && !seen)
		skip(test, last)
	else if (how != "exit 0" && !(how == "exit 4" && !bad) && !bad)
		result("fail", test, (e[4] == "timeout" ? "timed out" : how) ", see " file)
	else if (plan >= 0 && plan != seen)
		result("fail", test, "planned " plan " subtests, ran " seen)
	else if (!seen)
		result("pass", test, "")
	finish()
}

letter == "D" { done = 1 }

function finish()
{
	if (complaint != "")
		result("fail", test ".kernel_log", complaint)
	else if (test == boot && boot != "")
		result("pass", test, "")
	close(file)
	complaint = ""
	ended = test
}

END {
	if (test == boot && !done)
		result("fail", test, "the VM did not come up")
	else if (!done && ended != test)
		result("fail", test, "the VM died or ran out of time, see " file)
}
