"""How often page frames are mapped, and what that makes of the frames of a process."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.account.frames import Frames
from memlens.account.frametable import ANSWER_LIMIT, FrameTable
from memlens.kernel.kpage import KpageFile


class FrameSums(NamedTuple):
    """RSS, PSS and USS in pages; ``private_pages`` are those of USS that are of no file."""

    rss_pages: int
    pss_pages: float
    uss_pages: int
    private_pages: int


def count_maps(file: KpageFile) -> FrameTable:
    """
    Return a table of how often frames are mapped, at least 1.

    :param file: an open kpagecount.

    Kernels with CONFIG_NO_PAGE_MAPCOUNT give averages for pages of large folios.
    """
    # Frames that vanished meanwhile are mapped no more: those who saw them count once.
    return FrameTable(file, _clip)


def _clip(words: NDArray[np.uint64]) -> NDArray[np.uint16]:
    return np.clip(words, 1, ANSWER_LIMIT).astype(np.uint16)


def sum_frames(frames: Frames, counts: FrameTable) -> FrameSums:
    """
    Return the sums over what a process maps.

    :param counts: as ``count_maps`` gives it; asked only of frames that may be shared.
    """
    is_asked = ~frames.is_alone
    mapped = counts.of(frames.pfn[is_asked])
    times = np.bincount(mapped, minlength=2)
    alone = len(frames.pfn) - len(mapped)
    is_private = ~frames.is_file
    return FrameSums(
        rss_pages=len(frames.pfn),
        pss_pages=alone + float((times[1:] / np.arange(1, len(times))).sum()),
        uss_pages=alone + int(times[1]),
        private_pages=int((is_private & frames.is_alone).sum())
        + int((is_private[is_asked] & (mapped == 1)).sum()),
    )
