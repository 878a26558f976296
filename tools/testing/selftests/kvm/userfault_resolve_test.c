// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for KVM_MEMORY_EXIT_FLAG_RESOLVED: userspace says in kvm_run that the
 * page of a userfault is in place, and the next KVM_RUN clears it.
 *
 *  - each kind of access, the size of the range, and that it costs one exit and
 *    one fault for each page
 *  - what is refused, with the exit still pending, and what is ignored
 *  - what comes before what in KVM_RUN
 *  - all that can happen between the exit and KVM_RUN: other vCPUs, arms, changes
 *    of memslots and of the vCPU, and userspace that writes to kvm_run meanwhile
 *
 * With shadow paging and in nested guests KVM does not map the page in advance;
 * there the number of faults is not looked at.
 */
#include <linux/bitmap.h>
#include <linux/sizes.h>

#include <pthread.h>
#include <signal.h>

#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "kvm_userfault_guest.h"
#include "kvm_userfault_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#ifdef __x86_64__
#include "smm.h"
#endif

/* Arbitrarily chosen, to overlap nothing and to be aligned for any huge page. */
#define UF_SLOT		10
#define UF_GPA		0xc0000000ul

#define psz		((u64)getpagesize())
#define GPA(page)	(UF_GPA + (page) * psz)

#define ALL_PAGES	1024

KVM_ONE_VCPU_TEST_SUITE(userfault_resolve);

/* KVM_RUN that does not enter the guest: 0 or the errno. */
static int run_immediate_exit(struct kvm_vcpu *vcpu)
{
	int ret, err;

	vcpu->run->immediate_exit = 1;
	ret = __vcpu_run(vcpu);
	err = ret ? errno : 0;
	vcpu->run->immediate_exit = 0;
	return err;
}

/* As above, and the bit must be gone, used or not. */
static void resolve_immediate_exit(struct kvm_vcpu *vcpu, gpa_t gpa, u64 size)
{
	struct kvm_run *run = vcpu->run;

	vcpu_userfault_resolve(vcpu, gpa, size);
	TEST_ASSERT_EQ(run_immediate_exit(vcpu), EINTR);
	TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_UNKNOWN);
	TEST_ASSERT(run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_USERFAULT &&
		    !(run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_RESOLVED),
		    "flags 0x%llx", run->memory_fault.flags);
}

/*
 * Memslots without the library's bookkeeping
 */
static void set_slot(struct kvm_vm *vm, u32 slot, u32 flags, gpa_t gpa,
		     u64 npages, void *hva)
{
	vm_set_user_memory_region(vm, slot, flags, gpa, npages * psz, hva);
}

static void *alloc_mem(u64 npages)
{
	return kvm_mmap(npages * psz, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
}

/* The guest sees it at gva == gpa. */
static void *add_slot(struct kvm_vm *vm, u32 slot, u32 flags, gpa_t gpa, u64 npages)
{
	void *hva = alloc_mem(npages);

	set_slot(vm, slot, flags, gpa, npages, hva);
	virt_map(vm, gpa, gpa, npages);
	return hva;
}

static void *add_armed_slot(struct kvm_vm *vm, u64 npages)
{
	return add_slot(vm, UF_SLOT, KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED,
			UF_GPA, npages);
}

/*
 * Of the pages from UF_GPA, all @npages are armed but for the @nr from @first.
 */
static void assert_clear(struct kvm_vm *vm, u64 npages, u64 first, u64 nr)
{
	u64 bitmap[ALL_PAGES / 64 + 1] = { 0 };
	u64 i;

	vm_userfault_get(vm, UF_GPA, npages * psz, bitmap);
	for (i = 0; i < npages; i++)
		TEST_ASSERT(test_bit(i, (unsigned long *)bitmap) == (i - first >= nr),
			    "Page %lu is in the wrong state, only 0x%lx from %lu may be clear",
			    i, nr, first);
}

/* Is the page of a userfault mapped by the time that the vCPU comes back? */
static bool has_pre_map(void)
{
#ifdef __x86_64__
	return kvm_is_tdp_enabled();
#else
	return false;
#endif
}

static u64 nr_faults(struct kvm_vcpu *vcpu)
{
#ifdef __x86_64__
	return vcpu_get_stat(vcpu, pf_taken);
#else
	return 0;
#endif
}

/* Touch page 0, so that all that the guest needs besides is mapped. */
static void warm_up(struct kvm_vcpu *vcpu, void *hva)
{
	vm_userfault_clear(vcpu->vm, GPA(0), psz);
	write_code(hva, 0);
	set_cmd(vcpu, EXEC, GPA(0), 0);
	assert_done(vcpu, 0);
	set_cmd(vcpu, WRITE, GPA(0), 1);
	assert_done(vcpu, 1);
	set_cmd(vcpu, READ, GPA(0), 0);
	assert_done(vcpu, 1);
}

KVM_ONE_VCPU_TEST(userfault_resolve, capability, guest_ops)
{
	u64 cap = vm_check_cap(vcpu->vm, KVM_CAP_USERFAULT);

	TEST_ASSERT(cap & KVM_USERFAULT_CAP_RESOLVE, "No RESOLVE: 0x%lx", cap);
}

/*
 * One exit for each page, and where KVM maps it before it enters the guest, one
 * fault.  Nobody has populated the pages that are written: a mapping that is made
 * for a read would be one of the zero page, and not good enough.
 */
KVM_ONE_VCPU_TEST(userfault_resolve, access, guest_ops)
{
	static const u64 accesses[] = { READ, WRITE, EXEC };
	struct kvm_vm *vm = vcpu->vm;
	void *hva = add_armed_slot(vm, 64);
	u64 i, access, faults, exits = 0;

	warm_up(vcpu, hva);

	for (i = 1; i < 64; i++) {
		access = accesses[i % 3];
		faults = nr_faults(vcpu);

		set_cmd(vcpu, access, GPA(i), i);
		assert_userfault_exit(vcpu, GPA(i), access);
		if (access == READ)
			WRITE_ONCE(*(u64 *)(hva + i * psz), i);
		else if (access == EXEC)
			write_code(hva + i * psz, i);

		vcpu_userfault_resolve(vcpu, GPA(i), psz);
		assert_done(vcpu, i);
		assert_clear(vm, 64, 0, i + 1);

		TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), ++exits);
		if (has_pre_map())
			TEST_ASSERT_EQ(nr_faults(vcpu), faults + 1);
		if (access == WRITE)
			TEST_ASSERT_EQ(READ_ONCE(*(u64 *)(hva + i * psz)), i);
	}
}

/*
 * The page is mapped for the kind of access that faulted: what the guest reads, and
 * nobody has written, does not become dirty.
 */
KVM_ONE_VCPU_TEST(userfault_resolve, dirty_log, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	void *hva = add_armed_slot(vm, 64);
	u64 i, faults, dirty;

	warm_up(vcpu, hva);
	set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT | KVM_MEM_LOG_DIRTY_PAGES, UF_GPA,
		 64, hva);

	for (i = 1; i < 64; i++) {
		u64 access = i & 1 ? READ : WRITE;

		faults = nr_faults(vcpu);
		set_cmd(vcpu, access, GPA(i), i);
		assert_userfault_exit(vcpu, GPA(i), access);
		vcpu_userfault_resolve(vcpu, GPA(i), psz);
		assert_done(vcpu, access == WRITE ? i : 0);
		if (has_pre_map())
			TEST_ASSERT_EQ(nr_faults(vcpu), faults + 1);

		kvm_vm_get_dirty_log(vm, UF_SLOT, &dirty);
		TEST_ASSERT_EQ(dirty, access == WRITE ? BIT_ULL(i) : 0);
	}
}

