"""Recipes for memory with an object: shared memory, files on disk, the kernel's own."""

import mmap
import os
import tempfile
from collections.abc import Callable
from functools import partial

from memlens.kernel.maps import parse_maps
from memlens.kernel.mounts import RAMFS_MAGIC, TMPFS_MAGIC
from memlens.kernel.procfs import read_file
from memlens.kernel.syscalls import MAP_PRIVATE, fstatfs_type
from memlens.selftest.memory import (
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_REMOVE,
    MADV_WILLNEED,
    MAP_ANONYMOUS,
    MAP_SHARED,
    PAGE,
    HeldFault,
    Region,
    attach_sysv,
    map_region,
)
from memlens.selftest.recipes_private import (
    Bench,
    CannotMake,
    Expected,
    Made,
    Recipe,
    all_pages,
)
from memlens.selftest.specimens import PAGES

_NOTHING = {"Rss": 0, "Swap": 0, "resident": 0}
_CACHED = {"Rss": 0, "Swap": 0, "resident": PAGES}
_MAPPED = {"Rss": PAGES, "Swap": 0}


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

    def map(self, flags: int = MAP_SHARED, pages: int = PAGES) -> Region:
        """Return a mapping of it."""
        return map_region(pages, flags, self.fd)


def memfd(pages: int = PAGES) -> File:
    """Return a memfd."""
    return File(os.memfd_create("specimen", os.MFD_CLOEXEC), pages)


def tmpfs_file() -> File:
    """Return a file on tmpfs."""
    return _unnamed("tmpfs", ("/dev/shm", "/run", tempfile.gettempdir()), is_tmpfs=True)


def disk_file(pages: int = PAGES) -> File:
    """Return a file that is not in memory only."""
    places = (tempfile.gettempdir(), "/var/tmp", os.path.expanduser("~"), os.getcwd())
    file = _unnamed("a disk", places, is_tmpfs=False)
    os.ftruncate(file.fd, pages * PAGE)
    return file


def _unnamed(what: str, places: tuple[str, ...], is_tmpfs: bool) -> File:
    for place in places:
        try:
            with tempfile.TemporaryFile(dir=place, buffering=0) as file:
                magic = fstatfs_type(file.fileno())
                if (magic in (TMPFS_MAGIC, RAMFS_MAGIC)) == is_tmpfs:
                    return File(os.dup(file.fileno()))
        except OSError:
            continue
    raise CannotMake(f"no directory on {what} may be written: tried {', '.join(places)}")


def _shared_anonymous() -> tuple[Region, list[object]]:
    return map_region(PAGES, MAP_SHARED | MAP_ANONYMOUS), []


def _of_memfd() -> tuple[Region, list[object]]:
    file = memfd()
    return file.map(), [file]


def _of_tmpfs() -> tuple[Region, list[object]]:
    file = tmpfs_file()
    return file.map(), [file]


def _of_sysv() -> tuple[Region, list[object]]:
    return attach_sysv(PAGES), []


Source = Callable[[], tuple[Region, list[object]]]


def _written(source: Source, _: Bench) -> Made:
    region, held = source()
    return Made(region.write(), all_pages(region, "present"), _MAPPED, held)


def _unmapped(source: Source, _: Bench) -> Made:
    region, held = source()
    region.write().advise(MADV_DONTNEED)
    return Made(region, all_pages(region, "cached"), _CACHED, held)


def _untouched(source: Source, _: Bench) -> Made:
    region, held = source()
    return Made(region, all_pages(region, "none"), _NOTHING, held)


def _swapped(source: Source, bench: Bench) -> Made:
    region, held = source()
    bench.page_out(region.write())
    expected = all_pages(region, *bench.on_swap())
    return Made(region, expected, {"Rss": 0, "Swap": PAGES}, held)


def _read_ahead(source: Source, bench: Bench) -> Made:
    region, held = source()
    bench.page_out(region.write()).advise(MADV_WILLNEED)
    figures = {"Rss": 0, "Swap": PAGES, "resident": PAGES}
    return Made(region, all_pages(region, "swap_cached"), figures, held)


def _recipes(family: str, source: Source, *hows: str) -> tuple[Recipe, ...]:
    return tuple(Recipe(family, how, partial(_STATES[how], source)) for how in hows)


_STATES: dict[str, Callable[[Source, Bench], Made]] = {
    "written": _written,
    "written, then unmapped": _unmapped,
    "never touched": _untouched,
    "swapped out": _swapped,
    "swapped out, then read ahead": _read_ahead,
}
_SOME = ("written", "written, then unmapped", "swapped out")


def _written_by_call(_: Bench) -> Made:
    file = memfd().fill()
    region = file.map()
    return Made(region, all_pages(region, "cached"), _CACHED, [file])


def _preallocated(_: Bench) -> Made:
    file = memfd()
    os.posix_fallocate(file.fd, 0, PAGES * PAGE)
    region = file.map()
    return Made(region, all_pages(region, "preallocated"), {"Rss": 0, "Swap": 0}, [file])


def _punched(_: Bench) -> Made:
    file = memfd()
    region = file.map().write().advise(MADV_REMOVE)
    return Made(region, all_pages(region, "none"), _NOTHING, [file])


def _guarded(_: Bench) -> Made:
    file = memfd()
    region = file.map().write()
    try:
        region.advise(MADV_GUARD_INSTALL)
    except OSError as error:
        raise CannotMake("this kernel has no guard regions over files") from error
    return Made(region, all_pages(region, "guard"), {"Rss": 0, "Swap": 0}, [file])


