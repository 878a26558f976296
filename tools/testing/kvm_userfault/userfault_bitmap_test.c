// SPDX-License-Identifier: GPL-2.0-only
/*
 * Unit tests of virt/kvm/userfault_bitmap.h, compiled in userspace.
 *
 * Every operation is compared with the same operation on an array of bool, at
 * each boundary there is (words, ends of a slot, single pages, unaligned
 * selections), then at random.  Bitmaps are allocated with exactly the words
 * that they need, so that AddressSanitizer sees an access to any other; bits
 * past the end in the last word hold noise that must survive.
 *
 * Threads then change the same words at once.  That shows lost updates and
 * pages counted twice, and under ThreadSanitizer a missing acquire or release;
 * it does not show a barrier that is merely too weak for another architecture.
 *
 * Without arguments the number of tests is printed.  With a prefix and a number
 * they are run, each in its own process, and reported as KTAP lines from that
 * number on.
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "userfault_bitmap.h"

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define WORDS(nr)	(((nr) + BITS_PER_LONG - 1) / BITS_PER_LONG)
#define SEED		0x5eed1234abcd9876UL
#define MAX_PAGES	1024
#define NR_THREADS	4

#define CHECK(cond, fmt, ...)						\
do {									\
	if (!(cond)) {							\
		printf("# line %d: %s: " fmt "\n", __LINE__, #cond,	\
		       ##__VA_ARGS__);					\
		fflush(stdout);						\
		_exit(1);						\
	}								\
} while (0)

/* Positions and counts around every place where the arithmetic can go wrong. */
static const unsigned long edges[] = {
	0, 1, 2, 31, 32, 33, 62, 63, 64, 65, 66, 100, 126, 127, 128, 129, 191,
	192, 193,
};

#define NR_EDGES	ARRAY_SIZE(edges)

static __thread unsigned long rng_state = SEED;

static unsigned long rnd(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;

	return rng_state * 0x2545f4914f6cdd1dUL;
}

/* A bitmap of exactly @nr bits with noise behind them, and what it should be. */
struct map {
	unsigned long nr;
	bool *model;
	unsigned long noise;
	union {
		atomic_long_t *armed;
		unsigned long *words;
	};
};

enum fill { CLEAR, ARMED, RANDOM };

static unsigned long tail_mask(const struct map *m)
{
	return m->nr % BITS_PER_LONG ? ~0UL << (m->nr % BITS_PER_LONG) : 0;
}

static void map_fill(struct map *m, enum fill fill)
{
	unsigned long *last = &m->words[WORDS(m->nr) - 1];
	unsigned long i;

	for (i = 0; i < WORDS(m->nr); i++)
		m->words[i] = fill == CLEAR ? 0 : fill == ARMED ? ~0UL : rnd();

	m->noise = rnd() & tail_mask(m);
	*last = (*last & ~tail_mask(m)) | m->noise;

	for (i = 0; i < m->nr; i++)
		m->model[i] = m->words[i / BITS_PER_LONG] >> (i % BITS_PER_LONG) & 1;
}

static void map_init(struct map *m, unsigned long nr, enum fill fill)
{
	m->nr = nr;
	m->words = malloc(WORDS(nr) * sizeof(long));
	m->model = malloc(nr * sizeof(bool));
	CHECK(m->words && m->model, "out of memory");
	map_fill(m, fill);
}

static void map_free(struct map *m)
{
	free(m->words);
	free(m->model);
}

static void map_check(const struct map *m, const char *what, unsigned long first,
		      unsigned long nr, unsigned long pos)
{
	unsigned long i, word = 0;

	for (i = 0; i < m->nr; i++) {
		if (i % BITS_PER_LONG == 0)
			word = m->words[i / BITS_PER_LONG];
		CHECK((word >> (i % BITS_PER_LONG) & 1) == m->model[i],
		      "%s: first %lu nr %lu pos %lu: page %lu of %lu is not %d",
		      what, first, nr, pos, i, m->nr, m->model[i]);
	}

	word = m->words[WORDS(m->nr) - 1];
	CHECK((word & tail_mask(m)) == m->noise,
	      "%s: first %lu nr %lu pos %lu: bits past the end of %lu touched",
	      what, first, nr, pos, m->nr);
}

