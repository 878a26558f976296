// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for KVM userfault, of what only arm64 has:
 *
 *  - exits: table walks of stage 1, and instructions that are no plain load or store
 *  - poison: a page under a mapped block is armed, and who touches it gets an
 *    external abort, as real VMMs do it
 *  - a write to READONLY memory is MMIO, armed or not
 *  - resolve on KVM_RUN maps the page, and nothing that userspace does to the vCPU
 *    meanwhile makes that go wrong
 *  - toggling the flag write-protects nothing in a slot that is dirty logged
 *  - permission faults that change the size of the mapping
 *  - memory of a device, which must not be split
 *  - protected VMs, whose memory the host cannot reach, have no userfaults
 *  - MTE: tags that are stored before the clear are there after it, and no block
 *    brings tags that nobody has stored
 */
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <asm/mman.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "kvm_userfault_debug.h"
#include "kvm_userfault_guest.h"
#include "kvm_userfault_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

/* Arbitrarily chosen, to overlap nothing and to be aligned for any huge page. */
#define UF_SLOT		10
#define UF_GPA		0x100000000ul

#define psz		((u64)getpagesize())
#define GPA(page)	(UF_GPA + (page) * psz)

/* How many pages a block has, and its level. */
#define BLOCK		(psz / sizeof(u64))
#define BLOCK_LEVEL	(STAGE2_LAST_LEVEL - 1)

#define MEM_LOG		KVM_MEM_LOG_DIRTY_PAGES
#define MEM_RO		KVM_MEM_READONLY
#define MEM_UF		KVM_MEM_USERFAULT
#define MEM_ARMED	(KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED)

KVM_ONE_VCPU_TEST_SUITE(userfault_arm64);

static void *alloc_aligned(u64 npages, int prot)
{
	u64 size = npages * psz, align = BLOCK * psz;
	void *start = kvm_mmap(size + align, PROT_NONE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	void *hva = mmap(align_ptr_up(start, align), size, prot,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	TEST_ASSERT(hva != MAP_FAILED, "mmap() failed, errno %d", errno);
	return hva;
}

/* The guest sees it at gva == gpa; huge: backed by transparent huge pages. */
static u64 *add_slot(struct kvm_vm *vm, u32 flags, u64 npages, bool huge)
{
	void *hva = alloc_aligned(npages, PROT_READ | PROT_WRITE);

	kvm_madvise(hva, npages * psz, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	if (huge)
		memset(hva, 0, npages * psz);
	vm_set_user_memory_region(vm, UF_SLOT, flags, UF_GPA, npages * psz, hva);
	virt_map(vm, UF_GPA, UF_GPA, npages * psz / vm->page_size);
	return hva;
}

static u64 *word(u64 *hva, u64 page)
{
	return hva + page * psz / sizeof(u64);
}

static void guest_does(struct kvm_vcpu *vcpu, u64 access, gva_t gva, u64 val)
{
	set_cmd(vcpu, access, gva, val);
	assert_done(vcpu, val);
}

static u64 nr_blocks(struct kvm_vm *vm, u64 npages)
{
	return vm_nr_stage2(vm, BLOCK_LEVEL, UF_GPA, GPA(npages), "");
}

static u64 nr_small(struct kvm_vm *vm, u64 npages)
{
	return vm_nr_stage2(vm, STAGE2_LAST_LEVEL, UF_GPA, GPA(npages), "");
}

/*
 * Exits
 */

/* The table that maps UF_GPA is armed: who walks it reads, whatever the access. */
static void test_table_walk(struct kvm_vcpu *vcpu, u64 access)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = add_slot(vm, MEM_UF, 4, false);
	gpa_t table;

	table = addr_hva2gpa(vm, virt_get_pte_hva(vm, UF_GPA)) & ~(psz - 1);
	write_code(hva, 7);
	vm_mem_region_set_flags(vm, 0, MEM_UF);

	guest_does(vcpu, WRITE, GPA(2), 7);
	TEST_ASSERT_EQ(vm_userfault_arm(vm, table, psz), 1);
	set_cmd(vcpu, access, GPA(0), 7);
	assert_userfault_exit(vcpu, table, READ);
	assert_userfault_exit(vcpu, table, READ);

	/* The page itself, too: that comes next. */
	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(0), psz), 1);
	assert_userfault_exit(vcpu, table, READ);
	TEST_ASSERT_EQ(vm_userfault_clear(vm, table, psz), 1);
	assert_userfault_exit(vcpu, GPA(0), access);
	vcpu_userfault_resolve(vcpu, GPA(0), psz);
	assert_done(vcpu, access == READ ? *hva : 7);
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), 4);
}

KVM_ONE_VCPU_TEST(userfault_arm64, table_walk_read, guest_ops)
{
	test_table_walk(vcpu, READ);
}

KVM_ONE_VCPU_TEST(userfault_arm64, table_walk_write, guest_ops)
{
	test_table_walk(vcpu, WRITE);
}

KVM_ONE_VCPU_TEST(userfault_arm64, table_walk_exec, guest_ops)
{
	test_table_walk(vcpu, EXEC);
}

