// SPDX-License-Identifier: GPL-2.0-only
/*
 * Hostile input for KVM userfault: the two ioctls, and resolves on KVM_RUN.
 *
 * Threads call the ioctls with structs that are nearly right, or not at all, whose
 * pointers lead to memory that is missing, read-only, comes and goes, waits for
 * userfaultfd, or belongs to nobody, for ranges from a page to the whole address
 * space, among them a memslot of a size that no machine has.  Another thread scribbles
 * over the kvm_run of a vCPU that resolves its exits.  And another process, which has
 * the VM's file from its parent, may do nothing.
 *
 * Little can be said of what comes of it, but that it is one of few errors, and that
 * - what nobody may touch stays as it is: a memslot that is armed, and that neither
 *   a range nor a resolve, at most 2 MiB around a fault, can reach;
 * - a vCPU that touches nothing of all that goes on undisturbed, and never stands
 *   still for long;
 * - afterwards all works as ever.
 * The rest is for the kernel to complain about.
 *
 * Before that, calls for the gigantic memslot have to be good neighbours, however long
 * they take:
 * - who is killed in the middle of one gets no further;
 * - a signal ends it after the chunk that is being worked on, which takes no second;
 * - a vCPU that needs a page mapped elsewhere gets it meanwhile.
 * What can be counted is counted: time means little where all is emulated.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/sizes.h>
#include <linux/userfaultfd.h>

#include "kvm_syscalls.h"
#include "kvm_userfault_util.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"
#include "userfaultfd_util.h"

#define SLOT		10
#define NR_FUZZERS	2
#define NR_PAGES	300UL

/* How many calls have to be interrupted, of how many at most, or killed. */
#define NR_INTERRUPTED	20
#define MAX_CALLS	20000
#define NR_KILLED	3

/* How much a call may do before it looks for signals, without and with a bitmap. */
#define CHUNK_SIZE	((u64)SZ_1G)
#define CHUNK_PAGES	4096UL

/* How long a vCPU that nobody disturbs may stand still: a second, and what emulation adds. */
#define MAX_STALL_NS	(10 * NSEC_PER_SEC)

/* How often a vCPU has to get its page back while all of the memslot is armed once. */
#define NR_TAKEN	4

/* Where memslots are: fuzzed, without the flag, gigantic, and not to be touched. */
#define GPA		(4ull << 30)
#define PLAIN_GPA	(5ull << 30)
#define QUIET_GPA	(6ull << 30)
#define HUGE_GPA	(1ull << 36)

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpus[2];
static u64 psz, huge_size;
static void *maps[5], *plain_mem;
static bool stop, stop_scribbling;
static u64 nr_calls, nr_good, nr_runs, nr_exits, nr_taken, nr_served, longest_ns;
static u64 guest_rounds, guest_nr_pages = NR_PAGES, guest_psz, guest_stop;

/* Touch all of the memory that is fuzzed, for ever. */
static void guest_victim(void)
{
	u64 i;

	for (;;) {
		for (i = 0; i < guest_nr_pages; i++)
			WRITE_ONCE(*(u64 *)(GPA + i * guest_psz), i);
		GUEST_SYNC(0);
	}
}

/* Touch none of it. */
static void guest_bystander(void)
{
	while (!READ_ONCE(guest_stop)) {
		WRITE_ONCE(*(u64 *)PLAIN_GPA, guest_rounds);
		WRITE_ONCE(guest_rounds, guest_rounds + 1);
	}
	GUEST_DONE();
}

static u64 rnd(struct guest_random_state *rng, u64 nr)
{
	return guest_random_u64(rng) % nr;
}

static u64 random_gpa(struct guest_random_state *rng)
{
	const u64 bases[] = {
		0, GPA, PLAIN_GPA, HUGE_GPA, HUGE_GPA + huge_size, -SZ_4G, 1ull << 52,
	};
	u64 gpa = bases[rnd(rng, ARRAY_SIZE(bases))] + (rnd(rng, 5) - 2) * psz * rnd(rng, 200);

	/* Never below or above what is quiet by less than a resolve reaches. */
	return rnd(rng, 20) ? gpa : gpa + rnd(rng, psz);
}

