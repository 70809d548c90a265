"""What is left of sharing for a reader who may not see page frames: smaps."""

import numpy as np

from memlens.kernel.process import ProcessDir
from memlens.kernel.smaps import MappingFigures, read_smaps
from memlens.kernel.swaps import parse_meminfo
from memlens.scan.machine import Machine
from memlens.sharing.records import MappingShare, ProcessShare, ShareCounts

HIDDEN = (
    "RSS, PSS and USS are what smaps says; what pairs share, was copied since a fork, or is "
    "freed on exit is not known"
)


def read_smaps_sharing(
    found: list[tuple[ProcessDir, int | None]], machine: Machine
) -> tuple[list[ProcessShare], list[MappingShare], bool]:
    """
    Return what smaps says of processes and their mappings, and whether it is all.

    :param found: processes, and the parent of each that was forked from another of them.
    """
    shares: list[ProcessShare] = []
    mappings: list[MappingShare] = []
    for directory, parent in found:
        if machine.is_over():
            return shares, mappings, False
        share, rows = _process(directory, parent)
        shares.append(share)
        mappings += rows
    return shares, mappings, True


def _process(
    directory: ProcessDir, parent: int | None
) -> tuple[ProcessShare, list[MappingShare]]:
    every = read_smaps(directory)
    figures = [row for row in every if row.size_bytes.get("Rss")]
    size = directory.host.page_size_bytes
    counts = ShareCounts.zeros(len(figures))
    counts.rss[:] = [row.size_bytes["Rss"] // size for row in figures]
    counts.pss[:] = np.array([row.size_bytes.get("Pss", 0) for row in figures]) / size
    counts.uss[:] = [_private(row) // size for row in figures]
    entries = parse_meminfo(directory.read("status")).get("VmSwap")
    # Swap has pages of objects too, SwapPss has not.
    swap = sum(row.size_bytes.get("Swap", 0) for row in every)
    share = sum(row.size_bytes.get("SwapPss", 0) for row in every)
    return ProcessShare(
        pid=directory.pid,
        parent=parent,
        rss_pages=int(counts.rss.sum()),
        pss_pages=float(counts.pss.sum()),
        uss_pages=int(counts.uss.sum()),
        freed_on_exit_pages=None,
        swap_entries_pages=None if entries is None else entries // size,
        swap_share_bytes=float(share) if swap == entries else None,
        moved_pages=0,
        shared_with_parent_pages=None,
        copied_pages=None,
        new_private_pages=None,
        new_object_pages=None,
        name=directory.stat.name,
    ), [
        MappingShare.of(directory.pid, row.mapping, counts, number, False)
        for number, row in enumerate(figures)
    ]


def _private(row: MappingFigures) -> int:
    figures = row.size_bytes
    return figures.get("Private_Clean", 0) + figures.get("Private_Dirty", 0)