def _marked(_: Bench) -> Made:
    file, fault = memfd(), HeldFault()
    region = file.map().write().advise(MADV_DONTNEED)
    fault.protect(region.address, region.size_bytes)
    return Made(region, all_pages(region, "cached"), _CACHED, [file, fault])


def _marked_swapped(bench: Bench) -> Made:
    file, fault = memfd(), HeldFault()
    region = bench.page_out(file.map().write())
    fault.protect(region.address, region.size_bytes)
    figures = {"Rss": 0, "Swap": PAGES}
    return Made(region, all_pages(region, *bench.on_swap()), figures, [file, fault])


def _patchwork(bench: Bench) -> Made:
    """Every state in one mapping, so that every boundary has to be right."""
    file = memfd(20)
    region = file.map()
    region.part(0, 12).write()
    cached_parts = [region.part(3, 4)]
    on_swap: tuple[str, ...] = ("cached",)
    if bench.swap == "none":
        cached_parts.append(region.part(7, 5))
    else:
        bench.page_out(region.part(7, 5))
        on_swap = bench.on_swap()
    for part in cached_parts:
        part.advise(MADV_DONTNEED)
    os.posix_fallocate(file.fd, 15 * PAGE, 3 * PAGE)
    region.part(18, 2).write().advise(MADV_REMOVE)
    rows: Expected = [
        *((3, ("present",)), (4, ("cached",)), (5, on_swap), (3, ("none",))),
        *((3, ("preallocated",)), (2, ("none",)), (3, ("beyond_end",))),
    ]
    swapped = 0 if bench.swap == "none" else 5
    return Made(region, rows, {"Rss": 3, "Swap": swapped}, [file])


def _private_of(make_file: Callable[[], File]) -> Callable[[Bench], Made]:
    def make(_: Bench) -> Made:
        file = make_file().fill()
        region = file.map(MAP_PRIVATE).write()
        return Made(region, all_pages(region, "present"), _MAPPED, [file])

    return make


def _private_swapped_of(make_file: Callable[[], File]) -> Callable[[Bench], Made]:
    def make(bench: Bench) -> Made:
        file = make_file().fill()
        region = bench.page_out(file.map(MAP_PRIVATE).write())
        figures = {"Rss": 0, "Swap": PAGES}
        return Made(region, all_pages(region, "swapped"), figures, [file])

    return make


def _disk_read(_: Bench) -> Made:
    file = disk_file().fill()
    region = file.map().read()
    return Made(region, all_pages(region, "present"), _MAPPED, [file])


def _disk_cached(_: Bench) -> Made:
    file = disk_file().fill()
    region = file.map()
    return Made(region, all_pages(region, "cached"), _CACHED, [file])


def _disk_dropped(_: Bench) -> Made:
    file = disk_file().fill()
    os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    region = file.map()
    return Made(region, all_pages(region, "on_disk"), _NOTHING, [file])


def _disk_hole(_: Bench) -> Made:
    file = disk_file()
    region = file.map()
    return Made(region, all_pages(region, "none"), _NOTHING, [file])


def _disk_short(_: Bench) -> Made:
    file = disk_file(5).fill(5)
    region = file.map()
    expected: Expected = [(5, ("cached",)), (PAGES - 5, ("beyond_end",))]
    return Made(region, expected, {"Rss": 0, "Swap": 0, "resident": 5}, [file])


def _vvar(_: Bench) -> Made:
    for row in parse_maps(read_file("/proc/self/maps")):
        if row.path == "[vvar]":
            region = Region(row.start, (row.stop - row.start) // mmap.PAGESIZE)
            return Made(region, all_pages(region, "device"), is_borrowed=True)
    raise CannotMake("this kernel has no [vvar]")


_SHARED, _MEMFD = "shared anonymous memory", "memfd"
_DISK = "file on disk"
SHARED_RECIPES = (
    *_recipes(_SHARED, _shared_anonymous, *_STATES),
    *_recipes(_MEMFD, _of_memfd, *_SOME),
    Recipe(_MEMFD, "written with write(2), then mapped", _written_by_call),
    Recipe(_MEMFD, "preallocated (fallocate)", _preallocated),
    Recipe(_MEMFD, "written, then punched out", _punched),
    Recipe(_MEMFD, "guard region over pages in RAM", _guarded),
    Recipe(_MEMFD, "userfaultfd marker over pages in RAM", _marked),
    Recipe(_MEMFD, "userfaultfd marker over pages on swap", _marked_swapped),
    Recipe(_MEMFD, "private mapping, written: copies", _private_of(memfd)),
    Recipe(_MEMFD, "private copies, swapped out", _private_swapped_of(memfd)),
    Recipe(_MEMFD, "every state in one mapping", _patchwork),
    *_recipes("tmpfs file", _of_tmpfs, *_SOME),
    *_recipes("SysV shared memory", _of_sysv, *_SOME),
    Recipe(_DISK, "read through the mapping", _disk_read),
    Recipe(_DISK, "in the page cache, never touched", _disk_cached),
    Recipe(_DISK, "dropped from the page cache", _disk_dropped),
    Recipe(_DISK, "a hole in the file", _disk_hole),
    Recipe(_DISK, "mapping longer than the file", _disk_short),
    Recipe(_DISK, "private mapping, written: copies", _private_of(disk_file)),
    Recipe(_DISK, "private copies, swapped out", _private_swapped_of(disk_file)),
    Recipe("kernel", "[vvar], the kernel's clock pages", _vvar),
)
