// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for KVM_MEM_USERFAULT memslots, for KVM_SET_USERFAULT_RANGE and
 * KVM_GET_USERFAULT_RANGE, and for the exit of a vCPU that touches an armed
 * page:
 *
 *  - every errno, with a check that nothing has changed, and every flag bit
 *    against what KVM_CAP_USERFAULT advertises
 *  - the life of a memslot: creation, flags on and off, deletion, dirty logging
 *  - the armed state after random calls, against a model kept by the test, and
 *    how far a call got when a signal or a bad user bitmap stopped it
 *  - calls that race with each other and with changes of memslots
 *  - what is charged to the memory cgroup for the bitmap of a large memslot
 *  - exits: the whole of each, and that there is one for every access to an
 *    armed page and none for any other page, with running vCPUs and with huge
 *    pages
 */
#include <linux/sizes.h>

#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "cgroup_util.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "kvm_userfault_guest.h"
#include "kvm_userfault_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"
#include "userfaultfd_util.h"

/* Arbitrarily chosen, to overlap nothing and to be aligned for any huge page. */
#define UF_SLOT		10
#define UF_GPA		0xc0000000ul

/* For slots of several GiB, which are never populated. */
#define BIG_GPA		SZ_4G

/* A bitmap of 2 MiB: what each CPU is charged in advance is little beside it. */
#define MEMCG_PAGES	BIT(24)
#define MEMCG_SLACK	SZ_1M

#define psz		((u64)getpagesize())
#define GPA(page)	(UF_GPA + (page) * psz)

/* What "changed" holds before a call that must not write the struct back. */
#define POISON		0xdeadbeefcafef00dull

KVM_ONE_VCPU_TEST_SUITE(userfault);

/*
 * Guests
 */

static u64 guest_stop;
static u64 guest_seen;

/* Store ever new values, never load: every exit of this guest is a WRITE. */
static void guest_count(u64 gva)
{
	u64 n = 0;

	while (!READ_ONCE(guest_stop))
		WRITE_ONCE(*(u64 *)gva, ++n);

	GUEST_DONE();
}

static void guest_count_many(u64 gva, u64 npages, u64 size)
{
	u64 n = 0, i;

	while (!READ_ONCE(guest_stop)) {
		n++;
		for (i = 0; i < npages; i++)
			WRITE_ONCE(*(u64 *)(gva + i * size), n);
	}

	GUEST_DONE();
}

static void guest_report(u64 gva)
{
	while (!READ_ONCE(guest_stop))
		WRITE_ONCE(guest_seen, READ_ONCE(*(u64 *)gva));

	GUEST_DONE();
}

static u64 vcpu_pc(struct kvm_vcpu *vcpu)
{
#if defined(__x86_64__)
	struct kvm_regs regs;

	vcpu_regs_get(vcpu, &regs);
	return regs.rip;
#elif defined(__aarch64__)
	return vcpu_get_reg(vcpu, ARM64_CORE_REG(regs.pc));
#endif
}

static void guest_read(struct kvm_vcpu *vcpu, gva_t gva, u64 val)
{
	set_cmd(vcpu, READ, gva, 0);
	assert_done(vcpu, val);
}

/*
 * Memslots without the library's bookkeeping, which would refuse bad ones
 */

/* Which of the two ioctls to use. */
static bool use_region2;

static int __set_slot(struct kvm_vm *vm, u32 slot, u32 flags, gpa_t gpa,
		      u64 npages, void *hva)
{
	int ret;

	if (use_region2)
		ret = __vm_set_user_memory_region2(vm, slot, flags, gpa,
						   npages * psz, hva, 0, 0);
	else
		ret = __vm_set_user_memory_region(vm, slot, flags, gpa,
						  npages * psz, hva);
	return ret ? errno : 0;
}

static void set_slot(struct kvm_vm *vm, u32 slot, u32 flags, gpa_t gpa,
		     u64 npages, void *hva)
{
	int err = __set_slot(vm, slot, flags, gpa, npages, hva);

	TEST_ASSERT(!err, "memslot %u flags 0x%x gpa 0x%lx npages 0x%lx: errno %d",
		    slot, flags, gpa, npages, err);
}

static void *alloc_mem(u64 npages)
{
	return kvm_mmap(npages * psz, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
}

static void *add_slot(struct kvm_vm *vm, u32 slot, u32 flags, gpa_t gpa,
		      u64 npages)
{
	void *hva = alloc_mem(npages);

	set_slot(vm, slot, flags, gpa, npages, hva);
	return hva;
}

/* As add_slot(), and the guest sees it at gva == gpa. */
static void *add_mapped_slot(struct kvm_vm *vm, u32 slot, u32 flags, gpa_t gpa,
			     u64 npages)
{
	void *hva = add_slot(vm, slot, flags, gpa, npages);

	TEST_REQUIRE(vm->page_size == psz);
	virt_map(vm, gpa, gpa, npages);
	return hva;
}

static u64 count_armed(struct kvm_vm *vm, gpa_t gpa, u64 npages)
{
	u64 *bitmap = calloc(1, npages / 8 + 8);
	u64 i, n = 0;

	vm_userfault_get(vm, gpa, npages * psz, bitmap);
	for (i = 0; i < npages / 64 + 1; i++)
		n += __builtin_popcountll(bitmap[i]);
	free(bitmap);
	return n;
}

static void set_prot(void *addr, u64 size, int prot)
{
	TEST_ASSERT(!mprotect(addr, size, prot), "mprotect() failed, errno %d", errno);
}

static void *page_with_prot(int prot)
{
	return kvm_mmap(psz, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

/*
 * Bad input.  The layout, in pages from UF_GPA:
 *
 *	0 - 199		userfault slot
 *	200 - 263	userfault slot
 *	264 - 299	hole
 *	300 - 309	slot without the flag
 *	310 - 399	hole
 *	400 - 463	userfault slot
 */
#define LAYOUT_PAGES	512

static u64 armed_before[LAYOUT_PAGES / 64];

static void create_layout(struct kvm_vm *vm)
{
	add_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, GPA(0), 200);
	add_slot(vm, UF_SLOT + 1, KVM_MEM_USERFAULT, GPA(200), 64);
	add_slot(vm, UF_SLOT + 2, 0, GPA(300), 10);
	add_slot(vm, UF_SLOT + 3, KVM_MEM_USERFAULT, GPA(400), 64);

	/* Something for a bad clear to clear, and for a bad arm to arm. */
	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(3), 70 * psz), 70);
	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(190), 20 * psz), 20);
	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(401), psz), 1);
	vm_userfault_get(vm, UF_GPA, LAYOUT_PAGES * psz, armed_before);
}

/* A page that is not mapped, nor will be by the time it is used. */
static void *layout_and_unmapped_page(struct kvm_vm *vm)
{
	void *page;

	create_layout(vm);
	page = page_with_prot(PROT_NONE);
	kvm_munmap(page, psz);
	return page;
}

static void assert_layout_unchanged(struct kvm_vm *vm, const char *name)
{
	u64 armed[LAYOUT_PAGES / 64];

	vm_userfault_get(vm, UF_GPA, LAYOUT_PAGES * psz, armed);
	TEST_ASSERT(!memcmp(armed, armed_before, sizeof(armed)),
		    "%s: armed state has changed", name);
}

struct bad_range {
	const char *name;
	int err;
	struct kvm_userfault_range range;
};

/* The call must fail as it should, change no page and not write the struct. */
static void assert_refused(struct kvm_vm *vm, bool set, const struct bad_range *t)
{
	struct kvm_userfault_range range = t->range;
	struct kvm_userfault_range sent;
	int err;

	range.changed = POISON;
	sent = range;

	err = set ? __vm_userfault_set_range(vm, &range) :
		    __vm_userfault_get_range(vm, &range);
	TEST_ASSERT(err == t->err, "%s %s: errno %d (%s), wanted %d (%s)",
		    set ? "SET" : "GET", t->name, err, strerror(err), t->err,
		    strerror(t->err));
	TEST_ASSERT(!memcmp(&range, &sent, sizeof(range)),
		    "%s %s: the struct was written back", set ? "SET" : "GET",
		    t->name);
	assert_layout_unchanged(vm, t->name);
}

static u64 nr_address_spaces(struct kvm_vm *vm)
{
	return max(vm_check_cap(vm, KVM_CAP_MULTI_ADDRESS_SPACE), 1);
}

KVM_ONE_VCPU_TEST(userfault, capability, guest_ops)
{
	u64 known = USERFAULT_SET_FLAGS | KVM_USERFAULT_CAP_RESOLVE |
		    KVM_USERFAULT_CAP_ARMED;
	u64 cap = vm_check_cap(vcpu->vm, KVM_CAP_USERFAULT);

	TEST_ASSERT(!(cap & ~known), "Unknown bits in 0x%lx", cap);
	TEST_ASSERT(cap & KVM_USERFAULT_ARM, "Cannot arm: 0x%lx", cap);
	TEST_ASSERT(cap & KVM_USERFAULT_BITMAP, "No bitmaps: 0x%lx", cap);
	TEST_ASSERT(cap & KVM_USERFAULT_CAP_ARMED, "No ARMED slots: 0x%lx", cap);
}

KVM_ONE_VCPU_TEST(userfault, bad_ranges, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 buf[2] = { ~0ull, ~0ull };
	u64 bitmap = (unsigned long)buf;
	u64 size = 8 * psz;
	const struct {
		const char *name;
		u64 gpa;
		u64 size;
	} ranges[] = {
		{ "empty",			GPA(0), 0 },
		{ "empty at 0",			0, 0 },
		{ "unaligned gpa",		GPA(0) + 1, size },
		{ "unaligned gpa, by half",	GPA(0) + psz / 2, size },
		{ "gpa bit 63 and unaligned",	BIT(63) + 8, size },
		{ "unaligned size",		GPA(0), size + 1 },
		{ "size less than a page",	GPA(0), psz - 1 },
		{ "unaligned both",		GPA(0) + 8, size - 8 },
		{ "wrap",			GPA(0), -GPA(0) + psz },
		{ "wrap to 0",			GPA(0), -GPA(0) },
		{ "wrap at the top",		-size, 2 * size },
		{ "wrap to 0 at the top",	-size, size },
	};
	int i, j;

	create_layout(vm);

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		struct bad_range t = {
			.name = ranges[i].name,
			.err = EINVAL,
			.range = {
				.gpa = ranges[i].gpa,
				.size = ranges[i].size,
			},
		};

		assert_refused(vm, true, &t);
		t.range.flags = KVM_USERFAULT_ARM;
		assert_refused(vm, true, &t);
		t.range.bitmap = bitmap;
		t.range.flags |= KVM_USERFAULT_BITMAP;
		assert_refused(vm, true, &t);
		t.range.flags = 0;
		assert_refused(vm, false, &t);
	}

	for (i = 0; i < 2; i++) {
		for (j = 0; j < 64; j++) {
			struct bad_range t = {
				.name = "reserved not 0",
				.err = EINVAL,
				.range = {
					.gpa = GPA(0),
					.size = size,
				},
			};

			t.range.reserved[i] = BIT_ULL(j);
			assert_refused(vm, true, &t);
			t.range.flags = KVM_USERFAULT_ARM;
			assert_refused(vm, true, &t);
			t.range.flags = 0;
			t.range.bitmap = bitmap;
			assert_refused(vm, false, &t);
		}
	}

	TEST_ASSERT(buf[0] == ~0ull && buf[1] == ~0ull,
		    "A refused GET has written the bitmap");
}

