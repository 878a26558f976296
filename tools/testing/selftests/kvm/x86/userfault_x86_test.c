// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for what is particular to x86 in KVM userfault:
 *
 *  - an exit in the middle of the delivery of an interrupt, on a page table, on
 *    a read-modify-write, in SMM, in a nested guest, on private memory
 *  - everything that maps pages which no instruction has touched: prefetching
 *    of PTEs, KVM_PRE_FAULT_MEMORY, completion of async page faults
 *  - which mappings arming takes away, and how large they may be
 *
 * Every subtest also runs with shadow paging (kvm_amd.npt=0, kvm.tdp_mmu=0) and
 * then expects what KVM can do there.
 */
#include <linux/bitmap.h>
#include <linux/sizes.h>
#include <linux/userfaultfd.h>

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include "apic.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "kvm_userfault_guest.h"
#include "kvm_userfault_util.h"
#include "processor.h"
#include "smm.h"
#include "test_util.h"
#include "ucall_common.h"

/* Arbitrarily chosen, to overlap nothing. */
#define UF_SLOT		10
#define UF_GPA		0xc0000000ul
#define GPA(page)	(UF_GPA + (page) * PAGE_SIZE)
#define PTR(page)	((u64 *)GPA(page))

KVM_ONE_VCPU_TEST_SUITE(userfault_x86);

static void *add_slot(struct kvm_vm *vm, enum vm_mem_backing_src_type src,
		      u64 npages, u32 flags)
{
	void *hva;

	vm_userspace_mem_region_add(vm, src, UF_GPA, UF_SLOT, npages, flags);
	virt_map(vm, UF_GPA, UF_GPA, npages);
	hva = addr_gpa2hva(vm, UF_GPA);
	memset(hva, 0, npages * PAGE_SIZE);
	return hva;
}

static void arm_page(struct kvm_vm *vm, gpa_t gpa)
{
	TEST_ASSERT_EQ(vm_userfault_arm(vm, gpa, PAGE_SIZE), 1);
}

static void clear_page(struct kvm_vm *vm, gpa_t gpa)
{
	TEST_ASSERT_EQ(vm_userfault_clear(vm, gpa, PAGE_SIZE), 1);
}

/*
 * An instruction that reads and writes is a WRITE, and happens once
 */
static void guest_rmw(void)
{
	u64 val = 5;

	asm volatile("lock incq (%0)" : : "r"(PTR(0)) : "memory");
	GUEST_SYNC(READ_ONCE(*PTR(0)));
	asm volatile("xchg %0, (%1)" : "+r"(val) : "r"(PTR(0)) : "memory");
	GUEST_SYNC(val);
	asm volatile("addq $7, (%0)" : : "r"(PTR(0)) : "memory");
	GUEST_SYNC(READ_ONCE(*PTR(0)));

	/* Across two pages, of which one is armed. */
	WRITE_ONCE(*(u64 *)(GPA(1) - 4), 0x1122334455667788);
	GUEST_SYNC(READ_ONCE(*(u64 *)(GPA(1) - 4)));
	GUEST_SYNC(READ_ONCE(*(u64 *)(GPA(1) - 4)));
}

KVM_ONE_VCPU_TEST(userfault_x86, read_modify_write, guest_rmw)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = add_slot(vm, VM_MEM_SRC_ANONYMOUS, 4, KVM_MEM_USERFAULT);
	const u64 want[] = { 101, 101 };
	int i, ret;

	hva[0] = 100;
	for (i = 0; i < ARRAY_SIZE(want); i++) {
		arm_page(vm, GPA(0));
		assert_userfault_exit(vcpu, GPA(0), KVM_MEMORY_EXIT_FLAG_WRITE);
		assert_userfault_exit(vcpu, GPA(0), KVM_MEMORY_EXIT_FLAG_WRITE);
		clear_page(vm, GPA(0));
		TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), want[i]);
	}
	TEST_ASSERT_EQ(hva[0], 5);

	/* Not atomic: a CPU in software may well read first. */
	arm_page(vm, GPA(0));
	ret = _vcpu_run(vcpu);
	TEST_ASSERT(is_userfault_exit(vcpu, ret), "No exit, ret %d reason %u", ret,
		    vcpu->run->exit_reason);
	TEST_ASSERT_EQ(vcpu->run->memory_fault.gpa, GPA(0));
	TEST_ASSERT_EQ(hva[0], 5);
	clear_page(vm, GPA(0));
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 12);

	arm_page(vm, GPA(1));
	assert_userfault_exit(vcpu, GPA(1), KVM_MEMORY_EXIT_FLAG_WRITE);
	clear_page(vm, GPA(1));
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0x1122334455667788);

	arm_page(vm, GPA(0));
	assert_userfault_exit(vcpu, GPA(0), KVM_MEMORY_EXIT_FLAG_READ);
	clear_page(vm, GPA(0));
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0x1122334455667788);
}

/*
 * Interrupts
 */
#define INT_VECTOR	0x41

static u64 nr_irqs;
static u64 irq_stack;

static void guest_irq_handler(struct ex_regs *regs)
{
	WRITE_ONCE(nr_irqs, nr_irqs + 1);
	x2apic_write_reg(APIC_EOI, 0);
}

static void guest_irq(void)
{
	int i;

	x2apic_enable();
	GUEST_SYNC(0);

	for (i = 0; i < 6; i++) {
		x2apic_write_reg(APIC_ICR,
				 APIC_DEST_SELF | APIC_INT_ASSERT | INT_VECTOR);

		/* Nothing but the interrupt uses this stack. */
		asm volatile("mov %%rsp, %%rbx\n\t"
			     "mov %0, %%rsp\n\t"
			     "sti\n\t"
			     "nop\n\t"
			     "cli\n\t"
			     "mov %%rbx, %%rsp"
			     : : "r"(READ_ONCE(irq_stack)) : "rbx", "memory");
		GUEST_SYNC(READ_ONCE(nr_irqs));
	}
}

/*
 * The page that the delivery of an interrupt needs is armed.  The interrupt must
 * survive the exit, any number of exits, and be delivered exactly once.
 */
