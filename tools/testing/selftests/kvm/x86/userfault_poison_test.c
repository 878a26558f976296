// SPDX-License-Identifier: GPL-2.0-only
/*
 * Poison emulation with KVM userfault, end to end: the guest's memory consists of
 * huge pages and is mapped huge; while vCPUs read, write and execute it, the VMM
 * arms single 4K pages of it.  A vCPU that touches one exits and gets a machine
 * check for it, as real hardware would do, from which the guest recovers.
 *
 * Asserted all the way: each vCPU exits exactly once for each page that is
 * poisoned and for nothing else, with the right kind of access; the machine
 * check names the page; mappings are as large as the poisoned pages allow; and
 * with the TDP MMU poisoning costs no fault on any other page.
 *
 * Nested: L2 touches poisoned memory of L1, which gets the machine check.
 */
#include <linux/bitmap.h>
#include <linux/sizes.h>
#include <linux/userfaultfd.h>

#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "apic.h"
#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "kvm_userfault_util.h"
#include "mce.h"
#include "processor.h"
#include "svm_util.h"
#include "test_util.h"
#include "ucall_common.h"
#include "vmx.h"

/* Arbitrarily chosen, to overlap nothing and to be aligned for any huge page. */
#define UF_SLOT		10
#define UF_GPA		0x100000000ul

#define BLOCK		512ul
#define BLOCK_1G	(BLOCK * BLOCK)

/* What a machine check says if software has to act on it: Intel SDM 17.9.3.2. */
#define MC_BANK		9
#define MC_MSR(msr)	((msr) + 4 * MC_BANK)
#define MCI_STATUS_S	BIT_ULL(56)
#define MCI_STATUS_AR	BIT_ULL(55)
#define MCACOD_DATA	0x134
#define MC_STATUS	(MCI_STATUS_VAL | MCI_STATUS_UC | MCI_STATUS_EN |	\
			 MCI_STATUS_MISCV | MCI_STATUS_ADDRV | MCI_STATUS_S |	\
			 MCI_STATUS_AR | MCACOD_DATA)
#define MCG_STATUS_RIPV	BIT_ULL(0)
#define MCG_STATUS_EIPV	BIT_ULL(1)
#define MCG_STATUS_MCIP	BIT_ULL(2)
#define MCG_STATUS	(MCG_STATUS_RIPV | MCG_STATUS_EIPV | MCG_STATUS_MCIP)
#define MC_MISC		((MCM_ADDR_PHYS << 6) | 12)

KVM_ONE_VCPU_TEST_SUITE(userfault_poison);

/*
 * The guest's pages: these in each of some blocks.
 */
#define PAGES_PER_BLOCK	6
#define MAX_BLOCKS	6
#define MAX_PAGES	(PAGES_PER_BLOCK * MAX_BLOCKS)

static const u64 page_in_block[PAGES_PER_BLOCK] = { 0, 7, 8, 9, 300, BLOCK - 1 };

/* What is in a page: something to read, to write, and to execute. */
struct content {
	u64 read;
	u64 written;
	u8 code[16];
};

/* Each vCPU has its own kind of access, so that each exit can be told. */
enum access {
	ACCESS_READ,
	ACCESS_WRITE,
	ACCESS_EXEC,
	NR_ACCESSES,
};

static const u64 access_flag[NR_ACCESSES] = {
	KVM_MEMORY_EXIT_FLAG_READ,
	KVM_MEMORY_EXIT_FLAG_WRITE,
	KVM_MEMORY_EXIT_FLAG_EXEC,
};

struct guest_vcpu {
	u64 rounds;
	u64 nr_mc;
	u64 mc_addr[MAX_PAGES];
	/* Has the guest given up on this page? */
	u64 bad[MAX_PAGES];
};

static struct guest_vcpu guest_vcpus[NR_ACCESSES];
static u64 guest_pages[MAX_PAGES];
static u64 guest_magic[MAX_PAGES];
static u64 guest_nr_pages;
static u64 guest_stop;

/* What a vCPU does with a machine check.  Returns the address. */
static u64 guest_take_mc(struct guest_vcpu *v)
{
	u64 addr = rdmsr(MC_MSR(MSR_IA32_MC0_ADDR));

	GUEST_ASSERT_EQ(rdmsr(MSR_IA32_MCG_STATUS), MCG_STATUS);
	GUEST_ASSERT_EQ(rdmsr(MC_MSR(MSR_IA32_MC0_STATUS)), MC_STATUS);
	GUEST_ASSERT_EQ(rdmsr(MC_MSR(MSR_IA32_MC0_MISC)), MC_MISC);
	GUEST_ASSERT(v->nr_mc < MAX_PAGES);

	v->mc_addr[v->nr_mc] = addr;
	WRITE_ONCE(v->nr_mc, v->nr_mc + 1);
	wrmsr(MC_MSR(MSR_IA32_MC0_STATUS), 0);
	wrmsr(MSR_IA32_MCG_STATUS, 0);
	return addr;
}

static void guest_mc_handler(struct ex_regs *regs)
{
	guest_take_mc(&guest_vcpus[x2apic_read_reg(APIC_ID)]);

	/* Go on behind the access. */
	GUEST_ASSERT_EQ(regs->r9, KVM_EXCEPTION_MAGIC);
	regs->rip = regs->r11;
	regs->r9 = regs->vector;
}