/* Instructions that do neither plainly load nor plainly store. */
static void guest_insns(u64 gva)
{
	u64 *p = (u64 *)gva, val, one = 1;

	asm volatile("dc zva, %0" : : "r" (p) : "memory");
	GUEST_SYNC(0x1);
	asm volatile(".arch_extension lse\n"
		     "ldadd %1, %0, [%2]" : "=&r" (val) : "r" (one), "r" (p) : "memory");
	GUEST_SYNC(val);
	asm volatile("1: ldaxr %0, [%1]\n"
		     "add %0, %0, #1\n"
		     "stlxr w9, %0, [%1]\n"
		     "cbnz w9, 1b" : "=&r" (val) : "r" (p) : "w9", "memory");
	GUEST_SYNC(val);
	asm volatile("ldp %0, %1, [%2]" : "=&r" (val), "=&r" (one) : "r" (p) : "memory");
	GUEST_SYNC(val);
}

KVM_ONE_VCPU_TEST(userfault_arm64, instructions, guest_insns)
{
	const struct {
		u64 access;
		u64 before, val, after;
	} insns[] = {
		{ WRITE, 0x5, 0x1, 0 },
		{ READ | WRITE, 0x10, 0x10, 0x11 },	/* the CPU decides which */
		{ READ, 0x20, 0x21, 0x21 },
		{ READ, 0x30, 0x30, 0x30 },
	};
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = add_slot(vm, MEM_UF, 4, false);
	struct kvm_run *run = vcpu->run;
	u64 access;
	int i, ret;

	vcpu_args_set(vcpu, 1, GPA(1));
	for (i = 0; i < ARRAY_SIZE(insns); i++) {
		TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(1), psz), 1);
		ret = _vcpu_run(vcpu);
		access = run->memory_fault.flags & ~KVM_MEMORY_EXIT_FLAG_USERFAULT;
		TEST_ASSERT(is_userfault_exit(vcpu, ret) &&
			    run->memory_fault.gpa == GPA(1) &&
			    run->memory_fault.size == psz &&
			    (access == READ || access == WRITE) && access & insns[i].access,
			    "#%d: ret %d errno %d exit reason %u access 0x%lx gpa 0x%llx",
			    i, ret, errno, run->exit_reason, access,
			    run->memory_fault.gpa);

		*word(hva, 1) = insns[i].before;
		TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(1), psz), 1);
		assert_done(vcpu, insns[i].val);
		TEST_ASSERT_EQ(*word(hva, 1), insns[i].after);
	}
}

/*
 * Poison: what the guest gets for it, and how it goes on
 */
static u64 sea_esr, sea_far, sea_pc;

static void guest_sea_handler(struct ex_regs *regs)
{
	u64 esr = read_sysreg(esr_el1);

	WRITE_ONCE(sea_esr, esr);
	WRITE_ONCE(sea_far, read_sysreg(far_el1));
	WRITE_ONCE(sea_pc, regs->pc);

	/* Skip the access, or return from what cannot be executed. */
	regs->pc = ESR_ELx_EC(esr) == ESR_ELx_EC_IABT_CUR ? regs->regs[30] : regs->pc + 4;
}

static void install_sea_handler(struct kvm_vcpu *vcpu)
{
	struct kvm_vm *vm = vcpu->vm;

	vm_init_descriptor_tables(vm);
	vcpu_init_descriptor_tables(vcpu);
	vm_install_sync_handler(vm, VECTOR_SYNC_CURRENT, ESR_ELx_EC_DABT_CUR,
				guest_sea_handler);
	vm_install_sync_handler(vm, VECTOR_SYNC_CURRENT, ESR_ELx_EC_IABT_CUR,
				guest_sea_handler);
}

static void inject_data_abort(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_events events = { .exception.ext_dabt_pending = true };

	vcpu_events_set(vcpu, &events);
}

/* KVM_SET_VCPU_EVENTS has data aborts only: take the exception here. */
static void inject_instruction_abort(struct kvm_vcpu *vcpu)
{
	u64 pc = vcpu_get_reg(vcpu, ARM64_CORE_REG(regs.pc));
	u64 pstate = vcpu_get_reg(vcpu, ARM64_CORE_REG(regs.pstate));
	u64 vbar = vcpu_get_reg(vcpu, KVM_ARM64_SYS_REG(SYS_VBAR_EL1));
	u64 esr = ESR_ELx_EC_IABT_CUR << ESR_ELx_EC_SHIFT | ESR_ELx_IL |
		  ESR_ELx_FSC_EXTABT;

	TEST_ASSERT_EQ(pstate & PSR_MODE_MASK, PSR_MODE_EL1h);
	vcpu_set_reg(vcpu, ARM64_CORE_REG(elr_el1), pc);
	vcpu_set_reg(vcpu, ARM64_CORE_REG(spsr[KVM_SPSR_EL1]), pstate);
	vcpu_set_reg(vcpu, KVM_ARM64_SYS_REG(SYS_ESR_EL1), esr);
	vcpu_set_reg(vcpu, KVM_ARM64_SYS_REG(SYS_FAR_EL1), pc);
	vcpu_set_reg(vcpu, ARM64_CORE_REG(regs.pstate), PSR_MODE_EL1h | PSR_D_BIT |
		     PSR_A_BIT | PSR_I_BIT | PSR_F_BIT);
	vcpu_set_reg(vcpu, ARM64_CORE_REG(regs.pc), vbar + 0x200);
}

