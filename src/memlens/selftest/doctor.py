"""
What this kernel and this user let memlens say, and what they keep back.

The interfaces are proven in ``kernel.probes``; here stands what follows from each
that is missing, for whose processes, and what would mend it.
"""

from dataclasses import dataclass

from memlens.kernel.swaps import area_numbers
from memlens.selftest.probes import Features, probe_features
from memlens.selftest.records import Abilities, Gap, Outlook


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


def read_abilities(proc: str = "/proc") -> Abilities:
    """
    Return what memlens can say here.

    :param proc: root of the /proc to ask.
    :raises MemlensError: if there is no such /proc.
    :raises ValueError: if MEMLENS_DISABLE is malformed.
    """
    return derive_abilities(probe_features(proc))


def derive_abilities(features: Features) -> Abilities:
    """Return what follows from the interfaces that are there."""
    areas = len(features.swap.areas)
    numbers = [area_numbers(line, areas) for line in range(areas)]
    return Abilities(
        features=features,
        outlooks=(
            _process_outlook(features, "own", "processes of this user", ("pagemap",)),
            _process_outlook(
                features, "other", "processes of other users", ("other_pagemap", "other_smaps")
            ),
            _frame_outlook(features),
        ),
        area_numbers=tuple((found[0], found[-1]) for found in numbers),
    )


def _process_outlook(
    features: Features, scope: str, title: str, required: tuple[str, ...]
) -> Outlook:
    missing = [name for name in required if not features.has(name)]
    if missing:
        gap = Gap("all of it: none of them could be read", _needs(features, missing[:1]))
        return Outlook(scope, title, "nothing", (gap,))
    rows = (_GapRow((_OPENING_ROWS[scope],), _OPENING_GAP), *_GAP_TABLE)
    gaps = _gaps(features, rows)
    return Outlook(scope, title, "part" if gaps else "everything", gaps)


def _frame_outlook(features: Features) -> Outlook:
    gaps = _gaps(features, _FRAME_TABLE)
    level = "nothing" if not features.has("pfns") else "part" if gaps else "everything"
    return Outlook("frames", "page frames of the machine", level, gaps)


def _gaps(features: Features, rows: tuple[_GapRow, ...]) -> tuple[Gap, ...]:
    return tuple(
        Gap(row.text, _needs(features, row.any_of))
        for row in rows
        if not any(features.has(name) for name in row.any_of)
    )


def _needs(features: Features, names: tuple[str, ...] | list[str]) -> str:
    needs = dict.fromkeys(features.probe(name).needs for name in names)
    return "; or ".join(filter(None, needs))
