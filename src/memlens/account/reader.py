"""One process of a sweep: its mappings and its page table, read at most once."""

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memlens.account.facts import ObjectKey, ObjectUse, ProcessFacts, Want
from memlens.account.frames import read_frames
from memlens.account.stretches import stretches
from memlens.errors import MemlensError
from memlens.kernel import features
from memlens.kernel.backing import TMPFS_MAGIC
from memlens.kernel.cgroups import parse_cgroup
from memlens.kernel.maps import Mapping
from memlens.kernel.opening import Opener, device_number
from memlens.kernel.pagemap import (
    PAGE_IS_FILE,
    PAGE_IS_HUGE,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    Pagemap,
)
from memlens.kernel.process import ProcessDir
from memlens.kernel.shm import namespace_inode
from memlens.kernel.syscalls import fstatfs_type, statx_cached
from memlens.pages.bits import PM_FILE, PM_PRESENT
from memlens.pages.decode import find_swap_entries
from memlens.pages.runs import Runs, concat_runs, encode_runs, select_runs, window_runs

_JOIN_PAGES = 512
_MAPPED = 1


@dataclass(slots=True)
class ShmemDevices:
    """Which devices are tmpfs; one that no mount names is looked at once."""

    known: dict[int, bool] = field(default_factory=dict)

    def is_shmem(self, device: int, look: Callable[[], bool]) -> bool:
        """
        Return whether a device is a tmpfs.

        :param device: as ``st_dev``.
        :param look: finds out from an object on it.
        """
        known = self.known.get(device)
        if known is None:
            # Only unnamed devices (major 0) can be a tmpfs.
            known = self.known[device] = os.major(device) == 0 and look()
        return known