static void assert_sea(struct kvm_vcpu *vcpu, u64 ec, gpa_t addr)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 esr;

	sync_global_from_guest(vm, sea_esr);
	sync_global_from_guest(vm, sea_far);
	esr = sea_esr;
	TEST_ASSERT(ESR_ELx_EC(esr) == ec && (esr & ESR_ELx_FSC) == ESR_ELx_FSC_EXTABT &&
		    sea_far == addr, "ESR 0x%lx FAR 0x%lx, wanted EC 0x%lx FAR 0x%lx",
		    esr, sea_far, ec, addr);
}

KVM_ONE_VCPU_TEST(userfault_arm64, poison, guest_ops)
{
	const u64 accesses[] = { READ, WRITE, EXEC };
	const u64 npages = 3 * BLOCK;
	struct kvm_vm *vm = vcpu->vm;
	u64 exits = 0, i, *hva;

	TEST_REQUIRE(thp_configured());
	__TEST_REQUIRE(has_stage2_dump(), "No stage 2 tables in %s", KVM_DEBUGFS);

	hva = add_slot(vm, MEM_UF, npages, true);
	install_sea_handler(vcpu);
	for (i = 0; i < npages; i += BLOCK)
		guest_does(vcpu, WRITE, GPA(i), i);
	TEST_ASSERT_EQ(nr_blocks(vm, npages), 3);

	for (i = 0; i < ARRAY_SIZE(accesses); i++) {
		u64 page = i * BLOCK + 10 + i, access = accesses[i];
		u64 ec = access == EXEC ? ESR_ELx_EC_IABT_CUR : ESR_ELx_EC_DABT_CUR;

		/* Exactly this page goes. */
		TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(page), psz), 1);
		TEST_ASSERT_EQ(nr_blocks(vm, npages), 2 - i);
		TEST_ASSERT_EQ(nr_small(vm, npages), (i + 1) * (BLOCK - 1));

		*word(hva, page) = 0xbad;
		set_cmd(vcpu, access, GPA(page), 0x1234);
		assert_userfault_exit(vcpu, GPA(page), access);
		if (access == EXEC)
			inject_instruction_abort(vcpu);
		else
			inject_data_abort(vcpu);
		TEST_ASSERT(vcpu_run_to_sync(vcpu) != 0xbad, "The guest has read it");
		assert_sea(vcpu, ec, GPA(page));
		TEST_ASSERT_EQ(*word(hva, page), 0xbad);
		TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), ++exits);

		/* The neighbours, and the page a second time. */
		guest_does(vcpu, WRITE, GPA(page - 1), 1);
		guest_does(vcpu, WRITE, GPA(page + 1), 2);
		TEST_ASSERT_EQ(nr_small(vm, npages), (i + 1) * (BLOCK - 1));
		set_cmd(vcpu, READ, GPA(page) + 8, 0);
		assert_userfault_exit(vcpu, GPA(page), READ);
		inject_data_abort(vcpu);
		vcpu_run_to_sync(vcpu);
		assert_sea(vcpu, ESR_ELx_EC_DABT_CUR, GPA(page) + 8);
		exits++;
	}

	/* Good memory in its place: blocks again. */
	TEST_ASSERT_EQ(vm_userfault_set(vm, UF_GPA, npages * psz,
					KVM_USERFAULT_COLLAPSE, NULL), 3);
	for (i = 0; i < npages; i += BLOCK)
		guest_does(vcpu, WRITE, GPA(i) + 8, i);
	TEST_ASSERT_EQ(nr_blocks(vm, npages), 3);
	TEST_ASSERT_EQ(nr_small(vm, npages), 0);
}

/*
 * READONLY: a write goes to the VMM, and leaves the page alone.
 */
KVM_ONE_VCPU_TEST(userfault_arm64, readonly, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	struct kvm_run *run = vcpu->run;
	u64 *hva = add_slot(vm, MEM_ARMED | MEM_RO, 4, false);
	int i;

	*word(hva, 1) = 0x11;
	for (i = 0; i < 2; i++) {
		set_cmd(vcpu, WRITE, GPA(1), 0x22);
		vcpu_run(vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
		TEST_ASSERT(run->mmio.phys_addr == GPA(1) && run->mmio.is_write &&
			    run->mmio.len == 8, "MMIO at 0x%llx", run->mmio.phys_addr);
		assert_done(vcpu, 0x22);
		TEST_ASSERT_EQ(vm_userfault_is_armed(vm, GPA(1)), !i);
		TEST_ASSERT_EQ(*word(hva, 1), 0x11);
		if (i)
			break;

		set_cmd(vcpu, READ, GPA(1), 0);
		assert_userfault_exit(vcpu, GPA(1), READ);
		vcpu_userfault_resolve(vcpu, GPA(1), psz);
		assert_done(vcpu, 0x11);
	}
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), 1);
}