KVM_ONE_VCPU_TEST(userfault_x86, interrupt_delivery, guest_irq)
{
	struct kvm_vm *vm = vcpu->vm;
	struct kvm_vcpu_events events;
	struct kvm_lapic_state lapic;
	struct kvm_x86_state *state;
	struct {
		gpa_t gpa;
		u64 access;
	} pages[3];
	int i, j;

	add_slot(vm, VM_MEM_SRC_ANONYMOUS, 4, KVM_MEM_USERFAULT);
	vm_install_exception_handler(vm, INT_VECTOR, guest_irq_handler);
	write_guest_global(vm, irq_stack, GPA(2));

	/* The flag goes on while the slot has all of the guest in it. */
	vm_mem_region_set_flags(vm, 0, KVM_MEM_USERFAULT);

	pages[0].gpa = addr_gva2gpa(vm, vm->arch.idt);
	pages[0].access = KVM_MEMORY_EXIT_FLAG_READ;
	pages[1].gpa = GPA(1);
	pages[1].access = KVM_MEMORY_EXIT_FLAG_WRITE;
	pages[2].gpa = addr_gva2gpa(vm, vm->arch.idt);
	pages[2].access = KVM_MEMORY_EXIT_FLAG_READ;

	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0);

	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		arm_page(vm, pages[i].gpa);

		for (j = 0; j < 3; j++) {
			assert_userfault_exit(vcpu, pages[i].gpa, pages[i].access);
			vcpu_events_get(vcpu, &events);
			TEST_ASSERT(events.interrupt.injected &&
				    events.interrupt.nr == INT_VECTOR,
				    "The interrupt is lost: injected %u nr 0x%x",
				    events.interrupt.injected, events.interrupt.nr);
		}

		if (i == 2) {
			/*
			 * Saved here, restored elsewhere.  Slots are created
			 * with the page clear.
			 */
			state = vcpu_save_state(vcpu);
			vcpu_ioctl(vcpu, KVM_GET_LAPIC, &lapic);
			kvm_vm_release(vm);
			vcpu = vm_recreate_with_one_vcpu(vm);
			vcpu_load_state(vcpu, state);
			vcpu_ioctl(vcpu, KVM_SET_LAPIC, &lapic);
			kvm_x86_state_cleanup(state);
			TEST_ASSERT(!vm_userfault_is_armed(vm, pages[i].gpa),
				    "Armed in a new VM");
		} else {
			clear_page(vm, pages[i].gpa);
		}
		TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), i + 1);
	}

	/* Without any page armed: still one each. */
	for (; i < 6; i++)
		TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), i + 1);
}

/*
 * An exception whose handler cannot be reached: #UD is not lost, either.
 */
static u64 nr_uds;

static void guest_ud_handler(struct ex_regs *regs)
{
	WRITE_ONCE(nr_uds, nr_uds + 1);
	regs->rip += 2;
}

static void guest_ud(void)
{
	int i;

	for (i = 0; i < 3; i++) {
		GUEST_SYNC(READ_ONCE(nr_uds));
		asm volatile("ud2");
	}
	GUEST_SYNC(READ_ONCE(nr_uds));
}

KVM_ONE_VCPU_TEST(userfault_x86, exception_delivery, guest_ud)
{
	struct kvm_vm *vm = vcpu->vm;
	gpa_t idt = addr_gva2gpa(vm, vm->arch.idt);
	int i;

	vm_install_exception_handler(vm, UD_VECTOR, guest_ud_handler);
	vm_mem_region_set_flags(vm, 0, KVM_MEM_USERFAULT);

	for (i = 0; i < 3; i++) {
		TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), i);
		arm_page(vm, idt);
		assert_userfault_exit(vcpu, idt, KVM_MEMORY_EXIT_FLAG_READ);
		assert_userfault_exit(vcpu, idt, KVM_MEMORY_EXIT_FLAG_READ);
		clear_page(vm, idt);
	}
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 3);
}

/*
 * The guest's page tables
 */
static void guest_read_page0(void)
{
	for (;;)
		GUEST_SYNC(READ_ONCE(*PTR(0)));
}

KVM_ONE_VCPU_TEST(userfault_x86, guest_page_table, guest_read_page0)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = add_slot(vm, VM_MEM_SRC_ANONYMOUS, 4, 0);
	struct kvm_run *run = vcpu->run;
	gpa_t table;
	int i, ret;

	table = addr_hva2gpa(vm, vm_get_pte(vm, GPA(0))) & PAGE_MASK;
	vm_mem_region_set_flags(vm, 0, KVM_MEM_USERFAULT);

	for (i = 0; i < 3; i++) {
		hva[0] = i;
		TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), i);
		arm_page(vm, table);
		hva[0] = 0x100 + i;

		/* With shadow paging it is KVM that reads the table. */
		if (kvm_is_tdp_enabled()) {
			/* The CPU may want to set bits in it: WRITE. */
			ret = _vcpu_run(vcpu);
			TEST_ASSERT(is_userfault_exit(vcpu, ret),
				    "No exit for the page table, ret %d reason %u",
				    ret, run->exit_reason);
			TEST_ASSERT_EQ(run->memory_fault.gpa, table);
			TEST_ASSERT_EQ(run->memory_fault.size, PAGE_SIZE);
			TEST_ASSERT(run->memory_fault.flags ==
				    (KVM_MEMORY_EXIT_FLAG_USERFAULT |
				     KVM_MEMORY_EXIT_FLAG_READ) ||
				    run->memory_fault.flags ==
				    (KVM_MEMORY_EXIT_FLAG_USERFAULT |
				     KVM_MEMORY_EXIT_FLAG_WRITE),
				    "Flags 0x%llx", run->memory_fault.flags);
			clear_page(vm, table);
			TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0x100 + i);
		} else {
			TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0x100 + i);
			clear_page(vm, table);
		}
	}
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits),
		       kvm_is_tdp_enabled() ? 3 : 0);
}

/*
 * Prefetch: KVM maps up to seven neighbours of a page along with it.
 */
static u64 guest_page;

static void guest_read_page(void)
{
	for (;;)
		GUEST_SYNC(READ_ONCE(*PTR(READ_ONCE(guest_page))));
}

