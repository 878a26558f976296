// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM userfault below a nested guest: L1, at EL2, has stage 2 tables for L2, which
 * touches armed memory of L1.  The exit has L1's address, and what was mapped for
 * L2 goes when it is armed.  Likewise if L2 is a hypervisor itself: its registers of
 * EL2 are memory of L1, at VNCR_EL2.
 *
 * Needs kvm-arm.mode=nested, and a CPU with FEAT_NV2.
 */
#include <linux/sizes.h>

#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>

#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "kvm_userfault_debug.h"
#include "kvm_userfault_guest.h"
#include "kvm_userfault_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

/* L2's addresses are not L1's: 2 GiB is 4 GiB.  Its code is where L1 has it. */
#define UF_SLOT		10
#define L1_GPA		0x100000000ul
#define L2_IPA		0x080000000ul
#define NR_PAGES	1024ul

#define psz		((u64)getpagesize())
#define GPA(page)	(L1_GPA + (page) * psz)
#define IPA(page)	(L2_IPA + (page) * psz)

/* One table of stage 2: 39 bits, blocks of 1G, normal memory, read and write. */
#define L2_VTCR		(BIT(31) | 2ul << 16 | 3ul << 12 | 1ul << 10 | 1ul << 8 | 1ul << 6 | 25)
#define L2_BLOCK	(BIT(10) | 3ul << 8 | 3ul << 6 | 0xful << 2 | 1)

KVM_ONE_VCPU_TEST_SUITE(userfault_nested);

static u64 l2_table, l2_pc;

/* If L2 is a hypervisor, where L1 has its registers; VTTBR_EL2 is one of them. */
static u64 l1_vncr;

#define VTTBR_WORD	(0x20 / sizeof(u64))

/* Access that register, not memory. */
#define VTTBR		BIT(8)

/* L2 has no stack.  x0: address, x1: value, x2: access. */
static noinline void l2_code(void)
{
	asm volatile("0:	tbnz	x2, #8, 2f\n"
		     "	tbnz	x2, #1, 1f\n"
		     "	ldr	x1, [x0]\n"
		     "	b	4f\n"
		     "1:	str	x1, [x0]\n"
		     "	b	4f\n"
		     "2:	tbnz	x2, #1, 3f\n"
		     "	mrs	x1, vttbr_el2\n"
		     "	b	4f\n"
		     "3:	msr	vttbr_el2, x1\n"
		     "4:	hvc	#0\n"
		     "	b	0b\n" : : : "x0", "x1", "x2", "memory");
}

static noinline void l2_count(void)
{
	asm volatile("0:	mrs	x1, vttbr_el2\n"
		     "	add	x1, x1, #1\n"
		     "	msr	vttbr_el2, x1\n"
		     "	b	0b\n" : : : "x1", "memory");
}

/* L2 is done with what it was told: tell the host, and give it the next order. */
static void l1_hvc_handler(struct ex_regs *regs)
{
	struct guest_cmd *cmd = &guest_cmds[0];

	GUEST_SYNC(regs->regs[1]);

	regs->regs[0] = READ_ONCE(cmd->gva);
	regs->regs[1] = READ_ONCE(cmd->val);
	regs->regs[2] = READ_ONCE(cmd->access);
}

static void l1_code(void)
{
	struct guest_cmd *cmd = &guest_cmds[0];
	u64 hcr = HCR_EL2_RW | HCR_EL2_E2H | HCR_EL2_VM;

	if (l1_vncr) {
		hcr |= HCR_EL2_NV | HCR_EL2_NV2;
		write_sysreg_s(l1_vncr, SYS_VNCR_EL2);
	}
	write_sysreg_s(l2_table, SYS_VTTBR_EL2);
	write_sysreg_s(L2_VTCR, SYS_VTCR_EL2);
	write_sysreg_s(hcr, SYS_HCR_EL2);
	write_sysreg_s(0x30d00800, sys_reg(3, 5, 1, 0, 0));	/* SCTLR_EL12: MMU off */
	write_sysreg_s(l2_pc, SYS_ELR_EL1);			/* of EL2, with E2H */
	write_sysreg_s(PSR_MODE_EL1h | 0x3c0, SYS_SPSR_EL1);
	isb();

	asm volatile("mov	x0, %0\n"
		     "mov	x1, %1\n"
		     "mov	x2, %2\n"
		     "eret" : : "r" (READ_ONCE(cmd->gva)), "r" (READ_ONCE(cmd->val)),
				"r" (READ_ONCE(cmd->access)) : "x0", "x1", "x2", "memory");
}

