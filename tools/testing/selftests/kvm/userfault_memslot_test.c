// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the flags of a memslot may be with KVM_MEM_USERFAULT, what may become of
 * them, and what that makes of the armed state.
 */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/bits.h>
#include <linux/sizes.h>

#include "kselftest_harness.h"
#include "kvm_syscalls.h"
#include "kvm_userfault_util.h"
#include "kvm_util.h"
#include "test_util.h"

#define SLOT		3
#define SLOT_SIZE	SZ_2M
#define GPA		0x10000000

enum userfault_state {
	USERFAULT_OFF,
	USERFAULT_CLEAR,
	USERFAULT_ARMED,
};

/* What @flags make of a slot: at creation, and later from @old. */
static enum userfault_state created(u32 flags)
{
	if (!(flags & KVM_MEM_USERFAULT))
		return USERFAULT_OFF;

	return flags & KVM_MEM_USERFAULT_ARMED ? USERFAULT_ARMED : USERFAULT_CLEAR;
}

static enum userfault_state updated(enum userfault_state old, u32 flags)
{
	if (!(flags & KVM_MEM_USERFAULT))
		return USERFAULT_OFF;

	return old == USERFAULT_OFF ? USERFAULT_CLEAR : old;
}

/* The whole slot is in @want, seen without changing anything. */
static void assert_state(struct kvm_vm *vm, enum userfault_state want)
{
	u64 bitmap[SLOT_SIZE / MIN_PAGE_SIZE / 64] = { 0 };
	u64 i, nr_pages = SLOT_SIZE / getpagesize();
	int r;

	r = __vm_userfault_set(vm, GPA, SLOT_SIZE,
			       KVM_USERFAULT_ARM | KVM_USERFAULT_BITMAP, bitmap);
	TEST_ASSERT_EQ(r, want == USERFAULT_OFF ? ENOENT : 0);

	vm_userfault_get(vm, GPA, SLOT_SIZE, bitmap);
	for (i = 0; i < nr_pages; i++)
		TEST_ASSERT(!!(bitmap[i / 64] & BIT_ULL(i % 64)) == (want == USERFAULT_ARMED),
			    "Page %lu is in the wrong state, wanted %d", i, want);
}

static int set_slot(struct kvm_vm *vm, bool v2, u32 flags, gpa_t gpa, u64 size, void *mem)
{
	int r;

	if (v2)
		r = __vm_set_user_memory_region2(vm, SLOT, flags, gpa, size, mem, 0, 0);
	else
		r = __vm_set_user_memory_region(vm, SLOT, flags, gpa, size, mem);

	return r ? errno : 0;
}

/*
 * Create a slot with each combination of flags, update it to each other one,
 * try to move it, delete it: by the old and by the new ioctl.
 */
