// SPDX-License-Identifier: GPL-2.0-only
/*
 * x86's part of KVM userfault: what arming, collapsing and resolving do to the
 * mappings of the guest.  See virt/kvm/userfault.c for who calls it and when.
 */
#include <linux/kvm_host.h>
#include <linux/kvm_userfault.h>

#include "mmu_internal.h"
#include "tdp_mmu.h"

void kvm_arch_userfault_resolved(struct kvm_vcpu *vcpu)
{
	/* With shadow paging the guest's page tables may have changed: fault again. */
	if (vcpu->arch.userfault.addr != INVALID_GPA)
		kvm_make_request(KVM_REQ_USERFAULT_RESOLVED, vcpu);
}

/* Split what reaches over @gfn, so that a mapping ends and another starts there. */
static int kvm_mmu_split_at(struct kvm *kvm, const struct kvm_memory_slot *slot,
			    gfn_t gfn)
{
	int level = PG_LEVEL_4K;

	while (level < KVM_MAX_HUGEPAGE_LEVEL &&
	       IS_ALIGNED(gfn, KVM_PAGES_PER_HPAGE(level + 1)))
		level++;

	/* Nothing reaches over the end of the memslot. */
	if (level == KVM_MAX_HUGEPAGE_LEVEL || !is_gfn_in_memslot(slot, gfn))
		return 0;

	return kvm_tdp_mmu_try_split_huge_pages(kvm, slot, gfn, gfn + 1, level, false);
}

/* Without a TLB flush: until the range is unmapped, translations stay the same. */
int kvm_arch_userfault_split(struct kvm *kvm, struct kvm_gfn_range *range)
{
	if (!tdp_mmu_enabled)
		return 0;

	return kvm_mmu_split_at(kvm, range->slot, range->start) +
	       kvm_mmu_split_at(kvm, range->slot, range->end);
}

int kvm_arch_userfault_collapse(struct kvm *kvm, struct kvm_gfn_range *range)
{
	const unsigned long block = KVM_PAGES_PER_HPAGE(PG_LEVEL_2M);
	const struct kvm_memory_slot *slot = range->slot;
	gfn_t gfn;

	/* Dirty logging wants small pages, guest_memfd does not have others. */
	if (kvm_slot_dirty_track_enabled(slot) || kvm_memslot_is_gmem_only(slot))
		return 0;

	/* Leave mmu_lock alone for as long as a page of each block is armed. */
	for (gfn = range->start; kvm_userfault_block_armed(slot, gfn, block);) {
		gfn = round_down(gfn, block) + block;
		if (gfn >= range->end)
			return 0;
	}

	return kvm_mmu_recover_huge_pages(kvm, slot, range->start, range->end);
}
