// SPDX-License-Identifier: GPL-2.0-only
/*
 * A guest whose memory is not there, and is fetched page by page on demand.
 *
 * The memslot is created with all of its pages armed, as the target of a
 * post-copy migration would do it.  vCPUs read all of the memory; each page that
 * one of them touches makes it exit, and its thread fetches the page (makes it
 * up from the page's number, a stand-in for a source of pages), clears it and
 * goes on.  In the end the guest must have seen exactly the right content, and
 * no page may have been fetched twice or have caused an exit once it was there.
 *
 * Then a single page is armed again, as for a page lost to a memory error, and
 * the guest reads everything once more: it must exit there and nowhere else.
 *
 * The times are those of this machine, which for a guest of an emulated CPU say
 * nothing about real ones; there is no network and no contention worth the name.
 */
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <linux/sizes.h>

#include "kvm_userfault_util.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#define DEMO_SLOT	1
#define DEMO_GPA	SZ_4G
#define STUCK_SECONDS	60
#define MAX_REPORTED	10

/* What the VMM knows of a page; only ever goes up, but for re-arming. */
enum page_state {
	PAGE_ABSENT,
	PAGE_FETCHING,
	PAGE_PRESENT,
};

struct vcpu_thread {
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	bool *exited_for;
	u64 exits;
	u64 fetched;
	u64 fetch_ns;
	u64 clear_ns;
	u64 checksum;
	bool done;
};

static struct kvm_vm *vm;
static u64 page_size, nr_pages;
static enum page_state *states;
static u64 *content_version;
static struct vcpu_thread threads[KVM_MAX_VCPUS];
static int nr_vcpus = 2;
static u64 nr_fetched;
static int nr_problems;
static struct timespec started;

static void say(const char *fmt, ...) __printf(1, 2);
static void say(const char *fmt, ...)
{
	va_list args;

	printf("[%7.2fs] ", timespec_to_ns(timespec_elapsed(started)) / 1e9);
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
}

static void problem(const char *fmt, ...) __printf(1, 2);
static void problem(const char *fmt, ...)
{
	int n = __atomic_fetch_add(&nr_problems, 1, __ATOMIC_RELAXED);
	char text[200];
	va_list args;

	if (n >= MAX_REPORTED)
		return;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	say("PROBLEM: %s%s", text, n == MAX_REPORTED - 1 ? " (more are only counted)" : "");
}

/* Word @i of page @page.  The version tells a replaced page from the first one. */
static u64 content(u64 page, u64 version, u64 i)
{
	u64 x = (page << 24) + (version << 16) + i + 1;

	x *= 0x9e3779b97f4a7c15ull;
	return x ^ (x >> 29);
}

static u64 fold(u64 sum, u64 word)
{
	return ((sum << 7) | (sum >> 57)) ^ word;
}

/* Read everything, beginning at page @first, then report what was there. */
static void guest_code(u64 first, u64 nr, u64 size)
{
	u64 page, i, n;

	for (;;) {
		u64 checksum = 0;

		for (n = 0; n < nr; n++) {
			u64 *words, sum = 0;

			page = (first + n) % nr;
			words = (u64 *)(DEMO_GPA + page * size);
			for (i = 0; i < size / sizeof(u64); i++)
				sum = fold(sum, READ_ONCE(words[i]));
			checksum += sum;
		}
		GUEST_SYNC1(checksum);
	}
}

static u64 expected_checksum(void)
{
	u64 page, i, checksum = 0;

	for (page = 0; page < nr_pages; page++) {
		u64 sum = 0;

		for (i = 0; i < page_size / sizeof(u64); i++)
			sum = fold(sum, content(page, content_version[page], i));
		checksum += sum;
	}

	return checksum;
}

static u64 now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return timespec_to_ns(now);
}

static void fetch_page(struct vcpu_thread *t, u64 page)
{
	gpa_t gpa = DEMO_GPA + page * page_size;
	u64 *hva = addr_gpa2hva(vm, gpa);
	u64 i, changed, start, fetched;

	start = now_ns();
	for (i = 0; i < page_size / sizeof(u64); i++)
		hva[i] = content(page, content_version[page], i);
	fetched = now_ns();

	changed = vm_userfault_clear(vm, gpa, page_size);
	if (changed != 1)
		problem("clearing page %lu changed %lu pages, not 1", page, changed);

	t->fetch_ns += fetched - start;
	t->clear_ns += now_ns() - fetched;
	t->fetched++;
	__atomic_fetch_add(&nr_fetched, 1, __ATOMIC_RELAXED);
}

