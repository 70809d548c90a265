"""Pages that an object owns beyond its end."""

from typing import NamedTuple

from memlens.account.objects import ObjectReader
from memlens.pages.classes import Evidence
from memlens.pages.runs import Runs

# No file is longer: offsets are signed and of 64 bits.
_ALL_BYTES = 1 << 63


class BeyondEnd(NamedTuple):
    """What an object has beyond its end, in pages."""

    resident_pages: int = 0
    swap_pages: int = 0


def find_beyond_end(reader: ObjectReader, pages: int, found: int) -> BeyondEnd:
    """
    Return what an object of a tmpfs owns beyond its end.

    :param pages: of the object, up to its end.
    :param found: how many of these it owns, in RAM or on swap.
    :raises OSError: if the object cannot be asked at all.
    """
    backing = reader.backing
    if backing.allocated_pages() <= found:
        return BeyondEnd()
    answer = _walked(reader, pages) if _has_to_walk(reader) else None
    if answer is None and reader.has_cachestat and reader.is_honest:
        answer = BeyondEnd(*backing.cachestat(pages, 0))
    # What was written at its end meanwhile is not beyond it.
    return answer if answer is not None and backing.size_pages() == pages else BeyondEnd()


def _has_to_walk(reader: ObjectReader) -> bool:
    """Return whether slots are wanted, or nothing else tells."""
    if reader.walk is None:
        return False
    return reader.walk.walking.is_eager or not reader.has_cachestat


def _walked(reader: ObjectReader, pages: int) -> BeyondEnd | None:
    if reader.walk is None:
        return None
    walked = reader.walk.walk(pages, _ALL_BYTES // reader.backing.page_size_bytes)
    if walked is None:
        return None
    return BeyondEnd(_count(walked, Evidence.CACHE), _count(walked, Evidence.EVICTED))


def _count(runs: Runs, bit: Evidence) -> int:
    return int(runs.pages[(runs.value & bit) != 0].sum())
