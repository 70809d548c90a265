// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Walk an object's page cache: which of its pages are in RAM, which are swapped out, and
 * to which slot of which swap area.
 *
 * The page cache of a file is an xarray, file->f_mapping->i_pages, one entry per page.
 * For shmem an entry is one of
 *	0			nothing there
 *	a folio			in RAM
 *	a value (bit 0 set)	swapped out: the entry shifted right by one holds the swap
 *				area in its top 5 bits and the slot in the others
 *	a sibling		a further slot of a large entry, names the slot of its head
 * (Documentation/core-api/xarray.rst; include/linux/swapops.h, swp_to_radix_entry()).  In
 * any other file system a value is a shadow of an evicted page, and says nothing here.
 *
 * Nothing is locked and nothing is referenced.  Both programs run under rcu_read_lock(),
 * so that a node taken out of the tree stays readable while they look at it; all else may
 * change under them.  docs/cachewalk.md states what the answer is worth.
 *
 * State lives in maps and globals rather than on the stack: the verifier does not follow
 * values stored there, and accepts the program in milliseconds instead of a second.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "kernel_types.h"

#define TMPFS_MAGIC 0x01021994
#define HUGETLBFS_MAGIC 0x958458f6

#define SLOTS_PER_NODE 64
#define SLOT_MASK (SLOTS_PER_NODE - 1)
#define SLOT_BITS 6
#define MAX_LEVELS 11
#define MAX_SHIFT 60

/* One call stops here, so that it never keeps a CPU for long: 2,048 nodes, 131,072 pages. */
#define MAX_STEPS 2048
#define MAX_RECORDS (1 << 16)
#define MAX_RUN_PAGES (1u << 31)

#define EBADF 9

/* ---- what goes in and out; kernel/cachewalk.py declares the same ---- */

enum kind {
	KIND_SWAP = 1 << 0,	/* otherwise a folio */
	KIND_UPTODATE = 1 << 1,
	KIND_DIRTY = 1 << 2,
	KIND_WRITEBACK = 1 << 3,
};

/* consecutive pages: at consecutive slots, or in folios that are alike */
struct record {
	__u64 index;	/* first page, from the start of the object */
	__u64 value;	/* swap: slot | area << 58; folio: its flags */
	__u64 cgroup;	/* id of the memory cgroup charged for the folio, 0 if none */
	__u32 pages;
	__u8 kind;
	__u8 order;
	__u16 unused;
};

struct control {
	/* in */
	__u64 start;	/* pages [start, stop) of the object */
	__u64 stop;
	__u64 address;	/* by_vma: any address in the mapping */
	__u32 fd;	/* by_fd: a file descriptor of the caller */
	__u32 unused;
	/* out */
	__s64 error;
	__u64 next;	/* the page to go on from; at least stop when done */
	__u64 records;
	__u64 magic;
	__u64 device;
	__u64 inode;
	__u64 size_bytes;
	__u64 nrpages;
	__u64 alloced;
	__u64 swapped;
	__u64 vma_start;
	__u64 vma_stop;
	__u64 vma_pgoff;
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
	__uint(max_entries, MAX_RECORDS);
	__type(key, __u32);
	__type(value, struct record);
} records SEC(".maps");

/* ---- the walk ---- */

static struct {
	struct address_space *mapping;
	__u64 index;		/* next page to look at */
	__u64 stop;
	__u64 base;		/* page of slots[0] of the node at hand */
	__u32 shift;		/* each slot of it covers 1 << shift pages */
	__u32 first_slot;
	__u32 records;
	__u8 is_shmem;
	__u8 is_hugetlb;
	__u8 is_full;
	struct record run;	/* the record being built; pages == 0: none */
	__u64 folio;		/* the folio that folio_record describes */
	struct record folio_record;
} walk;

static __u64 slots[SLOTS_PER_NODE];

static __always_inline int is_value(__u64 entry)
{
	return entry & 1;
}

static __always_inline int is_internal(__u64 entry)
{
	return (entry & 3) == 2;
}

static __always_inline int is_node(__u64 entry)
{
	return is_internal(entry) && entry > 4096;
}

static __always_inline int is_sibling(__u64 entry)
{
	return is_internal(entry) && entry >> 2 < SLOTS_PER_NODE;
}

static __always_inline struct xa_node *to_node(__u64 entry)
{
	return (struct xa_node *)(entry - 2);
}

static __always_inline __u64 slot_entry(__u32 slot)
{
	barrier_var(slot);	/* the verifier wants to see the mask, clang to drop it */
	return slots[slot & SLOT_MASK];
}

/* Write the run out and begin none; -1 if there is no room. */
static __always_inline int flush_run(void)
{
	__u32 key = walk.records;
	struct record *record;

	if (!walk.run.pages)
		return 0;
	record = bpf_map_lookup_elem(&records, &key);
	if (!record)
		return -1;
	*record = walk.run;
	walk.records = key + 1;
	walk.run.pages = 0;
	return 0;
}

