// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Note the number of each swap area while somebody reads /proc/swaps.
 *
 * The page cache names a swap area by number, the index in the kernel's swap_info[].
 * /proc/swaps leaves the numbers out: its lines are in their order, but the number of an
 * area that was switched off stays free until another takes it, and no line shows that.
 * The kernel prints each line with swap_show() (mm/swapfile.c), which is handed the area.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "kernel_types.h"

#define MAX_AREAS 32
#define SEQ_START_TOKEN 1	/* the line of column titles */

/* kernel/swapareas.py declares the same */
struct area {
	__u32 is_seen;
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

SEC("fentry/swap_show")
int note_area(__u64 *arguments)
{
	struct swap_info_struct *si = (void *)arguments[1];
	struct area *area;
	__u32 key;

	if (arguments[1] == SEQ_START_TOKEN)
		return 0;
	key = (__u8)BPF_CORE_READ(si, type);
	area = bpf_map_lookup_elem(&areas, &key);
	if (!area)
		return 0;
	area->slots = BPF_CORE_READ(si, max);
	area->pages = BPF_CORE_READ(si, pages);
	area->is_seen = 1;
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
