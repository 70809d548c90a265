"""
What this kernel and this user let memlens say, and what they keep back.

Versions are never compared and configurations never read: a call that succeeds may
still do nothing, as writing 4 to clear_refs does on kernels without soft-dirty.  So
each probe (``probe_own``, ``probe_others``) makes memory whose state is known, asks, and
compares.  Here stand the interfaces, and what follows from each that is missing, for
whose processes, and what would mend it.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace

from memlens.errors import MemlensError, Unsupported
from memlens.kernel.mounts import PROC_MAGIC
from memlens.kernel.procfs import raise_errno
from memlens.kernel.swaps import Swap, area_numbers, read_swap
from memlens.kernel.syscalls import fstatfs_type
from memlens.record import Table
from memlens.report import Missed
from memlens.scan.machine import Machine, Stopped
from memlens.selftest import probe_others, probe_own
from memlens.selftest.probe_ground import Ground, probed, read_capabilities, read_reader
from memlens.selftest.records import (
    Area,
    Capability,
    Features,
    Gap,
    Outlook,
    Probe,
    Reader,
    Zram,
    Zswap,
)

_SEES_FRAMES = "CAP_SYS_ADMIN"
_OPENS_KPAGE = f"root or CAP_DAC_READ_SEARCH, and {_SEES_FRAMES}"
_SEES_OTHERS = "CAP_SYS_PTRACE + CAP_DAC_READ_SEARCH"
_DUMPABLE = "a process that may be dumped (PR_SET_DUMPABLE)"
_FAULTS = "CAP_SYS_PTRACE, or a seccomp filter that lets it through"
_BUILT = "a kernel built with"
_MONITOR = f"{_BUILT} CONFIG_PROC_PAGE_MONITOR"


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """
    How one interface is probed.

    :param group: see ``Probe``.
    :param title: see ``Probe``.
    :param ask: makes the round trip, returns the proof or raises; its name is ``ask_`` and
        that of the interface.
    :param privilege: the least that gives it when it is refused.
    :param kernel: what has it when this kernel lacks it.
    :param stands_on: other interfaces that it is made of.
    """

    group: str
    title: str
    ask: Callable[[Ground], str]
    privilege: str
    kernel: str
    stands_on: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the name of the interface, as MEMLENS_DISABLE has it."""
        return self.ask.__name__.removeprefix("ask_")


