"""Where one page is: its swap slot or folio, by its word or the walk; and who else maps it."""

import os
from dataclasses import dataclass

import numpy as np

from memlens.errors import MemlensError
from memlens.kernel.cgroups import cgroup_paths_by_inode, find_hierarchy
from memlens.kernel.frameslots import number_areas
from memlens.kernel.maps import Mapping
from memlens.kernel.processes import Mapper, find_mappers
from memlens.kernel.syscalls import file_handle
from memlens.pages.bits import PM_FILE, PM_PFN, PM_PRESENT, PM_SWAP, PM_SWAP_AREA, SWAP_AREAS
from memlens.pages.classes import PageClass
from memlens.pages.decode import Words, decode_swap
from memlens.pages.runs import Runs, select_runs
from memlens.pages.slotruns import (
    SlotRuns,
    concat_slots,
    encode_slots,
    restrict_slots,
    without_pages,
)
from memlens.residency.records import Folio, PageHolder, SwapPlace, folio_text
from memlens.residency.walk import Walking
from memlens.scan.machine import Machine

# What an object's page can be, by what its page cache holds.
_FITTING = {
    "swap": (PageClass.SWAPPED, PageClass.SWAP_CACHED),
    "folio": (PageClass.CACHED, PageClass.PREALLOCATED),
    "nothing": (PageClass.NONE, PageClass.ON_DISK),
}
_BY_OBJECT = frozenset(value for values in _FITTING.values() for value in values)


@dataclass(frozen=True, slots=True)
class WalkedPage:
    """
    What the page cache of an object holds for one page.

    :param holds: ``swap``, ``folio`` or ``nothing``.
    :param area: number of the swap area.
    :param slot: slot in it.
    :param folio: the folio, None if there is none.
    """

    holds: str
    area: int = 0
    slot: int = 0
    folio: Folio | None = None

    def fits(self, value: int) -> bool:
        """Return whether a verdict about the object's page can be of the same moment."""
        return value not in _BY_OBJECT or value in _FITTING[self.holds]


def is_private_copy(word: int | None) -> bool:
    """Return whether a page-table entry hides the object's page: a private page or slot."""
    if word is None:
        return False
    if word & int(PM_PRESENT):
        return not word & int(PM_FILE)
    return word_place(word) is not None


def word_place(word: int) -> tuple[int, int] | None:
    """Return swap area and slot that a pagemap word names, None if it names none."""
    area, slot = word & int(PM_SWAP_AREA), (word & int(PM_PFN)) >> 5
    return (area, slot) if word & int(PM_SWAP) and slot and area < SWAP_AREAS else None


def walk_page(
    walking: Walking, tid: int, mapping: Mapping, page: int, *, is_of_layer: bool = False
) -> WalkedPage | None:
    """
    Return what the object's page cache holds for a page, None if that cannot be known.

    :param tid: a live thread of the process.
    :param page: page of the object.
    :param is_of_layer: whether an overlay is mapped.
    """
    records = walking.walk_mapping(tid, mapping, page, page + 1, is_of_layer=is_of_layer)
    if records is None:
        return None
    if not len(records):
        return WalkedPage("nothing")
    if records.is_swap[0]:
        return WalkedPage("swap", int(records.area[0]), int(records.slot[0]))
    number = int(records.cgroup_id[0])
    folio = Folio(
        order=int(records.order[0]),
        is_uptodate=bool(records.is_uptodate[0]),
        is_dirty=bool(records.is_dirty[0]),
        is_writeback=bool(records.is_writeback[0]),
        cgroup_id=number,
        cgroup=_cgroup_path(number, walking.machine) if number else "",
    )
    return WalkedPage("folio", folio=folio)


def name_place(area: int, slot: int, machine: Machine) -> SwapPlace:
    """Return a place on swap with the path of its area, as far as that is certain."""
    try:
        areas = number_areas(machine, {area})
    except (MemlensError, OSError):
        areas = []
    path = next((row.area.path for row in areas if row.number == area), "")
    return SwapPlace(area, slot, path)


def walked_answer(walked: WalkedPage) -> str:
    """
    Return what the page cache holds, as text.

    >>> walked_answer(WalkedPage("swap", 0, 13825))
    'swap area 0, slot 13825'
    """
    if walked.holds == "swap":
        return f"swap area {walked.area}, slot {walked.slot}"
    return "nothing" if walked.folio is None else f"a folio of {folio_text(walked.folio)}"


def walked_meaning(walked: WalkedPage) -> str:
    """Return what follows from what the page cache holds."""
    return {
        "swap": "on swap; whether a copy is in RAM as well, the page cache does not show",
        "folio": "in RAM",
        "nothing": "not in the page cache, and on no swap area",
    }[walked.holds]


def _cgroup_path(number: int, machine: Machine) -> str:
    # The ID of a cgroup is the inode number of its directory.
    return cgroup_paths_by_inode(find_hierarchy(machine)).get(number, "")


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


def find_holders(
    pid: int, mapping: Mapping, address: int, machine: Machine
) -> tuple[list[PageHolder], int]:
    """
    Return who maps the page of the object that is at an address of a mapping.

    In the order of PIDs and addresses, and how many processes could not be looked at.

    :param pid: whose mapping it is.
    :param mapping: the mapping; without an object nobody else can be found.
    :param address: an address in it.

    The mapping itself is among them.  A process that shares the whole address space
    (a thread) is not listed again.
    """
    if not mapping.has_object:
        return [], 0
    offset = mapping.offset_bytes + address - mapping.start

    def address_in(other: Mapping) -> int | None:
        inside = offset - other.offset_bytes
        return other.start + inside if 0 <= inside < other.stop - other.start else None

    mappers, missed = find_mappers(mapping.device, mapping.inode, address_in, machine)
    if mapping.path.startswith("/SYSV"):
        mappers = [row for row in mappers if _is_same_segment(pid, mapping, row, machine)]
    size = machine.page_size_bytes
    return [_holder(row, (address_in(row.mapping) or 0) // size) for row in mappers], missed


def _is_same_segment(pid: int, mapping: Mapping, row: Mapper, machine: Machine) -> bool:
    """Return whether it is: every IPC namespace counts identifiers, the inodes, anew."""
    pairs = (pid, mapping), (row.pid, row.mapping)
    try:
        own, other = [file_handle(f"{machine.root}/{p}/map_files/{m.name}") for p, m in pairs]
        return own == other
    except OSError:
        pass
    try:
        # Not to be seen: at least it is likely to be of the namespace that they are in.
        return os.path.samefile(*[f"{machine.root}/{p}/ns/ipc" for p, _ in pairs])
    except OSError:
        return False


def _holder(row: Mapper, page: int) -> PageHolder:
    word = row.word
    has_own = word is not None and not row.mapping.is_shared and _is_own_copy(word)
    return PageHolder(
        pid=row.pid,
        name=row.name,
        page=page,
        permissions=row.mapping.permissions,
        is_present=None if word is None else bool(word & int(PM_PRESENT)),
        is_private_copy=has_own,
    )


def _is_own_copy(word: int) -> bool:
    """Return whether a private mapping of an object has a page of its own there."""
    if word & int(PM_PRESENT):
        return not word & int(PM_FILE)
    # Markers are no pages; and slot 0 of area 0 is a header: that word was hidden.
    is_slot = word & int(PM_PFN) > 0 and word & int(PM_SWAP_AREA) < SWAP_AREAS
    return bool(word & int(PM_SWAP)) and is_slot