static u8 guest_access(enum access access, u64 gva, u64 *val)
{
	struct content *content = (struct content *)gva;
	u8 vector = 0;
	u64 ign;

	switch (access) {
	case ACCESS_READ:
		asm volatile(KVM_ASM_SAFE("mov (%[p]), %%rax")
			     : "=a"(*val), KVM_ASM_SAFE_OUTPUTS(vector, ign)
			     : [p] "D"(&content->read)
			     : KVM_ASM_SAFE_CLOBBERS, "memory");
		break;
	case ACCESS_WRITE:
		asm volatile(KVM_ASM_SAFE("mov %%rax, (%[p])")
			     : KVM_ASM_SAFE_OUTPUTS(vector, ign)
			     : "a"(*val), [p] "D"(&content->written)
			     : KVM_ASM_SAFE_CLOBBERS, "memory");
		break;
	case ACCESS_EXEC:
		asm volatile("lea 3f(%%rip), %%rdx\n\t"
			     KVM_ASM_SAFE("jmp *%[p]\n\t3:")
			     : "=a"(*val), KVM_ASM_SAFE_OUTPUTS(vector, ign)
			     : [p] "D"(content->code)
			     : KVM_ASM_SAFE_CLOBBERS, "rdx", "memory");
		break;
	default:
		GUEST_FAIL("Bad access %u", access);
	}
	return vector;
}

/* mov $val, %eax; jmp *%rdx */
static void write_code(u8 *code, u32 val)
{
	code[0] = 0xb8;
	memcpy(code + 1, &val, sizeof(val));
	code[5] = 0xff;
	code[6] = 0xe2;
}

static void guest_init(void)
{
	x2apic_enable();
	set_cr4(get_cr4() | X86_CR4_MCE);
}

/* Touch all pages but the bad ones, for ever. */
static void guest_code(u64 id)
{
	struct guest_vcpu *v = &guest_vcpus[id];
	u64 i, n = 0, val;
	u8 vector;

	guest_init();
	GUEST_ASSERT_EQ(x2apic_read_reg(APIC_ID), id);

	while (!READ_ONCE(guest_stop)) {
		for (i = 0; i < guest_nr_pages; i++) {
			if (READ_ONCE(v->bad[i]))
				continue;

			val = ++n;
			vector = guest_access(id, guest_pages[i], &val);
			if (vector) {
				GUEST_ASSERT_EQ(vector, MC_VECTOR);
				GUEST_ASSERT_EQ(v->mc_addr[v->nr_mc - 1], guest_pages[i]);
				WRITE_ONCE(v->bad[i], 1);
			} else if (id == ACCESS_READ) {
				GUEST_ASSERT_EQ(val, READ_ONCE(guest_magic[i]));
			} else if (id == ACCESS_EXEC) {
				GUEST_ASSERT_EQ(val, i);
			}
		}
		WRITE_ONCE(v->rounds, v->rounds + 1);
	}

	GUEST_DONE();
}

/*
 * The VMM
 */
struct vmm_page {
	gpa_t gpa;
	u64 block;
	struct content *hva;
	bool poisoned;
};

struct vmm_vcpu {
	struct vmm *vmm;
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	enum access access;
	u64 exits;
};

struct vmm {
	struct kvm_vm *vm;
	/* Of the host's huge pages, in 4K pages. */
	u64 huge;
	u64 npages;
	void *mem;

	/* The VMM's own record, under lock. */
	pthread_mutex_t lock;
	struct vmm_page pages[MAX_PAGES];
	u64 nr_pages;
	u64 nr_poisoned;

	struct vmm_vcpu vcpus[NR_ACCESSES];
	int nr_vcpus;
	struct guest_vcpu *guest;
	u64 *magic;

	/* Mappings there are besides, e.g. of the guest's page tables. */
	u64 base_4k;
};

static void enable_mce(struct kvm_vcpu *vcpu)
{
	u64 supported, cap;

	kvm_ioctl(vcpu->vm->kvm_fd, KVM_X86_GET_MCE_CAP_SUPPORTED, &supported);
	TEST_ASSERT(supported & MCG_SER_P, "Software cannot recover from machine checks");
	cap = (supported & (MCG_CTL_P | MCG_SER_P)) | (MC_BANK + 1);
	vcpu_ioctl(vcpu, KVM_X86_SETUP_MCE, &cap);
}

static void inject_mce(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	struct kvm_x86_mce mce = {
		.status = MC_STATUS,
		.mcg_status = MCG_STATUS,
		.addr = gpa,
		.misc = MC_MISC,
		.bank = MC_BANK,
	};

	vcpu_ioctl(vcpu, KVM_X86_SET_MCE, &mce);
}

static struct vmm_page *find_page(struct vmm *vmm, gpa_t gpa)
{
	u64 i;

	for (i = 0; i < vmm->nr_pages; i++)
		if (vmm->pages[i].gpa == gpa)
			return &vmm->pages[i];
	TEST_FAIL("A userfault at 0x%lx, which nobody touches", gpa);
}

/* A vCPU has run into poison. */
static void handle_userfault(struct vmm_vcpu *v)
{
	struct kvm_run *run = v->vcpu->run;
	struct vmm_page *page = find_page(v->vmm, run->memory_fault.gpa);

	TEST_ASSERT_EQ(run->memory_fault.flags,
		       KVM_MEMORY_EXIT_FLAG_USERFAULT | access_flag[v->access]);
	TEST_ASSERT_EQ(run->memory_fault.size, PAGE_SIZE);

	pthread_mutex_lock(&v->vmm->lock);
	TEST_ASSERT(page->poisoned, "A userfault at 0x%lx, which is fine", page->gpa);
	pthread_mutex_unlock(&v->vmm->lock);

	WRITE_ONCE(v->exits, v->exits + 1);
	inject_mce(v->vcpu, page->gpa);
}

