# SPDX-License-Identifier: GPL-2.0-only
# From the lines of userfault_bench: JSON into the file json, a gnuplot script named svg with its
# data, and tables for a person.
#
# A line is KIND NAME=VALUE...; fields that are in "identity" say what was measured, the others are
# results. Lines that measured the same are averaged; the spread is that of the kind's first result.

BEGIN {
	n = split("arch mode backing uffd same vcpus pages mapped method exit config gib where threads", names, " ")
	for (i = 1; i <= n; i++)
		identity[names[i]] = 1
}

{
	id = $1
	for (i = 2; i <= NF; i++) {
		split($i, f, "=")
		if (f[1] in identity)
			id = id " " $i
	}
	if (!(id in count)) {
		order[++nr_ids] = id
		kind[id] = $1
	}
	count[id]++
	for (i = 2; i <= NF; i++) {
		split($i, f, "=")
		if (f[1] == "round")
			continue
		value[id, f[1]] = f[2]
		if (!((id, f[1]) in has)) {
			has[id, f[1]] = 1
			fields[id] = fields[id] " " f[1]
		}
		if (f[1] in identity)
			continue
		sum[id, f[1]] += f[2]
		if (!(id in main_field))
			main_field[id] = f[1]
		if (f[1] != main_field[id])
			continue
		if (count[id] == 1 || f[2] < low[id])
			low[id] = f[2]
		if (count[id] == 1 || f[2] > high[id])
			high[id] = f[2]
	}
}

function mean(id, field)
{
	return sum[id, field] / count[id]
}

function spread(id)
{
	return high[id] ? 100 * (high[id] - low[id]) / high[id] : 0
}

# A number without needless digits.
function number(x)
{
	if (x == int(x))
		return sprintf("%d", x)
	x = sprintf("%.4f", x)
	sub(/\.?0+$/, "", x)
	return x
}

function thousands(x,    s, out)
{
	s = sprintf("%.0f", x)
	while (length(s) > 3) {
		out = "," substr(s, length(s) - 2) out
		s = substr(s, 1, length(s) - 3)
	}
	return s out
}

function write_json(    nk, k, i, j, id, nf, f, v, first, line, kinds)
{
	nk = split("fetch clear arm poison off locks memory bitmap", kinds, " ")
	printf "{\n \"insns\": \"executed instructions, guest included\"" >json
	for (k = 1; k <= nk; k++) {
		printf ",\n \"%s\": [", kinds[k] >json
		first = 1
		for (i = 1; i <= nr_ids; i++) {
			id = order[i]
			if (kind[id] != kinds[k])
				continue
			nf = split(fields[id], f, " ")
			line = ""
			for (j = 1; j <= nf; j++) {
				v = f[j] in identity ? value[id, f[j]] : number(mean(id, f[j]))
				if (v !~ /^-?[0-9.]+$|^true$|^false$/)
					v = "\"" v "\""
				line = line "\"" f[j] "\": " v ", "
			}
			printf "%s\n  {%s\"rounds\": %d, \"spread_percent\": %.2f}", first ? "" : ",",
				line, count[id], spread(id) >json
			first = 0
		}
		printf "%s]", first ? "" : "\n " >json
	}
	print "\n}" >json
	close(json)
}

# What a line of a table is about; the second word is the memory, and whether the pages are the same.
function key_of(id)
{
	return value[id, "mode"] " " value[id, "backing"] (value[id, "same"] == "true" ? ",same" : "") " " \
		value[id, "uffd"]
}

# The modes and numbers of vCPUs that were measured, in the order of the first round.
function collect(    i, id, key)
{
	for (i = 1; i <= nr_ids; i++) {
		id = order[i]
		arch = value[id, "arch"]
		if (kind[id] != "fetch")
			continue
		key = key_of(id)
		at[key, value[id, "vcpus"]] = id
		if (!(key in seen_key)) {
			seen_key[key] = 1
			keys[++nr_keys] = key
		}
		if (!(value[id, "vcpus"] in seen_vcpus)) {
			seen_vcpus[value[id, "vcpus"]] = 1
			vcpus[++nr_vcpus] = value[id, "vcpus"]
		}
	}
}

function label(key,    f)
{
	split(key, f, " ")
	return f[1] (f[3] == "true" && f[1] !~ /^uffd/ ? " + uffd" : "")
}

function fetch_cell(key, vcpus)
{
	if (!((key, vcpus) in at))
		return ""
	return thousands(mean(at[key, vcpus], "insns_per_page"))
}

