# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=sh disable=SC2034,SC2154
# Sourced after lib.sh by what boots the kernel: jobs for init.c, and QEMU.

boot_seconds=${BOOT_SECONDS:-120}

# Huge pages, where a program needs some, are of the size of blocks. Large ones must do with few.
huge_kb=2048 huge_count='\1'
case $variant in
16k)	huge_kb=32768 huge_count=8 ;;
64k)	huge_kb=524288 huge_count=5 MEM=${MEM:-8G} ;;
esac
huge=/sys/kernel/mm/hugepages/hugepages-${huge_kb}kB/nr_hugepages=$huge_count

# job_of LIST >JOB: a job of the list's programs, lines of NAME TIMEOUT SETTING,... COMMAND [ARG...]. %modes
# stands for the guest modes that are enough for a test: on arm64 one for each size of pages.
job_of()
(
	modes=
	[ "$arch" != arm64 ] || modes="-m 6 -m 7 -m 8"
	job list
	sed "s/ %modes/${modes:+ $modes}/" "$1" | while read -r name seconds settings command; do
		settings=$(echo "$settings" |
			sed "s|^-$||; s|^huge=\([0-9]*\)|$huge|; s|,huge=\([0-9]*\)|,$huge|; s|,| |g")
		# shellcheck disable=SC2086
		job_program "$name" "$seconds" "$selftests" "$settings" $command
	done
)

# job HOW >JOB begins a job; the programs follow.
job()
{
	printf '%s\0' "$1"
}

# job_program NAME TIMEOUT DIRECTORY "SETTING..." COMMAND [ARG...] >>JOB
job_program()
{
	printf '%s\0%s\0%s\0' "$1" "$2" "$3"
	settings=$4
	shift 4
	# shellcheck disable=SC2086
	job_list $settings
	job_list "$@"
}

job_list()
{
	printf '%s\0' $# "$@"
}

build_init()
{
	[ -e "$kernel" ] || die "there is no kernel in $out/kernel: run make kernel"
	if [ ! -e "$out/init" ] || [ -n "$(find "$here/init.c" -newer "$out/init")" ]; then
		"${cross}gcc" -Wall -Wextra -Werror -O2 -static -o "$out/init.new" "$here/init.c" ||
			die "cannot build init.c"
		mv "$out/init.new" "$out/init"
	fi
}

# initrd DIR: init and DIR/job, in DIR/initrd.
initrd()
{
	mkdir -p "$1/root/dev"
	cp "$out/init" "$1/root/init"
	cp "$1/job" "$1/root/job"
	(cd "$1/root" && find . | cpio -o -H newc --quiet) >"$1/initrd"
	rm -r "$1/root"
}

# Hardware acceleration only where a guest of it gets SVM or VMX too, which the device node
# alone does not say. The answer is kept.
accelerator()
{
	if [ -n "${ACCEL:-}" ]; then
		echo "$ACCEL"
	elif [ -w /dev/kvm ] && [ "$arch" = x86_64 ] && grep -qsx '[1Y]' \
			/sys/module/kvm_amd/parameters/nested /sys/module/kvm_intel/parameters/nested; then
		[ -e "$out/accel" ] || probe_kvm >"$out/accel"
		cat "$out/accel"
	else
		echo tcg
	fi
}

# one_host_cpu N: the host's CPU for the Nth VM whose CPUs must not really run at the same time: on those that
# QEMU emulates for x86, a guest is corrupted by that once in a while (README, "Status"). They are
# preempted anywhere instead. Nothing where that does not happen, or ACCEL= says what to do.
one_host_cpu()
{
	[ "$arch" = x86_64 ] && [ -z "${ACCEL:-}" ] && [ "$(accelerator)" = tcg ] || return 0
	sed -n 's/^Cpus_allowed_list:\t//p' /proc/self/status | tr , '\n' | while IFS=- read -r first last; do
		seq "$first" "${last:-$first}"
	done | awk -v n="$1" '{ cpu[NR - 1] = $1 } END { print cpu[n % NR] }'
}

probe_kvm()
{
	probe=$(mktemp -d)
	{ job list; job_program probe 10 / "" true; } >"$probe/job"
	(ACCEL=kvm; boot "$probe" "" </dev/null) && grep -qx 'R kvm yes' "$probe/report" &&
		echo kvm || echo tcg
	rm -r "$probe"
}

