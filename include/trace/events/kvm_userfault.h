/* SPDX-License-Identifier: GPL-2.0-only */
#if !defined(_TRACE_KVM_USERFAULT_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_KVM_USERFAULT_H

#include <linux/tracepoint.h>

#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvm

/* A vCPU touched an armed page and is about to leave KVM_RUN. */
TRACE_EVENT(kvm_userfault_exit,
	TP_PROTO(unsigned int vcpu_id, __u64 gpa, __u64 flags),
	TP_ARGS(vcpu_id, gpa, flags),

	TP_STRUCT__entry(
		__field(unsigned int, vcpu_id)
		__field(__u64, gpa)
		__field(__u64, flags)
	),

	TP_fast_assign(
		__entry->vcpu_id	= vcpu_id;
		__entry->gpa		= gpa;
		__entry->flags		= flags;
	),

	TP_printk("vcpu %u gpa %#llx %s", __entry->vcpu_id, __entry->gpa,
		  __print_flags(__entry->flags, "|",
				{ KVM_MEMORY_EXIT_FLAG_READ,		"READ" },
				{ KVM_MEMORY_EXIT_FLAG_WRITE,		"WRITE" },
				{ KVM_MEMORY_EXIT_FLAG_EXEC,		"EXEC" },
				{ KVM_MEMORY_EXIT_FLAG_PRIVATE,		"PRIVATE" },
				{ KVM_MEMORY_EXIT_FLAG_USERFAULT,	"USERFAULT" }))
);

/* KVM_SET_USERFAULT_RANGE returns: of [gpa, gpa + size), done bytes are done. */
TRACE_EVENT(kvm_userfault_range,
	TP_PROTO(__u64 gpa, __u64 size, __u64 flags, __u64 as_mask, __u64 done,
		 __u64 changed, int ret),
	TP_ARGS(gpa, size, flags, as_mask, done, changed, ret),

	TP_STRUCT__entry(
		__field(__u64, gpa)
		__field(__u64, size)
		__field(__u64, flags)
		__field(__u64, as_mask)
		__field(__u64, done)
		__field(__u64, changed)
		__field(int, ret)
	),

	TP_fast_assign(
		__entry->gpa		= gpa;
		__entry->size		= size;
		__entry->flags		= flags;
		__entry->as_mask	= as_mask;
		__entry->done		= done;
		__entry->changed	= changed;
		__entry->ret		= ret;
	),

	TP_printk("gpa %#llx size %#llx flags %s as_mask %#llx done %#llx changed %llu ret %d",
		  __entry->gpa, __entry->size,
		  __print_flags(__entry->flags, "|",
				{ KVM_USERFAULT_ARM,	"ARM" },
				{ KVM_USERFAULT_COLLAPSE, "COLLAPSE" },
				{ KVM_USERFAULT_BITMAP,	"BITMAP" }),
		  __entry->as_mask, __entry->done, __entry->changed,
		  __entry->ret)
);

/* Of [start, end), nr mappings were split or became huge again. */
DECLARE_EVENT_CLASS(kvm_userfault_mappings,
	TP_PROTO(int as_id, __u64 start, __u64 end, int nr),
	TP_ARGS(as_id, start, end, nr),

	TP_STRUCT__entry(
		__field(int, as_id)
		__field(__u64, start)
		__field(__u64, end)
		__field(int, nr)
	),

	TP_fast_assign(
		__entry->as_id		= as_id;
		__entry->start		= start;
		__entry->end		= end;
		__entry->nr		= nr;
	),

	TP_printk("as_id %d gfn %#llx - %#llx nr %d", __entry->as_id,
		  __entry->start, __entry->end, __entry->nr)
);

DEFINE_EVENT(kvm_userfault_mappings, kvm_userfault_split,
	TP_PROTO(int as_id, __u64 start, __u64 end, int nr),
	TP_ARGS(as_id, start, end, nr)
);

DEFINE_EVENT(kvm_userfault_mappings, kvm_userfault_collapse,
	TP_PROTO(int as_id, __u64 start, __u64 end, int nr),
	TP_ARGS(as_id, start, end, nr)
);

#endif /* _TRACE_KVM_USERFAULT_H */

#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE kvm_userfault

/* This part must be outside protection */
#include <trace/define_trace.h>