KVM_ONE_VCPU_TEST(userfault, flags, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 supported = vm_check_cap(vm, KVM_CAP_USERFAULT) & USERFAULT_SET_FLAGS;
	u64 bitmap = 0;
	int i;

	create_layout(vm);

	for (i = 0; i < 64; i++) {
		struct bad_range t = {
			.name = "flag",
			.err = EINVAL,
			.range = {
				.gpa = GPA(0),
				.size = 64 * psz,
				.flags = BIT_ULL(i),
			},
		};

		if (!(supported & BIT_ULL(i))) {
			assert_refused(vm, true, &t);
			t.range.flags |= KVM_USERFAULT_ARM;
			assert_refused(vm, true, &t);
			t.range.bitmap = (unsigned long)&bitmap;
			t.range.flags |= KVM_USERFAULT_BITMAP;
			assert_refused(vm, true, &t);
			t.range.flags &= ~KVM_USERFAULT_ARM;
			assert_refused(vm, true, &t);
		}

		/* GET has no flags at all. */
		t.range.bitmap = (unsigned long)&bitmap;
		t.range.flags = BIT_ULL(i);
		assert_refused(vm, false, &t);
	}

	/* What is advertised works: an empty user bitmap changes nothing. */
	for (i = 0; i < 64; i++) {
		u64 flags = BIT_ULL(i) | KVM_USERFAULT_BITMAP;

		if (!(supported & BIT_ULL(i)))
			continue;
		TEST_ASSERT_EQ(vm_userfault_set(vm, GPA(0), 64 * psz, flags, &bitmap), 0);
		assert_layout_unchanged(vm, "flag advertised");
	}

	if (supported & KVM_USERFAULT_COLLAPSE) {
		struct bad_range t = {
			.name = "COLLAPSE with ARM",
			.err = EINVAL,
			.range = {
				.gpa = GPA(0),
				.size = 64 * psz,
				.flags = KVM_USERFAULT_ARM | KVM_USERFAULT_COLLAPSE,
			},
		};

		assert_refused(vm, true, &t);
		t.range.flags |= KVM_USERFAULT_BITMAP;
		t.range.bitmap = (unsigned long)&bitmap;
		assert_refused(vm, true, &t);
	}
}

KVM_ONE_VCPU_TEST(userfault, as_mask, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	int nr_as = nr_address_spaces(vm);
	u64 bitmap = 0;
	int i;

	create_layout(vm);

	for (i = 0; i < 64; i++) {
		struct bad_range t = {
			.name = "as_mask",
			.err = EINVAL,
			.range = {
				.gpa = GPA(0),
				.size = 64 * psz,
				.as_mask = BIT_ULL(i),
			},
		};

		if (i < nr_as) {
			vm_userfault_get_as(vm, BIT_ULL(i), GPA(0), 64 * psz, &bitmap);
			/* All of it is in address space 0. */
			TEST_ASSERT_EQ(bitmap, i ? 0 : armed_before[0]);
			continue;
		}

		assert_refused(vm, true, &t);
		t.range.flags = KVM_USERFAULT_ARM;
		assert_refused(vm, true, &t);
		t.range.flags = 0;
		t.range.bitmap = (unsigned long)&bitmap;
		assert_refused(vm, false, &t);

		/* One that exists does not make up for one that does not. */
		t.range.as_mask |= BIT_ULL(0);
		assert_refused(vm, false, &t);
		t.range.bitmap = 0;
		assert_refused(vm, true, &t);
	}

	/* In an address space without any slot: nothing to arm, all is clear. */
	for (i = 1; i < nr_as; i++) {
		struct bad_range t = {
			.name = "arm where the address space has no slot",
			.err = ENOENT,
			.range = {
				.gpa = GPA(0),
				.size = 64 * psz,
				.flags = KVM_USERFAULT_ARM,
				.as_mask = BIT_ULL(i),
			},
		};

		assert_refused(vm, true, &t);
		TEST_ASSERT_EQ(vm_userfault_set_as(vm, BIT_ULL(i), GPA(0),
						   64 * psz, 0, NULL), 0);
		assert_layout_unchanged(vm, "clear in another address space");
	}

	TEST_ASSERT_EQ(vm_userfault_set_as(vm, BIT_ULL(0), GPA(0), 64 * psz, 0,
					   NULL), 61);
}

KVM_ONE_VCPU_TEST(userfault, bitmap_pointer, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 bitmap[2] = { };
	void *readonly = page_with_prot(PROT_READ);
	void *none = page_with_prot(PROT_NONE);
	void *unmapped = layout_and_unmapped_page(vm);
	const struct {
		const char *name;
		u64 bitmap;
		int set_err;
		int get_err;
	} pointers[] = {
		{ "missing",		0, EINVAL, EINVAL },
		{ "unaligned by 1",	(unsigned long)bitmap + 1, EINVAL, EINVAL },
		{ "unaligned by 4",	(unsigned long)bitmap + 4, EINVAL, EINVAL },
		{ "unaligned unmapped",	(unsigned long)unmapped + 1, EINVAL, EINVAL },
		{ "beyond the width",	BIT(62), EINVAL, EINVAL },
		{ "kernel address",	-psz, EINVAL, EINVAL },
		{ "last word",		-8ull, EINVAL, EINVAL },
		{ "unmapped",		(unsigned long)unmapped, EFAULT, EFAULT },
		{ "PROT_NONE",		(unsigned long)none, EFAULT, EFAULT },
		{ "read-only",		(unsigned long)readonly, 0, EFAULT },
	};
	struct bad_range t = {
		.name = "superfluous bitmap",
		.err = EINVAL,
		.range = {
			.gpa = GPA(0),
			.size = 64 * psz,
			.bitmap = (unsigned long)bitmap,
		},
	};
	int i;

	assert_refused(vm, true, &t);
	t.range.flags = KVM_USERFAULT_ARM;
	assert_refused(vm, true, &t);

#ifdef __x86_64__
	/* A range whose bitmap alone is more than any user space, if that is of 47 bits. */
	t.name = "bitmap of a huge range";
	t.range.gpa = 0;
	t.range.size = -psz;
	t.range.flags = KVM_USERFAULT_BITMAP;
	assert_refused(vm, true, &t);
	t.range.flags |= KVM_USERFAULT_ARM;
	assert_refused(vm, true, &t);
	t.range.flags = 0;
	assert_refused(vm, false, &t);
#endif

	t.range.gpa = GPA(0);
	t.range.size = 64 * psz;

	for (i = 0; i < ARRAY_SIZE(pointers); i++) {
		t.name = pointers[i].name;
		t.range.bitmap = pointers[i].bitmap;

		/* EFAULT: no progress, so that only "changed" may be written. */
		t.err = pointers[i].set_err;
		if (t.err == EINVAL) {
			t.range.flags = KVM_USERFAULT_BITMAP;
			assert_refused(vm, true, &t);
			t.range.flags |= KVM_USERFAULT_ARM;
			assert_refused(vm, true, &t);
		} else {
			struct kvm_userfault_range range = t.range;

			range.flags = KVM_USERFAULT_BITMAP;
			TEST_ASSERT_EQ(__vm_userfault_set_range(vm, &range), t.err);
			TEST_ASSERT_EQ(range.gpa, t.range.gpa);
			TEST_ASSERT_EQ(range.bitmap, t.range.bitmap);
			TEST_ASSERT_EQ(range.changed, 0);

			range = t.range;
			range.flags = KVM_USERFAULT_BITMAP | KVM_USERFAULT_ARM;
			TEST_ASSERT_EQ(__vm_userfault_set_range(vm, &range), t.err);
			TEST_ASSERT_EQ(range.gpa, t.range.gpa);
			TEST_ASSERT_EQ(range.bitmap, t.range.bitmap);
			TEST_ASSERT_EQ(range.changed, 0);
			assert_layout_unchanged(vm, t.name);
		}

		t.err = pointers[i].get_err;
		t.range.flags = 0;
		if (t.err == EINVAL) {
			assert_refused(vm, false, &t);
		} else {
			struct kvm_userfault_range range = t.range;

			TEST_ASSERT_EQ(__vm_userfault_get_range(vm, &range), t.err);
			TEST_ASSERT_EQ(range.gpa, t.range.gpa);
			TEST_ASSERT_EQ(range.size, t.range.size);
			TEST_ASSERT_EQ(range.bitmap, t.range.bitmap);
		}
	}
}

KVM_ONE_VCPU_TEST(userfault, struct_pointer, guest_ops)
{
	struct kvm_userfault_range *range = page_with_prot(PROT_READ | PROT_WRITE);
	void *two = kvm_mmap(2 * psz, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct kvm_vm *vm = vcpu->vm;
	void *bad[] = {
		NULL,
		page_with_prot(PROT_NONE),
		two + psz - 8,
		layout_and_unmapped_page(vm),
		(void *)BIT(62),
		(void *)-psz,
	};
	int i;

	/* All but the first field lie in a page that is not there. */
	*(u64 *)(two + psz - 8) = GPA(0);
	kvm_munmap(two + psz, psz);

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		TEST_ASSERT_EQ(__vm_userfault_set_range(vm, bad[i]), EFAULT);
		TEST_ASSERT_EQ(__vm_userfault_get_range(vm, bad[i]), EFAULT);
		assert_layout_unchanged(vm, "bad struct pointer");
	}

	/* Read-only: "changed" could not be told, so nothing may change. */
	range->gpa = GPA(0);
	range->size = 200 * psz;
	set_prot(range, psz, PROT_READ);
	TEST_ASSERT_EQ(__vm_userfault_set_range(vm, range), EFAULT);
	assert_layout_unchanged(vm, "clear, read-only struct");

	set_prot(range, psz, PROT_READ | PROT_WRITE);
	range->flags = KVM_USERFAULT_ARM;
	set_prot(range, psz, PROT_READ);
	TEST_ASSERT_EQ(__vm_userfault_set_range(vm, range), EFAULT);
	assert_layout_unchanged(vm, "arm, read-only struct");
}

KVM_ONE_VCPU_TEST(userfault, enoent, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 bitmap[LAYOUT_PAGES / 64] = { };
	const struct {
		const char *name;
		u64 first;
		u64 npages;
	} ranges[] = {
		{ "slot without the flag",	300, 10 },
		{ "one page of it",		305, 1 },
		{ "only a hole",		264, 36 },
		{ "one page of a hole",		280, 1 },
		{ "flag, hole, no flag",	250, 60 },
		{ "flag, hole, first page",	263, 38 },
		{ "no flag, hole, flag",	309, 100 },
		{ "all",			0, 512 },
	};
	struct bad_range t = { .err = ENOENT };
	int i;

	create_layout(vm);

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		t.name = ranges[i].name;
		t.range.gpa = GPA(ranges[i].first);
		t.range.size = ranges[i].npages * psz;
		t.range.flags = KVM_USERFAULT_ARM;
		t.range.bitmap = 0;
		assert_refused(vm, true, &t);

		/* The bitmap selects among pages that can be armed. */
		t.range.flags |= KVM_USERFAULT_BITMAP;
		t.range.bitmap = (unsigned long)bitmap;
		assert_refused(vm, true, &t);
	}

	t.name = "far beyond all memory";
	t.range.flags = KVM_USERFAULT_ARM;
	t.range.bitmap = 0;
	t.range.gpa = BIT(60);
	t.range.size = psz;
	assert_refused(vm, true, &t);
	t.range.gpa = -2 * psz;
	assert_refused(vm, true, &t);

	/* EINVAL comes before ENOENT. */
	t.name = "ENOENT and reserved";
	t.err = EINVAL;
	t.range.reserved[1] = 1;
	assert_refused(vm, true, &t);

	/* A hole between userfault slots is skipped, ... */
	TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(264), 36 * psz), 0);
	vm_mem_region_delete(vm, 0);
	set_slot(vm, UF_SLOT + 2, 0, GPA(300), 0, NULL);
	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(250), 200 * psz), 14 + 50 - 1);
	TEST_ASSERT_EQ(count_armed(vm, GPA(250), 200), 14 + 50);

	/* ... so that all memory is armed, and cleared, with one call. */
	TEST_ASSERT_EQ(vm_userfault_arm(vm, 0, -psz), 200 + 64 + 64 - 90 - 14 - 50);
	TEST_ASSERT_EQ(count_armed(vm, GPA(0), LAYOUT_PAGES), 200 + 64 + 64);
	TEST_ASSERT_EQ(vm_userfault_clear(vm, 0, -psz), 200 + 64 + 64);
	TEST_ASSERT_EQ(count_armed(vm, GPA(0), LAYOUT_PAGES), 0);
}