/* Userspace may have fetched more than the page that the guest wants. */
KVM_ONE_VCPU_TEST(userfault_resolve, wide_ranges, guest_ops)
{
	const u64 nr_max = SZ_2M / psz;
	const struct {
		u64 fault;
		u64 first;
		u64 nr;
	} ranges[] = {
		{ 16, 16, 2 },
		{ 17, 16, 2 },
		{ 32, 32, 16 },
		{ 35, 32, 16 },
		{ 47, 32, 16 },
		{ 63, 60, 8 },
		{ 64, 1, 127 },
		{ 5, 5, nr_max },
		{ nr_max - 1, 0, nr_max },
		{ nr_max, 1, nr_max },
		{ ALL_PAGES - 1, ALL_PAGES - nr_max, nr_max },
	};
	struct kvm_vm *vm = vcpu->vm;
	void *hva = add_armed_slot(vm, ALL_PAGES);
	u64 i, exits = 0;

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		u64 fault = ranges[i].fault, first = ranges[i].first, nr = ranges[i].nr;

		if (nr > nr_max || fault - first >= nr)
			continue;

		vm_userfault_arm(vm, UF_GPA, ALL_PAGES * psz);
		WRITE_ONCE(*(u64 *)(hva + first * psz), 0x100 + i);
		WRITE_ONCE(*(u64 *)(hva + (first + nr - 1) * psz), 0x200 + i);
		WRITE_ONCE(*(u64 *)(hva + fault * psz), 0x300 + i);

		set_cmd(vcpu, READ, GPA(fault), 0);
		assert_userfault_exit(vcpu, GPA(fault), READ);
		vcpu_userfault_resolve(vcpu, GPA(first), nr * psz);
		assert_done(vcpu, 0x300 + i);
		assert_clear(vm, ALL_PAGES, first, nr);

		set_cmd(vcpu, READ, GPA(first), 0);
		assert_done(vcpu, fault == first ? 0x300 + i : 0x100 + i);
		set_cmd(vcpu, READ, GPA(first + nr - 1), 0);
		assert_done(vcpu, fault == first + nr - 1 ? 0x300 + i : 0x200 + i);
		TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), ++exits);
	}
}

/* KVM looks at nothing but the memslots with the flag. */
KVM_ONE_VCPU_TEST(userfault_resolve, slot_edges, guest_ops)
{
	const u32 armed = KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED;
	const u64 nr_max = SZ_2M / psz;
	struct kvm_vm *vm = vcpu->vm;
	u64 bitmap;

	/* Pages 0 - 7 and 16 - 31 are armed, 8 - 11 a hole, 12 - 15 never are. */
	add_slot(vm, UF_SLOT, armed, GPA(0), 8);
	add_slot(vm, UF_SLOT + 1, 0, GPA(12), 4);
	add_slot(vm, UF_SLOT + 2, armed, GPA(16), 16);

	set_cmd(vcpu, READ, GPA(4), 0);
	assert_userfault_exit(vcpu, GPA(4), READ);
	vcpu_userfault_resolve(vcpu, GPA(2), 20 * psz);
	assert_done(vcpu, 0);
	vm_userfault_get(vm, UF_GPA, 32 * psz, &bitmap);
	TEST_ASSERT_EQ(bitmap, 0xffc00003);

	/* Below and above all of them, if 2M are that much. */
	set_cmd(vcpu, WRITE, GPA(31), 1);
	assert_userfault_exit(vcpu, GPA(31), WRITE);
	if (nr_max >= 128)
		vcpu_userfault_resolve(vcpu, UF_GPA - 32 * psz, 128 * psz);
	else
		vcpu_userfault_resolve(vcpu, UF_GPA, nr_max * psz);
	assert_done(vcpu, 1);
	vm_userfault_get(vm, UF_GPA, 32 * psz, &bitmap);
	TEST_ASSERT_EQ(bitmap, 0);
}

/*
 * A bad range is EINVAL, changes nothing, and can be corrected.
 */
#define BAD_PAGE	700

KVM_ONE_VCPU_TEST(userfault_resolve, bad_ranges, guest_ops)
{
	const u64 gpa = GPA(BAD_PAGE);
	const struct {
		const char *name;
		u64 gpa;
		u64 size;
	} bad[] = {
		{ "empty",			gpa, 0 },
		{ "empty, before",		gpa - psz, 0 },
		{ "unaligned gpa",		gpa + 1, psz },
		{ "unaligned gpa, 8 before",	gpa - 8, 2 * psz },
		{ "unaligned gpa, by half",	gpa - psz / 2, 2 * psz },
		{ "unaligned size",		gpa, psz + 1 },
		{ "unaligned size, one less",	gpa, psz - 1 },
		{ "size 1",			gpa, 1 },
		{ "page before",		gpa - psz, psz },
		{ "page after",			gpa + psz, psz },
		{ "far before",			UF_GPA, 16 * psz },
		{ "far after",			gpa + 100 * psz, 16 * psz },
		{ "gpa 0",			0, psz },
		{ "gpa 0, up to the page",	0, gpa },
		{ "gpa 0, with the page",	0, gpa + psz },
		{ "too large",			gpa, SZ_2M + psz },
		{ "too large, page at the end",	gpa + psz - SZ_2M - psz, SZ_2M + psz },
		{ "4M",				gpa, SZ_4M },
		{ "size 2^32",			gpa, BIT_ULL(32) },
		{ "size 2^32 and a page",	gpa, BIT_ULL(32) + psz },
		{ "size 2^63",			gpa, BIT_ULL(63) },
		{ "size 2^63 and a page",	gpa, BIT_ULL(63) + psz },
		{ "all ones size",		gpa, ~0ull },
		{ "as large as can be",		gpa, -psz },
		{ "up to the wrap",		gpa, -gpa },
		{ "past the wrap",		gpa, -gpa + psz },
		{ "gpa all ones",		~0ull, psz },
		{ "last page",			-psz, psz },
		{ "last page, wraps",		-psz, 2 * psz },
		{ "wraps, with the page",	-psz, gpa + 2 * psz },
		{ "gpa bit 63",			gpa | BIT_ULL(63), psz },
		{ "gpa bit 52",			gpa | BIT_ULL(52), psz },
	};
	struct kvm_vm *vm = vcpu->vm;
	void *hva = add_armed_slot(vm, ALL_PAGES);
	struct kvm_run *run = vcpu->run;
	u64 flags, faults;
	int i, ret;

	warm_up(vcpu, hva);
	vm_userfault_arm(vm, UF_GPA, ALL_PAGES * psz);
	WRITE_ONCE(*(u64 *)(hva + BAD_PAGE * psz), 0x5a5a);
	set_cmd(vcpu, READ, gpa, 0);
	assert_userfault_exit(vcpu, gpa, READ);
	faults = nr_faults(vcpu);

	for (i = 0; i < ARRAY_SIZE(bad) * 2; i++) {
		const u64 bad_gpa = bad[i / 2].gpa, bad_size = bad[i / 2].size;

		/* The range is looked at before immediate_exit is. */
		run->immediate_exit = i & 1;
		vcpu_userfault_resolve(vcpu, bad_gpa, bad_size);
		flags = run->memory_fault.flags;
		ret = __vcpu_run(vcpu);
		TEST_ASSERT(ret == -1 && errno == EINVAL, "%s: ret %d errno %d",
			    bad[i / 2].name, ret, errno);
		TEST_ASSERT(run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
			    run->memory_fault.flags == flags &&
			    run->memory_fault.gpa == bad_gpa &&
			    run->memory_fault.size == bad_size,
			    "%s: kvm_run was written to", bad[i / 2].name);
		assert_clear(vm, ALL_PAGES, 0, 0);
	}

	run->immediate_exit = 0;
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), 1);
	TEST_ASSERT_EQ(nr_faults(vcpu), faults);

	vcpu_userfault_resolve(vcpu, gpa, psz);
	assert_done(vcpu, 0x5a5a);
	assert_clear(vm, ALL_PAGES, BAD_PAGE, 1);
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), 1);
}