KVM_ONE_VCPU_TEST(userfault_x86, prefetch, guest_read_page)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva = add_slot(vm, VM_MEM_SRC_ANONYMOUS, 64, KVM_MEM_USERFAULT);
	int armed, touched, block;

	for (block = 0; block < 8; block++) {
		/* Page 8 * block + armed, and a different way to get near it. */
		armed = block;
		touched = (block * 3 + 1) % 8;
		if (touched == armed)
			touched = (touched + 1) % 8;
		armed += 8 * block;
		touched += 8 * block;

		hva[armed * 512] = armed;
		hva[touched * 512] = touched;
		arm_page(vm, GPA(armed));

		write_guest_global(vm, guest_page, touched);
		TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), touched);
		write_guest_global(vm, guest_page, armed);
		assert_userfault_exit(vcpu, GPA(armed), KVM_MEMORY_EXIT_FLAG_READ);
		clear_page(vm, GPA(armed));
		TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), armed);
	}
}

/*
 * KVM_PRE_FAULT_MEMORY
 */

/*
 * What KVM_RUN tells userspace: to be left alone by all else.  The pattern has no
 * KVM_MEMORY_EXIT_FLAG_RESOLVED: it stays for the KVM_RUN that follows.
 */
static void pattern_run(struct kvm_run *run, struct kvm_run *copy)
{
	run->exit_reason = 0x5a5a5a5a;
	memset((void *)run + offsetof(struct kvm_run, hw), 0x5a,
	       offsetof(struct kvm_run, kvm_valid_regs) -
	       offsetof(struct kvm_run, hw));
	memcpy(copy, run, sizeof(*copy));
}

static void pre_fault(struct kvm_vcpu *vcpu, gpa_t gpa, u64 size, int want,
		      u64 want_left)
{
	struct kvm_pre_fault_memory range = {
		.gpa = gpa,
		.size = size,
	};
	struct kvm_run copy;
	int ret, err;

	pattern_run(vcpu->run, &copy);
	do {
		ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
		err = ret ? errno : 0;
	} while (err == EINTR);

	TEST_ASSERT(err == want && range.size == want_left,
		    "gpa 0x%lx size 0x%lx: errno %d left 0x%llx, wanted %d 0x%lx",
		    gpa, size, err, range.size, want, want_left);
	TEST_ASSERT_EQ(range.gpa, gpa + size - range.size);
	TEST_ASSERT(!memcmp(vcpu->run, &copy, sizeof(copy)),
		    "KVM_PRE_FAULT_MEMORY has written to kvm_run");
}

static void test_pre_fault(struct kvm_vcpu *vcpu, enum vm_mem_backing_src_type src)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva;

	hva = add_slot(vm, src, 512, KVM_MEM_USERFAULT);
	arm_page(vm, GPA(5));

	TEST_ASSERT_EQ(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY), kvm_is_tdp_enabled());
	if (!kvm_is_tdp_enabled()) {
		pre_fault(vcpu, GPA(0), 16 * PAGE_SIZE, EOPNOTSUPP, 16 * PAGE_SIZE);
		pre_fault(vcpu, GPA(5), PAGE_SIZE, EOPNOTSUPP, PAGE_SIZE);
		return;
	}

	pre_fault(vcpu, GPA(0), 16 * PAGE_SIZE, 0, 11 * PAGE_SIZE);
	pre_fault(vcpu, GPA(5), 11 * PAGE_SIZE, EFAULT, 11 * PAGE_SIZE);
	pre_fault(vcpu, GPA(5), PAGE_SIZE, EFAULT, PAGE_SIZE);
	pre_fault(vcpu, GPA(6), 10 * PAGE_SIZE, 0, 0);
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), 0);

	/* What has been mapped around it does not reach over the armed page. */
	hva[5 * 512] = 5;
	write_guest_global(vm, guest_page, 4);
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0);
	write_guest_global(vm, guest_page, 5);
	assert_userfault_exit(vcpu, GPA(5), KVM_MEMORY_EXIT_FLAG_READ);

	/* And it does not disturb an exit that userspace has not looked at. */
	pre_fault(vcpu, GPA(5), PAGE_SIZE, EFAULT, PAGE_SIZE);
	assert_userfault_exit(vcpu, GPA(5), KVM_MEMORY_EXIT_FLAG_READ);

	clear_page(vm, GPA(5));
	pre_fault(vcpu, GPA(5), PAGE_SIZE, 0, 0);
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 5);

	/* Mapped, armed, and pre-faulted again. */
	arm_page(vm, GPA(5));
	pre_fault(vcpu, GPA(5), PAGE_SIZE, EFAULT, PAGE_SIZE);
	assert_userfault_exit(vcpu, GPA(5), KVM_MEMORY_EXIT_FLAG_READ);
	clear_page(vm, GPA(5));
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 5);
}

KVM_ONE_VCPU_TEST(userfault_x86, pre_fault_4k, guest_read_page)
{
	test_pre_fault(vcpu, VM_MEM_SRC_ANONYMOUS);
}

KVM_ONE_VCPU_TEST(userfault_x86, pre_fault_thp, guest_read_page)
{
	TEST_REQUIRE(thp_configured());
	test_pre_fault(vcpu, VM_MEM_SRC_ANONYMOUS_THP);
}

static void ignore_alarm(int sig)
{
}