static u64 random_size(struct guest_random_state *rng)
{
	switch (rnd(rng, 8)) {
	case 0:
		return 0;
	case 1:
		return guest_random_u64(rng) >> (rnd(rng, 20) ? 32 : 0);
	case 2:
		return rnd(rng, 20) ? psz : -psz;
	case 3:
		/* It takes seconds, where all is emulated. */
		return rnd(rng, 20) ? SZ_1G : huge_size;
	case 4:
		return guest_random_u32(rng) & -psz;
	default:
		return (1 + rnd(rng, 400)) * psz;
	}
}

static u64 random_pointer(struct guest_random_state *rng)
{
	u64 map = (u64)maps[rnd(rng, ARRAY_SIZE(maps))];

	switch (rnd(rng, 10)) {
	case 0:
		return 0;
	case 1:
		return guest_random_u64(rng) & -8ull;
	case 2:
		return BIT(47) - rnd(rng, SZ_64K);
	case 3:
		return -rnd(rng, SZ_64K) & -8ull;
	case 4:
		return map + rnd(rng, SZ_1M);
	default:
		/* To be read, or written, up to the end of the mapping and beyond. */
		return map + (rnd(rng, SZ_1M) & -8ull);
	}
}

static struct kvm_userfault_range random_range(struct guest_random_state *rng, bool set)
{
	struct kvm_userfault_range range = {
		.gpa = random_gpa(rng),
		.size = random_size(rng),
		.flags = set ? rnd(rng, USERFAULT_SET_FLAGS + 1) : 0,
	};

	if (range.flags & KVM_USERFAULT_BITMAP || !set)
		range.bitmap = random_pointer(rng);
	return range;
}

static bool overlaps_quiet(const struct kvm_userfault_range *range)
{
	u64 end = range->gpa + range->size;

	return range->gpa < QUIET_GPA + NR_PAGES * psz && (end > QUIET_GPA || end < range->gpa);
}

static void *fuzz(void *arg)
{
	struct guest_random_state rng = new_guest_random_state((unsigned long)arg);
	struct kvm_userfault_range good, *range;
	u64 *words = (u64 *)&good;
	struct timespec start;
	int r, err;
	u64 ns;

	while (!READ_ONCE(stop)) {
		bool set = rnd(&rng, 3);

		good = random_range(&rng, set);
		if (!rnd(&rng, 10))
			words[rnd(&rng, sizeof(good) / sizeof(u64))] = guest_random_u64(&rng);
		if (set && overlaps_quiet(&good))
			continue;

		/* The struct itself may lie anywhere, but not where GET has written. */
		range = &good;
		if (!rnd(&rng, 10))
			range = maps[1 + rnd(&rng, 2)] + rnd(&rng, SZ_1M);

		clock_gettime(CLOCK_MONOTONIC, &start);
		r = ioctl(vm->fd, set ? KVM_SET_USERFAULT_RANGE : KVM_GET_USERFAULT_RANGE, range);
		err = r ? errno : 0;
		ns = timespec_to_ns(timespec_elapsed(start));
		if (ns > READ_ONCE(longest_ns))
			WRITE_ONCE(longest_ns, ns);

		TEST_ASSERT(!err || err == EINVAL || err == ENOENT || err == EFAULT || err == EINTR,
			    "errno %d: gpa 0x%llx size 0x%llx flags 0x%llx bitmap 0x%llx", err,
			    good.gpa, good.size, good.flags, good.bitmap);
		TEST_ASSERT(err != ENOENT || set, "GET: ENOENT");
		__atomic_fetch_add(&nr_calls, 1, __ATOMIC_RELAXED);
		__atomic_fetch_add(&nr_good, !err, __ATOMIC_RELAXED);
	}
	return NULL;
}

/* One mapping comes and goes, while others have it in use. */
static void *remap(void *arg)
{
	static const int prots[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE };
	int i;

	for (i = 0; !READ_ONCE(stop); i++) {
		mprotect(maps[3] + i % 16 * SZ_64K, SZ_64K, prots[i % 3]);
		if (!(i % 7))
			madvise(maps[3 + i % 2], SZ_1M, MADV_DONTNEED);
		usleep(50);
	}
	return NULL;
}

/* Let who waits for a page of the last mapping go on, some later than others. */
static int uffd_handler(int mode, int uffd, struct uffd_msg *msg)
{
	struct uffdio_zeropage zero = {
		.range.start = msg->arg.pagefault.address & -(u64)getpagesize(),
		.range.len = getpagesize(),
	};

	if (!(++nr_served % 3))
		usleep(1000);
	TEST_ASSERT(!ioctl(uffd, UFFDIO_ZEROPAGE, &zero) || errno == EEXIST || errno == EAGAIN,
		    "UFFDIO_ZEROPAGE: errno %d", errno);
	/* If the page was there, or mappings were changing, let it look again. */
	return ioctl(uffd, UFFDIO_WAKE, &zero.range);
}

