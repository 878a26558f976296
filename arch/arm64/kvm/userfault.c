// SPDX-License-Identifier: GPL-2.0-only
/*
 * arm64's part of KVM userfault: what arming, collapsing and resolving do to
 * stage 2.  See virt/kvm/userfault.c for who calls it and when.
 *
 * Only a fault replaces a table by a block.  Hence collapsing unmaps what is in
 * the way of a block, and the next access maps it.
 *
 * Shadow stage 2 tables know no way back from the IPA of L1 to that of L2: they
 * are dropped as a whole, once for all that changes at a time.
 */
#include <linux/kvm_host.h>
#include <linux/kvm_userfault.h>

#include <asm/kvm_mmu.h>
#include <asm/kvm_nested.h>
#include <asm/kvm_pgtable.h>
#include <asm/kvm_pkvm.h>

#define PAGES_PER_PMD	(PMD_SIZE / PAGE_SIZE)

void kvm_arch_userfault_resolved(struct kvm_vcpu *vcpu)
{
	kvm_make_request(KVM_REQ_USERFAULT_RESOLVED, vcpu);
}

bool kvm_arch_userfault_unmap(struct kvm *kvm, struct kvm_gfn_range *range)
{
	if (!kvm->arch.mmu.pgt)
		return false;

	kvm_stage2_unmap_range(&kvm->arch.mmu, gfn_to_gpa(range->start),
			       gfn_to_gpa(range->end - range->start),
			       range->may_block);
	return true;
}

/* Unmapping has flushed already, but for what L2 has mapped of it. */
void kvm_arch_userfault_flush(struct kvm *kvm)
{
	kvm_nested_s2_unmap(kvm, true);
}

/* The size of the entry at which a walk for @gfn ends, be it a mapping or not. */
static u64 stage2_entry_size(struct kvm *kvm, gfn_t gfn, kvm_pte_t *pte)
{
	s8 level;

	if (kvm_pgtable_get_leaf(kvm->arch.mmu.pgt, gfn_to_gpa(gfn), pte, &level)) {
		*pte = 0;
		return PAGE_SIZE;
	}

	return kvm_granule_size(level);
}

/*
 * How many splits it takes until no mapping has both @gfn, in the range that is to
 * be unmapped, and what lies on the other side of @boundary.
 */
static int stage2_nr_splits(struct kvm *kvm, gfn_t gfn, gfn_t boundary)
{
	kvm_pte_t pte;
	u64 size;

	if (!kvm->arch.mmu.pgt)
		return 0;

	size = stage2_entry_size(kvm, gfn, &pte);
	if (!kvm_pte_valid(pte) || IS_ALIGNED(gfn_to_gpa(boundary), size))
		return 0;

	/* Splitting would map a device as cacheable memory. */
	if (!pfn_is_map_memory(kvm_pte_to_pfn(pte)))
		return 0;

	return size > PMD_SIZE && !IS_ALIGNED(gfn_to_gpa(boundary), PMD_SIZE) ? 2 : 1;
}

static int stage2_split_at(struct kvm *kvm, gfn_t gfn, gfn_t boundary)
{
	struct kvm_mmu_memory_cache *cache = &kvm->arch.mmu.split_page_cache;
	int nr_split = stage2_nr_splits(kvm, gfn, boundary);
	int r;

	lockdep_assert_held(&kvm->slots_lock);

	if (!nr_split)
		return 0;

	/*
	 * One table for each split, and no more: with as many as eager splitting
	 * keeps here, all of a 1G block would be split into pages.  To allocate
	 * tables may sleep, and so may freeing a cache as large as that.
	 */
	write_unlock(&kvm->mmu_lock);
	kvm_mmu_free_memory_cache(cache);
	r = __kvm_mmu_topup_memory_cache(cache, nr_split, nr_split);
	write_lock(&kvm->mmu_lock);

	/* Meanwhile the mapping may have gone.  What is not split is unmapped. */
	if (r || !stage2_nr_splits(kvm, gfn, boundary)) {
		nr_split = 0;
	} else {
		/* Fails for want of tables where enough is split. */
		kvm_pgtable_stage2_split(kvm->arch.mmu.pgt, gfn_to_gpa(gfn),
					 PAGE_SIZE, cache);
		nr_split -= kvm_mmu_memory_cache_nr_free_objects(cache);
	}

	kvm_mmu_free_memory_cache(cache);
	return nr_split;
}

int kvm_arch_userfault_split(struct kvm *kvm, struct kvm_gfn_range *range)
{
	/* With pKVM the hypervisor has the tables, and does not split them. */
	if (is_protected_kvm_enabled())
		return 0;

	return stage2_split_at(kvm, range->start, range->start) +
	       stage2_split_at(kvm, range->end - 1, range->end);
}