static u64 *setup(struct kvm_vcpu *vcpu, u32 flags)
{
	struct kvm_vm *vm = vcpu->vm;
	gva_t table = vm_alloc_page(vm);
	u64 *entries = addr_gva2hva(vm, table);
	void *hva;

	memset(entries, 0, psz);
	entries[0] = L2_BLOCK;
	entries[L2_IPA / SZ_1G] = L1_GPA | L2_BLOCK;
	write_guest_global(vm, l2_table, addr_gva2gpa(vm, table));
	write_guest_global(vm, l2_pc, addr_gva2gpa(vm, (gva_t)l2_code));

	vm_init_descriptor_tables(vm);
	vcpu_init_descriptor_tables(vcpu);
	vm_install_sync_handler(vm, VECTOR_SYNC_LOWER_64, 0x16, l1_hvc_handler);

	hva = kvm_mmap(2 * SZ_2M + SZ_2M, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	hva = align_ptr_up(hva, SZ_2M);
	kvm_madvise(hva, 2 * SZ_2M, MADV_HUGEPAGE);
	memset(hva, 0, 2 * SZ_2M);
	vm_set_user_memory_region(vm, UF_SLOT, flags, L1_GPA, NR_PAGES * psz, hva);
	return hva;
}

static void l2_does(struct kvm_vcpu *vcpu, u64 access, u64 page, u64 val)
{
	set_cmd(vcpu, access, IPA(page), val);
	assert_done(vcpu, val);
}

KVM_ONE_VCPU_TEST(userfault_nested, l2, l1_code)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = setup(vcpu, KVM_MEM_USERFAULT);
	u64 i, exits = 0;

	for (i = 0; i < 512; i += 37) {
		u64 *word = hva + i * psz / 8, access = i & 1 ? WRITE : READ;

		/* Mapped for L2, with its neighbours. */
		*word = i;
		l2_does(vcpu, READ, i, i);
		l2_does(vcpu, WRITE, i + 1, 2 * i);

		TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(i), psz), 1);
		set_cmd(vcpu, access, IPA(i), i + 100);
		assert_userfault_exit(vcpu, GPA(i), access);
		assert_userfault_exit(vcpu, GPA(i), access);
		TEST_ASSERT_EQ(*word, i);
		exits += 2;

		*word = i + 100;
		if (i % 3)
			vcpu_userfault_resolve(vcpu, GPA(i), psz);
		else
			TEST_ASSERT_EQ(vm_userfault_set(vm, GPA(i), psz,
							KVM_USERFAULT_COLLAPSE, NULL), 1);
		assert_done(vcpu, i + 100);

		/* The page next to an armed one does not exit. */
		TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(i), psz), 1);
		l2_does(vcpu, READ, i + 1, 2 * i);
		set_cmd(vcpu, READ, IPA(i), 0);
		assert_userfault_exit(vcpu, GPA(i), READ);
		exits++;
		TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(i), psz), 1);
		assert_done(vcpu, i + 100);
	}
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), exits);
}

/*
 * COLLAPSE reaches L2, too, though L1 has not touched the memory itself, and nothing
 * of it is mapped for L1.
 */
KVM_ONE_VCPU_TEST(userfault_nested, collapse, l1_code)
{
	struct kvm_vm *vm = vcpu->vm;
	struct trace trace;
	u64 faults;

	TEST_REQUIRE(thp_configured());

	trace_begin(&trace);
	setup(vcpu, KVM_MEM_USERFAULT);
	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(0), psz), 1);
	l2_does(vcpu, READ, 1, 0);
	l2_does(vcpu, READ, 2, 0);
	TEST_ASSERT_EQ(vm_userfault_set(vm, GPA(0), psz, KVM_USERFAULT_COLLAPSE, NULL), 1);

	/* L2's code, in another block, is mapped again before it gets there. */
	l2_does(vcpu, READ, 600, 0);
	trace_enable(&trace, "kvm_guest_fault");
	l2_does(vcpu, READ, 1, 0);
	faults = trace_count(&trace, "kvm_guest_fault", NULL);
	l2_does(vcpu, READ, 2, 0);
	l2_does(vcpu, READ, 3, 0);

	/* GUEST_SYNC() is a fault as well. */
	TEST_ASSERT_EQ(faults, 2);
	TEST_ASSERT_EQ(trace_count(&trace, "kvm_guest_fault", NULL), faults + 2);
	trace_end(&trace);
}

/*
 * VNCR_EL2
 */
static u64 *setup_vncr(struct kvm_vcpu *vcpu, u32 flags, u64 page)
{
	u64 *hva = setup(vcpu, flags);

	virt_map(vcpu->vm, GPA(page), GPA(page), 1);
	write_guest_global(vcpu->vm, l1_vncr, GPA(page));
	return hva + page * psz / sizeof(u64) + VTTBR_WORD;
}

