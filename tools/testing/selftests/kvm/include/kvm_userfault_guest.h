/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Guest code that the userfault tests share: a guest that does one access after the
 * other, as the host tells it, and, on x86, an L1 guest that does nothing but run L2.
 * To be included by the test itself: guest code is linked into the test.
 */
#ifndef SELFTEST_KVM_USERFAULT_GUEST_H
#define SELFTEST_KVM_USERFAULT_GUEST_H

#include "kvm_util.h"
#include "kvm_userfault_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

/* Accesses are called what the exits call them. */
#define READ	KVM_MEMORY_EXIT_FLAG_READ
#define WRITE	KVM_MEMORY_EXIT_FLAG_WRITE
#define EXEC	KVM_MEMORY_EXIT_FLAG_EXEC

struct guest_cmd {
	u64 access;
	u64 gva;
	u64 val;
};

/* What each vCPU shall do next; the host writes it while the vCPU is stopped. */
static struct guest_cmd guest_cmds[2];

static inline void guest_ops(u64 id)
{
	struct guest_cmd *cmd = &guest_cmds[id];

	for (;;) {
		u64 *p = (u64 *)READ_ONCE(cmd->gva);
		u64 val = 0;

		switch (READ_ONCE(cmd->access)) {
		case READ:
			val = READ_ONCE(*p);
			break;
		case WRITE:
			val = READ_ONCE(cmd->val);
			WRITE_ONCE(*p, val);
			break;
		case EXEC:
			val = ((u64 (*)(void))p)();
			break;
		}

		GUEST_SYNC(val);
	}
}

static inline void set_cmd(struct kvm_vcpu *vcpu, u64 access, gva_t gva, u64 val)
{
	struct guest_cmd cmd = {
		.access = access,
		.gva = gva,
		.val = val,
	};

	write_guest_global(vcpu->vm, guest_cmds[vcpu->id], cmd);
}

/* Finish the current command, without any exit on the way. */
static inline void assert_done(struct kvm_vcpu *vcpu, u64 val)
{
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), val);
}

/* A function that returns @val. */
static inline void write_code(void *hva, u16 val)
{
#if defined(__x86_64__)
	u8 code[] = { 0xb8, val, val >> 8, 0, 0, 0xc3 };
#elif defined(__aarch64__)
	u32 code[] = { 0x52800000 | val << 5, 0xd65f03c0 };
#endif
	memcpy(hva, code, sizeof(code));
	__builtin___clear_cache(hva, hva + sizeof(code));
}

#ifdef __x86_64__
#include "svm_util.h"
#include "vmx.h"

#define L2_GUEST_STACK_SIZE	64

/* L1: run @l2_guest_code for ever; @nested is what vcpu_setup_nested() passes. */
static inline void l1_run_l2(void *nested, void *l2_guest_code)
{
	unsigned long l2_guest_stack[L2_GUEST_STACK_SIZE];
	void *rsp = &l2_guest_stack[L2_GUEST_STACK_SIZE];
	struct svm_test_data *svm = nested;

	if (this_cpu_has(X86_FEATURE_VMX)) {
		GUEST_ASSERT(prepare_for_vmx_operation(nested));
		GUEST_ASSERT(load_vmcs(nested));
		prepare_vmcs(nested, l2_guest_code, rsp);
		GUEST_ASSERT(!vmlaunch());
		GUEST_FAIL("L2 exits to L1");
	} else {
		generic_svm_setup(svm, l2_guest_code, rsp);
		run_guest(svm->vmcb, svm->vmcb_gpa);
		GUEST_FAIL("L2 exits to L1, exit code 0x%lx",
			   (unsigned long)svm->vmcb->control.exit_code);
	}
}

static inline void vcpu_setup_nested(struct kvm_vcpu *vcpu, bool nested_tdp)
{
	gva_t nested_gva;

	if (nested_tdp)
		vm_enable_tdp(vcpu->vm);
	if (kvm_cpu_has(X86_FEATURE_VMX))
		vcpu_alloc_vmx(vcpu->vm, &nested_gva);
	else
		vcpu_alloc_svm(vcpu->vm, &nested_gva);
	vcpu_args_set(vcpu, 1, nested_gva);
}
#endif /* __x86_64__ */

#endif /* SELFTEST_KVM_USERFAULT_GUEST_H */
