// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM userfault on guest_memfd memory.
 *
 * All tests are run on private memory of a KVM_X86_SW_PROTECTED_VM (x86 only)
 * and on memory of a default VM that is shared and can be mapped by the host.
 *
 * A guest_memfd memslot is bound to its file, and toggling KVM_MEM_USERFAULT,
 * the one change that such a slot allows, hands the binding over to a new
 * version of the slot while vCPUs fault on the old one.  Most tests therefore
 * let vCPUs hammer the memory while something happens to it, allow only legal
 * exits meanwhile, and then demand that no write of the guest was lost.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include <linux/falloc.h>
#include <linux/sizes.h>

#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_userfault_util.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#define NR_VCPUS	2
#define SLOT		10
#define GPA		SZ_4G

/* Some words of the bitmap, the last one in part. */
#define NR_PAGES	200UL

/* Where in the file the slot begins, in pages: not where its gpa would have it. */
#define FILE_OFFSET	3UL

/* How long a vCPU may take for what it has to do. */
#define WAIT_SECONDS	30

enum guest_mode {
	/* Count up in every page; it must hold what was written last. */
	HAMMER,
	/* Likewise, but a page may have been emptied. */
	HAMMER_HOLES,
	/* Read what the host has put there, and replace it. */
	DEMAND,
};

/* By these host and guest talk: the guest has its own copy of them. */
static enum guest_mode guest_mode;
static bool guest_has_content;
static u64 guest_page_size;
static bool guest_stop;
static u64 guest_rounds[NR_VCPUS];
static u64 guest_seen[NR_PAGES];

static u64 host_content(u64 page)
{
	return page * 0x0101010101010101ULL + 0x1234567;
}

static void guest_access(u64 idx, u64 page)
{
	u64 *word = (u64 *)(GPA + page * guest_page_size);
	u64 val = READ_ONCE(*word);

	if (guest_mode == HAMMER_HOLES && !val)
		guest_seen[page] = 0;
	if (guest_mode == DEMAND && !guest_rounds[idx])
		guest_seen[page] = guest_has_content ? host_content(page) : 0;

	__GUEST_ASSERT(val == guest_seen[page], "Page %lu: wanted %lx, got %lx",
		       page, guest_seen[page], val);

	guest_seen[page] = val + 1;
	WRITE_ONCE(*word, val + 1);
}

/* Each vCPU has its own pages, next to those of the others. */
static void guest_code(u64 idx)
{
	u64 page;

	for (;;) {
		do {
			for (page = idx; page < NR_PAGES; page += NR_VCPUS)
				guest_access(idx, page);
			WRITE_ONCE(guest_rounds[idx], guest_rounds[idx] + 1);
		} while (!READ_ONCE(guest_stop));

		GUEST_DONE();
	}
}

/* What a vCPU's thread does when the vCPU exits. */
enum on_exit {
	/* There must be no exit. */
	FAIL,
	/* For a userfault: try again, somebody else clears. */
	RETRY,
	/* Likewise, and a plain memory fault is fine as well. */
	RETRY_ANY,
	/* Clear the page. */
	CLEAR,
	/* Fetch the page, then clear it. */
	FETCH,
};

struct vcpu_thread {
	struct _test_data_gmem *self;
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	u64 exits;
};

FIXTURE(gmem) {
	struct kvm_vm *vm;
	struct vcpu_thread threads[NR_VCPUS];
	enum on_exit on_exit;
	bool private;
	u64 page_size;
	u64 size;
	int fd;
	/* The memory as the host sees it: of shared memory only. */
	u64 *mem;
	/* userspace_addr of the slot. */
	void *hva;
	bool host_stop;
	bool stop_holes;
};

FIXTURE_VARIANT(gmem) {
	bool private;
};

#ifdef __x86_64__
FIXTURE_VARIANT_ADD(gmem, private)
{
	.private = true,
};
#endif

FIXTURE_VARIANT_ADD(gmem, mappable)
{
	.private = false,
};

static int create_file(struct _test_data_gmem *self)
{
	return vm_create_guest_memfd(self->vm, self->size + FILE_OFFSET * self->page_size,
				     self->private ? 0 : GUEST_MEMFD_FLAG_MMAP |
							 GUEST_MEMFD_FLAG_INIT_SHARED);
}

