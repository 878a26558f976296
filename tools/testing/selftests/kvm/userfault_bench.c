// SPDX-License-Identifier: GPL-2.0-only
/*
 * What KVM userfault costs, and what its alternatives do.
 *
 *  fetch   each vCPU writes to each of its own pages, or all to the same ones, none
 *          of which is there: what it takes until the write is done, by plain
 *          faults, by userfaultfd, and by the exits of KVM userfault with the
 *          different ways to clear pages
 *  clear   KVM_SET_USERFAULT_RANGE by the size of the range, clearing and arming
 *  poison  one 4K page is taken out of memory that is mapped by huge pages: by
 *          arming it, by a hole between memslots, by memory attributes, by mprotect()
 *  off     plain faults where nobody uses KVM userfault, also without CONFIG_KVM_USERFAULT
 *  memory  what the bitmap takes
 *
 * Run it where the clock counts instructions, as it does under QEMU's -icount with
 * one CPU; `make bench` does.  Figures are then exact to what the kernel and this
 * program execute, the guest included, and repeat from run to run.  The program
 * tells by a loop of known length whether it is so; elsewhere its figures are
 * ticks of a clock, and say so.
 *
 * What this cannot show: cache misses, TLB misses, what an exit costs on real
 * hardware, and contention, since there is a single CPU: of locks, of reference
 * counts and of the bitmap's cache lines.  Nor is there a source of pages with a
 * latency of its own.  With several vCPUs, the time of a single fetch includes
 * the time slices of other threads that it happens to wait for; the mean has all of
 * them in any case.
 *
 * Each iteration of a string instruction counts as an instruction.  This program
 * copies pages by 8 bytes an iteration on x86 and counts these iterations apart;
 * those of the kernel, when it clears or copies a page, are not told apart.
 *
 * What KVM lacks is left out: KVM_PRE_FAULT_MEMORY and memory attributes, as on arm64.
 * There the guest touches what is to be mapped, and no statistics count faults:
 * those after a poison are told by the entries of stage 2 that have come back.
 *
 * Where KVM waits, as it does for a grace period when memslots change, nothing runs,
 * and the clock jumps.  Hence what poisons is timed by the CPU time of the thread,
 * and the time that passed is told beside it; no such wait is in the other figures.
 *
 * userfaultfd is served as cheaply as it can be: a thread blocks in read(), gets a
 * single message, and answers it by a single ioctl.  The modes with "handler" do the
 * same for exits: the vCPU's thread has another one fetch the page, and sleeps.
 *
 * On a kernel with CONFIG_LOCK_STAT fetch tells which locks were taken, and nothing
 * else: its instructions are not those of other kernels.
 *
 * The output is one line per result, with the fields as NAME=VALUE.
 */
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/sizes.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "cgroup_util.h"
#include "kvm_syscalls.h"
#include "kvm_userfault_debug.h"
#include "kvm_userfault_util.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#define BENCH_SLOT	1
#define BENCH_GPA	SZ_4G
#define MAX_VCPUS	64
#define MAX_AROUND	16
#define MAGIC		0x600dda7a600dda7aull

#define psz		((u64)getpagesize())

#if defined(__x86_64__)
#define ARCH		"x86_64"
#elif defined(__aarch64__)
#define ARCH		"arm64"
#endif

/*
 * The clock
 */
static u64 insns_per_tick = 1;
static bool clock_is_exact;
static u64 clock_cost, cpu_clock_cost;

/* In the guest, too: only differences count. */
static u64 ticks(void)
{
#if defined(__x86_64__)
	return rdtsc();
#elif defined(__aarch64__)
	u64 val;

	asm volatile("isb; mrs %0, cntvct_el0" : "=r"(val) :: "memory");
	return val;
#endif
}

/* What this thread has had of the CPU, without what others do for it meanwhile. */
static u64 cpu_ticks(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return timespec_to_ns(now) / insns_per_tick;
}

/* Two instructions each time around. */
static u64 time_loop(u64 n)
{
	u64 start = ticks();

#if defined(__x86_64__)
	asm volatile("1: dec %0; jnz 1b" : "+r"(n));
#elif defined(__aarch64__)
	asm volatile("1: subs %0, %0, #1; b.ne 1b" : "+r"(n) :: "cc");
#endif
	return ticks() - start;
}

static u64 to_insns(u64 ticks)
{
	return ticks * insns_per_tick;
}