TEST(flags)
{
	const u32 all_flags = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY |
			      KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED;
	enum userfault_state state;
	u32 flags, new_flags, last;
	struct kvm_vm *vm;
	bool v2 = false;
	int r, want;
	u8 *mem;

	vm = vm_create_barebones();
	mem = kvm_mmap(SLOT_SIZE * 2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	for (flags = 0; flags <= all_flags; flags++) {
		if (flags & ~all_flags)
			continue;

		v2 = !v2;
		want = (flags & KVM_MEM_USERFAULT_ARMED) &&
		       !(flags & KVM_MEM_USERFAULT) ? EINVAL : 0;
		r = set_slot(vm, v2, flags, GPA, SLOT_SIZE, mem);
		TEST_ASSERT(r == want, "Create, flags 0x%x: wanted errno %d, got %d",
			    flags, want, r);
		state = want ? USERFAULT_OFF : created(flags);
		assert_state(vm, state);
		if (want)
			continue;

		last = flags;
		for (new_flags = 0; new_flags <= all_flags; new_flags++) {
			if (new_flags & ~all_flags)
				continue;

			v2 = !v2;
			want = (new_flags & KVM_MEM_USERFAULT_ARMED) ||
			       ((new_flags ^ flags) & KVM_MEM_READONLY) ? EINVAL : 0;
			r = set_slot(vm, v2, new_flags, GPA, SLOT_SIZE, mem);
			TEST_ASSERT(r == want, "Update 0x%x to 0x%x: wanted errno %d, got %d",
				    last, new_flags, want, r);
			if (!want) {
				state = updated(state, new_flags);
				last = new_flags;
			}
			assert_state(vm, state);

			/* Armed state survives whatever does not drop the flag. */
			if (state == USERFAULT_CLEAR) {
				vm_userfault_arm(vm, GPA, SLOT_SIZE);
				state = USERFAULT_ARMED;
			}

			/* Neither memory nor place of such a slot can change. */
			if (!((new_flags | last) & KVM_MEM_USERFAULT))
				continue;
			r = set_slot(vm, v2, new_flags, GPA + SLOT_SIZE, SLOT_SIZE, mem);
			TEST_ASSERT_EQ(r, EINVAL);
			r = set_slot(vm, v2, new_flags, GPA, SLOT_SIZE * 2, mem);
			TEST_ASSERT_EQ(r, EINVAL);
			r = set_slot(vm, v2, new_flags, GPA, SLOT_SIZE, mem + SLOT_SIZE);
			TEST_ASSERT_EQ(r, EINVAL);
			assert_state(vm, state);
		}

		/* What is armed goes with the slot. */
		TEST_ASSERT_EQ(set_slot(vm, v2, 0, GPA, 0, mem), 0);
		assert_state(vm, USERFAULT_OFF);
	}

	kvm_munmap(mem, SLOT_SIZE * 2);
	kvm_vm_free(vm);
}

#ifdef __x86_64__
static int set_private_slot(struct kvm_vm *vm, u32 flags, gpa_t gpa, int memfd, u64 offset)
{
	int r = __vm_set_user_memory_region2(vm, SLOT, KVM_MEM_GUEST_MEMFD | flags,
					     gpa, SLOT_SIZE, NULL, memfd, offset);

	return r ? errno : 0;
}

/* The flag is the one thing about a guest_memfd slot that can change. */
TEST(guest_memfd)
{
	enum { MEMFD, OTHER, NO_MEMFD, NO_FD };
	const struct {
		const char *what;
		u32 flags;
		gpa_t gpa;
		int fd;
		u64 offset;
	} bad[] = {
		{ "Other offset", 0, GPA, MEMFD, 0 },
		{ "Unaligned offset", 0, GPA, MEMFD, SLOT_SIZE + 1 },
		{ "Other guest_memfd", 0, GPA, OTHER, SLOT_SIZE },
		{ "No guest_memfd", 0, GPA, NO_MEMFD, SLOT_SIZE },
		{ "No fd", 0, GPA, NO_FD, SLOT_SIZE },
		{ "MOVE", 0, GPA + SLOT_SIZE, MEMFD, SLOT_SIZE },
		{ "READONLY", KVM_MEM_READONLY, GPA, MEMFD, SLOT_SIZE },
		{ "LOG_DIRTY_PAGES", KVM_MEM_LOG_DIRTY_PAGES, GPA, MEMFD, SLOT_SIZE },
		{ "ARMED", KVM_MEM_USERFAULT_ARMED, GPA, MEMFD, SLOT_SIZE },
	};
	int fds[4], memfd, i, j, r;
	struct kvm_vm *vm;
	u32 flags;

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		SKIP(return, "No KVM_X86_SW_PROTECTED_VM");

	vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	memfd = vm_create_guest_memfd(vm, SLOT_SIZE * 2, 0);
	fds[MEMFD] = memfd;
	fds[OTHER] = vm_create_guest_memfd(vm, SLOT_SIZE * 2, 0);
	fds[NO_MEMFD] = vm->fd;
	fds[NO_FD] = -1;
	TEST_ASSERT_EQ(set_private_slot(vm, KVM_MEM_USERFAULT_ARMED, GPA, memfd, 0),
		       EINVAL);
	TEST_ASSERT_EQ(set_private_slot(vm, KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED,
					GPA, memfd, SLOT_SIZE), 0);
	assert_state(vm, USERFAULT_ARMED);

	for (i = 0; i < 4; i++) {
		enum userfault_state state = i % 2 ? USERFAULT_OFF : USERFAULT_ARMED;

		for (j = 0; j < ARRAY_SIZE(bad) * 2; j++) {
			flags = bad[j / 2].flags | (j % 2 ? KVM_MEM_USERFAULT : 0);
			r = set_private_slot(vm, flags, bad[j / 2].gpa,
					     fds[bad[j / 2].fd], bad[j / 2].offset);
			TEST_ASSERT(r == EINVAL, "%s should fail with EINVAL, got %d",
				    bad[j / 2].what, r);
			assert_state(vm, state);
		}

		if (i % 2) {
			TEST_ASSERT_EQ(set_private_slot(vm, KVM_MEM_USERFAULT, GPA, memfd,
							SLOT_SIZE), 0);
			assert_state(vm, USERFAULT_CLEAR);
			vm_userfault_arm(vm, GPA, SLOT_SIZE);
		} else {
			TEST_ASSERT_EQ(set_private_slot(vm, 0, GPA, memfd, SLOT_SIZE), 0);
			assert_state(vm, USERFAULT_OFF);
		}
	}

	/* The binding is still the slot's: it goes with it, and not before. */
	TEST_ASSERT(__vm_set_user_memory_region2(vm, SLOT + 1, KVM_MEM_GUEST_MEMFD,
						 GPA + SLOT_SIZE, SLOT_SIZE, NULL,
						 memfd, SLOT_SIZE) &&
		    errno == EEXIST, "A bound range should not be bound again");
	vm_set_user_memory_region2(vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, 0, NULL, -1, 0);
	vm_set_user_memory_region2(vm, SLOT + 1, KVM_MEM_GUEST_MEMFD,
				   GPA + SLOT_SIZE, SLOT_SIZE, NULL, memfd, SLOT_SIZE);

	close(fds[OTHER]);
	close(memfd);
	kvm_vm_free(vm);
}
#endif

int main(int argc, char *argv[])
{
	TEST_REQUIRE_USERFAULT();

	return test_harness_run(argc, argv);
}
