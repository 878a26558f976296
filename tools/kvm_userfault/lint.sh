#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Check the form of what is ours: lint.sh patches|spdx|scripts|mutants|style|warnings|coccinelle|clang-tidy.

. "$(dirname "$0")/lib.sh"
. "$here/overlay.sh"

[ -e "$build/base" ] || die "there is no $tree: run make tree"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
bad=0

complain()
{
	echo "$*"
	bad=1
}

# X.patch edits X and nothing else, quotes no two lines of Linux together, applies as it stands.
lint_patches()
{
	for file in $(overlay_patched); do
		printf -- '--- a/%s\n+++ b/%s\n' "$file" "$file" >"$tmp/header"
		grep -E '^(--- [^ ]*/|\+\+\+ [^ ]*/|diff |index |rename |new file)' "$file.patch" | cmp -s - "$tmp/header" ||
			complain "$file.patch: its header is not that of a patch to $file alone: make refresh"
		awk '/^@@/ { context = 0 } /^ / { if (++context > 1) exit 1 } /^[-+]/ { context = 0 }' "$file.patch" ||
			complain "$file.patch: more than one line of context: make refresh"
		base_git cat-file blob "HEAD:$file" >"$tmp/pristine" 2>/dev/null ||
			complain "$file.patch: the base has no $file"
		patch --verbose -F0 -r - -o "$tmp/out" "$tmp/pristine" "$file.patch" >"$tmp/log" 2>&1 ||
			complain "$file.patch: does not apply"
		! grep -E 'offset|fuzz' "$tmp/log" ||
			complain "$file.patch: applies elsewhere than it says: make refresh"
	done
	overlay_files | while read -r file; do
		case $file in
		*.patch) ;;
		*)	[ -z "$(blob HEAD "$file")" ] || echo "$file: a file of the kernel, copied whole" ;;
		esac
	done >"$tmp/copies"
	[ ! -s "$tmp/copies" ] || complain "$(cat "$tmp/copies")"
}

our_files()
{
	git -c safe.directory="$top" ls-files --cached --others --exclude-standard | while read -r file; do
		[ ! -f "$file" ] || echo "$file"
	done
}

# Every file says its licence at its top, but for patches, which have the licence of what they edit.
lint_spdx()
{
	for file in $(our_files | grep -v '\.patch$'); do
		head -n 3 "$file" | grep -q 'SPDX-License-Identifier: .*GPL-2\.0' ||
			complain "$file: no SPDX line with GPL-2.0 at its top"
	done
}

lint_scripts()
{
	for file in $(our_files); do
		case $(head -n 1 "$file" | tr -d '\0'):$file in
		"#!"*sh:*|*:tools/kvm_userfault/lib.sh|*:tools/kvm_userfault/overlay.sh|*:tools/kvm_userfault/qemu.sh)
			shellcheck -x -P SCRIPTDIR "$file" || bad=1 ;;
		esac
	done
}

