"""
The swap slots of private pages that are in RAM again: by page frame.

A private page that was read back from swap may keep its slot; it is then in the swap
cache.  Page tables name its frame and kpageflags says that it is in the swap cache
(Documentation/admin-guide/mm/pagemap.rst), but no file says which slot it keeps.  A BPF
program (bpf/frameslots.bpf.c) reads that from the frame's folio
(docs/how-it-works/cachewalk.md).
"""

import ctypes
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from memlens.errors import MemlensError, Unsupported
from memlens.kernel import bpf
from memlens.kernel.kpage import KpageFile, read_sorted
from memlens.kernel.pagemap import Pagemap
from memlens.kernel.procfs import Host
from memlens.kernel.swapareas import (
    TABLE_ROW,
    NumberedArea,
    find_impossible,
    number_by_order,
    number_by_table,
    read_areas,
)

KPF_ANON = 1 << 12
KPF_SWAPCACHE = 1 << 13
_BOTH = np.uint64(KPF_ANON | KPF_SWAPCACHE)
_PM_PRESENT = 1 << 63
_PM_PFN = (1 << 55) - 1

# These mirror bpf/frameslots.bpf.c.
_FRAME = np.dtype([("pfn", "<u8"), ("entry", "<u8")])
_MAX_FRAMES = 1 << 14
_AREA_SHIFT = np.uint64(58)
_SLOT = np.uint64((1 << 58) - 1)

# Own pages that must all lead to the same array; one that moves meanwhile is asked again.
_OWN_PAGES = 8
_TRIES = 4

# Present in BTF where frames are elements of one array, CONFIG_SPARSEMEM_VMEMMAP.
_VMEMMAP_FUNCTION = b"\0vmemmap_populate\0"