static void *vcpu_thread(void *arg)
{
	struct vmm_vcpu *v = arg;
	struct ucall uc;
	int ret;

	while (ret = _vcpu_run(v->vcpu), is_userfault_exit(v->vcpu, ret))
		handle_userfault(v);

	TEST_ASSERT(!ret, "KVM_RUN: errno %d exit reason %u", errno,
		    v->vcpu->run->exit_reason);
	switch (get_ucall(v->vcpu, &uc)) {
	case UCALL_DONE:
		break;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
	default:
		TEST_FAIL("Unexpected ucall %lu", uc.cmd);
	}
	return NULL;
}

static void map_page(struct vmm *vmm, u64 block, u64 page)
{
	u64 i = vmm->nr_pages++;
	struct vmm_page *p = &vmm->pages[i];

	TEST_ASSERT(i < MAX_PAGES, "Too many pages");
	*p = (struct vmm_page) {
		.gpa = UF_GPA + (block * BLOCK + page) * PAGE_SIZE,
		.block = block,
		.hva = vmm->mem + (block * BLOCK + page) * PAGE_SIZE,
	};
	vmm->magic[i] = i + 1;
	p->hva->read = vmm->magic[i];
	write_code(p->hva->code, i);
}

static u64 nr_free_huge(u64 huge)
{
	u64 kib = huge * PAGE_SIZE / SZ_1K;
	u64 nr = 0;
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%lukB/free_hugepages",
		 kib);
	f = fopen(path, "r");
	if (!f)
		return 0;
	if (fscanf(f, "%lu", &nr) != 1)
		nr = 0;
	fclose(f);
	return nr;
}

static void *alloc_huge(u64 npages, u64 huge)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
		    (huge == BLOCK ? MAP_HUGE_2MB : MAP_HUGE_1GB);
	void *mem;

	mem = mmap(NULL, npages * PAGE_SIZE, PROT_READ | PROT_WRITE, flags, -1, 0);
	__TEST_REQUIRE(mem != MAP_FAILED, "%lu huge pages of %lu small ones needed, errno %d",
		       npages / huge, huge, errno);
	return mem;
}

/* Memory of @nr huge pages, of which the guest uses some @blocks. */
static void vmm_init(struct vmm *vmm, struct kvm_vm *vm, u64 huge, u64 nr,
		     const u64 *blocks, int nr_blocks)
{
	u64 gvas[MAX_PAGES];
	int i, j;

	*vmm = (struct vmm) {
		.vm = vm,
		.huge = huge,
		.npages = nr * huge,
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.mem = alloc_huge(nr * huge, huge),
		.guest = addr_gva2hva(vm, (gva_t)guest_vcpus),
		.magic = addr_gva2hva(vm, (gva_t)guest_magic),
	};

	vm_set_user_memory_region(vm, UF_SLOT, KVM_MEM_USERFAULT, UF_GPA,
				  vmm->npages * PAGE_SIZE, vmm->mem);
	virt_map_level(vm, UF_GPA, UF_GPA, vmm->npages * PAGE_SIZE,
		       huge == BLOCK ? PG_LEVEL_2M : PG_LEVEL_1G);

	for (i = 0; i < nr_blocks; i++)
		for (j = 0; j < PAGES_PER_BLOCK; j++)
			map_page(vmm, blocks[i], page_in_block[j]);

	for (i = 0; i < vmm->nr_pages; i++)
		gvas[i] = vmm->pages[i].gpa;
	memcpy(addr_gva2hva(vm, (gva_t)guest_pages), gvas, sizeof(gvas));
	write_guest_global(vm, guest_nr_pages, vmm->nr_pages);
	vm_install_exception_handler(vm, MC_VECTOR, guest_mc_handler);
}

static void vmm_add_vcpu(struct vmm *vmm, struct kvm_vcpu *vcpu, enum access access)
{
	vmm->vcpus[vmm->nr_vcpus++] = (struct vmm_vcpu) {
		.vmm = vmm,
		.vcpu = vcpu,
		.access = access,
	};
	enable_mce(vcpu);
}

static void vmm_start_vcpus(struct vmm *vmm)
{
	int i;

	for (i = 0; i < vmm->nr_vcpus; i++)
		TEST_ASSERT(!pthread_create(&vmm->vcpus[i].thread, NULL, vcpu_thread,
					    &vmm->vcpus[i]), "pthread_create() failed");
}

static void vmm_stop_vcpus(struct vmm *vmm)
{
	int i;

	write_guest_global(vmm->vm, guest_stop, 1);
	for (i = 0; i < vmm->nr_vcpus; i++)
		TEST_ASSERT(!pthread_join(vmm->vcpus[i].thread, NULL),
			    "pthread_join() failed");
}

/* Each vCPU has gone through all of its pages since. */
static void vmm_wait_rounds(struct vmm *vmm)
{
	u64 before[NR_ACCESSES];
	int i, ms;

	for (i = 0; i < vmm->nr_vcpus; i++)
		before[i] = READ_ONCE(vmm->guest[i].rounds);
	for (i = 0; i < vmm->nr_vcpus; i++) {
		for (ms = 0; READ_ONCE(vmm->guest[i].rounds) - before[i] < 2; ms++) {
			TEST_ASSERT(ms < 10000, "vCPU %d is stuck", i);
			usleep(1000);
		}
	}
}

