// SPDX-License-Identifier: GPL-2.0-only
/*
 * Print the rate of this machine's TSC in kHz.
 *
 * Each clock reading is between two of the TSC that are as close together as can
 * be had, so that being interrupted does not matter.
 */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

static void look(uint64_t *ns, uint64_t *ticks)
{
	uint64_t before, after, closest = UINT64_MAX;
	struct timespec now;
	int i;

	for (i = 0; i < 1000; i++) {
		before = __rdtsc();
		clock_gettime(CLOCK_MONOTONIC_RAW, &now);
		after = __rdtsc();
		if (after - before >= closest)
			continue;
		closest = after - before;
		*ns = now.tv_sec * 1000000000ull + now.tv_nsec;
		*ticks = before + closest / 2;
	}
}

int main(void)
{
	struct timespec while_waiting = { .tv_nsec = 100000000 };
	uint64_t ns[2], ticks[2];

	look(&ns[0], &ticks[0]);
	nanosleep(&while_waiting, NULL);
	look(&ns[1], &ticks[1]);
	printf("%.0f\n", (double)(ticks[1] - ticks[0]) / (ns[1] - ns[0]) * 1e6);
	return 0;
}
