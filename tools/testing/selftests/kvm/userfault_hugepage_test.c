// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for the size of mappings in memslots with KVM_MEM_USERFAULT:
 *
 *  - a block without armed pages is mapped as large as its backing allows, one
 *    with an armed page never is
 *  - arming takes away the armed pages and nothing else
 *  - KVM_USERFAULT_COLLAPSE, and dropping the flag, bring large mappings back,
 *    and only where they may
 *  - freezing a running VM with a single call, and thawing it likewise
 *
 * What the guest reads and which exits there are is checked everywhere, how
 * large mappings are where KVM tells: on x86 in its statistics, on arm64 if the
 * stage 2 tables are in debugfs.  The TDP MMU splits and collapses in place; arm64
 * splits in place, but collapses by unmapping, so that it takes an access to see
 * the large mapping.  Any other MMU of x86 unmaps whole blocks.  That may be seen
 * in faults and sizes, never in an exit.
 */
#define _GNU_SOURCE
#include <linux/sizes.h>

#include <pthread.h>
#include <semaphore.h>
#include <sys/mman.h>

#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "kvm_userfault_debug.h"
#include "kvm_userfault_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"
#include "userfaultfd_util.h"

/* Arbitrarily chosen, to overlap nothing and to be aligned for any huge page. */
#define UF_SLOT		10
#define UF_GPA		0x100000000ul
#define PSZ		((u64)getpagesize())
#define GPA(page)	(UF_GPA + (page) * PSZ)

/*
 * How many small pages a block of each size has.  Pages of 4K and blocks of 2M are
 * called so throughout, though on arm64 they may be larger; blocks of 1G are not.
 */
#define BLOCK		(PSZ / sizeof(u64))
#define BLOCK_1G	(BLOCK * BLOCK)
#define MAX_BLOCK	(SZ_64K / sizeof(u64))

/* Blocks in a slot, unless it is of 1G pages. */
#define NR_BLOCKS	5

#define MEM_LOG		KVM_MEM_LOG_DIRTY_PAGES
#define MEM_RO		KVM_MEM_READONLY
#define MEM_UF		KVM_MEM_USERFAULT

KVM_ONE_VCPU_TEST_SUITE(userfault_hugepage);

/*
 * The guest: touch pages, at gva == gpa, add up what is there.
 */
enum touch {
	TOUCH_READ,
	TOUCH_WRITE,
};

static u64 guest_op;
static u64 guest_gva;
static u64 guest_nr;
static u64 guest_psz;
static u64 guest_val;

static void guest_touch(void)
{
	for (;;) {
		u64 i, *p, sum = 0;

		for (i = 0; i < guest_nr; i++) {
			p = (u64 *)(guest_gva + i * guest_psz);
			if (guest_op == TOUCH_READ)
				sum += READ_ONCE(p[0]);
			else
				WRITE_ONCE(p[1], guest_val + i);
		}

		GUEST_SYNC(sum);
	}
}

/*
 * Memory
 */
enum backing {
	ANON_4K,
	ANON_THP,
	SHMEM_THP,
	HUGETLB_2M,
	HUGETLB_1G,
};

/* What KVM counts for the VM. */
enum vm_stat {
	PAGES_4K,
	PAGES_2M,
	PAGES_1G,
	SPLITS,
	COLLAPSES,
	NR_STATS,
};

static const char * const stat_names[] = {
	"pages_4k", "pages_2m", "pages_1g", "userfault_splits", "userfault_collapses",
};

struct memory {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	gpa_t gpa;
	u64 npages;
	u64 *hva;

	/* Statistics before the guest has touched any of it. */
	u64 base[NR_STATS];

	/* So that the guest can be made to forget what it was told. */
#ifdef __x86_64__
	struct kvm_regs regs;
#endif
};

/* Large mappings are split and collapse without taking any page away. */
static bool in_place(void)
{
#ifdef __x86_64__
	return has_tdp_mmu();
#else
	return false;
#endif
}

/* A fault maps pages around its own, too. */
static bool prefetches(void)
{
#ifdef __x86_64__
	return !in_place();
#else
	return false;
#endif
}

#ifdef __aarch64__
static bool has_sizes(void)
{
	return has_stage2_dump();
}

static bool splits_in_place(void)
{
	return !is_pkvm();
}

static bool counts_collapses(void)
{
	return true;
}

/* Does the end of dirty logging bring large mappings back, but for other faults? */
static bool log_off_recovers(void)
{
	return false;
}

#else
static bool has_sizes(void)
{
	return true;
}

static bool splits_in_place(void)
{
	return in_place();
}

static bool counts_collapses(void)
{
	return in_place();
}

static bool log_off_recovers(void)
{
	return true;
}
#endif

static u64 get_stat(struct kvm_vm *vm, enum vm_stat stat)
{
	u64 val = 0;

	if (stat <= PAGES_1G && !has_sizes())
		return 0;
#ifdef __aarch64__
	if (stat <= PAGES_1G)
		return vm_nr_stage2(vm, STAGE2_LAST_LEVEL - stat, 0, -1ul, "");
#endif
	kvm_get_stat(&vm->stats, stat_names[stat], &val, 1);
	return val;
}

static u64 nr_mapped(struct kvm_vm *vm)
{
	return get_stat(vm, PAGES_4K) + get_stat(vm, PAGES_2M) + get_stat(vm, PAGES_1G);
}

static u64 nr_stat(struct memory *m, enum vm_stat stat)
{
	return get_stat(m->vm, stat) - m->base[stat];
}

static u64 nr_faults(struct kvm_vcpu *vcpu)
{
	u64 val = 0;

	if (in_place())
		kvm_get_stat(&vcpu->stats, "pf_taken", &val, 1);
	return val;
}

/* All mappings of the memory; those of 4K may also be prefetched. */
#define assert_sizes(m, _1g, _2m, _4k)						\
do {										\
	struct memory *__m = (m);						\
										\
	if (has_sizes()) {							\
		TEST_ASSERT_EQ(nr_stat(__m, PAGES_1G), _1g);			\
		TEST_ASSERT_EQ(nr_stat(__m, PAGES_2M), _2m);			\
	}									\
	if (has_sizes() && splits_in_place())					\
		TEST_ASSERT_EQ(nr_stat(__m, PAGES_4K), _4k);			\
} while (0)

/*
 * Other MMUs of x86 only unmap: they count nothing.  Nor does pKVM split, and what
 * there is for it to collapse depends on what has been mapped again.
 */
#define assert_events(m, splits, collapses)					\
do {										\
	struct memory *__m = (m);						\
										\
	TEST_ASSERT_EQ(nr_stat(__m, SPLITS), splits_in_place() ? (splits) : 0);	\
	if (splits_in_place() == counts_collapses())				\
		TEST_ASSERT_EQ(nr_stat(__m, COLLAPSES),				\
			       splits_in_place() ? (collapses) : 0);		\
} while (0)

#define assert_no_faults(vcpu, before)	TEST_ASSERT_EQ(nr_faults(vcpu), before)

static u64 backing_pages(enum backing backing)
{
	switch (backing) {
	case ANON_4K:
		return 1;
	case HUGETLB_1G:
		return BLOCK_1G;
	default:
		return BLOCK;
	}
}

static bool shmem_thp_configured(void)
{
	const char *path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
	char buf[128] = {};
	FILE *f;

	f = fopen(path, "r");
	if (!f)
		return false;
	if (!fgets(buf, sizeof(buf), f))
		buf[0] = 0;
	fclose(f);
	return buf[0] && !strstr(buf, "[never]") && !strstr(buf, "[deny]");
}

static void *reserve_aligned(u64 size, u64 align)
{
	return align_ptr_up(kvm_mmap(size + align, PROT_NONE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1),
			    align);
}

/* Aligned for its huge pages; all of it is there, and holds 0. */
static void *alloc_backing(enum backing backing, u64 npages)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS, fd = -1;
	u64 align = backing_pages(backing) * PSZ;
	u64 size = npages * PSZ;
	void *hva;
	u64 i;

	switch (backing) {
	case ANON_4K:
		break;
	case ANON_THP:
		TEST_REQUIRE(thp_configured());
		break;
	case SHMEM_THP:
		__TEST_REQUIRE(PSZ < SZ_64K, "The page cache has no huge pages of 512M");
		__TEST_REQUIRE(shmem_thp_configured(),
			       "shmem_enabled must be \"advise\" or more");
		fd = kvm_memfd_alloc(size, false);
		flags = MAP_SHARED;
		break;
	case HUGETLB_2M:
		flags |= MAP_HUGETLB | __builtin_ctzl(align) << MAP_HUGE_SHIFT;
		break;
	case HUGETLB_1G:
		__TEST_REQUIRE(PSZ == SZ_4K, "The next larger block is no page of HugeTLB");
		flags |= MAP_HUGETLB | MAP_HUGE_1GB;
		break;
	}

	hva = mmap(reserve_aligned(size, align), size, PROT_READ | PROT_WRITE,
		   flags | MAP_FIXED, fd, 0);
	__TEST_REQUIRE(hva != MAP_FAILED, "%lu huge pages of %lu bytes needed, errno %d",
		       size / align, align, errno);

	if (backing == ANON_4K)
		kvm_madvise(hva, size, MADV_NOHUGEPAGE);
	else if (backing == ANON_THP || backing == SHMEM_THP)
		kvm_madvise(hva, size, MADV_HUGEPAGE);

	for (i = 0; i < npages; i += min(align / PSZ, BLOCK))
		WRITE_ONCE(*(u64 *)(hva + i * PSZ), 0);

	/* The kernel may have fallen back to small pages. */
	if (backing == ANON_THP)
		__TEST_REQUIRE(!madvise(hva, size, MADV_COLLAPSE),
			       "No %lu huge pages can be had, errno %d", size / align, errno);
	return hva;
}

