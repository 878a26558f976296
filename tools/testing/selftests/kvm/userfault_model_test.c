// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM userfault against a model of its contract.
 *
 * The model is what Documentation/virt/kvm/userfault.rst says, for one vCPU and
 * one thread: memslots that come, go, move and change their flags, a bit for each page,
 * an exit that may be pending, and how large the mappings are.  Random sequences
 * of operations, with valid and invalid arguments, are done with KVM and with the
 * model, and after each operation everything that can be seen is compared: errno,
 * what is written back, what KVM_GET_USERFAULT_RANGE says, what KVM_RUN ends with when
 * the vCPU touches a page then (after most; so that there are arms between an exit and
 * its resolve, not after all), and KVM's statistics on mappings.
 *
 * Each sequence is run by a process of its own.  One that goes wrong is tried
 * again with ever more operations left out, and what remains is printed.
 *
 * How large mappings are is compared with the TDP MMU and HugeTLB pages only;
 * other MMUs drop mappings when they please.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/sizes.h>

#include "kvm_syscalls.h"
#include "kvm_userfault_guest.h"
#include "kvm_userfault_util.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#define GPA		SZ_4G
#define FIRST_SLOT	10
#define MAX_OPS		200
#define CODE_OFFSET	2048
#define CODE_VALUE(p)	(0x4000 + (p))

/* Where memslots can be; the first one is backed by huge pages. */
#define BLOCK		512UL
static const struct {
	u64 first;
	u64 nr;
} slots[] = {
	{ 0, 2 * BLOCK },
	{ 1024, 100 },
	{ 1160, 63 },
	{ 1223, 1 },
};

#ifdef __aarch64__
#define IS_ARM64	true
#else
#define IS_ARM64	false
#endif

#define NR_SLOTS	((int)ARRAY_SIZE(slots))
#define NR_PAGES	1250UL

enum kind {
	OP_ARM,
	OP_CLEAR,
	OP_GET,
	OP_RUN,
	OP_RESOLVE,
	OP_CREATE,
	OP_DELETE,
	OP_FLAGS,
	OP_MOVE,
	NR_KINDS,
};

static const char * const kinds[] = {
	"arm", "clear", "get", "run", "resolve", "create", "delete", "flags", "move",
};

/* How an argument is invalid; which ones apply depends on the operation. */
enum bad {
	GOOD,
	BAD_FLAG,
	BAD_ALIGNMENT,
	BAD_SIZE,
	BAD_WRAP,
	BAD_BITMAP,
	BAD_BITMAP_ALIGNMENT,
	BAD_BITMAP_ADDRESS,
	BAD_AS_MASK,
	BAD_RESERVED,
	NR_BAD,
};

static const char * const bads[] = {
	"", "bad flag", "bad alignment", "bad size", "wrap", "bitmap missing or superfluous",
	"bitmap unaligned", "bitmap unmapped", "bad as_mask", "reserved",
};

/* All is decided beforehand: leaving out others does not change what an op does. */
struct op {
	enum kind kind;
	enum bad bad;
	/* In pages. */
	u64 first;
	u64 nr;
	u32 flags;
	int slot;
	u64 as_mask;
	u64 access;
	/* BITMAP: what makes the bitmap. */
	u32 seed;
	/* What the vCPU touches afterwards, if anything. */
	bool probe;
	u64 probe_page;
	u64 probe_access;
};

struct model_slot {
	bool exists;
	u32 flags;
};

/* As little as there is to know. */
static struct {
	struct model_slot slots[NR_SLOTS];
	bool armed[NR_PAGES];
	u64 val[NR_PAGES];
	/* Level of the mapping, 0: none. */
	u8 level[NR_PAGES];

	/* The access that the vCPU is about to do, and has exited for. */
	bool pending;
	u64 page, access, new_val;
	bool can_resolve;
	u64 nr_arms, nr_arms_at_exit;
} model;

static struct kvm_vm *vm;
static struct kvm_vcpu *vcpu;
static u64 *hvas[NR_SLOTS];
static u64 psz, nr_as, max_as_mask;
static bool compare_sizes, has_base;
static u64 base_4k;
static void *unmapped;

