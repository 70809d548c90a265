"""
One pass over all processes: each one's mappings and page table are read at most once.

What is read depends on the question: the slots of private swapped pages, the shared
memory that a process maps or has open, the page frames that it maps.
"""

import os
import stat
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memlens.account.frames import Frames, read_frames
from memlens.account.stretches import stretches
from memlens.errors import MemlensError, ParseError, ProcessGone, Unsupported
from memlens.kernel import features
from memlens.kernel.backing import TMPFS_MAGIC
from memlens.kernel.cgroups import parse_cgroup
from memlens.kernel.maps import Mapping
from memlens.kernel.opening import Opener
from memlens.kernel.pagemap import (
    PAGE_IS_FILE,
    PAGE_IS_HUGE,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    Pagemap,
)
from memlens.kernel.process import ProcessDir
from memlens.kernel.procfs import Meter
from memlens.kernel.shm import Mount, namespace_inode, parse_mounts
from memlens.kernel.syscalls import fstatfs_type, statx_cached
from memlens.pages.bits import PM_FILE, PM_PRESENT
from memlens.pages.decode import find_swap_entries
from memlens.pages.runs import Runs, concat_runs, encode_runs, select_runs, window_runs

_JOIN_PAGES = 512
_MAPPED = 1
ObjectKey = tuple[int, int, int]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Want:
    """
    What a sweep is to read of each process.

    :param swap: slots of private swapped pages.
    :param objects: shared-memory objects that it maps or has open.
    :param present: which pages of these its page table maps.
    :param frames: the page frames that it maps.
    :param pages: with the frames, the addresses they are mapped at.
    """

    swap: bool = False
    objects: bool = False
    present: bool = False
    frames: bool = False
    pages: bool = False


@dataclass(frozen=True, slots=True)
class ObjectUse:
    """
    A shared-memory object in the hands of a process.

    :param key: (device, inode, IPC namespace for System V, else 0).
    :param path: as maps or the descriptor names it, raw.
    :param mapping: the mapping, None if the object is only open.
    :param fd: number of the descriptor, -1 if mapped.
    :param present: pages of the object that the page table maps; None if not asked.
    :param is_huge: whether any of them is mapped by a huge page.
    """

    key: ObjectKey
    path: str
    mapping: Mapping | None
    fd: int = -1
    present: Runs | None = None
    is_huge: bool = False


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """
    What a sweep found of one process.

    :param swap_words: word without flags (area and slot) of each private swapped page,
        sorted and distinct, ``(n,)`` uint64.
    :param swap_pages: address of each such page divided by the page size, ``(n,)`` int64,
        in the order of addresses.
    :param is_swap_hidden: whether there are such pages whose slots may not be seen.
    :param frames: what it maps, None if not asked.
    """

    pid: int
    name: str
    uid: int
    cgroup: str
    start_ticks: int
    uses: tuple[ObjectUse, ...]
    swap_words: NDArray[np.uint64]
    swap_pages: NDArray[np.int64]
    is_swap_hidden: bool
    frames: Frames | None
    mount_namespace: int
    ipc_namespace: int


@dataclass(frozen=True, slots=True)
class Missed:
    """Something that a run could not look at, and why."""

    what: str
    reason: str