static void set_flags(struct memory *m, u32 flags)
{
	vm_set_user_memory_region(m->vm, UF_SLOT, flags, m->gpa, m->npages * PSZ,
				  m->hva);
}

/*
 * Guest mappings are no smaller than those of the host, for shadow paging; and 1G of
 * small ones would take more tables than the guest has memory for.
 */
static void map_in_guest(struct kvm_vm *vm, gpa_t gpa, u64 npages, enum backing backing)
{
#ifdef __aarch64__
	if (backing == HUGETLB_1G) {
		u64 pte;

		TEST_ASSERT_EQ(npages, BLOCK_1G);
		virt_pg_map(vm, gpa, gpa);
		pte = *virt_get_pte_hva(vm, gpa);
		*virt_get_pte_hva_at_level(vm, gpa, 1) = pte & ~BIT(1);
		return;
	}
#endif
#ifdef __x86_64__
	if (backing == HUGETLB_1G)
		virt_map_level(vm, gpa, gpa, npages * PSZ, PG_LEVEL_1G);
	else if (backing != ANON_4K)
		virt_map_level(vm, gpa, gpa, npages * PSZ, PG_LEVEL_2M);
	else
#endif
		virt_map(vm, gpa, gpa, npages);
}

static void set_touch(struct memory *m, enum touch op, u64 page, u64 nr)
{
	write_guest_global(m->vm, guest_op, (u64)op);
	write_guest_global(m->vm, guest_gva, m->gpa + page * PSZ);
	write_guest_global(m->vm, guest_nr, nr);
	write_guest_global(m->vm, guest_psz, PSZ);
}

/* Touch pages without any exit, and see that they are what the host has there. */
static void touch(struct memory *m, enum touch op, u64 page, u64 nr)
{
	static u64 seed;
	u64 *p = m->hva + page * PSZ / sizeof(u64);
	u64 i, sum = 0;

	seed += nr;
	for (i = 0; i < nr && op == TOUCH_READ; i++) {
		p[i * PSZ / sizeof(u64)] = seed + i;
		sum += seed + i;
	}

	write_guest_global(m->vm, guest_val, seed);
	set_touch(m, op, page, nr);
	TEST_ASSERT_EQ(vcpu_run_to_sync(m->vcpu), sum);

	for (i = 0; i < nr && op == TOUCH_WRITE; i++)
		TEST_ASSERT_EQ(p[i * PSZ / sizeof(u64) + 1], seed + i);
}

/* One page in each block of 2M. */
static void __touch_blocks(struct memory *m, enum touch op, u64 page)
{
	u64 i;

	for (i = 0; i < m->npages; i += BLOCK)
		touch(m, op, i + page, 1);
}

static void touch_blocks(struct memory *m, u64 page)
{
	__touch_blocks(m, TOUCH_READ, page);
}

/* For dirty logging, other MMUs split only what is written to. */
static void touch_dirty_logged(struct memory *m, u64 page)
{
	__touch_blocks(m, in_place() ? TOUCH_READ : TOUCH_WRITE, page);
}

/* The guest gets nowhere. */
static void touch_armed(struct memory *m, enum touch op, u64 page)
{
	u64 access = op == TOUCH_READ ? KVM_MEMORY_EXIT_FLAG_READ :
					KVM_MEMORY_EXIT_FLAG_WRITE;

	set_touch(m, op, page, 1);
	assert_userfault_exit(m->vcpu, m->gpa + page * PSZ, access);
	assert_userfault_exit(m->vcpu, m->gpa + page * PSZ, access);

	/* It takes no new order before it is through with this one: start anew. */
	vcpu_arch_set_entry_point(m->vcpu, guest_touch);
#ifdef __x86_64__
	vcpu_regs_set(m->vcpu, &m->regs);
#endif
}

static void arm(struct memory *m, u64 page, u64 nr)
{
	TEST_ASSERT_EQ(vm_userfault_arm(m->vm, GPA(page), nr * PSZ), nr);
}

static void clear(struct memory *m, u64 page, u64 nr)
{
	TEST_ASSERT_EQ(vm_userfault_clear(m->vm, GPA(page), nr * PSZ), nr);
}

/* Clear and collapse; returns how many pages were armed. */
static u64 collapse(struct memory *m, u64 page, u64 nr)
{
	return vm_userfault_set(m->vm, GPA(page), nr * PSZ, KVM_USERFAULT_COLLAPSE, NULL);
}

/* Leave nothing armed, and nothing mapped. */
static void unmap_all(struct memory *m)
{
	vm_userfault_arm(m->vm, m->gpa, m->npages * PSZ);
	assert_sizes(m, 0, 0, 0);
	clear(m, 0, m->npages);
	assert_sizes(m, 0, 0, 0);
}

/* Map what the guest needs besides: code, stack, its page tables. */
static void start_guest(struct memory *m)
{
	u64 i;

#ifdef __x86_64__
	vcpu_regs_get(m->vcpu, &m->regs);
#endif
	for (i = 0; i < m->npages; i += m->npages < BLOCK_1G ? BLOCK : BLOCK_1G) {
		touch(m, TOUCH_READ, i, 1);
		touch(m, TOUCH_WRITE, i, 1);
	}

	vm_userfault_arm(m->vm, m->gpa, m->npages * PSZ);
	clear(m, 0, m->npages);
	for (i = 0; i < NR_STATS; i++)
		m->base[i] = get_stat(m->vm, i);
}

static void add_memory(struct memory *m, struct kvm_vcpu *vcpu, enum backing backing,
		       u64 npages, u32 flags)
{
	*m = (struct memory) {
		.vm = vcpu->vm,
		.vcpu = vcpu,
		.gpa = UF_GPA,
		.npages = npages,
	};

	m->hva = alloc_backing(backing, npages);
	set_flags(m, flags);
	map_in_guest(m->vm, m->gpa, npages, backing);

	start_guest(m);
}

/*
 * Mapping size follows the bitmap
 */
static void test_sizes(struct kvm_vcpu *vcpu, enum backing backing)
{
	const u64 armed[] = { 0, 1, 63, 64, BLOCK / 2, BLOCK - 1 };
	struct memory m;
	u64 i, page;

	add_memory(&m, vcpu, backing, NR_BLOCKS * BLOCK, MEM_UF);
	assert_sizes(&m, 0, 0, 0);
	touch_blocks(&m, 7);
	assert_sizes(&m, 0, NR_BLOCKS, 0);

	/* Armed when nothing is mapped: the faults have to see it. */
	for (i = 0; i < ARRAY_SIZE(armed); i++) {
		unmap_all(&m);
		page = BLOCK + armed[i];

		arm(&m, page, 1);
		touch_blocks(&m, (armed[i] + 1) % BLOCK);
		assert_sizes(&m, 0, NR_BLOCKS - 1, 1);
		touch_blocks(&m, (armed[i] + 2) % BLOCK);
		assert_sizes(&m, 0, NR_BLOCKS - 1, 2);
		touch_armed(&m, TOUCH_READ, page);
		assert_sizes(&m, 0, NR_BLOCKS - 1, 2);

		/*
		 * What is mapped stays as it is: not asked for, collapse does
		 * not happen.  But the next fault may map all of the block.
		 */
		clear(&m, page, 1);
		touch_blocks(&m, (armed[i] + 2) % BLOCK);
		assert_sizes(&m, 0, NR_BLOCKS - 1, 2);
		touch(&m, TOUCH_WRITE, page, 1);
		assert_sizes(&m, 0, NR_BLOCKS, 0);
		assert_events(&m, 0, 0);
	}

	/* One word of the bitmap, and half a block. */
	unmap_all(&m);
	arm(&m, BLOCK + 64, 64);
	arm(&m, 3 * BLOCK, BLOCK / 2);
	touch_blocks(&m, BLOCK - 1);
	assert_sizes(&m, 0, NR_BLOCKS - 2, 2);

	/* Clear, with nothing mapped: what comes is huge. */
	unmap_all(&m);
	touch_blocks(&m, 7);
	assert_sizes(&m, 0, NR_BLOCKS, 0);
}

KVM_ONE_VCPU_TEST(userfault_hugepage, sizes_thp, guest_touch)
{
	test_sizes(vcpu, ANON_THP);
}

KVM_ONE_VCPU_TEST(userfault_hugepage, sizes_shmem, guest_touch)
{
	test_sizes(vcpu, SHMEM_THP);
}

KVM_ONE_VCPU_TEST(userfault_hugepage, sizes_hugetlb, guest_touch)
{
	test_sizes(vcpu, HUGETLB_2M);
}