/* Memslots that are READONLY at the beginning of the sequence, a bit for each. */
static u32 readonly_slots;

/* Shared with the process that runs a sequence. */
static struct {
	int op;
	char why[400];
} *result;

static void mismatch(const char *fmt, ...) __printf(1, 2);
static void mismatch(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(result->why, sizeof(result->why), fmt, args);
	va_end(args);
	_exit(1);
}

#define compare(what, got, wanted)						\
do {										\
	u64 __got = (got), __wanted = (wanted);					\
										\
	if (__got != __wanted)							\
		mismatch("%s: got 0x%lx, wanted 0x%lx", what, __got, __wanted);	\
} while (0)

static gpa_t page_gpa(u64 page)
{
	return GPA + page * psz;
}

/*
 * Between any two pieces of the memory, the guest has addresses that lead to
 * memory of its own: with them its page tables can be walked without more.
 */
#define PIECE		256UL

static gva_t piece_gva(u64 piece)
{
	return GPA + piece * 2 * PIECE * psz;
}

static gva_t page_gva(u64 page)
{
	return piece_gva(page / PIECE) + page % PIECE * psz;
}

static int slot_of(u64 page)
{
	int i;

	for (i = 0; i < NR_SLOTS; i++) {
		if (model.slots[i].exists && page >= slots[i].first &&
		    page < slots[i].first + slots[i].nr)
			return i;
	}
	return -1;
}

/* Writes of the vCPU are not for the memory. */
static bool is_write_to_readonly(u64 page, u64 access)
{
	int slot = slot_of(page);

	return access == WRITE && slot >= 0 && model.slots[slot].flags & KVM_MEM_READONLY;
}

static bool is_userfault(u64 page)
{
	int slot = slot_of(page);

	return slot >= 0 && model.slots[slot].flags & KVM_MEM_USERFAULT;
}

static u64 *page_hva(u64 page)
{
	int i;

	for (i = 0; i < NR_SLOTS; i++) {
		if (page >= slots[i].first && page < slots[i].first + slots[i].nr)
			return (void *)hvas[i] + (page - slots[i].first) * psz;
	}
	return NULL;
}

/*
 * The model of mappings
 */
static bool may_be_huge(u64 page)
{
	u64 i, start = round_down(page, BLOCK);

	if (slot_of(page) != 0 || model.slots[0].flags & KVM_MEM_LOG_DIRTY_PAGES)
		return false;
	for (i = start; i < start + BLOCK; i++) {
		if (model.armed[i])
			return false;
	}
	return true;
}

static void set_block(u64 page, u8 level)
{
	memset(model.level + round_down(page, BLOCK), level, BLOCK);
}

static void model_map(u64 page)
{
	if (model.level[page])
		return;
	if (may_be_huge(page))
		set_block(page, 2);
	else
		model.level[page] = 1;
}

static void model_unmap(u64 page)
{
	if (model.level[page] == 2)
		set_block(page, 1);
	model.level[page] = 0;
}

static void model_collapse(u64 first, u64 nr)
{
	u64 i, end = min(round_up(first + nr, BLOCK), 2 * BLOCK);

	for (i = round_down(first, BLOCK); i < end; i++) {
		if (model.level[i] == 1 && may_be_huge(i))
			set_block(i, 2);
	}
}

/*
 * The model of everything else: what is to come of it, or -errno
 */
static int model_set(const struct op *op, const u64 *bitmap, u64 *changed)
{
	bool arm = op->kind == OP_ARM, any = false, in_as_0 = !op->as_mask || op->as_mask & 1;
	u64 i;

	*changed = 0;
	if (op->bad == BAD_BITMAP_ADDRESS)
		return -EFAULT;
	if (op->bad)
		return -EINVAL;

	for (i = op->first; i < op->first + op->nr && in_as_0; i++) {
		if (arm && slot_of(i) >= 0 && !is_userfault(i))
			return -ENOENT;
		any |= is_userfault(i);
	}
	if (arm && !any)
		return -ENOENT;

	model.nr_arms += arm;
	for (i = 0; i < op->nr && in_as_0; i++) {
		u64 page = op->first + i;

		if (!is_userfault(page) || model.armed[page] == arm ||
		    (bitmap && !(bitmap[i / 64] & BIT(i % 64))))
			continue;
		model.armed[page] = arm;
		if (arm)
			model_unmap(page);
		(*changed)++;
	}
	if (op->flags & KVM_USERFAULT_COLLAPSE && in_as_0)
		model_collapse(op->first, op->nr);
	return 0;
}

