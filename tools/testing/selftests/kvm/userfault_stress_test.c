// SPDX-License-Identifier: GPL-2.0-only
/*
 * Everything that KVM userfault does, at the same time, at random.
 *
 * vCPUs read, write and execute pages, while threads of the host arm and clear
 * them in any way there is and change all that lies below: memslots, backing,
 * attributes.  Which page is armed and what it holds is known for each page to
 * who holds its lock, and tells what must not happen:
 *
 *  - A page has a generation, which only changes while it is armed.  Once an arm
 *    has returned, the guest is told that the page will be of the next one, and
 *    the page is filled with what is none.  A vCPU that finds anything but the
 *    generation it was told, or a later one, has got through while the page was
 *    armed, or has not seen what was stored before the clear.
 *
 *  - What vCPUs have written into a page must be there when they come back, and
 *    must not change while the page is armed.
 *
 *  - A page has a sequence number: even while it is clear, odd from before an arm
 *    until after the clear.  A guest takes it down before it accesses the page.
 *    If it is even, and still the same after an exit for that access, then the
 *    page was not armed at any time in between.
 *
 *  - Another number is odd from after an arm until before the clear.  If it is odd
 *    before an access, it must have changed by the end of it.
 *
 *  - A page that is private holds what vCPUs have written there, and nothing else
 *    until its memory is discarded.
 *
 *  - Whoever changes pages knows how many there are to change, and what
 *    KVM_GET_USERFAULT_RANGE has to say of them.
 *
 *  - A resolve is applied if nothing has been armed since the exit, and dropped
 *    if anything has.
 *
 * Who needs a lock that is taken does without that page.  Only what changes a
 * whole memslot waits for all of its pages, and kicks vCPUs out of the guest,
 * since one that has a page to resolve keeps it locked until KVM_RUN returns.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <linux/falloc.h>
#include <linux/sizes.h>

#include "kvm_syscalls.h"
#include "kvm_userfault_guest.h"
#include "kvm_userfault_util.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

/* Two memslots, one after the other; the second is deleted at times. */
#define SLOT_A		10
#define SLOT_B		11
#define GPA		SZ_4G

#define MAX_PAGES	2048
#define MAX_VCPUS	8
#define MAX_THREADS	8
#define BITMAP_WORDS	(MAX_PAGES / 64)

/* Every so many accesses, the guest lets its thread have a look around. */
#define SYNC_ACCESSES	1024

/* Where half of all accesses go, and half of what is done to pages. */
#define HOT_PAGES	8

/* A vCPU that has done less than that is waited for. */
#define MIN_ACCESSES	500

/* A page holds its generation, then a word for each vCPU to write, then code. */
#define GEN_WORD	0
#define VCPU_WORD(id)	(1 + (id))
#define CODE_WORD	64

/* In the place of a generation: no vCPU may see it. */
#define POISON		0xdeaddeaddeaddeadull

/* What reads of a memslot that is not there give. */
#define RETRY		~0ull

struct guest_vcpu {
	/* The access being done, and numbers of the page from before it. */
	u64 page;
	u64 access;
	u64 seq;
	u64 converted;
	/* The host could not put a write anywhere. */
	u64 lost;
	u64 nr_accesses;
};

/* Host and guests share this; the host has it at *shared. */
static struct shared {
	u64 seed;
	u64 page_size;
	u64 nr_pages;
	u64 nr_pages_a;
	u64 stop;
	/* Odd while the second memslot is being deleted and created. */
	u64 recreated;
	struct guest_vcpu vcpus[MAX_VCPUS];
	u64 seq[MAX_PAGES];
	/* Odd while the page is armed for sure. */
	u64 armed_seq[MAX_PAGES];
	/* Odd while it is private. */
	u64 converted[MAX_PAGES];
	/* How often what it holds as private memory has been discarded. */
	u64 discarded[MAX_PAGES];
	/* The lowest generation that an access may find. */
	u64 min_gen[MAX_PAGES];
} guest_shared;

/*
 * Of the guest alone, for shared and private memory: what the vCPU's word held when
 * it was last looked at, and the generation then; and the last value it may hold by
 * now, if the page was converted while it was written.
 */
static struct written {
	u64 val;
	u64 max;
	u64 gen;
} guest_written[2][MAX_VCPUS][MAX_PAGES];

/* No value is written twice. */
static u64 guest_last[MAX_VCPUS][MAX_PAGES];

#define load(p)		__atomic_load_n(p, __ATOMIC_SEQ_CST)
#define store(p, val)	__atomic_store_n(p, val, __ATOMIC_SEQ_CST)
#define add(p, val)	__atomic_fetch_add(p, val, __ATOMIC_SEQ_CST)

/* A generation says of which page it is, for huge mappings to the wrong place. */
static u64 generation(u64 page, u64 nr)
{
	return (page + 1) << 32 | nr;
}

static bool is_current(u64 gen, u64 min)
{
	return gen >= min && gen - min < BIT(31);
}

static bool has_code(u64 page, u64 nr_pages_a)
{
	/* There is no executing what is not there: not in the second memslot. */
	return page % 4 == 1 && page < nr_pages_a;
}

static u64 guest_begin(u64 id, u64 page, u64 access)
{
	struct guest_vcpu *me = &guest_shared.vcpus[id];

	store(&me->page, page);
	store(&me->access, access);
	store(&me->seq, load(&guest_shared.seq[page]));
	store(&me->converted, load(&guest_shared.converted[page]));
	return load(&guest_shared.min_gen[page]);
}

/* If so, it is not known what kind of memory was accessed. */
static bool guest_is_converted(u64 id, u64 page)
{
	return load(&guest_shared.converted[page]) != guest_shared.vcpus[id].converted;
}

/* What armed_seq was before an access is what it must not be after it, if odd. */
static void guest_check_armed(u64 page, u64 armed_seq)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	__GUEST_ASSERT(!(armed_seq % 2) || load(&guest_shared.armed_seq[page]) != armed_seq,
		       "Page %lu was accessed, and armed all the time", page);
}

static u64 guest_read(u64 page, u64 *p)
{
	u64 armed_seq = load(&guest_shared.armed_seq[page]);
	u64 val = READ_ONCE(*p);

	guest_check_armed(page, armed_seq);
	return val;
}