/* 1G pages: 2M for its blocks without armed pages, 4K for those with. */
KVM_ONE_VCPU_TEST(userfault_hugepage, sizes_hugetlb_1g, guest_touch)
{
	const u64 armed[] = { 0, BLOCK_1G / 2 + 5, BLOCK_1G - 1 };
	struct memory m;
	u64 i;

	add_memory(&m, vcpu, HUGETLB_1G, BLOCK_1G, MEM_UF);
	touch(&m, TOUCH_READ, 7, 1);
	assert_sizes(&m, 1, 0, 0);

	for (i = 0; i < ARRAY_SIZE(armed); i++) {
		unmap_all(&m);
		arm(&m, armed[i], 1);
		touch(&m, TOUCH_READ, 3 * BLOCK, 1);
		touch(&m, TOUCH_READ, 200 * BLOCK + 9, 1);
		assert_sizes(&m, 0, 2, 0);
		touch(&m, TOUCH_WRITE, armed[i] ^ 1, 1);
		assert_sizes(&m, 0, 2, 1);
		touch_armed(&m, TOUCH_WRITE, armed[i]);
		clear(&m, armed[i], 1);
		touch(&m, TOUCH_WRITE, armed[i] ^ 1, 1);
		assert_sizes(&m, 0, 2, 1);
	}

	unmap_all(&m);
	touch(&m, TOUCH_READ, 7, 1);
	assert_sizes(&m, 1, 0, 0);
}

/*
 * Arming takes only the armed pages
 */
static void test_split(struct kvm_vcpu *vcpu, enum backing backing)
{
	/* Arming works on 1G at a time, which may end within a large block. */
	const u64 parts = 3 * BLOCK * PSZ > SZ_1G;
	const u64 page = BLOCK + 100;
	u64 bitmap[4] = { };
	struct memory m;
	u64 faults;

	add_memory(&m, vcpu, backing, NR_BLOCKS * BLOCK, MEM_UF);
	touch_blocks(&m, 7);
	touch(&m, TOUCH_WRITE, page, 1);
	assert_sizes(&m, 0, NR_BLOCKS, 0);

	faults = nr_faults(vcpu);
	arm(&m, page, 1);
	assert_sizes(&m, 0, NR_BLOCKS - 1, BLOCK - 1);
	assert_events(&m, 1, 0);

	/* All others, in this block and next to it, are still there. */
	touch(&m, TOUCH_READ, 0, page);
	touch(&m, TOUCH_WRITE, 0, page);
	touch(&m, TOUCH_READ, page + 1, m.npages - page - 1);
	touch(&m, TOUCH_WRITE, page + 1, m.npages - page - 1);
	assert_no_faults(vcpu, faults);
	assert_sizes(&m, 0, NR_BLOCKS - 1, BLOCK - 1);

	touch_armed(&m, TOUCH_READ, page);
	touch_armed(&m, TOUCH_WRITE, page);
	if (in_place())
		TEST_ASSERT_EQ(nr_faults(vcpu), faults + 4);

	/* A second one in the block, and those that are armed already. */
	arm(&m, page + 1, 1);
	assert_sizes(&m, 0, NR_BLOCKS - 1, BLOCK - 2);
	TEST_ASSERT_EQ(vm_userfault_arm(vcpu->vm, GPA(page), 2 * PSZ), 0);
	assert_sizes(&m, 0, NR_BLOCKS - 1, BLOCK - 2);
	assert_events(&m, 1, 0);

	/* First and last page of a block. */
	arm(&m, 3 * BLOCK, 1);
	assert_sizes(&m, 0, NR_BLOCKS - 2, 2 * BLOCK - 3);
	assert_events(&m, 2, 0);
	arm(&m, 3 * BLOCK - 1, 1);
	assert_sizes(&m, 0, NR_BLOCKS - 3, 3 * BLOCK - 4);
	assert_events(&m, 3, 0);

	/* Still all others. */
	touch(&m, TOUCH_WRITE, 0, page);
	touch(&m, TOUCH_WRITE, page + 2, 2 * BLOCK - page - 3);
	touch(&m, TOUCH_WRITE, 3 * BLOCK + 1, m.npages - 3 * BLOCK - 1);
	if (in_place())
		TEST_ASSERT_EQ(nr_faults(vcpu), faults + 4);
	assert_sizes(&m, 0, NR_BLOCKS - 3, 3 * BLOCK - 4);

	/* From the middle of a block into another: what is between goes whole. */
	unmap_all(&m);
	touch_blocks(&m, 7);
	faults = nr_faults(vcpu);
	arm(&m, BLOCK / 2, 3 * BLOCK);
	assert_sizes(&m, 0, NR_BLOCKS - 4, BLOCK);
	assert_events(&m, 5 + parts, 0);
	touch(&m, TOUCH_READ, 0, BLOCK / 2);
	touch(&m, TOUCH_READ, 3 * BLOCK + BLOCK / 2, BLOCK / 2 + BLOCK);
	assert_no_faults(vcpu, faults);
	touch_armed(&m, TOUCH_READ, BLOCK / 2);
	touch_armed(&m, TOUCH_READ, 3 * BLOCK + BLOCK / 2 - 1);

	/* Whole blocks: nothing to split. */
	unmap_all(&m);
	touch_blocks(&m, 7);
	arm(&m, BLOCK, 2 * BLOCK);
	assert_sizes(&m, 0, NR_BLOCKS - 2, 0);
	arm(&m, 0, BLOCK);
	assert_sizes(&m, 0, NR_BLOCKS - 3, 0);
	assert_events(&m, 5 + parts, 0);

	/* Selected by a bitmap. */
	unmap_all(&m);
	touch_blocks(&m, 7);
	faults = nr_faults(vcpu);
	bitmap[0] = BIT(3) | BIT(63);
	bitmap[3] = BIT(0);
	TEST_ASSERT_EQ(vm_userfault_set(vcpu->vm, GPA(2 * BLOCK - 64), 256 * PSZ,
					KVM_USERFAULT_ARM | KVM_USERFAULT_BITMAP,
					bitmap), 3);
	assert_sizes(&m, 0, NR_BLOCKS - 2, 2 * BLOCK - 3);
	assert_events(&m, 7 + parts, 0);
	touch(&m, TOUCH_WRITE, 0, 2 * BLOCK - 61);
	touch(&m, TOUCH_WRITE, 2 * BLOCK - 60, 59);
	touch(&m, TOUCH_WRITE, 2 * BLOCK, 128);
	touch(&m, TOUCH_WRITE, 2 * BLOCK + 129, 3 * BLOCK - 129);
	assert_no_faults(vcpu, faults);
	touch_armed(&m, TOUCH_WRITE, 2 * BLOCK - 61);
	touch_armed(&m, TOUCH_WRITE, 2 * BLOCK - 1);
	touch_armed(&m, TOUCH_WRITE, 2 * BLOCK + 128);
}

KVM_ONE_VCPU_TEST(userfault_hugepage, split_thp, guest_touch)
{
	test_split(vcpu, ANON_THP);
}

KVM_ONE_VCPU_TEST(userfault_hugepage, split_shmem, guest_touch)
{
	test_split(vcpu, SHMEM_THP);
}

KVM_ONE_VCPU_TEST(userfault_hugepage, split_hugetlb, guest_touch)
{
	test_split(vcpu, HUGETLB_2M);
}

KVM_ONE_VCPU_TEST(userfault_hugepage, split_hugetlb_1g, guest_touch)
{
	struct memory m;
	u64 faults;

	add_memory(&m, vcpu, HUGETLB_1G, BLOCK_1G, MEM_UF);
	touch(&m, TOUCH_WRITE, 7, 1);
	assert_sizes(&m, 1, 0, 0);
	faults = nr_faults(vcpu);

	arm(&m, 77 * BLOCK + 5, 1);
	if (splits_in_place())
		assert_sizes(&m, 0, BLOCK - 1, BLOCK - 1);
	assert_events(&m, 2, 0);
	touch(&m, TOUCH_WRITE, 77 * BLOCK, 5);
	touch(&m, TOUCH_READ, 77 * BLOCK + 6, BLOCK - 6);
	touch(&m, TOUCH_WRITE, 0, 1);
	touch(&m, TOUCH_READ, 76 * BLOCK, 1);
	touch(&m, TOUCH_READ, 78 * BLOCK, 1);
	touch(&m, TOUCH_READ, BLOCK_1G - 1, 1);
	assert_no_faults(vcpu, faults);
	if (!splits_in_place())
		assert_sizes(&m, 0, 4, BLOCK - 1);
	touch_armed(&m, TOUCH_READ, 77 * BLOCK + 5);

	/* All of a 2M block, and then of the 1G block. */
	unmap_all(&m);
	touch(&m, TOUCH_READ, 7, 1);
	arm(&m, 77 * BLOCK, BLOCK);
	if (splits_in_place())
		assert_sizes(&m, 0, BLOCK - 1, 0);
	assert_events(&m, 3, 0);
	unmap_all(&m);
	touch(&m, TOUCH_READ, 7, 1);
	arm(&m, 0, BLOCK_1G);
	assert_sizes(&m, 0, 0, 0);
	assert_events(&m, 3, 0);

	/* From the middle of a 2M block to the end of the 1G block, and from its start. */
	unmap_all(&m);
	touch(&m, TOUCH_READ, 7, 1);
	arm(&m, 77 * BLOCK + 5, BLOCK_1G - 77 * BLOCK - 5);
	if (splits_in_place())
		assert_sizes(&m, 0, 77, 5);
	assert_events(&m, 5, 0);
	unmap_all(&m);
	touch(&m, TOUCH_READ, 7, 1);
	arm(&m, 0, 77 * BLOCK + 5);
	if (splits_in_place())
		assert_sizes(&m, 0, BLOCK - 78, BLOCK - 5);
	assert_events(&m, 7, 0);
}