class _Control(ctypes.Structure):
    _fields_ = [
        ("pfn", ctypes.c_uint64),
        ("fd", ctypes.c_uint32),
        ("frames", ctypes.c_uint32),
        ("is_good", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    ]


class FrameSlotsInvalid(MemlensError):
    """The kernel's own interfaces contradict what was read: it is void."""


@dataclass(frozen=True, slots=True)
class FrameSlots:
    """
    The slots of frames, in the order in which they were asked.

    :param is_cached: whether the frame is a private page that keeps a slot, ``(n,)`` bool.
    :param area: number of the swap area, ``(n,)`` uint8, 0 if it keeps none.
    :param slot: in that area, ``(n,)`` int64, 0 if it keeps none.
    """

    is_cached: NDArray[np.bool_]
    area: NDArray[np.uint8]
    slot: NDArray[np.int64]


class FrameSlotReader:
    """
    The loaded program, proven on pages of our own; for one thread.

    :param host: whose kpageflags its answers are held against.
    :raises AccessDenied: if this process may not load BPF programs, or see frame numbers.
    :raises Unsupported: if this kernel cannot run this one, or its frames are not one array.
    """

    def __init__(self, host: Host) -> None:
        bpf.raise_if_unusable()
        _raise_if_no_array()
        self._host = host
        self._skeleton = bpf.Skeleton("frameslots")
        try:
            self._control_mmap = self._skeleton.mmap_array("control", mmap.PAGESIZE, True)
            size = _MAX_FRAMES * _FRAME.itemsize
            self._frames_mmap = self._skeleton.mmap_array("frames", size, True)
            self._control: _Control | None = _Control.from_buffer(self._control_mmap)
            self._frames = np.frombuffer(self._frames_mmap, _FRAME)
            self._find_array()
        except BaseException:
            self._skeleton.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap and close everything; a second time does nothing."""
        if self._control is None:
            return
        self._control = None
        self._frames = np.empty(0, _FRAME)
        self._control_mmap.close()
        self._frames_mmap.close()
        self._skeleton.close()

    def read(
        self, pfns: NDArray[np.uint64], areas: list[NumberedArea] | None = None
    ) -> FrameSlots:
        """
        Return the slots that frames keep now.

        Every answer is held against kpageflags, read before and after: a frame of which
        both say the contrary, each time it is looked at, voids them all.  So do two frames
        with the same slot, and a slot outside its area.

        :param pfns: sorted and distinct, ``(n,)`` uint64.
        :param areas: the swap areas in use; read from /proc/swaps if None.
        :raises FrameSlotsInvalid: if the answers are void.
        :raises MemlensError: as the reads give it.
        """
        numbers = pfns.astype(np.int64)
        entries = np.zeros(len(pfns), np.uint64)
        left = np.arange(len(pfns))
        with KpageFile("kpageflags", self._host) as flags:
            for _ in range(_TRIES):
                before = _is_cached(flags, numbers[left])
                entries[left] = self._look(pfns[left])
                after = _is_cached(flags, numbers[left])
                found = entries[left] != 0
                is_denied = (before == after) & (before != found)
                is_open = np.zeros(len(pfns), bool)
                is_open[left[is_denied]] = is_open[_doubles(entries)] = True
                if not is_open.any():
                    break
                left = np.flatnonzero(is_open)
            else:
                raise FrameSlotsInvalid(f"{len(left)} frames contradict kpageflags")
        return _decode(entries, read_areas(self._host) if areas is None else areas)

    def _look(self, pfns: NDArray[np.uint64]) -> NDArray[np.uint64]:
        parts = [np.empty(0, np.uint64)]
        for begin in range(0, len(pfns), _MAX_FRAMES):
            piece = pfns[begin : begin + _MAX_FRAMES]
            asked = self._frames[: len(piece)]
            asked["pfn"], asked["entry"] = piece, 0
            self._run("look", frames=len(piece))
            parts.append(asked["entry"].copy())
        return np.concatenate(parts)

    def _run(self, program: str, pfn: int = 0, fd: int = 0, frames: int = 0) -> bool:
        control = self._control
        if control is None:
            raise ValueError("the reader is closed")
        control.pfn, control.fd, control.frames, control.is_good = pfn, fd, frames, 0
        try:
            self._skeleton.run(program)
        except OSError as error:
            raise Unsupported(f"reading the slots of frames failed: {error}") from error
        return bool(control.is_good)

    def _find_array(self) -> None:
        """Find where the kernel's array of frames begins, and prove it on several pages."""
        pages = [_OwnPage(self._host) for _ in range(_OWN_PAGES)]
        try:
            for program, page in zip(["begin"] + ["agree"] * _OWN_PAGES, pages, strict=False):
                if not self._ask_own(program, page):
                    raise Unsupported("the kernel's page frames are not one array")
        finally:
            for page in pages:
                page.close()

    def _ask_own(self, program: str, page: "_OwnPage") -> bool:
        """Run a program on a page that did not move meanwhile."""
        for _ in range(_TRIES):
            pfn = page.pfn()
            is_good = self._run(program, pfn=pfn, fd=page.fd)
            if pfn and page.pfn() == pfn:
                return is_good
        raise Unsupported("the frames of own pages cannot be seen")


class _OwnPage:
    """A memfd that holds page 0 alone, mapped."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.fd = os.memfd_create("memlens", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, mmap.PAGESIZE)
        self._memory = mmap.mmap(self.fd, mmap.PAGESIZE)
        self._memory[0] = 1

    def pfn(self) -> int:
        """Return the number of its frame now, 0 if it is hidden or not in RAM."""
        self._memory[0] = 1
        address = int(np.frombuffer(self._memory, np.uint8).ctypes.data)
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        pagemap = Pagemap(fd, self._host, "/proc/self/pagemap")
        try:
            words = pagemap.read_words(address // mmap.PAGESIZE, 1)
        finally:
            pagemap.close()
        word = int(words[0]) if len(words) else 0
        return word & _PM_PFN if word & _PM_PRESENT else 0

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)


def _raise_if_no_array() -> None:
    """Raise Unsupported unless frame N is element N of one array, whatever N."""
    try:
        with open(bpf.BTF_PATH, "rb") as file:
            names = file.read()
    except OSError as error:
        raise Unsupported("this kernel does not describe itself", path=bpf.BTF_PATH) from error
    if not names:
        raise Unsupported("this kernel does not describe itself", path=bpf.BTF_PATH)
    if _VMEMMAP_FUNCTION not in names:
        raise Unsupported("the kernel's page frames are not one array", path=bpf.BTF_PATH)


def _is_cached(flags: KpageFile, pfns: NDArray[np.int64]) -> NDArray[np.bool_]:
    words = read_sorted(flags, pfns)
    is_cached: NDArray[np.bool_] = (words & _BOTH) == _BOTH
    return is_cached


def _doubles(entries: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return where frames have a slot that another has as well."""
    order = np.argsort(entries, kind="stable")
    ordered = entries[order]
    is_next = (ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)
    is_double = np.append(is_next, False) | np.append(False, is_next)
    doubles: NDArray[np.int64] = order[is_double[: len(order)]]
    return doubles


def _decode(entries: NDArray[np.uint64], areas: list[NumberedArea]) -> FrameSlots:
    is_cached = entries != 0
    area = (entries >> _AREA_SHIFT).astype(np.uint8)
    slot = (entries & _SLOT).astype(np.int64)
    ones = np.ones(int(is_cached.sum()), np.int64)
    reason = find_impossible(area[is_cached], slot[is_cached], ones, areas)
    if reason:
        raise FrameSlotsInvalid(f"frames with {reason}")
    return FrameSlots(is_cached, area, slot)


# The numbers of swap areas, where only the kernel's own table tells them.


_TABLE_ROWS = 32


def number_areas(host: Host, seen: Iterable[int] = ()) -> list[NumberedArea]:
    """
    Return the swap areas in use with their numbers, as far as these can be known.

    If pages were seen in as many areas as there are, no number can be missing and
    the order of /proc/swaps is enough.  Otherwise a BPF program reads the kernel's
    table; it needs what the page-cache walk needs, CAP_SYSLOG, and a kernel whose
    kallsyms holds data.  Failing that too, ``number`` is None unless the order leaves no
    choice: it is never guessed.

    The numbers hold until an area is switched on or off.

    :param seen: numbers of areas that swapped pages are known to be in.
    """
    areas = read_areas(host)
    by_order = number_by_order(areas, seen) or areas
    if all(area.number is not None for area in by_order):
        return by_order
    return _number_by_table(host) or by_order


def _number_by_table(host: Host) -> list[NumberedArea] | None:
    """Return the areas as the kernel's table has them, None if it cannot be read."""
    try:
        bpf.raise_if_unusable()
        skeleton = bpf.Skeleton("swapareas")
    except MemlensError:
        return None
    try:
        skeleton.run("list_areas")
        with skeleton.mmap_array("areas", mmap.PAGESIZE) as array:
            table = np.frombuffer(bytes(array), TABLE_ROW, _TABLE_ROWS)
    except OSError:
        return None
    finally:
        skeleton.close()
    return number_by_table(read_areas(host), table)