# An emulated CPU has the host's TSC. A kernel that has to find out its rate by itself, on a busy
# host, may be off by a factor of 30, and with it each timeout of each test: tell it.
tsc_rate()
{
	[ "$(uname -m)" = x86_64 ] || return 0
	if [ ! -e "$out/tsc_khz" ] || [ -n "$(find "$here/tsc_khz.c" -newer "$out/tsc_khz")" ]; then
		gcc -Wall -Wextra -Werror -O2 -o "$out/tsc_khz.new" "$here/tsc_khz.c" ||
			die "cannot build tsc_khz.c"
		mv "$out/tsc_khz.new" "$out/tsc_khz"
	fi
	echo "tsc_early_khz=$("$out/tsc_khz")"
}

# What the first boot makes: to be called before several boot at the same time.
prepare_boots()
{
	build_init
	accelerator >/dev/null
	[ "$arch" != x86_64 ] || tsc_rate >/dev/null
}

# boot_with PARAMETERS: from now on, as tests.list has them, or "-": smp=N for QEMU, others for the kernel.
boot_with()
{
	parameters=$(echo "${1#-}" | tr , ' ')
	case $parameters in
	smp=*)	SMP=${parameters%% *}; SMP=${SMP#smp=}; parameters=${parameters#"smp=$SMP"} ;;
	esac
	APPEND="$parameters ${APPEND:-}"
}

# boot DIR SECONDS [QEMU-ARG...]: run DIR/job in a VM until it is done or SECONDS have passed
# ("": no limit), on $host_cpu only if that says one. Leaves DIR/report, DIR/console.log and DIR/qemu.log.
boot()
{
	boot_dir=$1
	boot_limit=$2
	shift 2
	build_init
	initrd "$boot_dir"
	accel=$(accelerator)
	case $accel in
	kvm|tcg,*) ;;
	*)	accel=tcg,thread=multi ;;
	esac
	# Not every data race is one of ours, see tap.awk.
	panic_on_warn=1
	[ "$variant" != kcsan ] || panic_on_warn=0
	# To look for leaks takes the longer, the more memory there is; where huge pages of 1 GiB need much, a minute.
	mem=5G
	leaks=
	case "$variant ${APPEND:-}" in
	debug*hugepagesz=1G*) leaks=kmemleak=off ;;
	debug*)	mem=3G ;;
	esac
	append="panic=-1 panic_on_warn=$panic_on_warn oops=panic nmi_watchdog=0 softlockup_panic=0 $leaks ${APPEND:-}"
	case $arch in
	x86_64)
		qemu="qemu-system-x86_64 -M q35"
		case $accel in
		kvm)	qemu="$qemu -cpu host" ;;
		*)	qemu="$qemu -cpu EPYC,+svm,+npt" ;;
		esac
		# Counting instructions (make bench), the clock is another.
		case "$accel ${QEMU_ARGS:-}" in
		kvm*|*-icount*) ;;
		*)	append="$(tsc_rate) $append" ;;
		esac
		append="console=ttyS0 reboot=t tsc=reliable no_timer_check $append" ;;
	arm64)
		qemu="qemu-system-aarch64 -M virt,virtualization=on,gic-version=3,mte=on"
		qemu="$qemu -cpu max,pauth-impdef=on,lpa2=off,sve=off,sme=off"
		# Memory of a device, for a test.
		qemu="$qemu -object memory-backend-ram,id=ivshmem,size=2M"
		qemu="$qemu -device ivshmem-plain,memdev=ivshmem,addr=1e.0"
		append="console=ttyAMA0 $append" ;;
	esac
	# shellcheck disable=SC2086
	set -- $qemu -accel "$accel" -smp "${SMP:-2}" -m "${MEM:-$mem}" -kernel "$kernel" \
		-initrd "$boot_dir/initrd" -append "$append" \
		-nodefaults -no-user-config -display none -no-reboot -serial "file:$boot_dir/console.log" \
		-fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap \
		-device virtio-9p-pci,fsdev=host,mount_tag=host \
		-device virtio-serial-pci \
		-chardev "file,id=report,path=$boot_dir/report" \
		-device virtserialport,chardev=report,name=report "$@" ${QEMU_ARGS:-}
	[ -z "${host_cpu:-}" ] || set -- taskset -c "$host_cpu" "$@"
	[ -z "$boot_limit" ] || set -- timeout --foreground -k 5 "$boot_limit" "$@"
	: >"$boot_dir/report"
	"$@" 2>"$boot_dir/qemu.log"
}

# Lines of a kernel log that must not be there.
splat='WARNING:|BUG:|kernel BUG|Oops|Call Trace|INFO: (task|rcu|possible|suspicious|trying)|possible circular|suspicious RCU|rcu: INFO|KASAN|UBSAN|unreferenced object|general protection|Kernel panic|soft lockup|kernel log overrun'