/* Small pages are there to begin with. */
KVM_ONE_VCPU_TEST(userfault_hugepage, split_nothing, guest_touch)
{
	struct memory m;

	add_memory(&m, vcpu, ANON_4K, 2 * BLOCK, MEM_UF);
	touch(&m, TOUCH_READ, 0, 2 * BLOCK);
	assert_sizes(&m, 0, 0, 2 * BLOCK);
	arm(&m, 100, 10);
	assert_sizes(&m, 0, 0, 2 * BLOCK - 10);
	assert_events(&m, 0, 0);
	TEST_ASSERT_EQ(collapse(&m, 0, 2 * BLOCK), 10);
	touch(&m, TOUCH_READ, 0, 2 * BLOCK);
	assert_sizes(&m, 0, 0, 2 * BLOCK);
	assert_events(&m, 0, 0);
}

/*
 * KVM_USERFAULT_COLLAPSE
 */

/* After a collapse of blocks that the guest has touched. */
static void assert_collapsed(struct memory *m, u64 nr, u64 small)
{
	u64 faults = nr_faults(m->vcpu);

	if (in_place())
		assert_sizes(m, 0, nr, small);

	touch_blocks(m, 8);
	touch_blocks(m, BLOCK - 2);
	assert_sizes(m, 0, nr, small);
	assert_no_faults(m->vcpu, faults);
}

static void test_collapse(struct kvm_vcpu *vcpu, enum backing backing)
{
	u64 bitmap[2 * MAX_BLOCK / 64] = { };
	struct memory m;
	int i;

	add_memory(&m, vcpu, backing, NR_BLOCKS * BLOCK, MEM_UF);
	touch_blocks(&m, 7);

	/* Not before the last armed page of the block is clear. */
	for (i = 1; i < 4; i++)
		arm(&m, i * BLOCK + 10, 5);
	assert_sizes(&m, 0, NR_BLOCKS - 3, 3 * (BLOCK - 5));
	TEST_ASSERT_EQ(collapse(&m, BLOCK + 10, 4), 4);
	assert_collapsed(&m, NR_BLOCKS - 3, 3 * (BLOCK - 5));
	assert_events(&m, 3, 0);
	touch_armed(&m, TOUCH_READ, BLOCK + 14);
	TEST_ASSERT_EQ(collapse(&m, BLOCK + 14, 1), 1);
	assert_collapsed(&m, NR_BLOCKS - 2, 2 * (BLOCK - 5));
	assert_events(&m, 3, 1);

	/* What is clear is collapsed when it is asked for: this block only. */
	clear(&m, 2 * BLOCK + 10, 5);
	clear(&m, 3 * BLOCK + 10, 5);
	assert_collapsed(&m, NR_BLOCKS - 2, 2 * (BLOCK - 5));
	TEST_ASSERT_EQ(collapse(&m, 3 * BLOCK - 1, 1), 0);
	assert_collapsed(&m, NR_BLOCKS - 1, BLOCK - 5);
	TEST_ASSERT_EQ(collapse(&m, 4 * BLOCK, BLOCK), 0);
	assert_collapsed(&m, NR_BLOCKS - 1, BLOCK - 5);
	TEST_ASSERT_EQ(collapse(&m, 3 * BLOCK, 1), 0);
	assert_collapsed(&m, NR_BLOCKS, 0);
	assert_events(&m, 3, 3);

	/* Of a whole range, those that may. */
	for (i = 0; i < NR_BLOCKS; i++)
		arm(&m, i * BLOCK + i, 1);
	assert_collapsed(&m, 0, NR_BLOCKS * (BLOCK - 1));
	clear(&m, 0, 1);
	clear(&m, 2 * BLOCK + 2, 1);
	clear(&m, 4 * BLOCK + 4, 1);
	TEST_ASSERT_EQ(vm_userfault_set(vcpu->vm, GPA(0), BLOCK * PSZ,
					KVM_USERFAULT_COLLAPSE | KVM_USERFAULT_BITMAP,
					bitmap), 0);
	assert_collapsed(&m, 1, 4 * (BLOCK - 1));
	memset(bitmap, 0xff, sizeof(bitmap));
	bitmap[0] = ~BIT(1);
	TEST_ASSERT_EQ(vm_userfault_set(vcpu->vm, GPA(BLOCK), 2 * BLOCK * PSZ,
					KVM_USERFAULT_COLLAPSE | KVM_USERFAULT_BITMAP,
					bitmap), 0);
	assert_collapsed(&m, 2, 3 * (BLOCK - 1));
	TEST_ASSERT_EQ(collapse(&m, 3 * BLOCK - 1, BLOCK), 1);
	assert_collapsed(&m, 3, 2 * (BLOCK - 1));
	touch_armed(&m, TOUCH_READ, BLOCK + 1);
	TEST_ASSERT_EQ(collapse(&m, 0, m.npages), 1);
	assert_collapsed(&m, NR_BLOCKS, 0);
	assert_events(&m, 3 + NR_BLOCKS, 3 + NR_BLOCKS);

	/* The other way around it is a contradiction. */
	TEST_ASSERT_EQ(__vm_userfault_set(vcpu->vm, GPA(0), PSZ,
					  KVM_USERFAULT_ARM | KVM_USERFAULT_COLLAPSE,
					  NULL), EINVAL);
	assert_collapsed(&m, NR_BLOCKS, 0);
}

KVM_ONE_VCPU_TEST(userfault_hugepage, collapse_thp, guest_touch)
{
	test_collapse(vcpu, ANON_THP);
}

KVM_ONE_VCPU_TEST(userfault_hugepage, collapse_shmem, guest_touch)
{
	test_collapse(vcpu, SHMEM_THP);
}

KVM_ONE_VCPU_TEST(userfault_hugepage, collapse_hugetlb, guest_touch)
{
	test_collapse(vcpu, HUGETLB_2M);
}

KVM_ONE_VCPU_TEST(userfault_hugepage, collapse_hugetlb_1g, guest_touch)
{
	const u64 a = 77 * BLOCK + 5, b = 78 * BLOCK + 5, c = 78 * BLOCK + 6;
	struct memory m;
	u64 faults;

	add_memory(&m, vcpu, HUGETLB_1G, BLOCK_1G, MEM_UF);
	touch(&m, TOUCH_WRITE, 7, 1);
	arm(&m, a, 1);
	arm(&m, b, 2);
	if (splits_in_place())
		assert_sizes(&m, 0, BLOCK - 2, 2 * BLOCK - 3);
	assert_events(&m, 3, 0);

	/* 2M as long as there is an armed page elsewhere. */
	TEST_ASSERT_EQ(collapse(&m, b, 1), 1);
	if (in_place())
		assert_sizes(&m, 0, BLOCK - 2, 2 * BLOCK - 3);
	TEST_ASSERT_EQ(collapse(&m, c, 1), 1);
	faults = nr_faults(vcpu);
	touch(&m, TOUCH_WRITE, b, 2);
	assert_sizes(&m, 0, splits_in_place() ? BLOCK - 1 : 1, BLOCK - 1);
	assert_no_faults(vcpu, faults);
	assert_events(&m, 3, 1);
	touch_armed(&m, TOUCH_READ, a);

	/* All of it counts now, whatever small mappings are left elsewhere. */
	TEST_ASSERT_EQ(collapse(&m, a, 1), 1);
	faults = nr_faults(vcpu);
	if (in_place())
		assert_sizes(&m, 1, 0, 0);
	touch(&m, TOUCH_WRITE, b, 1);
	assert_sizes(&m, 1, 0, 0);
	touch(&m, TOUCH_WRITE, a, 1);
	touch(&m, TOUCH_WRITE, 0, 1);
	touch(&m, TOUCH_READ, BLOCK_1G - 1, 1);
	assert_sizes(&m, 1, 0, 0);
	assert_events(&m, 3, 2);
	assert_no_faults(vcpu, faults);
}

#ifdef __aarch64__
/* Stage 2 of few bits begins with the table of 2M blocks, though the backing has 1G. */
TEST(collapse_few_ipa_bits)
{
	struct kvm_vm *vm = vm_create_barebones_of_type(KVM_VM_TYPE_ARM_IPA_SIZE(34));
	struct memory m = { .vm = vm, .gpa = UF_GPA, .npages = BLOCK_1G };
	struct kvm_vcpu_init init;
	struct kvm_vcpu *vcpu;
	u32 *code;
	int i;

	vcpu = __vm_vcpu_add(vm, 0);
	kvm_get_default_vcpu_target(vm, &init);
	vcpu_ioctl(vcpu, KVM_ARM_VCPU_INIT, &init);

	/* Without any stage 1, the guest writes to address 0 for ever, which is MMIO. */
	code = alloc_backing(HUGETLB_1G, BLOCK_1G);
	code[0] = 0xf900001f;
	code[1] = 0x17ffffff;
	__builtin___clear_cache((void *)code, (void *)&code[2]);
	vm_set_user_memory_region(vm, UF_SLOT, MEM_UF, UF_GPA, BLOCK_1G * PSZ, code);
	vcpu_set_reg(vcpu, ARM64_CORE_REG(regs.pc), UF_GPA);
	vcpu_set_reg(vcpu, ARM64_CORE_REG(regs.regs[0]), 0);

	/* Nothing can be larger than it is already. */
	for (i = 0; i < 3; i++) {
		vcpu_run(vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
		TEST_ASSERT_EQ(collapse(&m, 0, BLOCK_1G), 0);
		TEST_ASSERT_EQ(get_stat(vm, COLLAPSES), 0);
	}

	/* Small mappings are, wherever they are. */
	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(1), PSZ), 1);
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(collapse(&m, 1, 1), 1);
	TEST_ASSERT_EQ(get_stat(vm, COLLAPSES), 1);
	kvm_vm_free(vm);
}
#endif

