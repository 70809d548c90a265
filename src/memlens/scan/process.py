"""One process of a sweep: its mappings and its page table, read at most once."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from memlens.errors import MemlensError
from memlens.kernel import features
from memlens.kernel.cgroups import parse_cgroup
from memlens.kernel.maps import (
    KERNEL_HALF,
    Mapping,
    mapped_ranges,
    parse_maps,
    parse_unnamed,
    private_ranges,
)
from memlens.kernel.mounts import TMPFS_MAGIC
from memlens.kernel.process import ProcessDir, list_other_tables
from memlens.kernel.swaps import parse_meminfo
from memlens.kernel.syscalls import fstatfs_type, statx_cached
from memlens.objects.namespaces import ipc_number, namespace_inode
from memlens.objects.opener import Opener, device_number
from memlens.objects.references import is_socket_link
from memlens.pages.arrays import distinct
from memlens.scan.facts import ObjectKey, ObjectUse, ProcessFacts, Want, Who
from memlens.scan.frametable import Frames, FrameTable, Slots, read_frames, read_slots
from memlens.scan.jobs import ask_patiently
from memlens.scan.machine import Machine
from memlens.scan.pagetable import PageTable


@dataclass(slots=True)
class ShmemDevices:
    """
    Which devices are tmpfs; one that no mount names is looked at once.

    ``internal`` is that of memfds and System V segments, -1 if not known; ``hugetlb`` says of
    others whether their huge pages are in no RSS.  ``ipc`` are namespaces that are open.
    """

    known: dict[int, bool] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)
    hugetlb: dict[int, bool] = field(default_factory=dict)
    internal: int = -1
    ipc: set[int] = field(default_factory=set)

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
        is_shmem = ask_patiently(look, False)
        if is_shmem is None:
            self.silent.add(device)
        return bool(is_shmem)


class Tools(NamedTuple):
    """
    What the readers of one sweep share.

    :param machine: what is asked.
    :param devices: which devices are tmpfs.
    :param flags: which frames keep a swap slot, None if not wanted or not to be known.
    """

    machine: Machine
    devices: ShmemDevices
    flags: FrameTable | None = None


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
    _sockets: dict[str, str] = field(default_factory=dict, init=False)

    def read(self) -> ProcessFacts:
        """
        Return what the process holds.

        :raises MemlensError: if it is gone or may not be read.
        """
        process, want = self.process, self.want
        who = self._who() if want.identity else Who(process.pid, process.stat.name, 0, "")
        is_chosen = want.who(who)
        raw = process.read("maps")
        slots, frames = _NO_SLOTS, None
        uses: list[ObjectUse] = []
        table = None
        if raw and want.has_page_table:
            table = PageTable.open(process, self.tools.machine)
        try:
            if table is not None and want.frames and is_chosen:
                frames = self._read_frames(table, raw)
                slots = Slots(frames.swap_words, _NO_PAGES, _NOTHING, _NO_PAGES)
            elif table is not None and want.swap:
                slots = self._read_slots(table, raw)
            if want.objects:
                mappings = parse_unnamed(raw, f"{process.path}/maps")
                uses = self._uses(mappings, table)
            if table is not None and not _is_there(table, raw):
                # The page table went away under the reader: it ended, or runs another program.
                raise process.gone_error()
        finally:
            if table is not None:
                table.close()
        rollup = self._rollup() if want.rollup and is_chosen else {}
        return self._facts(who, slots, frames, uses, rollup)

    def _who(self) -> Who:
        return Who(self.process.pid, self.process.stat.name, self._uid(), self._cgroup())

    def _read_frames(self, table: PageTable, raw: bytes) -> Frames:
        # Huge pages of hugetlb are not in RSS.
        path, size = f"{self.process.path}/maps", table.size
        huge = [(m.start, m.stop) for m in parse_unnamed(raw, path) if self._is_hugetlb(m)]
        if table.use_scan:
            return read_frames(table, _in_pages(mapped_ranges(raw, huge), size))
        every = [m for m in parse_maps(raw, path) if m.start < KERNEL_HALF]
        wanted = _in_pages(
            [place for m in every if (place := (m.start, m.stop)) not in huge], size
        )
        opener = self._opener()
        bare = [m for m in every if not m.inode and opener.facts(m).kind == "anonymous"]
        anonymous = set(_in_pages([(m.start, m.stop) for m in bare], size))
        return read_frames(table, wanted, anonymous)

    def _read_slots(self, table: PageTable, raw: bytes) -> Slots:
        if table.use_scan:
            ranges = private_ranges(raw)
        else:
            ranges = [
                (mapping.start, mapping.stop)
                for mapping in parse_maps(raw, f"{self.process.path}/maps")
                if mapping.start < KERNEL_HALF and not mapping.is_shared
            ]
        return read_slots(table, _in_pages(ranges, table.size), self.tools.flags)

    def _facts(
        self,
        who: Who,
        slots: Slots,
        frames: Frames | None,
        uses: list[ObjectUse],
        rollup: dict[str, int],
    ) -> ProcessFacts:
        is_hidden = bool(len(slots.words)) and not features.is_pfn_visible()
        kept = None
        if frames is not None and self.want.counts is not None:
            self.want.counts.add(who.pid, frames)
            kept = frames.distinct() if self.want.keep_frames else None
        return ProcessFacts(
            pid=who.pid,
            name=who.name,
            uid=who.uid,
            cgroup=who.cgroup,
            start_ticks=self.process.stat.start_ticks,
            uses=tuple(uses),
            swap_words=_NOTHING if is_hidden or not len(slots.words) else distinct(slots.words),
            swap_pages=_NO_PAGES if is_hidden else slots.pages,
            is_swap_hidden=is_hidden,
            frames=kept,
            cached_pfns=slots.cached_pfns,
            cached_pages=slots.cached_pages,
            rollup=rollup or (self._read_vm_swap() if is_hidden else {}),
            tid=self.process.tid,
            arguments=(self.process.stat.arg_start, self.process.stat.arg_stop),
            sockets=self._sockets,
            swap_entries=len(slots.words),
        )

    def _rollup(self) -> dict[str, int]:
        """Return smaps_rollup, and of status what counts private pages on swap."""
        lines = self.process.read("smaps_rollup").partition(b"\n")[2]
        figures = parse_meminfo(lines)
        return figures | self._read_vm_swap()

    def _read_vm_swap(self) -> dict[str, int]:
        status = parse_meminfo(self.process.read("status"))
        return {name: status[name] for name in ("VmSwap",) if name in status}

    def _uid(self) -> int:
        """Return the effective UID; the directory's owner is root if it is not dumpable."""
        # A name with a newline is escaped there.
        line = self.process.read("status").partition(b"\nUid:")[2]
        return int(line.split(None, 2)[1]) if line else os.fstat(self.process.fd).st_uid

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
        devices, device = self.tools.devices, device_number(mapping.device)
        if devices.known.get(device):
            return False
        is_hugetlb = devices.hugetlb.get(device)
        if is_hugetlb is None:
            facts = self._opener().facts(mapping)
            is_hugetlb = facts.kind == "hugetlb"
            if not facts.refusal:
                devices.hugetlb[device] = is_hugetlb
        return is_hugetlb

    def _opener(self) -> Opener:
        return Opener(self.process)

    def _uses(self, mappings: list[Mapping], table: PageTable | None) -> list[ObjectUse]:
        uses = []
        for mapping, stop, count in _join_mappings(mappings):
            if not self._is_shmem_mapping(mapping):
                continue
            key = self._key(device_number(mapping.device), mapping.inode, mapping.path)
            use = ObjectUse(key, mapping.path, mapping, stop=stop, mappings=count)
            if table is not None and (self.want.present or self.want.present_pages):
                use = self._with_present(use, mapping, table)
            uses.append(use)
        return [*uses, *self._open_uses()]

    def _with_present(self, use: ObjectUse, mapping: Mapping, table: PageTable) -> ObjectUse:
        present, is_huge = table.mapped_of(mapping, *use.pages(table.size))
        # Of memory in crumbs these are many: they are not kept for a sum.
        return use._replace(
            present=present if self.want.present else None,
            present_pages=int(present.pages.sum()),
            is_huge=is_huge,
        )

    def _is_shmem_mapping(self, mapping: Mapping) -> bool:
        def look() -> bool:
            return self._opener().facts(mapping).kind == "shmem"

        return self.tools.devices.is_shmem(device_number(mapping.device), look)

    def _key(self, device: int, inode: int, path: str) -> ObjectKey:
        # System V names its objects by identifier, which every IPC namespace counts anew.
        is_sysv = path.startswith("/SYSV") and device == self.tools.devices.internal
        return device, inode, self._namespace("ipc") if is_sysv else 0

    def _open_uses(self) -> list[ObjectUse]:
        process = self.process
        uses = self._uses_of_table("fd", process.tid)
        if process.stat.threads > 1:
            for thread in list_other_tables(process):
                uses += self._uses_of_table(f"task/{thread}/fd", thread)
        return uses

    def _uses_of_table(self, path: str, thread: int) -> list[ObjectUse]:
        uses: list[ObjectUse] = []
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            fd = os.open(path, flags, dir_fd=self.process.fd)
        except OSError:
            return uses
        try:
            for name in os.listdir(fd):
                use = self._open_use(fd, name, thread)
                if use is not None:
                    uses.append(use._replace(tid=thread))
        finally:
            os.close(fd)
        return uses

    def _open_use(self, directory: int, name: str, thread: int) -> ObjectUse | None:
        try:
            path = os.readlink(name, dir_fd=directory)
            # Sockets, pipes and the like have no path: "socket:[7]".
            if not path.startswith("/"):
                if is_socket_link(path):
                    self._sockets[path] = f"{thread}/fdinfo/{name}"
                elif number := ipc_number(path):
                    self.tools.devices.ipc.add(number)
                return None
            status = statx_cached(name, directory)
        except OSError:
            return None
        if not stat.S_ISREG(status.mode):
            return None

        def look() -> bool:
            return _is_tmpfs_fd(directory, name)

        if not self.tools.devices.is_shmem(status.device, look):
            return None
        key = self._key(status.device, status.inode, path)
        return ObjectUse(key, path, None, fd=int(name))


def _join_mappings(mappings: list[Mapping]) -> list[tuple[Mapping, int, int]]:
    """
    Return mappings, where they end and of how many they are: joined in a row.

    mprotect and the like cut one mapping into thousands, that map consecutive parts.
    """
    joined: list[tuple[Mapping, int, int]] = []
    for mapping in mappings:
        if joined:
            first, stop, count = joined[-1]
            is_next = (
                mapping.start == stop
                and mapping.inode == first.inode
                and mapping.device == first.device
                and mapping.is_shared == first.is_shared
                and mapping.offset_bytes == first.offset_bytes + stop - first.start
            )
            if is_next:
                joined[-1] = first, mapping.stop, count + 1
                continue
        joined.append((mapping, mapping.stop, 1))
    return joined


def _in_pages(ranges: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Return ranges of addresses as ranges of pages."""
    return [(start // size, stop // size) for start, stop in ranges]


def _is_there(table: PageTable, raw: bytes) -> bool:
    return table.word(int(raw.partition(b"-")[0], 16) // table.size) is not None


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
