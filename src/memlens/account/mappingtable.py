"""Which mapping a page belongs to, and whether it counts in RSS."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memlens.account.mapping import KERNEL_HALF
from memlens.kernel import features
from memlens.kernel.maps import Mapping
from memlens.kernel.opening import Opener
from memlens.kernel.process import ProcessDir
from memlens.pages.bits import PM_FILE, PM_PFN, PM_PRESENT


@dataclass(frozen=True, slots=True)
class FoundPages:
    """
    Pages that count in RSS, ``(n,)`` each.

    :param index: number of the word.
    :param place: number of the mapping.
    :param pfn: frame.
    :param is_file: whether it is of a file or of shared memory.
    """

    index: NDArray[np.int64]
    place: NDArray[np.int64]
    pfn: NDArray[np.int64]
    is_file: NDArray[np.bool_]

    def select(self, is_kept: NDArray[np.bool_]) -> "FoundPages":
        """Return some of them."""
        return FoundPages(
            self.index[is_kept], self.place[is_kept], self.pfn[is_kept], self.is_file[is_kept]
        )


class MappingTable:
    """
    The mappings of a process, to find that of a page.

    :param directory: the process.
    """

    def __init__(self, directory: ProcessDir, page_size_bytes: int) -> None:
        opener = Opener(directory, features.read_disabled(), page_size_bytes)
        self.mappings = [m for m in directory.read_maps() if m.start < KERNEL_HALF]
        starts = [mapping.start // page_size_bytes for mapping in self.mappings]
        self._starts = np.array(starts, np.int64)
        # Huge pages of hugetlb are not in RSS.
        self._is_counted = np.array([_is_counted(opener, m) for m in self.mappings], bool)
        # Of no file, and yet with that bit: only the huge zero page is.
        kinds = ["" if m.has_object else opener.facts(m).kind for m in self.mappings]
        self._is_anonymous = np.array([kind == "anonymous" for kind in kinds], bool)

    def attribute(
        self, words: NDArray[np.uint64], pages: NDArray[np.int64], zero_pfn: int
    ) -> FoundPages:
        """
        Return the pages that count in RSS, and what they belong to.

        :param words: pagemap words, ``(n,)`` uint64.
        :param pages: addresses divided by the page size, ``(n,)`` int64.
        :param zero_pfn: frame of the zero page.
        """
        is_wanted = ((words & PM_PRESENT) != 0) & ((words & PM_PFN) != zero_pfn)
        index = np.flatnonzero(is_wanted)
        if not len(index) or not len(self._starts):
            empty = np.empty(0, np.int64)
            return FoundPages(empty, empty, empty, np.empty(0, bool))
        kept = words[index]
        place = np.searchsorted(self._starts, pages[index], side="right") - 1
        is_file = (kept & PM_FILE) != 0
        is_counted = (place >= 0) & self._is_counted[place]
        is_counted &= ~(is_file & self._is_anonymous[place])
        pfn = (kept & PM_PFN).view(np.int64)
        return FoundPages(
            index[is_counted], place[is_counted], pfn[is_counted], is_file[is_counted]
        )


def _is_counted(opener: Opener, mapping: Mapping) -> bool:
    # hugetlbfs has no device number of its own: major 0.
    has_object = mapping.inode != 0 and mapping.device.startswith("00:")
    return not has_object or opener.facts(mapping).kind != "hugetlb"