static void map_file(struct _test_data_gmem *self)
{
	self->mem = mmap(NULL, self->size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd,
			 FILE_OFFSET * self->page_size);
	TEST_ASSERT(self->mem != MAP_FAILED, "mmap() failed, errno %d", errno);
}

static int __set_slot(struct _test_data_gmem *self, u32 flags, int fd)
{
	int r = __vm_set_user_memory_region2(self->vm, SLOT, KVM_MEM_GUEST_MEMFD | flags,
					     GPA, self->size, self->hva, fd,
					     FILE_OFFSET * self->page_size);

	return r ? errno : 0;
}

static void set_slot(struct _test_data_gmem *self, u32 flags)
{
	TEST_ASSERT_EQ(__set_slot(self, flags, self->fd), 0);
}

static void delete_slot(struct _test_data_gmem *self)
{
	vm_set_user_memory_region2(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, 0, self->hva, -1, 0);
}

static void punch_hole(struct _test_data_gmem *self, u64 page, u64 nr)
{
	kvm_fallocate(self->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
		      (FILE_OFFSET + page) * self->page_size, nr * self->page_size);
}

static u64 arm(struct _test_data_gmem *self, u64 page, u64 nr)
{
	return vm_userfault_arm(self->vm, GPA + page * self->page_size, nr * self->page_size);
}

static u64 clear(struct _test_data_gmem *self, u64 page, u64 nr)
{
	return vm_userfault_clear(self->vm, GPA + page * self->page_size, nr * self->page_size);
}

static u64 nr_armed(struct _test_data_gmem *self)
{
	u64 bitmap[DIV_ROUND_UP(NR_PAGES, 64)] = { 0 };
	u64 i, armed = 0;

	vm_userfault_get(self->vm, GPA, self->size, bitmap);
	for (i = 0; i < ARRAY_SIZE(bitmap); i++)
		armed += __builtin_popcountll(bitmap[i]);

	return armed;
}

static u64 private_flag(struct _test_data_gmem *self)
{
	return self->private ? KVM_MEMORY_EXIT_FLAG_PRIVATE : 0;
}

static u64 rounds(struct _test_data_gmem *self, int i)
{
	u64 *all = addr_gva2hva(self->vm, (gva_t)guest_rounds);

	return READ_ONCE(all[i]);
}

static u64 exits(struct vcpu_thread *t)
{
	return __atomic_load_n(&t->exits, __ATOMIC_ACQUIRE);
}

static void wait_a_bit(struct timespec start, const char *what, int vcpu)
{
	usleep(100);
	TEST_ASSERT(timespec_elapsed(start).tv_sec < WAIT_SECONDS,
		    "vCPU %d does not %s", vcpu, what);
}

/* Wait until each vCPU has been all through its memory once more, at least. */
static void wait_rounds(struct _test_data_gmem *self)
{
	struct timespec start;
	u64 old[NR_VCPUS];
	int i;

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (i = 0; i < NR_VCPUS; i++)
		old[i] = rounds(self, i);
	for (i = 0; i < NR_VCPUS; i++) {
		while (rounds(self, i) < old[i] + 2)
			wait_a_bit(start, "get on", i);
	}
}

/* Wait until each vCPU has exited once more. */
static void wait_exits(struct _test_data_gmem *self)
{
	struct timespec start;
	u64 old[NR_VCPUS];
	int i;

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (i = 0; i < NR_VCPUS; i++)
		old[i] = exits(&self->threads[i]);
	for (i = 0; i < NR_VCPUS; i++) {
		while (exits(&self->threads[i]) == old[i])
			wait_a_bit(start, "exit", i);
	}
}

static void fetch(struct _test_data_gmem *self, u64 page)
{
	if (self->private)
		kvm_fallocate(self->fd, FALLOC_FL_KEEP_SIZE,
			      (FILE_OFFSET + page) * self->page_size, self->page_size);
	else
		self->mem[page * self->page_size / sizeof(u64)] = host_content(page);
}