/* x86 drops all mappings of all memslots. */
static void model_unmap_all(void)
{
	memset(model.level, 0, sizeof(model.level));
	has_base = false;
}

/* What a change of the first memslot's flags does to its mappings. */
static void model_flags(u32 before, u32 flags)
{
	u32 gone = before & ~flags;
	u64 i;

	if (gone & KVM_MEM_USERFAULT && !(flags & KVM_MEM_LOG_DIRTY_PAGES))
		model_collapse(0, slots[0].nr);
	else if (flags & KVM_MEM_READONLY)
		return;
	else if (gone & KVM_MEM_LOG_DIRTY_PAGES)
		model_collapse(0, slots[0].nr);
	else if (flags & ~before & KVM_MEM_LOG_DIRTY_PAGES)
		for (i = 0; i < slots[0].nr; i++)
			model.level[i] = !!model.level[i];
}

/* Create it, or change its flags. */
static int model_slot(const struct op *op)
{
	struct model_slot *slot = &model.slots[op->slot];
	u64 first = slots[op->slot].first, nr = slots[op->slot].nr;
	u32 flags = op->flags & ~KVM_MEM_USERFAULT_ARMED, before = slot->flags;

	if (op->flags & KVM_MEM_USERFAULT_ARMED &&
	    (slot->exists || !(op->flags & KVM_MEM_USERFAULT)))
		return -EINVAL;
	if (slot->exists && (before ^ flags) & KVM_MEM_READONLY)
		return -EINVAL;

	if (!(flags & KVM_MEM_USERFAULT))
		memset(model.armed + first, false, nr);
	slot->flags = flags;
	if (!slot->exists) {
		memset(model.armed + first, !!(op->flags & KVM_MEM_USERFAULT_ARMED), nr);
		model.nr_arms += !!(flags & KVM_MEM_USERFAULT);
		slot->exists = true;
	} else if (op->slot == 0) {
		model_flags(before, flags);
	}
	return 0;
}

static int model_delete(const struct op *op)
{
	struct model_slot *slot = &model.slots[op->slot];

	if (!slot->exists)
		return -EINVAL;

	memset(model.armed + slots[op->slot].first, false, slots[op->slot].nr);
	slot->exists = false;
	model_unmap_all();
	return 0;
}

static int model_move(const struct op *op)
{
	struct model_slot *slot = &model.slots[op->slot];

	if ((slot->flags | op->flags) & (KVM_MEM_USERFAULT | KVM_MEM_USERFAULT_ARMED) ||
	    (slot->flags ^ op->flags) & KVM_MEM_READONLY)
		return -EINVAL;

	slot->flags = op->flags;
	model_unmap_all();
	return 0;
}

/*
 * The real thing
 */
static void make_bitmap(const struct op *op, u64 *bitmap)
{
	struct guest_random_state rng = new_guest_random_state(op->seed);
	u64 i;

	for (i = 0; i < DIV_ROUND_UP(op->nr, 64); i++) {
		u64 words[] = {
			0, ~0ull, guest_random_u64(&rng), BIT(guest_random_u32(&rng) % 64),
		};

		bitmap[i] = words[guest_random_u32(&rng) % ARRAY_SIZE(words)];
	}
}

