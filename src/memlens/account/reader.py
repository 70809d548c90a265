"""One process of a sweep: its mappings and its page table, read at most once."""

import os
import stat
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Thread

import numpy as np

from memlens.account.charges import Charges
from memlens.account.facts import ObjectKey, ObjectUse, ProcessFacts, Want, Who
from memlens.account.frames import Frames, read_frames
from memlens.account.mapcounts import sum_frames
from memlens.account.slots import Slots, read_slots
from memlens.errors import MemlensError
from memlens.kernel import features
from memlens.kernel.backing import TMPFS_MAGIC
from memlens.kernel.cgroups import parse_cgroup
from memlens.kernel.kpage import KpageFile
from memlens.kernel.maps import Mapping
from memlens.kernel.opening import Opener, device_number
from memlens.kernel.pagemap import (
    PAGE_IS_FILE,
    PAGE_IS_HUGE,
    PAGE_IS_PRESENT,
    Pagemap,
)
from memlens.kernel.process import ProcessDir
from memlens.kernel.shm import namespace_inode
from memlens.kernel.swaps import parse_meminfo
from memlens.kernel.syscalls import fstatfs_type, statx_cached
from memlens.pages.bits import PM_FILE, PM_PRESENT
from memlens.pages.distinct import distinct
from memlens.pages.runs import Runs, concat_runs, encode_runs, select_runs

# A file system that takes longer to say what it is is not asked again.
_PATIENCE_S = 2.0
_MAPPED = 1


@dataclass(slots=True)
class ShmemDevices:
    """Which devices are tmpfs; one that no mount names is looked at once."""

    known: dict[int, bool] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)

    def is_shmem(self, device: int, look: Callable[[], bool]) -> bool:
        """
        Return whether a device is a tmpfs.

        :param device: as ``st_dev``.
        :param look: finds out from an object on it.
        """
        known = self.known.get(device)
        if known is None:
            # Only unnamed devices (major 0) can be a tmpfs.
            known = self.known[device] = os.major(device) == 0 and self._ask(device, look)
        return known

    def _ask(self, device: int, look: Callable[[], bool]) -> bool:
        """Look in another thread: what no mount names may be a detached FUSE that hangs."""
        answer: Future[bool] = Future()

        def run() -> None:
            try:
                answer.set_result(look())
            except OSError:
                answer.set_result(False)

        Thread(target=run, name="memlens-device", daemon=True).start()
        try:
            return answer.result(_PATIENCE_S)
        except TimeoutError:
            self.silent.add(device)
            return False


@dataclass(frozen=True, slots=True)
class Tools:
    """
    What the readers of one sweep share.

    :param use_scan: whether PAGEMAP_SCAN may be used.
    :param devices: which devices are tmpfs.
    :param flags: an open kpageflags, None if it is not wanted or may not be read.
    :param charges: which cgroups objects are charged to, None if not wanted.
    :param check_stop: raises when the scan is to end.
    """

    use_scan: bool
    devices: ShmemDevices
    flags: KpageFile | None = None
    charges: Charges | None = None
    check_stop: Callable[[], None] = lambda: None