/* An exit that the vCPU comes back from: anything but a legal one ends the test. */
static void handle_exit(struct vcpu_thread *t)
{
	struct _test_data_gmem *self = t->self;
	enum on_exit on_exit = READ_ONCE(self->on_exit);
	struct kvm_run *run = t->vcpu->run;
	u64 flags = run->memory_fault.flags, page;

	TEST_ASSERT(errno == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT,
		    "KVM_RUN failed, errno %d exit reason %u (%s)", errno,
		    run->exit_reason, exit_reason_str(run->exit_reason));

	if (on_exit == RETRY_ANY && !(flags & ~KVM_MEMORY_EXIT_FLAG_PRIVATE))
		return;

	flags &= ~(KVM_MEMORY_EXIT_FLAG_READ | KVM_MEMORY_EXIT_FLAG_WRITE);
	TEST_ASSERT(on_exit != FAIL &&
		    flags == (KVM_MEMORY_EXIT_FLAG_USERFAULT | private_flag(self)) &&
		    __builtin_popcountll(run->memory_fault.flags & USERFAULT_ACCESS_FLAGS) == 1 &&
		    run->memory_fault.size == self->page_size &&
		    run->memory_fault.gpa >= GPA && run->memory_fault.gpa < GPA + self->size,
		    "Unexpected exit, flags 0x%llx gpa 0x%llx size 0x%llx",
		    run->memory_fault.flags, run->memory_fault.gpa, run->memory_fault.size);

	page = (run->memory_fault.gpa - GPA) / self->page_size;
	if (on_exit == FETCH)
		fetch(self, page);
	if (on_exit == CLEAR || on_exit == FETCH)
		TEST_ASSERT_EQ(clear(self, page, 1), 1);

	__atomic_fetch_add(&t->exits, 1, __ATOMIC_RELEASE);
	sched_yield();
}

static void *run_vcpu(void *arg)
{
	struct vcpu_thread *t = arg;
	struct ucall uc;

	while (_vcpu_run(t->vcpu)) {
		handle_exit(t);
		if (READ_ONCE(t->self->host_stop))
			return NULL;
	}

	switch (get_ucall(t->vcpu, &uc)) {
	case UCALL_DONE:
		break;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	default:
		TEST_FAIL("Unexpected exit reason %u (%s)", t->vcpu->run->exit_reason,
			  exit_reason_str(t->vcpu->run->exit_reason));
	}

	return NULL;
}

static void start_vcpus(struct _test_data_gmem *self, enum guest_mode mode, enum on_exit on_exit)
{
	struct vcpu_thread *t;
	int i;

	write_guest_global(self->vm, guest_mode, mode);
	write_guest_global(self->vm, guest_stop, false);
	self->host_stop = false;
	self->on_exit = on_exit;

	for (i = 0; i < NR_VCPUS; i++) {
		t = &self->threads[i];
		pthread_create(&t->thread, NULL, run_vcpu, t);
	}
}

static void join_vcpus(struct _test_data_gmem *self)
{
	int i;

	write_guest_global(self->vm, guest_stop, true);
	for (i = 0; i < NR_VCPUS; i++)
		pthread_join(self->threads[i].thread, NULL);
}

/* With nothing armed: all memory is there as it was left, and no vCPU exits. */
static void stop_vcpus(struct _test_data_gmem *self)
{
	u64 old[NR_VCPUS];
	int i;

	/* An exit may be on its way while the last page is being cleared. */
	wait_rounds(self);
	for (i = 0; i < NR_VCPUS; i++)
		old[i] = exits(&self->threads[i]);
	self->on_exit = FAIL;
	wait_rounds(self);
	for (i = 0; i < NR_VCPUS; i++)
		TEST_ASSERT_EQ(exits(&self->threads[i]), old[i]);

	join_vcpus(self);
}

static bool has_private_memory(void)
{
#ifdef __x86_64__
	return kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM);
#else
	return false;
#endif
}