/*
 * Resolve: the page is mapped by the time that the guest comes back to it.
 */
static void warm_up(struct kvm_vcpu *vcpu, u64 *hva)
{
	vm_userfault_clear(vcpu->vm, GPA(0), psz);
	write_code(hva, 7);
	guest_does(vcpu, EXEC, GPA(0), 7);
	guest_does(vcpu, WRITE, GPA(0) + 64, 1);
	guest_does(vcpu, READ, GPA(0) + 64, 1);
}

KVM_ONE_VCPU_TEST(userfault_arm64, pre_map, guest_ops)
{
	const u64 accesses[] = { READ, WRITE, EXEC };
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = add_slot(vm, MEM_ARMED, 64, false);
	struct trace trace;
	u64 i, faults = 0;

	trace_begin(&trace);
	warm_up(vcpu, hva);
	trace_enable(&trace, "kvm_guest_fault");

	/* One fault for each page: that of the exit. */
	for (i = 1; i < 60; i++) {
		u64 access = accesses[i % ARRAY_SIZE(accesses)];

		write_code(word(hva, i), i);
		set_cmd(vcpu, access, GPA(i), i);
		assert_userfault_exit(vcpu, GPA(i), access);
		TEST_ASSERT_EQ(trace_count(&trace, "kvm_guest_fault", NULL), faults + 1);
		vcpu_userfault_resolve(vcpu, GPA(i), psz);
		assert_done(vcpu, access == READ ? *word(hva, i) : i);

		/* GUEST_SYNC() is a fault as well. */
		faults += 2;
		TEST_ASSERT_EQ(trace_count(&trace, "kvm_guest_fault", NULL), faults);
	}
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), i - 1);

	/* Not resolved by the ioctl: the guest comes once more for it. */
	set_cmd(vcpu, READ, GPA(i), 0);
	assert_userfault_exit(vcpu, GPA(i), READ);
	vm_userfault_clear(vm, GPA(i), psz);
	assert_done(vcpu, 0);
	TEST_ASSERT_EQ(trace_count(&trace, "kvm_guest_fault", NULL), faults + 3);

	trace_end(&trace);
}

/* In between, userspace does to the memory and to the vCPU what it likes. */
KVM_ONE_VCPU_TEST(userfault_arm64, pre_map_changed, guest_ops)
{
	const u64 pc = vcpu_get_reg(vcpu, ARM64_CORE_REG(regs.pc));
	const u64 sp = vcpu_get_reg(vcpu, ctxt_reg_alias(vcpu, SYS_SP_EL1));
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = add_slot(vm, MEM_ARMED, 64, false);
	void *other = alloc_aligned(64, PROT_READ | PROT_WRITE);
	struct kvm_run *run = vcpu->run;

	warm_up(vcpu, hva);

	/* The page cannot be had: the guest's own access says so. */
	set_cmd(vcpu, READ, GPA(1), 0);
	assert_userfault_exit(vcpu, GPA(1), READ);
	TEST_ASSERT(!mprotect(word(hva, 1), psz, PROT_NONE), "mprotect()");
	vcpu_userfault_resolve(vcpu, GPA(1), psz);
	TEST_ASSERT(_vcpu_run(vcpu) == -1 && errno == EFAULT, "No fault on PROT_NONE");
	TEST_ASSERT(!mprotect(word(hva, 1), psz, PROT_READ | PROT_WRITE), "mprotect()");
	assert_done(vcpu, 0);

	/* READONLY: the write is MMIO then, and once. */
	set_cmd(vcpu, WRITE, GPA(2), 0x22);
	assert_userfault_exit(vcpu, GPA(2), WRITE);
	vm_set_user_memory_region(vm, UF_SLOT, 0, UF_GPA, 0, hva);
	vm_set_user_memory_region(vm, UF_SLOT, MEM_RO, UF_GPA, 64 * psz, other);
	vcpu_userfault_resolve(vcpu, GPA(2), psz);
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	TEST_ASSERT(run->mmio.phys_addr == GPA(2) && run->mmio.is_write,
		    "MMIO at 0x%llx", run->mmio.phys_addr);
	assert_done(vcpu, 0x22);
	vm_set_user_memory_region(vm, UF_SLOT, 0, UF_GPA, 0, hva);
	vm_set_user_memory_region(vm, UF_SLOT, MEM_ARMED, UF_GPA, 64 * psz, hva);

	/* The vCPU is reset, and starts anew. */
	set_cmd(vcpu, WRITE, GPA(3), 0x33);
	assert_userfault_exit(vcpu, GPA(3), WRITE);
	aarch64_vcpu_setup(vcpu, NULL);
	vcpu_set_reg(vcpu, ctxt_reg_alias(vcpu, SYS_SP_EL1), sp);
	vcpu_set_reg(vcpu, ARM64_CORE_REG(regs.pc), pc);
	vcpu_userfault_resolve(vcpu, GPA(3), psz);
	assert_done(vcpu, 0x33);
	TEST_ASSERT(!vm_userfault_is_armed(vm, GPA(3)) && vm_userfault_is_armed(vm, GPA(4)),
		    "Not exactly page 3 was cleared");
}

