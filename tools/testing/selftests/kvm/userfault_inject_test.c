// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM userfault when there is no memory: allocations are made to fail.
 *
 * Each operation is done again and again.  The first time its first allocation
 * fails, the second time its second, and so on until it has no more of them; in
 * the end all fail.  Copies from and to userspace count as allocations if the
 * kernel has CONFIG_FAULT_INJECTION_USERCOPY.  Whichever it is,
 *  - only a change of a memslot may end in ENOMEM; to arm is always possible, if
 *    need be by unmapping what cannot be split
 *  - what fails has changed nothing, and what does not is done: which pages are
 *    armed, what the memslot is, which accesses exit
 *  - a resolve has cleared its pages, although KVM_RUN may then find no memory to
 *    map them
 *
 * Takes root and CONFIG_FAULT_INJECTION_DEBUG_FS, CONFIG_FAILSLAB and
 * CONFIG_FAIL_PAGE_ALLOC.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/sizes.h>

#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_userfault_guest.h"
#include "kvm_userfault_util.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#define SLOT		10
#define GPA		SZ_4G
#define TEST_SECONDS	300

/* Two blocks, for huge mappings. */
#define BLOCK		512UL
#define NR_PAGES	(2 * BLOCK)
#define NR_WORDS	(NR_PAGES / 64)

/* A slot whose bitmap does not fit into a page. */
#define BIG_GPA		(8ull << 30)
#define BIG_PAGES	BIT(20)

#define MEM_UF		KVM_MEM_USERFAULT
#define MEM_ARMED	KVM_MEM_USERFAULT_ARMED
#define MEM_LOG		KVM_MEM_LOG_DIRTY_PAGES

/* More allocations than any operation has. */
#define MAX_NTH		500
#define ALL		-1

#define FAULT_DEBUGFS	"/sys/kernel/debug/"

static const char * const injected_faults[] = { "failslab", "fail_page_alloc" };

static void write_file(const char *path, const char *val)
{
	int fd = open(path, O_WRONLY);

	TEST_ASSERT(fd >= 0 && write(fd, val, strlen(val)) == strlen(val),
		    "Cannot write %s to %s, errno %d", val, path, errno);
	close(fd);
}

static void write_attr(const char *fault, const char *attr, const char *val)
{
	char path[128];

	snprintf(path, sizeof(path), FAULT_DEBUGFS "%s/%s", fault, attr);
	write_file(path, val);
}

/* Nothing fails but for tasks that ask for it, and without a word. */
static void set_up_faults(bool on)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(injected_faults); i++) {
		write_attr(injected_faults[i], "verbose", on ? "0" : "2");
		write_attr(injected_faults[i], "task-filter", on ? "Y" : "N");
		write_attr(injected_faults[i], "ignore-gfp-wait", on ? "N" : "Y");
		write_attr(injected_faults[i], "times", on ? "-1" : "1");
	}
	write_attr("fail_page_alloc", "min-order", on ? "0" : "1");
	if (!access(FAULT_DEBUGFS "fail_usercopy", F_OK))
		write_attr("fail_usercopy", "verbose", on ? "0" : "2");
}

static void set_probability(const char *percent)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(injected_faults); i++)
		write_attr(injected_faults[i], "probability", percent);
}

FIXTURE(inject) {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	u64 psz;
	u64 size;
	u8 *hva;
	/* guest_memfd, if the memory is one. */
	int fd;
	/* What accesses of the guest have in the flags of an exit besides. */
	u64 private;
	bool has_slot;
	u64 val;

	int nth_fd;
	int all_fd;
	/* How often something failed. */
	int nr_injected;
};

enum backing {
	ANON,
	HUGETLB,
	GUEST_MEMFD,
	PRIVATE,
};

FIXTURE_VARIANT(inject) {
	enum backing backing;
};

FIXTURE_VARIANT_ADD(inject, anon)
{
	.backing = ANON,
};

FIXTURE_VARIANT_ADD(inject, hugetlb)
{
	.backing = HUGETLB,
};

FIXTURE_VARIANT_ADD(inject, guest_memfd)
{
	.backing = GUEST_MEMFD,
};

