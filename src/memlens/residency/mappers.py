"""Who else maps a page of an object."""

import os

from memlens.kernel.maps import Mapping
from memlens.kernel.processes import Mapper, find_mappers
from memlens.kernel.syscalls import file_handle
from memlens.pages.bits import PM_FILE, PM_PFN, PM_PRESENT, PM_SWAP, PM_SWAP_AREA, SWAP_AREAS
from memlens.residency.records import PageHolder
from memlens.scan.machine import Machine


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