static void make_range(const struct op *op, struct kvm_userfault_range *range, u64 *bitmap,
		       bool has_bitmap)
{
	*range = (struct kvm_userfault_range) {
		.gpa = page_gpa(op->first),
		.size = op->nr * psz,
		.flags = op->kind == OP_GET ? 0 : op->flags,
		.bitmap = has_bitmap ? (unsigned long)bitmap : 0,
		.as_mask = op->as_mask,
		.changed = 0x5a5a,
	};

	switch (op->bad) {
	case BAD_FLAG:
		range->flags |= op->kind == OP_GET ? BIT(op->seed % 3) : BIT(3 + op->seed % 61);
		break;
	case BAD_ALIGNMENT:
		if (op->seed % 2)
			range->gpa += 1 + op->seed % (psz - 1);
		else
			range->size += 1 + op->seed % (psz - 1);
		break;
	case BAD_SIZE:
		range->size = 0;
		break;
	case BAD_WRAP:
		range->size = -range->gpa;
		range->gpa += psz;
		break;
	case BAD_BITMAP:
		range->bitmap = has_bitmap ? 0 : (unsigned long)bitmap;
		break;
	case BAD_BITMAP_ALIGNMENT:
		range->bitmap = (unsigned long)bitmap + 1 + op->seed % 7;
		break;
	case BAD_BITMAP_ADDRESS:
		range->bitmap = (unsigned long)unmapped;
		break;
	case BAD_AS_MASK:
		range->as_mask |= BIT(nr_as + op->seed % (64 - nr_as));
		break;
	case BAD_RESERVED:
		range->reserved[op->seed % 2] = BIT(op->seed % 64);
		break;
	default:
		break;
	}
}

static void do_set(const struct op *op)
{
	bool has_bitmap = op->flags & KVM_USERFAULT_BITMAP;
	u64 bitmap[NR_PAGES / 64 + 2], changed;
	struct kvm_userfault_range range, before;
	int want;

	make_bitmap(op, bitmap);
	make_range(op, &range, bitmap, has_bitmap);
	before = range;
	want = model_set(op, has_bitmap ? bitmap : NULL, &changed);
	compare("SET: errno", __vm_userfault_set_range(vm, &range), -want);
	compare("changed", range.changed, !want || want == -EFAULT ? changed : 0x5a5a);

	/* Nothing is left half-done here: no signal comes, and a bitmap is there or not. */
	before.changed = range.changed;
	compare("SET: the rest is written back", memcmp(&range, &before, sizeof(range)), 0);
}

static void check_state(u64 first, u64 nr, u64 as_mask)
{
	u64 bitmap[NR_PAGES / 64 + 2];
	u64 i, bytes = DIV_ROUND_UP(nr, 8);

	memset(bitmap, 0x5a, sizeof(bitmap));
	vm_userfault_get_as(vm, as_mask, page_gpa(first), nr * psz, bitmap);
	for (i = 0; i < sizeof(bitmap) * 8; i++) {
		bool bit = bitmap[i / 64] & BIT(i % 64);
		bool want = i < nr ? model.armed[first + i] && (!as_mask || as_mask & 1) :
			    i < bytes * 8 ? false : BIT(i % 8) & 0x5a;

		if (bit != want)
			mismatch("GET 0x%lx + 0x%lx: bit 0x%lx is %d", first, nr, i, bit);
	}
}

static void do_get(const struct op *op)
{
	struct kvm_userfault_range range;
	u64 bitmap[NR_PAGES / 64 + 2];

	if (!op->bad) {
		check_state(op->first, op->nr, op->as_mask);
		return;
	}
	make_range(op, &range, bitmap, true);
	compare("GET: errno", __vm_userfault_get_range(vm, &range),
		op->bad == BAD_BITMAP_ADDRESS ? EFAULT : EINVAL);
}

static int set_slot(const struct op *op, u64 page, u64 nr)
{
	return __vm_set_user_memory_region(vm, FIRST_SLOT + op->slot, nr ? op->flags : 0,
					   page_gpa(page), nr * psz, hvas[op->slot]) ? errno : 0;
}

static void do_slot(struct op op)
{
	const struct model_slot *slot = &model.slots[op.slot];
	u64 first = slots[op.slot].first, nr = slots[op.slot].nr;
	int want;

	/* Nothing can be executed that is not there; nor go on being. */
	if (op.kind == OP_DELETE && model.pending && model.access == EXEC)
		return;

	/* READONLY has to stay as it was created: the flag stands for trying to change it. */
	if (slot->exists)
		op.flags ^= slot->flags & KVM_MEM_READONLY;

	switch (op.kind) {
	case OP_DELETE:
		compare("delete: errno", set_slot(&op, first, 0), -model_delete(&op));
		break;
	case OP_MOVE:
		/* Where nothing is, and back. */
		if (!slot->exists)
			return;
		want = model_move(&op);
		compare("move: errno", set_slot(&op, NR_PAGES, nr), -want);
		if (!want)
			compare("move back: errno", set_slot(&op, first, nr), 0);
		break;
	default:
		compare("memslot: errno", set_slot(&op, first, nr), -model_slot(&op));
		break;
	}
}