/*
 * What else KVM_RUN may end with comes later
 */
KVM_ONE_VCPU_TEST(userfault_resolve, immediate_exit, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	void *hva = add_armed_slot(vm, 64);
	u64 i, faults;

	warm_up(vcpu, hva);

	for (i = 1; i < 9; i++) {
		faults = nr_faults(vcpu);
		set_cmd(vcpu, WRITE, GPA(i), i);
		assert_userfault_exit(vcpu, GPA(i), WRITE);
		resolve_immediate_exit(vcpu, GPA(i), psz);
		assert_clear(vm, 64, 0, i + 1);

		/* It does not take KVM_RUN right away to have the page mapped. */
		TEST_ASSERT_EQ(run_immediate_exit(vcpu), EINTR);
		assert_done(vcpu, i);
		if (has_pre_map())
			TEST_ASSERT_EQ(nr_faults(vcpu), faults + 1);
	}
}

/* Resolved, and armed once more before KVM gets to map it: the arm counts. */
KVM_ONE_VCPU_TEST(userfault_resolve, arm_after, guest_ops)
{
	static const u64 accesses[] = { READ, WRITE, EXEC };
	struct kvm_vm *vm = vcpu->vm;
	void *hva = add_armed_slot(vm, 64);
	u64 i, access;

	warm_up(vcpu, hva);

	for (i = 1; i < 10; i++) {
		access = accesses[i % 3];
		write_code(hva + i * psz, 0x100);
		set_cmd(vcpu, access, GPA(i), i);
		assert_userfault_exit(vcpu, GPA(i), access);
		resolve_immediate_exit(vcpu, GPA(i), psz);
		TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(i), psz), 1);

		assert_userfault_exit(vcpu, GPA(i), access);
		if (access == EXEC)
			write_code(hva + i * psz, i);
		else if (access == READ)
			WRITE_ONCE(*(u64 *)(hva + i * psz), i);
		vcpu_userfault_resolve(vcpu, GPA(i), psz);
		assert_done(vcpu, i);
		TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), 2 * i);
	}
}

KVM_ONE_VCPU_TEST(userfault_resolve, signal, guest_ops)
{
	struct {
		struct kvm_signal_mask head;
		u64 none;
	} __packed mask = { .head.len = sizeof(u64) };
	struct kvm_vm *vm = vcpu->vm;
	void *hva = add_armed_slot(vm, 64);
	sigset_t usr1;
	int ret, sig;
	u64 i;

	/* Blocked, but for the vCPU while it is in KVM_RUN. */
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &usr1, NULL);
	vcpu_ioctl(vcpu, KVM_SET_SIGNAL_MASK, &mask.head);

	warm_up(vcpu, hva);

	for (i = 1; i < 9; i++) {
		set_cmd(vcpu, READ, GPA(i), 0);
		assert_userfault_exit(vcpu, GPA(i), READ);
		WRITE_ONCE(*(u64 *)(hva + i * psz), i);

		raise(SIGUSR1);
		vcpu_userfault_resolve(vcpu, GPA(i), psz);
		ret = __vcpu_run(vcpu);
		TEST_ASSERT(ret == -1 && errno == EINTR &&
			    vcpu->run->exit_reason == KVM_EXIT_INTR,
			    "ret %d errno %d exit reason %u", ret, errno,
			    vcpu->run->exit_reason);
		assert_clear(vm, 64, 0, i + 1);
		TEST_ASSERT_EQ(sigwait(&usr1, &sig), 0);
		assert_done(vcpu, i);
	}
}

/*
 * Without a userfault pending the bit means nothing, nor do gpa and size.
 */
static void assert_ignored(struct kvm_vcpu *vcpu, gpa_t gpa, u64 size)
{
	vcpu_userfault_resolve(vcpu, gpa, size);
	TEST_ASSERT_EQ(run_immediate_exit(vcpu), EINTR);
	assert_clear(vcpu->vm, 64, 0, 0);
}

KVM_ONE_VCPU_TEST(userfault_resolve, not_pending, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = add_armed_slot(vm, 64);

	/* A new vCPU: nothing but what userspace has made up. */
	vcpu->run->exit_reason = KVM_EXIT_MEMORY_FAULT;
	vcpu->run->memory_fault.flags = KVM_MEMORY_EXIT_FLAG_USERFAULT | READ;
	assert_ignored(vcpu, GPA(0), 64 * psz);
	assert_ignored(vcpu, GPA(0), 1);
	assert_ignored(vcpu, 0, psz);

	/* After another exit. */
	vm_userfault_clear(vm, GPA(0), psz);
	hva[0] = 7;
	set_cmd(vcpu, READ, GPA(0), 0);
	assert_done(vcpu, 7);
	vm_userfault_arm(vm, GPA(0), psz);
	assert_ignored(vcpu, GPA(0), 64 * psz);

	/* After one that is resolved: once is enough. */
	assert_userfault_exit(vcpu, GPA(0), READ);
	resolve_immediate_exit(vcpu, GPA(0), psz);
	assert_clear(vm, 64, 0, 1);
	vcpu_userfault_resolve(vcpu, GPA(0), 64 * psz);
	TEST_ASSERT_EQ(run_immediate_exit(vcpu), EINTR);
	vcpu_userfault_resolve(vcpu, GPA(0), 1);
	TEST_ASSERT_EQ(run_immediate_exit(vcpu), EINTR);
	assert_clear(vm, 64, 0, 1);

	vcpu_userfault_resolve(vcpu, GPA(0), 64 * psz);
	assert_done(vcpu, 7);
	assert_clear(vm, 64, 0, 1);
}

/* Any other KVM_RUN is an answer to the exit, too: it is not pending any more. */
KVM_ONE_VCPU_TEST(userfault_resolve, consumed_by_run, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = add_armed_slot(vm, 64);

	hva[3 * psz / 8] = 3;
	set_cmd(vcpu, READ, GPA(3), 0);
	assert_userfault_exit(vcpu, GPA(3), READ);
	TEST_ASSERT_EQ(run_immediate_exit(vcpu), EINTR);
	assert_ignored(vcpu, GPA(3), psz);
	assert_ignored(vcpu, GPA(3), 1);

	/* The bit goes with the exit that it is set after, of another page here. */
	assert_userfault_exit(vcpu, GPA(3), READ);
	assert_userfault_exit(vcpu, GPA(3), READ);
	set_cmd(vcpu, READ, GPA(3), 0);
	vcpu_userfault_resolve(vcpu, GPA(3), psz);
	assert_done(vcpu, 3);
	set_cmd(vcpu, READ, GPA(9), 0);
	assert_userfault_exit(vcpu, GPA(9), READ);
	vcpu_userfault_resolve(vcpu, GPA(3), psz);
	TEST_ASSERT_EQ(run_immediate_exit(vcpu), EINVAL);
	vcpu_userfault_resolve(vcpu, GPA(9), psz);
	assert_done(vcpu, 0);
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), 4);
}