/* What cannot be armed lies far behind what can: that is as clear as it was. */
KVM_ONE_VCPU_TEST(userfault, enoent_far, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	const u64 size = BIG_GPA + SZ_4G - GPA(400);
	u64 *bitmap = alloc_mem(size / psz / 8 / psz + 1);
	struct bad_range t = {
		.err = ENOENT,
		.range = {
			.gpa = GPA(400),
			.size = size,
			.flags = KVM_USERFAULT_ARM,
		},
	};

	create_layout(vm);
	add_slot(vm, UF_SLOT + 4, 0, BIG_GPA + SZ_4G - psz, 1);

	t.name = "slot without the flag, far away";
	assert_refused(vm, true, &t);

	memset(bitmap, 0xff, size / psz / 8);
	t.range.flags |= KVM_USERFAULT_BITMAP;
	t.range.bitmap = (unsigned long)bitmap;
	assert_refused(vm, true, &t);
}

/* Pages outside userfault slots need no clearing, and are never armed. */
KVM_ONE_VCPU_TEST(userfault, clear_anywhere, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 bitmap[LAYOUT_PAGES / 64];

	create_layout(vm);
	memset(bitmap, 0xff, sizeof(bitmap));

	TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(300), 10 * psz), 0);
	TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(264), 136 * psz), 0);
	TEST_ASSERT_EQ(vm_userfault_clear(vm, BIT(60), psz), 0);
	TEST_ASSERT_EQ(vm_userfault_clear(vm, -2 * psz, psz), 0);
	TEST_ASSERT_EQ(vm_userfault_set(vm, GPA(264), 136 * psz,
					KVM_USERFAULT_BITMAP, bitmap), 0);
	assert_layout_unchanged(vm, "clear outside of slots");

	TEST_ASSERT_EQ(vm_userfault_set(vm, GPA(0), LAYOUT_PAGES * psz,
					KVM_USERFAULT_BITMAP, bitmap), 91);
	TEST_ASSERT_EQ(vm_userfault_clear(vm, 0, -psz), 0);
	TEST_ASSERT_EQ(count_armed(vm, GPA(0), LAYOUT_PAGES), 0);
}

KVM_ONE_VCPU_TEST(userfault, wrong_mm, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	int status;
	pid_t pid;

	create_layout(vm);

	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed");
	if (!pid) {
		u64 bitmap;

		if (__vm_userfault_set(vm, GPA(0), 64 * psz, 0, NULL) != EIO ||
		    __vm_userfault_set(vm, GPA(0), 64 * psz, KVM_USERFAULT_ARM,
				       NULL) != EIO ||
		    __vm_userfault_get(vm, GPA(0), 64 * psz, &bitmap) != EIO)
			_exit(1);
		_exit(0);
	}

	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	TEST_ASSERT(WIFEXITED(status) && !WEXITSTATUS(status),
		    "Another process was not refused with EIO");
	assert_layout_unchanged(vm, "wrong mm");
}

/*
 * Memslots
 */

static void test_slot_create(struct kvm_vm *vm)
{
	void *hva = alloc_mem(130);

	set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, UF_GPA, 130, hva);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 130), 0);
	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(1), 3 * psz), 3);
	set_slot(vm, UF_SLOT, 0, UF_GPA, 0, NULL);

	/* No bit is left from the slot before, and none outside of the slot. */
	set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, UF_GPA, 130, hva);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 192), 0);
	set_slot(vm, UF_SLOT, 0, UF_GPA, 0, NULL);

	set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED,
		 UF_GPA, 130, hva);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 130), 130);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 192), 130);
	TEST_ASSERT_EQ(vm_userfault_arm(vm, UF_GPA, 130 * psz), 0);
	TEST_ASSERT_EQ(vm_userfault_clear(vm, UF_GPA, 130 * psz), 130);
	set_slot(vm, UF_SLOT, 0, UF_GPA, 0, NULL);

	/* One page: less than a word of bits, less than a page of bitmap. */
	set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED,
		 UF_GPA, 1, hva);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 1), 1);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 64), 1);
	set_slot(vm, UF_SLOT, 0, UF_GPA, 0, NULL);

	TEST_ASSERT_EQ(__set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT_ARMED, UF_GPA,
				  130, hva), EINVAL);
	TEST_ASSERT_EQ(__set_slot(vm, UF_SLOT,
				  KVM_MEM_USERFAULT_ARMED | KVM_MEM_LOG_DIRTY_PAGES,
				  UF_GPA, 130, hva), EINVAL);
	TEST_ASSERT_EQ(__vm_userfault_set(vm, UF_GPA, psz, KVM_USERFAULT_ARM, NULL),
		       ENOENT);
	kvm_munmap(hva, 130 * psz);
}

KVM_ONE_VCPU_TEST(userfault, slot_create, guest_ops)
{
	test_slot_create(vcpu->vm);
	use_region2 = true;
	test_slot_create(vcpu->vm);
}

static void test_slot_flags(struct kvm_vm *vm)
{
	const u32 uf = KVM_MEM_USERFAULT;
	const u32 armed = KVM_MEM_USERFAULT_ARMED;
	void *hva = add_slot(vm, UF_SLOT, 0, UF_GPA, 100);
	int i;

	/* ARMED is for creation only. */
	TEST_ASSERT_EQ(__set_slot(vm, UF_SLOT, armed, UF_GPA, 100, hva), EINVAL);
	TEST_ASSERT_EQ(__set_slot(vm, UF_SLOT, uf | armed, UF_GPA, 100, hva), EINVAL);
	TEST_ASSERT_EQ(__vm_userfault_set(vm, UF_GPA, psz, KVM_USERFAULT_ARM, NULL),
		       ENOENT);

	for (i = 0; i < 2; i++) {
		set_slot(vm, UF_SLOT, uf, UF_GPA, 100, hva);
		TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 100), 0);
		TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(10), 80 * psz), 80);

		/* Nothing to change: nothing changes. */
		set_slot(vm, UF_SLOT, uf, UF_GPA, 100, hva);
		TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 100), 80);
		TEST_ASSERT_EQ(__set_slot(vm, UF_SLOT, uf | armed, UF_GPA, 100, hva),
			       EINVAL);
		TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 100), 80);

		/* Off: all armed state is gone. */
		set_slot(vm, UF_SLOT, 0, UF_GPA, 100, hva);
		TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 100), 0);
		TEST_ASSERT_EQ(vm_userfault_clear(vm, UF_GPA, 100 * psz), 0);
		TEST_ASSERT_EQ(__vm_userfault_set(vm, UF_GPA, psz,
						  KVM_USERFAULT_ARM, NULL), ENOENT);
	}
	set_slot(vm, UF_SLOT, 0, UF_GPA, 0, NULL);

	/* A slot that was created ARMED takes updates without that bit. */
	set_slot(vm, UF_SLOT, uf | armed, UF_GPA, 100, hva);
	TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(5), psz), 1);
	set_slot(vm, UF_SLOT, uf, UF_GPA, 100, hva);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 100), 99);
	set_slot(vm, UF_SLOT, uf | KVM_MEM_LOG_DIRTY_PAGES, UF_GPA, 100, hva);

	/* Its state was not freed by that: another memslot does not get it. */
	set_slot(vm, UF_SLOT + 1, uf, GPA(1000), 100, hva);
	TEST_ASSERT_EQ(count_armed(vm, GPA(1000), 100), 0);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 100), 99);
	set_slot(vm, UF_SLOT + 1, 0, GPA(1000), 0, NULL);

	set_slot(vm, UF_SLOT, uf, UF_GPA, 100, hva);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 100), 99);
	TEST_ASSERT_EQ(__set_slot(vm, UF_SLOT, uf | armed, UF_GPA, 100, hva), EINVAL);
	TEST_ASSERT_EQ(__set_slot(vm, UF_SLOT, uf | armed | KVM_MEM_LOG_DIRTY_PAGES,
				  UF_GPA, 100, hva), EINVAL);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 100), 99);
	set_slot(vm, UF_SLOT, 0, UF_GPA, 100, hva);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 100), 0);
	set_slot(vm, UF_SLOT, uf, UF_GPA, 100, hva);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 100), 0);
	set_slot(vm, UF_SLOT, 0, UF_GPA, 0, NULL);
	kvm_munmap(hva, 100 * psz);
}

KVM_ONE_VCPU_TEST(userfault, slot_flags, guest_ops)
{
	test_slot_flags(vcpu->vm);
	use_region2 = true;
	test_slot_flags(vcpu->vm);
}

KVM_ONE_VCPU_TEST(userfault, slot_move, guest_ops)
{
	const u32 uf = KVM_MEM_USERFAULT;
	struct kvm_vm *vm = vcpu->vm;
	void *hva = add_slot(vm, UF_SLOT, uf, UF_GPA, 100);

	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(10), 80 * psz), 80);
	TEST_ASSERT_EQ(__set_slot(vm, UF_SLOT, uf, GPA(1000), 100, hva), EINVAL);
	TEST_ASSERT_EQ(__set_slot(vm, UF_SLOT, 0, GPA(1000), 100, hva), EINVAL);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 100), 80);

	set_slot(vm, UF_SLOT, 0, UF_GPA, 100, hva);
	TEST_ASSERT_EQ(__set_slot(vm, UF_SLOT, uf, GPA(1000), 100, hva), EINVAL);
	set_slot(vm, UF_SLOT, 0, GPA(1000), 100, hva);
	set_slot(vm, UF_SLOT, uf, GPA(1000), 100, hva);
	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(1000), 100 * psz), 100);
}

KVM_ONE_VCPU_TEST(userfault, slot_dirty_log, guest_ops)
{
	const u32 uf = KVM_MEM_USERFAULT, log = KVM_MEM_LOG_DIRTY_PAGES;
	struct kvm_vm *vm = vcpu->vm;
	void *hva = add_mapped_slot(vm, UF_SLOT, uf, UF_GPA, 8);
	u64 dirty = 0;

	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(2), psz), 1);
	set_slot(vm, UF_SLOT, uf | log, UF_GPA, 8, hva);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 8), 1);

	/* An access that did not happen makes nothing dirty. */
	set_cmd(vcpu, WRITE, GPA(2), 7);
	assert_userfault_exit(vcpu, GPA(2), KVM_MEMORY_EXIT_FLAG_WRITE);
	kvm_vm_get_dirty_log(vm, UF_SLOT, &dirty);
	TEST_ASSERT_EQ(dirty, 0);

	vm_userfault_clear(vm, GPA(2), psz);
	assert_done(vcpu, 7);
	kvm_vm_get_dirty_log(vm, UF_SLOT, &dirty);
	TEST_ASSERT_EQ(dirty, BIT(2));

	/* Write protected and armed: the exit comes first. */
	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(2), 2 * psz), 2);
	set_cmd(vcpu, WRITE, GPA(2), 8);
	assert_userfault_exit(vcpu, GPA(2), KVM_MEMORY_EXIT_FLAG_WRITE);
	set_slot(vm, UF_SLOT, uf, UF_GPA, 8, hva);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 8), 2);
	assert_userfault_exit(vcpu, GPA(2), KVM_MEMORY_EXIT_FLAG_WRITE);

	/* Flag off with logging on, and the other way round. */
	set_slot(vm, UF_SLOT, uf | log, UF_GPA, 8, hva);
	set_slot(vm, UF_SLOT, log, UF_GPA, 8, hva);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 8), 0);
	assert_done(vcpu, 8);
	kvm_vm_get_dirty_log(vm, UF_SLOT, &dirty);
	TEST_ASSERT_EQ(dirty, BIT(2));
	set_slot(vm, UF_SLOT, uf | log, UF_GPA, 8, hva);
	set_cmd(vcpu, WRITE, GPA(3), 9);
	assert_done(vcpu, 9);
	kvm_vm_get_dirty_log(vm, UF_SLOT, &dirty);
	TEST_ASSERT_EQ(dirty, BIT(3));
	set_slot(vm, UF_SLOT, 0, UF_GPA, 8, hva);
	guest_read(vcpu, GPA(3), 9);
}

/* What the cgroup is charged must have grown from @before by @grown; counters lag a bit. */
static void assert_charged(const char *cgroup, long before, long grown, const char *what)
{
	long charged = cg_read_long(cgroup, "memory.current");

	TEST_ASSERT(labs(charged - before - grown) < MEMCG_SLACK,
		    "%s: %ld bytes are charged after %ld, wanted %ld more", what, charged,
		    before, grown);
}