/* Nor is kvm_run written to if a signal ends the wait for a page of the backing. */
KVM_ONE_VCPU_TEST(userfault_x86, pre_fault_signal, guest_read_page)
{
	const struct sigaction action = { .sa_handler = ignore_alarm };
	const struct itimerval often = { { 0, 20000 }, { 0, 20000 } };
	const struct itimerval never = { };
	struct kvm_run copy;
	void *hva;
	int i, uffd;

	if (!kvm_is_tdp_enabled())
		return;

	hva = add_slot(vcpu->vm, VM_MEM_SRC_ANONYMOUS, 512, KVM_MEM_USERFAULT);
	arm_page(vcpu->vm, GPA(5));

	hva += 6 * PAGE_SIZE;
	kvm_madvise(hva, PAGE_SIZE, MADV_DONTNEED);
	uffd = uffd_register(hva, PAGE_SIZE, UFFDIO_REGISTER_MODE_MISSING, 0, 0);

	write_guest_global(vcpu->vm, guest_page, 5);
	assert_userfault_exit(vcpu, GPA(5), KVM_MEMORY_EXIT_FLAG_READ);

	TEST_ASSERT(!sigaction(SIGALRM, &action, NULL), "sigaction() failed");
	TEST_ASSERT(!setitimer(ITIMER_REAL, &often, NULL), "setitimer() failed");

	/* A signal may come before the wait begins: not each time. */
	pattern_run(vcpu->run, &copy);
	for (i = 0; i < 10; i++) {
		struct kvm_pre_fault_memory range = {
			.gpa = GPA(6),
			.size = PAGE_SIZE,
		};

		TEST_ASSERT_EQ(__vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range), -1);
		TEST_ASSERT_EQ(errno, EINTR);
		TEST_ASSERT(!memcmp(vcpu->run, &copy, sizeof(copy)),
			    "KVM_PRE_FAULT_MEMORY has written to kvm_run");
	}

	TEST_ASSERT(!setitimer(ITIMER_REAL, &never, NULL), "setitimer() failed");
	kvm_close(uffd);

	assert_userfault_exit(vcpu, GPA(5), KVM_MEMORY_EXIT_FLAG_READ);
	clear_page(vcpu->vm, GPA(5));
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0);
}

/*
 * Mappings
 */

/* Arming unmaps the armed pages and no other; toggling the flag nothing. */
KVM_ONE_VCPU_TEST(userfault_x86, exact_unmap, guest_read_page)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 mapped, bitmap = 0x8001000000003001;
	int i;

	add_slot(vm, VM_MEM_SRC_ANONYMOUS, 64, 0);
	for (i = 0; i < 64; i++) {
		write_guest_global(vm, guest_page, i);
		vcpu_run_to_sync(vcpu);
	}
	mapped = vm_get_stat(vm, pages_4k);
	TEST_ASSERT(mapped >= 64, "Only %lu pages are mapped", mapped);

	vm_mem_region_set_flags(vm, UF_SLOT, KVM_MEM_USERFAULT);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), mapped);

	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(3), 5 * PAGE_SIZE), 5);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), mapped - 5);
	TEST_ASSERT_EQ(vm_userfault_set(vm, GPA(0), 64 * PAGE_SIZE,
					KVM_USERFAULT_ARM | KVM_USERFAULT_BITMAP,
					&bitmap), 5);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), mapped - 10);

	/* Arming what is armed, and clearing, does not touch any mapping. */
	TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(3), 5 * PAGE_SIZE), 0);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), mapped - 10);
	TEST_ASSERT_EQ(vm_userfault_clear(vm, GPA(0), 64 * PAGE_SIZE), 10);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_4k), mapped - 10);
}

/*
 * A block without an armed page is mapped huge while the flag is on; one with an
 * armed page is not; and once the flag is off, huge mappings are back.
 */
KVM_ONE_VCPU_TEST(userfault_x86, mapping_size, guest_read_page)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 base, npages = 4 * SZ_2M / PAGE_SIZE;
	u64 *hva;
	int i;

	TEST_REQUIRE(thp_configured());
	hva = add_slot(vm, VM_MEM_SRC_ANONYMOUS_THP, npages, KVM_MEM_USERFAULT);
	vcpu_run_to_sync(vcpu);
	base = vm_get_stat(vm, pages_2m);

	/* Small mappings in the guest, hence in the shadow of it, too. */
	if (!kvm_is_tdp_enabled()) {
		TEST_ASSERT_EQ(base, 0);
		return;
	}

	TEST_ASSERT_EQ(base, 1);
	write_guest_global(vm, guest_page, 3 * 512);
	vcpu_run_to_sync(vcpu);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 2);

	/* Block 0 was huge, block 1 is not mapped: both small now. */
	arm_page(vm, GPA(7));
	arm_page(vm, GPA(512 + 511));
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 1);
	for (i = 0; i < 2; i++) {
		write_guest_global(vm, guest_page, i * 512 + 100);
		vcpu_run_to_sync(vcpu);
	}
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 1);

	/* Block 2, next to an armed page, is not concerned. */
	write_guest_global(vm, guest_page, 2 * 512);
	vcpu_run_to_sync(vcpu);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 2);

	/* Dirty logging off would bring huge mappings back: not over these. */
	vm_mem_region_set_flags(vm, UF_SLOT, KVM_MEM_USERFAULT | KVM_MEM_LOG_DIRTY_PAGES);
	vm_mem_region_set_flags(vm, UF_SLOT, KVM_MEM_USERFAULT);
	for (i = 0; i < 4; i++) {
		write_guest_global(vm, guest_page, i * 512 + 100);
		vcpu_run_to_sync(vcpu);
	}
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 2);
	write_guest_global(vm, guest_page, 7);
	assert_userfault_exit(vcpu, GPA(7), KVM_MEMORY_EXIT_FLAG_READ);
	hva[7 * 512] = 77;

	vm_mem_region_set_flags(vm, UF_SLOT, 0);
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 77);
	for (i = 0; i < 4; i++) {
		write_guest_global(vm, guest_page, i * 512 + 100);
		vcpu_run_to_sync(vcpu);
	}
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 4);
}

/*
 * READONLY: first the page has to be there, then the write is MMIO
 */
static void guest_write_page0(void)
{
	WRITE_ONCE(*PTR(0), 0x77);
	GUEST_SYNC(READ_ONCE(*PTR(0)));
}

KVM_ONE_VCPU_TEST(userfault_x86, readonly_write, guest_write_page0)
{
	struct kvm_vm *vm = vcpu->vm;
	struct kvm_run *run = vcpu->run;
	u64 *hva = add_slot(vm, VM_MEM_SRC_ANONYMOUS, 4,
			    KVM_MEM_USERFAULT | KVM_MEM_READONLY);

	hva[0] = 0x33;
	arm_page(vm, GPA(0));
	assert_userfault_exit(vcpu, GPA(0), KVM_MEMORY_EXIT_FLAG_WRITE);
	assert_userfault_exit(vcpu, GPA(0), KVM_MEMORY_EXIT_FLAG_WRITE);
	clear_page(vm, GPA(0));

	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	TEST_ASSERT_EQ(run->mmio.phys_addr, GPA(0));
	TEST_ASSERT_EQ(run->mmio.is_write, 1);
	TEST_ASSERT_EQ(*(u64 *)run->mmio.data, 0x77);
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0x33);
}