/*
 * An arm between the exit and KVM_RUN: the resolve may be stale, hence is dropped
 */
KVM_ONE_VCPU_TEST(userfault_resolve, arm_drops, guest_ops)
{
	const struct {
		const char *name;
		u64 first;
		u64 nr;
		u64 select;
		u64 changed;
	} arms[] = {
		{ "this page, which is armed",		 5, 1, 0, 0 },
		{ "another one, which is armed",	20, 1, 0, 0 },
		{ "another one, which is clear",	50, 1, 0, 1 },
		{ "all",				 0, 64, 0, 32 },
		{ "this page, by bitmap",		 0, 64, BIT(5), 0 },
		{ "another one, by bitmap",		 0, 64, BIT(50), 1 },
		{ "another memslot",			128, 1, 0, 1 },
	};
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = add_armed_slot(vm, 64);
	u64 i, exits = 0;

	add_slot(vm, UF_SLOT + 1, KVM_MEM_USERFAULT, GPA(128), 8);
	add_slot(vm, UF_SLOT + 2, 0, GPA(256), 8);

	for (i = 0; i < ARRAY_SIZE(arms); i++) {
		vm_userfault_arm(vm, UF_GPA, 32 * psz);
		vm_userfault_clear(vm, GPA(32), 224 * psz);

		hva[5 * psz / 8] = i;
		set_cmd(vcpu, READ, GPA(5), 0);
		assert_userfault_exit(vcpu, GPA(5), READ);

		TEST_ASSERT(vm_userfault_set(vm, GPA(arms[i].first), arms[i].nr * psz,
					     KVM_USERFAULT_ARM |
					     (arms[i].select ? KVM_USERFAULT_BITMAP : 0),
					     arms[i].select ? &arms[i].select : NULL) ==
			    arms[i].changed, "%s: this is not what has changed",
			    arms[i].name);

		/* Without and with the guest being entered. */
		vm_userfault_clear(vm, GPA(32), 224 * psz);
		if (i & 1) {
			resolve_immediate_exit(vcpu, GPA(0), 32 * psz);
			assert_clear(vm, 64, 32, 32);
			vcpu_userfault_resolve(vcpu, GPA(0), 32 * psz);
		} else {
			vcpu_userfault_resolve(vcpu, GPA(0), 32 * psz);
		}
		assert_userfault_exit(vcpu, GPA(5), READ);
		assert_clear(vm, 64, 32, 32);

		/* This exit is later than the arm. */
		vcpu_userfault_resolve(vcpu, GPA(5), psz);
		assert_done(vcpu, i);
		exits += 2;
		TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), exits);
	}

	/* What arms nothing drops nothing. */
	vm_userfault_arm(vm, UF_GPA, 32 * psz);
	assert_userfault_exit(vcpu, GPA(5), READ);
	TEST_ASSERT_EQ(__vm_userfault_set(vm, GPA(256), psz, KVM_USERFAULT_ARM, NULL),
		       ENOENT);
	TEST_ASSERT_EQ(__vm_userfault_set(vm, GPA(0), 512 * psz, KVM_USERFAULT_ARM, NULL),
		       ENOENT);
	TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(6), psz), 1);
	vcpu_userfault_resolve(vcpu, GPA(5), psz);
	assert_done(vcpu, i - 1);
}

/*
 * An exit in the middle of an arm: one that comes when a page at the start of the
 * range is armed already, and is over when a page at its end is still clear.  By
 * the time that the arm has returned, the resolve must be dropped.  Try until some
 * exits have been seen to come there, however long that takes on a busy machine.
 */
#define RACE_PAGES	(SZ_1G / psz)
#define RACE_FIRST	64
#define RACE_LAST	(RACE_PAGES - 64)
#define RACE_LOOPS	100000
#define RACE_HITS	2

struct armer {
	struct kvm_vm *vm;
	pthread_barrier_t barrier;
	bool stop;
};

static void *race_arm(void *arg)
{
	struct armer *a = arg;

	for (;;) {
		pthread_barrier_wait(&a->barrier);
		if (a->stop)
			return NULL;
		vm_userfault_arm(a->vm, UF_GPA, RACE_PAGES * psz);
		pthread_barrier_wait(&a->barrier);
	}
}

KVM_ONE_VCPU_TEST(userfault_resolve, arm_in_progress, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	struct armer a = { .vm = vm };
	int i, hits = 0;
	pthread_t thread;
	bool in_time;
	void *hva;

	hva = alloc_mem(RACE_PAGES);
	set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, UF_GPA, RACE_PAGES, hva);
	virt_map(vm, UF_GPA, UF_GPA, 1);
	set_cmd(vcpu, READ, UF_GPA, 0);
	pthread_barrier_init(&a.barrier, NULL, 2);
	pthread_create(&thread, NULL, race_arm, &a);

	for (i = 0; i < RACE_LOOPS && hits < RACE_HITS; i++) {
		vm_userfault_arm(vm, UF_GPA, psz);
		vm_userfault_clear(vm, GPA(1), (RACE_PAGES - 1) * psz);

		/* Spin: to be woken up takes longer than the arm. */
		pthread_barrier_wait(&a.barrier);
		while (!vm_userfault_is_armed(vm, GPA(RACE_FIRST)))
			;
		assert_userfault_exit(vcpu, UF_GPA, READ);
		in_time = !vm_userfault_is_armed(vm, GPA(RACE_LAST));
		pthread_barrier_wait(&a.barrier);

		resolve_immediate_exit(vcpu, UF_GPA, psz);
		if (!in_time)
			continue;
		TEST_ASSERT(vm_userfault_is_armed(vm, UF_GPA), "A resolve undid an arm");
		hits++;
	}

	a.stop = true;
	pthread_barrier_wait(&a.barrier);
	pthread_join(thread, NULL);
	pr_info("%d of %d exits came in the middle of an arm\n", hits, i);
	TEST_ASSERT_EQ(hits, RACE_HITS);
}

/*
 * Memslots that change between the exit and KVM_RUN
 */
static void exit_on_new_slot(struct kvm_vcpu *vcpu, u64 *hva)
{
	set_slot(vcpu->vm, UF_SLOT, 0, UF_GPA, 0, hva);
	set_slot(vcpu->vm, UF_SLOT, KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED,
		 UF_GPA, 64, hva);
	set_cmd(vcpu, READ, GPA(5), 0);
	assert_userfault_exit(vcpu, GPA(5), READ);
	vcpu_userfault_resolve(vcpu, GPA(0), 32 * psz);
}

