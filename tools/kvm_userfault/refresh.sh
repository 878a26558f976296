#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Save what has been edited in build/tree: kernel files as patches, new files as they are.

. "$(dirname "$0")/lib.sh"
. "$here/overlay.sh"

lock_build
[ -e "$build/base" ] || die "there is no $tree: run make tree"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# One line of context, no time stamps. git joins two hunks that are two lines apart; they are
# parted again, so that no two lines of the base stand together.
diff_file()
{
	base_git -c core.quotePath=false diff -U1 --no-color --no-ext-diff --diff-algorithm=myers HEAD -- "$1" |
		awk -f "$here/hunks.awk"
}

touched_files >"$tmp/touched"
while read -r file; do
	wanted "$file" "$tmp/want"
	case $(compare "$file" "$tmp/want") in
	conflict)
		conflict "$file" ;;
	stale)
		echo "$file.patch has changed, the tree has not: left for make tree"
		continue ;;
	esac
	[ -e "$tree/$file" ] || die "$file: removing a file of the kernel is more than a patch here can say"
	diff_file "$file" >"$tmp/diff"
	if [ ! -s "$tmp/diff" ]; then
		[ ! -e "$file.patch" ] || echo "$file.patch: removed, there is no edit left"
		rm -f "$file.patch"
	elif ! cmp -s "$tmp/diff" "$file.patch"; then
		mkdir -p "$(dirname "$file")"
		cat "$tmp/diff" >"$file.patch"
		echo "$file.patch: written"
	fi
	base_git add -f "$file"
done <"$tmp/touched"

# New files, and links that an editor replaced by a file.
base_git ls-files --others --exclude-from="$build/base.git/info/exclude" >"$tmp/others"
while read -r file; do
	[ ! -L "$tree/$file" ] || continue
	# shellcheck disable=SC3013
	if [ -e "$file" ] && ! cmp -s "$tree/$file" "$file" && [ ! "$tree/$file" -nt "$file" ]; then
		die "$file is newer than the copy of it in build/tree: merge by hand, or remove one of the two"
	fi
	mkdir -p "$(dirname "$file")"
	cmp -s "$tree/$file" "$file" || cp "$tree/$file" "$file"
	ln -sfn "$top/$file" "$tree/$file"
	echo "$file: taken over"
done <"$tmp/others"