static int nr_sigbus;

static void count_sigbus(int sig, siginfo_t *info, void *context)
{
	nr_sigbus++;
}

/* The memory has failed: who touches it is told, not who has merely resolved it. */
KVM_ONE_VCPU_TEST(userfault_arm64, pre_map_hwpoison, guest_ops)
{
	const u64 pc = vcpu_get_reg(vcpu, ARM64_CORE_REG(regs.pc));
	const u64 sp = vcpu_get_reg(vcpu, ctxt_reg_alias(vcpu, SYS_SP_EL1));
	struct sigaction action = {
		.sa_sigaction = count_sigbus,
		.sa_flags = SA_SIGINFO,
	};
	u64 *hva = add_slot(vcpu->vm, MEM_ARMED, 64, false);

	warm_up(vcpu, hva);
	sigaction(SIGBUS, &action, NULL);

	*word(hva, 1) = 0x11;
	set_cmd(vcpu, READ, GPA(1), 0);
	assert_userfault_exit(vcpu, GPA(1), READ);
	__TEST_REQUIRE(!madvise(word(hva, 1), psz, MADV_HWPOISON),
		       "MADV_HWPOISON: errno %d", errno);

	/* The vCPU is reset, and does something else. */
	vm_userfault_clear(vcpu->vm, GPA(2), psz);
	*word(hva, 2) = 0x22;
	aarch64_vcpu_setup(vcpu, NULL);
	vcpu_set_reg(vcpu, ctxt_reg_alias(vcpu, SYS_SP_EL1), sp);
	vcpu_set_reg(vcpu, ARM64_CORE_REG(regs.pc), pc);
	set_cmd(vcpu, READ, GPA(2), 0);
	vcpu_userfault_resolve(vcpu, GPA(1), psz);
	nr_sigbus = 0;
	assert_done(vcpu, 0x22);
	TEST_ASSERT_EQ(nr_sigbus, 0);

	set_cmd(vcpu, READ, GPA(1), 0);
	TEST_ASSERT(__vcpu_run(vcpu) == -1 && errno == EINTR, "No signal for failed memory");
	TEST_ASSERT_EQ(nr_sigbus, 1);
}

/*
 * Dirty logging.  With a write-protected page each of these would be a fault, and
 * all pages that were written would have to be written again to be writable.
 */
KVM_ONE_VCPU_TEST(userfault_arm64, toggle_dirty_logged, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 i, *hva = add_slot(vm, MEM_LOG, 64, false);
	const u32 flags[] = { MEM_LOG | MEM_UF, MEM_LOG };

	__TEST_REQUIRE(has_stage2_dump(), "No stage 2 tables in %s", KVM_DEBUGFS);

	for (i = 0; i < 64; i += 2)
		guest_does(vcpu, WRITE, GPA(i), i);
	TEST_ASSERT_EQ(vm_nr_stage2(vm, STAGE2_LAST_LEVEL, UF_GPA, GPA(64), " W "), 32);

	for (i = 0; i < 4; i++) {
		vm_set_user_memory_region(vm, UF_SLOT, flags[i % 2], UF_GPA, 64 * psz, hva);
		TEST_ASSERT_EQ(vm_nr_stage2(vm, STAGE2_LAST_LEVEL, UF_GPA, GPA(64),
					    " W "), 32);
	}
}

/*
 * Permission faults that change the size of the mapping, all of them for a page that
 * is to be executed: what was read first cannot be, unless the CPU has coherent caches.
 */
static bool has_dic(void)
{
	return read_sysreg(ctr_el0) & BIT(CTR_EL0_DIC_SHIFT);
}

/* A page becomes its block, as the armed page next to it is clear. */
KVM_ONE_VCPU_TEST(userfault_arm64, perm_fault_grows, guest_ops)
{
	const u64 npages = 4 * BLOCK;
	struct kvm_vm *vm = vcpu->vm;
	u64 i, *hva;

	TEST_REQUIRE(thp_configured());

	hva = add_slot(vm, MEM_UF, npages, true);
	for (i = 0; i < npages; i += BLOCK) {
		write_code(word(hva, i + 1), 7);
		TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(i), psz), 1);
		guest_does(vcpu, READ, GPA(i + 1) + 64, 0);
		TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(i), psz), 1);
		guest_does(vcpu, EXEC, GPA(i + 1), 7);
		guest_does(vcpu, READ, GPA(i), 0);
	}
	if (has_stage2_dump())
		TEST_ASSERT_EQ(nr_blocks(vm, npages), 4);
	if (has_dic())
		pr_info("All pages can be executed: there were no permission faults\n");
}