KVM_ONE_VCPU_TEST(userfault_resolve, memslot_changes, guest_ops)
{
	const u32 armed = KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED;
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = add_armed_slot(vm, 64);
	u64 *other = alloc_mem(64);

	hva[5 * psz / 8] = 0x5555;
	other[5 * psz / 8] = 0x6666;

	/* The flag is dropped, and may come back: nothing to be cleared. */
	exit_on_new_slot(vcpu, hva);
	set_slot(vm, UF_SLOT, 0, UF_GPA, 64, hva);
	assert_done(vcpu, 0x5555);

	exit_on_new_slot(vcpu, hva);
	set_slot(vm, UF_SLOT, 0, UF_GPA, 64, hva);
	set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, UF_GPA, 64, hva);
	assert_done(vcpu, 0x5555);
	assert_clear(vm, 64, 0, 64);

	/* ... and the page is armed again: later than the exit. */
	exit_on_new_slot(vcpu, hva);
	set_slot(vm, UF_SLOT, 0, UF_GPA, 64, hva);
	set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, UF_GPA, 64, hva);
	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(0), 64 * psz), 64);
	assert_userfault_exit(vcpu, GPA(5), READ);
	assert_clear(vm, 64, 0, 0);

	/* Another flag is toggled: no reason to drop it. */
	exit_on_new_slot(vcpu, hva);
	set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT | KVM_MEM_LOG_DIRTY_PAGES, UF_GPA,
		 64, hva);
	assert_done(vcpu, 0x5555);
	assert_clear(vm, 64, 0, 32);

	/* A memslot that has other memory, none of it armed. */
	exit_on_new_slot(vcpu, hva);
	set_slot(vm, UF_SLOT, 0, UF_GPA, 0, hva);
	set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, UF_GPA, 64, other);
	assert_done(vcpu, 0x6666);

	/* Created armed: nobody has fetched any of its pages. */
	exit_on_new_slot(vcpu, hva);
	set_slot(vm, UF_SLOT, 0, UF_GPA, 0, hva);
	set_slot(vm, UF_SLOT, armed, UF_GPA, 64, other);
	assert_userfault_exit(vcpu, GPA(5), READ);
	assert_clear(vm, 64, 0, 0);
	vcpu_userfault_resolve(vcpu, GPA(5), psz);
	assert_done(vcpu, 0x6666);

	/* The same for one that comes to be next to it, in what was a hole. */
	set_slot(vm, UF_SLOT, 0, UF_GPA, 0, hva);
	set_slot(vm, UF_SLOT, armed, UF_GPA, 16, other);
	set_cmd(vcpu, READ, GPA(5), 0);
	assert_userfault_exit(vcpu, GPA(5), READ);
	vcpu_userfault_resolve(vcpu, GPA(0), 32 * psz);
	set_slot(vm, UF_SLOT + 1, armed, GPA(16), 48, hva);
	assert_userfault_exit(vcpu, GPA(5), READ);
	assert_clear(vm, 64, 0, 0);
	set_slot(vm, UF_SLOT + 1, 0, GPA(16), 0, hva);

	/* Deleted: the guest finds nothing there, but runs. */
	exit_on_new_slot(vcpu, hva);
	set_slot(vm, UF_SLOT, 0, UF_GPA, 0, hva);
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	TEST_ASSERT_EQ(vcpu->run->mmio.phys_addr, GPA(5));
}

/*
 * Two vCPUs want the same page: both resolve it.
 */
KVM_ONE_VCPU_TEST(userfault_resolve, two_vcpus, NULL)
{
	struct kvm_vcpu *vcpus[2];
	struct kvm_vm *vm;
	u64 i, n, *hva;

	vm = vm_create_with_vcpus(2, guest_ops, vcpus);
	vcpu_args_set(vcpus[0], 1, 0ul);
	vcpu_args_set(vcpus[1], 1, 1ul);
	hva = add_armed_slot(vm, 64);

	for (i = 0; i < 64; i++) {
		/* Each has its own notion of what it fetched. */
		n = i & 1;
		set_cmd(vcpus[n], WRITE, GPA(i), 0x100 + i);
		set_cmd(vcpus[!n], READ, GPA(i), 0);
		assert_userfault_exit(vcpus[0], GPA(i), n ? READ : WRITE);
		assert_userfault_exit(vcpus[1], GPA(i), n ? WRITE : READ);

		vcpu_userfault_resolve(vcpus[n], GPA(i), psz);
		assert_done(vcpus[n], 0x100 + i);
		TEST_ASSERT_EQ(hva[i * psz / 8], 0x100 + i);
		assert_clear(vm, 64, 0, i + 1);

		vcpu_userfault_resolve(vcpus[!n], GPA(i), psz);
		assert_done(vcpus[!n], 0x100 + i);
		assert_clear(vm, 64, 0, i + 1);
	}

	TEST_ASSERT_EQ(vcpu_get_stat(vcpus[0], userfault_exits), 64);
	TEST_ASSERT_EQ(vcpu_get_stat(vcpus[1], userfault_exits), 64);
	kvm_vm_free(vm);
}

/*
 * vCPU threads that fetch pages and resolve 16 at once
 */
#define NR_THREADS	4
#define RESOLVE_PAGES	16

struct fetcher {
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	u8 *hva;
};

static pthread_mutex_t fetch_lock = PTHREAD_MUTEX_INITIALIZER;
static DECLARE_BITMAP(fetched, ALL_PAGES / RESOLVE_PAGES);

static void guest_add(u64 size)
{
	u64 i;

	for (i = 0; i < ALL_PAGES; i++)
		__sync_fetch_and_add((u64 *)(UF_GPA + i * size), 1);
	GUEST_DONE();
}

static void *fetch(void *arg)
{
	struct fetcher *f = arg;
	struct kvm_vcpu *vcpu = f->vcpu;
	u64 i, first, page;
	struct ucall uc;
	int ret;

	while (ret = _vcpu_run(vcpu), is_userfault_exit(vcpu, ret)) {
		page = (vcpu->run->memory_fault.gpa - UF_GPA) / psz;
		first = round_down(page, RESOLVE_PAGES);

		pthread_mutex_lock(&fetch_lock);
		if (!__test_and_set_bit(page / RESOLVE_PAGES, fetched))
			for (i = first; i < first + RESOLVE_PAGES; i++)
				*(u64 *)(f->hva + i * psz) = 1000;
		pthread_mutex_unlock(&fetch_lock);

		vcpu_userfault_resolve(vcpu, GPA(first), RESOLVE_PAGES * psz);
	}

	TEST_ASSERT(!ret, "KVM_RUN failed, errno %d", errno);
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_DONE);
	return NULL;
}

KVM_ONE_VCPU_TEST(userfault_resolve, threads, NULL)
{
	struct fetcher fetchers[NR_THREADS];
	struct kvm_vcpu *vcpus[NR_THREADS];
	struct kvm_vm *vm;
	u64 i, exits;
	u8 *hva;

	vm = vm_create_with_vcpus(NR_THREADS, guest_add, vcpus);
	hva = add_armed_slot(vm, ALL_PAGES);

	for (i = 0; i < NR_THREADS; i++) {
		vcpu_args_set(vcpus[i], 1, psz);
		fetchers[i].vcpu = vcpus[i];
		fetchers[i].hva = hva;
	}
	for (i = 0; i < NR_THREADS; i++)
		pthread_create(&fetchers[i].thread, NULL, fetch, &fetchers[i]);
	for (i = 0; i < NR_THREADS; i++)
		pthread_join(fetchers[i].thread, NULL);

	assert_clear(vm, ALL_PAGES, 0, ALL_PAGES);
	for (i = 0; i < ALL_PAGES; i++)
		TEST_ASSERT_EQ(*(u64 *)(hva + i * psz), 1000 + NR_THREADS);

	/* Each block costs each vCPU at most one exit. */
	for (i = 0; i < NR_THREADS; i++) {
		exits = vcpu_get_stat(vcpus[i], userfault_exits);
		TEST_ASSERT(exits <= ALL_PAGES / RESOLVE_PAGES, "%lu exits", exits);
	}
	kvm_vm_free(vm);
}