static u64 vmm_exits(struct vmm *vmm)
{
	u64 exits = 0;
	int i;

	for (i = 0; i < vmm->nr_vcpus; i++)
		exits += READ_ONCE(vmm->vcpus[i].exits);
	return exits;
}

static u64 vmm_faults(struct vmm *vmm)
{
	u64 faults = 0;
	int i;

	for (i = 0; i < vmm->nr_vcpus; i++)
		faults += vcpu_get_stat(vmm->vcpus[i].vcpu, pf_taken);
	return faults;
}

static bool block_poisoned(struct vmm *vmm, u64 block, u64 npages)
{
	u64 i;

	for (i = 0; i < vmm->nr_pages; i++)
		if (vmm->pages[i].poisoned &&
		    vmm->pages[i].block * BLOCK / npages == block * BLOCK / npages)
			return true;
	return false;
}

static bool block_used(struct vmm *vmm, u64 block)
{
	u64 i;

	for (i = 0; i < vmm->nr_pages; i++)
		if (vmm->pages[i].block == block)
			return true;
	return false;
}

/*
 * As large as what is poisoned allows.  In place nothing gets unmapped but that;
 * elsewhere what is mapped is what has been touched.
 */
static void vmm_assert_sizes(struct vmm *vmm)
{
	u64 want_1g = 0, want_2m = 0, want_4k = 0;
	u64 block;

	for (block = 0; block < vmm->npages / BLOCK; block++) {
		if (vmm->huge == BLOCK_1G && !block_poisoned(vmm, block, BLOCK_1G))
			want_1g += block % BLOCK == 0;
		else if (block_poisoned(vmm, block, BLOCK))
			want_4k += BLOCK;
		else
			want_2m += has_tdp_mmu() || block_used(vmm, block);
	}

	TEST_ASSERT_EQ(vm_get_stat(vmm->vm, pages_1g), want_1g);
	TEST_ASSERT_EQ(vm_get_stat(vmm->vm, pages_2m), want_2m);
	if (has_tdp_mmu())
		TEST_ASSERT_EQ(vm_get_stat(vmm->vm, pages_4k) - vmm->base_4k,
			       want_4k - vmm->nr_poisoned);
}

/* First the VMM's record: the exit comes before the ioctl returns. */
static void vmm_poison(struct vmm *vmm, u64 i)
{
	struct vmm_page *page = &vmm->pages[i];

	pthread_mutex_lock(&vmm->lock);
	page->poisoned = true;
	vmm->nr_poisoned++;
	pthread_mutex_unlock(&vmm->lock);
	TEST_ASSERT_EQ(vm_userfault_arm(vmm->vm, page->gpa, PAGE_SIZE), 1);
}

/* New content first, then the clear.  At last the guest learns of it. */
static void vmm_unpoison(struct vmm *vmm, u64 i)
{
	struct vmm_page *page = &vmm->pages[i];
	int j;

	memset(page->hva, 0, PAGE_SIZE);
	vmm->magic[i] += 0x1000;
	page->hva->read = vmm->magic[i];
	write_code(page->hva->code, i);

	pthread_mutex_lock(&vmm->lock);
	TEST_ASSERT_EQ(vm_userfault_set(vmm->vm, page->gpa, PAGE_SIZE,
					KVM_USERFAULT_COLLAPSE, NULL), 1);
	page->poisoned = false;
	vmm->nr_poisoned--;
	pthread_mutex_unlock(&vmm->lock);

	for (j = 0; j < vmm->nr_vcpus; j++)
		WRITE_ONCE(vmm->guest[j].bad[i], 0);
}

/*
 * Poison a page; see each vCPU exit for it once and get a machine check, while
 * the others go on, and not one more write to the page.
 */
static void vmm_poison_and_check(struct vmm *vmm, u64 i)
{
	struct vmm_page *page = &vmm->pages[i];
	u64 exits = vmm_exits(vmm), faults = vmm_faults(vmm), written, nr_mc[NR_ACCESSES];
	int j;

	for (j = 0; j < vmm->nr_vcpus; j++)
		nr_mc[j] = READ_ONCE(vmm->guest[j].nr_mc);

	vmm_poison(vmm, i);
	written = READ_ONCE(page->hva->written);
	vmm_wait_rounds(vmm);

	for (j = 0; j < vmm->nr_vcpus; j++) {
		TEST_ASSERT_EQ(READ_ONCE(vmm->guest[j].nr_mc), nr_mc[j] + 1);
		TEST_ASSERT_EQ(vmm->guest[j].mc_addr[nr_mc[j]], page->gpa);
	}
	TEST_ASSERT_EQ(vmm_exits(vmm), exits + vmm->nr_vcpus);
	TEST_ASSERT_EQ(READ_ONCE(page->hva->written), written);
	if (has_tdp_mmu())
		TEST_ASSERT_EQ(vmm_faults(vmm), faults + vmm->nr_vcpus);
	vmm_assert_sizes(vmm);
}

/* Nobody exits.  Collapse may cost a fault, though, of a vCPU that runs into it. */
static void vmm_unpoison_and_check(struct vmm *vmm, u64 i)
{
	u64 exits = vmm_exits(vmm);

	vmm_unpoison(vmm, i);
	vmm_wait_rounds(vmm);
	TEST_ASSERT_EQ(vmm_exits(vmm), exits);
	vmm_assert_sizes(vmm);
}

