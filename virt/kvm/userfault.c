// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM userfault: a vCPU that touches an armed page exits to userspace.
 *
 * Each memslot with KVM_MEM_USERFAULT has a bitmap with one bit per page.  The
 * bitmap is the only state there is: a page is armed, i.e. not to be mapped,
 * while its bit is 1.  Userspace arms and clears ranges with
 * KVM_SET_USERFAULT_RANGE, clears what an exit reported by KVM_RUN, and can create
 * the bitmap with all bits set.  See Documentation/virt/kvm/userfault.rst for what
 * it is good for.
 *
 * Lock order: slots_lock -> mmu_lock; nothing is copied from or to userspace
 * with either held.
 *
 * Clearing takes no lock at all: it finds the memslot under SRCU and clears the
 * bits atomically, with release semantics.  A fault that reads the bit with
 * acquire semantics and finds it clear sees all that the clearing thread wrote
 * into the page before.
 *
 * Arming takes slots_lock, and mmu_lock for write.  slots_lock is held until an
 * update of the memslots is through its SRCU grace period, hence no vCPU uses an
 * older memslot, one without this bitmap, while pages are armed:
 *
 *   arm, under mmu_lock             fault
 *   -------------------             -----
 *   mmu_invalidate_in_progress++    seq = mmu_invalidate_seq
 *   set the bits                    smp_rmb()
 *   unmap, flush                    exit if the bit of the page is 1
 *   mmu_invalidate_seq++            look the pfn up
 *   mmu_invalidate_in_progress--    lock mmu_lock
 *                                   retry if seq or the progress say so
 *                                   4K unless no bit of the block is 1
 *                                   map, unlock mmu_lock
 *
 * If the fault locks mmu_lock first, then arming unmaps what it maps.  If arming
 * does, then the stale check catches a fault on an armed page, and the bits,
 * which are read after it, keep a fault on a page next to it from mapping the
 * armed one along with its own.  arm64 reads them before it locks mmu_lock: there
 * the stale check retries whatever page has been armed.
 */
#include <linux/kvm_host.h>
#include <linux/kvm_userfault.h>

#include <linux/bitmap.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/uaccess.h>

#include "kvm_mm.h"
#include "userfault_bitmap.h"

#define CREATE_TRACE_POINTS
#include <trace/events/kvm_userfault.h>

#define USERFAULT_SET_FLAGS	(KVM_USERFAULT_ARM | KVM_USERFAULT_COLLAPSE | \
				 KVM_USERFAULT_BITMAP)

/*
 * How many pages to work on before looking for signals and other work; what
 * has a user bitmap is bound by the copy of it, which goes on the stack so that
 * the ioctls allocate nothing.
 */
#define USERFAULT_CHUNK_PAGES	(SZ_1G >> PAGE_SHIFT)
#define USERFAULT_BITMAP_PAGES	4096UL

/* The part [@start, @end) of a range, small enough to be worked on in one go. */
struct userfault_chunk {
	struct kvm *kvm;
	unsigned long as_mask;
	gfn_t start;
	gfn_t end;

	/* SET: what of the chunk to change, bit 0 is @start; NULL: all of it. */
	const unsigned long *select;
	bool arm;
	unsigned long changed;

	/* GET: where the state goes, bit 0 is @start. */
	unsigned long *state;

	/* Lookup: do any memslots have pages of the chunk, and all of these a bitmap? */
	bool any;
	bool armable;
};

typedef void (*userfault_fn_t)(struct userfault_chunk *chunk,
			       struct kvm_memory_slot *slot,
			       gfn_t start, gfn_t end);

/*
 * Call @fn for the part of each memslot that lies in @chunk.  KVM's internal
 * memslots are no concern of userspace: for it they are holes.  A memslot that
 * is about to be deleted or moved is still there until it is gone.
 */