/*
 * The bitmap is charged to who makes the memslot or sets the flag, and comes back with
 * the flag, the memslot or the VM.  The slots' other memory is in what was before.
 */
static void test_memcg(const char *cgroup, void *hva)
{
	const u32 uf = KVM_MEM_USERFAULT, armed = KVM_MEM_USERFAULT_ARMED;
	const long bitmap_size = MEMCG_PAGES / 8;
	long no_vm, no_slot, no_flag, flag;
	struct kvm_vm *vm;

	no_vm = cg_read_long(cgroup, "memory.current");
	vm = vm_create_barebones();
	no_slot = cg_read_long(cgroup, "memory.current");
	set_slot(vm, UF_SLOT, 0, BIG_GPA, MEMCG_PAGES, hva);
	no_flag = cg_read_long(cgroup, "memory.current");

	set_slot(vm, UF_SLOT, uf, BIG_GPA, MEMCG_PAGES, hva);
	assert_charged(cgroup, no_flag, bitmap_size, "Flag set");
	flag = cg_read_long(cgroup, "memory.current");
	vm_userfault_arm(vm, BIG_GPA, SZ_1G);
	assert_charged(cgroup, no_flag, bitmap_size, "Armed");
	vm_userfault_clear(vm, BIG_GPA, SZ_1G);
	set_slot(vm, UF_SLOT, 0, BIG_GPA, MEMCG_PAGES, hva);
	assert_charged(cgroup, no_flag, 0, "Flag dropped");

	set_slot(vm, UF_SLOT, uf, BIG_GPA, MEMCG_PAGES, hva);
	set_slot(vm, UF_SLOT, 0, BIG_GPA, 0, hva);
	assert_charged(cgroup, no_slot, 0, "Memslot deleted");

	set_slot(vm, UF_SLOT, uf | armed, BIG_GPA, MEMCG_PAGES, hva);
	assert_charged(cgroup, no_flag, bitmap_size, "Memslot created armed");
	kvm_vm_free(vm);
	assert_charged(cgroup, no_vm, 0, "VM deleted");

	ksft_print_msg("Charged for each GiB of guest memory: %lu bytes\n",
		       (flag - no_flag) / (MEMCG_PAGES * psz / SZ_1G));
}

KVM_ONE_VCPU_TEST(userfault, memcg, guest_ops)
{
	char root[PATH_MAX], *cgroup;
	void *hva;

	__TEST_REQUIRE(BIG_GPA + MEMCG_PAGES * psz <= BIT(vcpu->vm->pa_bits),
		       "The memslot is too large for the VM");
	__TEST_REQUIRE(!cg_find_unified_root(root, sizeof(root), NULL) &&
		       !cg_write(root, "cgroup.subtree_control", "+memory"),
		       "No memory controller of cgroup2, or not root");
	cgroup = cg_name_indexed(root, "kvm_userfault_test", getpid());
	TEST_ASSERT(!cg_create(cgroup), "Cannot make %s, errno %d", cgroup, errno);
	hva = alloc_mem(MEMCG_PAGES);

	/* Each CPU has a stock of what is charged in advance. */
	pin_self_to_any_cpu();
	TEST_ASSERT(!cg_enter_current(cgroup), "Cannot enter %s, errno %d", cgroup, errno);
	test_memcg(cgroup, hva);
	TEST_ASSERT(!cg_enter_current(root), "Cannot leave %s, errno %d", cgroup, errno);
	cg_destroy(cgroup);
	free(cgroup);
}

KVM_ONE_VCPU_TEST(userfault, slot_readonly, guest_ops)
{
	const u32 uf = KVM_MEM_USERFAULT, ro = KVM_MEM_READONLY;
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_READONLY_MEM));

	hva = add_mapped_slot(vm, UF_SLOT, ro | uf | KVM_MEM_USERFAULT_ARMED,
			      UF_GPA, 4);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 4), 4);
	set_cmd(vcpu, READ, GPA(1), 0);
	assert_userfault_exit(vcpu, GPA(1), KVM_MEMORY_EXIT_FLAG_READ);
	hva[psz / 8] = 0x1234;
	vm_userfault_clear(vm, GPA(1), psz);
	assert_done(vcpu, 0x1234);

	/* READONLY itself cannot be toggled, the others can. */
	TEST_ASSERT_EQ(__set_slot(vm, UF_SLOT, uf, UF_GPA, 4, hva), EINVAL);
	set_slot(vm, UF_SLOT, ro | uf | KVM_MEM_LOG_DIRTY_PAGES, UF_GPA, 4, hva);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 4), 3);
	set_slot(vm, UF_SLOT, ro | uf, UF_GPA, 4, hva);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, 4), 3);
	set_slot(vm, UF_SLOT, ro, UF_GPA, 4, hva);
	guest_read(vcpu, GPA(0), 0);
	set_slot(vm, UF_SLOT, ro | uf, UF_GPA, 4, hva);
	guest_read(vcpu, GPA(1), 0x1234);
	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(1), psz), 1);
	set_cmd(vcpu, READ, GPA(1), 0);
	assert_userfault_exit(vcpu, GPA(1), KVM_MEMORY_EXIT_FLAG_READ);
}

/*
 * Armed state against a model.  In pages from UF_GPA: two adjacent userfault
 * slots, neither aligned to 64, a hole, a slot without the flag, a hole, and a
 * last userfault slot.
 */
#define MODEL_PAGES	1100

enum page_kind {
	HOLE,
	PLAIN,
	USERFAULT,
};

static u8 model_kind[MODEL_PAGES];
static bool model_armed[MODEL_PAGES];

static void model_slot(struct kvm_vm *vm, u32 slot, u64 first, u64 npages,
		       enum page_kind kind)
{
	add_slot(vm, slot, kind == USERFAULT ? KVM_MEM_USERFAULT : 0, GPA(first),
		 npages);
	memset(model_kind + first, kind, npages);
}

static bool get_bit(const u8 *bitmap, u64 n)
{
	return bitmap[n / 8] & BIT(n % 8);
}

/* GET pages [first, first + n) and compare every bit, and what lies beyond. */
static void model_compare(struct kvm_vm *vm, u64 first, u64 n)
{
	static u64 bitmap[MODEL_PAGES / 64 + 2];
	const u8 *bytes = (u8 *)bitmap;
	u64 i;

	memset(bitmap, 0xff, sizeof(bitmap));
	vm_userfault_get(vm, GPA(first), n * psz, bitmap);

	for (i = 0; i < n; i++)
		TEST_ASSERT(get_bit(bytes, i) == model_armed[first + i],
			    "Page %lu is %sarmed, and should%s be", first + i,
			    get_bit(bytes, i) ? "" : "not ",
			    model_armed[first + i] ? "" : "n't");
	for (; i % 8; i++)
		TEST_ASSERT(!get_bit(bytes, i), "Tail bit %lu is set", i);
	for (; i < sizeof(bitmap) * 8; i++)
		TEST_ASSERT(get_bit(bytes, i), "GET wrote bit %lu, beyond its end", i);
}

/* What SET should do: 0 or -errno, how many pages change, and the new state. */
static int model_set(u64 first, u64 n, u64 flags, const void *bitmap, u64 *changed)
{
	bool arm = flags & KVM_USERFAULT_ARM;
	bool any = false;
	u64 i;

	*changed = 0;

	for (i = first; i < first + n; i++) {
		if (arm && model_kind[i] == PLAIN)
			return -ENOENT;
		any |= model_kind[i] == USERFAULT;
	}
	if (arm && !any)
		return -ENOENT;

	for (i = 0; i < n; i++) {
		if (model_kind[first + i] != USERFAULT ||
		    model_armed[first + i] == arm)
			continue;
		if (flags & KVM_USERFAULT_BITMAP && !get_bit(bitmap, i))
			continue;
		model_armed[first + i] = arm;
		(*changed)++;
	}

	return 0;
}

/* Random words: dense, sparse, all, none. */
static void random_bitmap(struct guest_random_state *rng, u64 *bitmap, u64 n)
{
	u64 i;

	for (i = 0; i < n; i++) {
		switch (guest_random_u32(rng) % 4) {
		case 0:
			bitmap[i] = guest_random_u64(rng);
			break;
		case 1:
			bitmap[i] = BIT(guest_random_u32(rng) % 64);
			break;
		case 2:
			bitmap[i] = ~0ull;
			break;
		case 3:
			bitmap[i] = 0;
			break;
		}
	}
}

KVM_ONE_VCPU_TEST(userfault, model, guest_ops)
{
	static u64 bitmap[MODEL_PAGES / 64 + 2];
	struct guest_random_state rng = new_guest_random_state(0x75f72);
	struct kvm_userfault_range range;
	struct kvm_vm *vm = vcpu->vm;
	int i, err, want, nr_enoent = 0;
	u64 first, n, changed;

	pr_info("# seed 0x%x\n", rng.seed);

	model_slot(vm, UF_SLOT, 7, 200, USERFAULT);
	model_slot(vm, UF_SLOT + 1, 207, 65, USERFAULT);
	model_slot(vm, UF_SLOT + 2, 300, 513, USERFAULT);
	model_slot(vm, UF_SLOT + 3, 830, 10, PLAIN);
	model_slot(vm, UF_SLOT + 4, 1000, 63, USERFAULT);
	model_compare(vm, 0, MODEL_PAGES);

	for (i = 0; i < 500; i++) {
		first = guest_random_u32(&rng) % MODEL_PAGES;
		/* Mostly short ranges, so that most of them avoid the plain slot. */
		n = guest_random_u32(&rng) % (i % 3 ? 150 : MODEL_PAGES) + 1;
		n = min(n, MODEL_PAGES - first);

		memset(&range, 0, sizeof(range));
		range.gpa = GPA(first);
		range.size = n * psz;
		range.changed = POISON;
		if (guest_random_bool(&rng))
			range.flags |= KVM_USERFAULT_ARM;
		if (guest_random_bool(&rng)) {
			range.flags |= KVM_USERFAULT_BITMAP;
			range.bitmap = (unsigned long)bitmap;
			random_bitmap(&rng, bitmap, ARRAY_SIZE(bitmap));
		}

		want = model_set(first, n, range.flags, bitmap, &changed);
		err = -__vm_userfault_set_range(vm, &range);
		TEST_ASSERT(err == want,
			    "#%d pages %lu + %lu flags 0x%llx: errno %d, wanted %d",
			    i, first, n, range.flags, err, want);
		nr_enoent += !!err;
		if (!err)
			TEST_ASSERT(range.changed == changed,
				    "#%d pages %lu + %lu flags 0x%llx: %llu changed, wanted %lu",
				    i, first, n, range.flags, range.changed, changed);

		/* On success nothing but "changed" is written back. */
		TEST_ASSERT(range.gpa == GPA(first) && range.size == n * psz &&
			    (!range.bitmap || range.bitmap == (unsigned long)bitmap),
			    "#%d: the struct was changed", i);

		model_compare(vm, 0, MODEL_PAGES);
		first = guest_random_u32(&rng) % MODEL_PAGES;
		n = guest_random_u32(&rng) % (MODEL_PAGES - first) + 1;
		model_compare(vm, first, n);
	}

	TEST_ASSERT(nr_enoent > 10 && nr_enoent < 250, "%d of %d refused", nr_enoent, i);
}

/*
 * Progress
 */

/* The parts of a call that was stopped: whole words, all fields in step. */
static u64 assert_progress(const struct kvm_userfault_range *before,
			   const struct kvm_userfault_range *after)
{
	u64 done = (after->gpa - before->gpa) / psz;

	TEST_ASSERT(after->gpa >= before->gpa && !(done % 64),
		    "Moved on by %lu pages, not a multiple of 64", done);
	TEST_ASSERT_EQ(after->size, before->size - done * psz);
	TEST_ASSERT(after->size, "Stopped, but nothing is left to do");
	if (before->bitmap)
		TEST_ASSERT_EQ(after->bitmap, before->bitmap + done / 8);
	else
		TEST_ASSERT_EQ(after->bitmap, 0);
	TEST_ASSERT_EQ(after->flags, before->flags);
	TEST_ASSERT_EQ(after->as_mask, before->as_mask);
	return done;
}