static int cmp_u64(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static u64 percentile(u64 *v, u64 nr, int percent)
{
	qsort(v, nr, sizeof(*v), cmp_u64);
	return v[min(nr - 1, nr * percent / 100)];
}

static void calibrate(void)
{
	u64 t[20], i, shortest, longest;

	/* Let what is pending be done, e.g. with what has been set up. */
	usleep(100000);

	/* The shortest of some: a timer may tick meanwhile. */
	for (i = 0; i < ARRAY_SIZE(t); i++)
		t[i] = time_loop(50000);
	shortest = percentile(t, ARRAY_SIZE(t), 0);
	for (i = 0; i < ARRAY_SIZE(t); i++)
		t[i] = time_loop(500000);
	longest = percentile(t, ARRAY_SIZE(t), 0);

	insns_per_tick = max_t(u64, 1, (900000 + (longest - shortest) / 2) / (longest - shortest));
	clock_is_exact = labs((long)to_insns(longest - shortest) - 900000) < 900;

	for (i = 0; i < ARRAY_SIZE(t); i++) {
		u64 start = ticks();

		t[i] = ticks() - start;
	}
	clock_cost = percentile(t, ARRAY_SIZE(t), 50);

	for (i = 0; i < ARRAY_SIZE(t); i++) {
		u64 start = cpu_ticks();

		t[i] = cpu_ticks() - start;
	}
	cpu_clock_cost = percentile(t, ARRAY_SIZE(t), 50);
}

/*
 * Fetching
 */
enum how {
	PLAIN,
	UFFD_MISSING,
	UFFD_MINOR,
	IOCTL,
	RESOLVE,
};

struct fetch_mode {
	const char *name;
	enum how how;
	/* How many pages are fetched at once. */
	u64 around;
	/* One userfaultfd for all vCPUs instead of one each? */
	bool shared;
	/* Map the page by KVM_PRE_FAULT_MEMORY before the vCPU runs again? */
	bool prefault;
	/* Is the page fetched by another thread than the vCPU's? */
	bool handler;
};

static const struct fetch_mode fetch_modes[] = {
	{ "plain",		PLAIN,		1 },
	{ "uffd-missing",	UFFD_MISSING,	1 },
	{ "uffd-missing-shared", UFFD_MISSING,	1,	.shared = true },
	{ "uffd-minor",		UFFD_MINOR,	1 },
	{ "uffd-minor-shared",	UFFD_MINOR,	1,	.shared = true },
	{ "uffd-minor-16",	UFFD_MINOR,	16 },
	{ "uffd-16",		UFFD_MISSING,	16 },
	{ "ioctl",		IOCTL,		1 },
	{ "ioctl-prefault",	IOCTL,		1,	.prefault = true },
	{ "ioctl-16",		IOCTL,		16 },
	{ "ioctl-handler",	IOCTL,		1,	.handler = true },
	{ "resolve",		RESOLVE,	1 },
	{ "resolve-16",		RESOLVE,	16 },
	{ "resolve-handler",	RESOLVE,	1,	.handler = true },
};

enum backing {
	ANON,
	SHMEM,
	GUEST_MEMFD,
	NR_BACKINGS,
};

static const char * const backing_names[NR_BACKINGS] = { "anon", "shmem", "guest_memfd" };

/* Whose turn it is: that of a vCPU's thread, or that of the handler of its exits. */
enum turn {
	TURN_VCPU,
	TURN_HANDLER,
	TURN_STOP,
};

struct thread {
	pthread_t thread;
	struct fetch *fetch;
	struct kvm_vcpu *vcpu;
	int uffd;

	/* Of a handler: what to fetch, and for whom to say so. */
	u32 turn;
	gpa_t gpa;

	u64 *latency;
	u64 nr_runs;
	u64 nr_syscalls;
	u64 nr_strings;
};

struct fetch {
	const struct fetch_mode *mode;
	enum backing backing;
	bool use_uffd;
	/* Do all vCPUs touch the same pages? */
	bool same;
	/* KVM_MEM_USERFAULT for plain faults, i.e. without any armed page? */
	bool flag;
	int nr_vcpus;
	u64 nr_pages;

	struct kvm_vm *vm;
	/* Of all vCPUs. */
	u64 all_pages;
	/* guest_memfd */
	int fd;
	/* With @same: which pages a vCPU has taken on itself to fetch. */
	bool *claimed;
	/* The pages in this process, and a second mapping of them for uffd-minor. */
	void *mem, *alias;
	struct thread vcpus[MAX_VCPUS];
	struct thread servers[MAX_VCPUS];
	int nr_servers;
	pthread_barrier_t ready;
};

static u64 *source;

/* Write to @nr pages; what is fetched must be there, and in time. */
static void guest_fetch(u64 gva, u64 nr, u64 page_size, u64 *latency, u64 expected)
{
	u64 i, start;

	for (i = 0; i < nr; i++)
		WRITE_ONCE(latency[i], 0);

	GUEST_SYNC(0);

	for (i = 0; i < nr; i++) {
		u64 *p = (u64 *)(gva + i * page_size);

		start = ticks();
		WRITE_ONCE(p[0], i);
		WRITE_ONCE(latency[i], ticks() - start);
		if (READ_ONCE(p[1]) != expected)
			GUEST_FAIL("Page %lu has 0x%lx", i, p[1]);
	}

	GUEST_DONE();
}

/* Returns how many iterations a string instruction took. */
static u64 copy_pages(void *to, u64 nr)
{
	u64 words = nr * psz / sizeof(u64);
	void *from = source;

#if defined(__x86_64__)
	u64 n = words;

	asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(n) :: "memory");
	return words;
#elif defined(__aarch64__)
	u64 a, b;

	asm volatile("1: ldp %0, %1, [%2], #16\n\t"
		     "stp %0, %1, [%3], #16\n\t"
		     "subs %4, %4, #2\n\t"
		     "b.ne 1b"
		     : "=&r"(a), "=&r"(b), "+r"(from), "+r"(to), "+r"(words)
		     :: "memory", "cc");
	return 0;
#endif
}

/* Where vCPUs fault on the same page, all but the first find it there. */
static void uffd_copy(struct thread *t, void *hva, u64 nr)
{
	struct uffdio_copy copy = {
		.src = (unsigned long)source,
		.dst = (unsigned long)hva,
		.len = nr * psz,
	};
	int ret = ioctl(t->uffd, UFFDIO_COPY, &copy);

	TEST_ASSERT(!ret || (t->fetch->same && errno == EEXIST),
		    "UFFDIO_COPY at %p: errno %d", hva, errno);
	t->nr_syscalls++;
}

static void uffd_continue(struct thread *t, void *hva, u64 nr)
{
	struct uffdio_continue cont = {
		.range.start = (unsigned long)hva,
		.range.len = nr * psz,
	};

	t->nr_strings += copy_pages(t->fetch->alias + (hva - t->fetch->mem), nr);
	TEST_ASSERT(!ioctl(t->uffd, UFFDIO_CONTINUE, &cont),
		    "UFFDIO_CONTINUE at %p: errno %d", hva, errno);
	t->nr_syscalls++;
}

/* Serve until cancelled, which read() allows. */
static void *serve_uffd(void *arg)
{
	struct thread *t = arg;
	u64 size = t->fetch->mode->around * psz;
	void *hva, *mem = t->fetch->mem;
	struct uffd_msg msg;

	for (;;) {
		TEST_ASSERT(read(t->uffd, &msg, sizeof(msg)) == sizeof(msg),
			    "Reading from userfaultfd: errno %d", errno);
		TEST_ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
		t->nr_syscalls++;

		hva = mem + align_down((void *)msg.arg.pagefault.address - mem, size);
		if (t->fetch->mode->how == UFFD_MINOR)
			uffd_continue(t, hva, t->fetch->mode->around);
		else
			uffd_copy(t, hva, t->fetch->mode->around);
	}

	return NULL;
}

