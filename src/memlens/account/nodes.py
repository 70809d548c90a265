"""Which NUMA nodes hold the pages of a process, on a machine that has more than one."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from memlens.account.model import MappingPages
from memlens.kernel.pagemap import Pagemap
from memlens.kernel.physical import NodeRange
from memlens.pages.bits import PM_PFN, PM_PRESENT
from memlens.pages.classes import PageClass
from memlens.pages.runs import clip_runs, decode_runs, select_runs, shift_runs, window_runs

# Present pages closer than this are read together: a call costs as much as some pages more.
_JOIN_PAGES = 4096


def add_nodes(
    pagemap: Pagemap, mappings: Iterable[MappingPages], nodes: list[NodeRange]
) -> list[MappingPages]:
    """
    Return mappings with their pages by node.

    :param pagemap: the page table that they were read from.
    :param nodes: frames of each node, in order; empty to leave the mappings as they are.

    The words are read again, so that pages which left meanwhile are in no node.
    """
    if not nodes:
        return list(mappings)
    return [replace(row, node_pages=count_nodes(pagemap, row, nodes)) for row in mappings]


def count_nodes(
    pagemap: Pagemap, mapping: MappingPages, nodes: list[NodeRange]
) -> dict[int, int]:
    """Return the present pages of a mapping by node; nothing where frames are hidden."""
    counts = np.zeros(len(nodes), np.int64)
    base = mapping.start // pagemap.page_size_bytes
    present = select_runs(mapping.runs, mapping.runs.value == PageClass.PRESENT)
    for first, stop in window_runs(present, _JOIN_PAGES):
        for page, words in pagemap.iter_words(base + first, stop - first):
            low = page - base
            piece = shift_runs(clip_runs(present, low, low + len(words)), -low)
            is_asked = (
                decode_runs(piece, len(words), fill=PageClass.UNKNOWN) == PageClass.PRESENT
            )
            counts += _count_frames(words[is_asked], nodes)
    found: dict[int, int] = {}
    for row, pages in zip(nodes, counts.tolist(), strict=True):
        if pages:
            found[row.node] = found.get(row.node, 0) + pages
    return dict(sorted(found.items()))


def _count_frames(words: NDArray[np.uint64], nodes: list[NodeRange]) -> NDArray[np.int64]:
    """Return how many words map a frame of each range, ``(len(nodes),)`` int64."""
    pfns = (words[(words & PM_PRESENT) != 0] & PM_PFN).astype(np.int64)
    # A frame number of 0 is a hidden one.
    pfns = pfns[pfns != 0]
    index = np.searchsorted([row.first for row in nodes], pfns, side="right") - 1
    stops = np.array([row.stop for row in nodes])
    is_inside = (index >= 0) & (pfns < stops[index])
    return np.bincount(index[is_inside], minlength=len(nodes))
