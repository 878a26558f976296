/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the userfault tests learn of KVM's inside: tracepoints, from an instance of
 * tracefs of their own, and on arm64 the stage 2 tables, from debugfs.
 */
#ifndef SELFTEST_KVM_USERFAULT_DEBUG_H
#define SELFTEST_KVM_USERFAULT_DEBUG_H

#include <linux/kvm.h>
#include <linux/sizes.h>

#include <sys/ioctl.h>
#include <sys/stat.h>

#include "kvm_util.h"
#include "test_util.h"

#define TRACEFS		"/sys/kernel/tracing/"
#define KVM_DEBUGFS	"/sys/kernel/debug/kvm"

struct trace {
	char instance[128];
};

static inline void trace_write(struct trace *trace, const char *file, const char *val)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", trace->instance, file);
	fd = open(path, O_WRONLY | O_TRUNC);
	TEST_ASSERT(fd >= 0 && write(fd, val, strlen(val)) == strlen(val),
		    "Cannot write to %s, errno %d", path, errno);
	close(fd);
}

static inline void trace_enable(struct trace *trace, const char *event)
{
	char file[128];

	snprintf(file, sizeof(file), "events/kvm/%s/enable", event);
	trace_write(trace, file, "1");
}

static inline void trace_begin(struct trace *trace)
{
	__TEST_REQUIRE(!access(TRACEFS "instances", W_OK), "No tracefs on %s", TRACEFS);
	snprintf(trace->instance, sizeof(trace->instance),
		 TRACEFS "instances/userfault.%d", getpid());
	TEST_ASSERT(!mkdir(trace->instance, 0700), "Cannot make %s, errno %d",
		    trace->instance, errno);
}

/* How many lines there are of @event, with @what, if not NULL, after it. */
static inline u64 trace_count(struct trace *trace, const char *event, const char *what)
{
	char path[256], line[1024], *p;
	u64 nr = 0;
	FILE *f;

	snprintf(path, sizeof(path), "%s/trace", trace->instance);
	f = fopen(path, "r");
	TEST_ASSERT(f, "Cannot read %s", path);
	while (fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = 0;
		p = strstr(line, event);
		nr += p && (!what || !strcmp(p + strlen(event), what));
	}
	fclose(f);
	return nr;
}

static inline void trace_end(struct trace *trace)
{
	trace_write(trace, "events/enable", "0");
	TEST_ASSERT(!rmdir(trace->instance), "Cannot remove %s, errno %d",
		    trace->instance, errno);
}

#ifdef __aarch64__
#define STAGE2_LAST_LEVEL	3

/* Does the host run under pKVM, i.e. could it have protected VMs? */
static inline bool is_pkvm(void)
{
	int kvm_fd = open_kvm_dev_path_or_exit();
	int vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, KVM_VM_TYPE_ARM_PROTECTED);

	close(vm_fd);
	close(kvm_fd);
	return vm_fd >= 0;
}

/* Under pKVM the hypervisor has the tables, and what debugfs shows is none. */
static inline bool has_stage2_dump(void)
{
	return !access(KVM_DEBUGFS, R_OK) && !is_pkvm();
}

/* The size that an entry of stage 2 at @level maps: the host's page size says it. */
static inline u64 stage2_size(int level)
{
	u64 size = getpagesize();

	for (; level < STAGE2_LAST_LEVEL; level++)
		size *= getpagesize() / sizeof(u64);
	return size;
}

/*
 * How many entries at @level map a part of [@start, @end), of those that have all
 * of @attrs: "W" for instance.
 */
static inline u64 vm_nr_stage2(struct kvm_vm *vm, int level, gpa_t start, gpa_t end,
			       const char *attrs)
{
	char path[128], line[256], *tail;
	gpa_t from, to;
	u64 nr = 0;
	int at, pos;
	FILE *f;

	snprintf(path, sizeof(path), KVM_DEBUGFS "/%d-%d/stage2_page_tables",
		 getpid(), vm->fd);
	f = fopen(path, "r");
	TEST_ASSERT(f, "Cannot read %s, errno %d", path, errno);
	while (fgets(line, sizeof(line), f)) {
		/* As "0x0000000040000000-0x0000000040200000  2M 2   R W px ux AF BLK". */
		if (sscanf(line, "0x%lx-0x%lx %*s %d%n", &from, &to, &at, &pos) != 3 ||
		    at != level)
			continue;
		tail = line + pos;
		if (!strstr(tail, "R") || !strstr(tail, attrs))
			continue;
		from = max(from, start);
		to = min(to, end);
		if (from < to)
			nr += (to - from + stage2_size(level) - 1) / stage2_size(level);
	}
	fclose(f);
	return nr;
}
#endif /* __aarch64__ */

#endif /* SELFTEST_KVM_USERFAULT_DEBUG_H */