/* The VM is its creator's: no call is even looked at, for as long as this lives. */
static void foreign_process(u32 seed)
{
	struct guest_random_state rng = new_guest_random_state(seed);
	struct kvm_userfault_range range;
	bool set;

	for (;;) {
		set = rnd(&rng, 3);
		range = random_range(&rng, set);
		if (!ioctl(vm->fd, set ? KVM_SET_USERFAULT_RANGE : KVM_GET_USERFAULT_RANGE,
			   &range) || errno != EIO)
			_exit(1);
		usleep(1000);
	}
}

static void *scribble(void *arg)
{
	struct guest_random_state rng = new_guest_random_state((unsigned long)arg);
	struct kvm_run *run = vcpus[0]->run;

	while (!READ_ONCE(stop_scribbling)) {
		switch (rnd(&rng, 6)) {
		case 0:
			WRITE_ONCE(run->memory_fault.flags, guest_random_u64(&rng));
			break;
		case 1:
			WRITE_ONCE(run->memory_fault.gpa, random_gpa(&rng));
			break;
		case 2:
			WRITE_ONCE(run->memory_fault.size, random_size(&rng));
			break;
		case 3:
			WRITE_ONCE(run->exit_reason, rnd(&rng, 50));
			break;
		case 4:
			WRITE_ONCE(run->immediate_exit, rnd(&rng, 2));
			break;
		default:
			WRITE_ONCE(run->memory_fault.flags,
				   KVM_MEMORY_EXIT_FLAG_USERFAULT | KVM_MEMORY_EXIT_FLAG_RESOLVED);
			break;
		}
		usleep(rnd(&rng, 50));
	}
	return NULL;
}

static void *run_victim(void *arg)
{
	struct guest_random_state rng = new_guest_random_state((unsigned long)arg);
	struct kvm_vcpu *vcpu = vcpus[0];
	int r;

	while (!READ_ONCE(stop)) {
		r = __vcpu_run(vcpu);
		nr_runs++;
		if (!r)
			continue;

		TEST_ASSERT(errno == EFAULT || errno == EINTR || errno == EINVAL,
			    "KVM_RUN: errno %d", errno);
		/* What is in kvm_run may be another's. */
		nr_exits += errno == EFAULT;
		if (rnd(&rng, 3))
			vcpu_userfault_resolve(vcpu, random_gpa(&rng), random_size(&rng));
		else if (rnd(&rng, 2))
			vcpu_userfault_resolve(vcpu, vcpu->run->memory_fault.gpa & -psz, psz);
		else
			__vm_userfault_set(vm, GPA, NR_PAGES * psz, 0, NULL);
	}
	return NULL;
}

static void *run_bystander(void *arg)
{
	struct ucall uc;

	TEST_ASSERT(!_vcpu_run(vcpus[1]), "The other vCPU: errno %d exit reason %u", errno,
		    vcpus[1]->run->exit_reason);
	TEST_ASSERT_EQ(get_ucall(vcpus[1], &uc), UCALL_DONE);
	return NULL;
}

static void *add_slot(int slot, gpa_t gpa, u64 size, u32 flags)
{
	void *hva = kvm_mmap(size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);

	vm_set_user_memory_region(vm, SLOT + slot, flags, gpa, size, hva);
	return hva;
}

static void create_vm(void)
{
	void *code[] = { guest_victim, guest_bystander };
	u64 max_size;
	int i;

	vm = __vm_create_with_vcpus(VM_SHAPE_DEFAULT, 2, NR_PAGES, guest_victim, vcpus);
	psz = max_t(u64, vm->page_size, getpagesize());
	for (i = 0; i < 2; i++)
		vcpu_arch_set_entry_point(vcpus[i], code[i]);

	/* KVM has tables for a memslot by its size, without TDP MMU larger ones. */
	max_size = (vm->max_gfn << vm->page_shift) - HUGE_GPA;
	huge_size = 1ull << 40;
#ifdef __x86_64__
	if (!has_tdp_mmu())
		huge_size = 1ull << 34;
#endif
	huge_size = min(huge_size, max_size);
	add_slot(0, GPA, NR_PAGES * psz, KVM_MEM_USERFAULT);
	plain_mem = add_slot(1, PLAIN_GPA, NR_PAGES * psz, 0);
	add_slot(2, QUIET_GPA, NR_PAGES * psz, KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED);
	add_slot(3, HUGE_GPA, huge_size, KVM_MEM_USERFAULT);
	virt_map(vm, GPA, GPA, NR_PAGES * psz / vm->page_size);
	virt_map(vm, PLAIN_GPA, PLAIN_GPA, 1);
	write_guest_global(vm, guest_psz, psz);
}