static u64 count_bits(const u64 *bitmap, u64 nr_bits)
{
	u64 i, n = 0;

	for (i = 0; i < nr_bits / 64; i++)
		n += __builtin_popcountll(bitmap[i]);
	if (nr_bits % 64)
		n += __builtin_popcountll(bitmap[i] << (64 - nr_bits % 64));
	return n;
}

/* A slot of 4G, or, with larger pages, such that its bitmap has a few pages itself. */
#define BIG_BITMAP_BYTES	max_t(u64, SZ_4G / psz / 8, 4 * psz)
#define BIG_PAGES		(BIG_BITMAP_BYTES * 8)

/* There is a signal for each page of the bitmap, and it is looked for each GiB. */
#define BIG_MIN_EINTR		(min_t(u64, BIG_PAGES * psz / SZ_1G, BIG_BITMAP_BYTES / psz) - 1)

/* Not aligned to 64 pages at either end. */
#define BIG_FIRST		3
#define BIG_NPAGES		(BIG_PAGES - 8)

static u64 *big_pattern(void)
{
	struct guest_random_state rng = new_guest_random_state(0xb16);
	u64 *pattern = alloc_mem(BIG_BITMAP_BYTES / psz);

	random_bitmap(&rng, pattern, BIG_BITMAP_BYTES / 8);
	return pattern;
}

static void assert_big_state(struct kvm_vm *vm, const u64 *pattern, u64 npages)
{
	static u64 *armed;

	if (!armed)
		armed = alloc_mem(BIG_BITMAP_BYTES / psz);

	vm_userfault_get(vm, BIG_GPA + BIG_FIRST * psz, BIG_NPAGES * psz, armed);
	TEST_ASSERT(!(npages % 64) || npages == BIG_NPAGES, "Test bug");
	TEST_ASSERT(!memcmp(armed, pattern, npages / 64 * 8),
		    "Not all of the first %lu pages are as they should be", npages);
	TEST_ASSERT_EQ(count_bits(armed, BIG_NPAGES), count_bits(pattern, npages));
}

static pthread_t signalled_thread;
static const void *uffd_source;
static void *uffd_target;

/* Signal the thread that faults, and only then let it go on. */
static int signalling_uffd_handler(int mode, int uffd, struct uffd_msg *msg)
{
	u64 addr = msg->arg.pagefault.address & ~(psz - 1);
	struct uffdio_copy copy = {
		.dst = addr,
		.src = (u64)uffd_source + (addr - (u64)uffd_target),
		.len = psz,
	};

	pthread_kill(signalled_thread, SIGUSR1);
	TEST_ASSERT(!ioctl(uffd, UFFDIO_COPY, &copy) || errno == EEXIST,
		    "UFFDIO_COPY failed, errno = %d", errno);
	return 0;
}

static void ignore_signal(int sig)
{
}

static void catch_signal(int sig)
{
	struct sigaction sa = { .sa_handler = ignore_signal };

	signalled_thread = pthread_self();
	TEST_ASSERT(!sigaction(sig, &sa, NULL), "sigaction() failed");
}

/*
 * A signal comes while KVM reads the user bitmap, i.e. is pending before the
 * first part of the range is done: the call does that part, at most 1 GiB, and
 * returns.
 */
KVM_ONE_VCPU_TEST(userfault, eintr_set, guest_ops)
{
	struct kvm_userfault_range range = {
		.gpa = BIG_GPA + BIG_FIRST * psz,
		.size = BIG_NPAGES * psz,
		.flags = KVM_USERFAULT_ARM | KVM_USERFAULT_BITMAP,
	}, before;
	u64 *target = alloc_mem(BIG_BITMAP_BYTES / psz);
	u64 *pattern = big_pattern();
	struct kvm_vm *vm = vcpu->vm;
	u64 done = 0, step, changed = 0;
	struct uffd_desc *uffd;
	int err, nr_eintr = 0;

	add_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, BIG_GPA, BIG_PAGES);
	catch_signal(SIGUSR1);
	uffd_source = pattern;
	uffd_target = target;
	uffd = uffd_setup_demand_paging(UFFDIO_REGISTER_MODE_MISSING, 0, target,
					BIG_BITMAP_BYTES, 1,
					signalling_uffd_handler);

	range.bitmap = (unsigned long)target;
	for (;;) {
		range.changed = POISON;
		before = range;
		err = __vm_userfault_set_range(vm, &range);
		if (!err)
			break;

		TEST_ASSERT_EQ(err, EINTR);
		nr_eintr++;
		step = assert_progress(&before, &range);
		/* The next signal comes with the next page of the bitmap. */
		TEST_ASSERT(step * psz <= max_t(u64, SZ_1G, 8 * psz * psz),
			    "0x%lx pages without a signal check",
			    step);
		TEST_ASSERT_EQ(range.changed,
			       count_bits(pattern + done / 64, step));
		changed += range.changed;
		done += step;
		assert_big_state(vm, pattern, done);
	}
	TEST_ASSERT(nr_eintr >= BIG_MIN_EINTR, "Only %d times EINTR", nr_eintr);

	/* The last call wrote nothing but "changed". */
	TEST_ASSERT_EQ(range.gpa, before.gpa);
	TEST_ASSERT_EQ(range.size, before.size);
	TEST_ASSERT_EQ(range.bitmap, before.bitmap);

	TEST_ASSERT_EQ(changed + range.changed, count_bits(pattern, BIG_NPAGES));
	assert_big_state(vm, pattern, BIG_NPAGES);
	uffd_stop_demand_paging(uffd);
}

KVM_ONE_VCPU_TEST(userfault, eintr_get, guest_ops)
{
	struct kvm_userfault_range range = {
		.gpa = BIG_GPA + BIG_FIRST * psz,
		.size = BIG_NPAGES * psz,
	}, before;
	u64 *target = alloc_mem(BIG_BITMAP_BYTES / psz);
	u64 *pattern = big_pattern();
	struct kvm_vm *vm = vcpu->vm;
	struct uffd_desc *uffd;
	int err, nr_eintr = 0;
	u64 done = 0;

	add_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, BIG_GPA, BIG_PAGES);
	vm_userfault_set(vm, range.gpa, range.size,
			 KVM_USERFAULT_ARM | KVM_USERFAULT_BITMAP, pattern);

	catch_signal(SIGUSR1);
	uffd_source = alloc_mem(BIG_BITMAP_BYTES / psz);
	uffd_target = target;
	uffd = uffd_setup_demand_paging(UFFDIO_REGISTER_MODE_MISSING, 0, target,
					BIG_BITMAP_BYTES, 1,
					signalling_uffd_handler);

	range.bitmap = (unsigned long)target;
	for (;;) {
		before = range;
		err = __vm_userfault_get_range(vm, &range);
		if (!err)
			break;

		TEST_ASSERT_EQ(err, EINTR);
		nr_eintr++;
		done += assert_progress(&before, &range);
		TEST_ASSERT(!memcmp(target, pattern, done / 8),
			    "Not all of the first %lu bits are right", done);
	}
	TEST_ASSERT(nr_eintr >= BIG_MIN_EINTR, "Only %d times EINTR", nr_eintr);
	TEST_ASSERT(!memcmp(target, pattern, BIG_NPAGES / 8),
		    "The bitmap that was read in parts is wrong");
	uffd_stop_demand_paging(uffd);
}

/* Without a bitmap: a timer, until it has hit the middle of calls. */
KVM_ONE_VCPU_TEST(userfault, eintr_timer, guest_ops)
{
	struct itimerval fast = {
		.it_interval.tv_usec = 200,
		.it_value.tv_usec = 200,
	};
	struct itimerval off = { };
	struct kvm_userfault_range range, before;
	u64 *all = alloc_mem(BIG_BITMAP_BYTES / psz);
	struct kvm_vm *vm = vcpu->vm;
	int i, err, nr_eintr = 0;
	u64 done, changed;
	bool arm;

	memset(all, 0xff, BIG_BITMAP_BYTES);
	add_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, BIG_GPA, BIG_PAGES);
	catch_signal(SIGALRM);

	for (i = 0; nr_eintr < 10; i++) {
		TEST_ASSERT(i < 1000, "Only %d times EINTR in %d calls", nr_eintr, i);

		arm = !(i % 2);
		done = 0;
		changed = 0;
		memset(&range, 0, sizeof(range));
		range.gpa = BIG_GPA + BIG_FIRST * psz;
		range.size = BIG_NPAGES * psz;
		range.flags = arm ? KVM_USERFAULT_ARM : 0;
		for (;;) {
			before = range;
			setitimer(ITIMER_REAL, &fast, NULL);
			err = __vm_userfault_set_range(vm, &range);
			setitimer(ITIMER_REAL, &off, NULL);
			changed += range.changed;
			if (!err)
				break;

			TEST_ASSERT_EQ(err, EINTR);
			nr_eintr++;
			done += assert_progress(&before, &range);
			TEST_ASSERT_EQ(changed, done);
			if (arm)
				assert_big_state(vm, all, done);
		}
		TEST_ASSERT_EQ(changed, BIG_NPAGES);
		assert_big_state(vm, all, arm ? BIG_NPAGES : 0);
	}
}

/*
 * Holes that are skipped, in parts of the range: wherever a memslot begins, the
 * bits of the bitmap are those of its pages.
 */
KVM_ONE_VCPU_TEST(userfault, bitmap_holes, guest_ops)
{
	const u64 slots[] = { 5, 4500, 4700, 9001, 30033 };
	const u64 per_slot = 100, npages = 30133 - BIG_FIRST;
	u64 *armed = alloc_mem(npages / 8 / psz + 1);
	u64 *pattern = big_pattern();
	struct kvm_vm *vm = vcpu->vm;
	u64 i, j, page, changed, want = 0;

	for (i = 0; i < ARRAY_SIZE(slots); i++)
		add_slot(vm, UF_SLOT + i, KVM_MEM_USERFAULT, BIG_GPA + slots[i] * psz,
			 per_slot);

	changed = vm_userfault_set(vm, BIG_GPA + BIG_FIRST * psz, npages * psz,
				   KVM_USERFAULT_ARM | KVM_USERFAULT_BITMAP, pattern);
	vm_userfault_get(vm, BIG_GPA + BIG_FIRST * psz, npages * psz, armed);

	for (i = 0; i < ARRAY_SIZE(slots); i++) {
		for (j = 0; j < per_slot; j++) {
			page = slots[i] + j - BIG_FIRST;
			TEST_ASSERT(get_bit((u8 *)armed, page) == get_bit((u8 *)pattern, page),
				    "Page %lu of the slot at %lu: armed %u", j, slots[i],
				    get_bit((u8 *)armed, page));
			want += get_bit((u8 *)pattern, page);
		}
	}
	TEST_ASSERT_EQ(count_bits(armed, npages), want);
	TEST_ASSERT_EQ(changed, want);

	TEST_ASSERT_EQ(vm_userfault_set(vm, BIG_GPA + BIG_FIRST * psz, npages * psz,
					KVM_USERFAULT_BITMAP, pattern), want);
}