/* Is the block of @gfn, of @size, mapped by smaller entries? */
static bool stage2_mapped_smaller(struct kvm *kvm, gfn_t gfn, u64 size)
{
	kvm_pte_t pte;

	if (is_protected_kvm_enabled())
		return pkvm_pgtable_stage2_mapped_smaller(kvm->arch.mmu.pgt,
							  ALIGN_DOWN(gfn_to_gpa(gfn), size),
							  size);

	/* An entry as large as the block: it is a mapping, or there is none at all. */
	return stage2_entry_size(kvm, gfn, &pte) < size;
}

/*
 * The largest block there is, of the table at which walks start: VMs of few IPA bits
 * do without the tables above.
 */
static u64 stage2_max_block_size(struct kvm *kvm)
{
	if (!kvm->arch.mmu.pgt)
		return 0;

	if (is_protected_kvm_enabled())
		return PMD_SIZE;

	return kvm_granule_size(kvm->arch.mmu.pgt->start_level);
}

/* How large a mapping of @gfn its backing, its memslot and armed pages allow. */
static u64 stage2_max_mapping_size(struct kvm *kvm, const struct kvm_memory_slot *slot,
				   gfn_t gfn)
{
	const u64 sizes[] = { PUD_SIZE, PMD_SIZE };
	unsigned long hva = __gfn_to_hva_memslot(slot, gfn);
	int backing = get_user_mapping_size(kvm, hva);
	u64 max_size = stage2_max_block_size(kvm);
	int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++)
		if (backing > 0 && backing >= sizes[i] && sizes[i] <= max_size &&
		    fault_supports_stage2_huge_mapping(slot, hva, sizes[i]) &&
		    !kvm_userfault_block_armed(slot, gfn, sizes[i] / PAGE_SIZE))
			return sizes[i];

	return PAGE_SIZE;
}

/*
 * Unmap the block of @gfn if it is mapped by smaller entries than need be.  Should
 * the backing be invalidated meanwhile, then nothing is lost but the mapping.
 */
static bool stage2_collapse_block(struct kvm *kvm, const struct kvm_memory_slot *slot,
				  gfn_t gfn, u64 *size)
{
	guard(write_lock)(&kvm->mmu_lock);

	*size = stage2_max_mapping_size(kvm, slot, gfn);
	if (*size == PAGE_SIZE || !stage2_mapped_smaller(kvm, gfn, *size))
		return false;

	kvm_stage2_unmap_range(&kvm->arch.mmu, ALIGN_DOWN(gfn_to_gpa(gfn), *size),
			       *size, false);
	return true;
}

/*
 * Faults choose the size before they take mmu_lock: those that have found a page armed
 * which is clear now are about to map a small one.  Have them look again.
 */
static void stage2_retry_faults(struct kvm *kvm, gfn_t start, gfn_t end)
{
	guard(write_lock)(&kvm->mmu_lock);

	kvm_mmu_invalidate_start(kvm);
	kvm_mmu_invalidate_range_add(kvm, start, end);
	kvm_mmu_invalidate_end(kvm);
}

/*
 * See to it that the blocks which [@start, @end) of the memslot touches are mapped
 * as large as can be by the next access to each.  Returns how many were not.
 */
int kvm_stage2_collapse(struct kvm *kvm, const struct kvm_memory_slot *slot,
			gfn_t start, gfn_t end)
{
	bool any_clear = false, any_large = false;
	int nr_collapsed = 0;
	u64 size;
	gfn_t gfn;

	/* Dirty logging wants small pages, guest_memfd does not have others. */
	if (kvm_slot_dirty_track_enabled(slot) || kvm_slot_has_gmem(slot))
		return 0;

	for (gfn = start; gfn < end; gfn = gpa_to_gfn(ALIGN(gfn_to_gpa(gfn) + 1, size))) {
		size = PMD_SIZE;

		/* Leave mmu_lock alone for as long as a page of the block is armed. */
		if (kvm_userfault_block_armed(slot, gfn, PAGES_PER_PMD))
			continue;

		if (!any_clear)
			stage2_retry_faults(kvm, start, end);
		any_clear = true;

		nr_collapsed += stage2_collapse_block(kvm, slot, gfn, &size);
		any_large |= size > PAGE_SIZE;
		size = max(size, PMD_SIZE);
		cond_resched();
	}

	/* Whether L2 has small mappings, those of L1 do not tell. */
	if (any_large) {
		guard(write_lock)(&kvm->mmu_lock);
		kvm_nested_s2_unmap(kvm, true);
	}

	return nr_collapsed;
}

int kvm_arch_userfault_collapse(struct kvm *kvm, struct kvm_gfn_range *range)
{
	return kvm_stage2_collapse(kvm, range->slot, range->start, range->end);
}