/* Of blocks 0 and 1, and of the last block: pages of block n begin at FIRST(n). */
#define FIRST(n)	((n) * PAGES_PER_BLOCK)

static void test_poison(struct kvm_vcpu *vcpu, u64 huge, u64 nr, const u64 *blocks,
			int nr_blocks)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 splits, collapses;
	struct vmm vmm;
	int i;

	vmm_init(&vmm, vm, huge, nr, blocks, nr_blocks);
	for (i = 0; i < NR_ACCESSES; i++) {
		struct kvm_vcpu *v = i ? vm_vcpu_add(vm, i, guest_code) : vcpu;

		vcpu_args_set(v, 1, (u64)i);
		vmm_add_vcpu(&vmm, v, i);
	}
	vmm_start_vcpus(&vmm);
	vmm_wait_rounds(&vmm);

	/* Once around, so that all that handling a machine check takes is mapped. */
	vmm_poison(&vmm, FIRST(1) + 2);
	vmm_wait_rounds(&vmm);
	vmm_unpoison(&vmm, FIRST(1) + 2);
	vmm_wait_rounds(&vmm);
	vmm.base_4k = vm_get_stat(vm, pages_4k);
	vmm_assert_sizes(&vmm);
	splits = vm_get_stat(vm, userfault_splits);
	collapses = vm_get_stat(vm, userfault_collapses);

	/* Two of a block, first and last of another, and one of the last. */
	vmm_poison_and_check(&vmm, FIRST(1) + 2);
	vmm_poison_and_check(&vmm, FIRST(1) + 3);
	vmm_poison_and_check(&vmm, FIRST(0));
	vmm_poison_and_check(&vmm, FIRST(0) + PAGES_PER_BLOCK - 1);
	vmm_poison_and_check(&vmm, FIRST(nr_blocks - 1) + 4);
	splits = vm_get_stat(vm, userfault_splits) - splits;
	TEST_ASSERT_EQ(splits, has_tdp_mmu() ? 3 + (huge == BLOCK_1G ? nr : 0) : 0);

	/* No 2M before the last of a block, no 1G before the last of all. */
	vmm_unpoison_and_check(&vmm, FIRST(1) + 3);
	vmm_unpoison_and_check(&vmm, FIRST(1) + 2);
	vmm_unpoison_and_check(&vmm, FIRST(0));
	vmm_unpoison_and_check(&vmm, FIRST(nr_blocks - 1) + 4);
	vmm_unpoison_and_check(&vmm, FIRST(0) + PAGES_PER_BLOCK - 1);
	collapses = vm_get_stat(vm, userfault_collapses) - collapses;
	TEST_ASSERT_EQ(vmm.nr_poisoned, 0);
	TEST_ASSERT_EQ(collapses, has_tdp_mmu() ? 3 : 0);

	/* And all of that is repeatable. */
	vmm_poison_and_check(&vmm, FIRST(1) + 3);
	vmm_unpoison_and_check(&vmm, FIRST(1) + 3);

	vmm_stop_vcpus(&vmm);
	for (i = 0; i < NR_ACCESSES; i++) {
		TEST_ASSERT_EQ(vmm.vcpus[i].exits, 7);
		TEST_ASSERT_EQ(vcpu_get_stat(vmm.vcpus[i].vcpu, userfault_exits), 7);
	}
}

KVM_ONE_VCPU_TEST(userfault_poison, hugetlb_2m, guest_code)
{
	const u64 blocks[] = { 0, 1, 2, 3 };

	test_poison(vcpu, BLOCK, ARRAY_SIZE(blocks), blocks, ARRAY_SIZE(blocks));
}

/* Blocks all over a page of 1G, and, if the host can afford it, in a second one. */
KVM_ONE_VCPU_TEST(userfault_poison, hugetlb_1g, guest_code)
{
	const u64 blocks[] = { 0, 1, 300, BLOCK - 1, BLOCK + 77 };
	u64 nr = nr_free_huge(BLOCK_1G) < 2 ? 1 : 2;

	test_poison(vcpu, BLOCK_1G, nr, blocks, ARRAY_SIZE(blocks) - 2 + nr);
}

/*
 * In flight
 */
static void guest_in_flight(void)
{
	struct guest_vcpu *v = &guest_vcpus[0];
	u64 i, val;
	u8 vector;

	guest_init();
	for (i = 0;; i++) {
		vector = guest_access(ACCESS_READ, guest_pages[i], &val);
		if (vector)
			GUEST_ASSERT_EQ(v->mc_addr[v->nr_mc - 1], guest_pages[i]);
		GUEST_SYNC2(vector, val);
	}
}