static void guest_write(u64 page, u64 *p, u64 val)
{
	u64 armed_seq = load(&guest_shared.armed_seq[page]);

	WRITE_ONCE(*p, val);
	guest_check_armed(page, armed_seq);
}

static u64 guest_exec(u64 page, void *code)
{
	u64 armed_seq = load(&guest_shared.armed_seq[page]);
	u64 val;

#ifdef __aarch64__
	/* Not what was fetched before. */
	isb();
#endif
	val = ((u64 (*)(void))code)();
	guest_check_armed(page, armed_seq);
	return val;
}

static void guest_check(bool good, u64 page, u64 got, u64 wanted)
{
	__GUEST_ASSERT(good, "Page %lu: got 0x%lx, wanted 0x%lx", page, got, wanted);
}

/*
 * An access that finds no memslot is emulated.  If the memslot is there again by
 * the time the emulator accesses it, then armed pages do not stop it.
 */
static bool guest_is_emulated(u64 page, u64 recreated)
{
	return page >= guest_shared.nr_pages_a &&
	       (recreated % 2 || load(&guest_shared.recreated) != recreated);
}

static u64 guest_read_gen(u64 id, u64 page, u64 *mem, u64 min)
{
	u64 recreated = load(&guest_shared.recreated);
	u64 gen = guest_read(page, &mem[GEN_WORD]);

	if (guest_is_converted(id, page) || (gen == POISON && guest_is_emulated(page, recreated)))
		return RETRY;

	/* The host cannot give a generation to private memory. */
	if (guest_shared.vcpus[id].converted % 2) {
		guest_check(!gen, page, gen, 0);
		return load(&guest_shared.discarded[page]);
	}

	guest_check(gen == RETRY || is_current(gen, min), page, gen, min);
	return gen;
}

/* What is in the vCPU's word must be what it wrote there, unless that was discarded. */
static void guest_check_written(struct written *written, u64 page, u64 val, u64 gen)
{
	guest_check((val >= written->val && val <= written->max) || (!val && gen > written->gen),
		    page, val, written->val);
	*written = (struct written) { .val = val, .max = val, .gen = gen };
}

/* False: the memslot was away, or the page was converted; try again. */
static bool guest_access(u64 id, u64 page, u64 access)
{
	u64 *mem = (u64 *)(GPA + page * guest_shared.page_size);
	struct guest_vcpu *me = &guest_shared.vcpus[id];
	u64 *last = &guest_last[id][page];
	u64 min, gen, val, converted;

	if (access == EXEC) {
		min = guest_begin(id, page, EXEC);
		val = guest_exec(page, mem + CODE_WORD);
		guest_check((u16)(val - min) < 0x8000, page, val, min & 0xffff);
		return true;
	}

	/* The generation at a time when the word has been as it is read. */
	min = guest_begin(id, page, READ);
	converted = me->converted;
	gen = guest_read_gen(id, page, mem, min);
	val = guest_read(page, &mem[VCPU_WORD(id)]);
	if (gen == RETRY || val == RETRY || gen != guest_read_gen(id, page, mem, gen))
		return false;

	guest_check_written(&guest_written[converted % 2][id][page], page, val, gen);
	if (access == READ)
		return true;

	store(&me->lost, 0);
	guest_begin(id, page, WRITE);
	if (me->converted != converted)
		return false;
	guest_write(page, &mem[VCPU_WORD(id)], ++*last);
	if (guest_is_converted(id, page)) {
		guest_written[0][id][page].max = *last;
		guest_written[1][id][page].max = *last;
		return false;
	}
	if (load(&me->lost))
		return false;

	guest_written[converted % 2][id][page] = (struct written) {
		.val = *last, .max = *last, .gen = gen,
	};
	return true;
}

static void guest_code(u64 id)
{
	struct guest_random_state rng = new_guest_random_state(guest_shared.seed + id);
	u64 *nr_accesses = &guest_shared.vcpus[id].nr_accesses;
	u64 page, access;

	while (!load(&guest_shared.stop)) {
		page = guest_random_u32(&rng);
		page %= guest_random_bool(&rng) ? HOT_PAGES : guest_shared.nr_pages;
		access = guest_random_bool(&rng) ? READ : WRITE;
		if (has_code(page, guest_shared.nr_pages_a) && guest_random_bool(&rng))
			access = EXEC;

		while (!guest_access(id, page, access))
			;

		store(nr_accesses, *nr_accesses + 1);
		if (!(*nr_accesses % SYNC_ACCESSES))
			GUEST_SYNC(0);
	}

	/* In the end, everything is there. */
	GUEST_SYNC(1);
	for (page = 0; page < guest_shared.nr_pages; page++) {
		guest_access(id, page, WRITE);
		if (has_code(page, guest_shared.nr_pages_a))
			guest_access(id, page, EXEC);
	}
	GUEST_DONE();
}

/* A range of pages, and which of them the caller has locked. */
struct pages {
	u64 first;
	u64 nr;
	u64 locked[BITMAP_WORDS];
};

/* What the holder of a page's lock knows of the page. */
static struct page {
	bool locked;
	bool armed;
	u64 nr_gen;
	/* Written by vCPUs until it was armed. */
	u64 words[MAX_VCPUS];
} pages[MAX_PAGES];

static struct vcpu_thread {
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	struct guest_random_state rng;
	u64 nr_exits, nr_mismatches;

	/* For who waits until the vCPU is out of the guest. */
	bool running;
	u64 nr_runs;

	/* Arms that were through, or had begun, before the last KVM_RUN. */
	u64 nr_armed, nr_arming;

	/* What is being resolved; locked until it is known what came of it. */
	bool resolving, must_drop, must_apply;
	struct pages resolve;
} vcpu_threads[MAX_VCPUS];

static struct kvm_vm *vm;
static struct shared *shared;
static u64 psz, block, nr_pages, nr_pages_a;
static int nr_vcpus = 4, nr_threads = 3;
static bool private, discard_pages, discard_blocks, can_prefault, can_log;
static bool host_stop, threads_stop;
static u64 nr_armed, nr_arming;
static int discard_advice;
static void *hva_a, *hva_b;
static int gmem_a = -1, gmem_b = -1;
static u64 gmem_offset_b;
static u32 flags_a, flags_b;
static pthread_mutex_t slots_mutex = PTHREAD_MUTEX_INITIALIZER;