/* Lengthen the run, or begin another; -1 if there is no room. */
static __always_inline int add_pages(__u64 index, __u32 pages, __u64 value, __u64 cgroup,
				     __u8 kind, __u8 order)
{
	struct record *run = &walk.run;
	__u64 expected = run->value + (kind & KIND_SWAP ? run->pages : 0);

	if (run->pages && run->index + run->pages == index && run->kind == kind &&
	    value == expected && run->order == order && run->cgroup == cgroup &&
	    run->pages < MAX_RUN_PAGES) {
		run->pages += pages;
		return 0;
	}
	if (flush_run())
		return -1;
	run->index = index;
	run->value = value;
	run->cgroup = cgroup;
	run->pages = pages;
	run->kind = kind;
	run->order = order;
	return 0;
}

static __always_inline __u8 large_folio_order(struct folio *folio)
{
	struct folio___order *old = (void *)folio;

	if (bpf_core_field_exists(old->_folio_order))
		return BPF_CORE_READ(old, _folio_order);
	return BPF_CORE_READ(folio, _flags_1) & 0xff;
}

static __always_inline __u64 folio_cgroup(struct folio *folio)
{
	unsigned long data;

	if (!bpf_core_field_exists(folio->memcg_data))
		return 0;
	data = BPF_CORE_READ(folio, memcg_data);
	if (!data || data & 3)	/* the low bits mark a pointer to something else */
		return 0;
	return BPF_CORE_READ((struct mem_cgroup *)data, css.cgroup, kn, id);
}

/* Describe a folio in walk.folio_record; -1 if it left the page cache meanwhile. */
static __always_inline int read_folio(__u64 entry)
{
	struct folio *folio = (void *)entry;
	struct record *record = &walk.folio_record;
	__u64 flags = folio_flags(folio);
	__u8 kind = 0;

	record->order = HAS_FLAG(flags, PG_head) ? large_folio_order(folio) : 0;
	record->cgroup = folio_cgroup(folio);
	if (HAS_FLAG(flags, PG_uptodate))
		kind |= KIND_UPTODATE;
	if (HAS_FLAG(flags, PG_dirty))
		kind |= KIND_DIRTY;
	if (HAS_FLAG(flags, PG_writeback))
		kind |= KIND_WRITEBACK;
	record->kind = kind;
	/* above the flags are node, zone and generation, which differ for no reason of ours */
	record->value = flags & ((1ULL << bpf_core_enum_value(enum pageflags, __NR_PAGEFLAGS)) - 1);
	if (BPF_CORE_READ(folio, mapping) != walk.mapping)
		return -1;
	walk.folio = entry;
	return 0;
}

enum outcome {
	NEXT_SLOT,
	LOOK_AGAIN,	/* the entry changed under us */
	NO_ROOM,
};

/* `page` is where in the entry `index` is: not 0 for the later pages of a large entry. */
static __always_inline enum outcome add_entry(__u64 index, __u32 pages, __u64 entry, __u64 page)
{
	struct record *folio = &walk.folio_record;

	if (is_value(entry)) {
		if (!walk.is_shmem)
			return NEXT_SLOT;
		if (add_pages(index, pages, (entry >> 1) + page, 0, KIND_SWAP, 0))
			return NO_ROOM;
		return NEXT_SLOT;
	}
	if (entry != walk.folio) {
		/* a record for each: their length tells the unit that indexes are in */
		if (walk.is_hugetlb && flush_run())
			return NO_ROOM;
		if (read_folio(entry))
			return LOOK_AGAIN;
	}
	if (add_pages(index, pages, folio->value, folio->cgroup, folio->kind, folio->order))
		return NO_ROOM;
	return NEXT_SLOT;
}

/* bpf_loop() callback: one slot of the node at hand. */
static long visit_slot(__u32 step, void *unused)
{
	__u32 slot = walk.first_slot + step, head = slot;
	__u64 entry, index, stop;

	if (slot >= SLOTS_PER_NODE)
		return 1;
	entry = slot_entry(slot);
	index = walk.base + ((__u64)slot << walk.shift);
	stop = index + (1ULL << walk.shift);
	if (index < walk.index)		/* begun inside a slot above the leaves */
		index = walk.index;
	if (index >= walk.stop)
		return 1;
	if (stop > walk.stop)
		stop = walk.stop;
	if (is_sibling(entry)) {
		head = entry >> 2;
		entry = slot_entry(head);
	}
	if (is_internal(entry)) {
		/* a child to descend into, or a slot in the middle of a change */
		walk.index = index;
		return 1;
	}
	if (entry) {
		__u64 page = index - walk.base - ((__u64)head << walk.shift);
		enum outcome outcome = add_entry(index, stop - index, entry, page);

		if (outcome != NEXT_SLOT) {
			walk.is_full = outcome == NO_ROOM;
			walk.index = index;
			return 1;
		}
	}
	walk.index = stop;
	return 0;
}