static __always_inline void userfault_walk_slots(struct userfault_chunk *chunk,
						 userfault_fn_t fn)
{
	struct kvm_memslot_iter iter;
	struct kvm_memslots *slots;
	unsigned long as_id;

	for_each_set_bit(as_id, &chunk->as_mask, KVM_MAX_NR_ADDRESS_SPACES) {
		slots = __kvm_memslots(chunk->kvm, as_id);

		kvm_for_each_memslot_in_gfn_range(&iter, slots, chunk->start, chunk->end) {
			struct kvm_memory_slot *slot = iter.slot;

			if (slot->id >= KVM_USER_MEM_SLOTS)
				continue;

			fn(chunk, slot, max(chunk->start, slot->base_gfn),
			   min(chunk->end, slot->base_gfn + slot->npages));

			/* Mostly there is no other: do without looking it up. */
			if (chunk->end <= slot->base_gfn + slot->npages)
				break;
		}
	}
}

static void userfault_look_up(struct userfault_chunk *chunk,
			      struct kvm_memory_slot *slot,
			      gfn_t start, gfn_t end)
{
	chunk->any = true;
	if (!slot->userfault_bitmap)
		chunk->armable = false;
}

static void userfault_change(struct userfault_chunk *chunk,
			     struct kvm_memory_slot *slot,
			     gfn_t start, gfn_t end)
{
	if (!slot->userfault_bitmap)
		return;

	chunk->changed += userfault_bitmap_change(slot->userfault_bitmap,
						  start - slot->base_gfn,
						  end - start, chunk->select,
						  start - chunk->start,
						  chunk->arm);
}

static void userfault_get(struct userfault_chunk *chunk,
			  struct kvm_memory_slot *slot, gfn_t start, gfn_t end)
{
	if (!slot->userfault_bitmap)
		return;

	userfault_bitmap_get(chunk->state, start - chunk->start,
			     slot->userfault_bitmap, start - slot->base_gfn,
			     end - start);
}

/* Fill in the next run of pages, of those in [@start, @end), to be armed. */
static bool userfault_next_run(struct userfault_chunk *chunk, gfn_t start,
			       gfn_t end, struct kvm_gfn_range *range)
{
	unsigned long from = start - chunk->start;
	unsigned long to = end - chunk->start;

	if (chunk->select) {
		from = find_next_bit(chunk->select, to, from);
		to = find_next_zero_bit(chunk->select, to, from);
	}

	range->start = chunk->start + from;
	range->end = chunk->start + to;
	return from < to;
}

static void userfault_split(struct userfault_chunk *chunk,
			    struct kvm_memory_slot *slot,
			    gfn_t start, gfn_t end)
{
	struct kvm_gfn_range range = { .slot = slot };
	int nr_split;

	for (; userfault_next_run(chunk, start, end, &range); start = range.end) {
		nr_split = kvm_arch_userfault_split(chunk->kvm, &range);
		if (!nr_split)
			continue;

		chunk->kvm->stat.generic.userfault_splits += nr_split;
		trace_kvm_userfault_split(slot->as_id, range.start, range.end, nr_split);
	}
}

/*
 * Unmap what is to be armed and flush, before mmu_lock can be dropped: while a
 * page is unmapped but not flushed, an invalidation by the primary MMU would find
 * nothing to do and free the page under a vCPU that still uses it.  Hence do not
 * yield between the runs of pages that the user bitmap selects.  (For nested guests
 * arm64 does: of theirs it unmaps everything, with flushes of its own.)
 *
 * Flush everything: a huge mapping that could not be split goes as a whole, and
 * reaches beyond the range.
 */
static void userfault_unmap(struct userfault_chunk *chunk,
			    struct kvm_memory_slot *slot,
			    gfn_t start, gfn_t end)
{
	struct kvm_gfn_range range = {
		.slot = slot,
		.attr_filter = KVM_FILTER_SHARED | KVM_FILTER_PRIVATE,
		.may_block = !chunk->select,
	};
	bool flush = false;

	for (; userfault_next_run(chunk, start, end, &range); start = range.end)
		flush |= kvm_arch_userfault_unmap(chunk->kvm, &range);

	if (flush)
		kvm_arch_userfault_flush(chunk->kvm);
}

static void userfault_collapse(struct userfault_chunk *chunk,
			       struct kvm_memory_slot *slot,
			       gfn_t start, gfn_t end)
{
	struct kvm_gfn_range range = { .slot = slot, .start = start, .end = end };
	int nr_collapsed;

	if (!slot->userfault_bitmap || slot->flags & KVM_MEMSLOT_INVALID)
		return;

	nr_collapsed = kvm_arch_userfault_collapse(chunk->kvm, &range);
	if (!nr_collapsed)
		return;

	/* No lock is held, unlike for splits. */
	atomic64_add(nr_collapsed, &chunk->kvm->stat.generic.userfault_collapses);
	trace_kvm_userfault_collapse(slot->as_id, start, end, nr_collapsed);
}