/*
 * SMM: address space 1.  The same gpa is in a slot of each address space.
 */
#define SMRAM_GPA	0x1000000
#define SMI_HANDLER_GPA	(SMRAM_GPA + 0x8000)
#define SMI_PORT	0xe
#define SMI_IN_SMM	0xfe

static const u8 smi_handler[] = {
	0xb0, SMI_IN_SMM,	/* mov $SMI_IN_SMM, %al */
	0xe4, SMI_PORT,		/* in $SMI_PORT, %al */
	0x0f, 0xaa,		/* rsm */
};

static void guest_smm(void)
{
	for (;;)
		GUEST_SYNC(READ_ONCE(*(u64 *)SMI_HANDLER_GPA));
}

/* The SMI handler runs, up to and including its RSM. */
static void run_smi_handler(struct kvm_vcpu *vcpu)
{
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(vcpu->run->io.port, SMI_PORT);
	TEST_ASSERT(vcpu->run->flags & KVM_RUN_X86_SMM, "Not in SMM");
}

KVM_ONE_VCPU_TEST(userfault_x86, smm, guest_smm)
{
	const u64 normal = BIT(0), smm = BIT(1);
	struct kvm_vm *vm = vcpu->vm;
	u64 bitmap, *hva;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_X86_SMM));
	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_MULTI_ADDRESS_SPACE), 2);

	setup_smram(vm, vcpu, SMRAM_GPA, smi_handler, sizeof(smi_handler));
	vm_mem_region_set_flags(vm, SMRAM_MEMSLOT, KVM_MEM_USERFAULT);
	hva = kvm_mmap(SMRAM_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm_set_user_memory_region(vm, UF_SLOT, KVM_MEM_USERFAULT, SMRAM_GPA,
				  SMRAM_SIZE, hva);
	virt_map(vm, SMRAM_GPA, SMRAM_GPA, SMRAM_PAGES);
	hva[0x8000 / 8] = 0x1234;

	/* In SMM only. */
	TEST_ASSERT_EQ(vm_userfault_set_as(vm, smm, SMI_HANDLER_GPA, PAGE_SIZE,
					   KVM_USERFAULT_ARM, NULL), 1);
	vm_userfault_get_as(vm, normal, SMI_HANDLER_GPA, PAGE_SIZE, &bitmap);
	TEST_ASSERT_EQ(bitmap & 1, 0);
	vm_userfault_get_as(vm, smm, SMI_HANDLER_GPA, PAGE_SIZE, &bitmap);
	TEST_ASSERT_EQ(bitmap & 1, 1);
	TEST_ASSERT(vm_userfault_is_armed(vm, SMI_HANDLER_GPA),
		    "Armed in any address space counts");

	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0x1234);
	inject_smi(vcpu);
	assert_userfault_exit(vcpu, SMI_HANDLER_GPA, KVM_MEMORY_EXIT_FLAG_EXEC);
	TEST_ASSERT(vcpu->run->flags & KVM_RUN_X86_SMM, "The exit is not in SMM");

	/* Clearing the other address space does not help, this one does. */
	TEST_ASSERT_EQ(vm_userfault_set_as(vm, normal, SMI_HANDLER_GPA, PAGE_SIZE,
					   0, NULL), 0);
	assert_userfault_exit(vcpu, SMI_HANDLER_GPA, KVM_MEMORY_EXIT_FLAG_EXEC);
	TEST_ASSERT_EQ(vm_userfault_set_as(vm, smm, SMI_HANDLER_GPA, PAGE_SIZE,
					   0, NULL), 1);
	run_smi_handler(vcpu);
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0x1234);

	/* Outside of SMM only. */
	TEST_ASSERT_EQ(vm_userfault_set_as(vm, normal, SMI_HANDLER_GPA, PAGE_SIZE,
					   KVM_USERFAULT_ARM, NULL), 1);
	inject_smi(vcpu);
	run_smi_handler(vcpu);
	assert_userfault_exit(vcpu, SMI_HANDLER_GPA, KVM_MEMORY_EXIT_FLAG_READ);
	TEST_ASSERT(!(vcpu->run->flags & KVM_RUN_X86_SMM), "The exit is in SMM");
	TEST_ASSERT_EQ(vm_userfault_set_as(vm, smm, SMI_HANDLER_GPA, PAGE_SIZE,
					   0, NULL), 0);
	assert_userfault_exit(vcpu, SMI_HANDLER_GPA, KVM_MEMORY_EXIT_FLAG_READ);

	/* as_mask 0: all; a page counts once for each address space. */
	TEST_ASSERT_EQ(vm_userfault_arm(vm, SMI_HANDLER_GPA, PAGE_SIZE), 1);
	TEST_ASSERT_EQ(vm_userfault_clear(vm, SMI_HANDLER_GPA, PAGE_SIZE), 2);
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0x1234);
	TEST_ASSERT_EQ(vm_userfault_set_as(vm, normal | smm, SMI_HANDLER_GPA,
					   PAGE_SIZE, KVM_USERFAULT_ARM, NULL), 2);
	assert_userfault_exit(vcpu, SMI_HANDLER_GPA, KVM_MEMORY_EXIT_FLAG_READ);
	inject_smi(vcpu);
	assert_userfault_exit(vcpu, SMI_HANDLER_GPA, KVM_MEMORY_EXIT_FLAG_EXEC);
	TEST_ASSERT_EQ(vm_userfault_clear(vm, SMI_HANDLER_GPA, PAGE_SIZE), 2);
	run_smi_handler(vcpu);
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0x1234);
}

/*
 * Nested: L2 touches L1's memory, with nested paging through another address.
 */
