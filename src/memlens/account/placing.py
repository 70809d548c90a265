"""Where swapped pages of a mapping are: private ones by their words, shared by the walk."""

import numpy as np

from memlens.account.model import Words
from memlens.pages.bits import PM_SWAP, PM_SWAP_AREA, SWAP_AREAS
from memlens.pages.classes import PageClass
from memlens.pages.decode import decode_swap
from memlens.pages.runs import Runs, select_runs
from memlens.pages.slotruns import (
    SlotRuns,
    concat_slots,
    encode_slots,
    restrict_slots,
    without_pages,
)


def word_slots(words: Words) -> SlotRuns:
    """
    Return the slots that pagemap words name; none where the kernel hides them.

    >>> words = Words(np.array([4]), np.array([1 << 62 | 3 << 5 | 1], np.uint64))
    >>> list(word_slots(words))
    [(4, 1, 1, 3)]
    """
    is_swap = ((words.word & PM_SWAP) != 0) & ((words.word & PM_SWAP_AREA) < SWAP_AREAS)
    found = decode_swap(words.word[is_swap])
    is_known = found.slot != 0
    slot = found.slot[is_known].astype(np.int64)
    return encode_slots(words.page[is_swap][is_known], found.area[is_known], slot)


def mapping_slots(runs: Runs, words: Words, shared: SlotRuns) -> SlotRuns:
    """
    Return the slots of all pages of a mapping that are on swap, as far as they are known.

    :param runs: a ``PageClass`` for every page.
    :param words: raw words of the mapping.
    :param shared: slots of its object's pages.
    """
    private = word_slots(words)
    # A private copy hides the object's page.
    hidden = np.zeros(len(private), np.uint8)
    shared = without_pages(shared, Runs(private.first, private.pages, hidden))
    is_on_swap = (runs.value == PageClass.SWAPPED) | (runs.value == PageClass.SWAP_CACHED)
    return restrict_slots(concat_slots([private, shared]), select_runs(runs, is_on_swap))