/* After it there is nothing: to GET a lot would fill all memory that there is. */
static void *map_with_end(int prot)
{
	void *map = kvm_mmap(2 * SZ_1M, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	TEST_ASSERT(!mprotect(map, SZ_1M, prot), "mprotect(): errno %d", errno);
	return map;
}

/* What the child tells of the call that it is killed in. */
struct call {
	struct kvm_userfault_range range;
	bool started;
	bool done;
};

static void arm_all(struct call *call)
{
	create_vm();
	call->range = (struct kvm_userfault_range) {
		.gpa = HUGE_GPA,
		.size = huge_size,
		.flags = KVM_USERFAULT_ARM,
	};
	WRITE_ONCE(call->started, true);
	__vm_userfault_set_range(vm, &call->range);
	WRITE_ONCE(call->done, true);
	for (;;)
		pause();
}

/* Killed in the middle of a call, it leaves the rest undone: KVM says how much. */
static void test_kill(void)
{
	struct call *call = kvm_mmap(sizeof(*call), PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS, -1);
	useconds_t delay = 50000;
	int i, status, killed = 0;
	struct timespec start;
	pid_t pid;

	for (i = 0; killed < NR_KILLED; i++) {
		TEST_ASSERT(i < 10 * NR_KILLED, "A call that is killed goes on to its end");

		memset(call, 0, sizeof(*call));
		pid = fork();
		TEST_ASSERT(pid >= 0, "fork(): errno %d", errno);
		if (!pid)
			arm_all(call);
		while (!READ_ONCE(call->started))
			usleep(1000);
		usleep(delay);

		clock_gettime(CLOCK_MONOTONIC, &start);
		kill(pid, SIGKILL);
		TEST_ASSERT(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status), "waitpid()");

		if (call->done) {
			delay /= 2;
		} else if (call->range.gpa == HUGE_GPA) {
			delay *= 2;
		} else {
			killed++;
			printf("Killed with %llu MiB to do: gone after %lu ms\n",
			       call->range.size >> 20,
			       timespec_to_ns(timespec_elapsed(start)) / 1000000);
		}
	}
	kvm_munmap(call, sizeof(*call));
}

static void on_signal(int sig)
{
}

static void *interrupt(void *arg)
{
	pthread_t *thread = arg;

	while (!READ_ONCE(stop)) {
		pthread_kill(*thread, SIGUSR1);
		sched_yield();
	}
	return NULL;
}

/* Take the bystander's page away as soon as it has been mapped once more. */
static void *take_away(void *arg)
{
	u64 *rounds = addr_gva2hva(vm, (gva_t)&guest_rounds), before;

	while (!READ_ONCE(stop)) {
		TEST_ASSERT(!madvise(plain_mem, psz, MADV_DONTNEED), "madvise(): errno %d", errno);
		before = READ_ONCE(*rounds);
		while (READ_ONCE(*rounds) < before + 2 && !READ_ONCE(stop))
			usleep(20);
		WRITE_ONCE(nr_taken, nr_taken + 1);
	}
	return NULL;
}

static int compare_u64(const void *a, const void *b)
{
	return *(u64 *)a < *(u64 *)b ? -1 : *(u64 *)a > *(u64 *)b;
}

/*
 * Signals come all the time: some calls get no more done than what lies between two
 * checks, and most end soon.
 */
