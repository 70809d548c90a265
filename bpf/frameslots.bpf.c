// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * For page frames that are in the swap cache: the slot that each keeps.
 *
 * A private page that was read back from swap may keep its slot: it is in the swap cache.  The
 * page tables that map it name the frame; the folio of the frame names the slot, folio->swap.
 *
 * Frame N's struct page is element N of one array where the kernel is built with
 * SPARSEMEM_VMEMMAP; where that array begins is found from pages of the caller's own, whose
 * numbers pagemap tells and whose folios their page cache names.  The address stays here.
 *
 * Nothing is locked and nothing is referenced: flags are read before and after the slot, and
 * kernel/frameslots.py holds the answer against /proc/kpageflags.  A frame number that has no
 * struct page is a read that fails, not a fault.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "kernel_types.h"

#define MAX_FRAMES (1 << 14)
#define MAX_FOLIO_PAGES (1 << 20)

#define MAPPING_ANON 1	/* include/linux/page-flags.h: in the low bits of folio->mapping */

/* ---- what goes in and out; kernel/frameslots.py declares the same ---- */

struct control {
	/* in */
	__u64 pfn;	/* begin, agree: frame of the only page of `fd` */
	__u32 fd;	/* begin, agree: a memfd of the caller that holds page 0 alone */
	__u32 frames;	/* look: how many frames to look at */
	/* out */
	__u32 is_good;	/* begin: found; agree: the same array */
	__u32 unused;
};

struct frame {
	__u64 pfn;	/* in */
	__u64 entry;	/* out: slot | area << 58, 0 if it is not a private page with a slot */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct control);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_FRAMES);
	__type(key, __u32);
	__type(value, struct frame);
} frames SEC(".maps");

static __u64 page_array;	/* address of the struct page of frame 0 */
static __u32 frames_wanted;

/* ---- where the array of struct page begins ---- */

/* Return where the array would begin by the only page of control.fd, 0 if that is not one. */
static __always_inline __u64 array_by_own_page(struct control *c)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct address_space *mapping;
	struct file **files, *file = NULL;
	struct folio *folio;

	if (c->fd >= BPF_CORE_READ(table, max_fds))
		return 0;
	files = BPF_CORE_READ(table, fd);
	bpf_probe_read_kernel(&file, sizeof(file), files + c->fd);
	if (!file)
		return 0;
	mapping = BPF_CORE_READ(file, f_mapping);
	/* a page cache that holds page 0 alone has no tree: the folio is its head */
	folio = BPF_CORE_READ(mapping, i_pages.xa_head);
	if (!folio || (__u64)folio & 3 || BPF_CORE_READ(folio, mapping) != mapping)
		return 0;
	return (__u64)folio - c->pfn * bpf_core_type_size(struct page);
}

SEC("raw_tp/never_attached")
int begin(void *unused)
{
	struct control *c;
	__u32 key = 0;

	c = bpf_map_lookup_elem(&control, &key);
	if (!c)
		return 0;
	page_array = array_by_own_page(c);
	c->is_good = page_array != 0;
	return 0;
}

SEC("raw_tp/never_attached")
int agree(void *unused)
{
	struct control *c;
	__u32 key = 0;

	c = bpf_map_lookup_elem(&control, &key);
	if (c)
		c->is_good = page_array && array_by_own_page(c) == page_array;
	return 0;
}

/* ---- the slot of a frame ---- */

static __always_inline __u64 folio_swap(struct folio *folio)
{
	struct folio___swap *newer = (void *)folio;

	if (bpf_core_field_exists(newer->swap))
		return BPF_CORE_READ(newer, swap.val);
	return (__u64)BPF_CORE_READ(folio, private);
}

/* Whether a folio is of private memory and in the swap cache. */
static __always_inline int has_slot(struct folio *folio)
{
	__u64 flags = folio_flags(folio);

	return HAS_FLAG(flags, PG_swapcache) && HAS_FLAG(flags, PG_swapbacked) &&
	       (__u64)BPF_CORE_READ(folio, mapping) & MAPPING_ANON;
}

/* Return slot and area of a frame, 0 if it has none or is changing. */
static __always_inline __u64 frame_entry(__u64 pfn)
{
	__u64 size = bpf_core_type_size(struct page);
	struct page *page = (void *)(page_array + pfn * size);
	__u64 head = BPF_CORE_READ(page, compound_head), entry, offset = 0;
	struct folio *folio = (void *)page;

	if (head & 1) {
		folio = (void *)(head - 1);
		if (folio > (struct folio *)page || !HAS_FLAG(folio_flags(folio), PG_head))
			return 0;
		offset = ((__u64)page - (__u64)folio) / size;
		if (offset >= MAX_FOLIO_PAGES)
			return 0;
	}
	if (!has_slot(folio))
		return 0;
	entry = folio_swap(folio);
	if (!has_slot(folio) || folio_swap(folio) != entry)
		return 0;
	if ((BPF_CORE_READ(page, compound_head) ^ head) & (head & 1 ? ~0ULL : 1))
		return 0;
	return entry + offset;
}

/* bpf_loop() callback */
static long visit_frame(__u32 number, void *unused)
{
	struct frame *frame;

	if (number >= frames_wanted)
		return 1;
	frame = bpf_map_lookup_elem(&frames, &number);
	if (!frame)
		return 1;
	frame->entry = frame_entry(frame->pfn);
	return 0;
}

SEC("raw_tp/never_attached")
int look(void *unused)
{
	struct control *c;
	__u32 key = 0;

	c = bpf_map_lookup_elem(&control, &key);
	if (!c || !page_array)
		return 0;
	frames_wanted = c->frames;
	bpf_loop(MAX_FRAMES, visit_frame, NULL, 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