/* A page in the middle of the user bitmap is not there. */
KVM_ONE_VCPU_TEST(userfault, efault_progress, guest_ops)
{
	const struct kvm_userfault_range whole = {
		.gpa = BIG_GPA + BIG_FIRST * psz,
		.size = BIG_NPAGES * psz,
		.flags = KVM_USERFAULT_ARM | KVM_USERFAULT_BITMAP,
	};
	u64 *target = alloc_mem(BIG_BITMAP_BYTES / psz);
	u64 *pattern = big_pattern();
	struct kvm_userfault_range range, before;
	struct kvm_vm *vm = vcpu->vm;
	u64 good, done, changed;

	/* Good for more than one part of the work, which is 1 GiB at most. */
	good = align_down(BIG_BITMAP_BYTES / 2, psz) + psz;

	add_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, BIG_GPA, BIG_PAGES);
	memcpy(target, pattern, BIG_BITMAP_BYTES);
	set_prot((void *)target + good, psz, PROT_NONE);

	range = whole;
	range.bitmap = (unsigned long)target;
	before = range;
	TEST_ASSERT_EQ(__vm_userfault_set_range(vm, &range), EFAULT);
	done = assert_progress(&before, &range);
	TEST_ASSERT(done && done <= good * 8, "Got to page %lu of %lu", done, good * 8);
	TEST_ASSERT_EQ(range.changed, count_bits(pattern, done));
	assert_big_state(vm, pattern, done);
	changed = range.changed;

	/* As long as nothing is done about it, no call gets past it. */
	before = range;
	TEST_ASSERT_EQ(__vm_userfault_set_range(vm, &range), EFAULT);
	done += assert_progress(&before, &range);
	TEST_ASSERT(done <= good * 8, "Got to page %lu of %lu", done, good * 8);
	assert_big_state(vm, pattern, done);
	changed += range.changed;

	set_prot((void *)target + good, psz, PROT_READ);
	TEST_ASSERT_EQ(__vm_userfault_set_range(vm, &range), 0);
	TEST_ASSERT_EQ(changed + range.changed, count_bits(pattern, BIG_NPAGES));
	assert_big_state(vm, pattern, BIG_NPAGES);

	/* GET writes the bitmap: read-only is bad enough. */
	memset(target, 0, good);
	range = whole;
	range.flags = 0;
	range.bitmap = (unsigned long)target;
	before = range;
	TEST_ASSERT_EQ(__vm_userfault_get_range(vm, &range), EFAULT);
	done = assert_progress(&before, &range);
	TEST_ASSERT(done && done <= good * 8, "Got to page %lu of %lu", done, good * 8);
	TEST_ASSERT(!memcmp(target, pattern, done / 8),
		    "Not all of the first %lu bits are right", done);

	set_prot((void *)target + good, psz, PROT_READ | PROT_WRITE);
	memset((void *)target + good, 0, BIG_BITMAP_BYTES - good);
	TEST_ASSERT_EQ(__vm_userfault_get_range(vm, &range), 0);
	TEST_ASSERT(!memcmp(target, pattern, BIG_NPAGES / 8),
		    "The bitmap that was read in two parts is wrong");
}

/*
 * Exits
 */

/*
 * Make @op run into an armed page, again and again, then clear the page and see
 * the operation done with what the host stored meanwhile.
 */
static void test_exit(struct kvm_vcpu *vcpu, u64 access)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = add_mapped_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, UF_GPA, 4);
	u64 *page = hva + psz / 8;
	gpa_t gpa = GPA(1);
	u64 armed = 0, pc;
	int i, round;

	/* First with the page never mapped, then with a mapping to be dropped. */
	for (round = 0; round < 2; round++) {
		u64 val = 0x100 + round;

		page[3] = 0x55;
		TEST_ASSERT_EQ(vm_userfault_arm(vm, gpa, psz), 1);

		set_cmd(vcpu, access, access == EXEC ? gpa : gpa + 24, val);
		assert_userfault_exit(vcpu, gpa, access);
		pc = vcpu_pc(vcpu);
		if (access == EXEC)
			TEST_ASSERT_EQ(pc, gpa);

		for (i = 0; i < 3; i++) {
			/* GET, and clearing another page, do not help it on. */
			vm_userfault_get(vm, gpa, psz, &armed);
			TEST_ASSERT_EQ(armed, 1);
			TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(2), psz), 0);

			assert_userfault_exit(vcpu, gpa, access);
			TEST_ASSERT_EQ(vcpu_pc(vcpu), pc);
			TEST_ASSERT_EQ(page[3], 0x55);
		}

		if (access == EXEC)
			write_code(page, val);
		else if (access == READ)
			page[3] = val;

		TEST_ASSERT_EQ(vm_userfault_clear(vm, gpa, psz), 1);
		TEST_ASSERT_EQ(vcpu_pc(vcpu), pc);
		assert_done(vcpu, val);
		if (access == WRITE)
			TEST_ASSERT_EQ(page[3], val);
	}
}

KVM_ONE_VCPU_TEST(userfault, exit_read, guest_ops)
{
	test_exit(vcpu, READ);
}

KVM_ONE_VCPU_TEST(userfault, exit_write, guest_ops)
{
	test_exit(vcpu, WRITE);
}

KVM_ONE_VCPU_TEST(userfault, exit_exec, guest_ops)
{
	test_exit(vcpu, EXEC);
}

/* Exits for exactly the armed pages, in each of many rounds, counted by KVM. */
KVM_ONE_VCPU_TEST(userfault, exit_exact, guest_ops)
{
	struct guest_random_state rng = new_guest_random_state(0xe817);
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = add_mapped_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, UF_GPA, 70);
	u64 exits = vcpu_get_stat(vcpu, userfault_exits);
	u64 bitmap[2];
	int round, i;

	TEST_ASSERT_EQ(exits, 0);

	for (round = 0; round < 5; round++) {
		bitmap[0] = guest_random_u64(&rng);
		bitmap[1] = guest_random_u64(&rng);
		TEST_ASSERT_EQ(vm_userfault_set(vm, UF_GPA, 70 * psz,
						KVM_USERFAULT_ARM | KVM_USERFAULT_BITMAP,
						bitmap), count_bits(bitmap, 70));

		for (i = 0; i < 70; i++) {
			hva[i * psz / 8] = i + round;
			set_cmd(vcpu, READ, GPA(i), 0);
			if (get_bit((u8 *)bitmap, i)) {
				assert_userfault_exit(vcpu, GPA(i),
						      KVM_MEMORY_EXIT_FLAG_READ);
				exits++;
				TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits),
					       exits);
				TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(i), psz), 1);
			}
			assert_done(vcpu, i + round);
		}
	}
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), exits);
}

KVM_ONE_VCPU_TEST(userfault, exit_after_create_armed, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = add_mapped_slot(vm, UF_SLOT, 0, UF_GPA, 4);
	u64 *new = alloc_mem(4);

	hva[0] = 1;
	new[0] = 2;
	guest_read(vcpu, UF_GPA, 1);

	set_slot(vm, UF_SLOT, 0, UF_GPA, 0, NULL);
	set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED,
		 UF_GPA, 4, new);
	set_cmd(vcpu, READ, UF_GPA, 0);
	assert_userfault_exit(vcpu, UF_GPA, KVM_MEMORY_EXIT_FLAG_READ);
	vm_userfault_clear(vm, UF_GPA, psz);
	assert_done(vcpu, 2);

	/* And clean again: nothing of the armed pages 1 to 3 is left. */
	set_slot(vm, UF_SLOT, 0, UF_GPA, 0, NULL);
	set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, UF_GPA, 4, hva);
	guest_read(vcpu, UF_GPA, 1);
	guest_read(vcpu, GPA(3), 0);

	/* Off drops what was armed: the vCPU just goes on. */
	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(1), psz), 1);
	set_cmd(vcpu, WRITE, GPA(1), 5);
	assert_userfault_exit(vcpu, GPA(1), KVM_MEMORY_EXIT_FLAG_WRITE);
	set_slot(vm, UF_SLOT, 0, UF_GPA, 4, hva);
	assert_done(vcpu, 5);
	TEST_ASSERT_EQ(hva[psz / 8], 5);
}

KVM_ONE_VCPU_TEST(userfault, exit_two_vcpus, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	struct kvm_vcpu *other = vm_vcpu_add(vm, 1, guest_ops);
	u64 *hva = add_mapped_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, UF_GPA, 4);

	vcpu_args_set(other, 1, 1ul);
	hva[0] = 1;
	guest_read(vcpu, UF_GPA, 1);
	guest_read(other, UF_GPA, 1);
	TEST_ASSERT_EQ(vm_userfault_arm(vm, UF_GPA, psz), 1);

	set_cmd(vcpu, READ, UF_GPA, 0);
	set_cmd(other, WRITE, UF_GPA, 3);
	assert_userfault_exit(vcpu, UF_GPA, KVM_MEMORY_EXIT_FLAG_READ);
	assert_userfault_exit(other, UF_GPA, KVM_MEMORY_EXIT_FLAG_WRITE);
	assert_userfault_exit(vcpu, UF_GPA, KVM_MEMORY_EXIT_FLAG_READ);
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), 2);
	TEST_ASSERT_EQ(vcpu_get_stat(other, userfault_exits), 1);

	hva[0] = 2;
	TEST_ASSERT_EQ(vm_userfault_clear(vm, UF_GPA, psz), 1);
	assert_done(vcpu, 2);
	assert_done(other, 3);
	TEST_ASSERT_EQ(hva[0], 3);
}

/*
 * Running vCPUs
 */

struct worker {
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	sem_t exited;
	sem_t resume;
	u64 exits;
};

#define MMIO_VAL	0x3333

/* Run the vCPU until it is done; stop at every exit until told to go on. */
static void *worker_fn(void *arg)
{
	struct worker *w = arg;
	struct kvm_run *run = w->vcpu->run;
	struct ucall uc;
	int ret;

	for (;;) {
		ret = _vcpu_run(w->vcpu);
		if (is_userfault_exit(w->vcpu, ret)) {
			WRITE_ONCE(w->exits, w->exits + 1);
		} else if (!ret && run->exit_reason == KVM_EXIT_MMIO &&
			   run->mmio.phys_addr - UF_GPA < SZ_1G) {
			u64 val = MMIO_VAL;

			memcpy(run->mmio.data, &val, sizeof(val));
		} else {
			break;
		}

		sem_post(&w->exited);
		sem_wait(&w->resume);
	}

	TEST_ASSERT(!ret, "KVM_RUN failed, errno %d exit reason %u", errno,
		    run->exit_reason);
	TEST_ASSERT_EQ(get_ucall(w->vcpu, &uc), UCALL_DONE);
	return NULL;
}

static void worker_start(struct worker *w, struct kvm_vcpu *vcpu)
{
	w->vcpu = vcpu;
	w->exits = 0;
	sem_init(&w->exited, 0, 0);
	sem_init(&w->resume, 0, 0);
	TEST_ASSERT(!pthread_create(&w->thread, NULL, worker_fn, w),
		    "pthread_create() failed");
}

static void worker_wait(struct worker *w)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_sec += 10;
	TEST_ASSERT(!sem_timedwait(&w->exited, &ts), "vCPU %u does not exit",
		    w->vcpu->id);
}

/* The vCPU's next exit is this one. */
#define worker_assert_exit(w, _gpa, access)				\
do {									\
	struct worker *__w = (w);					\
	struct kvm_run *__run = __w->vcpu->run;				\
									\
	worker_wait(__w);						\
	TEST_ASSERT_KVM_EXIT_REASON(__w->vcpu, KVM_EXIT_MEMORY_FAULT);	\
	TEST_ASSERT_EQ(__run->memory_fault.flags,			\
		       KVM_MEMORY_EXIT_FLAG_USERFAULT | (access));	\
	TEST_ASSERT_EQ(__run->memory_fault.gpa, _gpa);			\
	TEST_ASSERT_EQ(__run->memory_fault.size, psz);			\
} while (0)

/* Wait for the vCPU to have done at least some more stores. */
static void wait_progress(u64 *counter)
{
	u64 val = READ_ONCE(*counter);
	int i;

	for (i = 0; READ_ONCE(*counter) - val < 3; i++) {
		TEST_ASSERT(i < 10000, "vCPU is stuck");
		usleep(1000);
	}
}

/*
 * Wait without going to sleep: then the vCPU is in the guest, on another CPU if
 * there is one, where nothing but KVM takes away a translation that it has used.
 */
static void wait_running(u64 *counter)
{
	u64 val = READ_ONCE(*counter);
	struct timespec start;

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (READ_ONCE(*counter) - val < 3)
		TEST_ASSERT(timespec_elapsed(start).tv_sec < 10, "vCPU is stuck");
}

/* A vCPU that shares the CPU of this thread would never be seen to run. */
static void pin_apart(pthread_t thread)
{
	int cpu, first = -1;
	cpu_set_t allowed;

	TEST_ASSERT(!sched_getaffinity(0, sizeof(allowed), &allowed),
		    "sched_getaffinity() failed");
	for (cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &allowed))
			continue;
		if (first >= 0)
			break;
		first = cpu;
	}
	if (cpu == CPU_SETSIZE)
		return;

	pin_self_to_cpu(first);
	pin_task_to_cpu(thread, cpu);
}

