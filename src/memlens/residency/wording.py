"""What an answer of the kernel about one page means, in words."""

import numpy as np

from memlens.pages.bits import (
    CATEGORIES,
    PM_FILE,
    PM_GUARD_REGION,
    PM_PFN,
    PM_PRESENT,
    PM_SWAP,
    PM_SWAP_AREA,
    PM_UFFD_WP,
    SWAP_AREAS,
    SWAP_MARKER,
)
from memlens.pages.decode import bit_names
from memlens.pages.flags import KPF_ANON, KPF_KSM, KPF_ZERO_PAGE, mask_of
from memlens.residency.onepage import Call

_SWAPCACHE, _SWAPBACKED, _LRU = mask_of("SWAPCACHE"), mask_of("SWAPBACKED"), mask_of("LRU")
_OBJECTS = {
    "anonymous": "nothing backs it: private memory, of which only the page table tells",
    "shmem": "shared memory backs it (tmpfs code: shared anonymous memory, memfd, SysV, tmpfs)",
    "ramfs": "a file of ramfs backs it, which is never swapped",
    "hugetlb": "huge pages of hugetlbfs back it, which are never swapped",
    "overlay": "a file on an overlay file system backs it",
    "block": "a block device backs it",
    "file": "a file on disk backs it",
    "device": "a character device backs it",
    "special": "the kernel backs it itself",
}


def object_meaning(kind: str) -> str:
    """Return what backs a mapping, as a clause."""
    return _OBJECTS[kind]


def word_answer(word: int) -> str:
    """
    Return a pagemap word as text: hexadecimal, and the names of its bits.

    >>> word_answer(1 << 63 | 1 << 61)
    '0xa000000000000000: file, present'
    """
    return f"0x{word:016x}: {', '.join(bit_names(word)) or 'no bit is set'}"


def word_meaning(word: int, is_object: bool) -> str:
    """
    Return what follows from a pagemap word.

    >>> word_meaning(0, is_object=True)[:26]
    'no page is mapped here, wh'

    :param is_object: whether an object backs the mapping.
    """
    if word & int(PM_PRESENT):
        return _present_meaning(word, is_object)
    if word & int(PM_GUARD_REGION):
        return "a guard region: every access faults by design; not a swapped page"
    if word & int(PM_SWAP):
        return _swap_meaning(word, is_object)
    if is_object:
        return (
            "no page is mapped here, which does not say where the page is: the object has "
            "it, in RAM or on swap or not at all, so ask the object"
        )
    return "no page and no swap entry: never allocated, or given back"


def _present_meaning(word: int, is_object: bool) -> str:
    if not word & int(PM_FILE):
        if is_object:
            return "a page is mapped here, and it is a private copy: not the object's page"
        return "a page is mapped here"
    if is_object:
        return "a page is mapped here, and it is the object's own"
    return "a page is mapped here; 'file' on memory without a file is the huge zero page"


def _swap_meaning(word: int, is_object: bool) -> str:
    area, rest = word & int(PM_SWAP_AREA), word & int(PM_PFN)
    then = "the object has the page, so ask the object" if is_object else "it holds no page"
    if not rest:
        return "a swap entry, a marker or a page in migration: the kernel hides which"
    if area == SWAP_MARKER:
        if word & int(PM_UFFD_WP):
            return f"area 31 is a userfaultfd marker, not swap: {then}"
        return "area 31 without any flag is a poison marker: an access is SIGBUS"
    if area >= SWAP_AREAS:
        return f"area {area} is no swap area: a page in migration, so look again"
    return f"swapped out: swap area {area}, slot {rest >> 5}"


def categories_answer(categories: int) -> str:
    """
    Return the categories that PAGEMAP_SCAN gave.

    >>> categories_answer(0b1001000)
    'PRESENT, HUGE'
    """
    names = [name for bit, name in enumerate(CATEGORIES) if categories >> bit & 1]
    return ", ".join(names) or "no category"


def categories_meaning(categories: int) -> str:
    """Return what follows from the categories of PAGEMAP_SCAN."""
    names = categories_answer(categories).split(", ")
    if "PFNZERO" in names:
        size = "huge zero page" if "HUGE" in names else "zero page"
        return f"the shared {size} is mapped here: it costs no memory"
    if "PRESENT" in names:
        whole = ", as part of a huge page" if "HUGE" in names else ""
        return f"a page is mapped here{whole}"
    if "GUARD" in names:
        return "a guard region, for which SWAPPED is set too"
    if "SWAPPED" in names:
        return "a swap entry, or a marker, or a page in migration: the word tells which"
    return "nothing is mapped here"


