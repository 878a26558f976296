/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * KVM userfault: what the rest of KVM needs to know of virt/kvm/userfault.c,
 * where the locking and the ordering are described.
 */
#ifndef __KVM_USERFAULT_H
#define __KVM_USERFAULT_H

#include <linux/kvm_host.h>

/*
 * Architectures that cannot serve some kind of VM define this, e.g. because
 * taking a private mapping away would lose what the guest has stored there.
 */
#ifndef kvm_arch_has_userfault
static inline bool kvm_arch_has_userfault(struct kvm *kvm)
{
	return true;
}
#endif

/*
 * Unmap a range, with mmu_lock held for write; once that is done for all ranges,
 * flush if the answer was true for any.
 */
#ifndef kvm_arch_userfault_unmap
#define kvm_arch_userfault_unmap	kvm_unmap_gfn_range
#define kvm_arch_userfault_flush	kvm_flush_remote_tlbs
#endif

#ifdef CONFIG_KVM_USERFAULT

#define KVM_USERFAULT_MEM_FLAGS	(KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED)

u32 kvm_userfault_capability(struct kvm *kvm);
int __kvm_userfault_resolve(struct kvm_vcpu *vcpu);

int kvm_userfault_prepare_memslot(const struct kvm_memory_slot *old,
				  struct kvm_memory_slot *new);
void kvm_userfault_memslot_created(struct kvm *kvm,
				   const struct kvm_memory_slot *new);
void kvm_userfault_free_memslot(struct kvm_memory_slot *slot,
				const struct kvm_memory_slot *keep);

bool __kvm_userfault_armed(const struct kvm_memory_slot *slot, gfn_t gfn);
bool __kvm_userfault_block_armed(const struct kvm_memory_slot *slot, gfn_t gfn,
				 unsigned long nr_pages);
void kvm_prepare_userfault_exit(struct kvm_vcpu *vcpu, gpa_t gpa, bool is_write,
				bool is_exec, bool is_private);

/*
 * What the architecture does to mappings.  All take a range inside one memslot
 * and are allowed to do nothing.
 *
 * split: with mmu_lock held for write, which may be dropped meanwhile, and with
 * slots_lock: where a mapping reaches over the start or the end of the range,
 * replace it by smaller ones that do not.  Return how many were split.
 *
 * collapse: in the blocks that the range touches and that have no armed page,
 * recreate the largest mappings that the backing allows.  Under SRCU alone.
 * Return how many were recreated at once.
 */
int kvm_arch_userfault_split(struct kvm *kvm, struct kvm_gfn_range *range);
int kvm_arch_userfault_collapse(struct kvm *kvm, struct kvm_gfn_range *range);

/*
 * The last userfault of @vcpu is resolved.  Have the page mapped before the guest
 * is entered, for the kind of access that faulted.  The vCPU is not loaded.
 */
void kvm_arch_userfault_resolved(struct kvm_vcpu *vcpu);

int kvm_vm_ioctl_set_userfault_range(struct kvm *kvm,
				     struct kvm_userfault_range __user *urange);
int kvm_vm_ioctl_get_userfault_range(struct kvm *kvm,
				     struct kvm_userfault_range __user *urange);

/*
 * Must a vCPU's access to @gfn exit?  Ask after the snapshot of
 * mmu_invalidate_seq, so that a page armed later makes the fault stale.
 */
static inline bool kvm_userfault_armed(const struct kvm_memory_slot *slot,
				       gfn_t gfn)
{
	return unlikely(slot->userfault_bitmap) &&
	       __kvm_userfault_armed(slot, gfn);
}

/*
 * Is any page armed in the naturally aligned block of @nr_pages around @gfn?
 * Ask with mmu_lock held, after the stale check: the answer is then good for
 * as long as mmu_lock is held, for arming takes it for write.  Or ask before that,
 * and have the stale check notice an arm of any page, as arm64 does.
 */
static inline bool kvm_userfault_block_armed(const struct kvm_memory_slot *slot,
					     gfn_t gfn, unsigned long nr_pages)
{
	return unlikely(slot->userfault_bitmap) &&
	       __kvm_userfault_block_armed(slot, gfn, nr_pages);
}

/*
 * Before all else of KVM_RUN: do what userspace asks for about the userfault that
 * the last one ended with.
 */
static inline int kvm_userfault_resolve(struct kvm_vcpu *vcpu)
{
	return unlikely(vcpu->userfault.pending) ? __kvm_userfault_resolve(vcpu) : 0;
}

/* The copy shares the bitmap of @src and must go before @src does. */
static inline void kvm_userfault_copy_memslot(struct kvm_memory_slot *dest,
					      const struct kvm_memory_slot *src)
{
	dest->userfault_bitmap = src->userfault_bitmap;
}

#else

#define KVM_USERFAULT_MEM_FLAGS	0

static inline int
kvm_userfault_prepare_memslot(const struct kvm_memory_slot *old,
			      struct kvm_memory_slot *new)
{
	return 0;
}

static inline void
kvm_userfault_memslot_created(struct kvm *kvm, const struct kvm_memory_slot *new)
{
}

static inline void
kvm_userfault_free_memslot(struct kvm_memory_slot *slot,
			   const struct kvm_memory_slot *keep)
{
}

static inline bool kvm_userfault_armed(const struct kvm_memory_slot *slot,
				       gfn_t gfn)
{
	return false;
}

static inline bool kvm_userfault_block_armed(const struct kvm_memory_slot *slot,
					     gfn_t gfn, unsigned long nr_pages)
{
	return false;
}

static inline void kvm_prepare_userfault_exit(struct kvm_vcpu *vcpu, gpa_t gpa,
					      bool is_write, bool is_exec,
					      bool is_private)
{
}

static inline void kvm_userfault_copy_memslot(struct kvm_memory_slot *dest,
					      const struct kvm_memory_slot *src)
{
}

static inline int kvm_userfault_resolve(struct kvm_vcpu *vcpu)
{
	return 0;
}

#endif /* CONFIG_KVM_USERFAULT */

#endif /* __KVM_USERFAULT_H */
