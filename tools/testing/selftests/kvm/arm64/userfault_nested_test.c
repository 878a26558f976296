// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM userfault below a nested guest: L1, at EL2, has stage 2 tables for L2, which
 * touches armed memory of L1.  The exit has L1's address, and what was mapped for
 * L2 goes when it is armed.
 *
 * Needs kvm-arm.mode=nested, and a CPU with FEAT_NV2.
 */
#include <linux/sizes.h>

#include <sys/mman.h>

#include "kvm_test_harness.h"
#include "kvm_util.h"
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

/* L2 has no stack.  x0: address, x1: value, x2: write? */
static noinline void l2_code(void)
{
	asm volatile("0:	cbnz	x2, 1f\n"
		     "	ldr	x1, [x0]\n"
		     "	b	2f\n"
		     "1:	str	x1, [x0]\n"
		     "2:	hvc	#0\n"
		     "	b	0b\n" : : : "x0", "x1", "x2", "memory");
}

/* L2 is done with what it was told: tell the host, and give it the next order. */
static void l1_hvc_handler(struct ex_regs *regs)
{
	struct guest_cmd *cmd = &guest_cmds[0];

	GUEST_SYNC(regs->regs[1]);

	regs->regs[0] = READ_ONCE(cmd->gva);
	regs->regs[1] = READ_ONCE(cmd->val);
	regs->regs[2] = READ_ONCE(cmd->access) == WRITE;
}

static void l1_code(void)
{
	struct guest_cmd *cmd = &guest_cmds[0];

	write_sysreg_s(l2_table, SYS_VTTBR_EL2);
	write_sysreg_s(L2_VTCR, SYS_VTCR_EL2);
	write_sysreg_s(HCR_EL2_RW | HCR_EL2_E2H | HCR_EL2_VM, SYS_HCR_EL2);
	write_sysreg_s(0x30d00800, sys_reg(3, 5, 1, 0, 0));	/* SCTLR_EL12: MMU off */
	write_sysreg_s(l2_pc, SYS_ELR_EL1);			/* of EL2, with E2H */
	write_sysreg_s(PSR_MODE_EL1h | 0x3c0, SYS_SPSR_EL1);
	isb();

	asm volatile("mov	x0, %0\n"
		     "mov	x1, %1\n"
		     "mov	x2, %2\n"
		     "eret" : : "r" (READ_ONCE(cmd->gva)), "r" (READ_ONCE(cmd->val)),
				"r" ((u64)(READ_ONCE(cmd->access) == WRITE)) :
		     "x0", "x1", "x2", "memory");
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

int main(int argc, char *argv[])
{
	__TEST_REQUIRE(kvm_has_cap(KVM_CAP_USERFAULT), "KVM_CAP_USERFAULT is not there");
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_ARM_EL2));
	TEST_REQUIRE(getpagesize() == SZ_4K);

	return test_harness_run(argc, argv);
}