# THE table of interfaces that are probed.  The privileges were measured, for readers of every
# capability alone and together; docs/how-it-works/permissions.md has that table.
PROBE_TABLE = (
    ProbeRow("own", "page table words", probe_own.ask_pagemap, _DUMPABLE, _MONITOR),
    ProbeRow(
        "own",
        "what is mapped, without a look at holes",
        probe_own.ask_pagemap_scan,
        _DUMPABLE,
        "Linux 6.7",
    ),
    ProbeRow(
        "own", "guard regions told from swap", probe_own.ask_guard, _DUMPABLE, "Linux 6.15"
    ),
    ProbeRow(
        "own",
        "totals, to settle by what entries hide",
        probe_own.ask_smaps,
        _DUMPABLE,
        _MONITOR,
    ),
    ProbeRow(
        "own",
        "opens the object of a mapping",
        probe_own.ask_map_files,
        "CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN",
        "a /proc with map_files",
    ),
    ProbeRow(
        "own",
        "data or hole, on shared memory",
        probe_own.ask_seek_data,
        "nothing",
        "a kernel with tmpfs",
    ),
    ProbeRow(
        "own", "in RAM or not, on shared memory", probe_own.ask_mincore, "nothing", "any Linux"
    ),
    ProbeRow(
        "own",
        "in RAM or evicted, in one call",
        probe_own.ask_cachestat,
        "a seccomp filter that lets it through",
        "Linux 6.5, and a seccomp filter that lets it through",
    ),
    ProbeRow(
        "own",
        "mincore and cachestat on files one may not write",
        probe_own.ask_unwritable_files,
        "CAP_FOWNER, or CAP_DAC_OVERRIDE where the mount is writable",
        "any Linux",
    ),
    ProbeRow(
        "own",
        "swap slots of shared pages (BPF)",
        probe_own.ask_cachewalk,
        "CAP_BPF + CAP_PERFMON, or CAP_SYS_ADMIN",
        "Linux 5.17 with BTF and BPF",
    ),
    ProbeRow(
        "own",
        "descriptors in messages that nobody has read",
        probe_own.ask_scm_fds,
        _DUMPABLE,
        "Linux 5.6",
    ),
    ProbeRow(
        "other",
        "maps and smaps",
        probe_others.ask_other_smaps,
        "CAP_SYS_PTRACE, or CAP_PERFMON",
        _MONITOR,
        ("smaps",),
    ),
    ProbeRow(
        "other", "page table words", probe_others.ask_other_pagemap, _SEES_OTHERS, _MONITOR
    ),
    ProbeRow(
        "other",
        "opens the object of a mapping",
        probe_others.ask_other_map_files,
        f"{_SEES_OTHERS} + CAP_CHECKPOINT_RESTORE (or CAP_SYS_ADMIN)",
        "a /proc with map_files",
        ("map_files",),
    ),
    ProbeRow(
        "other",
        "whether two run in one memory",
        probe_others.ask_kcmp,
        "CAP_SYS_PTRACE",
        f"{_BUILT} CONFIG_KCMP",
    ),
    ProbeRow(
        "frames",
        "page frame numbers and swap slots in pagemap",
        probe_own.ask_pfns,
        _SEES_FRAMES,
        _MONITOR,
    ),
    ProbeRow(
        "frames", "flags of page frames", probe_own.ask_kpageflags, _OPENS_KPAGE, _MONITOR
    ),
    ProbeRow(
        "frames",
        "how often page frames are mapped",
        probe_own.ask_kpagecount,
        _OPENS_KPAGE,
        _MONITOR,
    ),
    ProbeRow(
        "frames",
        "memory cgroups of page frames",
        probe_own.ask_kpagecgroup,
        _OPENS_KPAGE,
        f"{_BUILT} CONFIG_MEMCG",
    ),
    ProbeRow(
        "frames",
        "swap slots of private pages in RAM (BPF)",
        probe_own.ask_frameslots,
        _SEES_FRAMES,
        "Linux 5.17 with BTF, BPF and CONFIG_SPARSEMEM_VMEMMAP",
        ("kpageflags",),
    ),
    ProbeRow(
        "tracking",
        "which page frames were used since",
        probe_own.ask_page_idle,
        f"root, and {_SEES_FRAMES}",
        f"{_BUILT} CONFIG_IDLE_PAGE_TRACKING",
    ),
    ProbeRow(
        "tracking",
        "which pages were written since",
        probe_others.ask_soft_dirty,
        "the same user, or CAP_SYS_PTRACE + CAP_DAC_OVERRIDE",
        f"{_BUILT} CONFIG_MEM_SOFT_DIRTY",
    ),
    ProbeRow(
        "tracking",
        "write-protection by userfaultfd",
        probe_own.ask_uffd_wp,
        _FAULTS,
        f"{_BUILT} CONFIG_USERFAULTFD, on a machine that can write-protect",
    ),
    ProbeRow(
        "tracking",
        "which pages were written since, by PAGEMAP_SCAN",
        probe_own.ask_uffd_wp_async,
        _FAULTS,
        "Linux 6.7",
        ("pagemap_scan",),
    ),
    ProbeRow(
        "swap",
        "list of swap areas",
        probe_own.ask_swap_areas,
        "a /proc that shows swaps",
        f"{_BUILT} CONFIG_SWAP",
    ),
)


@dataclass(frozen=True, slots=True)
class _GapRow:
    """``text`` is left open if none of ``any_of`` is available."""

    any_of: tuple[str, ...]
    text: str