def kpage_meaning(flags: int) -> str:
    """Return what the flags of a mapped page add to what the page table says."""

    def has(flag: np.uint64) -> bool:
        return bool(flags & int(flag))

    if has(KPF_ZERO_PAGE):
        return "the frame is the zero page"
    if has(KPF_ANON) and has(_SWAPCACHE):
        return "anonymous memory that still keeps its swap slot"
    if has(KPF_KSM):
        return "anonymous memory that is merged with equal pages (KSM)"
    if has(KPF_ANON):
        if not has(_SWAPBACKED):
            return "anonymous memory that was offered to the kernel (MADV_FREE): may vanish"
        return "anonymous memory"
    # A page that was just faulted in waits outside the lists for a moment, without LRU.
    return "a page of the page cache" if has(_LRU) else "not anonymous memory"


def call_asked(call: Call, page: int, way: str) -> str:
    """Return which call this was, of which page."""
    is_refused = isinstance(call.answer, str)
    return {
        "open": f"open {way}",
        "size": "fstat of the object: its size",
        "blocks": "fstat of the object: the pages that it owns (st_blocks)",
        "seek": f"lseek(SEEK_DATA, SEEK_HOLE) for page {page} of the object",
        "cachestat": f"cachestat of page {call.first if is_refused else page} of the object",
        "mincore": f"mincore of page {page} of the object, on a mapping of our own",
    }[call.name]


def call_answer(call: Call, page: int) -> str:
    """
    Return the answer as text.

    >>> call_answer(Call("cachestat", 3, 1, (0, 1)), 3)
    'nr_cache 0, nr_evicted 1'
    """
    if isinstance(call.answer, str):
        return call.answer
    if call.name == "open":
        return "opened for reading" + (", access times as they were" if call.answer[0] else "")
    if call.name == "size":
        size, pages = call.answer[1], call.answer[0]
        return f"{size} bytes: " + (f"pages 0 to {pages - 1}" if pages else "no pages")
    if call.name == "blocks":
        return f"{call.answer[0]} pages"
    if call.name == "seek":
        return "data" if _is_data(call, page) else "hole"
    if call.name == "cachestat":
        return f"nr_cache {call.answer[0]}, nr_evicted {call.answer[1]}"
    return f"{call.answer[page - call.first]}"


def call_meaning(call: Call, page: int, kind: str) -> str:
    """
    Return what follows from the answer.

    :param kind: kind of the object.
    """
    if isinstance(call.answer, str):
        return _refusal_meaning(call)
    if call.name == "open":
        return "the object can be asked about its page"
    if call.name == "size":
        return _size_meaning(call, page)
    if call.name == "blocks":
        return "in RAM or on swap, in the object as a whole"
    if call.name == "seek":
        return _seek_meaning(_is_data(call, page), kind)
    if call.name == "cachestat":
        return _cachestat_meaning(call, kind)
    return _mincore_meaning(bool(call.answer[page - call.first]), kind)


def _refusal_meaning(call: Call) -> str:
    if call.name == "open":
        return "the object cannot be asked"
    return "refused: this reader may not write the file, so that mincore would say 1 for all"


def _size_meaning(call: Call, page: int) -> str:
    end = call.answer[0]
    if isinstance(end, int) and page >= end:
        return f"page {page} is past the end: an access is SIGBUS"
    return f"page {page} is inside"


def _is_data(call: Call, page: int) -> bool:
    numbers = [number for number in call.answer if isinstance(number, int)]
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return any(first <= page < stop for first, stop in pairs)


def _seek_meaning(is_data: bool, kind: str) -> str:
    if kind == "shmem":
        if is_data:
            return "written: it is somewhere, in RAM or on swap"
        return "not written: nothing is there, or memory is only set aside"
    if is_data:
        return "the file has content here: on disk, whether or not it is in RAM too"
    return "a hole: the disk holds nothing here"


def _cachestat_meaning(call: Call, kind: str) -> str:
    cached, evicted = call.answer[0], call.answer[1]
    if cached:
        return "in RAM, in the object's page cache"
    if kind == "shmem":
        if evicted:
            return "not in the page cache but on swap: its slot stands in the cache's place"
        return "neither in the page cache nor on swap: the object has no page here"
    if evicted:
        return "not in the page cache; it once was, which says nothing of now"
    return "not in the page cache"


def _mincore_meaning(is_resident: bool, kind: str) -> str:
    if kind == "shmem":
        if is_resident:
            return "a copy is in RAM: in the page cache or in the swap cache"
        return "no copy is in RAM that could be used at once"
    return "in RAM, in the page cache" if is_resident else "not in RAM"