/* KVM_RUN ends as it has to, with the access pending or done. */
static void check_run(void)
{
	struct kvm_run *run = vcpu->run;
	u64 page = model.page, want;
	bool to_readonly = is_write_to_readonly(page, model.access);
	struct ucall uc;
	int r, err;

	r = _vcpu_run(vcpu);
	err = r ? errno : 0;
	model.can_resolve = false;

	if (model.armed[page] && !(IS_ARM64 && to_readonly)) {
		compare("KVM_RUN: errno", err, EFAULT);
		compare("exit", run->exit_reason, KVM_EXIT_MEMORY_FAULT);
		compare("exit: flags", run->memory_fault.flags,
			KVM_MEMORY_EXIT_FLAG_USERFAULT | model.access);
		compare("exit: gpa", run->memory_fault.gpa, page_gpa(page));
		compare("exit: size", run->memory_fault.size, psz);
		model.pending = true;
		model.can_resolve = true;
		model.nr_arms_at_exit = model.nr_arms;
		return;
	}

	compare("KVM_RUN: errno", err, 0);
	model.pending = false;
	if (slot_of(page) < 0 || to_readonly) {
		compare("exit", run->exit_reason, KVM_EXIT_MMIO);
		compare("MMIO", run->mmio.phys_addr, page_gpa(page));
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
		compare("KVM_RUN after MMIO", _vcpu_run(vcpu), 0);
		want = model.access == READ ? ~0ull : model.new_val;
		if (to_readonly)
			compare("READONLY memory", page_hva(page)[0], model.val[page]);
	} else {
		model_map(page);
		if (model.access == WRITE)
			model.val[page] = model.new_val;
		want = model.access == EXEC ? CODE_VALUE(page) : model.val[page];
		compare("memory", page_hva(page)[0], model.val[page]);
	}

	compare("ucall", get_ucall(vcpu, &uc), UCALL_SYNC);
	compare("access", uc.args[1], want);
}

static void do_run(const struct op *op)
{
	if (!model.pending) {
		model.page = op->first;
		model.access = op->access;
		model.new_val = op->seed;
		if (model.access == EXEC && slot_of(op->first) < 0)
			model.access = READ;
		set_cmd(vcpu, model.access,
			page_gva(model.page) + (model.access == EXEC ? CODE_OFFSET : 0),
			model.new_val);
	}
	check_run();
}

static void do_resolve(const struct op *op)
{
	u64 i, first, nr = op->nr;

	if (!model.pending || !model.can_resolve)
		return;

	/* Around the page, or not: the pages before it, and after it. */
	first = model.page - min(model.page, op->seed % nr);
	vcpu_userfault_resolve(vcpu, page_gpa(first), nr * psz);
	if (op->bad == BAD_ALIGNMENT)
		vcpu->run->memory_fault.gpa++;
	if (op->bad == BAD_SIZE)
		vcpu->run->memory_fault.size = op->seed % 2 ? 0 : SZ_2M + psz;
	if (op->bad == BAD_WRAP)
		vcpu->run->memory_fault.gpa = page_gpa(model.page + 1);
	if (op->bad || nr * psz > SZ_2M) {
		compare("bad resolve", _vcpu_run(vcpu) ? errno : 0, EINVAL);
		compare("exit after a bad resolve", vcpu->run->exit_reason, KVM_EXIT_MEMORY_FAULT);
		vcpu_userfault_resolve(vcpu, page_gpa(model.page), psz);
		first = model.page;
		nr = 1;
	}

	if (model.nr_arms == model.nr_arms_at_exit) {
		for (i = first; i < min(first + nr, NR_PAGES); i++)
			model.armed[i] = false;
	}
	check_run();
}

