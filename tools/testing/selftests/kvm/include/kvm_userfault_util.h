/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Wrappers for KVM_SET_USERFAULT_RANGE, KVM_GET_USERFAULT_RANGE and the exit
 * that an access to an armed page causes.
 */
#ifndef SELFTEST_KVM_USERFAULT_UTIL_H
#define SELFTEST_KVM_USERFAULT_UTIL_H

#include <linux/sizes.h>
#include <linux/userfaultfd.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

/* All flags of KVM_SET_USERFAULT_RANGE. */
#define USERFAULT_SET_FLAGS						\
	(KVM_USERFAULT_ARM | KVM_USERFAULT_COLLAPSE | KVM_USERFAULT_BITMAP)

/* The access part of an exit's flags: exactly one of these is set. */
#define USERFAULT_ACCESS_FLAGS						\
	(KVM_MEMORY_EXIT_FLAG_READ | KVM_MEMORY_EXIT_FLAG_WRITE |	\
	 KVM_MEMORY_EXIT_FLAG_EXEC)

/* Emulated, and with slow checks, a kernel takes longer than the harness has patience. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	240

/*
 * No test needs arm64's vGIC, whose initialisation is the end of adding vCPUs.  Pages
 * of the guest are as large as the host's, so that each has a bit of its own.
 */
#ifdef __aarch64__
#define USERFAULT_SETUP_ARCH()						\
do {									\
	test_disable_default_vgic();					\
	if (getpagesize() == SZ_16K)					\
		vm_mode_default = VM_MODE_P40V48_16K;			\
	else if (getpagesize() == SZ_64K)				\
		vm_mode_default = VM_MODE_P40V48_64K;			\
} while (0)
#else
#define USERFAULT_SETUP_ARCH()	do { } while (0)
#endif

#define TEST_REQUIRE_USERFAULT()					\
do {									\
	__TEST_REQUIRE(kvm_has_cap(KVM_CAP_USERFAULT),			\
		       "KVM_CAP_USERFAULT is not there");		\
	USERFAULT_SETUP_ARCH();						\
} while (0)

/* Raw ioctls on a caller's struct: 0 or the errno, the struct as KVM left it. */
static inline int __vm_userfault_set_range(struct kvm_vm *vm,
					   struct kvm_userfault_range *range)
{
	return __vm_ioctl(vm, KVM_SET_USERFAULT_RANGE, range) ? errno : 0;
}

static inline int __vm_userfault_get_range(struct kvm_vm *vm,
					   struct kvm_userfault_range *range)
{
	return __vm_ioctl(vm, KVM_GET_USERFAULT_RANGE, range) ? errno : 0;
}

/* One call, no restart: 0 or the errno. */
static inline int __vm_userfault_set(struct kvm_vm *vm, gpa_t gpa, u64 size,
				     u64 flags, const void *bitmap)
{
	struct kvm_userfault_range range = {
		.gpa = gpa,
		.size = size,
		.flags = flags,
		.bitmap = (unsigned long)bitmap,
	};

	return __vm_userfault_set_range(vm, &range);
}

static inline int __vm_userfault_get(struct kvm_vm *vm, gpa_t gpa, u64 size,
				     void *bitmap)
{
	struct kvm_userfault_range range = {
		.gpa = gpa,
		.size = size,
		.bitmap = (unsigned long)bitmap,
	};

	return __vm_userfault_get_range(vm, &range);
}

/*
 * Set until all of it is done, restarting after signals, in the address spaces
 * of @as_mask (0: all).  Returns how many pages have changed their state.
 */
static inline u64 vm_userfault_set_as(struct kvm_vm *vm, u64 as_mask, gpa_t gpa,
				      u64 size, u64 flags, const void *bitmap)
{
	struct kvm_userfault_range range = {
		.gpa = gpa,
		.size = size,
		.flags = flags,
		.bitmap = (unsigned long)bitmap,
		.as_mask = as_mask,
	};
	u64 changed = 0;
	int err;

	do {
		range.changed = 0;
		err = __vm_userfault_set_range(vm, &range);
		changed += range.changed;
	} while (err == EINTR);

	TEST_ASSERT(!err,
		    "KVM_SET_USERFAULT_RANGE failed, gpa 0x%lx size 0x%lx flags 0x%lx errno %d (%s)",
		    gpa, size, flags, err, strerror(err));
	return changed;
}

static inline u64 vm_userfault_set(struct kvm_vm *vm, gpa_t gpa, u64 size,
				   u64 flags, const void *bitmap)
{
	return vm_userfault_set_as(vm, 0, gpa, size, flags, bitmap);
}

static inline u64 vm_userfault_arm(struct kvm_vm *vm, gpa_t gpa, u64 size)
{
	return vm_userfault_set(vm, gpa, size, KVM_USERFAULT_ARM, NULL);
}

static inline u64 vm_userfault_clear(struct kvm_vm *vm, gpa_t gpa, u64 size)
{
	return vm_userfault_set(vm, gpa, size, 0, NULL);
}

