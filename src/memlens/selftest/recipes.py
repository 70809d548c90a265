"""
What a recipe for a specimen is, and THE table of recipes.

Most are one pattern: a mapping, steps that are done to it, what its pages then are, and what
its maker must see of them.
"""

import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from memlens.kernel.maps import parse_maps
from memlens.kernel.mounts import RAMFS_MAGIC, TMPFS_MAGIC
from memlens.kernel.procfs import read_file
from memlens.kernel.syscalls import MAP_PRIVATE, fstatfs_type, libc
from memlens.selftest.memory import (
    HUGE_PAGE,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_HUGEPAGE,
    MADV_PAGEOUT,
    MADV_REMOVE,
    MADV_WILLNEED,
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_SHARED,
    PAGE,
    HeldFault,
    Region,
    attach_sysv,
    map_region,
)

# A prime, so that no arithmetic on pages comes out right by chance.
PAGES = 23
_PR_SET_PDEATHSIG = 1
_THP = "/sys/kernel/mm/transparent_hugepage/enabled"
_HUGE_PAGES = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"

# Classes by label: a slow device leaves a copy in RAM of a shared page on swap.
_ON_SWAP = ("swapped", "swap_cached")
Labels = tuple[str, ...]
Figures = dict[str, int]


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

    def narrowed(self, labels: Labels) -> Labels:
        """Return which of some classes pages can be in, with this swap."""
        return ("swapped",) if self.swap == "zram" and labels == _ON_SWAP else labels

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
    :param expected: labels of the classes that they may be in, ``(pages, labels)`` in order.
    :param figures: what this process must see of them: pages of ``Rss``, ``Swap`` and
        ``AnonHugePages`` (smaps) and ``resident`` (mincore).
    :param held: what must stay open or alive for it.
    :param is_borrowed: whether it was there before, and must stay.
    """

    region: Region
    expected: list[tuple[int, Labels]]
    figures: Figures = field(default_factory=dict)
    held: list[object] = field(default_factory=list)
    is_borrowed: bool = False

    @property
    def is_forked(self) -> bool:
        """Return whether a child shares it, while all others are kept out of it."""
        return any(isinstance(one, Child) for one in self.held)


Source = Callable[[], tuple[Region, list[object]]]
# Gives what must stay open or alive for what it does.
Step = Callable[[Bench, Region], object]
# How it is made; steps; the class of all its pages, or those they may be in; ``Made.figures``.
Row = tuple[str, tuple[Step, ...], str | Labels, Figures]


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


def _recipes(family: str, source: Source, *rows: Row) -> tuple[Recipe, ...]:
    return tuple(Recipe(family, row[0], partial(_make, source, row)) for row in rows)


def _make(source: Source, row: Row, bench: Bench) -> Made:
    """Make pages that are all in one class."""
    _, steps, labels, figures = row
    region, held = source()
    held += [step(bench, region) for step in steps]
    labels = (labels,) if isinstance(labels, str) else bench.narrowed(labels)
    return Made(region, [(region.pages, labels)], figures, held)


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


class File:
    """
    An open file without a name, closed with this object.

    :param fd: open for reading and writing.
    :param pages: how long to make it.
    """

    def __init__(self, fd: int, pages: int = PAGES) -> None:
        self.fd = fd
        os.ftruncate(fd, pages * PAGE)

    def __del__(self) -> None:
        os.close(self.fd)

    def fill(self, pages: int = PAGES) -> "File":
        """Write to its first pages with write(2) and bring them to the disk."""
        os.pwrite(self.fd, os.urandom(pages * PAGE), 0)
        os.fsync(self.fd)
        return self

    def preallocate(self, first: int = 0, pages: int = PAGES) -> "File":
        """Give it pages that nobody has written (fallocate)."""
        os.posix_fallocate(self.fd, first * PAGE, pages * PAGE)
        return self

    def drop(self) -> "File":
        """Have its pages leave the page cache."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return self

    def map(self, flags: int = MAP_SHARED) -> tuple[Region, list[object]]:
        """Return a mapping of ``PAGES`` of it, and what must stay open for that."""
        return map_region(PAGES, flags, self.fd), [self]


def _memfd(pages: int = PAGES) -> File:
    return File(os.memfd_create("specimen", os.MFD_CLOEXEC), pages)


def _tmpfs_file() -> File:
    return _unnamed("tmpfs", ("/dev/shm", "/run", tempfile.gettempdir()), is_tmpfs=True)


def _disk_file(pages: int = PAGES) -> File:
    """Return a file that is not in memory only."""
    places = (tempfile.gettempdir(), "/var/tmp", os.path.expanduser("~"), os.getcwd())
    return _unnamed("a disk", places, False, pages)


