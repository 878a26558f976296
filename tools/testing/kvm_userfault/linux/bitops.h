/* SPDX-License-Identifier: GPL-2.0-only */
/* What virt/kvm/userfault_bitmap.h uses of the kernel's header of this name. */
#ifndef __KVM_USERFAULT_TEST_BITOPS_H
#define __KVM_USERFAULT_TEST_BITOPS_H

#include <limits.h>
#include <stdbool.h>

#define BITS_PER_LONG	((unsigned long)(CHAR_BIT * sizeof(long)))
#define BIT(nr)		(1UL << (nr))

static inline unsigned long hweight_long(unsigned long w)
{
	return __builtin_popcountl(w);
}

#endif /* __KVM_USERFAULT_TEST_BITOPS_H */