/* Change both the bitmap and the model, and compare. */
static void change(struct map *m, unsigned long first, unsigned long nr,
		   const struct map *select, unsigned long pos, bool arm)
{
	unsigned long i, changed, want = 0;

	changed = userfault_bitmap_change(m->armed, first, nr,
					  select ? select->words : NULL, pos, arm);

	for (i = 0; i < nr; i++) {
		if (select && !select->model[pos + i])
			continue;
		want += m->model[first + i] != arm;
		m->model[first + i] = arm;
	}

	CHECK(changed == want, "%s: first %lu nr %lu pos %lu: %lu changed, not %lu",
	      arm ? "arm" : "clear", first, nr, pos, changed, want);
	map_check(m, arm ? "arm" : "clear", first, nr, pos);
}

static void check_any(const struct map *m, unsigned long first, unsigned long nr)
{
	bool want = memchr(&m->model[first], true, nr);

	CHECK(userfault_bitmap_any(m->armed, first, nr) == want,
	      "first %lu nr %lu", first, nr);
}

static void check_get(struct map *to, unsigned long pos, const struct map *m,
		      unsigned long first, unsigned long nr)
{
	unsigned long i;

	userfault_bitmap_get(to->words, pos, m->armed, first, nr);

	for (i = 0; i < nr; i++)
		to->model[pos + i] |= m->model[first + i];
	map_check(to, "get", first, nr, pos);
}

static void bits(void)
{
	unsigned long pos, nr, i, bits;
	struct map m;

	/* The last word of the allocation ends where the bits do. */
	for (pos = 0; pos < 3 * BITS_PER_LONG; pos++) {
		for (nr = 1; nr <= BITS_PER_LONG; nr++) {
			map_init(&m, pos + nr, RANDOM);
			bits = userfault_bits(m.words, pos, nr);
			for (i = 0; i < nr; i++)
				CHECK((bits >> i & 1) == m.model[pos + i],
				      "pos %lu nr %lu bit %lu", pos, nr, i);
			CHECK(nr == BITS_PER_LONG || !(bits >> nr),
			      "pos %lu nr %lu: more than nr", pos, nr);
			map_free(&m);
		}
	}
}

static void word_pages(void)
{
	unsigned long first, nr, n, want;

	for (first = 0; first < 2 * BITS_PER_LONG; first++) {
		for (nr = 1; nr < 3 * BITS_PER_LONG; nr++) {
			want = 1;
			while (want < nr && (first + want) % BITS_PER_LONG)
				want++;
			n = userfault_word_pages(first, first + nr);
			CHECK(n == want, "first %lu nr %lu: %lu, not %lu",
			      first, nr, n, want);
		}
	}
}

static void change_every_range(void)
{
	static const enum fill fills[] = { CLEAR, ARMED, RANDOM };
	unsigned long size, first, end, i, f;
	struct map m;

	for (i = 1; edges[i] < 130; i++) {
		size = edges[i];
		map_init(&m, size, CLEAR);
		for (f = 0; f < ARRAY_SIZE(fills); f++) {
			for (first = 0; first < size; first++) {
				for (end = first + 1; end <= size; end++) {
					map_fill(&m, fills[f]);
					change(&m, first, end - first, NULL, 0, end % 2);
					change(&m, first, end - first, NULL, 0, !(end % 2));
				}
			}
		}
		map_free(&m);
	}
}