/* Bring the page that a vCPU has exited for, and those around it. */
static void fetch_pages(struct thread *t, gpa_t gpa)
{
	const struct fetch_mode *mode = t->fetch->mode;
	void *hva = t->fetch->mem + (gpa - BENCH_GPA);
	u64 size = mode->around * psz;

	if (t->fetch->use_uffd)
		uffd_copy(t, hva, mode->around);
	else
		t->nr_strings += copy_pages(hva, mode->around);

	if (mode->how == RESOLVE)
		return;

	TEST_ASSERT(!__vm_userfault_set(t->fetch->vm, gpa, size, 0, NULL),
		    "Clearing 0x%lx: errno %d", gpa, errno);
	t->nr_syscalls++;

	if (mode->prefault) {
		struct kvm_pre_fault_memory range = { .gpa = gpa, .size = size };

		vcpu_ioctl(t->vcpu, KVM_PRE_FAULT_MEMORY, &range);
		t->nr_syscalls++;
	}
}

static void futex(struct thread *t, u32 *word, int op, u32 val)
{
	syscall(__NR_futex, word, op | FUTEX_PRIVATE_FLAG, val, NULL, NULL, 0);
	t->nr_syscalls++;
}

static void pass_turn(struct thread *t, u32 *turn, enum turn to)
{
	__atomic_store_n(turn, to, __ATOMIC_RELEASE);
	futex(t, turn, FUTEX_WAKE, 1);
}

/* Returns whose turn it is when it is no longer @other's. */
static enum turn await_turn(struct thread *t, u32 *turn, enum turn other)
{
	enum turn now;

	while (now = __atomic_load_n(turn, __ATOMIC_ACQUIRE), now == other)
		futex(t, turn, FUTEX_WAIT, other);
	return now;
}

static void *handle_exits(void *arg)
{
	struct thread *t = arg;

	while (await_turn(t, &t->turn, TURN_VCPU) != TURN_STOP) {
		fetch_pages(t, t->gpa);
		pass_turn(t, &t->turn, TURN_VCPU);
	}
	return NULL;
}

static void serve_exit(struct thread *t)
{
	const struct fetch_mode *mode = t->fetch->mode;
	u64 size = mode->around * psz;
	gpa_t gpa = align_down(t->vcpu->run->memory_fault.gpa, size);
	struct thread *handler;

	/* Another vCPU fetches it.  It may need the CPU for that. */
	if (t->fetch->same &&
	    __atomic_exchange_n(&t->fetch->claimed[(gpa - BENCH_GPA) / psz], true,
				__ATOMIC_RELAXED)) {
		sched_yield();
		t->nr_syscalls++;
		return;
	}

	if (mode->handler) {
		handler = &t->fetch->servers[t->vcpu->id];
		handler->gpa = gpa;
		pass_turn(t, &handler->turn, TURN_HANDLER);
		await_turn(t, &handler->turn, TURN_HANDLER);
	} else {
		fetch_pages(t, gpa);
	}

	if (mode->how == RESOLVE)
		vcpu_userfault_resolve(t->vcpu, gpa, size);
}