/* Dirty logging wants small pages, and gets them: where it splits ahead, all are mapped. */
static u64 nr_dirty_logged(struct memory *m)
{
	return in_place() ? m->npages - 1 : nr_stat(m, PAGES_4K);
}

KVM_ONE_VCPU_TEST(userfault_hugepage, collapse_dirty_log, guest_touch)
{
	unsigned long *dirty;
	struct memory m;
	u64 i;

	add_memory(&m, vcpu, ANON_THP, NR_BLOCKS * BLOCK, MEM_UF);
	dirty = calloc(1, m.npages / 8);
	touch_blocks(&m, 7);
	arm(&m, 10, 1);

	set_flags(&m, MEM_UF | MEM_LOG);
	touch_dirty_logged(&m, 8);
	assert_sizes(&m, 0, 0, nr_dirty_logged(&m));
	arm(&m, 11, 1);
	TEST_ASSERT_EQ(collapse(&m, 0, m.npages), 2);
	touch_dirty_logged(&m, 10);
	assert_sizes(&m, 0, 0, nr_dirty_logged(&m));
	assert_events(&m, 1, 0);

	/* With large mappings, the log would have more than these. */
	kvm_vm_get_dirty_log(m.vm, UF_SLOT, dirty);
	touch(&m, TOUCH_WRITE, BLOCK + 33, 1);
	TEST_ASSERT_EQ(collapse(&m, 0, m.npages), 0);
	touch(&m, TOUCH_WRITE, 2 * BLOCK + 44, 1);
	kvm_vm_get_dirty_log(m.vm, UF_SLOT, dirty);
	for (i = 0; i < m.npages; i++)
		TEST_ASSERT_EQ(!!(dirty[i / 64] & BIT(i % 64)),
			       i == BLOCK + 33 || i == 2 * BLOCK + 44);

	set_flags(&m, MEM_UF);
	if (!log_off_recovers())
		collapse(&m, 0, m.npages);
	touch_blocks(&m, 8);
	assert_sizes(&m, 0, NR_BLOCKS, 0);
	free(dirty);
}

/* What is as large as can be stays as it is, and counts as nothing. */
KVM_ONE_VCPU_TEST(userfault_hugepage, collapse_nothing, guest_touch)
{
	struct memory m;
	u64 faults;

	add_memory(&m, vcpu, ANON_THP, NR_BLOCKS * BLOCK, MEM_UF);
	touch_blocks(&m, 7);
	faults = nr_faults(vcpu);
	TEST_ASSERT_EQ(collapse(&m, 0, m.npages), 0);
	assert_sizes(&m, 0, NR_BLOCKS, 0);
	TEST_ASSERT_EQ(nr_stat(&m, COLLAPSES), 0);
	touch_blocks(&m, 7);
	assert_no_faults(vcpu, faults);

	/* Nor is there anything to collapse where nothing is mapped. */
	unmap_all(&m);
	TEST_ASSERT_EQ(collapse(&m, 0, m.npages), 0);
	assert_sizes(&m, 0, 0, 0);
	TEST_ASSERT_EQ(nr_stat(&m, COLLAPSES), 0);

	arm(&m, BLOCK, 1);
	touch(&m, TOUCH_READ, BLOCK + 1, 1);
	TEST_ASSERT_EQ(collapse(&m, 0, m.npages), 1);
	TEST_ASSERT_EQ(nr_stat(&m, COLLAPSES), counts_collapses());
	touch_blocks(&m, 7);
	assert_sizes(&m, 0, NR_BLOCKS, 0);
}

/* guest_memfd has 4K pages only; that must not make KVM complain. */
KVM_ONE_VCPU_TEST(userfault_hugepage, collapse_guest_memfd, guest_touch)
{
	const u64 flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
	struct kvm_vm *vm = vcpu->vm;
	struct memory m = {
		.vm = vm,
		.vcpu = vcpu,
		.gpa = UF_GPA,
		.npages = NR_BLOCKS * BLOCK,
	};
	void *addr;
	int fd;

	/* There is none without the TDP MMU. */
	if ((vm_check_cap(vm, KVM_CAP_GUEST_MEMFD_FLAGS) & flags) != flags) {
		TEST_ASSERT(!in_place(), "No guest_memfd");
		return;
	}

	__TEST_REQUIRE(PSZ < SZ_64K, "Takes twice the memory");
	fd = vm_create_guest_memfd(vm, m.npages * PSZ, flags);
	m.hva = kvm_mmap(m.npages * PSZ, PROT_READ | PROT_WRITE, MAP_SHARED, fd);

	/*
	 * userspace_addr says nothing about the memory: what is there could be mapped huge.
	 * But upstream's prefetching takes what it maps for the memory.
	 */
	addr = prefetches() ? m.hva : alloc_backing(ANON_THP, m.npages);
	vm_set_user_memory_region2(vm, UF_SLOT, MEM_UF | KVM_MEM_GUEST_MEMFD, m.gpa,
				   m.npages * PSZ, addr, fd, 0);
	map_in_guest(vm, m.gpa, m.npages, ANON_THP);
	start_guest(&m);

	touch(&m, TOUCH_WRITE, 0, m.npages);
	assert_sizes(&m, 0, 0, m.npages);
	arm(&m, 10, 1);
	TEST_ASSERT_EQ(collapse(&m, 0, m.npages), 1);
	touch(&m, TOUCH_READ, 0, m.npages);
	assert_sizes(&m, 0, 0, m.npages);
	assert_events(&m, 0, 0);

	/* Nor must dropping the flag. */
	arm(&m, 10, 1);
	vm_set_user_memory_region2(vm, UF_SLOT, KVM_MEM_GUEST_MEMFD, m.gpa,
				   m.npages * PSZ, addr, fd, 0);
	touch(&m, TOUCH_READ, 0, m.npages);
	assert_sizes(&m, 0, 0, m.npages);
	close(fd);
}

/*
 * A fault has found a page of its block armed, and waits for the memory to be there.
 * Meanwhile the block is cleared and collapsed: it must not be mapped small.
 */
static struct memory *uffd_memory;

static int collapsing_uffd_handler(int mode, int uffd, struct uffd_msg *msg)
{
	u64 size = uffd_memory->npages * PSZ;
	void *src = kvm_mmap(size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	struct uffdio_copy copy = {
		.dst = (u64)uffd_memory->hva,
		.src = (u64)src,
		.len = size,
	};

	TEST_ASSERT_EQ(collapse(uffd_memory, 0, 1), 1);
	TEST_ASSERT(!ioctl(uffd, UFFDIO_COPY, &copy), "UFFDIO_COPY: errno %d", errno);
	kvm_munmap(src, size);
	return 0;
}

KVM_ONE_VCPU_TEST(userfault_hugepage, collapse_fault_in_flight, guest_touch)
{
	struct uffd_desc *uffd;
	struct memory m;

	add_memory(&m, vcpu, HUGETLB_2M, BLOCK, MEM_UF);
	kvm_madvise(m.hva, BLOCK * PSZ, MADV_DONTNEED);
	uffd_memory = &m;
	uffd = uffd_setup_demand_paging(UFFDIO_REGISTER_MODE_MISSING, 0, m.hva,
					BLOCK * PSZ, 1, collapsing_uffd_handler);

	arm(&m, 0, 1);
	set_touch(&m, TOUCH_READ, 300, 1);
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0);
	assert_sizes(&m, 0, 1, 0);
	uffd_stop_demand_paging(uffd);
}

/* Slots that begin and end within a block, or lie within one, and holes. */
KVM_ONE_VCPU_TEST(userfault_hugepage, collapse_odd_slots, guest_touch)
{
	const u64 half = BLOCK / 2;
	struct kvm_vm *vm = vcpu->vm;
	struct memory m = {
		.vm = vm,
		.vcpu = vcpu,
		.gpa = UF_GPA,
		.npages = 6 * BLOCK,
	};
	u64 i;

	m.hva = alloc_backing(ANON_THP, m.npages);
	set_flags(&m, MEM_UF);
	map_in_guest(vm, m.gpa, m.npages, ANON_THP);
	start_guest(&m);
	vm_set_user_memory_region(vm, UF_SLOT, 0, m.gpa, 0, m.hva);

	/*
	 * [half, 2 blocks + half), [2 blocks + half, 3 blocks), without the flag
	 * [3 blocks, 4 blocks), hole, [5 blocks + 5, 5 blocks + 7).
	 */
	vm_set_user_memory_region(vm, UF_SLOT, MEM_UF, GPA(half), 2 * BLOCK * PSZ,
				  (void *)m.hva + half * PSZ);
	vm_set_user_memory_region(vm, UF_SLOT + 1, MEM_UF, GPA(2 * BLOCK + half),
				  half * PSZ, (void *)m.hva + (2 * BLOCK + half) * PSZ);
	vm_set_user_memory_region(vm, UF_SLOT + 2, 0, GPA(3 * BLOCK), BLOCK * PSZ,
				  (void *)m.hva + 3 * BLOCK * PSZ);
	vm_set_user_memory_region(vm, UF_SLOT + 3, MEM_UF, GPA(5 * BLOCK + 5), 2 * PSZ,
				  (void *)m.hva + (5 * BLOCK + 5) * PSZ);

	touch(&m, TOUCH_READ, half, 4 * BLOCK - half);
	touch(&m, TOUCH_READ, 5 * BLOCK + 5, 2);
	assert_sizes(&m, 0, 2, 2 * half + half + 2);
	for (i = 0; i < 2; i++) {
		arm(&m, BLOCK + i, 1);
		arm(&m, 2 * BLOCK - 5, 10);
		arm(&m, 3 * BLOCK - 3, 3);
		arm(&m, 5 * BLOCK + 6, 1);
		assert_sizes(&m, 0, 1, 3 * half + 2 + BLOCK - 15);

		/* In one go, or from the edges. */
		if (i) {
			TEST_ASSERT_EQ(collapse(&m, half, 1), 0);
			TEST_ASSERT_EQ(collapse(&m, 2 * BLOCK, half + half), 8);
			TEST_ASSERT_EQ(collapse(&m, 5 * BLOCK + 6, 1), 1);
			assert_sizes(&m, 0, 1, 3 * half + 2 + BLOCK - 15);
			TEST_ASSERT_EQ(collapse(&m, BLOCK, BLOCK), 6);
		} else {
			TEST_ASSERT_EQ(vm_userfault_set(vm, 0, GPA(6 * BLOCK),
							KVM_USERFAULT_COLLAPSE,
							NULL), 15);
		}
		touch(&m, TOUCH_READ, half, 4 * BLOCK - half);
		touch(&m, TOUCH_READ, 5 * BLOCK + 5, 2);
		assert_sizes(&m, 0, 2, 3 * half + 2);
		assert_events(&m, i + 1, i + 1);
	}
}