@dataclass(slots=True)
class Sweep:
    """
    A pass over processes.

    :param proc: root of the /proc to read.
    :param want: what to read.
    :param budget_s: seconds after which it ends, with the rest missed; None for no end.
    """

    proc: str
    want: Want
    budget_s: float | None = None
    on_progress: Progress | None = None
    meter: Meter = field(default_factory=Meter)
    processes: list[ProcessFacts] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)
    mounts: dict[int, tuple[int, list[Mount]]] = field(default_factory=dict)
    gone: int = 0
    unread: int = 0
    _devices: dict[int, bool] = field(default_factory=dict)
    _deadline: float = 0.0
    use_scan: bool = False

    def run(self, pids: Iterable[int] | None = None) -> None:
        """
        Read the processes; what cannot be read is counted and named in ``missed``.

        :param pids: which, all of this /proc if None.
        """
        disabled = features.read_disabled()
        self.use_scan = "pagemap_scan" not in disabled and features.has_pagemap_scan()
        self._deadline = time.monotonic() + (self.budget_s or float("inf"))
        wanted = list(pids) if pids is not None else self.list_pids()
        if self.want.objects:
            self._learn_devices(wanted)
        left = 0
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            for done, facts in enumerate(pool.map(self._read, wanted), 1):
                if isinstance(facts, ProcessFacts):
                    self.processes.append(facts)
                elif facts == _LEFT:
                    left += 1
                if self.on_progress is not None:
                    self.on_progress(done, len(wanted))
        self._report(left)

    def list_pids(self) -> list[int]:
        """
        Return the PIDs of this /proc.

        :raises Unsupported: if it is none.
        """
        try:
            return sorted(int(name) for name in os.listdir(self.proc) if name.isdigit())
        except OSError as error:
            raise Unsupported(
                f"{self.proc} is not a proc file system", path=self.proc
            ) from error

    def is_over(self) -> bool:
        """Return whether the budget is spent."""
        return time.monotonic() > self._deadline

    def _report(self, left: int) -> None:
        if left:
            self.missed.append(Missed(f"{left} processes", "the budget was spent"))
        if self.unread:
            self.missed.append(Missed(f"{self.unread} processes", "of other users: needs root"))
        hidden = sum(facts.is_swap_hidden for facts in self.processes)
        if hidden:
            reason = "swap slots are hidden: needs CAP_SYS_ADMIN"
            self.missed.append(Missed(f"private swapped pages of {hidden} processes", reason))

    def _learn_devices(self, pids: list[int]) -> None:
        """Collect the mounts of every mount namespace, for they tell tmpfs by its device."""
        for pid in pids:
            try:
                fd = os.open(f"{self.proc}/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                namespace = namespace_inode(fd, "mnt")
                if namespace not in self.mounts:
                    self.mounts[namespace] = (pid, self._read_mounts(fd))
            except OSError:
                continue
            finally:
                os.close(fd)
        for _, mounts in self.mounts.values():
            for mount in mounts:
                self._devices[mount.device] = mount.kind in ("tmpfs", "devtmpfs")
        self._devices[_internal_device()] = True

    def _read_mounts(self, process_fd: int) -> list[Mount]:
        fd = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process_fd)
        with os.fdopen(fd, "rb") as file:
            return parse_mounts(file.read())

    def _read(self, pid: int) -> "ProcessFacts | str":
        if self.is_over():
            return _LEFT
        meter = Meter()
        try:
            with ProcessDir(pid, self.proc, meter) as process:
                return _ProcessReader(self, process, meter).read()
        except (ProcessGone, ParseError, EOFError):
            self.gone += 1
        except Unsupported:
            pass
        except (MemlensError, OSError):
            self.unread += 1
        finally:
            self.meter.merge(meter)
        return _SKIPPED

    def is_shmem(self, device: int, look: Callable[[], bool]) -> bool:
        """Return whether a device is a tmpfs; one that no mount names is looked at once."""
        known = self._devices.get(device)
        if known is None:
            # Only unnamed devices (major 0) can be a tmpfs.
            known = self._devices[device] = os.major(device) == 0 and look()
        return known


@dataclass(slots=True)
class _ProcessReader:
    sweep: Sweep
    process: ProcessDir
    meter: Meter

    def read(self) -> ProcessFacts:
        process, want = self.process, self.sweep.want
        size = features.page_size_bytes()
        pagemap = None
        if want.swap or want.present or want.frames:
            pagemap = Pagemap(process.open("pagemap"), size, self.meter, process.path)
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
        if not self.sweep.use_scan:
            return [(first, stop)]
        parts = _scan(pagemap, first, stop, PAGE_IS_SWAPPED, PAGE_IS_SWAPPED)
        return window_runs(concat_runs(parts), _JOIN_PAGES)

    def _uses(self, mappings: list[Mapping], pagemap: Pagemap | None) -> list[ObjectUse]:
        uses = []
        for mapping in mappings:
            if mapping.inode == 0 or not self._is_shmem_mapping(mapping):
                continue
            present, is_huge = None, False
            if pagemap is not None and self.sweep.want.present:
                present, is_huge = self._present(pagemap, mapping)
            key = self._key(_device(mapping.device), mapping.inode, mapping.path)
            uses.append(ObjectUse(key, mapping.path, mapping, present=present, is_huge=is_huge))
        return [*uses, *self._open_uses()]

    def _is_shmem_mapping(self, mapping: Mapping) -> bool:
        def look() -> bool:
            return self._opener().facts(mapping).kind == "shmem"

        return self.sweep.is_shmem(_device(mapping.device), look)

    def _key(self, device: int, inode: int, path: str) -> ObjectKey:
        # System V names its objects by identifier, which every IPC namespace counts anew.
        is_sysv = path.startswith("/SYSV")
        return device, inode, self._namespace("ipc") if is_sysv else 0

    def _present(self, pagemap: Pagemap, mapping: Mapping) -> tuple[Runs, bool]:
        """Return the pages of the object that this page table maps, and if any is huge."""
        size = pagemap.page_size_bytes
        first, stop = mapping.start // size, mapping.stop // size
        is_huge = False
        if self.sweep.use_scan:
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

        if not self.sweep.is_shmem(status.device, look):
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


def _device(text: str) -> int:
    major, _, minor = text.partition(":")
    return os.makedev(int(major, 16), int(minor, 16))


def _internal_device() -> int:
    """Return the device of the kernel's own tmpfs: memfds and shared anonymous memory."""
    fd = os.memfd_create("memlens", os.MFD_CLOEXEC)
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


_LEFT = "left"
_SKIPPED = "skipped"
_NOTHING = np.empty(0, np.uint64)
_NO_PAGES = np.empty(0, np.int64)
