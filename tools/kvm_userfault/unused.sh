#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Build KVM without CONFIG_KVM_USERFAULT, and compare its instructions with those of the base: but for the
# functions below they must be the same.

. "$(dirname "$0")/lib.sh"
. "$here/overlay.sh"

# The functions that the overlay changes whether or not there are userfaults: where faults and memslots
# have hooks, where requests are looked at, what splits and recovers huge pages now does so for a range; on Intel's
# CPUs a memory fault goes with a bus lock.
may_differ_generic()
{
	cat <<-EOF
	virt/kvm/guest_memfd.o kvm_gmem_get_pfn
	virt/kvm/guest_memfd.o kvm_gmem_is_bound
	virt/kvm/guest_memfd.o kvm_gmem_rebind
	virt/kvm/kvm_main.o kvm_set_memory_region.part.0
	virt/kvm/kvm_main.o kvm_set_memslot
	EOF
}

may_differ_x86_64()
{
	cat <<-EOF
	arch/x86/kvm/mmu/mmu.o kvm_handle_noslot_fault
	arch/x86/kvm/mmu/mmu.o kvm_mmu_do_page_fault
	arch/x86/kvm/mmu/mmu.o kvm_mmu_faultin_pfn
	arch/x86/kvm/mmu/mmu.o kvm_mmu_map_userfault
	arch/x86/kvm/mmu/mmu.o kvm_mmu_max_mapping_level
	arch/x86/kvm/mmu/mmu.o kvm_mmu_recover_huge_pages
	arch/x86/kvm/mmu/tdp_mmu.o kvm_tdp_mmu_recover_huge_pages
	arch/x86/kvm/mmu/tdp_mmu.o kvm_tdp_mmu_try_split_huge_pages
	arch/x86/kvm/mmu/tdp_mmu.o recover_huge_pages_range
	arch/x86/kvm/mmu/tdp_mmu.o tdp_mmu_split_huge_page
	arch/x86/kvm/mmu/tdp_mmu.o tdp_mmu_split_huge_pages_root
	arch/x86/kvm/vmx/vmx.o vmx_handle_exit
	arch/x86/kvm/x86.o kvm_arch_commit_memory_region
	arch/x86/kvm/x86.o kvm_arch_vcpu_ioctl_run
	EOF
}

# Of arm64, too: what is mended for HugeTLB pages with MTE and for permission faults, and where gcc has come to
# inline or not to inline. Alternatives follow the last function of a section, and go by its name:
# kvm_toggle_cache() and kvm_exit().
may_differ_arm64()
{
	cat <<-EOF
	arch/arm64/kvm/guest.o kvm_vm_ioctl_mte_copy_tags
	arch/arm64/kvm/mmu.o fault_supports_stage2_huge_mapping
	arch/arm64/kvm/mmu.o get_user_mapping_size
	arch/arm64/kvm/mmu.o kvm_handle_guest_abort
	arch/arm64/kvm/mmu.o kvm_sanitise_hugetlb_mte_tags
	arch/arm64/kvm/mmu.o kvm_toggle_cache
	arch/arm64/kvm/mmu.o user_mem_abort
	arch/arm64/kvm/nested.o kvm_handle_vncr_abort
	arch/arm64/kvm/pkvm.o pkvm_pgtable_stage2_mapped_smaller
	virt/kvm/kvm_main.o check_memory_region_flags.constprop.0.isra.0
	virt/kvm/kvm_main.o kvm_exit
	virt/kvm/kvm_main.o kvm_set_internal_memslot
	virt/kvm/kvm_main.o kvm_vcpu_ioctl
	virt/kvm/kvm_main.o kvm_vm_ioctl
	EOF
}

# struct_hunks FILE: of its patch, what adds fields that are there with and without userfaults.
struct_hunks()
{
	awk '
	/^@@/ { if (fields) printf "%s", hunk; hunk = ""; fields = 0; body = 1 }
	!body { print; next }
	{ hunk = hunk $0 "\n" }
	/^\+\t} userfault;|^\+\tu64 userfault_/ { fields = 1 }
	END { if (fields) printf "%s", hunk }' "$1.patch"
}

# The tree without the overlay, but with these fields: else the place of all that comes after them differs.
pristine_tree()
{
	rm -rf "$build/pristine"
	cp -al "$tree" "$build/pristine"
	overlay_whole | sed "s|^|$build/pristine/|" | xargs rm -f
	overlay_patched | while read -r file; do
		rm "$build/pristine/$file"
		base_git cat-file blob "HEAD:$file" >"$build/pristine/$file"
		case $file in
		*/kvm_host.h|*/kvm_types.h)
			struct_hunks "$file" >"$out/unused/hunks"
			! grep -q '^@@' "$out/unused/hunks" ||
				patch -s -F0 -r - "$build/pristine/$file" "$out/unused/hunks" ;;
		esac
	done
}

# The base, configured as the kernel without userfaults.
build_base()
{
	pristine_tree
	mkdir -p "$base"
	cp "$off/.config" "$base/.config"
	for target in olddefconfig "arch/$karch/kvm/"; do
		make -C "$build/pristine" O="$base" ARCH="$arch" CROSS_COMPILE="$cross" CC="$cc" HOSTCC="$hostcc" \
			-j"$jobs" -s "$target" || return
	done
}

# instructions BUILD: those of KVM, each after its function, with the symbols that they use; without what pads,
# and the numbers of strings. On arm64 without how far it is to where they jump, for that is over what pads.
instructions()
{
	case $arch in
	arm64)	jumps='s/<\([^>+]*\)+0x[0-9a-f]*>/<\1>/' ;;
	*)	jumps= ;;
	esac
	(cd "$1" && find "arch/$karch/kvm" virt/kvm -name '*.o' ! -name '*.tmp.o') | sort |
		while read -r object; do
			"${cross}objdump" -dr --no-addresses --no-show-raw-insn "$1/$object" |
				sed -e "$jumps" -e 's/\.LC[0-9]*/.LC/; s/\(R_[A-Z0-9_]*[ \t]*\.[a-z_.0-9]*\)[-+]0x[0-9a-f]*/\1/' |
				awk -v object="$object" '
					/^<.*>:$/ { name = substr($0, 2, length($0) - 3); next }
					NF && name != "" && !/^\t(nop|data16|cs nop|xchg +%ax,%ax)/ {
						print object " " name "\t" $0
					}'
		done | sort -s -t '	' -k 1,1
}

compare_with_base()
{
	instructions "$base" >"$out/unused/base.instructions"
	instructions "$off" >"$out/unused/off.instructions"
	diff "$out/unused/base.instructions" "$out/unused/off.instructions" |
		awk -F '\t' '/^[<>]/ { print substr($1, 3) }' | sort -u >"$out/unused/differ"
	{ may_differ_generic && "may_differ_$arch"; } | sort >"$out/unused/may_differ"
	say "functions of KVM that differ from the base" "$(wc -l <"$out/unused/differ"), see $out/unused/differ"
	comm -23 "$out/unused/differ" "$out/unused/may_differ" >"$out/unused/unknown"
	[ ! -s "$out/unused/unknown" ] || die "these may not differ: $(cat "$out/unused/unknown")"
}

off=$build/$arch-off/kernel
base=$out/unused/base
mkdir -p "$out/unused" "$logs"
"$here/tree.sh"
VARIANT=off "$here/kernel.sh"
step "build KVM of the base" "$logs/unused-$arch.log" build_base
compare_with_base