static u64 rnd(struct guest_random_state *rng, u64 nr)
{
	return guest_random_u32(rng) % nr;
}

static u64 *page_hva(u64 page)
{
	return page < nr_pages_a ? hva_a + page * psz : hva_b + (page - nr_pages_a) * psz;
}

static gpa_t page_gpa(u64 page)
{
	return GPA + page * psz;
}

static bool get_bit(const u64 *bitmap, u64 n)
{
	return bitmap[n / 64] & BIT(n % 64);
}

/* The first one that is locked, from @i on. */
static u64 next_locked(const struct pages *p, u64 i)
{
	while (i < p->nr && !get_bit(p->locked, i))
		i++;
	return i;
}

/*
 * Locks
 */
static bool try_lock(u64 page)
{
	return !__atomic_exchange_n(&pages[page].locked, true, __ATOMIC_ACQUIRE);
}

static void unlock(struct pages *p)
{
	u64 i;

	for (i = next_locked(p, 0); i < p->nr; i = next_locked(p, i + 1))
		__atomic_store_n(&pages[p->first + i].locked, false, __ATOMIC_RELEASE);
}

/* Those of the range that are free and, by this chance, are wanted. */
static bool lock_some(struct guest_random_state *rng, struct pages *p, u64 first, u64 nr,
		      u64 percent)
{
	u64 i, last = 0;

	memset(p, 0, sizeof(*p));
	nr = min(nr, nr_pages - first);
	for (i = 0; i < nr; i++) {
		if (rnd(rng, 100) >= percent || !try_lock(first + i))
			continue;
		/* Begin and end with a page: the memslots of others may be away. */
		if (!p->nr)
			p->first = first + i;
		last = first + i - p->first;
		p->locked[last / 64] |= BIT(last % 64);
		p->nr = last + 1;
	}
	return p->nr;
}

/* As many as can be had in one piece. */
static bool lock_run(struct pages *p, u64 first, u64 nr)
{
	u64 i;

	memset(p, 0, sizeof(*p));
	p->first = first;
	nr = min(nr, nr_pages - first);
	for (i = 0; i < nr && try_lock(first + i); i++)
		p->locked[i / 64] |= BIT(i % 64);
	p->nr = i;
	return i;
}

static bool has_all(const struct pages *p)
{
	u64 i;

	for (i = 0; i < p->nr; i++) {
		if (!get_bit(p->locked, i))
			return false;
	}
	return true;
}

static void kick_vcpus(void)
{
	int i;

	for (i = 0; i < nr_vcpus; i++)
		pthread_kill(vcpu_threads[i].thread, SIGUSR1);
}

static void lock_all(struct pages *p, u64 first, u64 nr)
{
	u64 i;

	memset(p, 0, sizeof(*p));
	p->first = first;
	p->nr = nr;
	for (i = 0; i < nr; i++) {
		while (!try_lock(first + i)) {
			kick_vcpus();
			usleep(100);
		}
		p->locked[i / 64] |= BIT(i % 64);
	}
}

/* Until all vCPUs have left the guest once, if they were in it. */
static void wait_for_vcpus(void)
{
	u64 nr_runs;
	int i;

	for (i = 0; i < nr_vcpus; i++) {
		nr_runs = load(&vcpu_threads[i].nr_runs);
		while (load(&vcpu_threads[i].running) &&
		       load(&vcpu_threads[i].nr_runs) == nr_runs) {
			kick_vcpus();
			usleep(100);
		}
	}
}

/*
 * Pages, all locked
 */
static void put_content(u64 page, u64 content, u64 code)
{
	u64 *mem = page_hva(page);

	mem[GEN_WORD] = content;
	if (has_code(page, nr_pages_a))
		write_code(mem + CODE_WORD, code);
}

/* No longer armed for sure: what follows may clear it, or let the emulator access it. */
static void page_unsure(u64 page)
{
	add(&shared->armed_seq[page], shared->armed_seq[page] % 2);
}

/* An arm has returned: from now on nobody may see what there was. */
static void page_armed(u64 page)
{
	struct page *p = &pages[page];

	p->armed = true;
	store(&shared->min_gen[page], generation(page, p->nr_gen + 1));
	memcpy(p->words, page_hva(page) + VCPU_WORD(0), sizeof(p->words));
	put_content(page, POISON, p->nr_gen - 100);
	store(&shared->armed_seq[page], shared->armed_seq[page] | 1);
}

static void page_fetch(u64 page)
{
	struct page *p = &pages[page];
	u64 *mem = page_hva(page);
	int i;

	TEST_ASSERT(mem[GEN_WORD] == POISON, "Page %lu is armed and holds 0x%lx", page,
		    mem[GEN_WORD]);
	for (i = 0; i < nr_vcpus; i++)
		TEST_ASSERT(mem[VCPU_WORD(i)] == p->words[i],
			    "vCPU %d has written 0x%lx to page %lu, which is armed; it was 0x%lx",
			    i, mem[VCPU_WORD(i)], page, p->words[i]);
	page_unsure(page);
	p->nr_gen++;
	put_content(page, generation(page, p->nr_gen), p->nr_gen);
}

static void page_cleared(u64 page)
{
	pages[page].armed = false;
	add(&shared->seq[page], 1);
}

static u64 set_range(const struct pages *p, u64 flags, bool all)
{
	return vm_userfault_set(vm, page_gpa(p->first), p->nr * psz,
				flags | (all ? 0 : KVM_USERFAULT_BITMAP), all ? NULL : p->locked);
}

static void arm(struct pages *p)
{
	u64 i, changed, wanted = 0;

	for (i = next_locked(p, 0); i < p->nr; i = next_locked(p, i + 1)) {
		if (pages[p->first + i].armed)
			continue;
		add(&shared->seq[p->first + i], 1);
		wanted++;
	}

	add(&nr_arming, 1);
	changed = set_range(p, KVM_USERFAULT_ARM, has_all(p));
	add(&nr_armed, 1);
	TEST_ASSERT(changed == wanted, "Arm: changed %lu of %lu pages", changed, wanted);

	for (i = next_locked(p, 0); i < p->nr; i = next_locked(p, i + 1)) {
		if (!pages[p->first + i].armed)
			page_armed(p->first + i);
	}
}

