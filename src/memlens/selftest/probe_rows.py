"""
THE table of interfaces that are probed: one row each.

The privileges were measured, for readers of every capability alone and together;
docs/how-it-works/permissions.md has that table.
"""

from collections.abc import Callable
from dataclasses import dataclass

from memlens.selftest import probe_frames, probe_object, probe_others, probe_pagetable
from memlens.selftest.probe_ground import Ground

_SEES_FRAMES = "CAP_SYS_ADMIN"
_SEES_OTHERS = "CAP_SYS_PTRACE + CAP_DAC_READ_SEARCH"
_BUILT = "a kernel built with"


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """
    How one interface is probed.

    :param name: see ``Probe``.
    :param group: see ``Probe``.
    :param title: see ``Probe``.
    :param ask: makes the round trip, returns the proof or raises.
    :param privilege: the least that gives it when it is refused.
    :param kernel: what has it when this kernel lacks it.
    :param stands_on: other interfaces that it is made of.
    """

    name: str
    group: str
    title: str
    ask: Callable[[Ground], str]
    privilege: str
    kernel: str
    stands_on: tuple[str, ...] = ()


PROBE_TABLE = (
    ProbeRow(
        "pagemap",
        "own",
        "page table words",
        probe_pagetable.ask_pagemap,
        "a process that may be dumped (PR_SET_DUMPABLE)",
        f"{_BUILT} CONFIG_PROC_PAGE_MONITOR",
    ),
    ProbeRow(
        "pagemap_scan",
        "own",
        "what is mapped, without a look at holes",
        probe_pagetable.ask_pagemap_scan,
        "a process that may be dumped (PR_SET_DUMPABLE)",
        "Linux 6.7",
    ),
    ProbeRow(
        "guard",
        "own",
        "guard regions told from swap",
        probe_pagetable.ask_guard,
        "a process that may be dumped (PR_SET_DUMPABLE)",
        "Linux 6.15",
    ),
    ProbeRow(
        "smaps",
        "own",
        "totals, to settle by what entries hide",
        probe_pagetable.ask_smaps,
        "a process that may be dumped (PR_SET_DUMPABLE)",
        f"{_BUILT} CONFIG_PROC_PAGE_MONITOR",
    ),
    ProbeRow(
        "map_files",
        "own",
        "opens the object of a mapping",
        probe_pagetable.ask_map_files,
        "CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN",
        "a /proc with map_files",
    ),
    ProbeRow(
        "seek_data",
        "own",
        "data or hole, on shared memory",
        probe_object.ask_seek_data,
        "nothing",
        "a kernel with tmpfs",
    ),
    ProbeRow(
        "mincore",
        "own",
        "in RAM or not, on shared memory",
        probe_object.ask_mincore,
        "nothing",
        "any Linux",
    ),
    ProbeRow(
        "cachestat",
        "own",
        "in RAM or evicted, in one call",
        probe_object.ask_cachestat,
        "a seccomp filter that lets it through",
        "Linux 6.5, and a seccomp filter that lets it through",
    ),
    ProbeRow(
        "unwritable_files",
        "own",
        "mincore and cachestat on files one may not write",
        probe_object.ask_unwritable_files,
        "CAP_FOWNER, or CAP_DAC_OVERRIDE where the mount is writable",
        "any Linux",
    ),
    ProbeRow(
        "cachewalk",
        "own",
        "swap slots of shared pages (BPF)",
        probe_object.ask_cachewalk,
        "CAP_BPF + CAP_PERFMON, or CAP_SYS_ADMIN",
        "Linux 5.17 with BTF and BPF",
    ),
    ProbeRow(
        "scm_fds",
        "own",
        "descriptors in messages that nobody has read",
        probe_object.ask_scm_fds,
        "a process that may be dumped (PR_SET_DUMPABLE)",
        "Linux 5.6",
    ),
    ProbeRow(
        "other_smaps",
        "other",
        "maps and smaps",
        probe_others.ask_other_smaps,
        "CAP_SYS_PTRACE, or CAP_PERFMON",
        f"{_BUILT} CONFIG_PROC_PAGE_MONITOR",
        ("smaps",),
    ),
    ProbeRow(
        "other_pagemap",
        "other",
        "page table words",
        probe_others.ask_other_pagemap,
        _SEES_OTHERS,
        f"{_BUILT} CONFIG_PROC_PAGE_MONITOR",
    ),
    ProbeRow(
        "other_map_files",
        "other",
        "opens the object of a mapping",
        probe_others.ask_other_map_files,
        f"{_SEES_OTHERS} + CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN)",
        "a /proc with map_files",
        ("map_files",),
    ),
    ProbeRow(
        "kcmp",
        "other",
        "whether two run in one memory",
        probe_others.ask_kcmp,
        "CAP_SYS_PTRACE",
        f"{_BUILT} CONFIG_KCMP",
    ),
    ProbeRow(
        "pfns",
        "frames",
        "page frame numbers and swap slots in pagemap",
        probe_frames.ask_pfns,
        _SEES_FRAMES,
        f"{_BUILT} CONFIG_PROC_PAGE_MONITOR",
    ),
    ProbeRow(
        "kpageflags",
        "frames",
        "flags of page frames",
        probe_frames.ask_kpageflags,
        f"root or CAP_DAC_READ_SEARCH, and {_SEES_FRAMES}",
        f"{_BUILT} CONFIG_PROC_PAGE_MONITOR",
    ),
    ProbeRow(
        "kpagecount",
        "frames",
        "how often page frames are mapped",
        probe_frames.ask_kpagecount,
        f"root or CAP_DAC_READ_SEARCH, and {_SEES_FRAMES}",
        f"{_BUILT} CONFIG_PROC_PAGE_MONITOR",
    ),
    ProbeRow(
        "kpagecgroup",
        "frames",
        "memory cgroups of page frames",
        probe_frames.ask_kpagecgroup,
        f"root or CAP_DAC_READ_SEARCH, and {_SEES_FRAMES}",
        f"{_BUILT} CONFIG_MEMCG",
    ),
    ProbeRow(
        "frameslots",
        "frames",
        "swap slots of private pages in RAM (BPF)",
        probe_frames.ask_frameslots,
        _SEES_FRAMES,
        "Linux 5.17 with BTF, BPF and CONFIG_SPARSEMEM_VMEMMAP",
        ("kpageflags",),
    ),
    ProbeRow(
        "page_idle",
        "tracking",
        "which page frames were used since",
        probe_frames.ask_page_idle,
        f"root, and {_SEES_FRAMES}",
        f"{_BUILT} CONFIG_IDLE_PAGE_TRACKING",
    ),
    ProbeRow(
        "soft_dirty",
        "tracking",
        "which pages were written since",
        probe_others.ask_soft_dirty,
        "the same user, or CAP_SYS_PTRACE + CAP_DAC_OVERRIDE",
        f"{_BUILT} CONFIG_MEM_SOFT_DIRTY",
    ),
    ProbeRow(
        "uffd_wp",
        "tracking",
        "write-protection by userfaultfd",
        probe_pagetable.ask_uffd_wp,
        "CAP_SYS_PTRACE, or a seccomp filter that lets it through",
        f"{_BUILT} CONFIG_USERFAULTFD, on a machine that can write-protect",
    ),
    ProbeRow(
        "uffd_wp_async",
        "tracking",
        "which pages were written since, by PAGEMAP_SCAN",
        probe_pagetable.ask_uffd_wp_async,
        "CAP_SYS_PTRACE, or a seccomp filter that lets it through",
        "Linux 6.7",
        ("pagemap_scan",),
    ),
    ProbeRow(
        "swap_areas",
        "swap",
        "list of swap areas",
        probe_frames.ask_swap_areas,
        "a /proc that shows swaps",
        f"{_BUILT} CONFIG_SWAP",
    ),
)