#ifdef __x86_64__
FIXTURE_VARIANT_ADD(inject, private)
{
	.backing = PRIVATE,
};
#endif

FIXTURE_SETUP(inject)
{
	struct vm_shape shape = VM_SHAPE_DEFAULT;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;

#ifdef __x86_64__
	if (variant->backing == PRIVATE) {
		if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
			SKIP(return, "No KVM_X86_SW_PROTECTED_VM");
		shape.type = KVM_X86_SW_PROTECTED_VM;
	}
#endif
	self->vm = __vm_create_with_vcpus(shape, 1, NR_PAGES, guest_ops, &self->vcpu);
	self->psz = getpagesize();
	if (self->vm->page_size != self->psz)
		SKIP(return, "Guest pages are not host pages");
	vcpu_args_set(self->vcpu, 1, 0ul);

	self->size = NR_PAGES * self->psz;
	self->fd = -1;
	if (variant->backing == HUGETLB)
		flags |= MAP_HUGETLB;
	switch (variant->backing) {
	case ANON:
	case HUGETLB:
		self->hva = mmap(NULL, self->size, PROT_READ | PROT_WRITE, flags, -1, 0);
		if (self->hva == MAP_FAILED)
			SKIP(return, "No memory, errno %d", errno);
		break;
	case GUEST_MEMFD:
		self->fd = vm_create_guest_memfd(self->vm, self->size, GUEST_MEMFD_FLAG_MMAP |
							       GUEST_MEMFD_FLAG_INIT_SHARED);
		self->hva = kvm_mmap(self->size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd);
		break;
	case PRIVATE:
		self->fd = vm_create_guest_memfd(self->vm, self->size, 0);
		self->hva = kvm_mmap(self->size, PROT_READ | PROT_WRITE, flags, -1);
		vm_mem_set_private(self->vm, GPA, self->size);
		self->private = KVM_MEMORY_EXIT_FLAG_PRIVATE;
		break;
	}
	virt_map(self->vm, GPA, GPA, NR_PAGES);

	self->nth_fd = open("/proc/self/fail-nth", O_RDWR);
	self->all_fd = open("/proc/self/make-it-fail", O_WRONLY);
	TEST_ASSERT(self->nth_fd >= 0 && self->all_fd >= 0, "open(): errno %d", errno);
}

FIXTURE_TEARDOWN(inject)
{
	kvm_vm_free(self->vm);
}

/* From here to end_faults() the @nth allocation of this task fails, or ALL do. */
static void begin_faults(struct _test_data_inject *self, int nth)
{
	char buf[16];
	int n;

	n = snprintf(buf, sizeof(buf), "%d", nth);
	if (nth == ALL)
		TEST_ASSERT_EQ(pwrite(self->all_fd, "1", 1, 0), 1);
	else
		TEST_ASSERT_EQ(pwrite(self->nth_fd, buf, n, 0), n);
}

/* Has there been an @nth one? */
static bool end_faults(struct _test_data_inject *self, int nth)
{
	bool injected = nth == ALL;
	char c;

	/* What is left goes on counting, down to these very copies. */
	if (nth == ALL)
		TEST_ASSERT_EQ(pwrite(self->all_fd, "0", 1, 0), 1);
	else
		injected = pread(self->nth_fd, &c, 1, 0) == 1 && c == '0';
	while (pwrite(self->nth_fd, "0", 1, 0) != 1)
		TEST_ASSERT_EQ(errno, EFAULT);

	self->nr_injected += injected;
	return injected;
}

/* What a memslot may be, and which pages of it are armed. */
enum pattern {
	NO_PAGE,
	EVERY_PAGE,
	A_RANGE,
	SOME_PAGES,
};

struct state {
	bool exists;
	u32 flags;
	enum pattern armed;
};

static bool in_pattern(enum pattern pattern, u64 page)
{
	switch (pattern) {
	case NO_PAGE:
		return false;
	case EVERY_PAGE:
		return true;
	case A_RANGE:
		return page >= 63 && page < 300;
	case SOME_PAGES:
		return page == 5 || (page >= 64 && page < 130) || page == BLOCK + 77 ||
		       page == NR_PAGES - 1;
	}
	return false;
}