static void set_up(struct _test_data_gmem *self, bool private)
{
	struct vm_shape shape = VM_SHAPE_DEFAULT;
	struct kvm_vcpu *vcpus[NR_VCPUS];
	int i;

#ifdef __x86_64__
	if (private)
		shape.type = KVM_X86_SW_PROTECTED_VM;
#endif
	self->private = private;
	self->vm = __vm_create_with_vcpus(shape, NR_VCPUS, NR_PAGES, guest_code, vcpus);
	self->page_size = max_t(u64, self->vm->page_size, getpagesize());
	self->size = NR_PAGES * self->page_size;

	self->fd = create_file(self);
	if (private) {
		self->hva = kvm_mmap(self->size, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1);
		vm_mem_set_private(self->vm, GPA, self->size);
	} else {
		map_file(self);
	}

	set_slot(self, 0);
	virt_map(self->vm, GPA, GPA, self->size / self->vm->page_size);

	write_guest_global(self->vm, guest_page_size, self->page_size);
	write_guest_global(self->vm, guest_has_content, !private);
	for (i = 0; i < NR_VCPUS; i++) {
		self->threads[i] = (struct vcpu_thread) { .self = self, .vcpu = vcpus[i] };
		vcpu_args_set(vcpus[i], 1, i);
	}
}

FIXTURE_SETUP(gmem)
{
	if (variant->private && !has_private_memory())
		SKIP(return, "No KVM_X86_SW_PROTECTED_VM");

	set_up(self, variant->private);
}

FIXTURE_TEARDOWN(gmem)
{
	kvm_vm_free(self->vm);
}

/* Nothing is ever armed: the flag alone is of no concern to the guest. */
TEST_F(gmem, toggle_running)
{
	int i;

	start_vcpus(self, HAMMER, FAIL);
	wait_rounds(self);
	for (i = 0; i < 300; i++)
		set_slot(self, i % 2 ? 0 : KVM_MEM_USERFAULT);
	stop_vcpus(self);
}

/* vCPUs fault on all of their memory while the flag comes and goes. */
TEST_F(gmem, toggle_faulting)
{
	int i, j;

	start_vcpus(self, HAMMER, RETRY);
	wait_rounds(self);
	for (i = 0; i < 60; i++) {
		set_slot(self, KVM_MEM_USERFAULT);
		TEST_ASSERT_EQ(arm(self, 0, NR_PAGES), NR_PAGES);
		TEST_ASSERT_EQ(clear(self, 0, NR_PAGES), NR_PAGES);
		for (j = 0; j < 5; j++)
			set_slot(self, j % 2 ? KVM_MEM_USERFAULT : 0);
	}
	stop_vcpus(self);
}

/* The armed state goes with the flag, and lets go whoever waits for it. */
TEST_F(gmem, toggle_drops_armed)
{
	int i;

	start_vcpus(self, HAMMER, RETRY);
	for (i = 0; i < 30; i++) {
		set_slot(self, KVM_MEM_USERFAULT);
		TEST_ASSERT_EQ(nr_armed(self), 0);
		wait_rounds(self);
		TEST_ASSERT_EQ(arm(self, 0, NR_PAGES), NR_PAGES);
		wait_exits(self);
		set_slot(self, 0);
		TEST_ASSERT_EQ(nr_armed(self), 0);
		TEST_ASSERT_EQ(__vm_userfault_set(self->vm, GPA, self->size,
						  KVM_USERFAULT_ARM, NULL), ENOENT);
		wait_rounds(self);
	}
	stop_vcpus(self);
}

/* All of it is armed, so no vCPU gets on until it is cleared. */
static void assert_stuck(struct _test_data_gmem *self)
{
	u64 old[NR_VCPUS];
	int i;

	for (i = 0; i < NR_VCPUS; i++)
		old[i] = rounds(self, i);
	wait_exits(self);
	wait_exits(self);
	/* One that had all of a round behind it can count it. */
	for (i = 0; i < NR_VCPUS; i++)
		TEST_ASSERT(rounds(self, i) <= old[i] + 1, "vCPU %d went on for %lu rounds",
			    i, rounds(self, i) - old[i]);
}

