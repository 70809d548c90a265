"""
What of each file is in the page cache, and how much of that processes map.

Files are told one after the other and not kept: a tree may hold millions.
"""

import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from memlens.errors import MemlensError
from memlens.kernel.cachewalk import walker
from memlens.kernel.processes import FileMappers
from memlens.objects.backing import UNKNOWN, CacheReader, Figures, is_quiet, open_quietly
from memlens.objects.filewalk import FileWalk, OpenFile
from memlens.scan.machine import Machine
from memlens.scan.mappings import MappedPages
from memlens.units import count_of, signed


class FileFigures(NamedTuple):
    """
    What is known of a file: a row of ``FileCache`` as it comes.

    A tree may hold a million, and a tuple costs a fraction of a record.
    """

    path: str
    kind: str
    reason: str
    size_bytes: int | None
    cached_pages: int | None = None
    dirty_pages: int | None = None
    writeback_pages: int | None = None
    evicted_pages: int | None = None
    recently_evicted_pages: int | None = None
    mapped_pages: int | None = None
    device: int | None = None
    inode: int | None = None


class FileScan:
    """
    Looks at files and directories.

    :param paths: as the user names them.
    :param machine: that is asked.
    :param one_file_system: whether to stay on the file system of each directory named.
    :param is_each_once: whether files may come that are not below ``paths``, so that every
        one has to be remembered.

    Iterate ``rows``; ``other_names``, names of files that were told already, ``walk`` and
    ``notes`` are complete when that has ended.
    """

    def __init__(
        self,
        paths: Iterable[str],
        machine: Machine,
        *,
        one_file_system: bool = False,
        is_each_once: bool = False,
    ) -> None:
        self.machine = machine
        self.page_size_bytes = machine.page_size_bytes
        self.paths = list(dict.fromkeys(paths))
        self.walk = FileWalk(machine, one_file_system)
        self.other_names = 0
        self.reader = CacheReader(machine)
        self.mappers = FileMappers(machine)
        self._mapped: MappedPages | None = None
        # From one place only files with several names can come twice.
        self._keeps_all = is_each_once or len(self.paths) > 1
        self._has_mappers = False
        self._seen: set[tuple[int, int]] = set()

    def rows(self) -> Iterator[FileFigures]:
        """
        Yield every file once.

        :raises Unsupported: if there is no /proc.
        """
        self.walk.leases.prefetch()
        self.read_mappers()
        for item in self.walk.iter_files(self.paths):
            row = self._look(item)
            if row is not None:
                yield row

    def close(self) -> None:
        """Close what was kept open; twice is fine."""
        if self._mapped is not None:
            self._mapped.close()

    def read_mappers(self) -> None:
        """Learn who maps what, once."""
        if not self._has_mappers:
            self.mappers.read()
            self._has_mappers = True

    def is_new(self, device: int, inode: int) -> bool:
        """Return whether a file comes for the first time, and remember it."""
        before = len(self._seen)
        self._seen.add((device, inode))
        return len(self._seen) > before

    def _look(self, item: OpenFile) -> FileFigures | None:
        status = item.status
        if status is None:
            return unknown_file(item.path, item.reason)
        is_doubtful = self._keeps_all or status.st_nlink > 1
        if is_doubtful and not self.is_new(status.st_dev, status.st_ino):
            self.other_names += 1
            return None
        return self.look_at(item.path, item.fd, status)

    def look_at(self, path: str, fd: int, status: os.stat_result) -> FileFigures:
        """Return what is known of an open file."""
        size = status.st_size
        try:
            kind = self.reader.kind(fd)
            quiet = self.reader.has_cachestat or is_quiet(fd)
            figures, reason = self.reader.ask(fd, kind, 0, size, quiet)
            if kind == "hugetlb" and size and self.machine.may("cachewalk"):
                figures, reason = _walk_hugetlb(fd, figures, reason)
        except OSError as error:
            kind, reason, figures = "file", os.strerror(error.errno or 0), UNKNOWN
        mapped: int | None = 0
        mappings = self.mappers.find(status, fd, kind) if size else []
        if mappings:
            mapped = self._mapped_pages().count(mappings, -(-size // self.page_size_bytes))
        if figures.cached is not None and mapped is not None:
            # Both were true, at different moments.
            mapped = min(mapped, figures.cached)
        return FileFigures(
            path, kind, reason, size, *figures, mapped, status.st_dev, signed(status.st_ino)
        )

    def notes(self) -> list[str]:
        """Return what limits the numbers, one line each."""
        lines = []
        walk = self.walk
        if self.other_names:
            names = count_of(self.other_names, "other name", "other names")
            lines.append(f"left out: {names} of files that count already")
        if walk.vanished:
            lines.append(f"{count_of(walk.vanished, 'file', 'files')} vanished meanwhile")
        if walk.special:
            lines.append(f"devices, pipes and sockets, never opened: {walk.special}")
        denied = self.mappers.denied + (self._mapped.denied if self._mapped else 0)
        if denied:
            processes = count_of(denied, "process", "processes")
            lines.append(f"mapped: the page tables of {processes} may not be read by this user")
        if not self.reader.has_cachestat:
            lines.append(
                "without cachestat (v6.5): dirty, writeback and evicted are not known, and "
                "of shared memory a copy kept with its swap slot counts as cached"
            )
        return lines

    def cells(self, path: str, file: tuple[int, int], cells: int) -> list[tuple[int, Figures]]:
        """
        Return where in a file its cached pages are, as they are now.

        :param file: device and inode, as ``FileFigures`` has them.
        :param cells: parts of equal length, fewer if the file has fewer pages.
        :return: pages of each part, and its figures; nothing if the path leads to that file no
            more, or it cannot be asked.
        """
        try:
            fd = open_quietly(path)
        except (OSError, ValueError):
            return []
        try:
            status = os.fstat(fd)
            if (status.st_dev, signed(status.st_ino)) != file:
                return []
            return _cells_of(self.reader, fd, status, cells)
        except OSError:
            return []
        finally:
            os.close(fd)

    def _mapped_pages(self) -> MappedPages:
        if self._mapped is None:
            self._mapped = MappedPages(self.machine)
        return self._mapped


def _cells_of(
    reader: CacheReader, fd: int, status: os.stat_result, cells: int
) -> list[tuple[int, Figures]]:
    size = reader.page_size_bytes
    pages = -(-status.st_size // size)
    cells = min(cells, pages)
    kind, quiet = reader.kind(fd), is_quiet(fd)
    found = []
    for number in range(cells):
        first, stop = pages * number // cells, pages * (number + 1) // cells
        end = min(stop * size, status.st_size)
        figures, _ = reader.ask(fd, kind, first * size, end, quiet)
        if figures.cached is None:
            return []
        found.append((stop - first, figures))
    return found


def unknown_file(path: str, reason: str, size_bytes: int | None = None) -> FileFigures:
    """Return the row of a file that cannot be looked at."""
    return FileFigures(path, "", reason, size_bytes)


def _walk_hugetlb(fd: int, figures: Figures, reason: str) -> tuple[Figures, str]:
    """Ask the page-cache walk, the only one that knows, where it can be used."""
    try:
        records = walker().walk_fd(fd)
    except (MemlensError, OSError):
        return figures, reason
    return Figures(int(records.pages.sum())), ""
