/* SPDX-License-Identifier: GPL-2.0-only */
/* What virt/kvm/userfault_bitmap.h uses of the kernel's header of this name. */
#ifndef __KVM_USERFAULT_TEST_ATOMIC_H
#define __KVM_USERFAULT_TEST_ATOMIC_H

struct atomic_long {
	long counter;
};

#define atomic_long_t struct atomic_long

static inline long atomic_long_read(const atomic_long_t *v)
{
	return __atomic_load_n(&v->counter, __ATOMIC_RELAXED);
}

static inline long atomic_long_read_acquire(const atomic_long_t *v)
{
	return __atomic_load_n(&v->counter, __ATOMIC_ACQUIRE);
}

static inline long atomic_long_fetch_or(long i, atomic_long_t *v)
{
	return __atomic_fetch_or(&v->counter, i, __ATOMIC_SEQ_CST);
}

static inline long atomic_long_fetch_andnot_release(long i, atomic_long_t *v)
{
	return __atomic_fetch_and(&v->counter, ~i, __ATOMIC_RELEASE);
}

#endif /* __KVM_USERFAULT_TEST_ATOMIC_H */