/*
 * Pages have just been armed, by this call or, those that had been before, once
 * more: no resolve of an earlier exit may undo that.  Say so only now: an exit
 * that comes while the bits are being set is an earlier one.
 */
static void userfault_drop_resolves(struct kvm *kvm)
{
	lockdep_assert_held(&kvm->slots_lock);

	WRITE_ONCE(kvm->userfault_arm_seq, kvm->userfault_arm_seq + 1);
}

static void userfault_arm(struct userfault_chunk *chunk)
{
	struct kvm *kvm = chunk->kvm;

	lockdep_assert_held(&kvm->slots_lock);

	KVM_MMU_LOCK(kvm);
	kvm_mmu_invalidate_start(kvm);
	kvm_mmu_invalidate_range_add(kvm, chunk->start, chunk->end);

	/*
	 * Set all bits before changing any mapping: that may drop mmu_lock, and
	 * a fault that then maps a page next to the chunk has to see them.
	 */
	userfault_walk_slots(chunk, userfault_change);
	userfault_drop_resolves(kvm);
	if (chunk->changed) {
		userfault_walk_slots(chunk, userfault_split);
		userfault_walk_slots(chunk, userfault_unmap);
	}

	kvm_mmu_invalidate_end(kvm);
	KVM_MMU_UNLOCK(kvm);
}

/* May all of [@start, @end) be armed?  Holes may, but not if there is nothing else. */
static bool userfault_can_arm(struct kvm *kvm, unsigned long as_mask,
			      gfn_t start, gfn_t end)
{
	struct userfault_chunk all = {
		.kvm = kvm,
		.as_mask = as_mask,
		.start = start,
		.end = end,
		.armable = true,
	};

	userfault_walk_slots(&all, userfault_look_up);

	return all.any && all.armable;
}

/* Arm @chunk if all from its start to @end, which is not before its end, can be. */
static int userfault_check_and_arm(struct userfault_chunk *chunk, gfn_t end)
{
	struct kvm *kvm = chunk->kvm;
	int r = 0;

	if (mutex_lock_killable(&kvm->slots_lock))
		return -EINTR;

	if (userfault_can_arm(kvm, chunk->as_mask, chunk->start, end))
		userfault_arm(chunk);
	else
		r = -ENOENT;

	mutex_unlock(&kvm->slots_lock);
	return r;
}

/*
 * Nothing serialises COLLAPSE with an update of the memslot, but the update goes
 * on only when all are through that found the memslot as it was: e.g. enabling
 * dirty logging splits and write-protects after it.
 */
static void userfault_clear(struct userfault_chunk *chunk, bool collapse)
{
	guard(srcu)(&chunk->kvm->srcu);

	userfault_walk_slots(chunk, userfault_change);
	if (collapse)
		userfault_walk_slots(chunk, userfault_collapse);
}

/* Move @range on past its first @nr_pages: all of it, or a multiple of 64. */
static void userfault_advance(struct kvm_userfault_range *range, u64 nr_pages)
{
	range->gpa += nr_pages << PAGE_SHIFT;
	range->size -= nr_pages << PAGE_SHIFT;
	if (range->bitmap)
		range->bitmap += nr_pages / BITS_PER_BYTE;
}

/* The first page in [@start, @end) that one of @slots has, or @end. */
static gfn_t userfault_first_page(struct kvm_memslots *slots, gfn_t start, gfn_t end)
{
	struct kvm_memslot_iter iter;

	kvm_for_each_memslot_in_gfn_range(&iter, slots, start, end) {
		if (iter.slot->id < KVM_USER_MEM_SLOTS)
			return max(start, iter.slot->base_gfn);
	}

	return end;
}

/* Move @range on to its first page that a memslot has, or to its end. */
static void userfault_skip_hole(struct kvm *kvm, unsigned long as_mask,
				struct kvm_userfault_range *range)
{
	gfn_t start = gpa_to_gfn(range->gpa);
	gfn_t end = start + (range->size >> PAGE_SHIFT);
	gfn_t first = end;
	unsigned long as_id;