/* While pages are armed no vCPU gets on; then it finds them as it left them. */
TEST_F(gmem, arm_running)
{
	int i;

	set_slot(self, KVM_MEM_USERFAULT);
	start_vcpus(self, HAMMER, RETRY);
	for (i = 0; i < 20; i++) {
		/* Everything, or a page of each vCPU. */
		u64 first = i % 2 ? i * 7 : 0, nr = i % 2 ? 2 : NR_PAGES;

		wait_rounds(self);
		TEST_ASSERT_EQ(arm(self, first, nr), nr);
		assert_stuck(self);
		TEST_ASSERT_EQ(nr_armed(self), nr);
		TEST_ASSERT_EQ(clear(self, first, nr), nr);
	}
	stop_vcpus(self);
}

/*
 * Arm while faults are in flight that have found their pages clear.  A page that
 * one of them maps nevertheless has no exit when it is touched again, and never
 * gets cleared.
 */
TEST_F(gmem, arm_faulting)
{
	struct timespec start;
	int i, j;

	set_slot(self, KVM_MEM_USERFAULT);
	start_vcpus(self, HAMMER, RETRY);
	for (i = 0; i < 30; i++) {
		for (j = 0; j < 5; j++) {
			TEST_ASSERT_EQ(arm(self, 0, NR_PAGES), NR_PAGES);
			TEST_ASSERT_EQ(clear(self, 0, NR_PAGES), NR_PAGES);
			usleep(i * 10);
		}
		TEST_ASSERT_EQ(arm(self, 0, NR_PAGES), NR_PAGES);

		WRITE_ONCE(self->on_exit, CLEAR);
		clock_gettime(CLOCK_MONOTONIC, &start);
		while (nr_armed(self)) {
			usleep(100);
			TEST_ASSERT(timespec_elapsed(start).tv_sec < WAIT_SECONDS,
				    "%lu armed pages do not exit", nr_armed(self));
		}
		WRITE_ONCE(self->on_exit, RETRY);
	}
	stop_vcpus(self);
}

/* Each page is fetched once, by one exit. */
TEST_F(gmem, demand_paging)
{
	struct vcpu_thread *t;
	int i;

	delete_slot(self);
	set_slot(self, KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED);
	TEST_ASSERT_EQ(nr_armed(self), NR_PAGES);

	start_vcpus(self, DEMAND, FETCH);
	stop_vcpus(self);

	TEST_ASSERT_EQ(nr_armed(self), 0);
	for (i = 0; i < NR_VCPUS; i++) {
		t = &self->threads[i];
		TEST_ASSERT_EQ(t->exits, NR_PAGES / NR_VCPUS);
		TEST_ASSERT_EQ(vcpu_get_stat(t->vcpu, userfault_exits), t->exits);
	}
}

/* The whole exit, for reading and writing, and that no neighbour has one. */
TEST_F(gmem, exact_exits)
{
	static const u64 pages[] = { 0, 1, 62, 63, 64, 65, 127, 128, NR_PAGES - 1 };
	struct kvm_vcpu *vcpu = self->threads[0].vcpu;
	u64 page;
	int i;

	set_slot(self, KVM_MEM_USERFAULT);

	/* vCPU 0 reads each even page, then writes it, once for each case. */
	write_guest_global(self->vm, guest_stop, true);
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		page = pages[i];
		TEST_ASSERT_EQ(arm(self, page, 1), 1);

		if (page % NR_VCPUS == 0) {
			assert_userfault_exit(vcpu, GPA + page * self->page_size,
					      KVM_MEMORY_EXIT_FLAG_READ | private_flag(self));
			/* Nothing has changed, so it exits again. */
			assert_userfault_exit(vcpu, GPA + page * self->page_size,
					      KVM_MEMORY_EXIT_FLAG_READ | private_flag(self));
			TEST_ASSERT_EQ(clear(self, page, 1), 1);
		}

		vcpu_run(vcpu);
		TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_DONE);
		clear(self, page, 1);
	}
}