@dataclass(slots=True)
class ProcessReader:
    """
    Reads one process of a sweep.

    :param process: the process.
    :param want: what to read.
    :param use_scan: whether PAGEMAP_SCAN may be used.
    :param devices: which devices are tmpfs.
    """

    process: ProcessDir
    want: Want
    use_scan: bool
    devices: "ShmemDevices"

    def read(self) -> ProcessFacts:
        """
        Return what the process holds.

        :raises MemlensError: if it is gone or may not be read.
        """
        process, want = self.process, self.want
        size = features.page_size_bytes()
        pagemap = None
        if want.swap or want.present or want.frames:
            pagemap = Pagemap(process.open("pagemap"), size, self.process.meter, process.path)
        try:
            mappings = [m for m in process.read_maps() if m.start < 1 << 63]
            words, pages = _NOTHING, _NO_PAGES
            frames = None
            if pagemap is not None and want.frames:
                frames = read_frames(pagemap, mappings, self._is_hugetlb, want.pages)
                words, pages = frames.swap_words, frames.swap_pages
            elif pagemap is not None and want.swap:
                words, pages = self._read_swap(pagemap, mappings)
            uses = self._uses(mappings, pagemap) if want.objects else []
        finally:
            if pagemap is not None:
                pagemap.close()
        is_hidden = bool(len(words)) and not features.is_pfn_visible()
        return ProcessFacts(
            pid=process.pid,
            name=process.stat.name,
            uid=self._uid(),
            cgroup=self._cgroup(),
            start_ticks=process.stat.start_ticks,
            uses=tuple(uses),
            swap_words=_NOTHING if is_hidden else np.unique(words),
            swap_pages=_NO_PAGES if is_hidden else pages,
            is_swap_hidden=is_hidden,
            frames=frames,
            mount_namespace=self._namespace("mnt"),
            ipc_namespace=self._namespace("ipc"),
        )

    def _uid(self) -> int:
        """Return the effective UID; the directory's owner is root if it is not dumpable."""
        for line in self.process.read("status").split(b"\n"):
            if line.startswith(b"Uid:"):
                return int(line.split()[2])
        return os.fstat(self.process.fd).st_uid

    def _cgroup(self) -> str:
        try:
            return parse_cgroup(self.process.read("cgroup"))
        except MemlensError:
            return ""

    def _namespace(self, name: str) -> int:
        try:
            return namespace_inode(self.process.fd, name)
        except OSError:
            return 0

    def _is_hugetlb(self, mapping: Mapping) -> bool:
        return self._opener().facts(mapping).kind == "hugetlb"

    def _opener(self) -> Opener:
        return Opener(self.process, features.read_disabled(), features.page_size_bytes())

    def _read_swap(
        self, pagemap: Pagemap, mappings: list[Mapping]
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return area and slot of each private swapped page, and the page's number."""
        found: list[NDArray[np.uint64]] = []
        where: list[NDArray[np.int64]] = []
        for first, stop in stretches(mappings, pagemap.page_size_bytes):
            for begin, end in self._swapped_windows(pagemap, first, stop):
                for page, words in pagemap.iter_words(begin, end - begin):
                    slots, pages = find_swap_entries(words, page)
                    found.append(slots)
                    where.append(pages)
        if not found:
            return _NOTHING, _NO_PAGES
        return np.concatenate(found), np.concatenate(where)

    def _swapped_windows(
        self, pagemap: Pagemap, first: int, stop: int
    ) -> Iterable[tuple[int, int]]:
        if not self.use_scan:
            return [(first, stop)]
        parts = _scan(pagemap, first, stop, PAGE_IS_SWAPPED, PAGE_IS_SWAPPED)
        return window_runs(concat_runs(parts), _JOIN_PAGES)

    def _uses(self, mappings: list[Mapping], pagemap: Pagemap | None) -> list[ObjectUse]:
        uses = []
        for mapping in mappings:
            if mapping.inode == 0 or not self._is_shmem_mapping(mapping):
                continue
            present, is_huge = None, False
            if pagemap is not None and self.want.present:
                present, is_huge = self._present(pagemap, mapping)
            key = self._key(device_number(mapping.device), mapping.inode, mapping.path)
            uses.append(ObjectUse(key, mapping.path, mapping, present=present, is_huge=is_huge))
        return [*uses, *self._open_uses()]

    def _is_shmem_mapping(self, mapping: Mapping) -> bool:
        def look() -> bool:
            return self._opener().facts(mapping).kind == "shmem"

        return self.devices.is_shmem(device_number(mapping.device), look)

    def _key(self, device: int, inode: int, path: str) -> ObjectKey:
        # System V names its objects by identifier, which every IPC namespace counts anew.
        is_sysv = path.startswith("/SYSV")
        return device, inode, self._namespace("ipc") if is_sysv else 0

    def _present(self, pagemap: Pagemap, mapping: Mapping) -> tuple[Runs, bool]:
        """Return the pages of the object that this page table maps, and if any is huge."""
        size = pagemap.page_size_bytes
        first, stop = mapping.start // size, mapping.stop // size
        is_huge = False
        if self.use_scan:
            # In a private mapping only pages of the file are the object's.
            needed = PAGE_IS_PRESENT | (0 if mapping.is_shared else PAGE_IS_FILE)
            runs = concat_runs(
                _scan(pagemap, first, stop, PAGE_IS_PRESENT, needed | PAGE_IS_HUGE)
            )
            runs = select_runs(runs, (runs.value & needed) == needed)
            is_huge = bool((runs.value & PAGE_IS_HUGE).any())
        else:
            bits = PM_PRESENT | PM_FILE
            parts = [
                encode_runs(((words & bits) == bits).astype(np.uint8), page)
                for page, words in pagemap.iter_words(first, stop - first)
            ]
            runs = concat_runs([select_runs(part, part.value != 0) for part in parts])
        pgoff = mapping.offset_bytes // size
        ones = np.full(len(runs), _MAPPED, np.uint8)
        return Runs(runs.first - first + pgoff, runs.pages, ones), is_huge

    def _open_uses(self) -> list[ObjectUse]:
        uses: list[ObjectUse] = []
        try:
            fd = os.open(
                "fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.process.fd
            )
        except OSError:
            return uses
        try:
            for name in os.listdir(fd):
                use = self._open_use(fd, name)
                if use is not None:
                    uses.append(use)
        finally:
            os.close(fd)
        return uses

    def _open_use(self, directory: int, name: str) -> ObjectUse | None:
        try:
            status = statx_cached(name, directory)
        except OSError:
            return None
        if not stat.S_ISREG(status.mode):
            return None

        def look() -> bool:
            return _is_tmpfs_fd(directory, name)

        if not self.devices.is_shmem(status.device, look):
            return None
        try:
            path = os.readlink(name, dir_fd=directory)
        except OSError:
            return None
        key = self._key(status.device, status.inode, path)
        return ObjectUse(key, path, None, fd=int(name))


def _scan(pagemap: Pagemap, first: int, stop: int, any_of: int, wanted: int) -> list[Runs]:
    size = np.uint64(pagemap.page_size_bytes)
    parts = []
    for regions in pagemap.scan(first, stop - first, any_of, wanted):
        begin = (regions[:, 0] // size).astype(np.int64)
        end = (regions[:, 1] // size).astype(np.int64)
        parts.append(Runs(begin, end - begin, regions[:, 2].astype(np.uint8)))
    return parts


def _is_tmpfs_fd(directory: int, name: str) -> bool:
    try:
        handle = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return False
    try:
        return fstatfs_type(handle) == TMPFS_MAGIC
    finally:
        os.close(handle)


_NOTHING = np.empty(0, np.uint64)
_NO_PAGES = np.empty(0, np.int64)