static void fill_bitmap(u64 *bitmap, enum pattern pattern)
{
	u64 i;

	memset(bitmap, 0, NR_WORDS * sizeof(u64));
	for (i = 0; i < NR_PAGES; i++)
		if (in_pattern(pattern, i))
			bitmap[i / 64] |= BIT_ULL(i % 64);
}

/* The system call and no other, unlike the library's: it may have to fail. */
static int __set_slot(struct _test_data_inject *self, u32 flags, u64 size)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = SLOT,
		.flags = flags | (self->fd >= 0 ? KVM_MEM_GUEST_MEMFD : 0),
		.guest_phys_addr = GPA,
		.memory_size = size,
		.userspace_addr = (unsigned long)self->hva,
		.guest_memfd = self->fd,
	};

	if (ioctl(self->vm->fd, KVM_SET_USER_MEMORY_REGION2, &region))
		return errno;
	self->has_slot = size;
	return 0;
}

/* The guest writes to a page, which exits if it is armed, and only then. */
static void touch(struct _test_data_inject *self, u64 page, bool armed)
{
	gpa_t gpa = GPA + page * self->psz;

	set_cmd(self->vcpu, WRITE, gpa, ++self->val);
	if (armed) {
		assert_userfault_exit(self->vcpu, gpa, WRITE | self->private);
		TEST_ASSERT_EQ(vm_userfault_clear(self->vm, gpa, self->psz), 1);
	}
	assert_done(self->vcpu, self->val);
	if (!self->private)
		TEST_ASSERT_EQ(*(u64 *)(self->hva + page * self->psz), self->val);
}

/* Make the memslot anew, with its memory mapped by mappings as large as can be. */
static void set_state(struct _test_data_inject *self, const struct state *state)
{
	u64 bitmap[NR_WORDS];

	if (self->has_slot)
		TEST_ASSERT_EQ(__set_slot(self, 0, 0), 0);
	if (!state->exists)
		return;

	TEST_ASSERT_EQ(__set_slot(self, state->flags, self->size), 0);
	touch(self, 0, false);
	touch(self, BLOCK, false);
	if (state->armed == NO_PAGE)
		return;

	fill_bitmap(bitmap, state->armed);
	vm_userfault_set(self->vm, GPA, self->size, KVM_USERFAULT_ARM | KVM_USERFAULT_BITMAP,
			 bitmap);
}

static int dirty_log_errno(struct _test_data_inject *self)
{
	u64 bitmap[NR_WORDS];
	struct kvm_dirty_log log = { .slot = SLOT, .dirty_bitmap = bitmap };

	return __vm_ioctl(self->vm, KVM_GET_DIRTY_LOG, &log) ? errno : 0;
}

static void assert_armed(struct _test_data_inject *self, enum pattern armed, const char *what)
{
	u64 wanted[NR_WORDS], got[NR_WORDS];
	int i;

	fill_bitmap(wanted, armed);
	vm_userfault_get(self->vm, GPA, self->size, got);
	for (i = 0; i < NR_WORDS; i++)
		TEST_ASSERT(got[i] == wanted[i], "%s: pages from %u: armed are 0x%lx, wanted 0x%lx",
			    what, i * 64, got[i], wanted[i]);
}

/* Everything that can be seen of a state; it is not good for anything afterwards. */
static void assert_state(struct _test_data_inject *self, const struct state *state,
			 const char *what)
{
	static const u64 pages[] = { 0, 64, BLOCK + 1, BLOCK + 77 };
	bool can_arm = state->exists && state->flags & MEM_UF;
	bool has_log = state->exists && state->flags & MEM_LOG;
	u64 none[NR_WORDS] = {};
	int i, err;

	assert_armed(self, state->exists ? state->armed : NO_PAGE, what);

	err = __vm_userfault_set(self->vm, GPA, self->size,
				 KVM_USERFAULT_ARM | KVM_USERFAULT_BITMAP, none);
	TEST_ASSERT(err == (can_arm ? 0 : ENOENT), "%s: arming nothing: errno %d", what, err);

	err = dirty_log_errno(self);
	TEST_ASSERT(err == (has_log ? 0 : ENOENT), "%s: dirty log: errno %d", what, err);

	for (i = 0; state->exists && i < ARRAY_SIZE(pages); i++)
		touch(self, pages[i], in_pattern(state->armed, pages[i]));
}