static void handle_exit(struct vcpu_thread *t)
{
	const u64 want_flags = KVM_MEMORY_EXIT_FLAG_USERFAULT | KVM_MEMORY_EXIT_FLAG_READ;
	struct kvm_run *run = t->vcpu->run;
	u64 page = (run->memory_fault.gpa - DEMO_GPA) / page_size;
	enum page_state absent = PAGE_ABSENT;

	t->exits++;

	if (run->memory_fault.flags != want_flags ||
	    run->memory_fault.gpa % page_size || run->memory_fault.size != page_size)
		problem("an exit is odd: flags %#llx gpa %#llx size %#llx",
			run->memory_fault.flags, run->memory_fault.gpa, run->memory_fault.size);
	if (page >= nr_pages) {
		problem("an exit for gpa %#llx, where nothing is armed", run->memory_fault.gpa);
		exit(1);
	}

	/* A vCPU goes on only when the page is there, so it exits for it once. */
	if (t->exited_for[page])
		problem("a second exit of vCPU %u for page %lu, which is there",
			t->vcpu->id, page);
	t->exited_for[page] = true;

	/* The other vCPUs may want the page as well: the first to come fetches. */
	if (__atomic_compare_exchange_n(&states[page], &absent, PAGE_FETCHING, false,
					__ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE)) {
		fetch_page(t, page);
		__atomic_store_n(&states[page], PAGE_PRESENT, __ATOMIC_RELEASE);
		return;
	}

	while (__atomic_load_n(&states[page], __ATOMIC_ACQUIRE) != PAGE_PRESENT)
		sched_yield();
}

static void *run_vcpu(void *arg)
{
	struct vcpu_thread *t = arg;
	struct ucall uc;
	int ret;

	while ((ret = _vcpu_run(t->vcpu)) && is_userfault_exit(t->vcpu, ret))
		handle_exit(t);

	if (ret)
		problem("KVM_RUN of vCPU %u failed: %s, exit reason %s", t->vcpu->id,
			strerror(errno), exit_reason_str(t->vcpu->run->exit_reason));
	else if (get_ucall(t->vcpu, &uc) == UCALL_SYNC)
		t->checksum = uc.args[0];
	else
		problem("vCPU %u stopped with exit reason %s", t->vcpu->id,
			exit_reason_str(t->vcpu->run->exit_reason));

	__atomic_store_n(&t->done, true, __ATOMIC_RELEASE);
	return NULL;
}

static bool all_done(int nr)
{
	int i;

	for (i = 0; i < nr; i++) {
		if (!__atomic_load_n(&threads[i].done, __ATOMIC_ACQUIRE))
			return false;
	}

	return true;
}

/* Let the first @nr vCPUs read all memory once, and say how far they are. */
static void read_all(int nr)
{
	u64 fetched, last = nr_fetched, shown = last * 10 / nr_pages;
	u64 last_change = now_ns();
	int i;

	for (i = 0; i < nr; i++) {
		threads[i].done = false;
		pthread_create(&threads[i].thread, NULL, run_vcpu, &threads[i]);
	}

	while (!all_done(nr)) {
		usleep(10000);
		fetched = __atomic_load_n(&nr_fetched, __ATOMIC_RELAXED);

		if (fetched != last) {
			last = fetched;
			last_change = now_ns();
		} else if (now_ns() - last_change > STUCK_SECONDS * NSEC_PER_SEC) {
			problem("nothing has happened for %d seconds", STUCK_SECONDS);
			exit(1);
		}

		if (fetched * 10 / nr_pages > shown) {
			shown = fetched * 10 / nr_pages;
			say("  %3lu%%  %7lu of %lu pages",
			    shown * 10, fetched, nr_pages);
		}
	}

	for (i = 0; i < nr; i++)
		pthread_join(threads[i].thread, NULL);
}

static void check_checksums(int nr)
{
	u64 want = expected_checksum();
	int i;

	for (i = 0; i < nr; i++) {
		if (threads[i].checksum != want)
			problem("vCPU %d has read checksum %#lx, wanted %#lx", i,
				threads[i].checksum, want);
	}
	if (!nr_problems)
		say("The guest's checksum is right: %#lx", want);
}

static u64 nr_armed(void)
{
	u64 *bitmap = calloc(DIV_ROUND_UP(nr_pages, 64), sizeof(u64));
	u64 i, armed = 0;

	TEST_ASSERT(bitmap, "Out of memory");
	vm_userfault_get(vm, DEMO_GPA, nr_pages * page_size, bitmap);
	for (i = 0; i < DIV_ROUND_UP(nr_pages, 64); i++)
		armed += __builtin_popcountll(bitmap[i]);
	free(bitmap);

	return armed;
}

/* What the vCPUs have counted, and what KVM has. */
static u64 count_exits(void)
{
	u64 seen = 0, counted = 0;
	int i;

	for (i = 0; i < nr_vcpus; i++) {
		seen += threads[i].exits;
		counted += vcpu_get_stat(threads[i].vcpu, userfault_exits);
	}
	if (seen != counted)
		problem("%lu exits were seen, KVM's userfault_exits say %lu",
			seen, counted);

	return seen;
}