/*
 * A block becomes pages, as it is dirty logged now.  Each takes a page for the table,
 * which no fault of another kind leaves behind: there are more of them than KVM
 * keeps for a vCPU.
 */
KVM_ONE_VCPU_TEST(userfault_arm64, perm_fault_shrinks, guest_ops)
{
	const u64 nblocks = 50, npages = nblocks * BLOCK;
	struct kvm_vm *vm = vcpu->vm;
	u64 i, *hva;

	TEST_REQUIRE(thp_configured());
	/* Blocks are larger than one can test with on hosts with larger pages. */
	TEST_REQUIRE(psz == SZ_4K);

	/* The log starts without splitting what is mapped, nor write-protecting it. */
	vm_enable_cap(vm, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		      KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);

	hva = add_slot(vm, MEM_UF, npages, true);
	for (i = 0; i < npages; i += BLOCK) {
		write_code(word(hva, i), 7);
		guest_does(vcpu, READ, GPA(i) + 64, 0);
	}
	if (has_stage2_dump())
		TEST_ASSERT_EQ(nr_blocks(vm, npages), nblocks);

	vm_set_user_memory_region(vm, UF_SLOT, MEM_UF | MEM_LOG, UF_GPA, npages * psz, hva);
	for (i = 0; i < npages; i += BLOCK)
		guest_does(vcpu, EXEC, GPA(i), 7);
	if (has_stage2_dump() && !has_dic())
		TEST_ASSERT_EQ(nr_small(vm, npages), nblocks);
}

/*
 * A device that VFIO lets userspace map by a block.  There is no need for an IOMMU, as
 * QEMU's ivshmem does no DMA: it is memory, in its BAR 2, which KVM knows nothing of.
 */
#define DEVICE		"0000:00:1e.0"
#define SYSFS_DEVICE	"/sys/bus/pci/devices/" DEVICE

static void write_file(const char *path, const char *val)
{
	int fd = open(path, O_WRONLY);

	TEST_ASSERT(fd >= 0 && write(fd, val, strlen(val)) == strlen(val),
		    "Cannot write to %s, errno %d", path, errno);
	close(fd);
}

static void *map_device(u64 size)
{
	struct vfio_region_info info = {
		.argsz = sizeof(info),
		.index = VFIO_PCI_BAR2_REGION_INDEX,
	};
	char id[8] = {}, link[128] = {}, path[256];
	int fd, group, container, device;
	void *hva;

	fd = open(SYSFS_DEVICE "/device", O_RDONLY);
	__TEST_REQUIRE(fd >= 0 && read(fd, id, 6) == 6 && !strcmp(id, "0x1110"),
		       "No ivshmem at " DEVICE);
	close(fd);

	write_file("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y");
	write_file(SYSFS_DEVICE "/driver_override", "vfio-pci");
	write_file("/sys/bus/pci/drivers_probe", DEVICE);
	TEST_ASSERT(readlink(SYSFS_DEVICE "/iommu_group", link, sizeof(link) - 1) > 0,
		    "No group, errno %d", errno);
	snprintf(path, sizeof(path), "/dev/vfio/noiommu-%s", strrchr(link, '/') + 1);

	group = open(path, O_RDWR);
	container = open("/dev/vfio/vfio", O_RDWR);
	TEST_ASSERT(group >= 0 && container >= 0, "Cannot open %s, errno %d", path, errno);
	TEST_ASSERT(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) &&
		    !ioctl(container, VFIO_SET_IOMMU, VFIO_NOIOMMU_IOMMU),
		    "Cannot set up %s, errno %d", path, errno);
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, DEVICE);
	TEST_ASSERT(device >= 0 && !ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) &&
		    info.size == size, "Not the device, errno %d", errno);

	hva = mmap(alloc_aligned(size / psz, PROT_NONE), size, PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_FIXED, device, info.offset);
	TEST_ASSERT(hva != MAP_FAILED, "Cannot map the device, errno %d", errno);
	return hva;
}

/* A part of it is armed: what splitting would make cacheable is unmapped instead. */
KVM_ONE_VCPU_TEST(userfault_arm64, device, guest_ops)
{
	struct kvm_vm *vm = vcpu->vm;
	void *hva;
	int i;

	/* Nothing there is as large as other blocks. */
	TEST_REQUIRE(psz == SZ_4K);
	__TEST_REQUIRE(has_stage2_dump(), "No stage 2 tables in %s", KVM_DEBUGFS);

	hva = map_device(SZ_2M);
	vm_set_user_memory_region(vm, UF_SLOT, MEM_UF, UF_GPA, SZ_2M, hva);
	virt_map(vm, UF_GPA, UF_GPA, BLOCK);

	for (i = 0; i < 3; i++) {
		guest_does(vcpu, WRITE, GPA(7), i);
		TEST_ASSERT_EQ(nr_blocks(vm, BLOCK), 1);
		TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(10), psz), 1);
		TEST_ASSERT_EQ(nr_blocks(vm, BLOCK), 0);
		TEST_ASSERT_EQ(nr_small(vm, BLOCK), 0);

		guest_does(vcpu, READ, GPA(7), i);
		TEST_ASSERT_EQ(nr_small(vm, BLOCK), 1);
		set_cmd(vcpu, WRITE, GPA(10), 100);
		assert_userfault_exit(vcpu, GPA(10), WRITE);
		TEST_ASSERT_EQ(vm_userfault_set(vm, GPA(10), psz, KVM_USERFAULT_COLLAPSE,
						NULL), 1);
		assert_done(vcpu, 100);
	}
	TEST_ASSERT_EQ(vm_get_stat(vm, userfault_splits), 0);
}