static void check_sizes(void)
{
	u64 i, nr_4k = 0, nr_2m = 0, got;

	if (!compare_sizes)
		return;

	for (i = 0; i < NR_PAGES; i++) {
		nr_4k += model.level[i] == 1;
		nr_2m += model.level[i] == 2;
	}
	kvm_get_stat(&vm->stats, "pages_2m", &got, 1);
	compare("2M mappings", got, nr_2m / BLOCK);

	kvm_get_stat(&vm->stats, "pages_4k", &got, 1);
	if (has_base)
		compare("4K mappings", got - base_4k, nr_4k);
}

static u64 guest_word;

static u64 guest_function(void)
{
	return 0;
}

static void touch(u64 access, gva_t gva)
{
	set_cmd(vcpu, access, gva, 0);
	compare("KVM_RUN", _vcpu_run(vcpu), 0);
}

/* Have all mapped that the guest's own code uses, and count that. */
static void set_base(void)
{
	u64 i, nr_4k = 0, got = 0;

	if (!compare_sizes)
		return;
	for (i = 0; i < NR_PAGES; i += PIECE)
		touch(READ, piece_gva(i / PIECE) + PIECE * psz);
	touch(READ, (gva_t)&guest_word);
	touch(WRITE, (gva_t)&guest_word);
	touch(EXEC, (gva_t)guest_function);
	for (i = 0; i < NR_PAGES; i++)
		nr_4k += model.level[i] == 1;
	kvm_get_stat(&vm->stats, "pages_4k", &got, 1);
	base_4k = got - nr_4k;
	has_base = true;
}

static void set_up(bool huge)
{
	enum vm_mem_backing_src_type src;
	u64 page;
	int i;

	vm = vm_create_with_one_vcpu(&vcpu, guest_ops);
	psz = max_t(u64, vm->page_size, getpagesize());
	nr_as = max(1, vm_check_cap(vm, KVM_CAP_MULTI_ADDRESS_SPACE));
	unmapped = kvm_mmap(SZ_64K, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	for (i = 0; i < NR_SLOTS; i++) {
		u32 flags = KVM_MEM_USERFAULT | (readonly_slots & BIT(i) ? KVM_MEM_READONLY : 0);

		src = i || !huge ? VM_MEM_SRC_ANONYMOUS : VM_MEM_SRC_ANONYMOUS_HUGETLB_2MB;
		vm_mem_add(vm, src, page_gpa(slots[i].first), FIRST_SLOT + i,
			   slots[i].nr * psz / vm->page_size, flags, -1, 0);
		hvas[i] = addr_gpa2hva(vm, page_gpa(slots[i].first));
		model.slots[i] = (struct model_slot) { true, flags };
	}
	for (page = 0; page < NR_PAGES; page++) {
		if (page_hva(page))
			write_code((void *)page_hva(page) + CODE_OFFSET, CODE_VALUE(page));
	}
	for (page = 0; page < NR_PAGES; page += PIECE) {
		virt_map(vm, page_gva(page), page_gpa(page), PIECE * psz / vm->page_size);
		virt_map(vm, page_gva(page) + PIECE * psz,
			 round_down(addr_gva2gpa(vm, (gva_t)&guest_word), vm->page_size), 1);
	}
	vcpu_args_set(vcpu, 1, 0);
#ifdef __x86_64__
	compare_sizes = huge && has_tdp_mmu();
#endif
}

static void check_all(void)
{
	check_state(0, NR_PAGES, 0);
	if (!has_base && !model.pending)
		set_base();
	check_sizes();
}

/* An access that is pending comes first. */
static void probe(const struct op *op)
{
	const struct op run = {
		.kind = OP_RUN,
		.first = op->probe_page,
		.access = op->probe_access,
		.seed = ~op->seed,
	};

	do_run(&run);
}

static void run_ops(const struct op *ops, int nr, bool huge)
{
	int i;

	set_up(huge);
	for (i = 0; i < nr; i++) {
		const struct op *op = &ops[i];

		result->op = i;
		switch (op->kind) {
		case OP_ARM:
		case OP_CLEAR:
			do_set(op);
			break;
		case OP_GET:
			do_get(op);
			break;
		case OP_RUN:
			do_run(op);
			break;
		case OP_RESOLVE:
			do_resolve(op);
			break;
		default:
			do_slot(*op);
			break;
		}
		check_all();
		if (op->probe) {
			probe(op);
			check_all();
		}
	}
}

/* False: it has gone wrong, at result->op. */
static bool try_ops(const struct op *ops, int nr, bool huge)
{
	int status;
	pid_t pid;

	result->op = 0;
	snprintf(result->why, sizeof(result->why), "died");
	fflush(stdout);
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork(): errno %d", errno);
	if (!pid) {
		run_ops(ops, nr, huge);
		_exit(0);
	}
	TEST_ASSERT(waitpid(pid, &status, 0) == pid, "waitpid(): errno %d", errno);
	return WIFEXITED(status) && !WEXITSTATUS(status);
}

static int free_huge_pages(void)
{
	FILE *f = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "r");
	int nr = 0;

	if (!f)
		return 0;
	if (fscanf(f, "%d", &nr) != 1)
		nr = 0;
	fclose(f);
	return nr;
}