/*
 * Dropping the flag
 */
struct flags_step {
	u32 flags;

	/* Blocks that are mapped huge then, -1: whatever KVM does. */
	int nr_huge;
};

#define MAX_STEPS	4

/*
 * Each begins with block 1 split for an armed page, and block 3 for one that is
 * clear since.  Ends with a step of no flags and no huge pages.
 */
static const struct flags_case {
	const char *name;
	u32 flags;
	struct flags_step steps[MAX_STEPS];
} flags_cases[] = {
	{ "drop", MEM_UF, { { 0, 5 } } },
	{ "drop, on, drop", MEM_UF, { { 0, 5 }, { MEM_UF, 5 }, { 0, 5 } } },
	{ "log on and off, drop", MEM_UF,
	  { { MEM_UF | MEM_LOG, 0 }, { MEM_UF, 4 }, { 0, 5 } } },
	{ "log on, drop, log off", MEM_UF,
	  { { MEM_UF | MEM_LOG, 0 }, { MEM_LOG, 0 }, { 0, 5 } } },
	{ "log on, drop both", MEM_UF, { { MEM_UF | MEM_LOG, 0 }, { 0, 5 } } },
	{ "drop for log, log off", MEM_UF, { { MEM_LOG, 0 }, { 0, 5 } } },
	{ "drop for log, and back", MEM_UF,
	  { { MEM_LOG, 0 }, { MEM_UF, 5 }, { 0, 5 } } },
	{ "from log, log off, drop", MEM_UF | MEM_LOG, { { MEM_UF, 4 }, { 0, 5 } } },
	{ "from log, drop, log off", MEM_UF | MEM_LOG, { { MEM_LOG, 0 }, { 0, 5 } } },
	{ "from log, drop both", MEM_UF | MEM_LOG, { { 0, 5 } } },
	{ "readonly, drop", MEM_UF | MEM_RO, { { MEM_RO, 5 } } },
	{ "readonly, drop, on, drop", MEM_UF | MEM_RO,
	  { { MEM_RO, 5 }, { MEM_UF | MEM_RO, 5 }, { MEM_RO, 5 } } },
	{ "readonly, log on, drop both", MEM_UF | MEM_RO,
	  { { MEM_UF | MEM_LOG | MEM_RO, -1 }, { MEM_RO, 5 } } },
	/* KVM does not recover when a READONLY slot's dirty logging ends. */
	{ "readonly, log on and off, drop", MEM_UF | MEM_RO,
	  { { MEM_UF | MEM_LOG | MEM_RO, -1 }, { MEM_UF | MEM_RO, -1 }, { MEM_RO, 5 } } },
	{ "readonly, log on, drop, log off", MEM_UF | MEM_RO,
	  { { MEM_UF | MEM_LOG | MEM_RO, -1 }, { MEM_LOG | MEM_RO, -1 }, { MEM_RO, -1 } } },
	{ "readonly, from log, drop both", MEM_UF | MEM_LOG | MEM_RO,
	  { { MEM_RO, 5 } } },
	{ "readonly, drop for log", MEM_UF | MEM_RO,
	  { { MEM_LOG | MEM_RO, -1 }, { MEM_RO, -1 } } },
};

static void test_flags_case(struct memory *m, const struct flags_case *t)
{
	const struct flags_step *step;
	u32 flags = t->flags;
	bool armed = true;
	u64 faults, huge;
	int nr_huge;

	/* READONLY is fixed at creation. */
	vm_set_user_memory_region(m->vm, UF_SLOT, 0, m->gpa, 0, m->hva);
	set_flags(m, t->flags);
	touch(m, TOUCH_READ, 0, m->npages);
	arm(m, BLOCK + 10, 1);
	arm(m, 3 * BLOCK, 1);
	clear(m, 3 * BLOCK, 1);

	for (step = t->steps; step->flags || step->nr_huge; step++) {
		nr_huge = step->nr_huge;
		if ((flags & ~step->flags & (MEM_LOG | MEM_UF)) == MEM_LOG && !log_off_recovers())
			nr_huge = -1;
		flags = step->flags;
		set_flags(m, flags);
		if (!(flags & MEM_UF))
			armed = false;

		huge = nr_stat(m, PAGES_2M);
		faults = nr_faults(m->vcpu);
		if (in_place() && nr_huge >= 0)
			TEST_ASSERT(huge == nr_huge,
				    "%s: %lu huge after flags 0x%x, wanted %d",
				    t->name, huge, flags, nr_huge);
		if (flags & MEM_LOG && !(flags & MEM_RO)) {
			touch_dirty_logged(m, 1);
			touch_dirty_logged(m, BLOCK - 1);
		} else {
			touch_blocks(m, 1);
			touch_blocks(m, BLOCK - 1);
		}

		huge = nr_stat(m, PAGES_2M);
		if (has_sizes() && nr_huge >= 0)
			TEST_ASSERT(huge == nr_huge,
				    "%s: %lu huge after flags 0x%x and faults, wanted %d",
				    t->name, huge, flags, nr_huge);
		TEST_ASSERT(nr_faults(m->vcpu) == faults, "%s: %lu faults after flags 0x%x",
			    t->name, nr_faults(m->vcpu) - faults, flags);

		if (armed)
			touch_armed(m, TOUCH_READ, BLOCK + 10);
		else
			touch(m, TOUCH_READ, BLOCK + 10, 1);
	}
}

KVM_ONE_VCPU_TEST(userfault_hugepage, drop_flag, guest_touch)
{
	struct memory m;
	int i;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_READONLY_MEM));

	add_memory(&m, vcpu, ANON_THP, NR_BLOCKS * BLOCK, MEM_UF);
	for (i = 0; i < ARRAY_SIZE(flags_cases); i++)
		test_flags_case(&m, &flags_cases[i]);

	/* Small backing stays small. */
	vm_set_user_memory_region(m.vm, UF_SLOT, 0, m.gpa, 0, m.hva);
	kvm_munmap(m.hva, m.npages * PSZ);
	m.hva = alloc_backing(ANON_4K, m.npages);
	set_flags(&m, MEM_UF);
	touch_blocks(&m, 1);
	arm(&m, 10, 1);
	set_flags(&m, 0);
	touch_blocks(&m, 1);
	assert_sizes(&m, 0, 0, NR_BLOCKS);
}

KVM_ONE_VCPU_TEST(userfault_hugepage, drop_flag_1g, guest_touch)
{
	struct memory m;

	add_memory(&m, vcpu, HUGETLB_1G, BLOCK_1G, MEM_UF);
	touch(&m, TOUCH_READ, 7, 1);
	arm(&m, 10 * BLOCK + 10, 1);
	touch(&m, TOUCH_READ, 10 * BLOCK + 11, 1);
	assert_sizes(&m, 0, splits_in_place() ? BLOCK - 1 : 0, BLOCK - 1);
	set_flags(&m, 0);
	if (in_place())
		assert_sizes(&m, 1, 0, 0);
	touch(&m, TOUCH_READ, 10 * BLOCK + 10, 1);
	assert_sizes(&m, 1, 0, 0);
}

/*
 * Running vCPUs
 */
#define NR_WORKERS	3

static u64 guest_stop;
static u64 guest_rounds[NR_WORKERS];

/* Pages that all vCPUs go round; each has a word of its own in every page. */
static u64 guest_pages[64];
static u64 guest_nr_pages;

static void guest_count(u64 id)
{
	u64 n = 0, i, *p;

	while (!READ_ONCE(guest_stop)) {
		for (i = 0; i < guest_nr_pages; i++) {
			p = (u64 *)guest_pages[i] + id;
			__GUEST_ASSERT(READ_ONCE(*p) == n, "gva %lx: wanted %lx, got %lx",
				       guest_pages[i], n, READ_ONCE(*p));
			WRITE_ONCE(*p, n + 1);
		}
		WRITE_ONCE(guest_rounds[id], ++n);
	}

	GUEST_DONE();
}

