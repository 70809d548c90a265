"""What a recipe for a specimen is, and the recipes for private memory."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from memlens.kernel.syscalls import MAP_PRIVATE, libc
from memlens.selftest.memory import (
    HUGE_PAGE,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    PAGE,
    HeldFault,
    Region,
    map_region,
)
from memlens.selftest.specimens import PAGES

_PR_SET_PDEATHSIG = 1
_THP = "/sys/kernel/mm/transparent_hugepage/enabled"
_HUGE_PAGES = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"
Expected = list[tuple[int, tuple[str, ...]]]


class CannotMake(Exception):
    """This kind of memory cannot be had here; the text says why."""


@dataclass(frozen=True, slots=True)
class Bench:
    """
    What recipes may use.

    :param swap: ``none``, ``zram`` or ``slow``.
    :param why_no_swap: the reason if it is ``none``.
    """

    swap: str
    why_no_swap: str

    def on_swap(self) -> tuple[str, ...]:
        """Return what a shared page on swap may be: a slow device leaves a copy in RAM."""
        return ("swapped",) if self.swap == "zram" else ("swapped", "swap_cached")

    def page_out(self, region: Region) -> Region:
        """
        Ask the kernel to swap pages out.

        :raises CannotMake: if there is no swap.
        """
        if self.swap == "none":
            raise CannotMake(self.why_no_swap)
        return region.advise(MADV_PAGEOUT)


@dataclass(slots=True)
class Made:
    """
    A specimen that was made.

    :param region: its pages.
    :param expected: what they are.
    :param figures: what this process must see of them: pages of ``Rss``, ``Swap`` and
        ``AnonHugePages`` (smaps) and ``resident`` (mincore).
    :param held: what must stay open or alive for it.
    :param is_forked: whether a child shares it, while all others are kept out of it.
    :param is_borrowed: whether it was there before, and must stay.
    """

    region: Region
    expected: Expected
    figures: dict[str, int] = field(default_factory=dict)
    held: list[object] = field(default_factory=list)
    is_forked: bool = False
    is_borrowed: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """
    How to make one specimen.

    :param family: the kind of memory, a heading.
    :param how: how it is made.
    :param make: makes it; raises CannotMake or OSError if it cannot.
    """

    family: str
    how: str
    make: Callable[[Bench], Made]


def all_pages(region: Region, *labels: str) -> Expected:
    """Return that all pages of a region may be in these classes."""
    return [(region.pages, labels)]


class Child:
    """A fork of this process that does nothing, and ends with it."""

    def __init__(self) -> None:
        self.pid = os.fork()
        if not self.pid:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            # Who waits for the end of the maker's output must not wait for this one.
            os.closerange(0, 3)
            signal.pause()
            os._exit(0)

    def __del__(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _written(_: Bench) -> Made:
    region = map_region(PAGES).advise(MADV_NOHUGEPAGE).write()
    return Made(region, all_pages(region, "present"), {"Rss": PAGES, "Swap": 0})


def _untouched(_: Bench) -> Made:
    region = map_region(PAGES)
    return Made(region, all_pages(region, "none"), {"Rss": 0, "Swap": 0})


def _read(_: Bench) -> Made:
    region = map_region(PAGES).advise(MADV_NOHUGEPAGE).read()
    # The zero page is not in Rss, which tells it from a page of its own.
    return Made(region, all_pages(region, "zero"), {"Rss": 0, "Swap": 0})


def _huge(_: Bench) -> Made:
    region = _huge_region().write()
    figures = {"Rss": region.pages, "AnonHugePages": region.pages}
    return Made(region, all_pages(region, "present"), figures)


def _huge_read(_: Bench) -> Made:
    region = _huge_region().read()
    return Made(region, all_pages(region, "zero"), {"Rss": 0, "Swap": 0})


def _huge_region() -> Region:
    if "[never]" in _read_text(_THP, "[never]"):
        raise CannotMake("transparent huge pages are switched off")
    return map_region(HUGE_PAGE // PAGE, align=HUGE_PAGE).advise(MADV_HUGEPAGE)


def _given_back(_: Bench) -> Made:
    region = map_region(PAGES).write().advise(MADV_DONTNEED)
    return Made(region, all_pages(region, "none"), {"Rss": 0, "Swap": 0})


def _swapped(bench: Bench) -> Made:
    region = bench.page_out(map_region(PAGES).advise(MADV_NOHUGEPAGE).write())
    return Made(region, all_pages(region, "swapped"), {"Rss": 0, "Swap": PAGES})


def _forked(_: Bench) -> Made:
    region = map_region(PAGES).advise(MADV_NOHUGEPAGE).write()
    made = Made(region, all_pages(region, "present"), {"Rss": PAGES, "Swap": 0})
    return _share(made)


def _swapped_forked(bench: Bench) -> Made:
    # Before the fork: pages that two processes map are left out by MADV_PAGEOUT.
    return _share(_swapped(bench))


def _share(made: Made) -> Made:
    made.is_forked = True
    made.held.append(Child())
    return made


def _guard(_: Bench) -> Made:
    region = map_region(PAGES).write()
    try:
        region.advise(MADV_GUARD_INSTALL)
    except OSError as error:
        raise CannotMake("this kernel has no guard regions") from error
    return Made(region, all_pages(region, "guard"), {"Rss": 0, "Swap": 0})


def _marked(_: Bench) -> Made:
    fault, region = HeldFault(), map_region(PAGES)
    fault.protect(region.address, region.size_bytes)
    return Made(region, all_pages(region, "none"), {"Rss": 0, "Swap": 0}, [fault])


def _poisoned(_: Bench) -> Made:
    fault, region = HeldFault(), map_region(PAGES)
    fault.poison(region.address, region.size_bytes)
    return Made(region, all_pages(region, "poisoned"), {"Rss": 0, "Swap": 0}, [fault])


def _hugetlb(_: Bench) -> Made:
    if not int(_read_text(_HUGE_PAGES, "0")):
        raise CannotMake("no huge pages are free (vm.nr_hugepages)")
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB
    region = map_region(HUGE_PAGE // PAGE, flags, align=HUGE_PAGE)
    region.part(0, 1).write()
    return Made(region, all_pages(region, "present"))


def _read_text(path: str, default: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return default


_FAMILY = "private memory"
PRIVATE_RECIPES = (
    Recipe(_FAMILY, "written", _written),
    Recipe(_FAMILY, "never touched", _untouched),
    Recipe(_FAMILY, "only read: the zero page", _read),
    Recipe(_FAMILY, "written, as one huge page", _huge),
    Recipe(_FAMILY, "only read: the huge zero page", _huge_read),
    Recipe(_FAMILY, "written, then given back", _given_back),
    Recipe(_FAMILY, "swapped out", _swapped),
    Recipe(_FAMILY, "written, then forked", _forked),
    Recipe(_FAMILY, "swapped out, then forked", _swapped_forked),
    Recipe(_FAMILY, "guard region", _guard),
    Recipe(_FAMILY, "userfaultfd write-protect marker", _marked),
    Recipe(_FAMILY, "userfaultfd poison", _poisoned),
    Recipe("hugetlbfs", "written", _hugetlb),
)