/* Whatever differs but the flag is refused and changes nothing. */
TEST_F(gmem, bad_change)
{
	enum { SAME_FD, OTHER_FD, OTHER_VM_FD, NO_GMEM_FD, CLOSED_FD, NO_FD };
	u64 ps = self->page_size, offset = FILE_OFFSET * ps;
	struct {
		const char *what;
		u32 flags;
		gpa_t gpa;
		u64 size;
		u64 hva;
		int fd;
		u64 offset;
	} bad[] = {
		{ "other guest_memfd", 0, GPA, self->size, 0, OTHER_FD, offset },
		{ "another VM's guest_memfd", 0, GPA, self->size, 0, OTHER_VM_FD, offset },
		{ "no guest_memfd", 0, GPA, self->size, 0, NO_GMEM_FD, offset },
		{ "closed fd", 0, GPA, self->size, 0, CLOSED_FD, offset },
		{ "no fd", 0, GPA, self->size, 0, NO_FD, offset },
		{ "offset 0", 0, GPA, self->size, 0, SAME_FD, 0 },
		{ "lower offset", 0, GPA, self->size, 0, SAME_FD, offset - ps },
		{ "higher offset", 0, GPA, self->size, 0, SAME_FD, offset + ps },
		{ "unaligned offset", 0, GPA, self->size, 0, SAME_FD, offset + 1 },
		{ "huge offset", 0, GPA, self->size, 0, SAME_FD, -ps },
		{ "smaller", 0, GPA, self->size - ps, 0, SAME_FD, offset },
		{ "bigger", 0, GPA, self->size + ps, 0, SAME_FD, offset },
		{ "hva", 0, GPA, self->size, SZ_1M, SAME_FD, offset },
		{ "gpa", 0, GPA + ps, self->size, 0, SAME_FD, offset },
		{ "far gpa", 0, GPA * 2, self->size, 0, SAME_FD, offset },
		{ "READONLY", KVM_MEM_READONLY, GPA, self->size, 0, SAME_FD, offset },
		{ "LOG_DIRTY", KVM_MEM_LOG_DIRTY_PAGES, GPA, self->size, 0, SAME_FD, offset },
		{ "ARMED", KVM_MEM_USERFAULT_ARMED, GPA, self->size, 0, SAME_FD, offset },
		{ "unknown flag", BIT(5), GPA, self->size, 0, SAME_FD, offset },
	};
	int fds[6], i, on, r;
	struct kvm_vm *vm;

	vm = vm_create_barebones_type(self->vm->type);
	fds[SAME_FD] = self->fd;
	fds[OTHER_FD] = create_file(self);
	fds[OTHER_VM_FD] = vm_create_guest_memfd(vm, self->size + offset, 0);
	fds[NO_GMEM_FD] = kvm_memfd_alloc(self->size + offset, false);
	fds[CLOSED_FD] = kvm_dup(self->fd);
	close(fds[CLOSED_FD]);
	fds[NO_FD] = -1;

	start_vcpus(self, HAMMER, RETRY);
	for (on = 0; on < 2; on++) {
		if (on) {
			set_slot(self, KVM_MEM_USERFAULT);
			arm(self, 63, 3);
		} else {
			r = __vm_set_user_memory_region2(self->vm, SLOT, KVM_MEM_GUEST_MEMFD,
							 GPA, self->size, self->hva,
							 self->fd, offset);
			TEST_ASSERT(r && errno == EINVAL,
				    "Without userfaults nothing may be set, be it what is set");
		}
		for (i = 0; i < ARRAY_SIZE(bad) * 2; i++) {
			u32 toggle = i % 2 ? KVM_MEM_USERFAULT : 0;
			typeof(bad[0]) *b = &bad[i / 2];

			r = __vm_set_user_memory_region2(self->vm, SLOT,
							 KVM_MEM_GUEST_MEMFD | toggle | b->flags,
							 b->gpa, b->size, self->hva + b->hva,
							 fds[b->fd], b->offset);
			TEST_ASSERT(r && errno == EINVAL,
				    "%s: flags 0x%x to 0x%x should fail with EINVAL, got %d errno %d",
				    b->what, on * (u32)KVM_MEM_USERFAULT, toggle, r, errno);
			TEST_ASSERT_EQ(nr_armed(self), on * 3);
		}
		/* Without KVM_MEM_GUEST_MEMFD it would be another kind of slot. */
		for (i = 0; i < 2; i++) {
			r = __vm_set_user_memory_region(self->vm, SLOT, i * KVM_MEM_USERFAULT,
							GPA, self->size, self->hva);
			TEST_ASSERT(r && errno == EINVAL, "V1 should fail with EINVAL");
			TEST_ASSERT_EQ(nr_armed(self), on * 3);
		}
	}

	/* What was refused was not bound or unbound, either. */
	r = __vm_set_user_memory_region2(self->vm, SLOT + 1, KVM_MEM_GUEST_MEMFD, GPA * 2,
					 self->size, self->hva, self->fd, offset);
	TEST_ASSERT(r && errno == EEXIST, "A bound range should not be bound again");
	vm_set_user_memory_region2(self->vm, SLOT + 1, KVM_MEM_GUEST_MEMFD, GPA * 2, self->size,
				   self->hva, fds[OTHER_FD], offset);

	clear(self, 0, NR_PAGES);
	stop_vcpus(self);
	close(fds[OTHER_FD]);
	close(fds[OTHER_VM_FD]);
	close(fds[NO_GMEM_FD]);
	kvm_vm_free(vm);
}