def _unnamed(what: str, places: tuple[str, ...], is_tmpfs: bool, pages: int = PAGES) -> File:
    for place in places:
        try:
            with tempfile.TemporaryFile(dir=place, buffering=0) as file:
                magic = fstatfs_type(file.fileno())
                if (magic in (TMPFS_MAGIC, RAMFS_MAGIC)) == is_tmpfs:
                    return File(os.dup(file.fileno()), pages)
        except OSError:
            continue
    raise CannotMake(f"no directory on {what} may be written: tried {', '.join(places)}")


def _private() -> tuple[Region, list[object]]:
    return map_region(PAGES).in_base_pages(), []


def _huge() -> tuple[Region, list[object]]:
    if "[never]" in _read_text(_THP, "[never]"):
        raise CannotMake("transparent huge pages are switched off")
    return map_region(_IN_HUGE_PAGE, align=HUGE_PAGE).advise(MADV_HUGEPAGE), []


def _hugetlb() -> tuple[Region, list[object]]:
    if not int(_read_text(_HUGE_PAGES, "0")):
        raise CannotMake("no huge pages are free (vm.nr_hugepages)")
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB
    return map_region(_IN_HUGE_PAGE, flags, align=HUGE_PAGE), []


def _shared_anonymous() -> tuple[Region, list[object]]:
    return map_region(PAGES, MAP_SHARED | MAP_ANONYMOUS), []


