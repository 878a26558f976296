# SPDX-License-Identifier: GPL-2.0-only
# Filter for git's diff of one file with -U1: drop git's own header lines and the names of
# functions, and part hunks so that no two lines of context stand together.

function flush(	i)
{
	if (!n)
		return
	printf "@@ -%s +%s @@\n", span(old, olds), span(new, news)
	for (i = 1; i <= n; i++)
		print line[i]
	old += olds
	new += news
	olds = news = n = 0
	previous = ""
}

# An empty side names the line before it.
function span(start, count)
{
	return (count ? start : start - 1) (count == 1 ? "" : "," count)
}

/^@@ / {
	flush()
	split($2, o, ",")
	split($3, p, ",")
	old = substr(o[1], 2) + 0
	new = substr(p[1], 2) + 0
	if (o[2] == "0")
		old++
	if (p[2] == "0")
		new++
	inside = 1
	next
}
!inside {
	if (/^(---|\+\+\+) /)
		print
	next
}
{
	kind = substr($0, 1, 1)
	if (kind == " " && previous == " ")
		flush()
	line[++n] = $0
	if (kind == " " || kind == "-")
		olds++
	if (kind == " " || kind == "+")
		news++
	previous = kind
}
END { flush() }