static void clear(struct pages *p, u64 flags)
{
	u64 i, changed, wanted = 0;

	for (i = next_locked(p, 0); i < p->nr; i = next_locked(p, i + 1)) {
		if (!pages[p->first + i].armed)
			continue;
		page_fetch(p->first + i);
		wanted++;
	}

	changed = set_range(p, flags, has_all(p));
	TEST_ASSERT(changed == wanted, "Clear: changed %lu of %lu pages", changed, wanted);

	for (i = next_locked(p, 0); i < p->nr; i = next_locked(p, i + 1)) {
		if (pages[p->first + i].armed)
			page_cleared(p->first + i);
	}
}

static void check_armed(struct pages *p)
{
	u64 armed[BITMAP_WORDS] = {};
	u64 i;

	vm_userfault_get(vm, page_gpa(p->first), p->nr * psz, armed);
	for (i = next_locked(p, 0); i < p->nr; i = next_locked(p, i + 1))
		TEST_ASSERT(get_bit(armed, i) == pages[p->first + i].armed,
			    "Page %lu is said to be %s", p->first + i,
			    get_bit(armed, i) ? "armed" : "clear");
}

/* All of them are armed. */
static void convert(struct pages *p, bool to_private)
{
	u64 page;

	if (to_private)
		vm_mem_set_private(vm, page_gpa(p->first), p->nr * psz);
	else
		vm_mem_set_shared(vm, page_gpa(p->first), p->nr * psz);

	for (page = p->first; page < p->first + p->nr; page++)
		add(&shared->converted[page], shared->converted[page] % 2 != to_private);
}

/* All of them are armed: let their backing go, and what vCPUs have written there. */
static void discard(struct pages *p)
{
	void *hva = page_hva(p->first);
	u64 i, size = p->nr * psz;

	if (gmem_a < 0 || private)
		TEST_ASSERT(!madvise(hva, size, discard_advice), "madvise(): errno %d", errno);

	/* Of the second memslot, no page is private for vCPUs to see. */
	if (gmem_a >= 0 && (!private || p->first < nr_pages_a)) {
		kvm_fallocate(gmem_a, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      p->first * psz, size);
	}

	for (i = 0; i < p->nr; i++) {
		add(&shared->discarded[p->first + i], 1);
		page_armed(p->first + i);
	}
}

/*
 * Memslots, with slots_mutex held
 */
static void set_slot_a(u32 flags)
{
	flags_a = flags;
	vm_set_user_memory_region2(vm, SLOT_A, flags, GPA, nr_pages_a * psz, hva_a, gmem_a, 0);
}

static void set_slot_b(u32 flags, u64 nr)
{
	vm_set_user_memory_region2(vm, SLOT_B, flags, page_gpa(nr_pages_a), nr * psz, hva_b,
				   gmem_b, gmem_offset_b);
}

static void drop_flag(void)
{
	struct pages p;
	u64 i;

	lock_all(&p, 0, nr_pages_a);
	for (i = next_locked(&p, 0); i < p.nr; i = next_locked(&p, i + 1)) {
		if (pages[i].armed)
			page_fetch(i);
	}
	set_slot_a(flags_a & ~KVM_MEM_USERFAULT);
	for (i = next_locked(&p, 0); i < p.nr; i = next_locked(&p, i + 1)) {
		if (pages[i].armed)
			page_cleared(i);
	}
	check_armed(&p);
	set_slot_a(flags_a | KVM_MEM_USERFAULT);
	check_armed(&p);
	unlock(&p);
}

/* Wait for accesses that are emulated, see guest_is_emulated(). */
static void recreate_slot(void)
{
	struct pages p;
	u64 i;

	lock_all(&p, nr_pages_a, nr_pages - nr_pages_a);
	for (i = next_locked(&p, 0); i < p.nr; i = next_locked(&p, i + 1)) {
		if (pages[p.first + i].armed)
			page_unsure(p.first + i);
		else
			add(&shared->seq[p.first + i], 1);
	}

	add(&shared->recreated, 1);
	add(&nr_arming, 1);
	set_slot_b(flags_b, 0);
	set_slot_b(flags_b | KVM_MEM_USERFAULT_ARMED, p.nr);
	add(&nr_armed, 1);

	wait_for_vcpus();
	add(&shared->recreated, 1);
	for (i = next_locked(&p, 0); i < p.nr; i = next_locked(&p, i + 1)) {
		/* The emulator may have written before, to any of them. */
		page_armed(p.first + i);
	}
	check_armed(&p);
	unlock(&p);
}

/*
 * What the threads of the host do
 */
enum op {
	ARM_FEW,
	ARM_SOME,
	ARM_MANY,
	CLEAR_FEW,
	CLEAR_SOME,
	CLEAR_MANY,
	COLLAPSE,
	GET,
	DISCARD,
	DISCARD_BLOCK,
	CONVERT,
	LEAVE_PRIVATE,
	DIRTY_LOG,
	DROP_FLAG,
	RECREATE,
	COMPACT,
	INVALIDATE,
	NR_OPS,
};

static struct {
	const char *name;
	u32 weight;
	u64 done;
} ops[NR_OPS] = {
	[ARM_FEW]	= { "arm few",		30 },
	[ARM_SOME]	= { "arm by bitmap",	20 },
	[ARM_MANY]	= { "arm many",		10 },
	[CLEAR_FEW]	= { "clear few",	20 },
	[CLEAR_SOME]	= { "clear by bitmap",	20 },
	[CLEAR_MANY]	= { "clear many",	20 },
	[COLLAPSE]	= { "collapse",		5 },
	[GET]		= { "get",		10 },
	[DISCARD]	= { "discard pages",	5 },
	[DISCARD_BLOCK]	= { "discard a block",	1 },
	[CONVERT]	= { "convert",		5 },
	[LEAVE_PRIVATE]	= { "leave private",	10 },
	[DIRTY_LOG]	= { "toggle dirty log",	2 },
	[DROP_FLAG]	= { "drop the flag",	1 },
	[RECREATE]	= { "recreate",		2 },
	[COMPACT]	= { "compact memory",	1 },
	[INVALIDATE]	= { "invalidate",	10 },
};