static void stop_workers(struct kvm_vm *vm, struct worker *w, int nr)
{
	int i;

	write_guest_global(vm, guest_stop, 1);
	for (i = 0; i < nr; i++)
		TEST_ASSERT(!pthread_join(w[i].thread, NULL), "pthread_join() failed");
}

/* Have @size bytes of huge pages, or skip. */
static void require_backing(enum vm_mem_backing_src_type src, u64 size)
{
	const char *path = "/proc/sys/vm/nr_hugepages";
	u64 need, have = 0;
	FILE *f;

	if (src == VM_MEM_SRC_ANONYMOUS_THP)
		TEST_REQUIRE(thp_configured());
	if (src != VM_MEM_SRC_ANONYMOUS_HUGETLB)
		return;

	need = size / get_def_hugetlb_pagesz();
	f = fopen(path, "r");
	__TEST_REQUIRE(f && fscanf(f, "%lu", &have) == 1, "No %s", path);
	fclose(f);
	__TEST_REQUIRE(have >= need, "%lu huge pages needed in %s", need, path);
}

static u64 huge_page_size(void)
{
	return psz * psz / 8;
}

/*
 * One vCPU stores to a page, another one to its neighbour.  Once an arm of the
 * page has returned, not one more store gets there, while the neighbour never
 * exits.
 */
static void test_arm_running(struct kvm_vcpu *vcpu, enum vm_mem_backing_src_type src)
{
	struct kvm_vcpu *other = vm_vcpu_add(vcpu->vm, 1, guest_count);
	u64 huge = huge_page_size();
	struct kvm_vm *vm = vcpu->vm;
	struct worker w[2];
	u64 *page, *neighbour, frozen, select = BIT_ULL(8) | BIT_ULL(40);
	int i;

	require_backing(src, 2 * huge);
	vm_userspace_mem_region_add(vm, src, UF_GPA, UF_SLOT, 2 * huge / psz,
				    KVM_MEM_USERFAULT);
	virt_map(vm, UF_GPA, UF_GPA, 16);
	memset(addr_gpa2hva(vm, UF_GPA), 0, 2 * huge);
	page = addr_gpa2hva(vm, GPA(8));
	neighbour = addr_gpa2hva(vm, GPA(9));

	vcpu_args_set(vcpu, 1, GPA(8));
	vcpu_args_set(other, 1, GPA(9));
	worker_start(&w[0], vcpu);
	worker_start(&w[1], other);
	pin_apart(w[0].thread);
	wait_progress(page);
	wait_progress(neighbour);

	for (i = 0; i < 20; i++) {
		wait_running(page);
		/* With a bitmap also a page that is not mapped, unless all are. */
		if (i & 1)
			TEST_ASSERT_EQ(vm_userfault_set(vm, UF_GPA, 64 * psz,
							KVM_USERFAULT_ARM |
							KVM_USERFAULT_BITMAP,
							&select), 2);
		else
			TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(8), psz), 1);
		frozen = READ_ONCE(*page);

		wait_progress(neighbour);
		TEST_ASSERT_EQ(READ_ONCE(*page), frozen);
		worker_assert_exit(&w[0], GPA(8), KVM_MEMORY_EXIT_FLAG_WRITE);
		TEST_ASSERT_EQ(READ_ONCE(*page), frozen);

		/* Once more around, to see that it stays so. */
		sem_post(&w[0].resume);
		worker_assert_exit(&w[0], GPA(8), KVM_MEMORY_EXIT_FLAG_WRITE);
		TEST_ASSERT_EQ(READ_ONCE(*page), frozen);

		TEST_ASSERT_EQ(vm_userfault_clear(vm, UF_GPA, 64 * psz), 1 + (i & 1));
		sem_post(&w[0].resume);
		wait_progress(page);
	}

	stop_workers(vm, w, 2);
	TEST_ASSERT_EQ(w[0].exits, 40);
	TEST_ASSERT_EQ(w[1].exits, 0);
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), 40);
	TEST_ASSERT_EQ(vcpu_get_stat(other, userfault_exits), 0);
}

KVM_ONE_VCPU_TEST(userfault, arm_running_4k, guest_count)
{
	test_arm_running(vcpu, VM_MEM_SRC_ANONYMOUS);
}

KVM_ONE_VCPU_TEST(userfault, arm_running_thp, guest_count)
{
	test_arm_running(vcpu, VM_MEM_SRC_ANONYMOUS_THP);
}

KVM_ONE_VCPU_TEST(userfault, arm_running_hugetlb, guest_count)
{
	test_arm_running(vcpu, VM_MEM_SRC_ANONYMOUS_HUGETLB);
}

/* As much as is armed in one go, and a vCPU that stores to the last page of it. */
KVM_ONE_VCPU_TEST(userfault, arm_running_1g, guest_count)
{
	const u64 npages = SZ_1G / psz, last = npages - 1;
	const gpa_t gpa = BIG_GPA + last * psz;
	struct kvm_vm *vm = vcpu->vm;
	void *hva = add_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, BIG_GPA, npages);
	u64 *page = hva + last * psz, frozen;
	struct worker w;
	int i;

	virt_map(vm, gpa, gpa, 1);
	vcpu_args_set(vcpu, 1, gpa);
	worker_start(&w, vcpu);
	pin_apart(w.thread);

	for (i = 0; i < 20; i++) {
		wait_progress(page);
		wait_running(page);
		TEST_ASSERT_EQ(vm_userfault_arm(vm, BIG_GPA, SZ_1G), npages);
		frozen = READ_ONCE(*page);

		usleep(1000);
		TEST_ASSERT_EQ(READ_ONCE(*page), frozen);
		worker_assert_exit(&w, gpa, KVM_MEMORY_EXIT_FLAG_WRITE);
		TEST_ASSERT_EQ(READ_ONCE(*page), frozen);
		TEST_ASSERT_EQ(vm_userfault_clear(vm, BIG_GPA, SZ_1G), npages);
		sem_post(&w.resume);
	}

	stop_workers(vm, &w, 1);
	TEST_ASSERT_EQ(w.exits, i);
}

/*
 * A neighbour's fault must not map an armed page along with its own, whether
 * the block was never mapped, mapped huge before the arm, or is being split.
 */
static void test_huge_neighbour(struct kvm_vcpu *vcpu, enum vm_mem_backing_src_type src)
{
	struct kvm_vcpu *other = vm_vcpu_add(vcpu->vm, 1, guest_ops);
	u64 huge = huge_page_size();
	u64 last = huge / psz - 1;
	struct kvm_vm *vm = vcpu->vm;
	const struct {
		u64 armed;
		u64 touched;
	} cases[] = {
		{ 0, 1 }, { 1, 0 }, { 5, last }, { last, 0 }, { 64, 63 },
		{ last, last + 1 }, { last + 1, last },
	};
	u64 *hva;
	int i;

	require_backing(src, 2 * huge);
	vm_userspace_mem_region_add(vm, src, UF_GPA, UF_SLOT, 2 * huge / psz,
				    KVM_MEM_USERFAULT);
	virt_map(vm, UF_GPA, UF_GPA, 2 * huge / psz);
	hva = addr_gpa2hva(vm, UF_GPA);
	memset(hva, 0, 2 * huge);
	vcpu_args_set(other, 1, 1ul);

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		gpa_t armed = GPA(cases[i].armed), touched = GPA(cases[i].touched);
		u64 *armed_hva = hva + cases[i].armed * psz / 8;
		u64 *touched_hva = hva + cases[i].touched * psz / 8;

		*armed_hva = 0x10 + i;
		*touched_hva = 0x20 + i;

		/* First fault in the block (i == 0), or its huge mapping goes. */
		TEST_ASSERT_EQ(vm_userfault_arm(vm, armed, psz), 1);
		guest_read(other, touched, 0x20 + i);
		set_cmd(vcpu, READ, armed, 0);
		assert_userfault_exit(vcpu, armed, KVM_MEMORY_EXIT_FLAG_READ);

		/* The neighbour's next kind of access, then again the armed one. */
		set_cmd(other, WRITE, touched, 0x30 + i);
		assert_done(other, 0x30 + i);
		TEST_ASSERT_EQ(*touched_hva, 0x30 + i);
		assert_userfault_exit(vcpu, armed, KVM_MEMORY_EXIT_FLAG_READ);

		TEST_ASSERT_EQ(vm_userfault_clear(vm, armed, psz), 1);
		assert_done(vcpu, 0x10 + i);

		/* Drop all mappings, so that the block is mapped huge again. */
		TEST_ASSERT_EQ(vm_userfault_arm(vm, UF_GPA, 2 * huge), 2 * huge / psz);
		set_cmd(other, READ, touched, 0);
		assert_userfault_exit(other, touched, KVM_MEMORY_EXIT_FLAG_READ);
		TEST_ASSERT_EQ(vm_userfault_clear(vm, UF_GPA, 2 * huge), 2 * huge / psz);
		assert_done(other, 0x30 + i);
	}

	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), 2 * ARRAY_SIZE(cases));
	TEST_ASSERT_EQ(vcpu_get_stat(other, userfault_exits), ARRAY_SIZE(cases));
}

KVM_ONE_VCPU_TEST(userfault, huge_neighbour_thp, guest_ops)
{
	test_huge_neighbour(vcpu, VM_MEM_SRC_ANONYMOUS_THP);
}

KVM_ONE_VCPU_TEST(userfault, huge_neighbour_hugetlb, guest_ops)
{
	test_huge_neighbour(vcpu, VM_MEM_SRC_ANONYMOUS_HUGETLB);
}

/*
 * Slots that begin or end inside of a huge page's block, or lie within one:
 * their bitmaps have no bits for the rest of the block.
 */
KVM_ONE_VCPU_TEST(userfault, odd_slots, guest_ops)
{
	u64 huge = huge_page_size();
	u64 block = huge / psz;
	struct kvm_vm *vm = vcpu->vm;
	const struct {
		u64 first;
		u64 npages;
	} slots[] = {
		{ 5, 11 },
		{ block - 3, 8 },
		{ 2 * block + 7, 2 * block },
		{ 5 * block, block - 1 },
		{ 6 * block + 1, block - 1 },
		{ 8 * block - 1, 1 },
	};
	void *mem, *start;
	int i, j;

	TEST_REQUIRE(vm->page_size == psz);
	TEST_REQUIRE(thp_configured());

	/* gpa and hva agree within a block, so huge mappings are possible. */
	start = alloc_mem(10 * block);
	mem = align_ptr_up(start, huge);
	kvm_madvise(mem, 8 * huge, MADV_HUGEPAGE);
	memset(mem, 0, 8 * huge);

	for (i = 0; i < ARRAY_SIZE(slots); i++) {
		u64 first = slots[i].first, n = slots[i].npages;
		u64 pages[] = { 0, 1, n / 2, n - 1 };

		set_slot(vm, UF_SLOT + i, KVM_MEM_USERFAULT, GPA(first), n,
			 mem + first * psz);
		virt_map(vm, GPA(first), GPA(first), n);

		for (j = 0; j < ARRAY_SIZE(pages); j++) {
			u64 page = pages[j] % n, next = (page + 1) % n;
			u64 *hva = mem + (first + page) * psz;

			hva[0] = i * 16 + j;
			TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(first + page), psz), 1);
			TEST_ASSERT_EQ(count_armed(vm, GPA(first), n), 1);

			if (next != page) {
				set_cmd(vcpu, WRITE, GPA(first + next) + 8, 1);
				assert_done(vcpu, 1);
			}
			set_cmd(vcpu, READ, GPA(first + page), 0);
			assert_userfault_exit(vcpu, GPA(first + page),
					      KVM_MEMORY_EXIT_FLAG_READ);
			TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(first), n * psz), 1);
			assert_done(vcpu, i * 16 + j);
		}

		/* The whole of it: every page exits once, and only then is there. */
		TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(first), n * psz), n);
		for (j = 0; j < min_t(u64, n, 20); j++) {
			u64 page = n - 1 - j;

			set_cmd(vcpu, WRITE, GPA(first + page) + 16, j);
			assert_userfault_exit(vcpu, GPA(first + page),
					      KVM_MEMORY_EXIT_FLAG_WRITE);
			TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(first + page), psz), 1);
			assert_done(vcpu, j);
		}
	}
}