static void test_interrupted(const char *what, u64 flags, bool set, void *bitmap, u64 chunk)
{
	const struct kvm_userfault_range all = {
		.gpa = HUGE_GPA,
		.size = huge_size,
		.flags = flags,
		.bitmap = (unsigned long)bitmap,
	};
	struct kvm_userfault_range range = all;
	u64 ns[NR_INTERRUPTED], left, done, least = -1ull;
	int nr = 0, nr_calls, err;
	struct timespec start;

	for (nr_calls = 0; nr < NR_INTERRUPTED || least > chunk; nr_calls++) {
		TEST_ASSERT(nr_calls < MAX_CALLS,
			    "%s: %d of %d calls were ended by signals, after 0x%lx bytes or more",
			    what, nr, nr_calls, least);

		left = range.size;
		clock_gettime(CLOCK_MONOTONIC, &start);
		err = set ? __vm_userfault_set_range(vm, &range) :
			    __vm_userfault_get_range(vm, &range);
		ns[nr % NR_INTERRUPTED] = timespec_to_ns(timespec_elapsed(start));
		TEST_ASSERT(!err || err == EINTR, "%s: errno %d", what, err);

		/* None came in time: once more. */
		if (!err) {
			vm_userfault_clear(vm, HUGE_GPA, huge_size);
			range = all;
			continue;
		}

		done = left - range.size;
		least = min(least, done);
		nr++;
	}

	qsort(ns, NR_INTERRUPTED, sizeof(ns[0]), compare_u64);
	printf("%s: %d of %d calls interrupted, one after %lu MiB; median %lu us\n", what, nr,
	       nr_calls, least >> 20, ns[NR_INTERRUPTED / 2] / 1000);
	TEST_ASSERT(ns[NR_INTERRUPTED / 2] < NSEC_PER_SEC, "%s: signals have to wait for %lu ns",
		    what, ns[NR_INTERRUPTED / 2]);
}