# What `memlens map` leaves open in processes that it can read at all.
_GAP_TABLE = (
    _GapRow(
        ("pfns",),
        "the area and slot of swapped pages; where smaps does not settle it, swap or poison",
    ),
    _GapRow(("pfns", "smaps"), "swap told from poison and migration"),
    _GapRow(("pfns", "pagemap_scan"), "the zero page told from pages shared after fork"),
    _GapRow(
        ("unwritable_files",),
        "unmapped pages of files that this user neither owns nor may write",
    ),
    _GapRow(("seek_data",), "holes of files told from what is on disk"),
    _GapRow(("cachestat",), "preallocated pages; cached told from swap-cached pages"),
    _GapRow(("mincore",), "copies in the swap cache"),
    _GapRow(
        ("cachewalk",),
        "slots of shared pages; which unmapped pages hugetlbfs and copied-up files of "
        "overlays hold",
    ),
)
_OPENING_ROWS = {
    "own": "map_files",
    "other": "other_map_files",
}
_OPENING_GAP = (
    "unmapped pages of objects without path or descriptor, as shared anonymous memory"
)

# What the commands about page frames cannot do.
_FRAME_TABLE = (
    _GapRow(("pfns",), "which processes share a page, and where it is on swap"),
    _GapRow(("kpageflags",), "flags of pages: referenced, huge, KSM, swap slot kept"),
    _GapRow(("kpagecount",), "how often a page is mapped"),
    _GapRow(("kpagecgroup",), "which cgroup a page is charged to"),
)


# For each scope its title, and what it takes to say anything at all.
_SCOPES = (
    ("own", "processes of this user", ("pagemap",)),
    ("other", "processes of other users", ("other_pagemap", "other_smaps")),
    ("frames", "page frames of the machine", ("pfns",)),
)