static enum op pick_op(struct guest_random_state *rng)
{
	u32 i, sum = 0, n;

	for (i = 0; i < NR_OPS; i++)
		sum += ops[i].weight;
	n = rnd(rng, sum);
	for (i = 0; n >= ops[i].weight; i++)
		n -= ops[i].weight;
	return i;
}

static void migrate_pages(void)
{
	int fd = open("/proc/sys/vm/compact_memory", O_WRONLY);

	if (fd < 0)
		return;
	if (write(fd, "1", 1) != 1)
		pr_info("Memory cannot be compacted\n");
	close(fd);
}

/*
 * Let KVM's mappings go, armed or clear, locked or not, and nothing else: for the host's
 * userspace the pages become executable, or no longer.
 */
static void invalidate(struct guest_random_state *rng, u64 first, u64 nr)
{
	u64 end = first < nr_pages_a ? nr_pages_a : nr_pages;
	int prot = PROT_READ | PROT_WRITE | (rnd(rng, 2) ? PROT_EXEC : 0);

	/* Huge pages stay whole. */
	if (discard_blocks) {
		first = round_down(first, block);
		nr = block;
	}
	nr = min(nr, end - first);
	TEST_ASSERT(!mprotect(page_hva(first), nr * psz, prot), "mprotect(): errno %d", errno);
}

static bool do_op(struct guest_random_state *rng, enum op op)
{
	u64 flags = rnd(rng, 3) ? 0 : KVM_USERFAULT_COLLAPSE;
	u64 first = rnd(rng, rnd(rng, 2) ? HOT_PAGES : nr_pages);
	u64 few = 1 + rnd(rng, rnd(rng, 4) ? 8 : 200);
	u64 none[BITMAP_WORDS] = {};
	struct pages p;

	switch (op) {
	case ARM_FEW:
	case CLEAR_FEW:
		if (!lock_run(&p, first, few))
			return false;
		break;
	case ARM_SOME:
	case CLEAR_SOME:
		if (!lock_some(rng, &p, first, few, 50))
			return false;
		break;
	case ARM_MANY:
		/* Without a bitmap, mmu_lock is dropped on the way. */
		if (!lock_run(&p, first, 1 + rnd(rng, nr_pages)))
			return false;
		break;
	case CLEAR_MANY:
	case GET:
		if (!lock_some(rng, &p, first, 1 + rnd(rng, nr_pages), 100))
			return false;
		break;
	case DISCARD:
	case CONVERT:
		if (!lock_run(&p, first, few))
			return false;
		/* All in one memslot: in one mapping of the host's. */
		if (p.first < nr_pages_a && p.first + p.nr > nr_pages_a) {
			unlock(&p);
			return false;
		}
		break;
	case LEAVE_PRIVATE:
		/* Between two pages with code, which has to stay; others may be mapped huge. */
		first = round_down(first, 4) + 2;
		if (first + 3 > block || !lock_run(&p, first, 1 + few % 3))
			return false;
		break;
	case DISCARD_BLOCK:
		first = round_down(first, block);
		if (first + block > nr_pages_a || !lock_run(&p, first, block))
			return false;
		if (p.nr < block) {
			unlock(&p);
			return false;
		}
		break;
	default:
		p.nr = 0;
		break;
	}

	switch (op) {
	case ARM_FEW:
	case ARM_SOME:
	case ARM_MANY:
		arm(&p);
		break;
	case CLEAR_FEW:
	case CLEAR_SOME:
	case CLEAR_MANY:
		clear(&p, flags);
		break;
	case COLLAPSE:
		vm_userfault_set(vm, GPA, nr_pages * psz,
				 KVM_USERFAULT_COLLAPSE | KVM_USERFAULT_BITMAP, none);
		break;
	case GET:
		check_armed(&p);
		break;
	case DISCARD:
	case DISCARD_BLOCK:
		arm(&p);
		discard(&p);
		if (rnd(rng, 2))
			clear(&p, flags);
		break;
	case CONVERT:
		arm(&p);
		convert(&p, true);
		check_armed(&p);
		convert(&p, false);
		check_armed(&p);
		break;
	case LEAVE_PRIVATE:
		arm(&p);
		convert(&p, rnd(rng, 4));
		check_armed(&p);
		break;
	case DIRTY_LOG:
		pthread_mutex_lock(&slots_mutex);
		set_slot_a(flags_a ^ KVM_MEM_LOG_DIRTY_PAGES);
		pthread_mutex_unlock(&slots_mutex);
		break;
	case DROP_FLAG:
		pthread_mutex_lock(&slots_mutex);
		drop_flag();
		pthread_mutex_unlock(&slots_mutex);
		break;
	case RECREATE:
		pthread_mutex_lock(&slots_mutex);
		recreate_slot();
		pthread_mutex_unlock(&slots_mutex);
		break;
	case COMPACT:
		migrate_pages();
		break;
	case INVALIDATE:
		invalidate(rng, first, few);
		break;
	default:
		break;
	}

	if (p.nr)
		unlock(&p);
	return true;
}

struct thread {
	pthread_t thread;
	struct guest_random_state rng;
};

static void *run_thread(void *arg)
{
	struct thread *t = arg;
	enum op op;

	while (!load(&threads_stop)) {
		op = pick_op(&t->rng);
		if (do_op(&t->rng, op))
			add(&ops[op].done, 1);
		sched_yield();
	}
	return NULL;
}

/*
 * vCPUs
 */
static void begin_resolve(struct vcpu_thread *t, struct pages *p, bool must_drop)
{
	t->resolving = true;
	t->must_drop = must_drop;
	/* No arm has been under way since before the exit. */
	t->must_apply = !must_drop && t->nr_armed == t->nr_arming;
	t->resolve = *p;
	vcpu_userfault_resolve(t->vcpu, page_gpa(p->first), p->nr * psz);
}