/* It is the file that counts, not its number; without the file nothing changes. */
TEST_F(gmem, fd_closed)
{
	struct kvm_vcpu *vcpu = self->threads[0].vcpu;
	struct kvm_run *run = vcpu->run;
	int fd, r;

	fd = kvm_dup(self->fd);
	set_slot(self, KVM_MEM_USERFAULT);
	TEST_ASSERT_EQ(arm(self, 0, 1), 1);
	close(self->fd);
	TEST_ASSERT_EQ(__set_slot(self, KVM_MEM_USERFAULT, fd), 0);
	TEST_ASSERT_EQ(__set_slot(self, 0, fd), 0);
	TEST_ASSERT_EQ(__set_slot(self, KVM_MEM_USERFAULT, fd), 0);
	TEST_ASSERT_EQ(arm(self, 0, 1), 1);

	/* The last reference. */
	if (!self->private)
		kvm_munmap(self->mem, self->size);
	close(fd);
	TEST_ASSERT_EQ(__set_slot(self, 0, fd), EINVAL);
	TEST_ASSERT_EQ(__set_slot(self, 0, -1), EINVAL);
	TEST_ASSERT_EQ(nr_armed(self), 1);

	/* What is armed is so without memory, too; once clear, there is none. */
	assert_userfault_exit(vcpu, GPA, KVM_MEMORY_EXIT_FLAG_READ | private_flag(self));
	TEST_ASSERT_EQ(clear(self, 0, 1), 1);
	r = _vcpu_run(vcpu);
	TEST_ASSERT(r && errno == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
		    run->memory_fault.flags == private_flag(self) &&
		    run->memory_fault.gpa == GPA,
		    "Wanted a plain memory fault, got %d errno %d reason %u flags 0x%llx gpa 0x%llx",
		    r, errno, run->exit_reason, run->memory_fault.flags, run->memory_fault.gpa);
	TEST_ASSERT_EQ(arm(self, 0, NR_PAGES), NR_PAGES);

	/* A new file can take the place of the old one in a new slot. */
	delete_slot(self);
	self->fd = create_file(self);
	set_slot(self, KVM_MEM_USERFAULT);
	TEST_ASSERT_EQ(nr_armed(self), 0);
	start_vcpus(self, HAMMER, FAIL);
	stop_vcpus(self);
}

static void *close_file(void *arg)
{
	struct _test_data_gmem *self = arg;

	close(self->fd);
	return NULL;
}

/* The file is closed while the flag is toggled and vCPUs use the memory. */
TEST_F(gmem, fd_closed_race)
{
	pthread_t thread;
	int i, j, r, fd;

	if (!self->private)
		kvm_munmap(self->mem, self->size);

	for (i = 0; i < 40; i++) {
		fd = self->fd;
		start_vcpus(self, HAMMER_HOLES, RETRY_ANY);
		if (i % 2)
			wait_rounds(self);
		pthread_create(&thread, NULL, close_file, self);
		for (j = 0; j < 6; j++) {
			r = __set_slot(self, j % 2 ? 0 : KVM_MEM_USERFAULT, fd);
			TEST_ASSERT(!r || r == EINVAL, "Wanted 0 or EINVAL, got %d", r);
			if (!r && j % 2 == 0)
				arm(self, i, 8);
		}
		pthread_join(thread, NULL);
		TEST_ASSERT_EQ(__set_slot(self, 0, fd), EINVAL);
		TEST_ASSERT_EQ(__set_slot(self, KVM_MEM_USERFAULT, fd), EINVAL);

		self->host_stop = true;
		join_vcpus(self);
		delete_slot(self);
		self->fd = create_file(self);
		set_slot(self, 0);
	}
}