static void change_selected(void)
{
	unsigned long first, nr, pos, i, j, k;
	struct map m, select;

	for (i = 0; i < NR_EDGES; i++) {
		for (j = 0; j < NR_EDGES; j++) {
			for (k = 1; k < NR_EDGES; k++) {
				first = edges[i];
				pos = edges[j];
				nr = edges[k];
				map_init(&m, first + nr, RANDOM);
				map_init(&select, pos + nr, RANDOM);
				change(&m, first, nr, &select, pos, true);
				map_fill(&select, RANDOM);
				change(&m, first, nr, &select, pos, false);
				map_fill(&select, CLEAR);
				change(&m, first, nr, &select, pos, false);
				change(&m, first, nr, &select, pos, true);
				map_fill(&select, ARMED);
				change(&m, first, nr, &select, pos, true);
				change(&m, first, nr, &select, pos, false);
				map_check(&select, "select", first, nr, pos);
				map_free(&select);
				map_free(&m);
			}
		}
	}
}

static void change_one_page(void)
{
	unsigned long size, n, i;
	struct map m, select;

	map_init(&select, 1, ARMED);
	for (i = 1; i < NR_EDGES; i++) {
		size = edges[i];
		map_init(&m, size, RANDOM);
		for (n = 0; n < size; n++) {
			change(&m, n, 1, NULL, 0, true);
			change(&m, n, 1, &select, 0, false);
			change(&m, n, 1, &select, 0, true);
			change(&m, n, 1, NULL, 0, false);
		}
		map_free(&m);
	}
	map_free(&select);
}

static void change_whole_slot(void)
{
	static const unsigned long sizes[] = { 511, 512, 513, 4096, 262144, 262145 };
	struct map m, select;
	unsigned long i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		map_init(&m, sizes[i], CLEAR);
		map_init(&select, sizes[i] + 3, RANDOM);
		change(&m, 0, sizes[i], NULL, 0, true);
		change(&m, 0, sizes[i], NULL, 0, true);
		change(&m, 0, sizes[i], &select, 3, false);
		change(&m, 0, sizes[i], NULL, 0, false);
		change(&m, 0, sizes[i], &select, 3, true);
		map_free(&select);
		map_free(&m);
	}
}

/* Nothing may be looked at, so hand in nothing. */
static void nr_zero(void)
{
	unsigned long i, first;

	for (i = 0; i < NR_EDGES; i++) {
		first = edges[i];
		CHECK(!userfault_bitmap_change(NULL, first, 0, NULL, 0, true),
		      "first %lu", first);
		CHECK(!userfault_bitmap_change(NULL, first, 0, NULL, first, false),
		      "first %lu", first);
		CHECK(!userfault_bitmap_any(NULL, first, 0), "first %lu", first);
		userfault_bitmap_get(NULL, first, NULL, first, 0);
	}
}