static void test_neighbours(void)
{
	pthread_t bystander, taker, interrupter, self = pthread_self();
	struct sigaction action = { .sa_handler = on_signal };
	u64 before, taken = 0;
	struct timespec start;
	void *bitmap;
	int i;

	create_vm();
	bitmap = kvm_mmap(huge_size / psz / 8, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	pthread_create(&bystander, NULL, run_bystander, NULL);
	pthread_create(&taker, NULL, take_away, NULL);
	while (READ_ONCE(nr_taken) < NR_TAKEN)
		usleep(1000);

	/* How often depends on who else runs on the machine: try until it could be seen. */
	for (i = 0; taken < NR_TAKEN; i++) {
		TEST_ASSERT(i < 100, "Another vCPU has to wait until all is armed");

		before = READ_ONCE(nr_taken);
		clock_gettime(CLOCK_MONOTONIC, &start);
		vm_userfault_arm(vm, HUGE_GPA, huge_size);
		taken = READ_ONCE(nr_taken) - before;
		printf("Armed %lu GiB in %lu ms: another vCPU got its page %lu times\n",
		       huge_size / SZ_1G, timespec_to_ns(timespec_elapsed(start)) / 1000000,
		       taken);
		vm_userfault_clear(vm, HUGE_GPA, huge_size);
	}

	sigaction(SIGUSR1, &action, NULL);
	pthread_create(&interrupter, NULL, interrupt, &self);
	test_interrupted("arm", KVM_USERFAULT_ARM, true, NULL, CHUNK_SIZE);
	test_interrupted("clear", 0, true, NULL, CHUNK_SIZE);
	test_interrupted("collapse", KVM_USERFAULT_COLLAPSE, true, NULL, CHUNK_SIZE);
	test_interrupted("arm by bitmap", KVM_USERFAULT_ARM | KVM_USERFAULT_BITMAP, true, bitmap,
			 CHUNK_PAGES * psz);
	test_interrupted("get", 0, false, bitmap, CHUNK_PAGES * psz);

	WRITE_ONCE(stop, true);
	pthread_join(interrupter, NULL);
	pthread_join(taker, NULL);
	write_guest_global(vm, guest_stop, 1);
	pthread_join(bystander, NULL);
	kvm_vm_free(vm);
	kvm_munmap(bitmap, huge_size / psz / 8);
	stop = false;
}

static void check_quiet(void)
{
	u8 armed[DIV_ROUND_UP(NR_PAGES, 8)];
	u64 i;

	vm_userfault_get(vm, QUIET_GPA, NR_PAGES * psz, armed);
	for (i = 0; i < NR_PAGES; i++)
		TEST_ASSERT(armed[i / 8] & BIT(i % 8), "Page %lu is clear", i);
}

/* See the vCPU that nobody disturbs go on, for a second. */
static void watch_bystander(u64 *rounds, u64 *stall_ns)
{
	u64 before = READ_ONCE(*rounds), now, ns;
	struct timespec start, last;
	bool stood;

	clock_gettime(CLOCK_MONOTONIC, &start);
	last = start;
	do {
		usleep(1000);
		ns = timespec_to_ns(timespec_elapsed(last));
		*stall_ns = max(*stall_ns, ns);
		TEST_ASSERT(ns < MAX_STALL_NS, "The other vCPU stands still for %lu ns", ns);

		now = READ_ONCE(*rounds);
		stood = now == before;
		if (!stood) {
			before = now;
			clock_gettime(CLOCK_MONOTONIC, &last);
		}
	} while (stood || timespec_to_ns(timespec_elapsed(start)) < NSEC_PER_SEC);
}

int main(int argc, char *argv[])
{
	u32 seed = time(NULL) ^ getpid() << 16;
	int opt, i, status, seconds = 10;
	pthread_t threads[NR_FUZZERS + 1], scribbler, victim, bystander;
	u64 *rounds, stall_ns = 0;
	struct uffd_desc *uffd;
	pid_t foreigner;

	while ((opt = getopt(argc, argv, "hr:s:")) != -1) {
		switch (opt) {
		case 'r':
			seed = strtoul(optarg, NULL, 0);
			break;
		case 's':
			seconds = atoi_positive("Seconds", optarg);
			break;
		default:
			printf("usage: %s [-r seed] [-s seconds]\n", argv[0]);
			return KSFT_FAIL;
		}
	}
	TEST_REQUIRE_USERFAULT();
	printf("Seed 0x%x\n", seed);
	fflush(stdout);

	test_kill();
	test_neighbours();

	create_vm();
	for (i = 0; i < ARRAY_SIZE(maps); i++)
		maps[i] = map_with_end(i == 1 ? PROT_READ : i == 2 ? PROT_NONE :
				       PROT_READ | PROT_WRITE);
	rounds = addr_gva2hva(vm, (gva_t)&guest_rounds);

	foreigner = fork();
	TEST_ASSERT(foreigner >= 0, "fork(): errno %d", errno);
	if (!foreigner)
		foreign_process(seed + 3 + NR_FUZZERS);

	uffd = uffd_setup_demand_paging(UFFDIO_REGISTER_MODE_MISSING, 0, maps[4], SZ_1M, 1,
					uffd_handler);
	pthread_create(&bystander, NULL, run_bystander, NULL);
	pthread_create(&victim, NULL, run_victim, (void *)(seed + 1ul));
	pthread_create(&scribbler, NULL, scribble, (void *)(seed + 2ul));
	pthread_create(&threads[0], NULL, remap, NULL);
	for (i = 1; i <= NR_FUZZERS; i++)
		pthread_create(&threads[i], NULL, fuzz, (void *)(seed + 2ul + i));

	/* However slow it is, all of them get something done. */
	for (i = 0; i < seconds || READ_ONCE(nr_calls) < 200 || READ_ONCE(nr_exits) < 20 ||
	     READ_ONCE(nr_served) < 5; i++) {
		watch_bystander(rounds, &stall_ns);
		check_quiet();
	}
	TEST_ASSERT(!waitpid(foreigner, &status, WNOHANG), "Another process has been obeyed");
	kill(foreigner, SIGKILL);
	waitpid(foreigner, &status, 0);

	WRITE_ONCE(stop, true);
	for (i = 0; i <= NR_FUZZERS; i++)
		pthread_join(threads[i], NULL);
	/* It may be in the guest for good, now that nothing gets armed. */
	pthread_join(victim, NULL);
	WRITE_ONCE(stop_scribbling, true);
	pthread_join(scribbler, NULL);
	uffd_stop_demand_paging(uffd);
	check_quiet();

	/* All as ever: clear, run; arm, exit. */
	vcpus[0]->run->immediate_exit = 0;
	vcpus[0]->run->memory_fault.flags = 0;
	vm_userfault_clear(vm, GPA, NR_PAGES * psz);
	vcpu_run_to_sync(vcpus[0]);
	vcpu_run_to_sync(vcpus[0]);
	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA, NR_PAGES * psz), NR_PAGES);
	assert_userfault_exit(vcpus[0], GPA, KVM_MEMORY_EXIT_FLAG_WRITE);
	write_guest_global(vm, guest_stop, 1);
	pthread_join(bystander, NULL);

	printf("%lu calls, %lu of them fine, the longest %lu ms, %lu pages by userfaultfd\n",
	       nr_calls, nr_good, longest_ns / 1000000, nr_served);
	printf("%lu runs, %lu exits; the other vCPU: %lu rounds, the longest %lu ms\n", nr_runs,
	       nr_exits, *rounds, stall_ns / 1000000);
	kvm_vm_free(vm);
	return 0;
}