static void end_resolve(struct vcpu_thread *t)
{
	struct pages *p = &t->resolve;
	u64 armed[BITMAP_WORDS] = {};
	bool dropped;
	u64 i;

	vm_userfault_get(vm, page_gpa(p->first), p->nr * psz, armed);
	dropped = get_bit(armed, 0);

	TEST_ASSERT(!t->must_drop || dropped,
		    "A resolve of page %lu was not dropped by an arm", p->first);
	TEST_ASSERT(!t->must_apply || !dropped || load(&nr_arming) != t->nr_arming,
		    "A resolve of page %lu was dropped without reason", p->first);

	for (i = next_locked(p, 0); i < p->nr; i = next_locked(p, i + 1)) {
		TEST_ASSERT_EQ(get_bit(armed, i), dropped);
		if (!dropped)
			page_cleared(p->first + i);
		else if (!t->must_drop)
			page_armed(p->first + i);
	}

	t->resolving = false;
	unlock(p);
}

static u64 check_exit(struct vcpu_thread *t, gpa_t gpa)
{
	struct guest_vcpu *guest = &shared->vcpus[t->vcpu->id];
	u64 page = (gpa - GPA) / psz;
	u64 seq = guest->seq;

	TEST_ASSERT(page == guest->page, "vCPU %d exits for page %ld, it accesses page %lu",
		    t->vcpu->id, page, guest->page);
	TEST_ASSERT(!load(&host_stop) && (seq % 2 || load(&shared->seq[page]) != seq),
		    "vCPU %d exits for page %ld, which is not armed", t->vcpu->id, page);
	return page;
}

static void handle_userfault(struct vcpu_thread *t)
{
	struct guest_vcpu *guest = &shared->vcpus[t->vcpu->id];
	struct kvm_run *run = t->vcpu->run;
	u64 flags = run->memory_fault.flags;
	bool is_private = flags & KVM_MEMORY_EXIT_FLAG_PRIVATE;
	u64 page = check_exit(t, run->memory_fault.gpa);
	struct pages p;
	u64 i, how;

	if (private)
		flags &= ~KVM_MEMORY_EXIT_FLAG_PRIVATE;
	TEST_ASSERT(flags == (KVM_MEMORY_EXIT_FLAG_USERFAULT | guest->access) &&
		    run->memory_fault.size == psz,
		    "Unexpected exit, flags 0x%llx size 0x%llx", run->memory_fault.flags,
		    run->memory_fault.size);
	t->nr_exits++;

	/* The vCPU tries again: that access begins now. */
	guest->seq = load(&shared->seq[page]);

	/* At times somebody else has to clear it. */
	how = rnd(&t->rng, 10);
	if (!how || !lock_run(&p, page, how < 9 ? 1 + rnd(&t->rng, 64) : 1)) {
		sched_yield();
		return;
	}

	/* Nobody converts it now, nor has since before the access. */
	if (load(&shared->converted[page]) == guest->converted)
		TEST_ASSERT(is_private == guest->converted % 2,
			    "vCPU %d exits for page %lu, which is %s", t->vcpu->id, page,
			    is_private ? "shared" : "private");

	/* The pages up to the first that is not armed. */
	for (i = 0; i < p.nr && pages[page + i].armed; i++)
		;

	if (!i || how < 6) {
		if (i)
			clear(&p, 0);
		unlock(&p);
	} else if (how < 9) {
		struct pages rest = { .first = page + i };

		for (; i < p.nr; i++) {
			rest.locked[rest.nr / 64] |= BIT(rest.nr % 64);
			rest.nr++;
			p.locked[i / 64] &= ~BIT(i % 64);
		}
		p.nr -= rest.nr;
		unlock(&rest);
		for (i = 0; i < p.nr; i++)
			page_fetch(page + i);
		begin_resolve(t, &p, false);
	} else {
		/* Armed once more, like poison, since the exit: it has to stay so. */
		arm(&p);
		begin_resolve(t, &p, true);
	}
}

/*
 * KVM looks twice whether a page is private, and exits for memory that is neither when a
 * conversion comes in between.  Pages are armed while they are being converted.
 */
static bool is_mismatch(struct kvm_run *run, int r, int err)
{
	return private && r && err == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
	       !(run->memory_fault.flags & ~KVM_MEMORY_EXIT_FLAG_PRIVATE);
}

static void handle_mismatch(struct vcpu_thread *t)
{
	u64 page = check_exit(t, t->vcpu->run->memory_fault.gpa);

	t->nr_mismatches++;
	shared->vcpus[t->vcpu->id].seq = load(&shared->seq[page]);
}

/* There is no memslot: no memory to read, and nowhere to write to. */
static void handle_mmio(struct vcpu_thread *t)
{
	struct kvm_run *run = t->vcpu->run;

	TEST_ASSERT(check_exit(t, round_down(run->mmio.phys_addr, psz)) >= nr_pages_a &&
		    run->mmio.len == sizeof(u64), "Unexpected MMIO");
	if (run->mmio.is_write)
		store(&shared->vcpus[t->vcpu->id].lost, 1);
	else
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
}

static void prefault(struct vcpu_thread *t)
{
	struct kvm_run *run = t->vcpu->run;
	typeof(run->memory_fault) before = run->memory_fault;
	u32 exit_reason = run->exit_reason;
	struct kvm_pre_fault_memory range = {
		.gpa = page_gpa(rnd(&t->rng, nr_pages)),
	};

	/* Up to the end, at most: no memory is another error. */
	range.size = page_gpa(nr_pages) - range.gpa;
	range.size = min_t(u64, range.size, psz << rnd(&t->rng, 8));
	if (__vcpu_ioctl(t->vcpu, KVM_PRE_FAULT_MEMORY, &range))
		TEST_ASSERT(errno == EFAULT || errno == EINTR || errno == EAGAIN ||
			    errno == ENOENT, "KVM_PRE_FAULT_MEMORY: errno %d", errno);
	TEST_ASSERT(run->exit_reason == exit_reason &&
		    !memcmp(&before, &run->memory_fault, sizeof(before)),
		    "KVM_PRE_FAULT_MEMORY has changed kvm_run");
}

static bool is_mmio(struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_MMIO && run->mmio.phys_addr >= GPA &&
	       run->mmio.phys_addr < page_gpa(nr_pages);
}