static u64 rnd(struct guest_random_state *rng, u64 nr)
{
	return guest_random_u32(rng) % nr;
}

static struct op random_op(struct guest_random_state *rng)
{
	static const u8 weights[NR_KINDS] = { 25, 25, 5, 25, 10, 5, 3, 6, 3 };
	static const u64 accesses[] = { READ, WRITE, EXEC };
	u64 n = rnd(rng, 107), max_nr;
	struct op op = {};

	for (op.kind = 0; n >= weights[op.kind]; op.kind++)
		n -= weights[op.kind];

	/* Around the ends of what there is, and anywhere. */
	op.first = rnd(rng, 3) ? rnd(rng, NR_PAGES) :
		   min(slots[rnd(rng, NR_SLOTS)].first + rnd(rng, 3), NR_PAGES - 1);
	max_nr = rnd(rng, 3) ? 20 : rnd(rng, 2) ? 2 * BLOCK : NR_PAGES;
	op.nr = min(1 + rnd(rng, max_nr), NR_PAGES - op.first);
	op.slot = rnd(rng, NR_SLOTS);
	op.access = accesses[rnd(rng, 3)];
	op.seed = guest_random_u32(rng);
	op.probe = rnd(rng, 4);
	op.probe_page = rnd(rng, 4) ? op.first + rnd(rng, op.nr) : rnd(rng, NR_PAGES);
	op.probe_access = accesses[rnd(rng, 3)];
	if (!rnd(rng, 6))
		op.bad = rnd(rng, NR_BAD);

	switch (op.kind) {
	case OP_ARM:
		op.flags = KVM_USERFAULT_ARM;
		fallthrough;
	case OP_CLEAR:
		if (rnd(rng, 3) == 0)
			op.flags |= KVM_USERFAULT_BITMAP;
		if (op.kind == OP_CLEAR && rnd(rng, 2))
			op.flags |= KVM_USERFAULT_COLLAPSE;
		if (op.bad == BAD_BITMAP_ADDRESS)
			op.flags |= KVM_USERFAULT_BITMAP;
		op.as_mask = rnd(rng, 4) ? 0 : 1 + rnd(rng, max_as_mask);
		break;
	case OP_GET:
		op.as_mask = rnd(rng, 2) ? 0 : 1 + rnd(rng, max_as_mask);
		break;
	case OP_CREATE:
		op.flags = KVM_MEM_USERFAULT | (rnd(rng, 2) ? KVM_MEM_USERFAULT_ARMED : 0) |
			   (rnd(rng, 3) ? 0 : KVM_MEM_READONLY);
		break;
	case OP_FLAGS:
	case OP_MOVE:
		op.flags = (rnd(rng, op.kind == OP_FLAGS ? 3 : 2) ? KVM_MEM_USERFAULT : 0) |
			   (rnd(rng, 3) ? 0 : KVM_MEM_LOG_DIRTY_PAGES) |
			   (rnd(rng, 8) ? 0 : KVM_MEM_READONLY) |
			   (rnd(rng, 8) ? 0 : KVM_MEM_USERFAULT_ARMED);
		break;
	case OP_RESOLVE:
		if (op.bad != BAD_ALIGNMENT && op.bad != BAD_SIZE && op.bad != BAD_WRAP)
			op.bad = GOOD;
		break;
	default:
		break;
	}
	return op;
}

