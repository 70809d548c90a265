"""
What this kernel and this user let memlens say, and what they keep back.

The interfaces are proven in ``selftest.probes``; here stands what follows from each
that is missing, for whose processes, and what would mend it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass

from memlens.errors import MemlensError
from memlens.kernel.swaps import Swap, area_numbers, read_swap
from memlens.record import Table
from memlens.report import Missed
from memlens.scan.machine import Machine, Stopped
from memlens.selftest.probe_rows import PROBE_TABLE
from memlens.selftest.probes import find_ground, run_row
from memlens.selftest.records import (
    Area,
    Capability,
    Features,
    Gap,
    Outlook,
    Probe,
    Zram,
    Zswap,
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