static void *run_vcpu(void *arg)
{
	struct vcpu_thread *t = arg;
	struct kvm_run *run = t->vcpu->run;
	struct ucall uc;
	int r, err;

	for (;;) {
		if (can_prefault && !rnd(&t->rng, 16))
			prefault(t);

		if (!t->resolving) {
			t->nr_armed = load(&nr_armed);
			t->nr_arming = load(&nr_arming);
		}
		store(&t->running, true);
		r = __vcpu_run(t->vcpu);
		err = errno;
		store(&t->running, false);
		add(&t->nr_runs, 1);

		if (t->resolving)
			end_resolve(t);
		errno = err;
		if (is_userfault_exit(t->vcpu, r)) {
			handle_userfault(t);
			continue;
		}
		if (r && err == EINTR)
			continue;
		if (is_mismatch(run, r, err)) {
			handle_mismatch(t);
			continue;
		}
		TEST_ASSERT(!r, "KVM_RUN: errno %d exit reason %u (%s)", err, run->exit_reason,
			    exit_reason_str(run->exit_reason));
		if (is_mmio(run)) {
			handle_mmio(t);
			continue;
		}

		switch (get_ucall(t->vcpu, &uc)) {
		case UCALL_SYNC:
			if (uc.args[1])
				return NULL;
			break;
		case UCALL_DONE:
			return NULL;
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
			break;
		default:
			vcpu_dump(stderr, t->vcpu, 2);
			TEST_FAIL("Unexpected exit reason %u (%s)", run->exit_reason,
				  exit_reason_str(run->exit_reason));
		}
	}
}

static void start_vcpus(void)
{
	int i;

	for (i = 0; i < nr_vcpus; i++)
		TEST_ASSERT(!pthread_create(&vcpu_threads[i].thread, NULL, run_vcpu,
					    &vcpu_threads[i]), "pthread_create() failed");
}

static void join_vcpus(void)
{
	int i;

	for (i = 0; i < nr_vcpus; i++)
		pthread_join(vcpu_threads[i].thread, NULL);
}

/* Nothing fails because it is slow; but if it hangs, this is to say where. */
static void report_stuck(int id, int seconds)
{
	struct guest_vcpu *guest = &shared->vcpus[id];
	u64 page = guest->page;

	printf("vCPU %d has been at page %lu for %d s: access %lu seq %lu/%lu, %s%s, KVM says %s",
	       id, page, seconds, guest->access, guest->seq, shared->seq[page],
	       pages[page].armed ? "armed" : "clear", pages[page].locked ? ", locked" : "",
	       vm_userfault_is_armed(vm, page_gpa(page)) ? "armed" : "clear");
	printf(", %lu exits, %lu runs, %s KVM_RUN\n", vcpu_threads[id].nr_exits,
	       vcpu_threads[id].nr_runs, vcpu_threads[id].running ? "in" : "not in");
	fflush(stdout);
}

/* vCPUs get signals, and so do the threads, whose calls go on where they were. */
static void send_signal(const struct thread *threads, int i)
{
	i %= nr_vcpus + nr_threads;
	pthread_kill(i < nr_vcpus ? vcpu_threads[i].thread : threads[i - nr_vcpus].thread,
		     SIGUSR1);
}

static void wait_seconds(const struct thread *threads, int seconds)
{
	u64 old[MAX_VCPUS] = {}, now;
	int stuck[MAX_VCPUS] = {};
	struct timespec start;
	bool done = false;
	int i, tick;

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (timespec_elapsed(start).tv_sec < seconds || !done) {
		/* Signals, all the time, for a second. */
		for (tick = 0; tick < 50; tick++) {
			usleep(20000);
			send_signal(threads, tick);
		}

		done = true;
		for (i = 0; i < nr_vcpus; i++) {
			now = load(&shared->vcpus[i].nr_accesses);
			done &= now >= MIN_ACCESSES;
			stuck[i] = now == old[i] ? stuck[i] + 1 : 0;
			old[i] = now;
			if (stuck[i] && !(stuck[i] % 20))
				report_stuck(i, stuck[i]);
		}
	}
}

static void ignore_signal(int sig)
{
}

static void add_memory(const char *backing)
{
	u32 flags = KVM_MEM_USERFAULT | (private ? KVM_MEM_GUEST_MEMFD : 0);
	enum vm_mem_backing_src_type src;
	u64 size, size_a;
	bool huge;

	if (!strcmp(backing, "guest_memfd")) {
		nr_pages_a = 2 * block + 37;
		nr_pages = nr_pages_a + 100;
		size = nr_pages * psz;
		size_a = nr_pages_a * psz;

		flags |= KVM_MEM_GUEST_MEMFD;
		gmem_a = vm_create_guest_memfd(vm, size, GUEST_MEMFD_FLAG_MMAP |
					       GUEST_MEMFD_FLAG_INIT_SHARED);
		gmem_b = gmem_a;
		gmem_offset_b = size_a;
		hva_a = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, gmem_a);
		hva_b = hva_a + size_a;
		set_slot_a(flags);
		set_slot_b(flags, nr_pages - nr_pages_a);
		discard_pages = true;
	} else {
		src = parse_backing_src_type(backing);
		huge = get_backing_src_pagesz(src) > psz;
		__TEST_REQUIRE(get_backing_src_pagesz(src) <= block * psz,
			       "Huge pages of %lu bytes are too many small ones",
			       get_backing_src_pagesz(src));
		nr_pages_a = 2 * block + (huge ? 0 : 37);
		nr_pages = nr_pages_a + (huge ? block : 100);
		size = nr_pages * psz;
		size_a = nr_pages_a * psz;

		vm_mem_add(vm, src, GPA, SLOT_A, size_a / vm->page_size, flags, -1, 0);
		vm_mem_add(vm, src, page_gpa(nr_pages_a), SLOT_B, (size - size_a) / vm->page_size,
			   flags, -1, 0);
		hva_a = addr_gpa2hva(vm, GPA);
		hva_b = addr_gpa2hva(vm, page_gpa(nr_pages_a));
		if (private) {
			gmem_a = memslot2region(vm, SLOT_A)->region.guest_memfd;
			gmem_b = memslot2region(vm, SLOT_B)->region.guest_memfd;
		}
		discard_advice = backing_src_is_shared(src) ? MADV_REMOVE : MADV_DONTNEED;
		discard_pages = !huge;
		discard_blocks = huge;
		can_log = !private;
	}
	flags_a = flags;
	flags_b = flags;

	TEST_ASSERT(nr_pages <= MAX_PAGES, "Too many pages");
	virt_map(vm, GPA, GPA, size / vm->page_size);
}