static void run_to_sync(struct kvm_vcpu *vcpu, u8 vector, u64 val)
{
	struct ucall uc;
	int ret;

	ret = _vcpu_run(vcpu);
	TEST_ASSERT(!ret, "KVM_RUN: errno %d exit reason %u gpa 0x%llx", errno,
		    vcpu->run->exit_reason, vcpu->run->memory_fault.gpa);
	if (get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(uc.cmd, UCALL_SYNC);
	TEST_ASSERT_EQ(uc.args[0], vector);
	if (!vector)
		TEST_ASSERT_EQ(uc.args[1], val);
}

/*
 * The vCPU has exited and its page is being fetched, when the page goes bad.  The
 * VMM still answers that the page is there.
 */
KVM_ONE_VCPU_TEST(userfault_poison, in_flight_resolve, guest_in_flight)
{
	const u64 blocks[] = { 0, 1 };
	struct kvm_run *run = vcpu->run;
	struct kvm_vm *vm = vcpu->vm;
	struct vmm vmm;
	int i;

	TEST_REQUIRE(kvm_check_cap(KVM_CAP_USERFAULT) & KVM_USERFAULT_CAP_RESOLVE);

	vmm_init(&vmm, vm, BLOCK, ARRAY_SIZE(blocks), blocks, ARRAY_SIZE(blocks));
	vmm_add_vcpu(&vmm, vcpu, ACCESS_READ);
	vm_userfault_arm(vm, UF_GPA, vmm.npages * PAGE_SIZE);

	for (i = 0; i < vmm.nr_pages; i++) {
		assert_userfault_exit(vcpu, vmm.pages[i].gpa, KVM_MEMORY_EXIT_FLAG_READ);

		/* Every other page; another one must not matter to the outcome. */
		if (i % 2) {
			vm_userfault_arm(vm, vmm.pages[i].gpa, PAGE_SIZE);
			run->memory_fault.flags |= KVM_MEMORY_EXIT_FLAG_RESOLVED;
			assert_userfault_exit(vcpu, vmm.pages[i].gpa,
					      KVM_MEMORY_EXIT_FLAG_READ);
			TEST_ASSERT(vm_userfault_is_armed(vm, vmm.pages[i].gpa),
				    "Page %d is not poisoned any more", i);
			inject_mce(vcpu, vmm.pages[i].gpa);
			run_to_sync(vcpu, MC_VECTOR, 0);
		} else {
			run->memory_fault.flags |= KVM_MEMORY_EXIT_FLAG_RESOLVED;
			run_to_sync(vcpu, 0, i + 1);
		}
	}
	TEST_ASSERT_EQ(vmm.guest[0].nr_mc, vmm.nr_pages / 2);
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits),
		       vmm.nr_pages + vmm.nr_pages / 2);
}

struct fetcher {
	struct vmm *vmm;
	int uffd;
	u64 poison;
};

/* The host is asked for a huge page: poison a small one of it, then provide it. */
static void *fetch_huge_page(void *arg)
{
	struct fetcher *f = arg;
	struct pollfd pfd = { .fd = f->uffd, .events = POLLIN };
	struct vmm_page *page = &f->vmm->pages[f->poison];
	u64 size = f->vmm->huge * PAGE_SIZE, i;
	struct content *content;
	struct uffdio_copy copy;
	struct uffd_msg msg;
	void *src;

	TEST_ASSERT_EQ(poll(&pfd, 1, 10000), 1);
	TEST_ASSERT_EQ(read(f->uffd, &msg, sizeof(msg)), sizeof(msg));
	TEST_ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);

	src = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	copy = (struct uffdio_copy) {
		.dst = msg.arg.pagefault.address & ~(size - 1),
		.src = (u64)src,
		.len = size,
	};
	for (i = 0; i < f->vmm->nr_pages; i++) {
		content = src + ((u64)f->vmm->pages[i].hva - copy.dst);
		if ((u64)f->vmm->pages[i].hva - copy.dst < size)
			content->read = 0x5555;
	}

	TEST_ASSERT_EQ(vm_userfault_arm(f->vmm->vm, page->gpa, PAGE_SIZE), 1);
	TEST_ASSERT(!ioctl(f->uffd, UFFDIO_COPY, &copy), "UFFDIO_COPY: errno %d", errno);
	kvm_munmap(src, size);
	return NULL;
}

/*
 * The fault is under way in KVM, waiting for the host's huge page, when the very
 * page, or one next to it, goes bad.
 */
KVM_ONE_VCPU_TEST(userfault_poison, in_flight_fault, guest_in_flight)
{
	const u64 blocks[] = { 0, 1, 2, 3 };
	struct kvm_vm *vm = vcpu->vm;
	struct fetcher f;
	struct vmm vmm;
	pthread_t thread;
	u64 i, first, page;
	int b;

	vmm_init(&vmm, vm, BLOCK, ARRAY_SIZE(blocks), blocks, ARRAY_SIZE(blocks));
	vmm_add_vcpu(&vmm, vcpu, ACCESS_READ);

	/* The host shall have none of it. */
	kvm_madvise(vmm.mem, vmm.npages * PAGE_SIZE, MADV_DONTNEED);
	f.vmm = &vmm;
	f.uffd = uffd_register(vmm.mem, vmm.npages * PAGE_SIZE,
			       UFFDIO_REGISTER_MODE_MISSING,
			       UFFD_FEATURE_MISSING_HUGETLBFS, O_NONBLOCK);

	for (b = 0; b < ARRAY_SIZE(blocks); b++) {
		/* The guest begins with page 0 of each block. */
		first = b * PAGES_PER_BLOCK;
		f.poison = first + b;
		page = vmm.pages[f.poison].gpa;

		TEST_ASSERT(!pthread_create(&thread, NULL, fetch_huge_page, &f),
			    "pthread_create() failed");
		for (i = first; i < first + PAGES_PER_BLOCK; i++) {
			if (i == f.poison) {
				assert_userfault_exit(vcpu, page, KVM_MEMORY_EXIT_FLAG_READ);
				inject_mce(vcpu, page);
				run_to_sync(vcpu, MC_VECTOR, 0);
			} else {
				run_to_sync(vcpu, 0, 0x5555);
			}
		}
		TEST_ASSERT(!pthread_join(thread, NULL), "pthread_join() failed");
		TEST_ASSERT(vm_userfault_is_armed(vm, page), "No longer poisoned");
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), 0);
	}
	TEST_ASSERT_EQ(vmm.guest[0].nr_mc, ARRAY_SIZE(blocks));
	close(f.uffd);
}