/*
 * Protected VMs: only pKVM has them, any other host does not create them.
 */
TEST(protected_vm)
{
	struct kvm_vm *vm = vm_create_barebones();
	int fd = __kvm_ioctl(vm->kvm_fd, KVM_CREATE_VM, (void *)KVM_VM_TYPE_ARM_PROTECTED);
	void *hva = alloc_aligned(1, PROT_READ | PROT_WRITE);

	TEST_ASSERT(vm_check_cap(vm, KVM_CAP_USERFAULT), "No userfaults in other VMs");
	if (fd < 0) {
		TEST_ASSERT_EQ(errno, EINVAL);
		pr_info("Not pKVM: there are no protected VMs\n");
		kvm_vm_free(vm);
		return;
	}

	kvm_close(fd);
	kvm_vm_free(vm);
	vm = vm_create_barebones_of_type(KVM_VM_TYPE_ARM_PROTECTED);
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_USERFAULT), 0);
	TEST_ASSERT(__vm_set_user_memory_region(vm, UF_SLOT, MEM_UF, UF_GPA, psz, hva) == -1 &&
		    errno == EINVAL, "KVM_MEM_USERFAULT did not fail as it should");
	vm_set_user_memory_region(vm, UF_SLOT, 0, UF_GPA, psz, hva);
	TEST_ASSERT_EQ(__vm_userfault_set(vm, UF_GPA, psz, KVM_USERFAULT_ARM, NULL), ENOENT);
	TEST_ASSERT_EQ(vm_userfault_clear(vm, UF_GPA, psz), 0);
	kvm_vm_free(vm);
}

/*
 * MTE
 */
static u64 guest_step;

/* Touch the first page; then all tags, of the first granules of pages, or'ed. */
static void guest_load_tags(void)
{
	struct guest_cmd *cmd = &guest_cmds[0];

	for (;;) {
		u64 gva = READ_ONCE(cmd->gva), end = gva + READ_ONCE(cmd->val);
		u64 tags = 0, tag;

		if (READ_ONCE(cmd->access) == EXEC)
			((u64 (*)(void))gva)();

		for (; gva < end; gva += guest_step) {
			tag = gva;
			asm volatile(".arch armv8.5-a+memtag\n"
				     "ldg %0, [%0]" : "+r" (tag) : : "memory");
			tags |= tag >> 56 & 0xf;
		}
		GUEST_SYNC(tags);
	}
}

static void assert_tags(struct kvm_vcpu *vcpu, u64 access, u64 page, u64 nr, u64 tags)
{
	set_cmd(vcpu, access, GPA(page), nr * psz);
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), tags);
}

static bool has_mte(void)
{
	return kvm_has_cap(KVM_CAP_ARM_MTE) && getauxval(AT_HWCAP2) & HWCAP2_MTE;
}

static struct kvm_vm *create_mte_vm(struct kvm_vcpu **vcpu)
{
	struct kvm_vm *vm;
	u64 sctlr, mair;

	test_wants_mte();
	vm = vm_create_with_one_vcpu(vcpu, guest_load_tags);
	write_guest_global(vm, guest_step, psz);

	/* Tags can be accessed, and normal memory is tagged memory. */
	sctlr = vcpu_get_reg(*vcpu, ctxt_reg_alias(*vcpu, SYS_SCTLR_EL1));
	vcpu_set_reg(*vcpu, ctxt_reg_alias(*vcpu, SYS_SCTLR_EL1), sctlr | SCTLR_ELx_ATA);
	mair = DEFAULT_MAIR_EL1 & ~MAIR_ATTRIDX(MAIR_ATTR_MASK, MT_NORMAL);
	mair |= MAIR_ATTRIDX(MAIR_ATTR_NORMAL_TAGGED, MT_NORMAL);
	vcpu_set_reg(*vcpu, ctxt_reg_alias(*vcpu, SYS_MAIR_EL1), mair);
	return vm;
}

static void copy_tags(struct kvm_vm *vm, gpa_t gpa, u8 tag)
{
	u8 tags[SZ_64K / 16];
	struct kvm_arm_copy_mte_tags copy = {
		.guest_ipa = gpa,
		.length = psz,
		.addr = tags,
		.flags = KVM_ARM_TAGS_TO_GUEST,
	};

	memset(tags, tag, sizeof(tags));
	TEST_ASSERT(__vm_ioctl(vm, KVM_ARM_MTE_COPY_TAGS, &copy) == psz,
		    "KVM_ARM_MTE_COPY_TAGS failed, errno %d", errno);
}

