#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Remove what has been built; with the argument "tree" the kernel tree too, unless edits would be lost.

. "$(dirname "$0")/lib.sh"
. "$here/overlay.sh"

[ -d "$build" ] || exit 0
lock_build
if [ "${1:-}" = tree ]; then
	if [ -e "$build/base" ]; then
		edited=$(base_git diff --name-only; base_git ls-files --others \
			--exclude-from="$build/base.git/info/exclude" |
			while read -r file; do [ -L "$tree/$file" ] || echo "$file"; done)
		[ -z "$edited" ] || die "edits in build/tree would be lost: make refresh first, or remove $build by hand"
	fi
	rm -rf "$tree" "$build/tree.new" "$build/base.git" "$build/base"
fi
rm -rf "$build/x86_64" "$build"/x86_64-* "$build/arm64" "$build"/arm64-* "$logs" "$build"/check*.tap "$build/unit" "$build/style.passed" "$build/mutants" "$build/pristine"
[ "${1:-}" != tree ] || rm -rf "$build"