/*
 * Flag on, arm, then clear or flag off, with a vCPU that never stops by itself:
 * one exit for each page armed, none for a change of the flags.
 */
KVM_ONE_VCPU_TEST(userfault, toggle_running, guest_count_many)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = add_mapped_slot(vm, UF_SLOT, 0, UF_GPA, 8);
	struct worker w;
	u64 *counter;
	int i;

	vcpu_args_set(vcpu, 3, UF_GPA, 8ul, psz);
	worker_start(&w, vcpu);

	for (i = 0; i < 24; i++) {
		gpa_t gpa = GPA(i % 8);
		u32 log = i & 2 ? KVM_MEM_LOG_DIRTY_PAGES : 0;

		counter = hva + i % 8 * psz / 8;
		wait_progress(counter);
		set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT | log, UF_GPA, 8, hva);
		wait_progress(counter);
		TEST_ASSERT_EQ(READ_ONCE(w.exits), i);

		TEST_ASSERT_EQ(vm_userfault_arm(vm, gpa, psz), 1);
		worker_assert_exit(&w, gpa, KVM_MEMORY_EXIT_FLAG_WRITE);

		/* Toggling the other flag neither loses nor frees the page. */
		set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT | (log ^ KVM_MEM_LOG_DIRTY_PAGES),
			 UF_GPA, 8, hva);
		TEST_ASSERT(vm_userfault_is_armed(vm, gpa), "Lost in a flags change");

		if (i & 1) {
			TEST_ASSERT_EQ(vm_userfault_clear(vm, gpa, psz), 1);
			sem_post(&w.resume);
			wait_progress(counter);
			set_slot(vm, UF_SLOT, log, UF_GPA, 8, hva);
		} else {
			set_slot(vm, UF_SLOT, log, UF_GPA, 8, hva);
			sem_post(&w.resume);
		}
		wait_progress(counter);
	}

	stop_workers(vm, &w, 1);
	TEST_ASSERT_EQ(w.exits, i);
}

/* Deleted and created again ARMED under a vCPU: the new memory stays unseen. */
KVM_ONE_VCPU_TEST(userfault, recreate_running, guest_report)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 *old = add_mapped_slot(vm, UF_SLOT, 0, UF_GPA, 4);
	u64 *new = alloc_mem(4);
	u64 *seen = addr_gva2hva(vm, (gva_t)&guest_seen);
	struct worker w;
	int i;

	old[0] = 0x1111;
	new[0] = 0x2222;
	vcpu_args_set(vcpu, 1, UF_GPA);
	worker_start(&w, vcpu);

	for (i = 0; i < 5; i++) {
		while (READ_ONCE(*seen) != 0x1111)
			usleep(100);

		set_slot(vm, UF_SLOT, 0, UF_GPA, 0, NULL);
		worker_wait(&w);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
		set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED,
			 UF_GPA, 4, new);
		sem_post(&w.resume);
		worker_assert_exit(&w, UF_GPA, KVM_MEMORY_EXIT_FLAG_READ);
		TEST_ASSERT_EQ(READ_ONCE(*seen), MMIO_VAL);

		vm_userfault_clear(vm, UF_GPA, psz);
		sem_post(&w.resume);
		while (READ_ONCE(*seen) != 0x2222)
			usleep(100);

		set_slot(vm, UF_SLOT, 0, UF_GPA, 0, NULL);
		worker_wait(&w);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
		set_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, UF_GPA, 4, old);
		sem_post(&w.resume);
	}

	stop_workers(vm, &w, 1);
	TEST_ASSERT_EQ(w.exits, i);
}

/*
 * Arm and clear as fast as possible under a vCPU that re-enters at once.  While
 * the page is armed no store arrives; an exit may come late, but only for this
 * page; at rest, all is exact again.
 */
static void *race_worker(void *arg)
{
	struct worker *w = arg;
	struct ucall uc;
	int ret;

	for (;;) {
		ret = _vcpu_run(w->vcpu);
		if (!is_userfault_exit(w->vcpu, ret))
			break;
		TEST_ASSERT_EQ(w->vcpu->run->memory_fault.gpa, GPA(3));
		WRITE_ONCE(w->exits, w->exits + 1);
	}

	TEST_ASSERT(!ret, "KVM_RUN failed, errno %d", errno);
	TEST_ASSERT_EQ(get_ucall(w->vcpu, &uc), UCALL_DONE);
	return NULL;
}

KVM_ONE_VCPU_TEST(userfault, race_arm_clear, guest_count_many)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = add_mapped_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, UF_GPA, 8);
	u64 *counter = hva + 3 * psz / 8;
	struct worker w = { .vcpu = vcpu };
	u64 frozen, exits;
	int i, spin;

	vcpu_args_set(vcpu, 3, UF_GPA, 8ul, psz);
	pthread_create(&w.thread, NULL, race_worker, &w);
	wait_progress(counter);

	for (i = 0; i < 1000; i++) {
		TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(3), psz), 1);
		frozen = READ_ONCE(*counter);

		/* Time for a fault that was in flight to do its harm. */
		usleep(50);
		TEST_ASSERT(READ_ONCE(*counter) == frozen, "A store got through");
		TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(3), psz), 1);

		/* Have the next fault at different points when the arm comes. */
		for (spin = 0; spin < i % 500 * 4; spin++)
			cpu_relax();
	}

	/* Let the last exit come in, if there is one: after that, none. */
	wait_progress(counter);
	wait_progress(counter);
	exits = READ_ONCE(w.exits);
	for (i = 0; i < 20; i++)
		wait_progress(counter);
	TEST_ASSERT_EQ(READ_ONCE(w.exits), exits);

	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(3), psz), 1);
	for (i = 0; READ_ONCE(w.exits) < exits + 3; i++) {
		TEST_ASSERT(i < 10000, "No exits");
		usleep(1000);
	}
	TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(3), psz), 1);
	stop_workers(vm, &w, 1);
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), w.exits);
}

/*
 * Concurrent calls
 */

struct setter {
	struct kvm_vm *vm;
	gpa_t gpa;
	int bit;
	pthread_t thread;
};

#define RACE_WORDS	16

/*
 * One of the 64 pages of each word: nobody else changes it, hence every call
 * changes all of them.
 */
static void *setter_fn(void *arg)
{
	u64 size = RACE_WORDS * 64 * psz;
	struct setter *s = arg;
	u64 select[RACE_WORDS];
	u64 changed;
	int i;

	for (i = 0; i < RACE_WORDS; i++)
		select[i] = BIT_ULL(s->bit);

	for (i = 0; i < 5000; i++) {
		changed = vm_userfault_set(s->vm, s->gpa, size,
					   KVM_USERFAULT_ARM | KVM_USERFAULT_BITMAP,
					   select);
		TEST_ASSERT(changed == RACE_WORDS, "#%d: %lu pages armed", i, changed);
		changed = vm_userfault_set(s->vm, s->gpa, size,
					   KVM_USERFAULT_BITMAP, select);
		TEST_ASSERT(changed == RACE_WORDS, "#%d: %lu pages cleared", i, changed);
	}

	return NULL;
}

KVM_ONE_VCPU_TEST(userfault, race_same_word, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	struct setter s[3];
	int i;

	add_slot(vm, UF_SLOT, KVM_MEM_USERFAULT, UF_GPA, RACE_WORDS * 64);
	for (i = 0; i < ARRAY_SIZE(s); i++) {
		s[i].vm = vm;
		s[i].gpa = UF_GPA;
		s[i].bit = 30 + i;
		pthread_create(&s[i].thread, NULL, setter_fn, &s[i]);
	}
	for (i = 0; i < ARRAY_SIZE(s); i++)
		pthread_join(s[i].thread, NULL);
	TEST_ASSERT_EQ(count_armed(vm, UF_GPA, RACE_WORDS * 64), 0);
}

/* The memslot comes, goes and loses the flag under the calls. */
static void *slot_changer_fn(void *arg)
{
	const u32 uf = KVM_MEM_USERFAULT;
	struct setter *s = arg;
	void *hva = alloc_mem(100);
	int i;

	for (i = 0; i < 60; i++) {
		set_slot(s->vm, UF_SLOT, uf | KVM_MEM_USERFAULT_ARMED, s->gpa, 100, hva);
		set_slot(s->vm, UF_SLOT, 0, s->gpa, 100, hva);
		set_slot(s->vm, UF_SLOT, uf, s->gpa, 100, hva);
		set_slot(s->vm, UF_SLOT, uf | KVM_MEM_LOG_DIRTY_PAGES, s->gpa, 100, hva);
		set_slot(s->vm, UF_SLOT, 0, s->gpa, 0, NULL);
	}
	set_slot(s->vm, UF_SLOT, uf | KVM_MEM_USERFAULT_ARMED, s->gpa, 100, hva);
	WRITE_ONCE(s->gpa, 0);

	return NULL;
}

KVM_ONE_VCPU_TEST(userfault, race_slots, guest_ops)
{
	struct setter s = { .vm = vcpu->vm, .gpa = UF_GPA };
	struct kvm_vm *vm = vcpu->vm;
	u64 bitmap[2], armed;
	int err;

	pthread_create(&s.thread, NULL, slot_changer_fn, &s);
	while (READ_ONCE(s.gpa)) {
		err = __vm_userfault_set(vm, GPA(10), 80 * psz, KVM_USERFAULT_ARM, NULL);
		TEST_ASSERT(!err || err == ENOENT, "Arm: errno %d", err);
		err = __vm_userfault_get(vm, UF_GPA, 100 * psz, bitmap);
		TEST_ASSERT(!err, "GET: errno %d", err);
		err = __vm_userfault_set(vm, GPA(20), 60 * psz, 0, NULL);
		TEST_ASSERT(!err, "Clear: errno %d", err);
	}
	pthread_join(s.thread, NULL);

	armed = count_armed(vm, UF_GPA, 100);
	TEST_ASSERT_EQ(vm_userfault_arm(vm, UF_GPA, 100 * psz), 100 - armed);
	TEST_ASSERT_EQ(vm_userfault_clear(vm, UF_GPA, 100 * psz), 100);
}

static struct kvm_vm *lockless_vm;

/* Called while KVM_GET_DIRTY_LOG, with slots_lock, waits for its user bitmap. */
static int clearing_uffd_handler(int mode, int uffd, struct uffd_msg *msg)
{
	static u8 zeroes[SZ_64K];
	struct uffdio_copy copy = {
		.dst = msg->arg.pagefault.address & ~(psz - 1),
		.src = (u64)zeroes,
		.len = psz,
	};

	TEST_ASSERT(vm_userfault_is_armed(lockless_vm, GPA(1)), "Not armed");
	TEST_ASSERT_EQ(vm_userfault_clear(lockless_vm, GPA(1), psz), 1);
	TEST_ASSERT(!vm_userfault_is_armed(lockless_vm, GPA(1)), "Not clear");
	lockless_vm = NULL;

	TEST_ASSERT(!ioctl(uffd, UFFDIO_COPY, &copy), "UFFDIO_COPY: errno %d", errno);
	return 0;
}

/* Whoever holds slots_lock, and for how long, clear and GET do not wait. */
KVM_ONE_VCPU_TEST(userfault, clear_takes_no_slots_lock, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	struct uffd_desc *uffd;
	void *log = alloc_mem(1);

	add_slot(vm, UF_SLOT, KVM_MEM_USERFAULT | KVM_MEM_LOG_DIRTY_PAGES, UF_GPA, 64);
	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(1), psz), 1);

	lockless_vm = vm;
	uffd = uffd_setup_demand_paging(UFFDIO_REGISTER_MODE_MISSING, 0, log, psz, 1,
					clearing_uffd_handler);
	kvm_vm_get_dirty_log(vm, UF_SLOT, log);
	TEST_ASSERT(!lockless_vm, "KVM has not waited for the bitmap");
	uffd_stop_demand_paging(uffd);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE_USERFAULT();

	return test_harness_run(argc, argv);
}