/* Get until all of it is done, restarting after signals. */
static inline void vm_userfault_get_as(struct kvm_vm *vm, u64 as_mask,
				       gpa_t gpa, u64 size, void *bitmap)
{
	struct kvm_userfault_range range = {
		.gpa = gpa,
		.size = size,
		.bitmap = (unsigned long)bitmap,
		.as_mask = as_mask,
	};
	int err;

	do {
		err = __vm_userfault_get_range(vm, &range);
	} while (err == EINTR);

	TEST_ASSERT(!err,
		    "KVM_GET_USERFAULT_RANGE failed, gpa 0x%lx size 0x%lx errno %d (%s)",
		    gpa, size, err, strerror(err));
}

static inline void vm_userfault_get(struct kvm_vm *vm, gpa_t gpa, u64 size,
				    void *bitmap)
{
	vm_userfault_get_as(vm, 0, gpa, size, bitmap);
}

static inline bool vm_userfault_is_armed(struct kvm_vm *vm, gpa_t gpa)
{
	u64 bitmap = 0;

	vm_userfault_get(vm, gpa, getpagesize(), &bitmap);
	return bitmap;
}

/* Does @ret, with errno, say that KVM_RUN ended with a userfault? */
static inline bool is_userfault_exit(struct kvm_vcpu *vcpu, int ret)
{
	return ret == -1 && errno == EFAULT &&
	       vcpu->run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
	       vcpu->run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_USERFAULT;
}

/*
 * Tell KVM that the pages of [@gpa, @gpa + @size), with that of the vCPU's last
 * exit among them, are in place: KVM_RUN clears them.
 */
static inline void vcpu_userfault_resolve(struct kvm_vcpu *vcpu, gpa_t gpa, u64 size)
{
	vcpu->run->memory_fault.gpa = gpa;
	vcpu->run->memory_fault.size = size;
	vcpu->run->memory_fault.flags |= KVM_MEMORY_EXIT_FLAG_RESOLVED;
}

/*
 * Run the vCPU and assert the whole exit: exactly USERFAULT and @access in the
 * flags (PRIVATE goes into @access, too), this page, one page.
 */
#define assert_userfault_exit(vcpu, _gpa, access)				\
do {										\
	u64 __flags = KVM_MEMORY_EXIT_FLAG_USERFAULT | (access);		\
	struct kvm_vcpu *__vcpu = (vcpu);					\
	struct kvm_run *__run = __vcpu->run;					\
	gpa_t __gpa = (_gpa);							\
	int __ret, __err;							\
										\
	__ret = _vcpu_run(__vcpu);						\
	__err = errno;								\
										\
	TEST_ASSERT(__ret == -1 && __err == EFAULT &&				\
		    __run->exit_reason == KVM_EXIT_MEMORY_FAULT,		\
		    "Wanted a userfault at 0x%lx, got ret %d errno %d exit reason %u (%s)", \
		    __gpa, __ret, __err, __run->exit_reason,			\
		    exit_reason_str(__run->exit_reason));			\
	TEST_ASSERT(__run->memory_fault.flags == __flags &&			\
		    __run->memory_fault.gpa == __gpa &&				\
		    __run->memory_fault.size == getpagesize(),			\
		    "Wanted flags 0x%lx gpa 0x%lx size 0x%x, got 0x%llx 0x%llx 0x%llx", \
		    __flags, __gpa, getpagesize(), __run->memory_fault.flags,	\
		    __run->memory_fault.gpa, __run->memory_fault.size);		\
} while (0)

#ifdef __aarch64__
/* The library makes VMs of the types that its guest modes need, and of no others. */
static inline struct kvm_vm *vm_create_barebones_of_type(unsigned long type)
{
	struct kvm_vm *vm = vm_create_barebones();

	kvm_vm_release(vm);
	vm->type = type;
	kvm_vm_restart(vm);
	return vm;
}
#endif

#ifdef __x86_64__
/*
 * Large mappings are split and collapse without unmapping anything.  Asked for again and
 * again by tests; to open the parameters takes milliseconds with KASAN and lockdep.
 */
static inline bool has_tdp_mmu(void)
{
	static int has = -1;

	if (has < 0)
		has = kvm_is_tdp_enabled() && get_kvm_param_bool("tdp_mmu");
	return has;
}
#endif

/* Run until the guest's next GUEST_SYNC(), without any exit on the way. */
static inline u64 vcpu_run_to_sync(struct kvm_vcpu *vcpu)
{
	struct ucall uc;
	int ret;

	ret = _vcpu_run(vcpu);
	TEST_ASSERT(!ret, "KVM_RUN: errno %d exit reason %u flags 0x%llx gpa 0x%llx",
		    errno, vcpu->run->exit_reason, vcpu->run->memory_fault.flags,
		    vcpu->run->memory_fault.gpa);
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	return uc.args[1];
}

/*
 * Have the host's faults in [@hva, @hva + @size) wait for a new userfaultfd, of
 * UFFDIO_REGISTER_MODE_*, UFFD_FEATURE_* and O_* flags.
 */
static inline int uffd_register(void *hva, u64 size, u64 mode, u64 features, int flags)
{
	struct uffdio_register reg = {
		.range = { .start = (unsigned long)hva, .len = size },
		.mode = mode,
	};
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int uffd;

	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | flags);
	TEST_ASSERT(uffd >= 0, "userfaultfd: errno %d", errno);
	kvm_ioctl(uffd, UFFDIO_API, &api);
	kvm_ioctl(uffd, UFFDIO_REGISTER, &reg);
	return uffd;
}

#endif /* SELFTEST_KVM_USERFAULT_UTIL_H */