function table_fetch(    n, k, v, id, f, backings, b)
{
	n = split("anon shmem guest_memfd anon,same", backings, " ")
	for (b = 1; b <= n; b++) {
		printf "\nInstructions per page fetched, %s, by number of vCPUs\n\n%-22s", memory_name(backings[b]), ""
		for (v = 1; v <= nr_vcpus; v++)
			printf " %9d", vcpus[v]
		print ""
		for (k = 1; k <= nr_keys; k++) {
			split(keys[k], f, " ")
			if (f[2] != backings[b])
				continue
			printf "%-22s", label(keys[k])
			for (v = 1; v <= nr_vcpus; v++)
				printf " %9s", fetch_cell(keys[k], vcpus[v])
			print ""
		}
	}
	printf "\nPer page, anonymous memory, 2 vCPUs; median and 99th percentile of a fetch with 1 vCPU\n\n"
	printf "%-22s %9s %9s %9s %8s %8s %8s %8s %8s\n", "", "insns", "median", "p99", "exits",
		"syscalls", "faults", "switches", "strings"
	for (k = 1; k <= nr_keys; k++) {
		split(keys[k], f, " ")
		if (f[2] != "anon" || !((keys[k], 2) in at) || !((keys[k], 1) in at))
			continue
		id = at[keys[k], 2]
		printf "%-22s %9s %9s %9s %8.2f %8.2f %8s %8.2f %8.0f\n", label(keys[k]),
			thousands(mean(id, "insns_per_page")),
			thousands(mean(at[keys[k], 1], "median")), thousands(mean(at[keys[k], 1], "p99")),
			mean(id, "exits_per_page"), mean(id, "syscalls_per_page"),
			(id, "faults_per_page") in has ? sprintf("%.2f", mean(id, "faults_per_page")) : "-",
			mean(id, "switches_per_page"),
			mean(id, "string_insns_per_page")
	}
}

function memory_name(backing)
{
	if (backing == "anon,same")
		return "anon memory, all vCPUs on the same pages"
	return backing " memory"
}

function table_locks(    i, id, any)
{
	for (i = 1; i <= nr_ids; i++) {
		id = order[i]
		if (kind[id] != "locks")
			continue
		if (!any++) {
			print "\nLocks taken per page, 4 vCPUs on 4 CPUs that run at the same time; and how often one was waited for\n"
			printf "%-34s %9s %9s %9s %9s %9s %9s\n", "", "mmu_lock", "mmu_lock", "slots_", "mmap_", "mmap_", "uffd's"
			printf "%-34s %9s %9s %9s %9s %9s %9s %9s\n", "", "read", "write", "lock", "read", "write", "queues", "waits"
		}
		printf "%-34s %9.2f %9.4f %9.4f %9.2f %9.4f %9.2f %9.4f\n",
			label(key_of(id)) ", " value[id, "backing"] (value[id, "same"] == "true" ? " same" : ""),
			mean(id, "mmu_lock_read"), mean(id, "mmu_lock_write"), mean(id, "slots_lock_write"),
			mean(id, "mmap_lock_read"), mean(id, "mmap_lock_write"), mean(id, "uffd_queues_write"),
			mean(id, "mmu_lock_contended") + mean(id, "slots_lock_contended") + \
				mean(id, "mmap_lock_contended") + mean(id, "uffd_queues_contended")
	}
}

function table_others(    i, id, any)
{
	for (i = 1; i <= nr_ids; i++) {
		id = order[i]
		if (kind[id] == "memory")
			printf "\nMemory: %.1f KiB per GiB of guest memory\n", mean(id, "kib_per_gib")
	}
	for (i = 1; i <= nr_ids; i++) {
		id = order[i]
		if (kind[id] != "bitmap")
			continue
		if (!any++)
			print "\nNanoseconds to change a bit, on this machine (its load shows)\n"
		printf "%-12s %2d threads %8.1f\n", value[id, "where"], value[id, "threads"], mean(id, "ns_per_change")
	}
}

function table_ranges(    i, id, pages, nr, list, column, j, cell)
{
	for (i = 1; i <= nr_ids; i++) {
		id = order[i]
		if (kind[id] != "clear" && kind[id] != "arm")
			continue
		pages = value[id, "pages"]
		column = kind[id] == "clear" ? "clear" : value[id, "mapped"]
		if (!(pages in nr_of))
			nr_of[list[++nr] = pages] = 1
		cell[pages, column] = thousands(mean(id, "insns"))
		null_ioctl = mean(id, "null_ioctl_insns")
	}
	if (!nr)
		return
	printf "\nKVM_SET_USERFAULT_RANGE, instructions of the system call (one that does nothing: %d)\n\n",
		null_ioctl
	printf "%10s %12s %16s %16s %16s\n", "pages", "clear", "arm, not mapped", "arm, mapped 4K", "arm, mapped 2M"
	for (j = 1; j <= nr; j++)
		printf "%10s %12s %16s %16s %16s\n", thousands(list[j]), cell[list[j], "clear"],
			cell[list[j], "none"], cell[list[j], "4k"], cell[list[j], "2m"]
}

