/* SPDX-License-Identifier: GPL-2.0-only */
/* What virt/kvm/userfault_bitmap.h uses of the kernel's header of this name. */
#ifndef __KVM_USERFAULT_TEST_MINMAX_H
#define __KVM_USERFAULT_TEST_MINMAX_H

#define min(x, y) ({			\
	__auto_type __x = (x);		\
	__auto_type __y = (y);		\
					\
	__x < __y ? __x : __y;		\
})

#endif /* __KVM_USERFAULT_TEST_MINMAX_H */