@dataclass(slots=True)
class ProcessReader:
    """
    Reads one process of a sweep.

    :param process: the process.
    :param want: what to read.
    :param tools: what all readers share.
    """

    process: ProcessDir
    want: Want
    tools: Tools

    def read(self) -> ProcessFacts:
        """
        Return what the process holds.

        :raises MemlensError: if it is gone or may not be read.
        """
        process, want = self.process, self.want
        who = Who(process.pid, process.stat.name, self._uid(), self._cgroup())
        is_chosen = want.who(who)
        mappings = [m for m in process.read_maps() if m.start < 1 << 63]
        slots, frames = _NO_SLOTS, None
        uses: list[ObjectUse] = []
        pagemap = self._pagemap() if mappings and want.has_page_table else None
        try:
            if pagemap is not None and want.frames and is_chosen:
                check = self.tools.check_stop
                frames = read_frames(pagemap, mappings, self._is_hugetlb, check)
                slots = Slots(frames.swap_words, _NO_PAGES, _NOTHING, _NO_PAGES)
            elif pagemap is not None and want.swap:
                tools = self.tools
                slots = read_slots(
                    pagemap, mappings, tools.use_scan, tools.flags, tools.check_stop
                )
            if want.objects:
                uses = self._uses(mappings, pagemap)
            if pagemap is not None and not len(pagemap.read_words(_first_page(mappings), 1)):
                # The page table went away under the reader: it ended, or runs another program.
                raise process.gone_error()
        finally:
            if pagemap is not None:
                pagemap.close()
        rollup = self._rollup() if want.rollup and is_chosen else {}
        return self._facts(who, slots, frames, uses, rollup)

    def _pagemap(self) -> Pagemap:
        process = self.process
        size = features.page_size_bytes()
        return Pagemap(process.open("pagemap"), size, process.meter, process.path)

    def _facts(
        self,
        who: Who,
        slots: Slots,
        frames: Frames | None,
        uses: list[ObjectUse],
        rollup: dict[str, int],
    ) -> ProcessFacts:
        is_hidden = bool(len(slots.words)) and not features.is_pfn_visible()
        sums, kept = None, None
        if frames is not None and self.want.counts is not None:
            sums = sum_frames(frames, self.want.counts)
            kept = frames.distinct() if self.want.keep_frames else None
        return ProcessFacts(
            pid=who.pid,
            name=who.name,
            uid=who.uid,
            cgroup=who.cgroup,
            start_ticks=self.process.stat.start_ticks,
            uses=tuple(uses),
            swap_words=_NOTHING if is_hidden else distinct(slots.words),
            swap_pages=_NO_PAGES if is_hidden else slots.pages,
            is_swap_hidden=is_hidden,
            frames=kept,
            sums=sums,
            ipc_namespace=self._namespace("ipc"),
            cached_pfns=slots.cached_pfns,
            cached_pages=slots.cached_pages,
            rollup=rollup,
        )

    def _rollup(self) -> dict[str, int]:
        """Return smaps_rollup, and of status what counts private pages on swap."""
        lines = self.process.read("smaps_rollup").partition(b"\n")[2]
        figures = parse_meminfo(lines)
        status = parse_meminfo(self.process.read("status"))
        return figures | {name: status[name] for name in ("VmSwap",) if name in status}

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

    def _uses(self, mappings: list[Mapping], pagemap: Pagemap | None) -> list[ObjectUse]:
        uses = []
        for mapping in mappings:
            if mapping.inode == 0 or not self._is_shmem_mapping(mapping):
                continue
            present, is_huge = None, False
            if pagemap is not None and self.want.present:
                present, is_huge = self._present(pagemap, mapping)
            key = self._key(device_number(mapping.device), mapping.inode, mapping.path)
            if pagemap is not None and present is not None and self.tools.charges is not None:
                self.tools.charges.learn(key, pagemap, mapping, present)
            uses.append(ObjectUse(key, mapping.path, mapping, present=present, is_huge=is_huge))
        return [*uses, *self._open_uses()]

    def _is_shmem_mapping(self, mapping: Mapping) -> bool:
        def look() -> bool:
            return self._opener().facts(mapping).kind == "shmem"

        return self.tools.devices.is_shmem(device_number(mapping.device), look)

    def _key(self, device: int, inode: int, path: str) -> ObjectKey:
        # System V names its objects by identifier, which every IPC namespace counts anew.
        is_sysv = path.startswith("/SYSV")
        return device, inode, self._namespace("ipc") if is_sysv else 0

    def _present(self, pagemap: Pagemap, mapping: Mapping) -> tuple[Runs, bool]:
        """Return the pages of the object that this page table maps, and if any is huge."""
        size = pagemap.page_size_bytes
        first, stop = mapping.start // size, mapping.stop // size
        is_huge = False
        if self.tools.use_scan:
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

        if not self.tools.devices.is_shmem(status.device, look):
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


def _first_page(mappings: list[Mapping]) -> int:
    return mappings[0].start // features.page_size_bytes()


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
_NO_SLOTS = Slots(_NOTHING, _NO_PAGES, _NOTHING, _NO_PAGES)