function table_poison(    i, id, any)
{
	for (i = 1; i <= nr_ids; i++) {
		id = order[i]
		if (kind[id] != "poison")
			continue
		if (!any++) {
			printf "\nPoison of one page of %d MiB mapped by 2 MiB pages\n\n", value[id, "pages"] / 256
			printf "%-18s %10s %12s %8s %12s %12s %9s %s\n", "", "insns", "elapsed", "faults",
				"touch again", "as before", "2M left", "exit"
		}
		printf "%-18s %10s %12s %8d %12s %12s %4d/%d  %s\n",
			value[id, "backing"] " " value[id, "method"], thousands(mean(id, "op_insns")),
			thousands(mean(id, "op_elapsed_insns")), mean(id, "other_page_faults"),
			thousands(mean(id, "retouch_insns")), thousands(mean(id, "control_insns")),
			mean(id, "maps_2m_after"), mean(id, "maps_2m_before"), value[id, "exit"]
		if (mean(id, "restore_insns"))
			restored = restored sprintf("%s: armed page cleared, with COLLAPSE: %s instructions, %d 2M mappings\n",
				value[id, "backing"], thousands(mean(id, "restore_insns")),
				mean(id, "maps_2m_restored"))
	}
	printf "%s", restored
}

function table_off(    i, id, any)
{
	for (i = 1; i <= nr_ids; i++) {
		id = order[i]
		if (kind[id] != "off")
			continue
		if (!any++)
			print "\nPlain faults, instructions of an access: median of all, and mean\n"
		printf "%-10s %-8s %9.1f %9.1f\n", value[id, "config"], value[id, "backing"],
			mean(id, "insns_per_page"), mean(id, "mean")
	}
}

function figure(x)
{
	return x < 100 ? sprintf("%.2f", x) : thousands(x)
}

function say_spread(    i, id, bad)
{
	for (i = 1; i <= nr_ids; i++) {
		id = order[i]
		if (count[id] != 2)
			print "NOT TWICE: " id ": " count[id]
		if (spread(id) > worst)
			worst = spread(id)
		if (spread(id) <= 1)
			continue
		if (!bad++)
			print "\nMore than 1 % between the two rounds (lowest, highest):\n"
		printf "%5.1f %%  %s: %s, %s\n", spread(id), id, figure(low[id]), figure(high[id])
	}
	printf "\n%d figures, each measured twice: %d differ by more than 1 %%, the largest difference is %.1f %%\n",
		nr_ids, bad, worst
}

# @y: the column, or an expression.
function plot_fetch(y,    k, f, sep)
{
	printf "plot " >svg
	for (k = 1; k <= nr_keys; k++) {
		split(keys[k], f, " ")
		if (f[2] != "anon")
			continue
		printf "%s$fetch%d using 1:%s with linespoints title '%s' noenhanced", sep, k, y, label(keys[k]) >svg
		sep = ", "
	}
	print "" >svg
}

function write_plot(    k, v, f, i, id)
{
	printf "" >svg
	print "set terminal svg size 900,1400 dynamic enhanced background 'white'" >svg
	print "set output 'bench.svg'" >svg
	print "set multiplot layout 3,1" >svg
	print "set title 'Instructions per page fetched (" arch ", anonymous memory)' noenhanced" >svg
	print "set xlabel 'vCPUs'; set ylabel 'instructions'; set logscale x 2; set yrange [0:*]" >svg
	print "set key outside right; set grid" >svg
	for (k = 1; k <= nr_keys; k++) {
		split(keys[k], f, " ")
		if (f[2] != "anon")
			continue
		print "$fetch" k " << EOD" >svg
		for (v = 1; v <= nr_vcpus; v++)
			if ((keys[k], vcpus[v]) in at)
				print vcpus[v], mean(at[keys[k], vcpus[v]], "insns_per_page") >svg
		print "EOD" >svg
	}
	plot_fetch("2")
	print "set title 'Pages per million instructions'; set ylabel 'pages'" >svg
	plot_fetch("(1e6 / $2)")
	print "set ylabel 'instructions'" >svg
	print "$poison << EOD" >svg
	for (i = 1; i <= nr_ids; i++) {
		id = order[i]
		if (kind[id] != "poison")
			continue
		print "\"" value[id, "backing"] " " value[id, "method"] "\"", mean(id, "op_insns"),
			mean(id, "retouch_insns"), mean(id, "control_insns") >svg
	}
	print "EOD" >svg
	print "unset logscale; set logscale y; set yrange [1000:*]; unset xlabel" >svg
	print "set title 'Poison of one page: instructions'" >svg
	print "set style data histograms; set style fill solid; set xtics rotate by -20" >svg
	print "plot $poison using 2:xtic(1) title 'poison the page', '' using 3 title 'touch all others'," \
		" '' using 4 title 'touch all before'" >svg
	print "unset multiplot" >svg
	close(svg)
}

END {
	write_json()
	collect()
	table_fetch()
	table_ranges()
	table_poison()
	table_off()
	table_others()
	table_locks()
	print "\nCounted: every instruction executed, guest included; an iteration of a string instruction counts"
	print "as one (\"strings\": those by which the program copies pages, the kernel's own are not told apart)."
	print "NOT shown by counting instructions on one CPU: cache and TLB misses, the latency of real exits,"
	print "contention of locks, reference counts and cache lines. Time slices of other threads are in the"
	print "median and percentiles with several vCPUs, hence those are given for one. \"elapsed\" includes"
	print "waiting for grace periods, where the clock jumps; it is no count of instructions."
	say_spread()
	write_plot()
}