/* bpf_loop() callback: descend to the lowest node above walk.index and visit its slots. */
static long visit_node(__u32 step, void *unused)
{
	__u64 index = walk.index;
	struct address_space *mapping = walk.mapping;
	struct xa_node *node;
	__u32 shift;
	__u64 entry;

	if (index >= walk.stop || walk.is_full)
		return 1;
	entry = (__u64)BPF_CORE_READ(mapping, i_pages.xa_head);
	if (!is_node(entry)) {	/* no tree: nothing, or page 0 alone */
		if (!index && entry && !is_internal(entry)) {
			enum outcome outcome = add_entry(0, 1, entry, 0);

			if (outcome == LOOK_AGAIN)
				return 0;
			walk.is_full = outcome == NO_ROOM;
		}
		if (!walk.is_full)
			walk.index = walk.stop;
		return 1;
	}
	node = to_node(entry);
	shift = BPF_CORE_READ(node, shift);
	if (shift > MAX_SHIFT || index >> shift >= SLOTS_PER_NODE) {	/* right of the tree */
		walk.index = walk.stop;
		return 1;
	}
#pragma clang loop unroll(disable)
	for (int level = 0; level < MAX_LEVELS && shift; level++) {
		__u64 slot = index >> shift & SLOT_MASK;

		bpf_core_read(&entry, sizeof(entry), &node->slots[slot]);
		if (!is_node(entry))
			break;
		node = to_node(entry);
		shift = BPF_CORE_READ(node, shift);
		if (shift > MAX_SHIFT)
			return 0;
	}
	bpf_core_read(slots, sizeof(slots), &node->slots);
	walk.shift = shift;
	walk.first_slot = index >> shift & SLOT_MASK;
	walk.base = index >> shift >> SLOT_BITS << SLOT_BITS << shift;
	walk.folio = 0;
	bpf_loop(SLOTS_PER_NODE, visit_slot, NULL, 0);
	return 0;
}

static __always_inline void describe_object(struct address_space *mapping, struct control *c)
{
	struct inode *inode = BPF_CORE_READ(mapping, host);
	struct shmem_inode_info *shmem;

	c->magic = BPF_CORE_READ(inode, i_sb, s_magic);
	c->device = BPF_CORE_READ(inode, i_sb, s_dev);
	c->inode = BPF_CORE_READ(inode, i_ino);
	c->size_bytes = BPF_CORE_READ(inode, i_size);
	c->nrpages = BPF_CORE_READ(mapping, nrpages);
	if (c->magic != TMPFS_MAGIC)
		return;
	shmem = (void *)inode - bpf_core_field_offset(struct shmem_inode_info, vfs_inode);
	c->alloced = BPF_CORE_READ(shmem, alloced);
	c->swapped = BPF_CORE_READ(shmem, swapped);
}

static __always_inline void walk_mapping(struct address_space *mapping, struct control *c)
{
	describe_object(mapping, c);
	walk.mapping = mapping;
	walk.index = c->start;
	walk.stop = c->stop;
	walk.is_shmem = c->magic == TMPFS_MAGIC;
	walk.is_hugetlb = c->magic == HUGETLBFS_MAGIC;
	walk.is_full = 0;
	walk.records = 0;
	walk.run.pages = 0;
	walk.folio = 0;
	bpf_loop(MAX_STEPS, visit_node, NULL, 0);
	/* a run that found no room is walked again by the next call */
	c->next = walk.is_full || flush_run() ? walk.run.index : walk.index;
	c->records = walk.records;
	c->error = 0;
}

/*
 * Walk what is behind control.fd.  BPF_PROG_TEST_RUN calls it in the caller's context,
 * under rcu_read_lock(), which a "syscall" program would not be.
 */
SEC("raw_tp/never_attached")
int by_fd(void *unused)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct address_space *mapping;
	struct file **files, *file = NULL;
	struct control *c;
	__u32 key = 0;

	c = bpf_map_lookup_elem(&control, &key);
	if (!c)
		return 0;
	c->error = -EBADF;
	if (c->fd >= BPF_CORE_READ(table, max_fds))
		return 0;
	files = BPF_CORE_READ(table, fd);
	bpf_probe_read_kernel(&file, sizeof(file), files + c->fd);
	if (!file)
		return 0;
	mapping = BPF_CORE_READ(file, f_mapping);
	if (mapping)
		walk_mapping(mapping, c);
	return 0;
}

/*
 * Walk what is mapped at control.address of the one task that the iterator was made for.
 * Needs no open file, and sees the file below an overlay.
 */
SEC("iter/task_vma")
int by_vma(struct bpf_iter__task_vma *ctx)
{
	struct vm_area_struct *vma = ctx->vma;
	struct address_space *mapping;
	struct control *c;
	__u32 key = 0;

	if (!vma)
		return 0;
	c = bpf_map_lookup_elem(&control, &key);
	if (!c || c->address < vma->vm_start || c->address >= vma->vm_end)
		return 0;
	c->vma_start = vma->vm_start;
	c->vma_stop = vma->vm_end;
	c->vma_pgoff = vma->vm_pgoff;
	c->error = -EBADF;
	if (!vma->vm_file)
		return 0;
	mapping = BPF_CORE_READ(vma, vm_file, f_mapping);
	if (mapping)
		walk_mapping(mapping, c);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
