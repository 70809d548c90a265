"""
Swap areas: ``/proc/swaps``, and the numbers that the kernel gives them.

A swapped page names its area by number, the index in the kernel's ``swap_info[]``.
/proc/swaps lists the areas in the order of their numbers and leaves the numbers
out: one that was switched off leaves a gap that cannot be seen.  A BPF program
(bpf/swapareas.bpf.c) reads ``swap_info[]`` where the kernel tells its address.
"""

import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError, ParseError
from memlens.kernel import bpf
from memlens.kernel.procfs import decode_bytes, read_file

# From here up a number marks a page that is not in swap (migration, poison, device).
# How many numbers are set aside for that depends on the kernel's configuration; the most
# is nine, of 32 (include/linux/swap.h, MAX_SWAPFILES).
MAX_AREAS = 23

_KIB = 1024
_ESCAPES = {b"\\040": b" ", b"\\011": b"\t", b"\\012": b"\n", b"\\134": b"\\"}
AREA = np.dtype([("is_used", "<u4"), ("slots", "<u4"), ("pages", "<u4"), ("unused", "<u4")])
_AREAS = 32


@dataclass(frozen=True, slots=True)
class SwapArea:
    """
    One line of /proc/swaps.

    :param path: device or file, raw; " (deleted)" is the kernel's.
    :param kind: ``partition`` or ``file``.
    :param pages: size in pages, without header and bad pages.
    :param used_pages: slots in use.
    :param priority: higher ones are used first.
    :param number: the kernel's number of the area, None if it is not known.
    :param slots: slots are numbered from 1 and below this.
    """

    path: str
    kind: str
    pages: int
    used_pages: int
    priority: int
    number: int | None
    slots: int


def parse_swaps(text: bytes, page_size_bytes: int, path: str = "/proc/swaps") -> list[SwapArea]:
    """
    Return the areas of ``/proc/swaps``, in its order, without numbers.

    >>> lines = b"Filename Type Size Used Priority\\n/dev/zram0 partition 8188 4 -2\\n"
    >>> parse_swaps(lines, 4096)[0].slots
    2048

    ``slots`` is one more than ``pages``, for the header; an area with bad pages
    (mkswap -c) has more.

    :raises ParseError: if a line does not read as documented.
    """
    areas = []
    for number, line in enumerate(text.splitlines()[1:], 2):
        fields = line.split()
        try:
            name, kind, size, used, priority = fields
            pages = int(size) * _KIB // page_size_bytes
            used_pages = int(used) * _KIB // page_size_bytes
            rank = int(priority)
        except ValueError as error:
            raise ParseError(
                "not a swap area", path=path, line_number=number, text=decode_bytes(line)
            ) from error
        areas.append(
            SwapArea(
                decode_bytes(_unescape(name)),
                decode_bytes(kind),
                pages,
                used_pages,
                rank,
                None,
                pages + 1,
            )
        )
    return areas


def read_swap_areas(proc: str = "/proc") -> list[SwapArea]:
    """Return the swap areas in use, in the order of their numbers, without these."""
    path = f"{proc}/swaps"
    return parse_swaps(read_file(path), os.sysconf("SC_PAGE_SIZE"), path)


def number_swap_areas(seen: Iterable[int] = (), proc: str = "/proc") -> list[SwapArea]:
    """
    Return the swap areas in use with their numbers, as far as these can be known.

    If pages were seen in as many areas as there are, no number can be missing and
    the order of /proc/swaps is enough.  Otherwise a BPF program reads the kernel's
    table; it needs what the page-cache walk needs, CAP_SYSLOG, and a kernel whose
    kallsyms holds data.  Failing that too, ``number`` is None: it is never guessed.

    The numbers hold until an area is switched on or off.

    :param seen: numbers of areas that swapped pages are known to be in.
    """
    areas = read_swap_areas(proc)
    numbered = number_by_order(areas, seen)
    if numbered is None:
        numbered = _table_numbers(proc)
    return areas if numbered is None else numbered


def number_by_order(areas: Sequence[SwapArea], seen: Iterable[int]) -> list[SwapArea] | None:
    """
    Return the areas with the numbers ``seen``, None unless there is one for each.

    >>> lines = b"T\\n/a file 8188 0 -2\\n/b file 4092 0 -3\\n"
    >>> areas = parse_swaps(lines, 4096)
    >>> [(area.path, area.number) for area in number_by_order(areas, {5, 2})]
    [('/a', 2), ('/b', 5)]
    >>> number_by_order(areas, {5}) is None
    True
    """
    numbers = sorted(set(seen))
    if len(numbers) != len(areas):
        return None
    return [replace(area, number=number) for area, number in zip(areas, numbers, strict=True)]


def _table_numbers(proc: str) -> list[SwapArea] | None:
    """Return the areas as the kernel's table has them, None if it cannot be read."""
    try:
        bpf.raise_if_unusable()
        skeleton = bpf.Skeleton("swapareas")
    except MemlensError:
        return None
    try:
        skeleton.run("list_areas")
        with skeleton.mmap_array("areas", mmap.PAGESIZE) as array:
            table = np.frombuffer(bytes(array), AREA, _AREAS)
    except OSError:
        return None
    finally:
        skeleton.close()
    return join_table(read_swap_areas(proc), table)


def join_table(areas: Sequence[SwapArea], table: NDArray[np.void]) -> list[SwapArea] | None:
    """Return the areas with number and slots, None if lines and table do not fit."""
    numbers = np.flatnonzero(table["is_used"]).tolist()
    if [area.pages for area in areas] != table["pages"][numbers].tolist():
        return None  # the table was not read, or an area came or went meanwhile
    return [
        replace(area, number=number, slots=int(table["slots"][number]))
        for area, number in zip(areas, numbers, strict=True)
    ]


def _unescape(name: bytes) -> bytes:
    for escape, plain in _ESCAPES.items():
        name = name.replace(escape, plain)
    return name
