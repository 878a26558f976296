# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=sh disable=SC2034,SC2154
# Sourced after lib.sh by what reads the overlay: which files it has, what a patch makes of the base,
# and how that compares with the tree.

# The overlay's files, relative to the top: the directories that mirror the kernel tree, and
# patches to files at its top level.
overlay_files()
{
	prune=
	for dir in $own_dirs; do
		prune="$prune -path $dir -prune -o"
	done
	for dir in */; do
		dir=${dir%/}
		[ -d "$tree/$dir" ] || continue
		# shellcheck disable=SC2086
		find "$dir" $prune -type f ! -name '*~' ! -name '*.orig' ! -name '*.rej' \
			! -name '.*.sw?' ! -name '*.o' -print
	done | sort
	for file in *.patch; do
		[ ! -f "$file" ] || echo "$file"
	done
}

overlay_patched()
{
	overlay_files | sed -n 's/\.patch$//p'
}

overlay_whole()
{
	overlay_files | grep -v '\.patch$' || :
}

# patched FILE OUTPUT: the pristine FILE with its patch, in OUTPUT.
patched()
{
	base_git cat-file blob "HEAD:$1" >"$2.pristine" 2>/dev/null ||
		die "$1.patch: the base ($(cat "$build/base")) has no $1"
	patch -s -F0 -r - -o "$2" "$2.pristine" "$1.patch" >"$2.log" 2>&1 || {
		cat "$2.log" >&2
		die "$1.patch does not apply to $(cat "$build/base"): mend the patch, or use the base it was made for"
	}
}

# The blob of FILE in HEAD or, with "", in the index; nothing if it is not there.
blob()
{
	base_git rev-parse -q --verify "$1:$2" 2>/dev/null || :
}

# The blob that a file's content would be, and nothing for no file.
blob_of()
{
	[ ! -e "$1" ] || base_git hash-object --no-filters "$1"
}

# compare FILE CONTENT: hold what the repository wants of FILE against what was last laid and
# what the tree has. Prints one word:
#   same      the tree has what the repository wants
#   edited    the tree has been edited since it was laid
#   stale     the repository has changed since
#   conflict  both
compare()
{
	want=$(blob_of "$2")
	work=$(blob_of "$tree/$1")
	index=$(blob "" "$1")
	if [ "$work" = "$want" ]; then
		echo same
	elif [ "$index" = "$want" ]; then
		echo edited
	elif [ "$index" = "$work" ]; then
		echo stale
	else
		echo conflict
	fi
}

conflict()
{
	die "$1: edited in build/tree since make refresh, while $1.patch has changed too: merge by hand, or undo one of the two"
}

# Every file that has, or had when it was laid, or needs a patch.
touched_files()
{
	{
		overlay_patched
		base_git diff --name-only HEAD
		base_git diff --name-only --cached HEAD
	} | sort -u
}

# wanted FILE OUTPUT: what the repository wants of FILE.
wanted()
{
	if [ -e "$1.patch" ]; then
		patched "$1" "$2"
	else
		base_git cat-file blob "HEAD:$1" >"$2"
	fi
}