struct worker {
	struct kvm_vcpu *vcpu;
	pthread_t thread;

	/* What to do about a userfault: stop until told to go on, or enter again. */
	bool retry;
	sem_t stopped;
	sem_t resume;
	u64 exits;
};

static void *worker_fn(void *arg)
{
	struct worker *w = arg;
	struct ucall uc;
	int ret;

	for (;;) {
		ret = _vcpu_run(w->vcpu);
		if (!is_userfault_exit(w->vcpu, ret))
			break;

		WRITE_ONCE(w->exits, w->exits + 1);
		if (!w->retry) {
			sem_post(&w->stopped);
			sem_wait(&w->resume);
		}
	}

	TEST_ASSERT(!ret, "KVM_RUN failed, errno %d exit reason %u", errno,
		    w->vcpu->run->exit_reason);
	switch (get_ucall(w->vcpu, &uc)) {
	case UCALL_DONE:
		return NULL;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	default:
		TEST_FAIL("Unexpected ucall %lu", uc.cmd);
	}
	return NULL;
}

static void start_workers(struct worker *w, struct kvm_vcpu *vcpu, bool retry)
{
	int i;

	for (i = 0; i < NR_WORKERS; i++) {
		w[i] = (struct worker) {
			.vcpu = i ? vm_vcpu_add(vcpu->vm, i, guest_count) : vcpu,
			.retry = retry,
		};
		vcpu_args_set(w[i].vcpu, 1, (u64)i);
		sem_init(&w[i].stopped, 0, 0);
		sem_init(&w[i].resume, 0, 0);
	}
	for (i = 0; i < NR_WORKERS; i++)
		TEST_ASSERT(!pthread_create(&w[i].thread, NULL, worker_fn, &w[i]),
			    "pthread_create() failed");
}

static void stop_workers(struct worker *w)
{
	int i;

	write_guest_global(w->vcpu->vm, guest_stop, 1);
	for (i = 0; i < NR_WORKERS; i++)
		TEST_ASSERT(!pthread_join(w[i].thread, NULL), "pthread_join() failed");
}

static u64 *rounds_hva(struct kvm_vm *vm)
{
	return addr_gva2hva(vm, (gva_t)guest_rounds);
}

/* All vCPUs have touched all pages since. */
static void wait_rounds(struct kvm_vm *vm)
{
	u64 *rounds = rounds_hva(vm);
	u64 before[NR_WORKERS];
	int i, ms;

	memcpy(before, rounds, sizeof(before));
	for (i = 0; i < NR_WORKERS; i++) {
		for (ms = 0; READ_ONCE(rounds[i]) - before[i] < 2; ms++) {
			TEST_ASSERT(ms < 10000, "vCPU %d is stuck", i);
			usleep(1000);
		}
	}
}

static void worker_wait_stopped(struct worker *w)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_sec += 10;
	TEST_ASSERT(!sem_timedwait(&w->stopped, &ts), "vCPU %u does not stop",
		    w->vcpu->id);
}

/*
 * Freeze: a slot of huge pages, a hole, another such slot, a hole, a slot of
 * small pages, and where the guest has its code, its stack and its page tables.
 */
KVM_ONE_VCPU_TEST(userfault_hugepage, freeze, guest_count)
{
	const struct {
		u64 page;
		u64 npages;
		enum backing backing;
	} freeze_slots[] = {
		{ 0, 3 * BLOCK, ANON_THP },
		{ 4 * BLOCK, 2 * BLOCK, HUGETLB_2M },
		{ 9 * BLOCK + 17, 100, ANON_4K },
	};
	struct kvm_vm *vm = vcpu->vm;
	u64 all = (vm->max_gfn + 1) * PSZ;
	u64 nr_huge = 0, npages = 0, nr_pages = 0;
	u64 pages[ARRAY_SIZE(guest_pages)];
	u64 *hva[ARRAY_SIZE(guest_pages)];
	u64 frozen[ARRAY_SIZE(guest_pages)][NR_WORKERS];
	struct worker w[NR_WORKERS];
	int i, j, round;

	for (i = 0; i < ARRAY_SIZE(freeze_slots); i++) {
		u64 page = freeze_slots[i].page, n = freeze_slots[i].npages;
		void *mem = alloc_backing(freeze_slots[i].backing, n);

		vm_set_user_memory_region(vm, UF_SLOT + i, MEM_UF, GPA(page), n * PSZ, mem);
		map_in_guest(vm, GPA(page), n, freeze_slots[i].backing);
		npages += n;
		if (freeze_slots[i].backing != ANON_4K)
			nr_huge += n / BLOCK;

		/* Eight pages of each, spread over it. */
		for (j = 0; j < 8; j++) {
			u64 p = j * n / 8;

			pages[nr_pages] = GPA(page + p);
			hva[nr_pages++] = mem + p * PSZ;
		}
	}
	vm_mem_region_set_flags(vm, 0, MEM_UF);
	npages += memslot2region(vm, 0)->region.memory_size / PSZ;
	memcpy(addr_gva2hva(vm, (gva_t)guest_pages), pages, sizeof(pages));
	write_guest_global(vm, guest_nr_pages, nr_pages);

	start_workers(w, vcpu, false);
	wait_rounds(vm);

	for (round = 1; round <= 3; round++) {
		if (has_sizes()) {
			TEST_ASSERT_EQ(get_stat(vm, PAGES_2M), nr_huge);
			TEST_ASSERT(nr_mapped(vm) > nr_huge, "Nothing small is mapped");
		}

		TEST_ASSERT_EQ(vm_userfault_arm(vm, 0, all), npages);
		for (i = 0; i < nr_pages; i++)
			memcpy(frozen[i], hva[i], sizeof(frozen[i]));

		/* Each stops at its next access, wherever that is, and again. */
		for (i = 0; i < NR_WORKERS; i++) {
			worker_wait_stopped(&w[i]);
			sem_post(&w[i].resume);
			worker_wait_stopped(&w[i]);
		}
		TEST_ASSERT_EQ(nr_mapped(vm), 0);
		usleep(10000);
		for (i = 0; i < nr_pages; i++)
			TEST_ASSERT(!memcmp(frozen[i], hva[i], sizeof(frozen[i])),
				    "Page %d has changed while frozen", i);

		TEST_ASSERT_EQ(vm_userfault_set(vm, 0, all, KVM_USERFAULT_COLLAPSE, NULL),
			       npages);
		for (i = 0; i < NR_WORKERS; i++)
			sem_post(&w[i].resume);
		wait_rounds(vm);
	}

	if (has_sizes())
		TEST_ASSERT_EQ(get_stat(vm, PAGES_2M), nr_huge);
	stop_workers(w);
	for (i = 0; i < NR_WORKERS; i++)
		TEST_ASSERT_EQ(w[i].exits, 2 * 3);
}

static u64 all_faults(struct worker *w)
{
	u64 faults = 0;
	int i;

	for (i = 0; i < NR_WORKERS; i++)
		faults += nr_faults(w[i].vcpu);
	return faults;
}

/*
 * Pages next to one that is armed again and again, at the edges of its block, and
 * in the next block: no exit, and where the block is split in place not even a
 * fault.  Collapse does take away the small mappings before it flushes: a vCPU
 * that is just walking them faults, inside KVM.
 */
KVM_ONE_VCPU_TEST(userfault_hugepage, race_neighbours, guest_count)
{
	const u64 pages[] = { 0, 99, 101, BLOCK - 1, BLOCK };
	struct memory m = {
		.vm = vcpu->vm,
		.vcpu = vcpu,
		.gpa = UF_GPA,
		.npages = 2 * BLOCK,
		.hva = alloc_backing(HUGETLB_2M, 2 * BLOCK),
	};
	u64 faults, gvas[ARRAY_SIZE(guest_pages)];
	struct worker w[NR_WORKERS];
	int i;

	set_flags(&m, MEM_UF);
	map_in_guest(m.vm, m.gpa, m.npages, HUGETLB_2M);
	for (i = 0; i < ARRAY_SIZE(pages); i++)
		gvas[i] = GPA(pages[i]);
	memcpy(addr_gva2hva(m.vm, (gva_t)guest_pages), gvas, sizeof(gvas));
	write_guest_global(m.vm, guest_nr_pages, ARRAY_SIZE(pages));
	start_workers(w, vcpu, true);

	for (i = 0; i < 20; i++) {
		wait_rounds(m.vm);
		assert_sizes(&m, 0, 2, nr_stat(&m, PAGES_4K));
		faults = all_faults(w);
		arm(&m, 100, 1);
		wait_rounds(m.vm);
		assert_sizes(&m, 0, 1, nr_stat(&m, PAGES_4K));
		TEST_ASSERT_EQ(all_faults(w), faults);
		TEST_ASSERT_EQ(collapse(&m, 100, 1), 1);
	}
	for (; i < 200; i++) {
		arm(&m, 100, 1);
		TEST_ASSERT_EQ(collapse(&m, 100, 1), 1);
	}

	wait_rounds(m.vm);
	assert_sizes(&m, 0, 2, nr_stat(&m, PAGES_4K));
	for (i = 0; i < NR_WORKERS; i++)
		TEST_ASSERT_EQ(w[i].exits, 0);
	stop_workers(w);
}

/*
 * What the VMM does beside, again and again.
 */