/*
 * kvm_run is shared memory: another thread writes to it all the time, good and
 * bad.  Whatever KVM makes of that, it clears a range that is good, or nothing.
 */
#define HOSTILE_PAGE	600

/* Which fields the other thread writes to. */
enum hostile_phase {
	HOSTILE_ALL,
	/* Good and bad in turn, as fast as can be, to hit between two reads. */
	HOSTILE_GPA,
	HOSTILE_SIZE,
	NR_HOSTILE_PHASES,
};

/* A good range, a place where it would be bad, and a size with which it would be. */
#define HOSTILE_FIRST	(HOSTILE_PAGE - HOSTILE_NR / 2)
#define HOSTILE_NR	min_t(u64, 256, SZ_2M / psz)
#define HOSTILE_BAD_GPA	GPA(0)
#define HOSTILE_BAD_NR	(ALL_PAGES - HOSTILE_FIRST)
#define HOSTILE_REFUSED	50
#define HOSTILE_SECONDS	20

struct hostile {
	struct kvm_run *run;
	pthread_t thread;
	enum hostile_phase phase;
	bool stop;
};

static void *hostile_writer(void *arg)
{
	/* Mostly good ones, else there is not much for KVM to do. */
	const u64 gpas[] = {
		GPA(HOSTILE_PAGE), GPA(0), GPA(HOSTILE_PAGE), GPA(HOSTILE_PAGE - 100),
		GPA(HOSTILE_PAGE + 1), GPA(HOSTILE_PAGE - 200), GPA(HOSTILE_PAGE) + 1,
		GPA(HOSTILE_PAGE - 10), -psz, GPA(HOSTILE_PAGE), GPA(HOSTILE_PAGE + 100),
	};
	const u64 sizes[] = {
		256 * psz, psz, SZ_2M, SZ_2M + psz, 300 * psz, 0, 256 * psz, -psz, SZ_2M,
	};
	struct hostile *h = arg;
	struct kvm_run *run = h->run;
	u64 i;

	for (i = 0; !READ_ONCE(h->stop); i++) {
		switch (READ_ONCE(h->phase)) {
		case HOSTILE_GPA:
			WRITE_ONCE(run->memory_fault.gpa, HOSTILE_BAD_GPA);
			WRITE_ONCE(run->memory_fault.gpa, GPA(HOSTILE_FIRST));
			break;
		case HOSTILE_SIZE:
			WRITE_ONCE(run->memory_fault.size, HOSTILE_BAD_NR * psz);
			WRITE_ONCE(run->memory_fault.size, HOSTILE_NR * psz);
			break;
		default:
			WRITE_ONCE(run->memory_fault.flags,
				   i % 13 ? KVM_MEMORY_EXIT_FLAG_RESOLVED : 0);
			WRITE_ONCE(run->memory_fault.gpa, gpas[i % ARRAY_SIZE(gpas)]);
			WRITE_ONCE(run->memory_fault.size, sizes[i % ARRAY_SIZE(sizes)]);
		}
	}
	return NULL;
}

static u64 next_page(const unsigned long *bitmap, u64 page, bool armed)
{
	while (page < ALL_PAGES && test_bit(page, bitmap) != armed)
		page++;
	return page;
}

KVM_ONE_VCPU_TEST(userfault_resolve, hostile_values, guest_ops)
{
	unsigned long bitmap[ALL_PAGES / BITS_PER_LONG];
	struct hostile h = { .run = vcpu->run };
	struct kvm_vm *vm = vcpu->vm;
	u64 i, first, end, nr[3] = { 0 }, refused[NR_HOSTILE_PHASES] = { 0 };
	struct timespec start;
	bool missing = true;
	int ret, err;

	add_armed_slot(vm, ALL_PAGES);
	set_cmd(vcpu, READ, GPA(HOSTILE_PAGE), 0);
	pthread_create(&h.thread, NULL, hostile_writer, &h);

	/*
	 * A range that is refused has been written to meanwhile: without some of
	 * these the two threads did not run at the same time.  Give a machine that is
	 * too busy for that some time, but let it be.
	 */
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (i = 0; i < 4000 || (missing && timespec_elapsed(start).tv_sec < HOSTILE_SECONDS);
	     i++) {
		missing = refused[HOSTILE_GPA] < HOSTILE_REFUSED ||
			  refused[HOSTILE_SIZE] < HOSTILE_REFUSED;
		WRITE_ONCE(h.phase, i % NR_HOSTILE_PHASES);
		vm_userfault_arm(vm, UF_GPA, ALL_PAGES * psz);
		ret = _vcpu_run(vcpu);
		TEST_ASSERT(ret == -1 && errno == EFAULT, "ret %d errno %d", ret, errno);

		/*
		 * Begin with a good range, should the other thread not be running.
		 * The exit stays pending for as long as the range is bad.
		 */
		do {
			vcpu_userfault_resolve(vcpu, GPA(HOSTILE_FIRST), HOSTILE_NR * psz);
			err = run_immediate_exit(vcpu);
			nr[0] += err == EINVAL;
			refused[h.phase] += err == EINVAL;
		} while (err == EINVAL);
		TEST_ASSERT_EQ(err, EINTR);

		vm_userfault_get(vm, UF_GPA, ALL_PAGES * psz, bitmap);
		first = next_page(bitmap, 0, false);
		end = next_page(bitmap, first, true);
		nr[first == ALL_PAGES ? 1 : 2]++;
		if (first == ALL_PAGES)
			continue;

		TEST_ASSERT(first <= HOSTILE_PAGE && end > HOSTILE_PAGE &&
			    (end - first) * psz <= SZ_2M,
			    "Pages [%lu, %lu) are clear", first, end);
		TEST_ASSERT_EQ(next_page(bitmap, end, false), ALL_PAGES);
	}

	WRITE_ONCE(h.stop, true);
	pthread_join(h.thread, NULL);
	pr_info("%lu times refused (gpa %lu, size %lu), %lu ignored, %lu done\n", nr[0],
		refused[HOSTILE_GPA], refused[HOSTILE_SIZE], nr[1], nr[2]);
}

#ifdef __x86_64__
/* Bad register state is refused, as ever, when the page has long been cleared. */
KVM_ONE_VCPU_TEST(userfault_resolve, sync_regs, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	struct kvm_run *run = vcpu->run;
	u64 *hva = add_armed_slot(vm, 64);
	int i, ret;

	warm_up(vcpu, hva);

	for (i = 1; i < 5; i++) {
		hva[i * psz / 8] = i;
		set_cmd(vcpu, READ, GPA(i), 0);
		assert_userfault_exit(vcpu, GPA(i), READ);

		vcpu_userfault_resolve(vcpu, GPA(i), psz);
		if (i & 1)
			run->kvm_dirty_regs = BIT(31);
		else
			run->kvm_valid_regs = BIT(31);
		ret = __vcpu_run(vcpu);
		TEST_ASSERT(ret == -1 && errno == EINVAL, "ret %d errno %d", ret, errno);
		TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_UNKNOWN);
		TEST_ASSERT(!(run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_RESOLVED),
			    "The exit is still pending");
		assert_clear(vm, 64, 0, i + 1);
		run->kvm_dirty_regs = 0;
		run->kvm_valid_regs = 0;
		assert_done(vcpu, i);

		/* The other way around it would be the register state of before. */
		hva[5 * psz / 8] = 0x100 + i;
		set_cmd(vcpu, READ, GPA(5), 0);
		vm_userfault_arm(vm, GPA(5), psz);
		assert_userfault_exit(vcpu, GPA(5), READ);
		vcpu_userfault_resolve(vcpu, GPA(5) + 1, psz);
		run->kvm_dirty_regs = BIT(31);
		TEST_ASSERT_EQ(run_immediate_exit(vcpu), EINVAL);
		TEST_ASSERT_EQ(run->exit_reason, KVM_EXIT_MEMORY_FAULT);
		run->kvm_dirty_regs = 0;
		vcpu_userfault_resolve(vcpu, GPA(5), psz);
		assert_done(vcpu, 0x100 + i);
		vm_userfault_arm(vm, GPA(5), psz);
	}
}