	scoped_guard(srcu, &kvm->srcu) {
		for_each_set_bit(as_id, &as_mask, KVM_MAX_NR_ADDRESS_SPACES)
			first = userfault_first_page(__kvm_memslots(kvm, as_id),
						     start, first);
	}

	if (first != end)
		first = start + round_down(first - start, 64);
	userfault_advance(range, first - start);
}

static unsigned long userfault_all_as(struct kvm *kvm)
{
	return GENMASK(kvm_arch_nr_memslot_as_ids(kvm) - 1, 0);
}

static void __user *userfault_bitmap_ptr(const struct kvm_userfault_range *range)
{
	return u64_to_user_ptr(range->bitmap);
}

/* One rule after the other, in the order of the table in userfault.rst. */
static int userfault_check_range(struct kvm *kvm,
				 const struct kvm_userfault_range *range,
				 u64 supported_flags, bool has_bitmap)
{
	u64 bitmap_size = DIV_ROUND_UP(range->size >> PAGE_SHIFT, BITS_PER_BYTE);

	if (range->flags & ~supported_flags)
		return -EINVAL;
	if (range->flags & KVM_USERFAULT_ARM && range->flags & KVM_USERFAULT_COLLAPSE)
		return -EINVAL;

	if (!PAGE_ALIGNED(range->gpa) || !PAGE_ALIGNED(range->size))
		return -EINVAL;
	if (!range->size || range->gpa + range->size < range->gpa)
		return -EINVAL;

	if (has_bitmap != !!range->bitmap)
		return -EINVAL;
	if (!IS_ALIGNED(range->bitmap, sizeof(u64)))
		return -EINVAL;
	if (range->bitmap != (unsigned long)range->bitmap)
		return -EINVAL;
	if (has_bitmap && (bitmap_size != (unsigned long)bitmap_size ||
			   !access_ok(userfault_bitmap_ptr(range), bitmap_size)))
		return -EINVAL;

	if (range->as_mask & ~(u64)userfault_all_as(kvm))
		return -EINVAL;

	BUILD_BUG_ON(ARRAY_SIZE(range->reserved) != 2);
	if (range->reserved[0] | range->reserved[1])
		return -EINVAL;

	return 0;
}

static int userfault_set_range(struct kvm *kvm, struct kvm_userfault_range *range)
{
	/* A clear of one page should not pay for zeroing what it does not use. */
	unsigned long select[BITS_TO_LONGS(USERFAULT_BITMAP_PAGES)] __uninitialized;
	unsigned long as_mask = range->as_mask ?: userfault_all_as(kvm);
	gfn_t end = gpa_to_gfn(range->gpa + range->size);
	u64 nr_pages;
	int r;

	for (;;) {
		struct userfault_chunk chunk = {
			.kvm = kvm,
			.as_mask = as_mask,
			.start = gpa_to_gfn(range->gpa),
			.arm = range->flags & KVM_USERFAULT_ARM,
		};

		nr_pages = min(range->size >> PAGE_SHIFT, USERFAULT_CHUNK_PAGES);

		if (range->bitmap) {
			nr_pages = min(nr_pages, USERFAULT_BITMAP_PAGES);
			select[(nr_pages - 1) / BITS_PER_LONG] = 0;
			if (copy_from_user(select, userfault_bitmap_ptr(range),
					   DIV_ROUND_UP(nr_pages, BITS_PER_BYTE)))
				return -EFAULT;
			chunk.select = select;
		}

		chunk.end = chunk.start + nr_pages;

		if (chunk.arm) {
			/* Look at all of the range once, so that ENOENT changes nothing. */
			r = userfault_check_and_arm(&chunk, max(end, chunk.end));
			if (r)
				return r;
			end = 0;
		} else {
			userfault_clear(&chunk, range->flags & KVM_USERFAULT_COLLAPSE);
		}

		range->changed += chunk.changed;
		userfault_advance(range, nr_pages);
		if (!range->size)
			return 0;

		/* What has to be called again for is never only a hole. */
		userfault_skip_hole(kvm, as_mask, range);
		if (!range->size)
			return 0;

		if (signal_pending(current))
			return -EINTR;
		cond_resched();
	}
}

