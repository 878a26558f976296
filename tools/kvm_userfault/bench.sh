#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Measure what KVM userfault costs, by userfault_bench in VMs whose clock counts instructions.
#
# Everything is measured twice, in two VMs, the second time in reverse order: on the plain kernel; plain
# faults also on one without CONFIG_KVM_USERFAULT; locks, with four CPUs that run at the same time, on one
# with CONFIG_LOCK_STAT; what contended bits cost, on this machine's own cores. Writes build/bench.log (what
# was measured), build/bench.json (the means) and build/bench.svg, prints tables, and fails if anything
# is missing. PAGES= is how many pages each vCPU fetches, a multiple of 128, without it 4096. KERNELS= is with
# which other kernels to compare, both without it: "off lockstat"; plain: with none. VCPUS= is how many vCPUs
# fetch, without it "1 2 4 8 16".

. "$(dirname "$0")/lib.sh"
. "$here/qemu.sh"

tmp=$(mktemp -d)
# shellcheck disable=SC2317
clean_up()
{
	for pid in "$tmp"/*/pid; do
		[ ! -s "$pid" ] || kill "$(cat "$pid")" 2>/dev/null || :
	done
	rm -rf "$tmp"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
begin=$(now)
pages=${PAGES:-4096}
all_vcpus=${VCPUS:-1 2 4 8 16}
kernels=" ${KERNELS:-off lockstat} "
# What KVM does not have on arm64, nothing can be compared with.
case $arch in
x86_64)	prefault=ioctl-prefault methods="arm hole attributes mprotect" ;;
arm64)	prefault='' methods="arm hole mprotect" ;;
esac
MEM=${MEM:-4G}

# The list of a group has one program for each line: name, settings, arguments.
main_list()
{
	echo "clear huge=520 clear"
	echo "poison huge=520 poison"
	off_list
	for vcpus in $all_vcpus; do
		echo "fetch_${vcpus}_vcpus - fetch -v $vcpus -n $pages"
		# Of these there are many: keep to 4096 pages for each program and 4 vCPUs.
		n=$pages
		[ "$vcpus" -le 2 ] || n=$((pages / 4))
		echo "fetch_${vcpus}_vcpus_shmem - fetch -v $vcpus -n $n -s shmem"
		echo "fetch_${vcpus}_vcpus_guest_memfd - fetch -v $vcpus -n $n -s guest_memfd"
		[ "$vcpus" -eq 1 ] || echo "fetch_${vcpus}_vcpus_same - fetch -v $vcpus -n $pages -S"
	done
}

off_list()
{
	echo "off_anon - off -n $pages"
	echo "off_shmem - off -n $pages -s shmem"
}

locks_list()
{
	echo "locks - fetch -v 4 -n $((pages / 8))"
	echo "locks_same - fetch -v 4 -n $((pages / 8)) -S"
	echo "locks_guest_memfd - fetch -v 4 -n $((pages / 8)) -s guest_memfd"
}

# round GROUP N VARIANT: boot that kernel, run the group's list, leave the report in $tmp/GROUP.N/report.
round()
{
	dir=$tmp/$1.$2
	mkdir "$dir"
	"$1_list" >"$dir/list"
	# The other way around; within a program -r does that.
	[ "$2" = 1 ] ||
		sed '1!G; h; $!d' "$dir/list" | sed '/ \(fetch\|off\|poison\)/s/$/ -r/' >"$dir/reversed"
	[ "$2" = 1 ] || mv "$dir/reversed" "$dir/list"
	sed 's|^\([^ ]*\) \([^ ]*\)|\1 3600 \2 ./userfault_bench|' "$dir/list" >"$dir/programs"
	# Last, for with a cgroup there allocations take longer.
	[ "$1" != main ] || echo "memory 3600 - ./userfault_bench memory" >>"$dir/programs"
	job_of "$dir/programs" >"$dir/job"
	: >"$dir/report"
	kernel=$build/$arch${3:+-$3}/kernel/$image
	boot "$dir" "" -pidfile "$dir/pid" </dev/null &
	echo $! >"$dir/waiter"
}

# with KERNEL: is it to be compared with?
with()
{
	case $kernels in
	*" $1 "*)	return 0 ;;
	*)		return 1 ;;
	esac
}

# Say how the programs of a group end, until its VMs are gone.
watch_group()
{
	alive=yes
	while [ -n "$alive" ]; do
		sleep 1
		alive=
		for dir in "$tmp/$1".*; do
			! kill -0 "$(cat "$dir/waiter")" 2>/dev/null || alive=yes
			sed -n "s/^E \([^ ]*\) \([^ ]*\) \(.*\)/\1 ${dir##*.} \3/p" "$dir/report"
		done >"$tmp/ended"
		while read -r name i how; do
			! grep -qx "$1 $name $i" "$tmp/said" || continue
			echo "$1 $name $i" >>"$tmp/said"
			[ "$how" = "exit 0" ] && how= || how=", FAILED: $how"
			say "  $name, round $i" "$(since "$begin")$how"
		done <"$tmp/ended"
	done
}

# collect GROUP: what its programs have printed, into bench.log, unless something went wrong.
collect()
{
	for i in 1 2; do
		dir=$tmp/$1.$i
		log=$logs/bench.$1.$i.log
		cp "$dir/report" "$log"
		grep -qx D "$dir/report" || {
			tail -n 20 "$dir/console.log" "$dir/qemu.log" >&2
			die "the VM of round $i died; see $log"
		}
		! grep '^K ' "$dir/report" | grep -E "$splat" >&2 || die "the kernel complained, see above"
		! grep '^E ' "$dir/report" | grep -v ' exit 0$' >&2 || die "a program failed; see $log"
		[ "$1" = locks ] || ! grep -q '^O clock exact=false' "$dir/report" ||
			die "the clock does not count instructions; see $log"
		sed -n 's/^O \(fetch\|off\|clear\|arm\|poison\|memory\|locks\) \(.*\)/\1 round='"$i"' \2/p' "$dir/report"
	done >>"$build/bench.log"
}

bitmap()
{
	for i in 1 2; do
		make -s -C tools/testing/kvm_userfault bench O="$build/unit" | sed "s/^bitmap /&round=$i /"
	done
}

build_init
: >"$build/bench.log"
: >"$tmp/said"

# One CPU, one instruction each nanosecond, and idle time is skipped.
ACCEL=tcg,thread=single
SMP=1
QEMU_ARGS="-icount shift=0,sleep=off"
say "instructions: two VMs" "$(($(main_list | wc -l) + 1)) programs each"
round main 1 ""
round main 2 ""
watch_group main
collect main

if with off; then
	say "without CONFIG_KVM_USERFAULT: two VMs" ""
	round off 1 off
	round off 2 off
	watch_group off
	collect off
fi

if with lockstat; then
	ACCEL=tcg,thread=multi
	SMP=4
	QEMU_ARGS=
	say "locks: a VM with four CPUs, twice" ""
	for i in 1 2; do
		round locks $i lockstat
		watch_group locks
	done
	collect locks
fi

try "threads on this machine's cores" "$logs/bench.bitmap.log" bitmap || die "see $logs/bench.bitmap.log"
grep '^bitmap ' "$logs/bench.bitmap.log" >>"$build/bench.log" ||
	say "" "(too busy; see $logs/bench.bitmap.log)"

awk -v svg="$tmp/plot" -f "$here/bench.awk" -v json="$build/bench.json" "$build/bench.log"
plot()
{
	(cd "$tmp" && gnuplot plot) && mv "$tmp/bench.svg" "$build/bench.svg"
}
try "draw" "$logs/gnuplot.log" plot || die "gnuplot failed; see $logs/gnuplot.log"

# must_have KIND FIELD=PATTERN...: is there such a result? Fields in the order in which they are there.
must_have()
{
	what=$*
	in_kind="/^ \"$1\": /,/^ ]/p"
	shift
	pattern=
	for f in "$@"; do
		pattern="$pattern\"${f%%=*}\": \"?${f#*=}\"?[,}].*"
	done
	sed -n "$in_kind" "$build/bench.json" | grep -Eq "$pattern" || {
		echo "bench.json lacks: $what" >&2
		echo "$what" >>"$tmp/lacks"
	}
}

any="[0-9.]+"
exit_modes="ioctl $prefault ioctl-16 ioctl-handler resolve resolve-16 resolve-handler"
for vcpus in $all_vcpus; do
	for mode in plain $exit_modes; do
		for backing in anon shmem guest_memfd; do
			must_have fetch "mode=$mode" "backing=$backing" uffd=false same=false "vcpus=$vcpus"
		done
	done
	for backing in anon shmem; do
		for mode in uffd-missing uffd-missing-shared uffd-16 $exit_modes; do
			must_have fetch "mode=$mode" "backing=$backing" uffd=true same=false "vcpus=$vcpus"
		done
	done
	for mode in uffd-minor uffd-minor-shared uffd-minor-16; do
		must_have fetch "mode=$mode" backing=shmem uffd=true same=false "vcpus=$vcpus"
	done
	[ "$vcpus" = 1 ] || for mode in plain uffd-missing-shared ioctl ioctl-handler resolve resolve-handler; do
		must_have fetch "mode=$mode" backing=anon same=true "vcpus=$vcpus"
	done
done
for n in 1 16 64 512 4096 32768 262144; do
	must_have clear "pages=$n" "insns=$any"
	for mapped in none 4k 2m; do
		[ "$mapped" != 4k ] || [ -n "$prefault" ] || [ "$n" -le 32768 ] || continue
		must_have arm "pages=$n" "mapped=$mapped" "insns=$any"
	done
done
for config in $(! with off || echo n) no-flag flag; do
	must_have off "config=$config" backing=anon "insns_per_page=$any"
done
must_have memory "kib_per_gib=$any"
for mode in plain uffd-missing uffd-missing-shared $exit_modes; do
	! with lockstat ||
		must_have locks "mode=$mode" "mmu_lock_read=$any" "mmu_lock_write=$any" "slots_lock_write=$any"
done
for method in $methods; do
	must_have poison backing=thp "method=$method" "op_insns=$any" "maps_2m_after=$any"
	[ "$method" = mprotect ] ||
		must_have poison backing=hugetlb "method=$method" "op_insns=$any" "maps_2m_after=$any"
done
[ ! -e "$tmp/lacks" ] || die "bench.json is not complete: $(wc -l <"$tmp/lacks") results are missing"
echo
say "build/bench.json, bench.svg, bench.log" "$(since "$begin")"
