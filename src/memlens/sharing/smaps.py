"""What is left of sharing for a reader who may not see page frames: smaps."""

import numpy as np

from memlens.kernel.maps import MappingFigures
from memlens.kernel.process import ProcessDir
from memlens.report import Missed
from memlens.scan.machine import Machine
from memlens.sharing.records import MappingShare, ProcessShare, ShareCounts, Sharing

_HIDDEN = (
    "RSS, PSS and USS are what smaps says; what pairs share, was copied since a fork, or is "
    "freed on exit is not known"
)


def read_smaps_sharing(
    found: list[tuple[ProcessDir, int | None]],
    missed: list[Missed],
    machine: Machine,
    reason: str,
) -> Sharing:
    """
    Return what smaps says of processes.

    :param found: processes, and the parent of each that was forked from another of them.
    :param reason: why page frames cannot be looked at.
    """
    return Sharing(
        page_size_bytes=machine.page_size_bytes,
        processes=tuple(_process(directory, parent) for directory, parent in found),
        pairs=(),
        distinct_pages=None,
        is_hidden=True,
        is_complete=True,
        missed=tuple(missed),
        notes=(f"{reason}: {_HIDDEN}",),
        cost=machine.cost(),
    )


def _process(directory: ProcessDir, parent: int | None) -> ProcessShare:
    figures = [row for row in directory.read_smaps() if row.size_bytes.get("Rss")]
    size = directory.host.page_size_bytes
    counts = ShareCounts.zeros(len(figures))
    counts.rss[:] = [row.size_bytes["Rss"] // size for row in figures]
    counts.pss[:] = np.array([row.size_bytes.get("Pss", 0) for row in figures]) / size
    counts.uss[:] = [_private(row) // size for row in figures]
    return ProcessShare(
        pid=directory.pid,
        name=directory.stat.name,
        parent=parent,
        rss_pages=int(counts.rss.sum()),
        pss_pages=float(counts.pss.sum()),
        uss_pages=int(counts.uss.sum()),
        freed_on_exit_pages=None,
        moved_pages=0,
        swapped_pages=sum(row.size_bytes.get("SwapPss", 0) for row in figures) // size,
        shared_with_parent_pages=None,
        copied_pages=None,
        new_pages=None,
        new_object_pages=None,
        mappings=tuple(
            MappingShare.of(row.mapping, counts, number, False)
            for number, row in enumerate(figures)
        ),
    )


def _private(row: MappingFigures) -> int:
    figures = row.size_bytes
    return figures.get("Private_Clean", 0) + figures.get("Private_Dirty", 0)