static void run_to(struct thread *t, u64 cmd)
{
	struct ucall uc;
	int ret;

	for (;;) {
		ret = _vcpu_run(t->vcpu);
		t->nr_runs++;
		if (!is_userfault_exit(t->vcpu, ret))
			break;
		serve_exit(t);
	}

	TEST_ASSERT(!ret, "KVM_RUN: errno %d", errno);
	if (get_ucall(t->vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(uc.cmd, cmd);
}

static void *run_vcpu(void *arg)
{
	struct thread *t = arg;

	run_to(t, UCALL_SYNC);
	t->nr_runs = 0;

	pthread_barrier_wait(&t->fetch->ready);
	pthread_barrier_wait(&t->fetch->ready);
	run_to(t, UCALL_DONE);
	return NULL;
}

static bool is_uffd_mode(const struct fetch_mode *mode)
{
	return mode->how == UFFD_MISSING || mode->how == UFFD_MINOR;
}

/* How many userfaultfds there are. */
static int nr_uffds(struct fetch *f)
{
	if (!f->use_uffd)
		return 0;

	return f->mode->shared || f->same ? 1 : f->nr_vcpus;
}

static void fetch_setup_uffd(struct fetch *f)
{
	bool minor = f->mode->how == UFFD_MINOR;
	u64 mode = minor ? UFFDIO_REGISTER_MODE_MINOR : UFFDIO_REGISTER_MODE_MISSING;
	u64 features = minor ? UFFD_FEATURE_MINOR_SHMEM : 0;
	int i, nr = nr_uffds(f);
	u64 size = f->all_pages * psz / nr;

	for (i = 0; i < f->nr_vcpus; i++)
		f->vcpus[i].uffd = i >= nr ? f->vcpus[0].uffd :
			uffd_register(f->mem + i * size, size, mode, features, 0);
}

/* Who answers the faults of userfaultfd, or the exits if not the vCPU itself. */
static void fetch_start_servers(struct fetch *f)
{
	int i;

	if (is_uffd_mode(f->mode))
		f->nr_servers = nr_uffds(f);
	else if (f->mode->handler)
		f->nr_servers = f->nr_vcpus;

	for (i = 0; i < f->nr_servers; i++) {
		f->servers[i].fetch = f;
		f->servers[i].uffd = f->vcpus[i].uffd;
		pthread_create(&f->servers[i].thread, NULL,
			       f->mode->handler ? handle_exits : serve_uffd, &f->servers[i]);
	}
}

static void fetch_stop_servers(struct fetch *f)
{
	int i;

	for (i = 0; i < f->nr_servers; i++) {
		if (f->mode->handler)
			pass_turn(&f->servers[i], &f->servers[i].turn, TURN_STOP);
		else
			pthread_cancel(f->servers[i].thread);
		pthread_join(f->servers[i].thread, NULL);
	}
}

static void fetch_setup_memory(struct fetch *f, u32 flags)
{
	u64 size = f->all_pages * psz;

	if (f->backing == GUEST_MEMFD) {
		f->fd = vm_create_guest_memfd(f->vm, size, GUEST_MEMFD_FLAG_MMAP |
							   GUEST_MEMFD_FLAG_INIT_SHARED);
		f->mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd);
		vm_set_user_memory_region2(f->vm, BENCH_SLOT, KVM_MEM_GUEST_MEMFD | flags,
					   BENCH_GPA, size, f->mem, f->fd, 0);
	} else {
		vm_userspace_mem_region_add(f->vm, f->backing == SHMEM ? VM_MEM_SRC_SHMEM :
									 VM_MEM_SRC_ANONYMOUS,
					    BENCH_GPA, BENCH_SLOT, f->all_pages, flags);
		f->mem = addr_gpa2hva(f->vm, BENCH_GPA);
	}

	virt_map(f->vm, BENCH_GPA, BENCH_GPA, f->all_pages);

	/* A minor fault is one on a page that is there, but not mapped. */
	if (f->mode->how == UFFD_MINOR) {
		f->alias = addr_gpa2alias(f->vm, BENCH_GPA);
		memset(f->alias, 0, size);
	}
}

static void fetch_setup(struct fetch *f)
{
	bool userfault = f->mode->how == IOCTL || f->mode->how == RESOLVE;
	u64 expected = f->mode->how == PLAIN ? 0 : MAGIC;
	struct kvm_vcpu *vcpus[MAX_VCPUS];
	u64 lat_size = f->nr_pages * sizeof(u64);
	gva_t latency;
	int i;

	f->all_pages = f->same ? f->nr_pages : f->nr_pages * f->nr_vcpus;
	f->claimed = calloc(f->all_pages, sizeof(*f->claimed));
	TEST_ASSERT(f->claimed, "Out of memory");
	f->vm = __vm_create_with_vcpus(VM_SHAPE_DEFAULT, f->nr_vcpus,
				       f->all_pages + f->nr_vcpus * (lat_size / psz + 1),
				       guest_fetch, vcpus);
	fetch_setup_memory(f, userfault ? KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED :
			      f->flag ? KVM_MEM_USERFAULT : 0);

	pthread_barrier_init(&f->ready, NULL, f->nr_vcpus + 1);
	if (f->use_uffd)
		fetch_setup_uffd(f);
	fetch_start_servers(f);

	for (i = 0; i < f->nr_vcpus; i++) {
		struct thread *t = &f->vcpus[i];

		latency = vm_alloc(f->vm, lat_size, KVM_UTIL_MIN_VADDR);
		t->latency = addr_gva2hva(f->vm, latency);
		t->fetch = f;
		t->vcpu = vcpus[i];
		vcpu_args_set(vcpus[i], 5,
			      BENCH_GPA + (f->same ? 0 : i * f->nr_pages * psz),
			      f->nr_pages, psz, latency, expected);
	}
	for (i = 0; i < f->nr_vcpus; i++)
		pthread_create(&f->vcpus[i].thread, NULL, run_vcpu, &f->vcpus[i]);
}

static void fetch_teardown(struct fetch *f)
{
	int i;

	fetch_stop_servers(f);
	for (i = 0; i < nr_uffds(f); i++)
		close(f->vcpus[i].uffd);
	pthread_barrier_destroy(&f->ready);
	kvm_vm_free(f->vm);
	if (f->backing == GUEST_MEMFD) {
		kvm_munmap(f->mem, f->all_pages * psz);
		close(f->fd);
	}
	free(f->claimed);
}

/*
 * Locks, as far as /proc/lock_stat tells
 */
static const struct {
	const char *field;
	const char *class;
} locks[] = {
	{ "mmu_lock",	"&(kvm)->mmu_lock" },
	{ "slots_lock",	"&kvm->slots_lock" },
	{ "mmap_lock",	"&mm->mmap_lock" },
	{ "uffd_queues", "&ctx->fault_pending_wqh" },
	{ "uffd_queues", "&ctx->fault_wqh" },
	{ "uffd_queues", "&ctx->fd_wqh" },
};

struct lock_count {
	u64 reads;
	u64 writes;
	u64 contended;
};

static bool has_lock_stat(void)
{
	return !access("/proc/lock_stat", R_OK);
}

/* Lines of interest are "CLASS-R: ..." or with -W; where a class has no readers, "CLASS: ...". */
static void count_locks(struct lock_count *counts)
{
	u64 contended, taken;
	char line[512], *name, *rest;
	size_t len;
	FILE *f;
	int i;

	f = fopen("/proc/lock_stat", "r");
	TEST_ASSERT(f, "/proc/lock_stat: errno %d", errno);
	while (fgets(line, sizeof(line), f)) {
		name = line + strspn(line, " ");
		for (i = 0; i < ARRAY_SIZE(locks); i++) {
			len = strlen(locks[i].class);
			if (strncmp(name, locks[i].class, len))
				continue;
			rest = strchr(name + len, ':');
			if (!rest || rest - (name + len) > 2)
				continue;
			if (sscanf(rest + 1, "%*s %lu %*s %*s %*s %*s %*s %lu",
				   &contended, &taken) != 2)
				continue;
			counts[i].contended += contended;
			*(name[len + 1] == 'R' ? &counts[i].reads : &counts[i].writes) += taken;
		}
	}
	fclose(f);
}

struct counts {
	u64 ticks;
	u64 switches;
	u64 userfault_exits;
	u64 exits;
	u64 faults;
	struct lock_count locks[ARRAY_SIZE(locks)];
};

/* Differences of two of these are what a fetch took, but for what is all zero. */
static struct counts count(struct fetch *f)
{
	struct counts c = {};
	struct rusage usage;
	int i;

	for (i = 0; i < f->nr_vcpus; i++) {
		c.userfault_exits += vcpu_get_stat(f->vcpus[i].vcpu, userfault_exits);
		c.exits += vcpu_get_stat(f->vcpus[i].vcpu, exits);
#ifdef __x86_64__
		c.faults += vcpu_get_stat(f->vcpus[i].vcpu, pf_taken);
#endif
	}
	getrusage(RUSAGE_SELF, &usage);
	c.switches = usage.ru_nvcsw + usage.ru_nivcsw;
	if (has_lock_stat())
		count_locks(c.locks);
	return c;
}

/* A result, after what says of what it is one. */
static void field(const char *name, double value)
{
	printf(" %s=%.4f", name, value);
}

static void fetch_report_identity(const char *kind, struct fetch *f)
{
	printf("%s arch=" ARCH " mode=%s backing=%s uffd=%s same=%s vcpus=%d pages=%lu", kind,
	       f->mode->name, backing_names[f->backing], f->use_uffd ? "true" : "false",
	       f->same ? "true" : "false", f->nr_vcpus, f->nr_pages);
}

/* Per page, the sum of all classes that have the same name here. */
static void fetch_report_locks(struct fetch *f, struct counts *a, struct counts *b)
{
	double pages = f->all_pages;
	int i, j;

	fetch_report_identity("locks", f);
	for (i = 0; i < ARRAY_SIZE(locks); i = j) {
		struct lock_count sum = {};
		char name[64];

		for (j = i; j < ARRAY_SIZE(locks) && !strcmp(locks[i].field, locks[j].field); j++) {
			sum.reads += b->locks[j].reads - a->locks[j].reads;
			sum.writes += b->locks[j].writes - a->locks[j].writes;
			sum.contended += b->locks[j].contended - a->locks[j].contended;
		}
		snprintf(name, sizeof(name), "%s_read", locks[i].field);
		field(name, sum.reads / pages);
		snprintf(name, sizeof(name), "%s_write", locks[i].field);
		field(name, sum.writes / pages);
		snprintf(name, sizeof(name), "%s_contended", locks[i].field);
		field(name, sum.contended / pages);
	}
	printf("\n");
}

struct fetch_result {
	double mean;
	u64 median;
	u64 p99;
};

static void fetch_report(struct fetch *f, struct fetch_result *r, struct counts *a,
			 struct counts *b)
{
	u64 runs = 0, syscalls = 0, strings = 0;
	double pages = f->all_pages;
	int i;

	for (i = 0; i < f->nr_vcpus; i++) {
		runs += f->vcpus[i].nr_runs;
		syscalls += f->vcpus[i].nr_syscalls;
		strings += f->vcpus[i].nr_strings;
	}
	for (i = 0; i < f->nr_servers; i++) {
		syscalls += f->servers[i].nr_syscalls;
		strings += f->servers[i].nr_strings;
	}

	fetch_report_identity("fetch", f);
	field("insns_per_page", r->mean);
	field("median", r->median);
	field("p99", r->p99);
	field("exits_per_page", (runs - f->nr_vcpus) / pages);
	field("syscalls_per_page", (runs - f->nr_vcpus + syscalls) / pages);
	field("string_insns_per_page", strings / pages);
	field("switches_per_page", (b->switches - a->switches) / pages);
	field("userfault_exits_per_page", (b->userfault_exits - a->userfault_exits) / pages);
	field("kvm_exits_per_page", (b->exits - a->exits) / pages);
#ifdef __x86_64__
	field("faults_per_page", (b->faults - a->faults) / pages);
#endif
	printf("\n");
}

static struct fetch_result fetch_result(struct fetch *f, u64 ticks)
{
	u64 i, nr = f->nr_pages * f->nr_vcpus;
	struct fetch_result r;
	u64 *latency;

	latency = malloc(nr * sizeof(*latency));
	TEST_ASSERT(latency, "Out of memory");
	for (i = 0; i < f->nr_vcpus; i++)
		memcpy(latency + i * f->nr_pages, f->vcpus[i].latency,
		       f->nr_pages * sizeof(*latency));
	r.mean = to_insns(ticks) / (double)f->all_pages;
	r.median = to_insns(percentile(latency, nr, 50) - clock_cost);
	r.p99 = to_insns(percentile(latency, nr, 99) - clock_cost);
	free(latency);
	return r;
}

static struct fetch_result bench_fetch(struct fetch *f, bool report)
{
	struct counts before, after;
	struct fetch_result r;
	u64 start, end;
	int i;

	fetch_setup(f);

	pthread_barrier_wait(&f->ready);
	before = count(f);
	start = ticks();
	pthread_barrier_wait(&f->ready);
	for (i = 0; i < f->nr_vcpus; i++)
		pthread_join(f->vcpus[i].thread, NULL);
	end = ticks();
	after = count(f);

	r = fetch_result(f, end - start);
	if (report && has_lock_stat())
		fetch_report_locks(f, &before, &after);
	else if (report)
		fetch_report(f, &r, &before, &after);
	fetch_teardown(f);
	return r;
}

/* Is there such a combination? */
static bool can_fetch(const struct fetch *f)
{
	if (f->mode->prefault && !kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		return false;
	if (is_uffd_mode(f->mode) && !f->use_uffd)
		return false;
	if (f->mode->how == PLAIN && f->use_uffd)
		return false;
	if (f->mode->how == UFFD_MINOR && f->backing != SHMEM)
		return false;
	if (f->use_uffd && f->backing == GUEST_MEMFD)
		return false;
	/* A page has one userfaultfd, and is fetched by one vCPU. */
	if (f->same && ((is_uffd_mode(f->mode) && !f->mode->shared) || f->mode->around > 1))
		return false;
	return true;
}

static void bench_fetches(const char *only, bool reverse, const struct fetch *what)
{
	int i, nr = 2 * ARRAY_SIZE(fetch_modes);

	for (i = 0; i < nr; i++) {
		int n = reverse ? nr - 1 - i : i;
		struct fetch f = *what;

		f.mode = &fetch_modes[n / 2];
		f.use_uffd = n & 1;
		if (can_fetch(&f) && (!only || !strcmp(only, f.mode->name)))
			bench_fetch(&f, true);
	}
}

/*
 * Plain faults.  A difference of single instructions is not to be had from the mean,
 * where timers and lists of free pages show, but from the median: most faults take
 * the very same path.
 */
#define NR_OFF	5

static void bench_off(bool reverse, const struct fetch *what)
{
	bool has_userfault = kvm_has_cap(KVM_CAP_USERFAULT);
	u64 median[2][NR_OFF];
	double mean[2] = {};
	int i, flag;

	for (i = 0; i < 2 * NR_OFF; i++) {
		struct fetch f = *what;
		struct fetch_result r;

		flag = (i & 1) ^ reverse;
		if (flag && !has_userfault)
			continue;

		f.mode = &fetch_modes[0];
		f.flag = flag;
		r = bench_fetch(&f, false);
		median[flag][i / 2] = r.median;
		mean[flag] += r.mean / NR_OFF;
	}

	for (flag = 0; flag <= has_userfault; flag++) {
		printf("off arch=" ARCH " config=%s backing=%s vcpus=%d pages=%lu",
		       !has_userfault ? "n" : flag ? "flag" : "no-flag",
		       backing_names[what->backing], what->nr_vcpus, what->nr_pages);
		field("insns_per_page", percentile(median[flag], NR_OFF, 50));
		field("lowest_median", percentile(median[flag], NR_OFF, 0));
		field("highest_median", percentile(median[flag], NR_OFF, 100));
		field("mean", mean[flag]);
		printf("\n");
	}
}

/*
 * A guest that writes to pages
 */
static u64 touch_first, touch_nr, touch_skip;

static void guest_touch(u64 gva, u64 page_size)
{
	u64 i, first, end, skip;

	for (;;) {
		first = READ_ONCE(touch_first);
		end = first + READ_ONCE(touch_nr);
		skip = READ_ONCE(touch_skip);

		for (i = first; i < end; i++) {
			if (i != skip)
				WRITE_ONCE(*(u64 *)(gva + i * page_size), i);
		}
		GUEST_SYNC(0);
	}
}

/* Have the guest write to @nr pages from @first on, but for @skip, when it runs. */
static void set_touch(struct kvm_vm *vm, u64 first, u64 nr, u64 skip)
{
	touch_first = first;
	touch_nr = nr;
	touch_skip = skip;
	sync_global_to_guest(vm, touch_first);
	sync_global_to_guest(vm, touch_nr);
	sync_global_to_guest(vm, touch_skip);
}

static void run_touch(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
}

/* Memory that the guest maps by large pages if it can, else it has tables for it. */
#ifdef __x86_64__
#define touch_table_pages(nr)	0

static void map_guest(struct kvm_vm *vm, u64 nr)
{
	virt_map_level(vm, BENCH_GPA, BENCH_GPA, nr * psz, PG_LEVEL_2M);
}
#else
#define touch_table_pages(nr)	(nr)

static void map_guest(struct kvm_vm *vm, u64 nr)
{
	virt_map(vm, BENCH_GPA, BENCH_GPA, nr);
}
#endif

/*
 * Clearing and arming
 */
#define NR_SAMPLES	9

/* From before the system call to after it, without what reading the clock costs. */
static u64 time_set(struct kvm_vm *vm, u64 nr_pages, u64 flags)
{
	struct kvm_userfault_range range = {
		.gpa = BENCH_GPA,
		.size = nr_pages * psz,
		.flags = flags,
	};
	u64 start, end;
	int ret;

	start = ticks();
	ret = syscall(__NR_ioctl, vm->fd, KVM_SET_USERFAULT_RANGE, &range);
	end = ticks();

	TEST_ASSERT(!ret && range.changed == nr_pages,
		    "KVM_SET_USERFAULT_RANGE: errno %d, %llu of %lu",
		    ret ? errno : 0, range.changed, nr_pages);
	return to_insns(end - start - clock_cost);
}

/* An ioctl that the VM does not know. */
static u64 time_null(struct kvm_vm *vm)
{
	u64 t[NR_SAMPLES], start;
	int i;

	for (i = 0; i < NR_SAMPLES; i++) {
		start = ticks();
		syscall(__NR_ioctl, vm->fd, _IO(KVMIO, 0xff), 0);
		t[i] = ticks() - start - clock_cost;
	}
	return to_insns(percentile(t, NR_SAMPLES, 50));
}

/* Map it all for the guest, or have it do so. */
static void map_pages(struct kvm_vcpu *vcpu, u64 nr_pages)
{
	struct kvm_pre_fault_memory range = {
		.gpa = BENCH_GPA,
		.size = nr_pages * psz,
	};

	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY)) {
		set_touch(vcpu->vm, 0, nr_pages, -1);
		run_touch(vcpu);
		return;
	}

	while (range.size)
		vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
}