KVM_ONE_VCPU_TEST(userfault_nested, vncr, l1_code)
{
	const u64 page = 7;
	u64 *vttbr = setup_vncr(vcpu, KVM_MEM_USERFAULT, page);
	struct kvm_vm *vm = vcpu->vm;
	u64 i, exits = 0;

	/* The first access of all, or that of a page that L2 has just used. */
	for (i = 0; i < 20; i++) {
		u64 access = i & 1 ? WRITE : READ;

		TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(page), psz), 1);
		*vttbr = i + 100;
		set_cmd(vcpu, VTTBR | access, 0, i + 200);
		assert_userfault_exit(vcpu, GPA(page), access);
		assert_userfault_exit(vcpu, GPA(page), access);
		TEST_ASSERT_EQ(*vttbr, i + 100);
		exits += 2;

		*vttbr = i + 300;
		switch (i % 3) {
		case 0:
			vcpu_userfault_resolve(vcpu, GPA(page), psz);
			break;
		case 1:
			TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(page), psz), 1);
			break;
		case 2:
			/* Dropped, as another page has been armed since. */
			vm_userfault_arm(vm, GPA(page + 1), psz);
			vcpu_userfault_resolve(vcpu, GPA(page), psz);
			assert_userfault_exit(vcpu, GPA(page), access);
			exits++;
			vcpu_userfault_resolve(vcpu, GPA(page - 1), 2 * psz);
			break;
		}
		assert_done(vcpu, access == WRITE ? i + 200 : i + 300);
		TEST_ASSERT_EQ(*vttbr, access == WRITE ? i + 200 : i + 300);

		/* Until it is armed again, nothing exits; nor does its neighbour. */
		set_cmd(vcpu, VTTBR | WRITE, 0, i);
		assert_done(vcpu, i);
		TEST_ASSERT_EQ(*vttbr, i);
		vm_userfault_arm(vm, GPA(page + 1), psz);
		set_cmd(vcpu, VTTBR | READ, 0, 0);
		assert_done(vcpu, i);
	}
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), exits);
}

/* The page goes while L2 uses it. */
struct worker {
	struct kvm_vcpu *vcpu;
	sem_t stopped;
	sem_t resume;
	bool done;
};

static void *worker_fn(void *arg)
{
	struct worker *w = arg;
	int ret;

	for (;;) {
		ret = __vcpu_run(w->vcpu);
		if (ret && errno == EINTR && READ_ONCE(w->done))
			return NULL;

		TEST_ASSERT(is_userfault_exit(w->vcpu, ret), "ret %d errno %d exit reason %u",
			    ret, errno, w->vcpu->run->exit_reason);
		sem_post(&w->stopped);
		sem_wait(&w->resume);
	}
}

static void ignore_signal(int sig)
{
}

static void wait_progress(u64 *word)
{
	u64 before = READ_ONCE(*word);
	int ms;

	for (ms = 0; READ_ONCE(*word) - before < 100; ms++) {
		TEST_ASSERT(ms < 10000, "L2 is stuck");
		usleep(1000);
	}
}

KVM_ONE_VCPU_TEST(userfault_nested, vncr_running, l1_code)
{
	const u64 page = 7;
	u64 *vttbr = setup_vncr(vcpu, KVM_MEM_USERFAULT, page);
	struct sigaction sa = { .sa_handler = ignore_signal };
	struct kvm_run *run = vcpu->run;
	struct kvm_vm *vm = vcpu->vm;
	struct worker w = { .vcpu = vcpu };
	pthread_t thread;
	u64 i, frozen;

	write_guest_global(vm, l2_pc, addr_gva2gpa(vm, (gva_t)l2_count));
	sem_init(&w.stopped, 0, 0);
	sem_init(&w.resume, 0, 0);
	TEST_ASSERT(!sigaction(SIGUSR1, &sa, NULL), "sigaction() failed");
	TEST_ASSERT(!pthread_create(&thread, NULL, worker_fn, &w), "pthread_create() failed");

	for (i = 0; i < 50; i++) {
		wait_progress(vttbr);
		TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(page), psz), 1);
		frozen = READ_ONCE(*vttbr);
		sem_wait(&w.stopped);
		TEST_ASSERT_EQ(READ_ONCE(*vttbr), frozen);
		TEST_ASSERT_EQ(run->memory_fault.gpa, GPA(page));
		if (i % 2)
			vm_userfault_clear(vm, GPA(page), psz);
		else
			vcpu_userfault_resolve(vcpu, GPA(page), psz);
		sem_post(&w.resume);
	}

	wait_progress(vttbr);
	WRITE_ONCE(w.done, true);
	run->immediate_exit = 1;
	pthread_kill(thread, SIGUSR1);
	pthread_join(thread, NULL);
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), i);
}

int main(int argc, char *argv[])
{
	__TEST_REQUIRE(kvm_has_cap(KVM_CAP_USERFAULT), "KVM_CAP_USERFAULT is not there");
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_ARM_EL2));
	TEST_REQUIRE(getpagesize() == SZ_4K);

	return test_harness_run(argc, argv);
}