/*
 * Nested
 */
#define L2_GUEST_STACK_SIZE	64

/* Where L2 goes on after a machine check, and whether there was one. */
static u64 l2_recover;
static u64 l2_vector;

/*
 * L1 preserves no register of L2: tell what is not on the stack that they all may
 * have changed.
 */
static void l2_read(u64 gva)
{
	asm volatile("push %%rbp\n\t"
		     "lea 1f(%%rip), %%rcx\n\t"
		     "mov %%rcx, %[recover]\n\t"
		     "mov (%%rdi), %%rax\n\t"
		     "1: pop %%rbp"
		     : [recover] "=m"(l2_recover), "+D"(gva)
		     :
		     : "rax", "rbx", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11",
		       "r12", "r13", "r14", "r15", "memory");
}

static void l2_write(u64 gva, u64 val)
{
	asm volatile("push %%rbp\n\t"
		     "lea 1f(%%rip), %%rcx\n\t"
		     "mov %%rcx, %[recover]\n\t"
		     "mov %%rax, (%%rdi)\n\t"
		     "1: pop %%rbp"
		     : [recover] "=m"(l2_recover), "+D"(gva), "+a"(val)
		     :
		     : "rbx", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "r12",
		       "r13", "r14", "r15", "memory");
}

/* As guest_code(), by turns reading and writing. */
static void l2_guest_code(void)
{
	static u64 i, n;
	struct guest_vcpu *v = &guest_vcpus[0];

	while (!READ_ONCE(guest_stop)) {
		for (i = 0; i < guest_nr_pages; i++) {
			if (READ_ONCE(v->bad[i]))
				continue;

			WRITE_ONCE(l2_vector, 0);
			if (n % 2)
				l2_write(guest_pages[i] + offsetof(struct content, written), n);
			else
				l2_read(guest_pages[i]);

			if (READ_ONCE(l2_vector)) {
				GUEST_ASSERT_EQ(v->mc_addr[v->nr_mc - 1], guest_pages[i]);
				WRITE_ONCE(v->bad[i], 1);
			}
		}
		WRITE_ONCE(v->rounds, ++n);
	}

	GUEST_DONE();
}

/* L1 intercepts L2's machine checks. */
static void l1_take_mc(void)
{
	guest_take_mc(&guest_vcpus[0]);
	WRITE_ONCE(l2_vector, MC_VECTOR);
}

static void l1_svm_code(struct svm_test_data *svm)
{
	unsigned long l2_guest_stack[L2_GUEST_STACK_SIZE];
	struct vmcb *vmcb = svm->vmcb;

	generic_svm_setup(svm, l2_guest_code, &l2_guest_stack[L2_GUEST_STACK_SIZE]);
	vmcb->control.intercept_exceptions |= BIT(MC_VECTOR);
	for (;;) {
		run_guest(vmcb, svm->vmcb_gpa);
		GUEST_ASSERT_EQ(vmcb->control.exit_code, SVM_EXIT_EXCP_BASE + MC_VECTOR);
		l1_take_mc();
		vmcb->save.rip = l2_recover;
	}
}

static void l1_vmx_code(struct vmx_pages *vmx)
{
	unsigned long l2_guest_stack[L2_GUEST_STACK_SIZE];

	GUEST_ASSERT(prepare_for_vmx_operation(vmx));
	GUEST_ASSERT(load_vmcs(vmx));
	prepare_vmcs(vmx, l2_guest_code, &l2_guest_stack[L2_GUEST_STACK_SIZE]);
	GUEST_ASSERT(!vmwrite(EXCEPTION_BITMAP, BIT(MC_VECTOR)));
	GUEST_ASSERT(!vmlaunch());
	for (;;) {
		GUEST_ASSERT_EQ(vmreadz(VM_EXIT_REASON), EXIT_REASON_EXCEPTION_NMI);
		GUEST_ASSERT_EQ(vmreadz(VM_EXIT_INTR_INFO) & 0xff, MC_VECTOR);
		l1_take_mc();
		GUEST_ASSERT(!vmwrite(GUEST_RIP, l2_recover));
		GUEST_ASSERT(!vmresume());
	}
}

static void l1_guest_code(void *data)
{
	u64 i;

	guest_init();

	/* L1 maps all of it for itself, too. */
	for (i = 0; i < guest_nr_pages; i++)
		GUEST_ASSERT_EQ(READ_ONCE(*(u64 *)guest_pages[i]), guest_magic[i]);

	if (this_cpu_has(X86_FEATURE_VMX))
		l1_vmx_code(data);
	else
		l1_svm_code(data);
}