def probe_features(
    proc: str = "/proc",
    *,
    budget_s: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Features:
    """
    Return what this kernel lets this reader see.

    >>> features = probe_features()
    >>> features.has("pagemap"), features.probe("smaps").group
    (True, 'own')

    :param proc: root of the /proc to ask.
    :param budget_s: seconds after which no further interface is asked.
    :param on_progress: called with interfaces asked and interfaces in all.
    :param should_stop: asked before each; True ends it, and the rest is ``missed``.
    :raises Unsupported: if there is no /proc.
    :raises ValueError: if MEMLENS_DISABLE is malformed.

    Takes some 60 ms, and makes short-lived child processes and mappings; nothing of
    another process is touched.  An answer about other users' processes stands for one of
    them: a security module may judge each differently.
    """
    machine = Machine(proc, on_progress=on_progress, should_stop=should_stop, budget_s=budget_s)
    origin = machine.origin()
    ground, notes = find_ground(machine)
    probes: list[Probe] = []
    try:
        for row in PROBE_TABLE:
            machine.step(len(probes), len(PROBE_TABLE))
            probes.append(run_row(row, ground))
    except Stopped:
        pass
    swap, swap_notes = _read_swap(machine)
    asked = Table.of(Probe, probes)
    outlooks, gaps = derive_outlooks({probe.name: probe for probe in probes})
    left = PROBE_TABLE[len(probes) :]
    return Features.at(
        origin,
        tables={
            "interfaces": asked,
            "outlooks": outlooks,
            "gaps": gaps,
            "capabilities": Table.of(Capability, map(Capability, ground.capabilities)),
            "areas": Table.of(Area, _areas(swap)),
            "zram": Table.of(Zram, (Zram(*astuple(figures)) for figures in swap.zram)),
        },
        sections={"reader": ground.reader, "zswap": _zswap(swap)},
        missed=[Missed(row.name, f"not asked: {machine.why_over()}") for row in left],
        notes=(*notes, *swap_notes),
        is_complete=not left,
        cost=machine.cost(),
    )


def _read_swap(machine: Machine) -> tuple[Swap, tuple[str, ...]]:
    """Return the swap areas, and what could not be read of them."""
    try:
        swap = read_swap(machine)
    except MemlensError as error:
        return Swap(), (str(error),)
    return swap, swap.notes


def _areas(swap: Swap) -> Iterator[Area]:
    for line, area in enumerate(swap.areas):
        numbers = area_numbers(line, len(swap.areas))
        yield Area(
            area.path,
            area.kind,
            area.size_pages,
            area.used_pages,
            area.priority,
            area.device,
            numbers[0],
            numbers[-1],
        )


def _zswap(swap: Swap) -> Zswap | None:
    return None if swap.zswap is None else Zswap(*astuple(swap.zswap))


def derive_outlooks(probes: Mapping[str, Probe]) -> tuple[Table[Outlook], Table[Gap]]:
    """
    Return what follows from the interfaces that are there, and what is left open.

    :param probes: by name; of a scope some of whose interfaces were not asked nothing is said.
    """
    outlooks, gaps = [], []
    for scope, title, required in _SCOPES:
        rows = _rows_of(scope)
        names = {*required, *(name for row in rows for name in row.any_of)}
        if not names <= probes.keys():
            continue
        found = _gaps(scope, rows, probes)
        missing = [name for name in required if not probes[name].is_available]
        if missing and scope != "frames":
            needs = probes[missing[0]].needs
            found = [Gap(scope, "all of it: none of them could be read", needs)]
        level = "nothing" if missing else "part" if found else "everything"
        outlooks.append(Outlook(scope, title, level))
        gaps += found
    return Table.of(Outlook, outlooks), Table.of(Gap, gaps)


def _rows_of(scope: str) -> tuple[_GapRow, ...]:
    if scope == "frames":
        return _FRAME_TABLE
    return (_GapRow((_OPENING_ROWS[scope],), _OPENING_GAP), *_GAP_TABLE)


def _gaps(scope: str, rows: tuple[_GapRow, ...], probes: Mapping[str, Probe]) -> list[Gap]:
    found = []
    for row in rows:
        asked = [probes[name] for name in row.any_of]
        if not any(probe.is_available for probe in asked):
            needs = dict.fromkeys(probe.needs for probe in asked)
            found.append(Gap(scope, row.text, "; or ".join(filter(None, needs))))
    return found


def find_ground(machine: Machine) -> tuple[Ground, tuple[str, ...]]:
    """
    Return where probes are made, and what a reader of their answers must know.

    :raises Unsupported: if there is no /proc.
    """
    own, notes = _find_self(machine)
    reader = replace(read_reader(own), proc=machine.root)
    ground = Ground(machine, own, reader, read_capabilities(own))
    return ground, (*notes, *_notes_on(reader))


def run_row(row: ProbeRow, ground: Ground) -> Probe:
    """
    Return what one round trip shows.

    A fault that is none of the kernel's, as a bug here, is raised.
    """
    switched_off = [
        name for name in (row.name, *row.stands_on) if name in ground.machine.disabled
    ]
    if switched_off:
        reason = f"MEMLENS_DISABLE switches {switched_off[0]} off"
        return Probe(row.name, False, "", reason, "", row.group, row.title, True)
    try:
        proof = probed(row.ask, ground)
    except Unsupported as error:
        reason, needs = error.message, row.kernel
    except MemlensError as error:
        # Refused, or nothing was there to try with, which more privilege may change.
        reason, needs = error.message, row.privilege
    else:
        return Probe(row.name, True, proof, "", "", row.group, row.title)
    return Probe(row.name, False, "", reason, needs, row.group, row.title)


def _find_self(machine: Machine) -> tuple[str, tuple[str, ...]]:
    """Return this process's directory, by way of the usual /proc if ``proc`` hides it."""
    _check_proc(machine)
    if os.path.isdir(f"{machine.root}/self/"):
        return f"{machine.root}/self", ()
    if os.path.isdir("/proc/self/"):
        note = f"{machine.root} does not show this process, so /proc was asked about its memory"
        return "/proc/self", (note,)
    raise Unsupported("does not show this process, nor does /proc", path=machine.root)


def _check_proc(machine: Machine) -> None:
    try:
        fd = os.open(machine.root, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise Unsupported("there is no proc file system", path=machine.root) from error
    except OSError as error:
        raise_errno(error, "cannot open the proc file system", machine.root)
    try:
        if fstatfs_type(fd) != PROC_MAGIC:
            raise Unsupported("not a proc file system", path=machine.root)
    finally:
        os.close(fd)


def _notes_on(reader: Reader) -> tuple[str, ...]:
    notes = []
    if reader.is_init_user_namespace is False:
        notes.append(
            "in a user namespace: for PFNs, map_files and BPF only capabilities in the first "
            "one count"
        )
    if reader.is_init_pid_namespace is False:
        notes.append("in a PID namespace: processes outside of it are not seen")
    if reader.is_filtered:
        notes.append("under a seccomp filter, which may refuse what the kernel could do")
    return tuple(notes)