def _read_text(path: str, default: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return default


def _plainly(do: Callable[[Region], Region]) -> Step:
    """Return a step that needs nothing but the pages."""

    def step(_: Bench, region: Region) -> None:
        do(region)

    return step


_write, _read = _plainly(Region.write), _plainly(Region.read)
_write_one = _plainly(lambda region: region.part(0, 1).write())
_unmap = _plainly(lambda region: region.advise(MADV_DONTNEED))
_punch = _plainly(lambda region: region.advise(MADV_REMOVE))
_read_ahead = _plainly(lambda region: region.advise(MADV_WILLNEED))
_page_out = Bench.page_out


def _guard(_: Bench, region: Region) -> None:
    try:
        region.advise(MADV_GUARD_INSTALL)
    except OSError as error:
        raise CannotMake("this kernel has no guard regions here") from error


def _fork(_: Bench, __: Region) -> Child:
    # After pages went to swap: those that two processes map are left out by MADV_PAGEOUT.
    return Child()


def _protect(_: Bench, region: Region) -> HeldFault:
    fault = HeldFault()
    fault.protect(region.address, region.size_bytes)
    return fault


def _poison(_: Bench, region: Region) -> HeldFault:
    fault = HeldFault()
    fault.poison(region.address, region.size_bytes)
    return fault


def _every_state(bench: Bench) -> Made:
    """Every state in one mapping, so that every boundary has to be right."""
    file = _memfd(20)
    region, held = file.map()
    region.part(0, 12).write()
    cached_parts = [region.part(3, 4)]
    on_swap: Labels = ("cached",)
    if bench.swap == "none":
        cached_parts.append(region.part(7, 5))
    else:
        bench.page_out(region.part(7, 5))
        on_swap = bench.narrowed(_ON_SWAP)
    for part in cached_parts:
        part.advise(MADV_DONTNEED)
    file.preallocate(15, 3)
    region.part(18, 2).write().advise(MADV_REMOVE)
    rows: list[tuple[int, Labels]] = [
        *((3, ("present",)), (4, ("cached",)), (5, on_swap), (3, ("none",))),
        *((3, ("preallocated",)), (2, ("none",)), (3, ("beyond_end",))),
    ]
    swapped = 0 if bench.swap == "none" else 5
    return Made(region, rows, {"Rss": 3, "Swap": swapped}, held)


def _longer_than_file(_: Bench) -> Made:
    region, held = _disk_file(5).fill(5).map()
    rows: list[tuple[int, Labels]] = [(5, ("cached",)), (PAGES - 5, ("beyond_end",))]
    return Made(region, rows, {"Rss": 0, "Swap": 0, "resident": 5}, held)


def _vvar(_: Bench) -> Made:
    for row in parse_maps(read_file("/proc/self/maps")):
        if row.path == "[vvar]":
            region = Region(row.start, (row.stop - row.start) // PAGE)
            return Made(region, [(region.pages, ("device",))], is_borrowed=True)
    raise CannotMake("this kernel has no [vvar]")


_IN_HUGE_PAGE = HUGE_PAGE // PAGE
_NOT_THERE = {"Rss": 0, "Swap": 0}
_MAPPED = {"Rss": PAGES, "Swap": 0}
_SWAPPED = {"Rss": 0, "Swap": PAGES}
_EMPTY = _NOT_THERE | {"resident": 0}
_CACHED = _NOT_THERE | {"resident": PAGES}
_ALL_HUGE = {"Rss": _IN_HUGE_PAGE, "AnonHugePages": _IN_HUGE_PAGE}

_WRITTEN: Row = ("written", (_write,), "present", _MAPPED)
# What there is of every kind of shared memory.
_SHARED: tuple[Row, ...] = (
    _WRITTEN,
    ("written, then unmapped", (_write, _unmap), "cached", _CACHED),
    ("swapped out", (_write, _page_out), _ON_SWAP, _SWAPPED),
)
# What there is of private mappings of every kind of file.
_COPIES: tuple[Row, ...] = (
    ("private mapping, written: copies", (_write,), "present", _MAPPED),
    ("private copies, swapped out", (_write, _page_out), "swapped", _SWAPPED),
)
_PRIVATE, _ANONYMOUS = "private memory", "shared anonymous memory"
_MEMFD, _DISK = "memfd", "file on disk"
RECIPES = (
    *_recipes(
        _PRIVATE,
        _private,
        _WRITTEN,
        ("never touched", (), "none", _NOT_THERE),
        # The zero page is not in Rss, which tells it from a page of its own.
        ("only read: the zero page", (_read,), "zero", _NOT_THERE),
    ),
    *_recipes(
        _PRIVATE,
        _huge,
        ("written, as one huge page", (_write,), "present", _ALL_HUGE),
        ("only read: the huge zero page", (_read,), "zero", _NOT_THERE),
    ),
    *_recipes(
        _PRIVATE,
        _private,
        ("written, then given back", (_write, _unmap), "none", _NOT_THERE),
        ("swapped out", (_write, _page_out), "swapped", _SWAPPED),
        ("written, then forked", (_write, _fork), "present", _MAPPED),
        ("swapped out, then forked", (_write, _page_out, _fork), "swapped", _SWAPPED),
        ("guard region", (_write, _guard), "guard", _NOT_THERE),
        ("userfaultfd write-protect marker", (_protect,), "none", _NOT_THERE),
        ("userfaultfd poison", (_poison,), "poisoned", _NOT_THERE),
    ),
    *_recipes("hugetlbfs", _hugetlb, ("written", (_write_one,), "present", {})),
    *_recipes(_ANONYMOUS, _shared_anonymous, *_SHARED[:2]),
    *_recipes(_ANONYMOUS, _shared_anonymous, ("never touched", (), "none", _EMPTY)),
    *_recipes(
        _ANONYMOUS,
        _shared_anonymous,
        _SHARED[2],
        (
            "swapped out, then read ahead",
            (_write, _page_out, _read_ahead),
            "swap_cached",
            _SWAPPED | {"resident": PAGES},
        ),
    ),
    *_recipes(_MEMFD, lambda: _memfd().map(), *_SHARED),
    *_recipes(
        _MEMFD,
        lambda: _memfd().fill().map(),
        ("written with write(2), then mapped", (), "cached", _CACHED),
    ),
    *_recipes(
        _MEMFD,
        lambda: _memfd().preallocate().map(),
        ("preallocated (fallocate)", (), "preallocated", _NOT_THERE),
    ),
    *_recipes(
        _MEMFD,
        lambda: _memfd().map(),
        ("written, then punched out", (_write, _punch), "none", _EMPTY),
        ("guard region over pages in RAM", (_write, _guard), "guard", _NOT_THERE),
        ("userfaultfd marker over pages in RAM", (_write, _unmap, _protect), "cached", _CACHED),
        (
            "userfaultfd marker over pages on swap",
            (_write, _page_out, _protect),
            _ON_SWAP,
            _SWAPPED,
        ),
    ),
    *_recipes(_MEMFD, lambda: _memfd().fill().map(MAP_PRIVATE), *_COPIES),
    Recipe(_MEMFD, "every state in one mapping", _every_state),
    *_recipes("tmpfs file", lambda: _tmpfs_file().map(), *_SHARED),
    *_recipes("SysV shared memory", lambda: (attach_sysv(PAGES), []), *_SHARED),
    *_recipes(
        _DISK,
        lambda: _disk_file().fill().map(),
        ("read through the mapping", (_read,), "present", _MAPPED),
        ("in the page cache, never touched", (), "cached", _CACHED),
    ),
    *_recipes(
        _DISK,
        lambda: _disk_file().fill().drop().map(),
        ("dropped from the page cache", (), "on_disk", _EMPTY),
    ),
    *_recipes(_DISK, lambda: _disk_file().map(), ("a hole in the file", (), "none", _EMPTY)),
    Recipe(_DISK, "mapping longer than the file", _longer_than_file),
    *_recipes(_DISK, lambda: _disk_file().fill().map(MAP_PRIVATE), *_COPIES),
    Recipe("kernel", "[vvar], the kernel's clock pages", _vvar),
)
