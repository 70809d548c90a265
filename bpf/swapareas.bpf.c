// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * List the swap areas in use by number.
 *
 * The page cache names a swap area by number, the index in the kernel's swap_info[].
 * /proc/swaps leaves the numbers out: its lines are in their order, but the number of an
 * area that was switched off stays free until another takes it, and no line shows that.
 *
 * swap_info[] is a variable: its address is to be had where kallsyms holds data
 * (CONFIG_KALLSYMS_ALL, as distributions set it) and the caller may see addresses.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "kernel_types.h"

#define MAX_AREAS 32
#define SWP_USED 1	/* include/linux/swap.h: the entry is an area in use */

/* kernel/swapareas.py declares the same */
struct area {
	__u32 is_used;
	__u32 slots;	/* slots are numbered below this */
	__u32 pages;	/* what /proc/swaps shows as the size */
	__u32 unused;
};

/* by number of the area */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_AREAS);
	__type(key, __u32);
	__type(value, struct area);
} areas SEC(".maps");

static struct swap_info_struct **swap_info;

/* bpf_loop() callback */
static long visit_area(__u32 number, void *unused)
{
	struct swap_info_struct *si = NULL;
	struct area *area = bpf_map_lookup_elem(&areas, &number);

	if (!area)
		return 1;
	bpf_probe_read_kernel(&si, sizeof(si), swap_info + number);
	area->is_used = si && BPF_CORE_READ(si, flags) & SWP_USED;
	if (!area->is_used)
		return 0;
	area->slots = BPF_CORE_READ(si, max);
	area->pages = BPF_CORE_READ(si, pages);
	return 0;
}

SEC("syscall")
int list_areas(void *unused)
{
	char name[] = "swap_info";	/* on the stack: v6.1 refuses a name in a read-only map */
	__u64 address = 0;

	if (bpf_kallsyms_lookup_name(name, sizeof(name), 0, &address) || !address)
		return 0;
	swap_info = (void *)address;
	bpf_loop(MAX_AREAS, visit_area, NULL, 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