/*
 * The vCPU is another one when it is run again.  The page is cleared all the same
 */
static void guest_after_reset(void)
{
	for (;;)
		GUEST_SYNC(0x7e5e7);
}

KVM_ONE_VCPU_TEST(userfault_resolve, vcpu_reset, guest_ops)
{
	struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };
	struct kvm_mp_state mp_state = { .mp_state = KVM_MP_STATE_UNINITIALIZED };
	/* out %al, $0x80 */
	const u8 real_mode_code[] = { 0xe6, 0x80 };
	struct kvm_vm *vm = vcpu->vm;
	struct kvm_sregs sregs, real;
	struct kvm_regs start, regs;
	u64 i, *hva;

	hva = add_armed_slot(vm, 64);
	vcpu_regs_get(vcpu, &start);
	warm_up(vcpu, hva);

	for (i = 1; i < 5; i++) {
		hva[i * psz / 8] = i;
		set_cmd(vcpu, i & 1 ? WRITE : READ, GPA(i), i);
		assert_userfault_exit(vcpu, GPA(i), i & 1 ? WRITE : READ);
		vcpu_userfault_resolve(vcpu, GPA(i), psz);

		/* Elsewhere, and then from the start. */
		vcpu_regs_get(vcpu, &regs);
		start.rip = i & 1 ? (u64)guest_after_reset : (u64)guest_ops;
		vcpu_regs_set(vcpu, &start);
		if (i > 2) {
			vcpu_ioctl(vcpu, KVM_SET_MP_STATE, &mp_state);
			TEST_ASSERT_EQ(run_immediate_exit(vcpu), EINTR);
			assert_clear(vm, 64, 0, i + 1);
			vcpu_ioctl(vcpu, KVM_SET_MP_STATE, &runnable);
		}
		assert_done(vcpu, i & 1 ? 0x7e5e7 : i);
		assert_clear(vm, 64, 0, i + 1);
		start.rip = (u64)guest_ops;
		vcpu_regs_set(vcpu, &start);
	}

	/* Real mode, without a page table. */
	set_cmd(vcpu, READ, GPA(5), 0);
	assert_userfault_exit(vcpu, GPA(5), READ);
	vcpu_sregs_get(vcpu, &sregs);
	vcpu_regs_get(vcpu, &regs);

	memcpy(hva, real_mode_code, sizeof(real_mode_code));
	real = sregs;
	real.cr0 &= ~(X86_CR0_PG | X86_CR0_PE);
	real.cr4 &= ~X86_CR4_PAE;
	real.efer &= ~(EFER_LMA | EFER_LME);
	real.cs.base = GPA(0);
	real.cs.limit = 0xffff;
	real.cs.l = 0;
	real.cs.db = 0;
	real.cs.g = 0;
	start.rip = 0;
	vcpu_sregs_set(vcpu, &real);
	vcpu_regs_set(vcpu, &start);

	vcpu_userfault_resolve(vcpu, GPA(5), psz);
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(vcpu->run->io.port, 0x80);
	assert_clear(vm, 64, 0, 6);

	/* And back, to where it was. */
	TEST_ASSERT_EQ(run_immediate_exit(vcpu), EINTR);
	hva[5 * psz / 8] = 0x1234;
	vcpu_sregs_set(vcpu, &sregs);
	vcpu_regs_set(vcpu, &regs);
	assert_done(vcpu, 0x1234);
}

/* First the exit, then, as the page is there but cannot be written to, MMIO. */
KVM_ONE_VCPU_TEST(userfault_resolve, readonly, guest_ops)
{
	const u32 armed = KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED;
	struct kvm_vm *vm = vcpu->vm;

	add_slot(vm, UF_SLOT, armed | KVM_MEM_READONLY, UF_GPA, 64);

	set_cmd(vcpu, WRITE, GPA(3), 0x3333);
	assert_userfault_exit(vcpu, GPA(3), WRITE);
	vcpu_userfault_resolve(vcpu, GPA(3), psz);
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	TEST_ASSERT(vcpu->run->mmio.phys_addr == GPA(3) && vcpu->run->mmio.is_write,
		    "MMIO at 0x%llx, write %u", vcpu->run->mmio.phys_addr,
		    vcpu->run->mmio.is_write);
	assert_done(vcpu, 0x3333);
	assert_clear(vm, 64, 3, 1);
}

/*
 * System management mode has an address space of its own
 */
#define SMRAM_GPA	0x1000000
#define SMI_HANDLER_GPA	(SMRAM_GPA + 0x8000)
#define SMI_PORT	0xe

static const u8 smi_handler[] = {
	0xe4, SMI_PORT,		/* in $SMI_PORT, %al */
	0x0f, 0xaa,		/* rsm */
};

static bool is_armed_in(struct kvm_vm *vm, u64 as_mask, gpa_t gpa)
{
	u64 bitmap = 0;

	vm_userfault_get_as(vm, as_mask, gpa, psz, &bitmap);
	return bitmap;
}

KVM_ONE_VCPU_TEST(userfault_resolve, smm, guest_ops)
{
	const u64 normal = BIT(0), smm = BIT(1);
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva;
	int i;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_X86_SMM));

	setup_smram(vm, vcpu, SMRAM_GPA, smi_handler, sizeof(smi_handler));
	vm_mem_region_set_flags(vm, SMRAM_MEMSLOT, KVM_MEM_USERFAULT);
	hva = alloc_mem(SMRAM_PAGES);
	vm_set_user_memory_region(vm, UF_SLOT, KVM_MEM_USERFAULT, SMRAM_GPA,
				  SMRAM_SIZE, hva);
	virt_map(vm, SMRAM_GPA, SMRAM_GPA, SMRAM_PAGES);
	set_cmd(vcpu, READ, SMI_HANDLER_GPA, 0);

	for (i = 0; i < 3; i++) {
		hva[0x8000 / 8] = i;
		TEST_ASSERT_EQ(vm_userfault_arm(vm, SMI_HANDLER_GPA, psz), 2);

		inject_smi(vcpu);
		assert_userfault_exit(vcpu, SMI_HANDLER_GPA, EXEC);
		TEST_ASSERT(vcpu->run->flags & KVM_RUN_X86_SMM, "Not in SMM");
		vcpu_userfault_resolve(vcpu, SMI_HANDLER_GPA, psz);
		vcpu_run(vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
		TEST_ASSERT_EQ(vcpu->run->io.port, SMI_PORT);
		TEST_ASSERT(!is_armed_in(vm, smm, SMI_HANDLER_GPA), "Armed in SMM");
		TEST_ASSERT(is_armed_in(vm, normal, SMI_HANDLER_GPA), "Clear outside of SMM");

		/* The handler returns, and the guest goes on. */
		assert_userfault_exit(vcpu, SMI_HANDLER_GPA, READ);
		TEST_ASSERT(!(vcpu->run->flags & KVM_RUN_X86_SMM), "In SMM");
		vcpu_userfault_resolve(vcpu, SMI_HANDLER_GPA, psz);
		assert_done(vcpu, i);

		TEST_ASSERT_EQ(vm_userfault_arm(vm, SMI_HANDLER_GPA, psz), 2);
		assert_userfault_exit(vcpu, SMI_HANDLER_GPA, READ);
		vcpu_userfault_resolve(vcpu, SMI_HANDLER_GPA, psz);
		assert_done(vcpu, i);
		TEST_ASSERT(is_armed_in(vm, smm, SMI_HANDLER_GPA), "Clear in SMM");
		TEST_ASSERT(!is_armed_in(vm, normal, SMI_HANDLER_GPA), "Armed outside of SMM");
		vm_userfault_clear(vm, SMI_HANDLER_GPA, psz);
	}
}

