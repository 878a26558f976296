#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Unpack the base kernel into build/tree, once, and lay the overlay over it.

. "$(dirname "$0")/lib.sh"
. "$here/overlay.sh"

lock_build
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

unpack()
{
	rm -rf "$tree" "$build/base.git" "$build/tree.new" &&
	mkdir -p "$build/tree.new" &&
	tar -xf "$1" -C "$build/tree.new" --strip-components=1
}

# Keep what the base looked like, in a git repository beside the tree (never inside it: the
# kernel's build would see it there). The threshold sends all blobs to one pack.
record()
{
	mv "$build/tree.new" "$tree" &&
	base_git init -q -b base &&
	base_git config core.fileMode false &&
	printf '%s\n' '*~' '*.orig' '*.rej' '.*.sw?' '*.o' '*.o.d' '*.cmd' '__pycache__' >"$build/base.git/info/exclude" &&
	base_git -c core.bigFileThreshold=1 -c core.compression=1 add -f -A &&
	base_git -c user.name=base -c user.email=base@localhost commit -q -m base
}

is_7_2()
{
	grep -qx 'VERSION = 7' "$1" && grep -qx 'PATCHLEVEL = 2' "$1"
}

# Stop if a number that our UAPI takes is in use in the base already.
check_uapi()
{
	base_git show HEAD:include/uapi/linux/kvm.h | awk '
	function taken(what) { printf "include/uapi/linux/kvm.h:%d: %s is taken: %s\n", NR, what, $0; bad = 1 }
	/^#define[ \t]+KVM_CAP_[A-Z0-9_]+[ \t]+250([ \t]|$)/	{ taken("capability 250") }
	/^#define.*_IO[WR]*\(KVMIO,[ \t]*0x[dD][67][,)]/	{ taken("ioctl 0xd6 or 0xd7") }
	/^#define[ \t]+KVM_MEM_[A-Z0-9_]+[ \t]+\(1UL+ << [34]\)/ { taken("memslot flag 3 or 4") }
	/^#define[ \t]+KVM_MEMORY_EXIT_FLAG_[A-Z0-9_]+[ \t]+\(1UL+ << [01245]\)/ { taken("memory exit flag 0, 1, 2, 4 or 5") }
	END { exit bad }' >&2 || die "this base uses numbers that KVM userfault takes: use another 7.2, or renumber"
}

if [ ! -e "$build/base" ]; then
	need_space "$build" 3000 "the kernel tree"
	tarball=$("$here/fetch.sh")
	base=$(basename "$tarball")
	step "unpack $base" "$logs/unpack.log" unpack "$tarball"
	is_7_2 "$build/tree.new/Makefile" ||
		die "$tarball is not Linux 7.2: set KERNEL_TARBALL= to a tarball of Linux 7.2"
	step "record the base" "$logs/unpack.log" record
	check_uapi
	echo "$base" >"$build/base"
elif [ "$(basename "${KERNEL_TARBALL:-$(cat "$build/base")}")" != "$(cat "$build/base")" ]; then
	die "$tree was made from $(cat "$build/base"): make refresh to save edits, then make distclean"
fi

start=$(now)
changed=0

# All patches must apply, and none meet an edit in the tree, before the first is laid.
mkdir "$tmp/new"
touched_files >"$tmp/touched"
n=0
while read -r file; do
	n=$((n + 1))
	wanted "$file" "$tmp/new/$n"
	state=$(compare "$file" "$tmp/new/$n")
	[ "$state" != conflict ] || conflict "$file"
	echo "$state $n $file"
done <"$tmp/touched" >"$tmp/states"
while read -r state n file; do
	case $state in
	stale)	cat "$tmp/new/$n" >"$tree/$file"; changed=$((changed + 1)) ;;
	edited)	continue ;;
	esac
	base_git add -f "$file"
done <"$tmp/states"

# New files are links, so that they are edited in place.
overlay_whole >"$tmp/whole"
while read -r file; do
	[ "$(readlink "$tree/$file" 2>/dev/null)" != "$top/$file" ] || continue
	[ -z "$(blob HEAD "$file")" ] || die "$file: the base has such a file, so ours must be $file.patch"
	if [ -e "$tree/$file" ] && [ ! -L "$tree/$file" ] && ! cmp -s "$file" "$tree/$file"; then
		die "$tree/$file is no link to ours, and differs from it: run make refresh, or remove it"
	fi
	mkdir -p "$(dirname "$tree/$file")"
	ln -sfn "$top/$file" "$tree/$file"
	changed=$((changed + 1))
done <"$tmp/whole"

# Links to files of ours that are gone.
base_git ls-files --others | while read -r file; do
	if [ -L "$tree/$file" ] && [ ! -e "$tree/$file" ]; then
		rm "$tree/$file"
	fi
done

say "lay the overlay" "$(since "$start"), $(overlay_files | wc -l) files, $changed changed"