enum kind {
	SET_SLOT,
	SET_RANGE,
	GET_RANGE,
};

struct op {
	const char *name;
	struct state before, after;
	enum kind kind;
	/* SET_SLOT: what to pass besides the flags of @after; SET_RANGE: all flags. */
	u32 flags;
};

static int do_op(struct _test_data_inject *self, const struct op *op, u64 *bitmap)
{
	switch (op->kind) {
	case SET_SLOT:
		return __set_slot(self, op->after.flags | op->flags,
				  op->after.exists ? self->size : 0);
	case SET_RANGE:
		/* A range without a bitmap starts where its first page is. */
		if (op->flags == KVM_USERFAULT_ARM)
			return __vm_userfault_set(self->vm, GPA + 63 * self->psz, 237 * self->psz,
						  op->flags, NULL);
		return __vm_userfault_set(self->vm, GPA, self->size, op->flags,
					  op->flags & KVM_USERFAULT_BITMAP ? bitmap : NULL);
	case GET_RANGE:
		return __vm_userfault_get(self->vm, GPA, self->size, bitmap);
	}
	return 0;
}

/* One try; returns whether anything has been made to fail. */
static bool inject_nth(struct _test_data_inject *self, const struct op *op, int nth, int *err)
{
	u64 bitmap[NR_WORDS], wanted[NR_WORDS];
	char what[64];
	bool injected;

	set_state(self, &op->before);
	fill_bitmap(wanted, op->after.armed);
	memcpy(bitmap, wanted, sizeof(bitmap));

	begin_faults(self, nth);
	*err = do_op(self, op, bitmap);
	injected = end_faults(self, nth);

	snprintf(what, sizeof(what), "%s, failure %d, errno %d", op->name, nth, *err);
	TEST_ASSERT(!*err || injected, "%s", what);
	TEST_ASSERT(!*err || (*err == ENOMEM && op->kind == SET_SLOT) ||
		    (*err == EFAULT && nth != ALL), "%s", what);
	TEST_ASSERT(*err || op->kind != GET_RANGE || !memcmp(bitmap, wanted, sizeof(bitmap)),
		    "%s: not what is armed", what);

	assert_state(self, *err ? &op->before : &op->after, what);
	return injected;
}

/* Returns how often something failed. */
static int inject(struct _test_data_inject *self, const struct op *op)
{
	int nth, err, nr_errors = 0;

	self->nr_injected = 0;
	for (nth = 1; inject_nth(self, op, nth, &err); nth++) {
		nr_errors += !!err;
		TEST_ASSERT(nth < MAX_NTH, "%s: no end", op->name);
	}
	inject_nth(self, op, ALL, &err);
	ksft_print_msg("%s: %d failures, %d errors; all at once: errno %d\n", op->name, nth - 1,
		       nr_errors, err);

	/* Allocations that may sleep do fail; otherwise all this says nothing. */
	TEST_ASSERT(op->kind != SET_SLOT || err == ENOMEM, "%s: wanted ENOMEM", op->name);
	return nth - 1;
}

#define STATE(_flags, _armed)	{ .exists = true, .flags = _flags, .armed = _armed }
#define NONE			{ .exists = false }