static void help(const char *name)
{
	printf("usage: %s [-b backing] [-p] [-r seed] [-s seconds] [-t threads] [-v vCPUs]\n"
	       " -p: a VM with private memory, x86 only\n"
	       " -b: guest_memfd, or", name);
	backing_src_help("-b");
	exit(KSFT_FAIL);
}

int main(int argc, char *argv[])
{
	struct sigaction action = { .sa_handler = ignore_signal };
	struct kvm_pre_fault_memory range = { .gpa = GPA };
	struct vm_shape shape = VM_SHAPE_DEFAULT;
	struct kvm_vcpu *vcpus[MAX_VCPUS];
	const char *backing = "anonymous";
	struct thread threads[MAX_THREADS];
	u64 nr_accesses = 0, nr_exits = 0, nr_mismatches = 0;
	u32 seed = time(NULL) ^ getpid() << 16;
	struct pages all;
	int opt, i, seconds = 10;

	while ((opt = getopt(argc, argv, "b:hpr:s:t:v:")) != -1) {
		switch (opt) {
		case 'b':
			backing = optarg;
			break;
		case 'p':
			private = true;
			break;
		case 'r':
			seed = strtoul(optarg, NULL, 0);
			break;
		case 's':
			seconds = atoi_positive("Seconds", optarg);
			break;
		case 't':
			nr_threads = atoi_positive("Threads", optarg);
			break;
		case 'v':
			nr_vcpus = atoi_positive("vCPUs", optarg);
			break;
		default:
			help(argv[0]);
		}
	}
	TEST_ASSERT(nr_vcpus <= MAX_VCPUS && nr_threads <= MAX_THREADS, "Too many");
	TEST_REQUIRE_USERFAULT();

#ifdef __x86_64__
	if (private) {
		TEST_REQUIRE(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM));
		shape.type = KVM_X86_SW_PROTECTED_VM;
	}
#endif

	printf("Seed 0x%x: -b %s%s -s %d -t %d -v %d -r 0x%x\n", seed, backing,
	       private ? " -p" : "", seconds, nr_threads, nr_vcpus, seed);
	fflush(stdout);
	sigaction(SIGUSR1, &action, NULL);

	/* With room for the guest's record of what it has written. */
	vm = __vm_create_with_vcpus(shape, nr_vcpus, SZ_128K, guest_code, vcpus);
	psz = max_t(u64, vm->page_size, getpagesize());
	block = SZ_2M / psz;
	shared = addr_gva2hva(vm, (gva_t)&guest_shared);
	add_memory(backing);

	shared->seed = seed;
	shared->page_size = psz;
	shared->nr_pages = nr_pages;
	shared->nr_pages_a = nr_pages_a;
	for (i = 0; i < nr_pages; i++) {
		put_content(i, generation(i, 0), 0);
		shared->min_gen[i] = generation(i, 0);
	}

	/* Not below shadow paging, which cannot do it, and not on arm64. */
	range.size = psz;
	can_prefault = kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY) &&
		       !__vcpu_ioctl(vcpus[0], KVM_PRE_FAULT_MEMORY, &range);

	if (!discard_pages)
		ops[DISCARD].weight = 0;
	if (!discard_blocks)
		ops[DISCARD_BLOCK].weight = 0;
	if (!private) {
		ops[CONVERT].weight = 0;
		ops[LEAVE_PRIVATE].weight = 0;
	}
	if (!can_log)
		ops[DIRTY_LOG].weight = 0;
	/* KVM has guest_memfd's pages from the file. */
	if (gmem_a >= 0 && !private)
		ops[INVALIDATE].weight = 0;

	for (i = 0; i < nr_vcpus; i++) {
		vcpu_args_set(vcpus[i], 1, (u64)i);
		vcpu_threads[i].vcpu = vcpus[i];
		vcpu_threads[i].rng = new_guest_random_state(seed + 100 + i);
	}
	start_vcpus();

	for (i = 0; i < nr_threads; i++) {
		threads[i].rng = new_guest_random_state(seed + 200 + i);
		TEST_ASSERT(!pthread_create(&threads[i].thread, NULL, run_thread, &threads[i]),
			    "pthread_create() failed");
	}

	wait_seconds(threads, seconds);

	store(&threads_stop, true);
	for (i = 0; i < nr_threads; i++)
		pthread_join(threads[i].thread, NULL);
	store(&shared->stop, 1);
	join_vcpus();

	/* All is there, all vCPUs see all of it, and none exits. */
	lock_all(&all, 0, nr_pages);
	check_armed(&all);
	clear(&all, KVM_USERFAULT_COLLAPSE);
	check_armed(&all);
	for (i = 0; i < nr_pages; i++)
		TEST_ASSERT(page_hva(i)[GEN_WORD] == generation(i, pages[i].nr_gen),
			    "Page %d holds 0x%lx", i, page_hva(i)[GEN_WORD]);
	store(&host_stop, true);
	start_vcpus();
	join_vcpus();

	for (i = 0; i < nr_vcpus; i++) {
		nr_accesses += shared->vcpus[i].nr_accesses;
		nr_exits += vcpu_threads[i].nr_exits;
		nr_mismatches += vcpu_threads[i].nr_mismatches;
		TEST_ASSERT_EQ(vcpu_get_stat(vcpus[i], userfault_exits), vcpu_threads[i].nr_exits);
	}
	printf("%lu accesses, %lu exits", nr_accesses, nr_exits);
	if (private)
		printf(", %lu in the middle of a conversion", nr_mismatches);
	for (i = 0; i < NR_OPS; i++)
		printf(", %s: %lu", ops[i].name, ops[i].done);
	printf("\n");

	kvm_vm_free(vm);
	return 0;
}