static void create_vm(void)
{
	struct kvm_vcpu *vcpus[KVM_MAX_VCPUS];
	u64 guest_pages;
	int i;

	guest_pages = nr_pages * page_size / vm_guest_mode_params[VM_MODE_DEFAULT].page_size;
	vm = __vm_create_with_vcpus(VM_SHAPE_DEFAULT, nr_vcpus, guest_pages, guest_code, vcpus);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, DEMO_GPA, DEMO_SLOT, guest_pages,
				    KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED);
	virt_map(vm, DEMO_GPA, DEMO_GPA, guest_pages);

	states = calloc(nr_pages, sizeof(*states));
	content_version = calloc(nr_pages, sizeof(*content_version));
	TEST_ASSERT(states && content_version, "Out of memory");

	for (i = 0; i < nr_vcpus; i++) {
		threads[i].vcpu = vcpus[i];
		threads[i].exited_for = calloc(nr_pages, sizeof(bool));
		TEST_ASSERT(threads[i].exited_for, "Out of memory");
		vcpu_args_set(vcpus[i], 3, nr_pages * i / nr_vcpus, nr_pages, page_size);
	}

	say("VM created, %d vCPUs; memory slot: all %lu pages armed, none there",
	    nr_vcpus, nr_armed());
	if (nr_armed() != nr_pages)
		problem("not every page is armed");
}

static void fetch_everything(void)
{
	u64 exits, fetch_ns = 0, clear_ns = 0, start = now_ns(), took;
	int i;

	say("vCPUs start: each page that they touch is fetched on demand");
	read_all(nr_vcpus);
	took = now_ns() - start;
	say("vCPUs have read all memory");

	exits = count_exits();
	if (nr_fetched != nr_pages)
		problem("%lu pages were fetched, not %lu", nr_fetched, nr_pages);
	if (nr_armed())
		problem("%lu pages are still armed", nr_armed());
	check_checksums(nr_vcpus);

	for (i = 0; i < nr_vcpus; i++) {
		fetch_ns += threads[i].fetch_ns;
		clear_ns += threads[i].clear_ns;
	}
	printf("\n"
	       "    pages fetched      %8lu  of %lu, each once\n"
	       "    exits              %8lu  %lu of them for a page that another vCPU\n"
	       "                                 was fetching already\n"
	       "    per page           %8.1f  us in all\n"
	       "      fetch the page   %8.1f  us\n"
	       "      clear it         %8.1f  us (KVM_SET_USERFAULT_RANGE)\n"
	       "\n",
	       nr_fetched, nr_pages, exits, exits - nr_fetched, took / 1e3 / nr_pages,
	       fetch_ns / 1e3 / nr_pages, clear_ns / 1e3 / nr_pages);
}

static void lose_one_page(void)
{
	u64 page = nr_pages / 3, exits = count_exits(), fetched = nr_fetched, changed;
	struct vcpu_thread *t = &threads[0];

	/* Its new content differs, so that the guest cannot be reading the old one. */
	content_version[page]++;
	states[page] = PAGE_ABSENT;
	memset(t->exited_for, 0, nr_pages * sizeof(bool));

	changed = vm_userfault_arm(vm, DEMO_GPA + page * page_size, page_size);
	say("Page %lu is lost: armed again; vCPU 0 reads all memory once more", page);
	if (changed != 1)
		problem("arming it changed %lu pages, not 1", changed);

	read_all(1);

	exits = count_exits() - exits;
	fetched = nr_fetched - fetched;
	if (exits == 1 && fetched == 1 && t->exited_for[page])
		say("1 exit, for page %lu, none for the %lu others", page, nr_pages - 1);
	else
		problem("%lu exits, %lu pages fetched, %s page %lu",
			exits, fetched, t->exited_for[page] ? "also" : "but not", page);
	check_checksums(1);
}

static void help(const char *name)
{
	printf("usage: %s [-h] [-m MiB] [-v vcpus]\n"
	       " -m: guest memory that is fetched on demand (default: 64)\n"
	       " -v: number of vCPUs, each reads all of it (default: 2)\n", name);
}

int main(int argc, char *argv[])
{
	u64 mib = 64;
	int opt;

	while ((opt = getopt(argc, argv, "hm:v:")) != -1) {
		switch (opt) {
		case 'm':
			mib = atoi_positive("MiB", optarg);
			break;
		case 'v':
			nr_vcpus = atoi_positive("Number of vCPUs", optarg);
			TEST_ASSERT(nr_vcpus <= KVM_MAX_VCPUS, "At most %d vCPUs", KVM_MAX_VCPUS);
			break;
		case 'h':
			help(argv[0]);
			return 0;
		default:
			help(argv[0]);
			return 1;
		}
	}

	clock_gettime(CLOCK_MONOTONIC, &started);
	TEST_REQUIRE_USERFAULT();

	page_size = getpagesize();
	nr_pages = mib * SZ_1M / page_size;
	say("KVM userfault: %lu MiB of guest memory, %lu pages of %lu KiB",
	    mib, nr_pages, page_size / SZ_1K);

	create_vm();
	fetch_everything();
	lose_one_page();
	kvm_vm_free(vm);

	if (nr_problems)
		say("FAILED, %d problems", nr_problems);
	else
		say("All right: nothing went wrong");
	return nr_problems ? 1 : 0;
}