TEST_F_TIMEOUT(inject, slots, TEST_SECONDS)
{
	static const struct op ops[] = {
		{ "create", NONE, STATE(MEM_UF, NO_PAGE) },
		{ "create armed", NONE, STATE(MEM_UF, EVERY_PAGE), .flags = MEM_ARMED },
		{ "delete", STATE(MEM_UF, SOME_PAGES), NONE },
		{ "set", STATE(0, NO_PAGE), STATE(MEM_UF, NO_PAGE) },
		{ "drop", STATE(MEM_UF, SOME_PAGES), STATE(0, NO_PAGE) },
		{ "drop, all clear", STATE(MEM_UF, NO_PAGE), STATE(0, NO_PAGE) },

		/* guest_memfd has no dirty logging. */
		{ "create, log", NONE, STATE(MEM_UF | MEM_LOG, NO_PAGE) },
		{ "set, log on", STATE(MEM_LOG, NO_PAGE), STATE(MEM_UF | MEM_LOG, NO_PAGE) },
		{ "drop, log on", STATE(MEM_UF | MEM_LOG, SOME_PAGES), STATE(MEM_LOG, NO_PAGE) },
		{ "log", STATE(MEM_UF, SOME_PAGES), STATE(MEM_UF | MEM_LOG, SOME_PAGES) },
		{ "log off", STATE(MEM_UF | MEM_LOG, SOME_PAGES), STATE(MEM_UF, SOME_PAGES) },
		{ "set, log", STATE(0, NO_PAGE), STATE(MEM_UF | MEM_LOG, NO_PAGE) },
		{ "drop, log off", STATE(MEM_UF | MEM_LOG, SOME_PAGES), STATE(0, NO_PAGE) },
		{ "set, log off", STATE(MEM_LOG, NO_PAGE), STATE(MEM_UF, NO_PAGE) },
		{ "drop, log", STATE(MEM_UF, SOME_PAGES), STATE(MEM_LOG, NO_PAGE) },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(ops); i++)
		if (self->fd < 0 || !((ops[i].before.flags | ops[i].after.flags) & MEM_LOG))
			inject(self, &ops[i]);
}

/* Does arming split huge mappings, rather than unmap them? */
static bool splits_in_place(void)
{
#ifdef __x86_64__
	return has_tdp_mmu();
#else
	return true;
#endif
}

TEST_F_TIMEOUT(inject, ranges, TEST_SECONDS)
{
	static const struct op ops[] = {
		{ "arm", STATE(MEM_UF, NO_PAGE), STATE(MEM_UF, A_RANGE), SET_RANGE,
		  KVM_USERFAULT_ARM },
		{ "arm by bitmap", STATE(MEM_UF, NO_PAGE), STATE(MEM_UF, SOME_PAGES), SET_RANGE,
		  KVM_USERFAULT_ARM | KVM_USERFAULT_BITMAP },
		{ "clear", STATE(MEM_UF, SOME_PAGES), STATE(MEM_UF, NO_PAGE), SET_RANGE, 0 },
		{ "collapse", STATE(MEM_UF, A_RANGE), STATE(MEM_UF, NO_PAGE), SET_RANGE,
		  KVM_USERFAULT_COLLAPSE },
		{ "get", STATE(MEM_UF, SOME_PAGES), STATE(MEM_UF, SOME_PAGES), GET_RANGE },
	};
	bool splits = variant->backing == HUGETLB && splits_in_place();
	u64 before;
	int i, err;

	for (i = 0; i < ARRAY_SIZE(ops); i++) {
		int nr_injected = inject(self, &ops[i]);

		TEST_ASSERT(nr_injected || !splits || !(ops[i].flags & KVM_USERFAULT_ARM),
			    "Nothing was allocated to split a mapping");
	}

	/* Without memory there is no split, with it there is one. */
	before = vm_get_stat(self->vm, userfault_splits);
	inject_nth(self, &ops[0], ALL, &err);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, userfault_splits), before);
	inject_nth(self, &ops[0], MAX_NTH, &err);
	TEST_ASSERT_EQ(vm_get_stat(self->vm, userfault_splits) > before, splits);
}