/* What is as wanted already is only read. */
static void no_needless_write(void)
{
	unsigned long select[2] = { 0xf0f0f0f0f0f0f0f0UL, 0x0f0f0f0f0f0f0f0fUL };
	size_t size = sysconf(_SC_PAGESIZE);
	atomic_long_t *armed;
	unsigned long *words;

	words = mmap(NULL, size, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(words != MAP_FAILED, "mmap");
	words[1] = ~0UL;
	words[2] = select[0];
	words[3] = ~select[1];
	mprotect(words, size, PROT_READ);
	armed = (atomic_long_t *)words;

	CHECK(!userfault_bitmap_change(armed, 0, 64, NULL, 0, false), "clear");
	CHECK(!userfault_bitmap_change(armed, 64, 64, NULL, 0, true), "arm");
	CHECK(!userfault_bitmap_change(armed, 63, 2, select, 124, false), "select none");
	CHECK(!userfault_bitmap_change(armed, 128, 64, select, 0, true), "select armed");
	CHECK(!userfault_bitmap_change(armed, 192, 64, select, 64, false), "select clear");
	munmap(words, size);
}

static void test_and_any(void)
{
	unsigned long size, n, first, end, i;
	struct map m;

	/* One armed page: every range either has it or has none. */
	for (i = 1; edges[i] < 130; i++) {
		size = edges[i];
		map_init(&m, size, CLEAR);
		for (n = 0; n < size; n++) {
			change(&m, n, 1, NULL, 0, true);
			for (first = 0; first < size; first++) {
				CHECK(userfault_bitmap_test(m.armed, first) ==
				      (first == n), "page %lu armed %lu", first, n);
				for (end = first + 1; end <= size; end += 1 + end % 3)
					check_any(&m, first, end - first);
			}
			change(&m, n, 1, NULL, 0, false);
		}
		map_free(&m);
	}
}

/* The block scan that decides on a mapping's size: 2M and 1G of 4K pages. */
static void any_block(void)
{
	const unsigned long block = 512, nr = 512 * block;
	unsigned long n, i;
	struct map m;

	map_init(&m, nr, CLEAR);
	check_any(&m, 0, nr);
	for (i = 0; i < 300; i++) {
		n = i < 4 ? (i / 2 ? nr - block : 0) + i % 2 * (block - 1) : rnd() % nr;
		userfault_bitmap_change(m.armed, n, 1, NULL, 0, true);
		m.model[n] = true;
		check_any(&m, 0, nr);
		check_any(&m, n / block * block, block);
		if (n >= block)
			check_any(&m, n / block * block - block, block);
		if (n / block * block + block < nr)
			check_any(&m, n / block * block + block, block);
		userfault_bitmap_change(m.armed, n, 1, NULL, 0, false);
		m.model[n] = false;
	}
	map_free(&m);
}

/*
 * A slot that begins and ends anywhere in a block: what counts are the pages that
 * the block has in the slot, no more and no fewer.
 */
static void check_block(struct map *m, unsigned long base, unsigned long block,
			unsigned long armed)
{
	unsigned long n, pos;
	bool got, want;

	change(m, armed, 1, NULL, 0, true);
	for (n = 0; n < m->nr; n++) {
		pos = (base + n) % block;
		want = (base + n) / block == (base + armed) / block;
		got = userfault_bitmap_any_of_block(m->armed, m->nr, n, pos, block);
		CHECK(got == want, "base %lu size %lu block %lu page %lu armed %lu",
		      base, m->nr, block, n, armed);
	}
	change(m, armed, 1, NULL, 0, false);
}

static void block_over_edges(void)
{
	static const unsigned long blocks[] = { 1, 16, 64, 512 };
	unsigned long size, i, j, k, l;
	struct map m;

	for (i = 1; i < NR_EDGES; i++) {
		size = edges[i];
		map_init(&m, size, CLEAR);
		for (j = 0; j < NR_EDGES; j++)
			for (k = 0; k < ARRAY_SIZE(blocks); k++)
				for (l = 0; edges[l] < size; l++)
					check_block(&m, edges[j], blocks[k], edges[l]);
		map_free(&m);
	}
}

static void get(void)
{
	unsigned long first, nr, pos, i, j, k;
	struct map m, to;

	for (i = 0; i < NR_EDGES; i++) {
		for (j = 0; j < NR_EDGES; j++) {
			for (k = 1; k < NR_EDGES; k++) {
				first = edges[i];
				pos = edges[j];
				nr = edges[k];
				map_init(&m, first + nr, RANDOM);
				map_init(&to, pos + nr, CLEAR);
				check_get(&to, pos, &m, first, nr);
				map_fill(&m, ARMED);
				map_fill(&to, CLEAR);
				check_get(&to, pos, &m, first, nr);
				/* What is there already stays: it ors. */
				map_fill(&m, RANDOM);
				map_fill(&to, RANDOM);
				check_get(&to, pos, &m, first, nr);
				map_check(&m, "got", first, nr, pos);
				map_free(&to);
				map_free(&m);
			}
		}
	}
}

static void random_ops(void)
{
	unsigned long round, op, size, first, nr, pos;
	struct map m, other;

	printf("# %s: seed %#lx\n", __func__, SEED);

	for (round = 0; round < 200; round++) {
		size = 1 + rnd() % MAX_PAGES;
		map_init(&m, size, rnd() % 3);

		for (op = 0; op < 100; op++) {
			first = rnd() % size;
			nr = rnd() % 4 ? 1 + rnd() % (size - first) :
					 1 + rnd() % min(size - first, 3UL);
			pos = rnd() % 200;
			map_init(&other, pos + nr, rnd() % 3);

			switch (rnd() % 5) {
			case 0:
				change(&m, first, nr, NULL, pos, rnd() % 2);
				break;
			case 1:
			case 2:
				change(&m, first, nr, &other, pos, rnd() % 2);
				break;
			case 3:
				check_get(&other, pos, &m, first, nr);
				break;
			default:
				check_any(&m, first, nr);
				CHECK(userfault_bitmap_test(m.armed, first) ==
				      m.model[first], "page %lu", first);
			}
			map_free(&other);
		}
		map_free(&m);
	}
}

struct thread {
	pthread_t thread;
	unsigned long id;
	unsigned long armed;
	unsigned long cleared;
};

static atomic_long_t shared[4];
static pthread_barrier_t barrier;
static unsigned long published;

#define SHARED_PAGES	(ARRAY_SIZE(shared) * BITS_PER_LONG - 5)

static void run_threads(void *(*fn)(void *), struct thread *threads)
{
	unsigned long i;

	CHECK(!pthread_barrier_init(&barrier, NULL, NR_THREADS), "barrier");
	for (i = 0; i < NR_THREADS; i++) {
		threads[i] = (struct thread) { .id = i };
		CHECK(!pthread_create(&threads[i].thread, NULL, fn, &threads[i]),
		      "pthread_create");
	}
	for (i = 0; i < NR_THREADS; i++)
		pthread_join(threads[i].thread, NULL);
}

/* All threads make the same change at once: each page is counted by just one. */
static void *same_thread(void *arg)
{
	struct thread *t = arg;
	int i;

	for (i = 0; i < 3000; i++) {
		pthread_barrier_wait(&barrier);
		t->armed += userfault_bitmap_change(shared, 3, SHARED_PAGES - 3,
						    NULL, 0, true);
		pthread_barrier_wait(&barrier);
		t->cleared += userfault_bitmap_change(shared, 3, SHARED_PAGES - 3,
						      NULL, 0, false);
	}

	return NULL;
}

static void threads_count_once(void)
{
	struct thread threads[NR_THREADS];
	unsigned long i, armed = 0, cleared = 0;

	run_threads(same_thread, threads);
	for (i = 0; i < NR_THREADS; i++) {
		armed += threads[i].armed;
		cleared += threads[i].cleared;
	}

	CHECK(armed == 3000 * (SHARED_PAGES - 3), "%lu armed", armed);
	CHECK(cleared == 3000 * (SHARED_PAGES - 3), "%lu cleared", cleared);
}

/* Each thread owns every fourth page: what it sets there stays. */
static void *own_thread(void *arg)
{
	unsigned long select[ARRAY_SIZE(shared)] = { 0 };
	struct thread *t = arg;
	unsigned long n, own = 0, changed;
	int i;

	for (n = t->id; n < SHARED_PAGES; n += NR_THREADS, own++)
		select[n / BITS_PER_LONG] |= BIT(n % BITS_PER_LONG);

	pthread_barrier_wait(&barrier);
	for (i = 0; i < 5000; i++) {
		bool arm = !(i % 2);

		changed = userfault_bitmap_change(shared, 0, SHARED_PAGES,
						  select, 0, arm);
		CHECK(changed == own, "thread %lu round %d: %lu changed, not %lu",
		      t->id, i, changed, own);
		for (n = t->id; n < SHARED_PAGES; n += NR_THREADS)
			CHECK(userfault_bitmap_test(shared, n) == arm,
			      "thread %lu round %d: page %lu", t->id, i, n);
	}

	return NULL;
}

static void threads_lose_nothing(void)
{
	struct thread threads[NR_THREADS];
	unsigned long noise = ~0UL << (SHARED_PAGES % BITS_PER_LONG);

	shared[ARRAY_SIZE(shared) - 1].counter = noise;
	run_threads(own_thread, threads);
	CHECK(!userfault_bitmap_any(shared, 0, SHARED_PAGES), "pages left armed");
	CHECK(shared[ARRAY_SIZE(shared) - 1].counter == noise, "bits past the end");
}

/* Overlapping changes at random: what was armed minus cleared is what is left. */
static void *mixed_thread(void *arg)
{
	struct thread *t = arg;
	unsigned long first, nr;
	int i;

	rng_state = SEED + t->id;
	pthread_barrier_wait(&barrier);
	for (i = 0; i < 20000; i++) {
		first = rnd() % SHARED_PAGES;
		nr = 1 + rnd() % (SHARED_PAGES - first);
		if (rnd() % 2)
			t->armed += userfault_bitmap_change(shared, first, nr,
							    NULL, 0, true);
		else
			t->cleared += userfault_bitmap_change(shared, first, nr,
							      NULL, 0, false);
	}

	return NULL;
}

static void threads_balance(void)
{
	struct thread threads[NR_THREADS];
	long i, left = 0, balance = 0;

	printf("# %s: seed %#lx\n", __func__, SEED);
	run_threads(mixed_thread, threads);
	for (i = 0; i < NR_THREADS; i++)
		balance += threads[i].armed - threads[i].cleared;
	for (i = 0; i < SHARED_PAGES; i++)
		left += userfault_bitmap_test(shared, i);

	CHECK(balance == left, "armed minus cleared is %ld, %ld are left", balance, left);
}

/*
 * Plain stores before a clear are there for whoever finds the page clear.
 * Thread 0 publishes, the others look in turn through _test() and _any().
 */
static void *publish_thread(void *arg)
{
	struct thread *t = arg;
	unsigned long i;

	for (i = 1; i <= 2000; i++) {
		if (!t->id)
			userfault_bitmap_change(shared, 7, 1, NULL, 0, true);
		pthread_barrier_wait(&barrier);

		if (!t->id) {
			published = i;
			userfault_bitmap_change(shared, 7, 1, NULL, 0, false);
		} else if (t->id % 2) {
			while (userfault_bitmap_test(shared, 7))
				sched_yield();
			CHECK(published == i, "saw %lu, not %lu", published, i);
		} else {
			while (userfault_bitmap_any(shared, 0, 130))
				sched_yield();
			CHECK(published == i, "saw %lu, not %lu", published, i);
		}
		pthread_barrier_wait(&barrier);
	}

	return NULL;
}

static void threads_publish(void)
{
	struct thread threads[NR_THREADS];

	run_threads(publish_thread, threads);
}

static const struct {
	const char *name;
	void (*fn)(void);
} tests[] = {
#define T(fn) { #fn, fn }
	T(bits),
	T(word_pages),
	T(change_every_range),
	T(change_selected),
	T(change_one_page),
	T(change_whole_slot),
	T(nr_zero),
	T(no_needless_write),
	T(test_and_any),
	T(any_block),
	T(block_over_edges),
	T(get),
	T(random_ops),
	T(threads_count_once),
	T(threads_lose_nothing),
	T(threads_balance),
	T(threads_publish),
};

int main(int argc, char **argv)
{
	int i, status, rc = 0;
	pid_t pid;

	if (argc != 3) {
		printf("%zu\n", ARRAY_SIZE(tests));
		return 0;
	}

	for (i = 0; i < ARRAY_SIZE(tests); i++) {
		fflush(stdout);
		pid = fork();
		if (!pid) {
			alarm(120);
			tests[i].fn();
			exit(0);
		}

		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			status = -1;
		if (status)
			rc = 1;
		printf("%sok %d %s.%s\n", status ? "not " : "",
		       atoi(argv[2]) + i, argv[1], tests[i].name);
	}

	return rc;
}
