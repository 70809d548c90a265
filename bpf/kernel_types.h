/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The few kernel structures that the walk reads, and of each only the members it reads.
 *
 * Offsets here mean nothing: every access is relocated against the running kernel's BTF
 * when the program is loaded (CO-RE).  A name that ends in ___something is another shape
 * that the same kernel structure has had; which one is there is asked, never assumed.
 */
#ifndef MEMLENS_KERNEL_TYPES_H
#define MEMLENS_KERNEL_TYPES_H

#define KERNEL __attribute__((preserve_access_index))

/* ---- the page cache: include/linux/fs.h, include/linux/xarray.h ---- */

struct xarray {
	void *xa_head;
} KERNEL;

struct xa_node {
	unsigned char shift;
	void *slots[64];
} KERNEL;

struct super_block {
	unsigned int s_dev;
	unsigned long s_magic;
} KERNEL;

struct inode {
	struct super_block *i_sb;
	unsigned long i_ino;
	long long i_size;
} KERNEL;

struct address_space {
	struct inode *host;
	struct xarray i_pages;
	unsigned long nrpages;
} KERNEL;

struct shmem_inode_info {
	unsigned long alloced;
	unsigned long swapped;
	struct inode vfs_inode;
} KERNEL;

/* ---- from a task or a mapping to a file ---- */

struct file {
	struct address_space *f_mapping;
} KERNEL;

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
} KERNEL;

struct files_struct {
	struct fdtable *fdt;
} KERNEL;

struct task_struct {
	struct files_struct *files;
} KERNEL;

struct vm_area_struct {
	unsigned long vm_start;
	unsigned long vm_end;
	unsigned long vm_pgoff;
	struct file *vm_file;
} KERNEL;

struct bpf_iter__task_vma {
	struct task_struct *task;
	struct vm_area_struct *vma;
} KERNEL;

/* ---- a folio and who is charged for it: include/linux/mm_types.h ---- */

enum pageflags {
	PG_head,
	PG_uptodate,
	PG_dirty,
	PG_writeback,
	PG_swapbacked,
	PG_swapcache,
	__NR_PAGEFLAGS,
};

struct page {
	unsigned long compound_head;
} KERNEL;

struct folio {
	unsigned long flags;
	struct address_space *mapping;
	unsigned long index;
	void *private;
	unsigned long memcg_data;
	unsigned long _flags_1;
} KERNEL;

/* since v6.18 the flags are a structure of one member */
struct memdesc_flags {
	unsigned long f;
};

struct folio___memdesc {
	struct memdesc_flags flags;
} KERNEL;

/* before v6.6 the order had a member of its own, later the low byte of _flags_1 */
struct folio___order {
	unsigned char _folio_order;
} KERNEL;

/* since v6.6 the swap entry has a name of its own in the place of `private` */
typedef struct {
	unsigned long val;
} swp_entry_t;

struct folio___swap {
	swp_entry_t swap;
} KERNEL;

struct kernfs_node {
	unsigned long long id;
} KERNEL;

struct cgroup {
	struct kernfs_node *kn;
} KERNEL;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
} KERNEL;

struct mem_cgroup {
	struct cgroup_subsys_state css;
} KERNEL;

#define HAS_FLAG(flags, name) ((flags) >> bpf_core_enum_value(enum pageflags, name) & 1)

static __always_inline __u64 folio_flags(struct folio *folio)
{
	struct folio___memdesc *memdesc = (void *)folio;

	if (bpf_core_field_exists(memdesc->flags.f))
		return BPF_CORE_READ(memdesc, flags.f);
	return BPF_CORE_READ(folio, flags);
}

/* ---- swap areas: include/linux/swap.h ---- */

struct swap_info_struct {
	unsigned long flags;
	unsigned int max;
	unsigned int pages;
} KERNEL;

#endif