#define L2_ALIAS_GPA		0xd0000000ul

static u64 l2_base;

/* Reads pages 0 and 1 in turn, then writes both, for ever. */
static void l2_guest_code(void)
{
	u64 base = READ_ONCE(l2_base);
	u64 n;

	for (n = 0;; n++) {
		GUEST_SYNC(READ_ONCE(*(u64 *)base));
		GUEST_SYNC(READ_ONCE(*(u64 *)(base + PAGE_SIZE)));
		WRITE_ONCE(*(u64 *)base, n);
		GUEST_SYNC(n);
		WRITE_ONCE(*(u64 *)(base + PAGE_SIZE), n);
		GUEST_SYNC(n);
	}
}

static void l1_guest_code(void *nested)
{
	l1_run_l2(nested, l2_guest_code);
}

static void test_nested(struct kvm_vcpu *vcpu, bool nested_tdp)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 *hva;
	int i;

	vcpu_setup_nested(vcpu, nested_tdp);

	hva = add_slot(vm, VM_MEM_SRC_ANONYMOUS, 8, KVM_MEM_USERFAULT);
	if (nested_tdp) {
		/* L2: gva == L2_ALIAS_GPA, which L1 maps to UF_GPA. */
		virt_map(vm, L2_ALIAS_GPA, L2_ALIAS_GPA, 8);
		tdp_identity_map_default_memslots(vm);
		tdp_map(vm, L2_ALIAS_GPA, UF_GPA, 8 * PAGE_SIZE);
		write_guest_global(vm, l2_base, L2_ALIAS_GPA);
	} else {
		write_guest_global(vm, l2_base, UF_GPA);
	}

	/*
	 * Rounds 0 and 1: page 1 armed when page 0, its neighbour, gets mapped
	 * or is mapped.  Later: both armed while mapped, also by L2's writes.
	 */
	for (i = 0; i < 5; i++) {
		hva[0] = 0x100 + i;
		hva[512] = 0x200 + i;

		if (i < 2) {
			arm_page(vm, GPA(1));
		} else {
			TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(0), 2 * PAGE_SIZE), 2);
			assert_userfault_exit(vcpu, GPA(0), KVM_MEMORY_EXIT_FLAG_READ);
			clear_page(vm, GPA(0));
		}
		TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0x100 + i);

		assert_userfault_exit(vcpu, GPA(1), KVM_MEMORY_EXIT_FLAG_READ);
		assert_userfault_exit(vcpu, GPA(1), KVM_MEMORY_EXIT_FLAG_READ);
		clear_page(vm, GPA(1));
		TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0x200 + i);

		TEST_ASSERT_EQ(vm_userfault_arm(vm, GPA(0), 2 * PAGE_SIZE), 2);
		assert_userfault_exit(vcpu, GPA(0), KVM_MEMORY_EXIT_FLAG_WRITE);
		clear_page(vm, GPA(0));
		TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), i);
		TEST_ASSERT_EQ(hva[0], i);
		assert_userfault_exit(vcpu, GPA(1), KVM_MEMORY_EXIT_FLAG_WRITE);
		TEST_ASSERT_EQ(hva[512], 0x200 + i);
		clear_page(vm, GPA(1));
		TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), i);
		TEST_ASSERT_EQ(hva[512], i);
	}
}

KVM_ONE_VCPU_TEST(userfault_x86, nested, l1_guest_code)
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_VMX) || kvm_cpu_has(X86_FEATURE_SVM));
	test_nested(vcpu, false);
}

KVM_ONE_VCPU_TEST(userfault_x86, nested_tdp, l1_guest_code)
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_VMX) || kvm_cpu_has(X86_FEATURE_SVM));

	/* KVM offers it to L1 only if it uses it itself. */
	TEST_ASSERT_EQ(kvm_cpu_has_tdp(), kvm_is_tdp_enabled());
	if (kvm_cpu_has_tdp())
		test_nested(vcpu, true);
}

/*
 * Private memory
 */
static void guest_private(void)
{
	WRITE_ONCE(*PTR(1), 0x1111);
	GUEST_SYNC(0);
	for (;;)
		GUEST_SYNC(READ_ONCE(*PTR(1)));
}

static const struct vm_shape sw_protected = {
	.mode = VM_MODE_DEFAULT,
	.type = KVM_X86_SW_PROTECTED_VM,
};

static bool has_private_memory(void)
{
	return kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM);
}

/* A VM with private memory, or NULL where there is none to be had. */
static struct kvm_vm *create_private_vm(struct kvm_vcpu **vcpu, void *guest_code,
					u64 **hva)
{
	struct kvm_vm *vm;

	/* It comes with the TDP MMU only. */
	if (!has_tdp_mmu()) {
		TEST_ASSERT(!has_private_memory(), "Private memory without the TDP MMU");
		return NULL;
	}
	TEST_REQUIRE(has_private_memory());

	vm = vm_create_shape_with_one_vcpu(sw_protected, vcpu, guest_code);
	*hva = add_slot(vm, VM_MEM_SRC_ANONYMOUS, 8,
			KVM_MEM_USERFAULT | KVM_MEM_GUEST_MEMFD);
	vm_mem_set_private(vm, GPA(0), 4 * PAGE_SIZE);
	return vm;
}