/* Either access is right: L2 alternates.  The others are asserted as ever. */
static void *nested_vcpu_thread(void *arg)
{
	struct vmm_vcpu *v = arg;
	struct kvm_run *run = v->vcpu->run;
	struct ucall uc;
	int ret;

	while (ret = _vcpu_run(v->vcpu), is_userfault_exit(v->vcpu, ret)) {
		v->access = run->memory_fault.flags & KVM_MEMORY_EXIT_FLAG_WRITE ?
			    ACCESS_WRITE : ACCESS_READ;
		handle_userfault(v);
	}

	TEST_ASSERT(!ret, "KVM_RUN: errno %d exit reason %u", errno, run->exit_reason);
	if (get_ucall(v->vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(uc.cmd, UCALL_DONE);
	return NULL;
}

/*
 * L2's pages are the same to L1 and to L2.  With nested paging KVM has L1's
 * mappings and those for L2: poison must be taken from both.
 */
static void test_nested(struct kvm_vcpu *vcpu, u64 huge, const u64 *blocks, int nr_blocks,
			bool nested_tdp)
{
	struct kvm_vm *vm = vcpu->vm;
	u64 nr_mc = 0, exits, written, had_2m, had_1g, i;
	struct vmm_page *page;
	struct vmm vmm;
	gva_t data;

	if (nested_tdp)
		vm_enable_tdp(vm);
	if (kvm_cpu_has(X86_FEATURE_VMX))
		vcpu_alloc_vmx(vm, &data);
	else
		vcpu_alloc_svm(vm, &data);
	vcpu_args_set(vcpu, 1, data);

	vmm_init(&vmm, vm, huge, huge == BLOCK ? nr_blocks : 1, blocks, nr_blocks);
	if (nested_tdp) {
		tdp_identity_map_default_memslots(vm);
		for (i = 0; i < vmm.npages; i += huge)
			__virt_pg_map(vm, &vm->stage2_mmu, UF_GPA + i * PAGE_SIZE,
				      UF_GPA + i * PAGE_SIZE,
				      huge == BLOCK ? PG_LEVEL_2M : PG_LEVEL_1G);
	}
	vmm_add_vcpu(&vmm, vcpu, ACCESS_READ);
	TEST_ASSERT(!pthread_create(&vmm.vcpus[0].thread, NULL, nested_vcpu_thread,
				    &vmm.vcpus[0]), "pthread_create() failed");
	vmm_wait_rounds(&vmm);
	had_2m = vm_get_stat(vm, pages_2m);
	had_1g = vm_get_stat(vm, pages_1g);
	TEST_ASSERT(huge == BLOCK ? had_2m >= nr_blocks : had_1g >= 1,
		    "Nothing is mapped huge");
	if (nested_tdp)
		TEST_ASSERT_EQ(huge == BLOCK ? had_2m / nr_blocks : had_1g, 2);

	for (i = 0; i < vmm.nr_pages; i += 5) {
		page = &vmm.pages[i];
		exits = vmm_exits(&vmm);
		vmm_poison(&vmm, i);
		written = READ_ONCE(page->hva->written);
		vmm_wait_rounds(&vmm);

		nr_mc++;
		TEST_ASSERT_EQ(READ_ONCE(vmm.guest[0].nr_mc), nr_mc);
		TEST_ASSERT_EQ(vmm.guest[0].mc_addr[nr_mc - 1], page->gpa);
		TEST_ASSERT_EQ(vmm_exits(&vmm), exits + 1);
		TEST_ASSERT_EQ(READ_ONCE(page->hva->written), written);
		TEST_ASSERT(huge == BLOCK ? vm_get_stat(vm, pages_2m) < had_2m :
					    vm_get_stat(vm, pages_1g) < had_1g,
			    "Mapped huge despite of poison");
	}

	for (i = 0; i < vmm.nr_pages; i += 5)
		vmm_unpoison(&vmm, i);
	exits = vmm_exits(&vmm);
	vmm_wait_rounds(&vmm);
	TEST_ASSERT_EQ(vmm_exits(&vmm), exits);

	/* Only L2 touches them now: L1's come back if they do so in place. */
	if (!has_tdp_mmu())
		huge == BLOCK ? (had_2m /= 2) : (had_1g /= 2);
	if (huge == BLOCK)
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_2m), had_2m);
	else
		TEST_ASSERT_EQ(vm_get_stat(vm, pages_1g), had_1g);

	vmm_stop_vcpus(&vmm);
	TEST_ASSERT_EQ(vcpu_get_stat(vcpu, userfault_exits), nr_mc);
}

static void test_nested_huge(struct kvm_vcpu *vcpu, u64 huge, bool nested_tdp)
{
	const u64 blocks_2m[] = { 0, 1, 2, 3 };
	const u64 blocks_1g[] = { 0, 1, 300, BLOCK - 1 };

	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_VMX) || kvm_cpu_has(X86_FEATURE_SVM));

	/* KVM offers it to L1 only if it uses it itself. */
	if (nested_tdp && !kvm_cpu_has_tdp()) {
		TEST_ASSERT(!kvm_is_tdp_enabled(), "No nested paging for L1");
		return;
	}

	if (huge == BLOCK)
		test_nested(vcpu, huge, blocks_2m, ARRAY_SIZE(blocks_2m), nested_tdp);
	else
		test_nested(vcpu, huge, blocks_1g, ARRAY_SIZE(blocks_1g), nested_tdp);
}

KVM_ONE_VCPU_TEST(userfault_poison, nested_2m, l1_guest_code)
{
	test_nested_huge(vcpu, BLOCK, false);
}

KVM_ONE_VCPU_TEST(userfault_poison, nested_1g, l1_guest_code)
{
	test_nested_huge(vcpu, BLOCK_1G, false);
}

KVM_ONE_VCPU_TEST(userfault_poison, nested_tdp_2m, l1_guest_code)
{
	test_nested_huge(vcpu, BLOCK, true);
}

KVM_ONE_VCPU_TEST(userfault_poison, nested_tdp_1g, l1_guest_code)
{
	test_nested_huge(vcpu, BLOCK_1G, true);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE_USERFAULT();
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_MCE));

	return test_harness_run(argc, argv);
}