# checkpatch leaves out what only a mail to the list has, or what the layout here brings:
#	COMMIT_MESSAGE, MISSING_SIGN_OFF	there is no mail
#	FILE_PATH_CHANGES		MAINTAINERS goes with the series
# and, by kind of file:
#	headers of tracepoints		are no C that checkpatch knows
#	programs (tools/)		have none of the kernel's macros for attributes, nor for bits
checkpatch()
{
	ignore=COMMIT_MESSAGE,MISSING_SIGN_OFF,FILE_PATH_CHANGES
	case $file in
	include/trace/events/*)
		ignore=$ignore,COMPLEX_MACRO,OPEN_ENDED_LINE,PARENTHESIS_ALIGNMENT ;;
	tools/*)
		ignore=$ignore,PREFER_DEFINED_ATTRIBUTE_MACRO,BIT_MACRO ;;
	esac
	(cd "$tree" && perl scripts/checkpatch.pl --strict --terse --no-summary --show-types --ignore "$ignore" "$@")
}

# What has passed need not be checked again for as long as it, the base and this script stay the same.
lint_style()
{
	: >>"$build/style.passed"
	for whole in $(our_files); do
		key=$(cat "$build/base" "$here/lint.sh" "$whole" | sha256sum | sed "s|-|$whole|")
		! grep -Fqx "$key" "$build/style.passed" || continue
		file=$whole
		case $file in
		*.patch)
			file=${file%.patch}
			patched "$file" "$tmp/new"
			diff -U10 --label "a/$file" --label "b/$file" "$tmp/new.pristine" "$tmp/new" |
				checkpatch - | sed "s|^|$file.patch: |" >"$tmp/log" ;;
		*.c|*.h|*.S)
			checkpatch -f "$top/$file" >"$tmp/log" || : ;;
		*)	continue ;;
		esac
		if [ -s "$tmp/log" ]; then
			complain "$(cat "$tmp/log")"
		else
			echo "$key" >>"$build/style.passed"
		fi
	done
}

# Which lines of the built tree are ours: FILE:LINE for patches, FILE for whole files.
our_lines()
{
	overlay_whole
	base_git diff -U0 HEAD | awk '
	/^\+\+\+ b\// { file = substr($2, 3) }
	/^@@ / {
		split(substr($3, 2), span, ",")
		n = span[2] == "" ? 1 : span[2]
		for (i = 0; i < n; i++)
			print file ":" span[1] + i
	}'
}

# complain_of_ours FILE: its lines, FILE:LINE:..., that are about lines of ours, as in $tmp/ours.
complain_of_ours()
{
	awk 'NR == FNR { ours[$1] = 1; next }
		{
			split($1, at, ":")
			if (at[1] in ours || (at[1] ":" at[2]) in ours)
				print
		}' "$tmp/ours" "$1" >"$tmp/log"
	[ ! -s "$tmp/log" ] || complain "$(cat "$tmp/log")"
}

# Debian 12's sparse lacks a keyword of C23 that the kernel has come to use.
lint_make()
{
	make -C "$tree" O="$out/lint" ARCH="$kbuild_arch" CROSS_COMPILE="$cross" CC="$cc" -s \
		CHECK="sparse -D__typeof_unqual__=__typeof__" "$@"
}

# The objects of KVM that have lines of ours, as its Makefile calls them, but for those that the kernel has not.
our_objects()
{
	{
		overlay_patched
		overlay_whole
	} | sed -n "s|^\(arch/$karch/kvm/.*\)\.c\$|\1.o|p; s|^virt/kvm/\(.*\)\.c\$|arch/$karch/kvm/../../../virt/kvm/\1.o|p" |
		while read -r object; do
			[ ! -e "$out/kernel/$object" ] || echo "$object"
		done
}

# What the kernel's build has prepared need not be done again.
prepare_lint()
{
	cmp -s "$out/kernel/.config" "$o/.config" && return
	mkdir -p "$o"
	rsync -a --delete --include='/scripts/***' --include='/tools/***' --exclude='*.o' --exclude='vmlinux*' \
		"$out/kernel/" "$o/"
	lint_make -j"$jobs" prepare || die "cannot prepare $o"
}

# What a compiler says, with paths from the top of the tree.
from_top()
{
	sed -E "s|^($tree/\|(\.\./)+tree/)||; :up; s|[^/]+/\.\./||; t up" "$1"
}

# gcc's further warnings and sparse's, on KVM; only lines of ours count. Both speak only when they
# compile: after a run without complaints what is unchanged stays, after any other all goes.
lint_warnings()
{
	lock_build
	o=$out/lint
	prepare_lint
	if [ ! -e "$o/clean" ]; then
		find "$o/arch/$karch/kvm" "$o/virt/kvm" -name '*.o' -delete 2>/dev/null || :
	fi
	rm -f "$o/clean"
	# shellcheck disable=SC2046
	lint_make -k -j"$jobs" W=1 C=1 $(our_objects) >"$tmp/all" 2>&1 || bad=1
	our_lines >"$tmp/ours"
	[ "$bad" -eq 0 ] || cat "$tmp/all"
	from_top "$tmp/all" | grep -E ': (warning|error|note):' >"$tmp/warnings" || :
	complain_of_ours "$tmp/warnings"
	[ "$bad" -ne 0 ] || : >"$o/clean"
}

# What the kernel's scripts for Coccinelle find in KVM; only lines of ours count. Not those that need OCaml, nor
# mini_lock.cocci: it does not know that a caller holds the lock, which is dropped and taken again on the way.
lint_coccinelle()
{
	our_lines >"$tmp/ours"
	files=$(sed 's/:[0-9]*$//' "$tmp/ours" | grep -E "^(arch/$karch|virt)/kvm/.*\.c$" | sort -u)
	cd "$tree"
	scripts=$(grep -rl --include='*.cocci' '^virtual report' scripts/coccinelle | xargs grep -L 'script:ocaml' |
		grep -v /mini_lock.cocci)
	for script in $scripts; do
		# shellcheck disable=SC2046,SC2086
		spatch -D report --no-show-diff --very-quiet --cocci-file "$script" \
			$(sed -n 's|^// Options:||p' "$script") $files >"$tmp/found" 2>"$tmp/err" ||
			complain "$script: $(tail -n 1 "$tmp/err")"
		complain_of_ours "$tmp/found"
	done
	echo "$(echo "$scripts" | wc -w) scripts, $(echo "$files" | wc -w) files of KVM"
}

# What clang-tidy, with its static analyzer, finds in KVM as it has been built; only lines of ours count. Clang
# gets the options that it shares with gcc. It does not know that a memslot whose flags change is there.
lint_clang_tidy()
{
	our_lines >"$tmp/ours"
	# shellcheck disable=SC2046
	set -- $(our_objects | sed 's|\(.*\)/|\1/.|; s|$|.cmd|')
	target=$("${cross}gcc" -dumpmachine)
	cd "$out/kernel"
	for cmd; do
		options=$(sed -n 's/^savedcmd_[^ ]* := \(.*\) -c -o .*/\1/p' "$cmd" | tr -d "'" | grep -oE \
			' (-include |-I ?|-D|-std=)[^ ]+| -(nostdinc|fms-extensions|fshort-wchar)') ||
			die "$cmd: there is no such build: run make kernel"
		source=$(sed -n 's/^savedcmd_.* \([^ ]*\.c\) .*/\1/p' "$cmd")
		# shellcheck disable=SC2086
		clang-tidy --quiet --checks='-*,linuxkernel-*,clang-analyzer-*' "$source" \
			-- --target="$target" $options -w >"$tmp/all" 2>"$tmp/err" ||
			complain "$source: $(cat "$tmp/err" "$tmp/all")"
		from_top "$tmp/all" | grep -E ': (warning|error):' |
			grep -vE "/(x86|arm64/kvm/mmu).c:.* '(base_gfn|flags)' .* 'new'" >"$tmp/found" || :
		complain_of_ours "$tmp/found"
	done
	echo "$# files of KVM"
}

case $1 in
patches)	lint_patches ;;
spdx)		lint_spdx ;;
scripts)	lint_scripts ;;
mutants)	"$here/mutants.sh" apply || bad=1 ;;
style)		lint_style ;;
warnings)	lint_warnings ;;
coccinelle)	lint_coccinelle ;;
clang-tidy)	lint_clang_tidy ;;
esac
exit "$bad"