KVM_ONE_VCPU_TEST(userfault_x86, private_memory, NULL)
{
	const u64 private = KVM_MEMORY_EXIT_FLAG_PRIVATE;
	struct kvm_vm *vm;
	u64 *hva;
	int i;

	vm = create_private_vm(&vcpu, guest_private, &hva);
	if (!vm)
		return;

	/* Private content survives, armed or not: it is in place. */
	arm_page(vm, GPA(1));
	assert_userfault_exit(vcpu, GPA(1), KVM_MEMORY_EXIT_FLAG_WRITE | private);
	clear_page(vm, GPA(1));
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0);
	arm_page(vm, GPA(1));
	assert_userfault_exit(vcpu, GPA(1), KVM_MEMORY_EXIT_FLAG_READ | private);
	assert_userfault_exit(vcpu, GPA(1), KVM_MEMORY_EXIT_FLAG_READ | private);
	clear_page(vm, GPA(1));
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0x1111);
	TEST_ASSERT_EQ(hva[512], 0);

	/* Conversions to and fro keep what is armed. */
	hva[512] = 0x2222;
	arm_page(vm, GPA(1));
	for (i = 0; i < 2; i++) {
		vm_mem_set_shared(vm, GPA(0), 4 * PAGE_SIZE);
		TEST_ASSERT(vm_userfault_is_armed(vm, GPA(1)), "Lost, private to shared");
		assert_userfault_exit(vcpu, GPA(1), KVM_MEMORY_EXIT_FLAG_READ);

		vm_mem_set_private(vm, GPA(0), 4 * PAGE_SIZE);
		TEST_ASSERT(vm_userfault_is_armed(vm, GPA(1)), "Lost, shared to private");
		assert_userfault_exit(vcpu, GPA(1), KVM_MEMORY_EXIT_FLAG_READ | private);
	}
	clear_page(vm, GPA(1));
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0x1111);

	arm_page(vm, GPA(1));
	vm_mem_set_shared(vm, GPA(0), 4 * PAGE_SIZE);
	assert_userfault_exit(vcpu, GPA(1), KVM_MEMORY_EXIT_FLAG_READ);
	clear_page(vm, GPA(1));
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0x2222);

	kvm_vm_free(vm);
}

/* What is private, but has no guest_memfd, has no mapping that could be large. */
KVM_ONE_VCPU_TEST(userfault_x86, private_collapse, NULL)
{
	struct kvm_vm *vm;
	u64 *hva;

	TEST_REQUIRE(thp_configured());
	if (!has_private_memory())
		return;

	vm = vm_create_shape_with_one_vcpu(sw_protected, &vcpu, guest_read_page);
	hva = add_slot(vm, VM_MEM_SRC_ANONYMOUS_THP, 512, KVM_MEM_USERFAULT);
	arm_page(vm, GPA(5));
	write_guest_global(vm, guest_page, 4);
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0);

	vm_mem_set_private(vm, UF_GPA, SZ_2M);
	TEST_ASSERT_EQ(vm_userfault_set(vm, UF_GPA, SZ_2M, KVM_USERFAULT_COLLAPSE, NULL), 1);
	vm_mem_region_set_flags(vm, UF_SLOT, 0);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 0);

	vm_mem_set_shared(vm, UF_GPA, SZ_2M);
	hva[5 * 512] = 5;
	write_guest_global(vm, guest_page, 5);
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 5);
	TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 1);
	kvm_vm_free(vm);
}

/* Shared memory is as large as at userspace_addr, also where there is a guest_memfd. */
KVM_ONE_VCPU_TEST(userfault_x86, shared_collapse, NULL)
{
	const u32 flags[] = { 0, KVM_MEM_GUEST_MEMFD };
	struct kvm_vm *vm;
	int i;

	TEST_REQUIRE(thp_configured());
	if (!has_private_memory())
		return;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		vm = vm_create_shape_with_one_vcpu(sw_protected, &vcpu, guest_read_page);
		add_slot(vm, VM_MEM_SRC_ANONYMOUS_THP, 512, flags[i] | KVM_MEM_USERFAULT);
		write_guest_global(vm, guest_page, 4);
		TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0);
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 1);

		arm_page(vm, GPA(5));
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 0);
		TEST_ASSERT_EQ(vm_userfault_set(vm, UF_GPA, SZ_2M, KVM_USERFAULT_COLLAPSE,
						NULL), 1);
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 1);

		arm_page(vm, GPA(5));
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 0);
		vm_mem_region_set_flags(vm, UF_SLOT, flags[i]);
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 1);
		kvm_vm_free(vm);
	}
}

/*
 * The last page of a block is converted, and with it so much beyond that it takes
 * its time: KVM unmaps the page, stores all attributes, then forbids large mappings.
 * A collapse in between must not bring the page back.
 */
#define CONVERSION_NS	(20 * 1000 * 1000)

struct conversion {
	struct kvm_vm *vm;
	u64 size;
	u64 ns;
};

static void *convert_last_page(void *arg)
{
	struct conversion *c = arg;
	struct timespec start;

	clock_gettime(CLOCK_MONOTONIC, &start);
	vm_mem_set_private(c->vm, GPA(511), c->size);
	c->ns = timespec_to_ns(timespec_elapsed(start));
	return NULL;
}

KVM_ONE_VCPU_TEST(userfault_x86, private_collapse_race, NULL)
{
	struct kvm_run *run;
	struct conversion c = { .size = SZ_1M };
	pthread_t thread;
	u64 *hva;
	int i, r;

	TEST_REQUIRE(thp_configured());
	if (!has_private_memory())
		return;

	c.vm = vm_create_shape_with_one_vcpu(sw_protected, &vcpu, guest_read_page);
	hva = add_slot(c.vm, VM_MEM_SRC_ANONYMOUS_THP, 512, KVM_MEM_USERFAULT);
	run = vcpu->run;

	do {
		c.size *= 2;
		convert_last_page(&c);
	} while (c.ns < CONVERSION_NS);

	for (i = 0; i < 20; i++) {
		vm_mem_set_shared(c.vm, GPA(511), c.size);

		/* Without page 5, all of the block is mapped small, and none of it armed. */
		hva[511 * 512] = i + 1;
		write_guest_global(c.vm, guest_page, 511);
		TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), i + 1);
		arm_page(c.vm, GPA(5));
		clear_page(c.vm, GPA(5));
		TEST_ASSERT_EQ(vm_get_stat(c.vm, pages_2m), 0);

		TEST_ASSERT(!pthread_create(&thread, NULL, convert_last_page, &c),
			    "pthread_create() failed");
		usleep(c.ns * i / 20 / 1000);
		vm_userfault_set(c.vm, UF_GPA, SZ_2M, KVM_USERFAULT_COLLAPSE, NULL);
		TEST_ASSERT(!pthread_join(thread, NULL), "pthread_join() failed");

		TEST_ASSERT_EQ(vm_get_stat(c.vm, pages_2m), 0);
		r = _vcpu_run(vcpu);
		TEST_ASSERT(r == -1 && errno == EFAULT &&
			    run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
			    run->memory_fault.gpa == GPA(511) &&
			    run->memory_fault.flags == KVM_MEMORY_EXIT_FLAG_PRIVATE,
			    "Round %d: wanted an exit for private memory, got %d errno %d reason %u",
			    i, r, errno, run->exit_reason);
	}

	kvm_vm_free(c.vm);
}