/* Whatever KVM_RUN cannot get, the pages that are resolved are clear. */
static bool resolve_nth(struct _test_data_inject *self, int nth)
{
	const struct state armed = STATE(MEM_UF, EVERY_PAGE);
	struct kvm_run *run = self->vcpu->run;
	bool injected;
	int err;
	u64 i;

	/* Unlike set_state(): nothing is mapped. */
	if (self->has_slot)
		TEST_ASSERT_EQ(__set_slot(self, 0, 0), 0);
	TEST_ASSERT_EQ(__set_slot(self, MEM_UF | MEM_ARMED, self->size), 0);
	assert_armed(self, armed.armed, "resolve");

	set_cmd(self->vcpu, WRITE, GPA + self->psz, ++self->val);
	assert_userfault_exit(self->vcpu, GPA + self->psz, WRITE | self->private);
	vcpu_userfault_resolve(self->vcpu, GPA, 4 * self->psz);

	begin_faults(self, nth);
	err = ioctl(self->vcpu->fd, KVM_RUN, NULL) ? errno : 0;
	injected = end_faults(self, nth);

	TEST_ASSERT(!err || injected, "Resolve: errno %d", err);
	TEST_ASSERT(!err || err == ENOMEM || err == EFAULT, "Resolve, failure %d: errno %d", nth,
		    err);
	TEST_ASSERT(run->exit_reason != KVM_EXIT_MEMORY_FAULT ||
		    !(run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_USERFAULT),
		    "Resolve, failure %d: another userfault at 0x%llx", nth,
		    run->memory_fault.gpa);

	for (i = 0; i < 5; i++)
		TEST_ASSERT_EQ(vm_userfault_is_armed(self->vm, GPA + i * self->psz), i == 4);

	/* If it failed, the instruction is still to be executed. */
	if (err)
		assert_done(self->vcpu, self->val);
	for (i = 0; i < 5; i++)
		touch(self, i, i == 4);
	return injected;
}

TEST_F_TIMEOUT(inject, resolve, TEST_SECONDS)
{
	int nth;

	for (nth = 1; resolve_nth(self, nth); nth++)
		TEST_ASSERT(nth < MAX_NTH, "resolve: no end");
	resolve_nth(self, ALL);
	ksft_print_msg("resolve: %d failures\n", nth - 1);
	TEST_ASSERT(nth > 1, "Nothing was allocated to map a page");
}

/* A bitmap that is allocated in another way, and then in yet another one. */
static bool create_big(struct _test_data_inject *self, void *hva, int nth)
{
	struct kvm_userspace_memory_region region = {
		.slot = SLOT,
		.flags = MEM_UF | MEM_ARMED,
		.guest_phys_addr = BIG_GPA,
		.memory_size = BIG_PAGES * self->psz,
		.userspace_addr = (unsigned long)hva,
	};
	u64 bitmap[64];
	bool injected;
	int err;

	begin_faults(self, nth);
	err = ioctl(self->vm->fd, KVM_SET_USER_MEMORY_REGION, &region) ? errno : 0;
	injected = end_faults(self, nth);
	TEST_ASSERT(!err || (injected && (err == ENOMEM || (err == EFAULT && nth != ALL))),
		    "Create, failure %d: errno %d", nth, err);

	vm_userfault_get(self->vm, BIG_GPA + (BIG_PAGES - 64 * 64) * self->psz,
			 64 * 64 * self->psz, bitmap);
	TEST_ASSERT_EQ(bitmap[0], err ? 0 : ~0ull);
	TEST_ASSERT_EQ(bitmap[63], err ? 0 : ~0ull);
	if (!err)
		vm_set_user_memory_region(self->vm, SLOT, 0, BIG_GPA, 0, hva);
	TEST_ASSERT(nth != ALL || err == ENOMEM, "Wanted ENOMEM");
	return injected;
}

TEST_F_TIMEOUT(inject, big_slot, TEST_SECONDS)
{
	void *hva = kvm_mmap(BIG_PAGES * self->psz, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	int nth;

	for (nth = 1; create_big(self, hva, nth); nth++)
		TEST_ASSERT(nth < MAX_NTH, "big slot: no end");
	create_big(self, hva, ALL);
	ksft_print_msg("big slot: %d failures\n", nth - 1);
}

int main(int argc, char *argv[])
{
	int i, r;

	TEST_REQUIRE_USERFAULT();
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));
	__TEST_REQUIRE(!access("/proc/self/fail-nth", W_OK), "No CONFIG_FAULT_INJECTION");
	for (i = 0; i < ARRAY_SIZE(injected_faults); i++) {
		char path[128];

		snprintf(path, sizeof(path), FAULT_DEBUGFS "%s/times", injected_faults[i]);
		__TEST_REQUIRE(!access(path, W_OK), "No %s, or not root", path);
	}

	set_up_faults(true);
	set_probability("100");
	r = test_harness_run(argc, argv);
	set_probability("0");
	set_up_faults(false);
	return r;
}
