/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Arithmetic on a memslot's armed bitmap: one bit per page, 1 is armed.
 *
 * Nothing in here knows of KVM, takes a lock or sleeps, so that
 * tools/testing/kvm_userfault compiles it in userspace and tests it there.
 *
 * Positions and counts are in pages.  Callers keep them inside the bitmaps;
 * bits that lie past the end of a bitmap in its last word are never touched.
 */
#ifndef __KVM_USERFAULT_BITMAP_H
#define __KVM_USERFAULT_BITMAP_H

#include <linux/atomic.h>
#include <linux/bitops.h>
#include <linux/minmax.h>

/* The @nr bits, at most a word full and not 0, that start at bit @pos of @map. */
static inline unsigned long userfault_bits(const unsigned long *map,
					   unsigned long pos, unsigned long nr)
{
	unsigned long shift = pos % BITS_PER_LONG;
	unsigned long bits;

	map += pos / BITS_PER_LONG;
	bits = map[0] >> shift;
	if (shift + nr > BITS_PER_LONG)
		bits |= map[1] << (BITS_PER_LONG - shift);

	return bits & (~0UL >> (BITS_PER_LONG - nr));
}

/* How many pages of [@first, @end) share a word with @first. */
static inline unsigned long userfault_word_pages(unsigned long first,
						 unsigned long end)
{
	return min(end - first, BITS_PER_LONG - first % BITS_PER_LONG);
}

/*
 * Arm or clear the pages [@first, @first + @nr) of @armed.  With @select, only
 * those whose bit in it is 1; its bit @pos stands for @first.  Return how many
 * pages this call changed.  Each page changes on its own: concurrent calls on
 * the same word lose nothing and count no page twice.
 *
 * A word that already has the wanted state is only read, so that clearing what
 * is clear bounces no cache line.
 */
static inline unsigned long
userfault_bitmap_change(atomic_long_t *armed, unsigned long first,
			unsigned long nr, const unsigned long *select,
			unsigned long pos, bool arm)
{
	unsigned long end = first + nr;
	unsigned long changed = 0;
	unsigned long n;

	for (; first < end; first += n, pos += n) {
		atomic_long_t *word = &armed[first / BITS_PER_LONG];
		unsigned long old, mask;

		n = userfault_word_pages(first, end);
		mask = select ? userfault_bits(select, pos, n) :
				~0UL >> (BITS_PER_LONG - n);
		mask <<= first % BITS_PER_LONG;

		old = atomic_long_read(word);
		if (!(mask & (arm ? ~old : old)))
			continue;

		/*
		 * Clearing publishes the page: the release orders everything
		 * its owner stored before the clear against the acquire in
		 * userfault_bitmap_any() and userfault_bitmap_test(), i.e.
		 * against whatever the vCPU that finds the bit clear does next.
		 */
		if (arm)
			old = ~atomic_long_fetch_or(mask, word);
		else
			old = atomic_long_fetch_andnot_release(mask, word);

		changed += hweight_long(old & mask);
	}

	return changed;
}

/* Is page @n of @armed armed?  Pairs with the release of a clear. */
static inline bool userfault_bitmap_test(const atomic_long_t *armed,
					 unsigned long n)
{
	unsigned long word = atomic_long_read_acquire(&armed[n / BITS_PER_LONG]);

	return word & BIT(n % BITS_PER_LONG);
}

/* Is any page of [@first, @first + @nr) armed?  Acquires like _test(). */
static inline bool userfault_bitmap_any(const atomic_long_t *armed,
					unsigned long first, unsigned long nr)
{
	unsigned long end = first + nr;
	unsigned long n;

	for (; first < end; first += n) {
		unsigned long word;

		n = userfault_word_pages(first, end);
		word = atomic_long_read_acquire(&armed[first / BITS_PER_LONG]);
		if (userfault_bits(&word, first % BITS_PER_LONG, n))
			return true;
	}

	return false;
}

/*
 * Is any page armed of the @block pages of which page @page of @armed is the one
 * at @offset?  They may begin before @armed does, and end after its @nr_pages.
 * Acquires like _test().
 */
static inline bool userfault_bitmap_any_of_block(const atomic_long_t *armed,
						 unsigned long nr_pages,
						 unsigned long page,
						 unsigned long offset,
						 unsigned long block)
{
	unsigned long first = page - min(page, offset);
	unsigned long end = min(page + (block - offset), nr_pages);

	return userfault_bitmap_any(armed, first, end - first);
}

/*
 * Or the state of the pages [@first, @first + @nr) of @armed into @to, at whose
 * bit @pos page @first goes.  A snapshot of each word, not of the whole.
 */
static inline void userfault_bitmap_get(unsigned long *to, unsigned long pos,
					const atomic_long_t *armed,
					unsigned long first, unsigned long nr)
{
	unsigned long end = first + nr;
	unsigned long n;

	for (; first < end; first += n, pos += n) {
		unsigned long shift = pos % BITS_PER_LONG;
		unsigned long word, bits;

		n = userfault_word_pages(first, end);
		word = atomic_long_read(&armed[first / BITS_PER_LONG]);
		bits = userfault_bits(&word, first % BITS_PER_LONG, n);

		to[pos / BITS_PER_LONG] |= bits << shift;
		if (shift + n > BITS_PER_LONG)
			to[pos / BITS_PER_LONG + 1] |= bits >> (BITS_PER_LONG - shift);
	}
}

#endif /* __KVM_USERFAULT_BITMAP_H */