struct converter {
	struct kvm_vm *vm;
	bool stop;
};

static void *convert(void *arg)
{
	struct converter *c = arg;

	while (!READ_ONCE(c->stop)) {
		vm_mem_set_shared(c->vm, GPA(0), 4 * PAGE_SIZE);
		vm_mem_set_private(c->vm, GPA(0), 4 * PAGE_SIZE);
	}

	return NULL;
}

/*
 * Conversions under a vCPU that wants an armed page: every exit is a userfault,
 * shared or private, or what upstream reports for a conversion that came between
 * (neither READ nor USERFAULT); the access itself never gets through.
 */
KVM_ONE_VCPU_TEST(userfault_x86, private_conversion_race, NULL)
{
	const u64 private = KVM_MEMORY_EXIT_FLAG_PRIVATE;
	const u64 userfault = KVM_MEMORY_EXIT_FLAG_USERFAULT |
			      KVM_MEMORY_EXIT_FLAG_READ;
	struct converter c = { };
	struct kvm_run *run;
	pthread_t thread;
	u64 *hva, exits = 0, flags;
	int i, ret;

	c.vm = create_private_vm(&vcpu, guest_private, &hva);
	if (!c.vm)
		return;

	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0);
	arm_page(c.vm, GPA(1));
	run = vcpu->run;
	pthread_create(&thread, NULL, convert, &c);

	for (i = 0; i < 1000; i++) {
		ret = _vcpu_run(vcpu);
		TEST_ASSERT(ret == -1 && errno == EFAULT &&
			    run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
			    run->memory_fault.gpa == GPA(1),
			    "ret %d errno %d reason %u gpa 0x%llx", ret, errno,
			    run->exit_reason, run->memory_fault.gpa);
		flags = run->memory_fault.flags & ~private;
		TEST_ASSERT(!flags || flags == userfault, "Flags 0x%llx",
			    run->memory_fault.flags);
		exits += flags == userfault;
	}
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), exits);

	WRITE_ONCE(c.stop, true);
	pthread_join(thread, NULL);
	assert_userfault_exit(vcpu, GPA(1), KVM_MEMORY_EXIT_FLAG_READ | private);
	clear_page(c.vm, GPA(1));
	TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0x1111);

	kvm_vm_free(c.vm);
}

/*
 * Async page faults: the host has to fetch the page first (here: userfaultfd
 * holds it up), meanwhile the vCPU sleeps.  When the page has come, KVM maps it
 * without being asked by an instruction: not if it was armed meanwhile.
 */
struct apf_server {
	struct kvm_vm *vm;
	int uffd;
	pid_t vcpu_tid;
	bool async;
	bool arm;
};

static void guest_apf(void)
{
	x2apic_enable();
	sti();
	for (;;)
		GUEST_SYNC(READ_ONCE(*PTR(READ_ONCE(guest_page))));
}

/* Serve one page: arm it while the vCPU waits for it, then provide it. */
static void *apf_serve(void *arg)
{
	struct apf_server *s = arg;
	struct pollfd pfd = { .fd = s->uffd, .events = POLLIN };
	static u64 page[PAGE_SIZE / 8] __aligned(PAGE_SIZE) = { 0x5555 };
	struct uffdio_copy copy = {
		.src = (u64)page,
		.len = PAGE_SIZE,
	};
	struct uffd_msg msg;
	gpa_t gpa;

	TEST_ASSERT_EQ(poll(&pfd, 1, 10000), 1);
	TEST_ASSERT_EQ(read(s->uffd, &msg, sizeof(msg)), sizeof(msg));
	TEST_ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	s->async = msg.arg.pagefault.feat.ptid != s->vcpu_tid;

	copy.dst = msg.arg.pagefault.address & PAGE_MASK;
	gpa = addr_hva2gpa(s->vm, (void *)copy.dst);
	if (s->arm)
		arm_page(s->vm, gpa);
	TEST_ASSERT(!ioctl(s->uffd, UFFDIO_COPY, &copy), "UFFDIO_COPY: errno %d", errno);
	return NULL;
}

KVM_ONE_VCPU_TEST(userfault_x86, async_page_fault, guest_apf)
{
	struct kvm_vm *vm = vcpu->vm;
	struct apf_server s = { .vm = vm };
	pthread_t thread;
	int i;

	/* Untouched, so that the host has none of its pages. */
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, UF_GPA, UF_SLOT, 64,
				    KVM_MEM_USERFAULT);
	virt_map(vm, UF_GPA, UF_GPA, 64);
	s.uffd = uffd_register(addr_gpa2hva(vm, UF_GPA), 64 * PAGE_SIZE,
			       UFFDIO_REGISTER_MODE_MISSING, UFFD_FEATURE_THREAD_ID,
			       O_NONBLOCK);
	s.vcpu_tid = syscall(__NR_gettid);

	for (i = 0; i < 6; i++) {
		s.arm = i & 1;
		pthread_create(&thread, NULL, apf_serve, &s);

		/* One page each, away from those before it. */
		write_guest_global(vm, guest_page, 10 * i);
		if (s.arm) {
			assert_userfault_exit(vcpu, GPA(10 * i), KVM_MEMORY_EXIT_FLAG_READ);
			assert_userfault_exit(vcpu, GPA(10 * i), KVM_MEMORY_EXIT_FLAG_READ);
			/* No exit was prepared but for these two. */
			TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), i + 1);
			clear_page(vm, GPA(10 * i));
		}
		TEST_ASSERT_EQ(vcpu_run_to_sync(vcpu), 0x5555);
		pthread_join(thread, NULL);
		TEST_ASSERT(s.async, "The vCPU itself has waited for its page");
	}
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE_USERFAULT();

	return test_harness_run(argc, argv);
}