TEST(mte_tags)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 i;

	__TEST_REQUIRE(has_mte(), "No MTE");
	vm = create_mte_vm(&vcpu);
	add_slot(vm, MEM_ARMED, 16, false);

	for (i = 0; i < 16; i++) {
		copy_tags(vm, GPA(i), i);
		TEST_ASSERT(vm_userfault_is_armed(vm, GPA(i)), "KVM has cleared it");

		set_cmd(vcpu, READ, GPA(i), psz);
		assert_userfault_exit(vcpu, GPA(i), READ);
		if (i % 2)
			vm_userfault_clear(vm, GPA(i), psz);
		else
			vcpu_userfault_resolve(vcpu, GPA(i), psz);
		assert_tags(vcpu, READ, i, 1, i);
	}

	/* Armed and clear again: they are what they were. */
	TEST_ASSERT_EQ(vm_userfault_arm(vm, UF_GPA, 16 * psz), 16);
	TEST_ASSERT_EQ(vm_userfault_clear(vm, UF_GPA, 16 * psz), 16);
	for (i = 0; i < 16; i++)
		assert_tags(vcpu, READ, i, 1, i);
	kvm_vm_free(vm);
}

/*
 * Pages that were never mapped come with a block, when a page of it gets a further
 * permission.  The memory has had tags before, which are nobody's business now.
 */
TEST(mte_block)
{
	const u64 npages = 4 * BLOCK;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 i, *hva;
	void *old;

	__TEST_REQUIRE(has_mte(), "No MTE");
	TEST_REQUIRE(thp_configured());
	/* Blocks are larger than one can test with on hosts with larger pages. */
	TEST_REQUIRE(psz == SZ_4K);
	__TEST_REQUIRE(has_stage2_dump(), "No stage 2 tables in %s", KVM_DEBUGFS);

	/* What is freed here is likely to be what is allocated next. */
	old = alloc_aligned(16 * npages, PROT_READ | PROT_WRITE | PROT_MTE);
	kvm_madvise(old, 16 * npages * psz, MADV_HUGEPAGE);
	for (i = 0; i < 16 * npages * psz; i += 16)
		asm volatile(".arch armv8.5-a+memtag\n"
			     "stg %0, [%1]" : : "r" (5ul << 56), "r" (old + i) : "memory");
	kvm_munmap(old, 16 * npages * psz);

	vm = create_mte_vm(&vcpu);
	hva = add_slot(vm, MEM_UF, npages, true);
	for (i = 0; i < npages; i += BLOCK) {
		write_code(word(hva, i + 1), 0);
		TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(i), psz), 1);
		assert_tags(vcpu, READ, i + 1, 1, 0);
		TEST_ASSERT_EQ(nr_small(vm, npages), 1);
		TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(i), psz), 1);

		/* It could not be executed; once it can, so can all of the block. */
		assert_tags(vcpu, EXEC, i + 1, BLOCK - 1, 0);
		assert_tags(vcpu, READ, i, BLOCK, 0);
		TEST_ASSERT_EQ(nr_small(vm, npages), 0);
	}
	if (has_dic())
		pr_info("All pages can be executed: blocks came by the pages' own faults\n");
	kvm_vm_free(vm);
}

/* Huge pages of HugeTLB have one flag for the tags of all pages, be one mapped or all. */
TEST(mte_hugetlb)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
	const u64 npages = 4 * BLOCK;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	void *hva;
	u64 i;

	__TEST_REQUIRE(has_mte(), "No MTE");
	/* Blocks are larger than one can test with on hosts with larger pages. */
	TEST_REQUIRE(psz == SZ_4K);
	vm = create_mte_vm(&vcpu);

	/* What is freed here is what is allocated next, and its tags stay what they are. */
	hva = mmap(NULL, npages * psz, PROT_READ | PROT_WRITE | PROT_MTE, flags, -1, 0);
	__TEST_REQUIRE(hva != MAP_FAILED, "No huge pages");
	for (i = 0; i < npages * psz; i += 16)
		asm volatile(".arch armv8.5-a+memtag\n"
			     "stg %0, [%1]" : : "r" (5ul << 56), "r" (hva + i) : "memory");
	kvm_munmap(hva, npages * psz);

	hva = kvm_mmap(npages * psz, PROT_READ | PROT_WRITE, flags, -1);
	memset(hva, 0, npages * psz);
	vm_set_user_memory_region(vm, UF_SLOT, MEM_UF, UF_GPA, npages * psz, hva);
	virt_map(vm, UF_GPA, UF_GPA, npages);

	for (i = 0; i < npages; i += BLOCK) {
		TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(i), psz), 1);
		if (i / BLOCK % 2) {
			copy_tags(vm, GPA(i + 1), 3);
			assert_tags(vcpu, READ, i + 1, 1, 3);
		} else {
			assert_tags(vcpu, READ, i + 1, 1, 0);
		}
		assert_tags(vcpu, READ, i + 2, BLOCK - 2, 0);
	}
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE_USERFAULT();

	return test_harness_run(argc, argv);
}