static int userfault_get_range(struct kvm *kvm, struct kvm_userfault_range *range)
{
	unsigned long state[BITS_TO_LONGS(USERFAULT_BITMAP_PAGES)];
	unsigned long as_mask = range->as_mask ?: userfault_all_as(kvm);
	u64 nr_pages;

	for (;;) {
		struct userfault_chunk chunk = {
			.kvm = kvm,
			.as_mask = as_mask,
			.start = gpa_to_gfn(range->gpa),
			.state = state,
		};

		nr_pages = min(range->size >> PAGE_SHIFT, USERFAULT_BITMAP_PAGES);
		chunk.end = chunk.start + nr_pages;

		bitmap_zero(state, nr_pages);
		scoped_guard(srcu, &kvm->srcu)
			userfault_walk_slots(&chunk, userfault_get);

		if (copy_to_user(userfault_bitmap_ptr(range), state,
				 DIV_ROUND_UP(nr_pages, BITS_PER_BYTE)))
			return -EFAULT;

		userfault_advance(range, nr_pages);
		if (!range->size)
			return 0;

		if (signal_pending(current))
			return -EINTR;
		cond_resched();
	}
}

int kvm_vm_ioctl_set_userfault_range(struct kvm *kvm,
				     struct kvm_userfault_range __user *urange)
{
	/* Do not pay for zeroing what is overwritten at once. */
	struct kvm_userfault_range range __uninitialized;
	u64 gpa, size;
	int r;

	if (copy_from_user(&range, urange, sizeof(range)))
		return -EFAULT;

	r = userfault_check_range(kvm, &range, USERFAULT_SET_FLAGS,
				  range.flags & KVM_USERFAULT_BITMAP);
	if (r)
		return r;

	/* What cannot be told later must not be done. */
	if (put_user(range.changed, &urange->changed))
		return -EFAULT;

	gpa = range.gpa;
	size = range.size;
	range.changed = 0;

	r = userfault_set_range(kvm, &range);

	trace_kvm_userfault_range(gpa, size, range.flags, range.as_mask,
				  size - range.size, range.changed, r);

	/* Bad input, though it took slots_lock to tell. */
	if (r == -ENOENT && range.size == size)
		return r;

	if (r ? copy_to_user(urange, &range, sizeof(range)) :
		put_user(range.changed, &urange->changed))
		return -EFAULT;

	return r;
}

int kvm_vm_ioctl_get_userfault_range(struct kvm *kvm,
				     struct kvm_userfault_range __user *urange)
{
	struct kvm_userfault_range range;
	int r;

	if (copy_from_user(&range, urange, sizeof(range)))
		return -EFAULT;

	r = userfault_check_range(kvm, &range, 0, true);
	if (r)
		return r;

	r = userfault_get_range(kvm, &range);
	if (r && copy_to_user(urange, &range, sizeof(range)))
		return -EFAULT;

	return r;
}

u32 kvm_userfault_capability(struct kvm *kvm)
{
	if (kvm && !kvm_arch_has_userfault(kvm))
		return 0;

	return USERFAULT_SET_FLAGS | KVM_USERFAULT_CAP_RESOLVE |
	       KVM_USERFAULT_CAP_ARMED;
}

/*
 * Give @new its bitmap: the one of @old, whose state lives on, or one of its
 * own.  KVM_MEM_USERFAULT_ARMED says how the bitmap starts, it is not something
 * that the memslot stays; hence it ends here.
 */
int kvm_userfault_prepare_memslot(const struct kvm_memory_slot *old,
				  struct kvm_memory_slot *new)
{
	bool armed = new->flags & KVM_MEM_USERFAULT_ARMED;

	new->flags &= ~KVM_MEM_USERFAULT_ARMED;

	if (!(new->flags & KVM_MEM_USERFAULT))
		return 0;

	if (old && old->userfault_bitmap) {
		kvm_userfault_copy_memslot(new, old);
		return 0;
	}

	new->userfault_bitmap = kvcalloc(BITS_TO_LONGS(new->npages),
					 sizeof(*new->userfault_bitmap),
					 GFP_KERNEL_ACCOUNT);
	if (!new->userfault_bitmap)
		return -ENOMEM;

	if (armed)
		bitmap_set((unsigned long *)new->userfault_bitmap, 0, new->npages);