/* @mapped: NULL, or how the memory is mapped when it is armed. */
static void bench_ranges(const char *mapped, enum vm_mem_backing_src_type backing,
			 u64 max_pages)
{
	static const u64 sizes[] = { 1, 16, 64, 512, 4096, 32768, 262144 };
	u64 arm[NR_SAMPLES], clear[NR_SAMPLES], null;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int i, j, nr;

	vm = __vm_create_with_one_vcpu(&vcpu, touch_table_pages(max_pages), guest_touch);
	vm_userspace_mem_region_add(vm, backing, BENCH_GPA, BENCH_SLOT, max_pages,
				    KVM_MEM_USERFAULT);
	if (mapped && !kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY)) {
		map_guest(vm, max_pages);
		vcpu_args_set(vcpu, 2, (u64)BENCH_GPA, psz);
	}
	null = time_null(vm);

	for (i = 0; i < ARRAY_SIZE(sizes) && sizes[i] <= max_pages; i++) {
		/* To map much memory by small pages takes its time. */
		nr = mapped && sizes[i] > 4096 ? 1 : NR_SAMPLES;
		for (j = 0; j < nr; j++) {
			if (mapped)
				map_pages(vcpu, sizes[i]);
			arm[j] = time_set(vm, sizes[i], KVM_USERFAULT_ARM);
			clear[j] = time_set(vm, sizes[i], 0);
		}
		printf("arm arch=" ARCH " pages=%lu mapped=%s", sizes[i], mapped ?: "none");
		field("insns", percentile(arm, nr, 50));
		field("null_ioctl_insns", null);
		if (!mapped) {
			printf("\nclear arch=" ARCH " pages=%lu", sizes[i]);
			field("insns", percentile(clear, nr, 50));
			field("null_ioctl_insns", null);
		}
		printf("\n");
	}

	kvm_vm_free(vm);
}

