// SPDX-License-Identifier: GPL-2.0-only
/*
 * Threads on real cores clear a page each, which they arm again, all the time: what
 * a change costs when other threads change bits of the same word, of another word
 * of the same cache line, and of other lines.
 *
 * This is what counting instructions on one CPU cannot show.  The cores may have
 * other work to do, hence it is the CPU time of the threads that is told, of the
 * median of many short runs, and only those runs count in which the threads ran at
 * the same time for at least 3/4 of it.
 *
 * The output is one line per result, with the fields as NAME=VALUE.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "userfault_bitmap.h"

#define NR_CHANGES	4000UL
#define NR_RUNS		51
#define MAX_RUNS	500
#define MAX_THREADS	64
#define LINE_PAGES	(64 * 8UL)

#if defined(__x86_64__)
#define ARCH		"x86_64"
#elif defined(__aarch64__)
#define ARCH		"arm64"
#endif

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

/* How far the pages of the threads are from each other. */
static const struct {
	const char *where;
	unsigned long distance;
} cases[] = {
	{ "same-word", 1 },
	{ "same-line", BITS_PER_LONG },
	{ "other-lines", 16 * LINE_PAGES },
};

struct thread {
	pthread_t thread;
	unsigned long page;
	unsigned long changed;
	unsigned long start;
	unsigned long end;
	unsigned long cpu;
};

/* Threads of the first two cases keep to one line as long as there are no more than 8. */
static atomic_long_t armed[MAX_THREADS * 16 * LINE_PAGES / BITS_PER_LONG]
	__attribute__((aligned(4096)));

static unsigned long nr_threads;
static int nr_ready;

static unsigned long now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * 1000000000UL + now.tv_nsec;
}

static void *clear_pages(void *arg)
{
	struct thread *t = arg;
	unsigned long i, cpu;

	__atomic_fetch_add(&nr_ready, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&nr_ready, __ATOMIC_SEQ_CST) != (int)nr_threads)
		;

	t->start = now_ns(CLOCK_MONOTONIC);
	cpu = now_ns(CLOCK_THREAD_CPUTIME_ID);
	for (i = 0; i < NR_CHANGES; i++)
		t->changed += userfault_bitmap_change(armed, t->page, 1, NULL, 0, !(i & 1));
	t->cpu = now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
	t->end = now_ns(CLOCK_MONOTONIC);
	return NULL;
}

/* Nanoseconds of a change; 0 if the threads did not run at the same time. */
static double bench_once(unsigned long distance)
{
	unsigned long first_start = ~0UL, last_start = 0, first_end = ~0UL, last_end = 0;
	struct thread threads[MAX_THREADS] = {};
	unsigned long i, cpu = 0, changed = 0;

	nr_ready = 0;
	for (i = 0; i < nr_threads; i++) {
		threads[i].page = i * distance;
		if (pthread_create(&threads[i].thread, NULL, clear_pages, &threads[i]))
			abort();
	}
	for (i = 0; i < nr_threads; i++) {
		pthread_join(threads[i].thread, NULL);
		changed += threads[i].changed;
		cpu += threads[i].cpu;
		first_start = min(first_start, threads[i].start);
		if (threads[i].start > last_start)
			last_start = threads[i].start;
		first_end = min(first_end, threads[i].end);
		if (threads[i].end > last_end)
			last_end = threads[i].end;
	}
	if (changed != nr_threads * NR_CHANGES) {
		fprintf(stderr, "%lu of %lu changes\n", changed, nr_threads * NR_CHANGES);
		exit(1);
	}
	if (first_end < last_start || (first_end - last_start) * 4 < (last_end - first_start) * 3)
		return 0;
	return (double)cpu / (nr_threads * NR_CHANGES);
}

static int cmp_double(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void bench(unsigned int n)
{
	unsigned long i, nr = 0;
	double ns[NR_RUNS];

	for (i = 0; i < MAX_RUNS && nr < NR_RUNS; i++) {
		ns[nr] = bench_once(cases[n].distance);
		nr += ns[nr] != 0;
	}
	if (nr < NR_RUNS / 4) {
		fprintf(stderr, "The machine is too busy: only %lu of %lu runs count\n", nr, i);
		return;
	}

	qsort(ns, nr, sizeof(*ns), cmp_double);
	printf("bitmap arch=" ARCH " where=%s threads=%lu", cases[n].where, nr_threads);
	printf(" ns_per_change=%.2f p10=%.2f p90=%.2f runs=%lu\n",
	       ns[nr / 2], ns[nr / 10], ns[nr * 9 / 10], nr);
}

int main(void)
{
	unsigned long nr_cpus = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned int n;

	if (nr_cpus > MAX_THREADS)
		nr_cpus = MAX_THREADS;

	for (nr_threads = 1; nr_threads <= nr_cpus; nr_threads *= 2) {
		for (n = 0; n < ARRAY_SIZE(cases); n++)
			bench(n);
	}
	return 0;
}