/*
 * Nested: L2 touches L1's memory, with nested paging through another address
 */
#define L2_ALIAS_GPA		0xd0000000ul
#define L2_PAGES		8

static u64 l2_base;

static void l2_guest_code(void)
{
	u64 i, n;

	for (n = 0;; n++) {
		for (i = 0; i < L2_PAGES; i++) {
			u64 *p = (u64 *)(READ_ONCE(l2_base) + i * PAGE_SIZE);

			if ((n + i) & 1)
				WRITE_ONCE(*p, n);
			GUEST_SYNC(READ_ONCE(*p));
		}
	}
}

static void l1_guest_code(void *nested)
{
	l1_run_l2(nested, l2_guest_code);
}

static void test_nested(struct kvm_vcpu *vcpu, bool nested_tdp)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 i, n, *hva;

	vcpu_setup_nested(vcpu, nested_tdp);

	hva = add_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, UF_GPA, L2_PAGES);
	if (nested_tdp) {
		/* L2: gva == L2_ALIAS_GPA, which L1 maps to UF_GPA. */
		virt_map(vm, L2_ALIAS_GPA, L2_ALIAS_GPA, L2_PAGES);
		tdp_identity_map_default_memslots(vm);
		tdp_map(vm, L2_ALIAS_GPA, UF_GPA, L2_PAGES * psz);
	}
	write_guest_global(vm, l2_base, nested_tdp ? L2_ALIAS_GPA : UF_GPA);

	for (n = 0; n < 4; n++) {
		vm_userfault_arm(vm, UF_GPA, L2_PAGES * psz);

		for (i = 0; i < L2_PAGES; i++) {
			hva[i * psz / 8] = 0x100 + n;
			assert_userfault_exit(vcpu, GPA(i), (n + i) & 1 ? WRITE : READ);
			vcpu_userfault_resolve(vcpu, GPA(i), psz);
			assert_done(vcpu, (n + i) & 1 ? n : 0x100 + n);
			assert_clear(vm, L2_PAGES, 0, i + 1);
		}
	}
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), 4 * L2_PAGES);
}

KVM_ONE_VCPU_TEST(userfault_resolve, nested, l1_guest_code)
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_VMX) || kvm_cpu_has(X86_FEATURE_SVM));
	test_nested(vcpu, false);
}

KVM_ONE_VCPU_TEST(userfault_resolve, nested_tdp, l1_guest_code)
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_VMX) || kvm_cpu_has(X86_FEATURE_SVM));

	/* KVM offers it to L1 only if it uses it itself. */
	TEST_ASSERT_EQ(kvm_cpu_has_tdp(), kvm_is_tdp_enabled());
	if (kvm_cpu_has_tdp())
		test_nested(vcpu, true);
}

/*
 * Private memory, converted between the exit and KVM_RUN
 */
static bool has_private_memory(void)
{
	return kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM);
}

KVM_ONE_VCPU_TEST(userfault_resolve, private_memory, NULL)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};
	const u64 private = KVM_MEMORY_EXIT_FLAG_PRIVATE;
	struct kvm_run *run;
	struct kvm_vm *vm;
	u64 i, *hva;

	/* It comes with the TDP MMU only. */
	if (!has_tdp_mmu()) {
		TEST_ASSERT(!has_private_memory(), "Private memory without the TDP MMU");
		return;
	}
	TEST_REQUIRE(has_private_memory());

	vm = vm_create_shape_with_one_vcpu(shape, &vcpu, guest_ops);
	run = vcpu->run;
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, UF_GPA, UF_SLOT, 64,
				    KVM_MEM_USERFAULT | KVM_MEM_GUEST_MEMFD);
	virt_map(vm, UF_GPA, UF_GPA, 64);
	hva = addr_gpa2hva(vm, UF_GPA);
	vm_userfault_arm(vm, UF_GPA, 64 * psz);

	/* Private, and stays so. */
	vm_mem_set_private(vm, UF_GPA, 64 * psz);
	set_cmd(vcpu, WRITE, GPA(1), 0x1111);
	assert_userfault_exit(vcpu, GPA(1), WRITE | private);
	vcpu_userfault_resolve(vcpu, GPA(0), 4 * psz);
	assert_done(vcpu, 0x1111);
	assert_clear(vm, 64, 0, 4);

	/*
	 * Converted, to and fro: the mapping in advance finds a mismatch, and must
	 * keep it to itself.  The guest's output leaves memory_fault.size alone.
	 */
	for (i = 4; i < 12; i++) {
		const u64 was = i & 1 ? private : 0;

		if (was)
			vm_mem_set_private(vm, UF_GPA, 64 * psz);
		else
			vm_mem_set_shared(vm, UF_GPA, 64 * psz);
		hva[i * psz / 8] = 0x2222;
		set_cmd(vcpu, READ, GPA(i), 0);
		assert_userfault_exit(vcpu, GPA(i), READ | was);

		if (was)
			vm_mem_set_shared(vm, UF_GPA, 64 * psz);
		else
			vm_mem_set_private(vm, UF_GPA, 64 * psz);
		vcpu_userfault_resolve(vcpu, GPA(0), 16 * psz);
		assert_done(vcpu, was ? 0x2222 : 0);
		TEST_ASSERT_EQ(run->memory_fault.size, 16 * psz);
		assert_clear(vm, 64, 0, 16);
		vm_userfault_arm(vm, UF_GPA, 64 * psz);
	}

	/* An exit of a conversion is no userfault: there is nothing to resolve. */
	vm_mem_set_shared(vm, UF_GPA, 64 * psz);
	set_cmd(vcpu, READ, GPA(20), 0);
	assert_userfault_exit(vcpu, GPA(20), READ);
	run->memory_fault.flags = 0;
	TEST_ASSERT_EQ(run_immediate_exit(vcpu), EINTR);
	vcpu_userfault_resolve(vcpu, GPA(20), psz);
	TEST_ASSERT_EQ(run_immediate_exit(vcpu), EINTR);
	assert_clear(vm, 64, 0, 0);

	kvm_vm_free(vm);
}
#endif /* __x86_64__ */

int main(int argc, char *argv[])
{
	TEST_REQUIRE_USERFAULT();

	return test_harness_run(argc, argv);
}