static void print_ops(const struct op *ops, int nr)
{
	int i;

	for (i = 0; i < nr; i++) {
		const struct op *op = &ops[i];

		printf("  %-8s first 0x%lx nr 0x%lx flags 0x%x slot %d as_mask 0x%lx",
		       kinds[op->kind], op->first, op->nr, op->flags, op->slot, op->as_mask);
		printf(" access %lu seed 0x%x %s", op->access, op->seed, bads[op->bad]);
		if (op->probe)
			printf(", then access %lu to page 0x%lx", op->probe_access, op->probe_page);
		printf("\n");
	}
}

/* Leave out as much as can be, in ever smaller pieces; returns what remains. */
static int shrink(struct op *ops, int nr, bool huge)
{
	struct op fewer[MAX_OPS];
	int piece, at;

	nr = result->op + 1;
	for (piece = nr / 2; piece; piece /= 2) {
		for (at = 0; at + piece <= nr && nr > piece; ) {
			memcpy(fewer, ops, at * sizeof(*ops));
			memcpy(fewer + at, ops + at + piece, (nr - at - piece) * sizeof(*ops));
			if (try_ops(fewer, nr - piece, huge)) {
				at += piece;
				continue;
			}
			nr = result->op + 1;
			memcpy(ops, fewer, nr * sizeof(*ops));
		}
	}

	/* Once more, for what it says. */
	try_ops(ops, nr, huge);
	return nr;
}

int main(int argc, char *argv[])
{
	u32 seed = time(NULL) ^ getpid() << 16;
	int opt, i, nr, seconds = 20, nr_ops = 60, max_runs = INT_MAX, nr_runs = 0;
	struct op ops[MAX_OPS];
	struct timespec start;
	bool huge;

	while ((opt = getopt(argc, argv, "hn:o:r:s:")) != -1) {
		switch (opt) {
		case 'n':
			max_runs = atoi_positive("Sequences", optarg);
			break;
		case 'o':
			nr_ops = atoi_positive("Operations", optarg);
			break;
		case 'r':
			seed = strtoul(optarg, NULL, 0);
			break;
		case 's':
			seconds = atoi_positive("Seconds", optarg);
			break;
		default:
			printf("usage: %s [-n sequences] [-o operations] [-r seed] [-s seconds]\n",
			       argv[0]);
			return KSFT_FAIL;
		}
	}
	TEST_ASSERT(nr_ops <= MAX_OPS, "At most %d operations", MAX_OPS);
	TEST_REQUIRE_USERFAULT();
	max_as_mask = BIT(max(1, kvm_check_cap(KVM_CAP_MULTI_ADDRESS_SPACE))) - 1;

	result = kvm_mmap(sizeof(*result), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	huge = getpagesize() == SZ_4K && free_huge_pages() >= 2;
	printf("Seed 0x%x, %s huge pages\n", seed, huge ? "with" : "without");

	clock_gettime(CLOCK_MONOTONIC, &start);
	for (; nr_runs < max_runs && timespec_elapsed(start).tv_sec < seconds; nr_runs++) {
		struct guest_random_state rng = new_guest_random_state(seed + nr_runs);

		for (i = 0; i < nr_ops; i++)
			ops[i] = random_op(&rng);
		readonly_slots = guest_random_u32(&rng) & guest_random_u32(&rng) &
				 (BIT(NR_SLOTS) - 1);
		if (try_ops(ops, nr_ops, huge))
			continue;

		printf("-r 0x%x -n 1 -o %d: operation %d goes wrong: %s\nTrying to do with less\n",
		       seed + nr_runs, nr_ops, result->op, result->why);
		nr = shrink(ops, nr_ops, huge);
		printf("Memslots that are READONLY: 0x%x\nOperation %d of these goes wrong: %s\n",
		       readonly_slots, nr - 1, result->why);
		print_ops(ops, nr);
		return KSFT_FAIL;
	}

	printf("%d sequences of %d operations\n", nr_runs, nr_ops);
	return 0;
}