	return 0;
}

/* @new, which may have armed pages, is there for vCPUs to use. */
void kvm_userfault_memslot_created(struct kvm *kvm,
				   const struct kvm_memory_slot *new)
{
	if (new->userfault_bitmap)
		userfault_drop_resolves(kvm);
}

/* Free the bitmap of @slot unless @keep, the slot's other version, uses it. */
void kvm_userfault_free_memslot(struct kvm_memory_slot *slot,
				const struct kvm_memory_slot *keep)
{
	if (keep && keep->userfault_bitmap == slot->userfault_bitmap)
		return;

	kvfree(slot->userfault_bitmap);
	slot->userfault_bitmap = NULL;
}

bool __kvm_userfault_armed(const struct kvm_memory_slot *slot, gfn_t gfn)
{
	return userfault_bitmap_test(slot->userfault_bitmap, gfn - slot->base_gfn);
}

/* The block of @nr_pages, a power of two, that @gfn of @slot lies in. */
bool __kvm_userfault_block_armed(const struct kvm_memory_slot *slot, gfn_t gfn,
				 unsigned long nr_pages)
{
	return userfault_bitmap_any_of_block(slot->userfault_bitmap, slot->npages,
					     gfn - slot->base_gfn,
					     gfn & (nr_pages - 1), nr_pages);
}

void kvm_prepare_userfault_exit(struct kvm_vcpu *vcpu, gpa_t gpa, bool is_write,
				bool is_exec, bool is_private)
{
	u64 flags = KVM_MEMORY_EXIT_FLAG_USERFAULT;

	if (is_exec)
		flags |= KVM_MEMORY_EXIT_FLAG_EXEC;
	else if (is_write)
		flags |= KVM_MEMORY_EXIT_FLAG_WRITE;
	else
		flags |= KVM_MEMORY_EXIT_FLAG_READ;

	kvm_prepare_memory_fault_exit(vcpu, gpa, PAGE_SIZE, is_write, is_exec,
				      is_private);
	vcpu->run->memory_fault.flags |= flags;

	vcpu->userfault.pending = true;
	vcpu->userfault.gpa = gpa;
	vcpu->userfault.arm_seq = READ_ONCE(vcpu->kvm->userfault_arm_seq);

	++vcpu->stat.generic.userfault_exits;
	trace_kvm_userfault_exit(vcpu->vcpu_id, gpa,
				 vcpu->run->memory_fault.flags);
}

/* May a resolve of [@gpa, @gpa + @size) answer the fault on page @fault? */
static bool userfault_can_resolve(gpa_t fault, u64 gpa, u64 size)
{
	return PAGE_ALIGNED(gpa) && PAGE_ALIGNED(size) && size <= SZ_2M &&
	       gpa <= fault && fault - gpa < size;
}

int __kvm_userfault_resolve(struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct userfault_chunk chunk;
	u64 flags, gpa, size;

	/* Userspace may write to kvm_run at any time: look once, then judge. */
	flags = READ_ONCE(run->memory_fault.flags);
	gpa = READ_ONCE(run->memory_fault.gpa);
	size = READ_ONCE(run->memory_fault.size);

	if (!(flags & KVM_MEMORY_EXIT_FLAG_RESOLVED)) {
		vcpu->userfault.pending = false;
		return 0;
	}

	if (!userfault_can_resolve(vcpu->userfault.gpa, gpa, size))
		return -EINVAL;

	vcpu->userfault.pending = false;
	run->memory_fault.flags = flags & ~KVM_MEMORY_EXIT_FLAG_RESOLVED;
	run->exit_reason = KVM_EXIT_UNKNOWN;

	/*
	 * What has been armed since the exit may be this page, for good reason:
	 * better exit once more than undo that.
	 */
	if (READ_ONCE(vcpu->kvm->userfault_arm_seq) != vcpu->userfault.arm_seq)
		return 0;

	chunk = (struct userfault_chunk) {
		.kvm = vcpu->kvm,
		.as_mask = BIT(kvm_arch_vcpu_memslots_id(vcpu)),
		.start = gpa_to_gfn(gpa),
		.end = gpa_to_gfn(gpa + size),
	};
	userfault_clear(&chunk, false);

	kvm_arch_userfault_resolved(vcpu);
	return 0;
}