struct racer {
	struct memory *m;
	/* Of what it works on, in pages. */
	u64 page;
	pthread_t thread;
	bool stop;
	u64 rounds;
};

static void start_racer(struct racer *r, void *(*fn)(void *))
{
	TEST_ASSERT(!pthread_create(&r->thread, NULL, fn, r), "pthread_create() failed");
}

static void stop_racer(struct racer *r)
{
	WRITE_ONCE(r->stop, true);
	TEST_ASSERT(!pthread_join(r->thread, NULL), "pthread_join() failed");
	TEST_ASSERT(r->rounds, "A racer has done nothing");
}

/*
 * Everything that splits, collapses and unmaps, at the same time: the guest finds
 * what it has written, the kernel finds nothing to complain about, and in the end
 * all mappings are large.
 */
static void *race_collapse(void *arg)
{
	struct racer *r = arg;

	while (!READ_ONCE(r->stop)) {
		vm_userfault_set(r->m->vm, GPA(r->rounds % 5 * 300), 600 * PSZ,
				 KVM_USERFAULT_COLLAPSE, NULL);
		WRITE_ONCE(r->rounds, r->rounds + 1);
	}
	return NULL;
}

static void *race_arm(void *arg)
{
	struct racer *r = arg;
	u64 changed = 0;

	/* ENOENT: it has lost the flag. */
	while (!READ_ONCE(r->stop)) {
		struct kvm_userfault_range range = {
			.gpa = GPA(r->rounds % 7 * 200 + r->rounds % 3),
			.size = (r->rounds % 2 ? 1 : 700) * PSZ,
			.flags = KVM_USERFAULT_ARM,
		};
		int err = __vm_userfault_set_range(r->m->vm, &range);

		TEST_ASSERT(!err || err == ENOENT, "Arm: errno %d", err);
		changed += range.changed;
		WRITE_ONCE(r->rounds, r->rounds + 1);
	}
	TEST_ASSERT(changed, "Nothing was armed");
	return NULL;
}

KVM_ONE_VCPU_TEST(userfault_hugepage, race_all, guest_count)
{
	const u32 flags[] = { MEM_UF | MEM_LOG, MEM_UF, MEM_LOG, MEM_UF | MEM_LOG, 0, MEM_UF };
	struct memory m = {
		.vm = vcpu->vm,
		.vcpu = vcpu,
		.gpa = UF_GPA,
		.npages = 4 * BLOCK,
		.hva = alloc_backing(ANON_THP, 4 * BLOCK),
	};
	struct racer racers[2] = { { .m = &m }, { .m = &m } };
	u64 gvas[ARRAY_SIZE(guest_pages)];
	struct worker w[NR_WORKERS];
	int i;

	set_flags(&m, MEM_UF);
	map_in_guest(m.vm, m.gpa, m.npages, ANON_THP);
	for (i = 0; i < ARRAY_SIZE(gvas); i++)
		gvas[i] = GPA(i * m.npages / ARRAY_SIZE(gvas));
	memcpy(addr_gva2hva(m.vm, (gva_t)guest_pages), gvas, sizeof(gvas));
	write_guest_global(m.vm, guest_nr_pages, ARRAY_SIZE(gvas));

	start_workers(w, vcpu, true);
	wait_rounds(m.vm);
	start_racer(&racers[0], race_collapse);
	start_racer(&racers[1], race_arm);

	for (i = 0; i < 5 * ARRAY_SIZE(flags); i++) {
		set_flags(&m, flags[i % ARRAY_SIZE(flags)]);
		usleep(10000);
	}

	stop_racer(&racers[1]);
	stop_racer(&racers[0]);
	collapse(&m, 0, m.npages);
	wait_rounds(m.vm);
	if (has_sizes())
		TEST_ASSERT_EQ(get_stat(m.vm, PAGES_2M), 4);
	stop_workers(w);
}

/*
 * Both ends of the slot come and go, so that all of it seems to be on its way out:
 * what is between is none the less collapsed, and armed.
 */
static void *discard(void *arg)
{
	struct racer *r = arg;
	void *hva = (void *)r->m->hva + r->page * PSZ;

	while (!READ_ONCE(r->stop)) {
		kvm_madvise(hva, BLOCK * PSZ, MADV_POPULATE_WRITE);
		kvm_madvise(hva, BLOCK * PSZ, MADV_DONTNEED);
		WRITE_ONCE(r->rounds, r->rounds + 1);
	}
	return NULL;
}

KVM_ONE_VCPU_TEST(userfault_hugepage, collapse_between_discards, guest_touch)
{
	struct memory m;
	struct racer d[2] = { { .m = &m }, { .m = &m, .page = 2 * BLOCK } };
	struct timespec start;
	void *hva;
	int i;

	add_memory(&m, vcpu, ANON_THP, 3 * BLOCK, MEM_UF);
	for (i = 0; i < 2; i++) {
		hva = (void *)m.hva + d[i].page * PSZ;
		kvm_madvise(hva, BLOCK * PSZ, MADV_NOHUGEPAGE);
		kvm_madvise(hva, BLOCK * PSZ, MADV_DONTNEED);
		start_racer(&d[i], discard);
	}

	touch(&m, TOUCH_WRITE, BLOCK, 1);
	clock_gettime(CLOCK_MONOTONIC, &start);

	/* Not all too often: on arm64, a fault waits until nothing at all is on its way out. */
	for (i = 0; i < 20 || d[0].rounds < 10 || d[1].rounds < 10 ||
	     (i < 200 && timespec_elapsed(start).tv_sec < 20); i++) {
		arm(&m, BLOCK + i % BLOCK, 1);
		if (splits_in_place())
			assert_sizes(&m, 0, 0, BLOCK - 1);
		TEST_ASSERT_EQ(collapse(&m, BLOCK, BLOCK), 1);
		if (in_place())
			assert_sizes(&m, 0, 1, 0);
		touch(&m, TOUCH_WRITE, BLOCK, 1);
		assert_sizes(&m, 0, 1, 0);
	}
	assert_events(&m, i, i);

	for (i = 0; i < 2; i++)
		stop_racer(&d[i]);
}

/*
 * Tracepoints
 */
KVM_ONE_VCPU_TEST(userfault_hugepage, tracepoints, guest_touch)
{
	char split[128], collapsed[128], exited[128], range[256];
	struct trace trace;
	struct memory m;

	trace_begin(&trace);
	trace_enable(&trace, "kvm_userfault_split");
	trace_enable(&trace, "kvm_userfault_collapse");
	trace_enable(&trace, "kvm_userfault_exit");
	trace_enable(&trace, "kvm_userfault_range");

	add_memory(&m, vcpu, HUGETLB_2M, NR_BLOCKS * BLOCK, MEM_UF);
	touch_blocks(&m, 7);
	arm(&m, BLOCK + 100, BLOCK);
	touch_armed(&m, TOUCH_WRITE, BLOCK + 101);
	collapse(&m, BLOCK, 2 * BLOCK);

	/* Numbers of the range as it was given, and of mappings. */
	snprintf(split, sizeof(split), ": as_id 0 gfn %#lx - %#lx nr 2",
		 GPA(BLOCK + 100) / PSZ, GPA(2 * BLOCK + 100) / PSZ);
	snprintf(collapsed, sizeof(collapsed), ": as_id 0 gfn %#lx - %#lx nr 2",
		 GPA(BLOCK) / PSZ, GPA(3 * BLOCK) / PSZ);
	TEST_ASSERT_EQ(trace_count(&trace, "kvm_userfault_split", split),
		       splits_in_place());
	TEST_ASSERT_EQ(trace_count(&trace, "kvm_userfault_collapse", collapsed),
		       splits_in_place());

	snprintf(exited, sizeof(exited), ": vcpu 0 gpa %#lx WRITE|USERFAULT",
		 GPA(BLOCK + 101));
	TEST_ASSERT_EQ(trace_count(&trace, "kvm_userfault_exit", exited), 2);
	TEST_ASSERT_EQ(trace_count(&trace, "kvm_userfault_exit", NULL), 2);

	snprintf(range, sizeof(range),
		 ": gpa %#lx size %#lx flags ARM as_mask 0x0 done %#lx changed %lu ret 0",
		 GPA(BLOCK + 100), BLOCK * PSZ, BLOCK * PSZ, BLOCK);
	TEST_ASSERT_EQ(trace_count(&trace, "kvm_userfault_range", range), 1);
	snprintf(range, sizeof(range),
		 ": gpa %#lx size %#lx flags COLLAPSE as_mask 0x0 done %#lx changed %lu ret 0",
		 GPA(BLOCK), 2 * BLOCK * PSZ, 2 * BLOCK * PSZ, BLOCK);
	TEST_ASSERT_EQ(trace_count(&trace, "kvm_userfault_range", range), 1);

	/* Nothing is done, and why. */
	TEST_ASSERT_EQ(__vm_userfault_set(m.vm, GPA(8 * BLOCK), PSZ, KVM_USERFAULT_ARM,
					  NULL), ENOENT);
	snprintf(range, sizeof(range),
		 ": gpa %#lx size %#lx flags ARM as_mask 0x0 done 0x0 changed 0 ret %d",
		 GPA(8 * BLOCK), PSZ, -ENOENT);
	TEST_ASSERT_EQ(trace_count(&trace, "kvm_userfault_range", range), 1);

	trace_end(&trace);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE_USERFAULT();

	return test_harness_run(argc, argv);
}