static void bench_clear(void)
{
	bench_ranges(NULL, VM_MEM_SRC_ANONYMOUS, SZ_1G / psz);
	/* A guest that has to fault on each page takes minutes for more. */
	bench_ranges("4k", VM_MEM_SRC_ANONYMOUS,
		     (kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY) ? SZ_1G : SZ_128M) / psz);
	bench_ranges("2m", VM_MEM_SRC_ANONYMOUS_HUGETLB_2MB, SZ_1G / psz);
}

/*
 * Memory
 */
#define MEMORY_SIZE	(512ul * SZ_1G)

/*
 * What the flag of a large memslot, whose memory nobody touches, has the memory cgroup
 * charged for.  How much memory is free does not tell: what is freed stays with the CPU.
 */
static void bench_memory(void)
{
	u64 before, charged[NR_SAMPLES];
	char root[PATH_MAX], *cgroup;
	struct kvm_vm *vm;
	void *mem;
	int i;

	TEST_ASSERT(!cg_find_unified_root(root, sizeof(root), NULL) &&
		    !cg_write(root, "cgroup.subtree_control", "+memory"),
		    "No memory controller of cgroup2, or not root");
	cgroup = cg_name_indexed(root, "userfault_bench", getpid());
	TEST_ASSERT(!cg_create(cgroup) && !cg_enter_current(cgroup),
		    "Cannot make and enter %s, errno %d", cgroup, errno);

	vm = vm_create_barebones();
	mem = kvm_mmap(MEMORY_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	for (i = 0; i < NR_SAMPLES; i++) {
		vm_set_user_memory_region(vm, BENCH_SLOT, 0, BENCH_GPA, MEMORY_SIZE, mem);
		before = cg_read_long(cgroup, "memory.current");
		vm_set_user_memory_region(vm, BENCH_SLOT, KVM_MEM_USERFAULT, BENCH_GPA,
					  MEMORY_SIZE, mem);
		charged[i] = cg_read_long(cgroup, "memory.current") - before;
	}
	printf("memory arch=" ARCH " gib=%lu", MEMORY_SIZE / SZ_1G);
	field("kib_per_gib", percentile(charged, NR_SAMPLES, 50) / 1024.0 / (MEMORY_SIZE / SZ_1G));
	printf("\n");
	kvm_munmap(mem, MEMORY_SIZE);
	kvm_vm_free(vm);

	TEST_ASSERT(!cg_enter_current(root), "Cannot leave %s, errno %d", cgroup, errno);
	cg_destroy(cgroup);
	free(cgroup);
}

/*
 * Poison
 */
enum poison_method {
	POISON_ARM,
	POISON_HOLE,
	POISON_ATTRIBUTES,
	POISON_MPROTECT,
};

static const char * const poison_names[] = { "arm", "hole", "attributes", "mprotect" };

struct mapped {
	u64 large;
	/* Faults so far on x86; on arm64 all that is mapped, as each fault maps one more. */
	u64 faults;
};

static struct mapped count_mapped(struct kvm_vcpu *vcpu, u64 nr)
{
	struct mapped m;

#ifdef __x86_64__
	m.large = vm_get_stat(vcpu->vm, pages_2m);
	m.faults = vcpu_get_stat(vcpu, pf_taken);
#else
	u64 end = BENCH_GPA + nr * psz;

	m.large = vm_nr_stage2(vcpu->vm, STAGE2_LAST_LEVEL - 1, BENCH_GPA, end, "");
	m.faults = m.large + vm_nr_stage2(vcpu->vm, STAGE2_LAST_LEVEL, BENCH_GPA, end, "");
#endif
	return m;
}

struct touch {
	u64 insns;
	u64 faults;
	/* How many large mappings there are afterwards. */
	u64 large;
};

static struct touch touch(struct kvm_vcpu *vcpu, u64 nr, u64 skip)
{
	struct mapped before, after;
	struct touch t;
	struct ucall uc;

	set_touch(vcpu->vm, 0, nr, skip);
	before = count_mapped(vcpu, nr);
	t.insns = ticks();
	vcpu_run(vcpu);
	t.insns = to_insns(ticks() - t.insns);
	after = count_mapped(vcpu, nr);
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	t.faults = after.faults - before.faults;
	t.large = after.large;
	return t;
}

/* Delete the memslot, and put one below and one above the page. */
static void punch_memslot(struct kvm_vm *vm, void *hva, u64 nr, u64 page)
{
	vm_set_user_memory_region(vm, BENCH_SLOT, 0, BENCH_GPA, 0, 0);
	vm_set_user_memory_region(vm, BENCH_SLOT, 0, BENCH_GPA, page * psz, hva);
	vm_set_user_memory_region(vm, BENCH_SLOT + 1, 0, BENCH_GPA + (page + 1) * psz,
				  (nr - page - 1) * psz, hva + (page + 1) * psz);
}

static const char *exit_name(struct kvm_vcpu *vcpu, int ret)
{
	struct kvm_run *run = vcpu->run;

	if (is_userfault_exit(vcpu, ret))
		return "userfault";
	/* Not the one by which arm64's guest says that it is done. */
	if (!ret && run->exit_reason == KVM_EXIT_MMIO &&
	    run->mmio.phys_addr != vcpu->vm->ucall_mmio_addr)
		return "mmio";
	if (ret && errno == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT)
		return "memory_fault";
	if (ret && errno == EFAULT)
		return "efault";
	return "other";
}

static void bench_poison(enum poison_method method, enum vm_mem_backing_src_type backing,
			 u64 nr)
{
	u64 page = nr / 2 + 77, op, elapsed, restored, restore;
	struct vm_shape shape = VM_SHAPE_DEFAULT;
	const char *seen;
	struct touch control, again;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	void *hva;

#ifdef __x86_64__
	/* Only such a VM has memory attributes.  The memory is shared, and has no guest_memfd. */
	if (method == POISON_ATTRIBUTES)
		shape.type = KVM_X86_SW_PROTECTED_VM;
#endif
	vm = __vm_create_shape_with_one_vcpu(shape, &vcpu, touch_table_pages(nr), guest_touch);
	vm_userspace_mem_region_add(vm, backing, BENCH_GPA, BENCH_SLOT, nr,
				    method == POISON_ARM ? KVM_MEM_USERFAULT : 0);
	map_guest(vm, nr);
	vcpu_args_set(vcpu, 2, (u64)BENCH_GPA, psz);
	hva = addr_gpa2hva(vm, BENCH_GPA);

	touch(vcpu, nr, -1);
	control = touch(vcpu, nr, page);

	/* Let what is pending be done, e.g. with what has been printed. */
	usleep(100000);

	elapsed = ticks();
	op = cpu_ticks();
	switch (method) {
	case POISON_ARM:
		TEST_ASSERT_EQ(__vm_userfault_set(vm, BENCH_GPA + page * psz, psz,
						  KVM_USERFAULT_ARM, NULL), 0);
		break;
	case POISON_HOLE:
		punch_memslot(vm, hva, nr, page);
		break;
	case POISON_ATTRIBUTES:
		vm_set_memory_attributes(vm, BENCH_GPA + page * psz, psz,
					 KVM_MEMORY_ATTRIBUTE_PRIVATE);
		break;
	case POISON_MPROTECT:
		TEST_ASSERT(!mprotect(hva + page * psz, psz, PROT_NONE), "errno %d", errno);
		break;
	}
	op = to_insns(cpu_ticks() - op - cpu_clock_cost);
	elapsed = to_insns(ticks() - elapsed - cpu_clock_cost);

	again = touch(vcpu, nr, page);

	/* The page itself.  Its instruction is not done, and need not be. */
	set_touch(vm, page, 1, -1);
	seen = exit_name(vcpu, _vcpu_run(vcpu));

	if (method == POISON_ARM) {
		restore = ticks();
		TEST_ASSERT_EQ(__vm_userfault_set(vm, BENCH_GPA + page * psz, psz,
						  KVM_USERFAULT_COLLAPSE, NULL), 0);
		restore = to_insns(ticks() - restore - clock_cost);
#ifndef __x86_64__
		/* The block is mapped by the next access, here the one that has exited. */
		run_touch(vcpu);
#endif
		restored = count_mapped(vcpu, nr).large;
	}

	printf("poison arch=" ARCH " backing=%s method=%s pages=%lu exit=%s",
	       backing == VM_MEM_SRC_ANONYMOUS_THP ? "thp" : "hugetlb",
	       poison_names[method], nr, seen);
	field("op_insns", op);
	field("op_elapsed_insns", elapsed);
	field("other_page_faults", again.faults);
	field("retouch_insns", again.insns);
	field("control_insns", control.insns);
	field("control_faults", control.faults);
	field("maps_2m_before", control.large);
	field("maps_2m_after", again.large);
	if (method == POISON_ARM) {
		field("restore_insns", restore);
		field("maps_2m_restored", restored);
	}
	printf("\n");
	kvm_vm_free(vm);
}

static void bench_poisons(u64 nr, bool reverse)
{
	static const struct {
		enum poison_method method;
		enum vm_mem_backing_src_type backing;
	} poisons[] = {
		{ POISON_ARM,		VM_MEM_SRC_ANONYMOUS_HUGETLB_2MB },
		{ POISON_HOLE,		VM_MEM_SRC_ANONYMOUS_HUGETLB_2MB },
		{ POISON_ATTRIBUTES,	VM_MEM_SRC_ANONYMOUS_HUGETLB_2MB },
		{ POISON_ARM,		VM_MEM_SRC_ANONYMOUS_THP },
		{ POISON_HOLE,		VM_MEM_SRC_ANONYMOUS_THP },
		{ POISON_ATTRIBUTES,	VM_MEM_SRC_ANONYMOUS_THP },
		{ POISON_MPROTECT,	VM_MEM_SRC_ANONYMOUS_THP },
	};
	int i, n;

	for (i = 0; i < ARRAY_SIZE(poisons); i++) {
		n = reverse ? ARRAY_SIZE(poisons) - 1 - i : i;
		if (poisons[n].method == POISON_ATTRIBUTES &&
		    !kvm_has_cap(KVM_CAP_MEMORY_ATTRIBUTES))
			continue;
		bench_poison(poisons[n].method, poisons[n].backing, nr);
	}
}

static void help(const char *name)
{
	u64 i;

	printf("usage: %s fetch [-s memory] [-v vcpus] [-n pages] [-S] [-m mode] [-r]\n"
	       "       %s off [-s memory] [-v vcpus] [-n pages] [-r]\n"
	       "       %s clear\n"
	       "       %s memory\n"
	       "       %s poison [-n pages] [-r]\n"
	       " -s: anon (default), shmem, or guest_memfd\n"
	       " -v: number of vCPUs (default: 1)\n"
	       " -n: pages per vCPU (default: 4096), or of the memory that is poisoned\n"
	       "     (default: 1 GiB; HugeTLB pages must be there for it, and for clear)\n"
	       " -S: all vCPUs touch the same pages\n"
	       " -r: in reverse order\n"
	       " -m: only this way to fetch:", name, name, name, name, name);
	for (i = 0; i < ARRAY_SIZE(fetch_modes); i++)
		printf(" %s", fetch_modes[i].name);
	printf("\n");
}

static enum backing parse_backing(const char *name)
{
	int i;

	for (i = 0; i < NR_BACKINGS; i++) {
		if (!strcmp(name, backing_names[i]))
			return i;
	}
	TEST_FAIL("Unknown memory %s", name);
}

int main(int argc, char *argv[])
{
	const char *what = argc > 1 ? argv[1] : "", *only = NULL;
	struct fetch fetch = { .nr_vcpus = 1 };
	u64 nr_pages = 0, i;
	bool reverse = false;
	int opt;

	optind = 2;
	while (argc > 1 && (opt = getopt(argc, argv, "s:v:n:Sm:rh")) != -1) {
		switch (opt) {
		case 's':
			fetch.backing = parse_backing(optarg);
			break;
		case 'v':
			fetch.nr_vcpus = atoi_positive("Number of vCPUs", optarg);
			TEST_ASSERT(fetch.nr_vcpus <= MAX_VCPUS, "At most %d vCPUs", MAX_VCPUS);
			break;
		case 'n':
			nr_pages = atoi_positive("Number of pages", optarg);
			TEST_ASSERT(!(nr_pages % MAX_AROUND), "No multiple of %d", MAX_AROUND);
			break;
		case 'S':
			fetch.same = true;
			break;
		case 'm':
			only = optarg;
			break;
		case 'r':
			reverse = true;
			break;
		default:
			help(argv[0]);
			return opt == 'h' ? 0 : 1;
		}
	}
	fetch.nr_pages = nr_pages ?: 4096;

	source = aligned_alloc(psz, MAX_AROUND * psz);
	TEST_ASSERT(source, "Out of memory");
	for (i = 0; i < MAX_AROUND * psz / sizeof(*source); i++)
		source[i] = MAGIC;

	calibrate();
	printf("clock exact=%s insns_per_tick=%lu\n", clock_is_exact ? "true" : "false",
	       insns_per_tick);

	if (!strcmp(what, "off")) {
		bench_off(reverse, &fetch);
		return 0;
	}

	TEST_REQUIRE_USERFAULT();

	if (!strcmp(what, "fetch"))
		bench_fetches(only, reverse, &fetch);
	else if (!strcmp(what, "clear"))
		bench_clear();
	else if (!strcmp(what, "memory"))
		bench_memory();
	else if (!strcmp(what, "poison"))
		bench_poisons(nr_pages ?: SZ_1G / psz, reverse);
	else
		help(argv[0]);

	return 0;
}