static void *punch_holes(void *arg)
{
	struct _test_data_gmem *self = arg;
	u64 i;

	for (i = 0; !READ_ONCE(self->stop_holes); i++) {
		punch_hole(self, i * 37 % (NR_PAGES - 4), 1 + i % 5);
		usleep(i % 100);
	}
	return NULL;
}

/* Memory is taken away underneath, while the flag and armed pages come and go. */
TEST_F(gmem, punch_hole_race)
{
	pthread_t thread;
	int i;

	start_vcpus(self, HAMMER_HOLES, RETRY);
	pthread_create(&thread, NULL, punch_holes, self);
	for (i = 0; i < 50; i++) {
		set_slot(self, KVM_MEM_USERFAULT);
		arm(self, i, 64);
		if (i % 4)
			clear(self, i, 64);
		set_slot(self, 0);
		if (i % 10 == 0)
			wait_rounds(self);
	}

	/* A hole does not clear, and a new page in it is armed as well. */
	set_slot(self, KVM_MEM_USERFAULT);
	TEST_ASSERT_EQ(arm(self, 0, NR_PAGES), NR_PAGES);
	punch_hole(self, 0, NR_PAGES);
	wait_exits(self);
	TEST_ASSERT_EQ(nr_armed(self), NR_PAGES);
	TEST_ASSERT_EQ(clear(self, 0, NR_PAGES), NR_PAGES);

	WRITE_ONCE(self->stop_holes, true);
	pthread_join(thread, NULL);
	stop_vcpus(self);
}

#ifdef __x86_64__
/* Pages stay armed when they are converted, and clear as they become either. */
TEST(convert)
{
	struct _test_data_gmem data = {}, *self = &data;
	struct kvm_vcpu *vcpu;
	gpa_t gpa;

	if (!has_private_memory())
		SKIP(return, "No KVM_X86_SW_PROTECTED_VM");

	set_up(self, true);
	vcpu = self->threads[0].vcpu;
	gpa = GPA + 2 * self->page_size;

	set_slot(self, KVM_MEM_USERFAULT);
	TEST_ASSERT_EQ(arm(self, 2, 1), 1);
	assert_userfault_exit(vcpu, gpa, KVM_MEMORY_EXIT_FLAG_READ | KVM_MEMORY_EXIT_FLAG_PRIVATE);
	vm_mem_set_shared(self->vm, GPA, self->size);
	TEST_ASSERT_EQ(nr_armed(self), 1);
	assert_userfault_exit(vcpu, gpa, KVM_MEMORY_EXIT_FLAG_READ);
	vm_mem_set_private(self->vm, GPA, self->size);
	assert_userfault_exit(vcpu, gpa, KVM_MEMORY_EXIT_FLAG_READ | KVM_MEMORY_EXIT_FLAG_PRIVATE);

	TEST_ASSERT_EQ(clear(self, 2, 1), 1);
	start_vcpus(self, HAMMER_HOLES, FAIL);
	wait_rounds(self);

	/* A fault may find that its page is being converted. */
	self->on_exit = RETRY_ANY;
	vm_mem_set_shared(self->vm, GPA, self->size);
	wait_rounds(self);
	self->private = false;
	self->on_exit = RETRY;
	TEST_ASSERT_EQ(arm(self, 0, NR_PAGES), NR_PAGES);
	wait_exits(self);
	TEST_ASSERT_EQ(clear(self, 0, NR_PAGES), NR_PAGES);
	stop_vcpus(self);
	kvm_vm_free(self->vm);
}
#endif

int main(int argc, char *argv[])
{
	TEST_REQUIRE_USERFAULT();
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_GUEST_MEMFD));

	return test_harness_run(argc, argv);
}
