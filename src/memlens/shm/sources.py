"""
Finding shared-memory objects: what processes map and have open, what lies in tmpfs
mounts and among System V segments, each once.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial

from memlens.errors import MemlensError, ParseError, ProcessGone
from memlens.kernel.mounts import HUGETLBFS_MAGIC, TMPFS_MAGIC
from memlens.kernel.process import ProcessDir
from memlens.kernel.syscalls import fstatfs_type
from memlens.objects.backing import Backing
from memlens.objects.leases import Leases
from memlens.objects.namespaces import Entrance, ipc_number
from memlens.objects.opener import REPLACED, VANISHED, Opener, internal_device, reopen
from memlens.objects.overlay import layer_mounts
from memlens.objects.references import is_sealed
from memlens.objects.sysv import SHM_DEST, Segment, open_segment, read_segments
from memlens.objects.tmpfs import SHMEM_TYPES, TmpfsFile
from memlens.report import Missed
from memlens.scan.facts import ObjectKey, ObjectUse, ProcessFacts
from memlens.scan.machine import Stopped
from memlens.scan.sweep import Sweep
from memlens.shm.found import FoundObject
from memlens.shm.segments import settle_segments
from memlens.shm.tmpfs import Place, TmpfsListing

NOT_SHMEM = "not shmem"
GONE = "gone"
_DELETED = " (deleted)"


@dataclass(slots=True)
class Finder:
    """
    Joins what a sweep saw of processes with what file systems and namespaces list.

    :param sweep: a sweep that has run.
    :param missed: what could not be listed.
    :param places: where every tmpfs that was listed is mounted, by device.
    :param unread: those of which not all could be listed.
    :param layers: place of each tmpfs that is a layer of an overlay, through which its files
        may be held unseen: there they have the overlay's device and inode.
    :param links: of each tmpfs, the blocks of its symbolic links that own memory, by inode.
    :param covered: tmpfs of which a file without a name is mounted out of reach.
    """

    sweep: Sweep
    missed: list[Missed] = field(default_factory=list)
    places: dict[int, Place] = field(default_factory=dict)
    unread: set[int] = field(default_factory=set)
    layers: dict[int, str] = field(default_factory=dict)
    covered: set[int] = field(default_factory=set)
    links: dict[int, dict[int, int]] = field(default_factory=dict)
    _found: dict[ObjectKey, FoundObject] = field(default_factory=dict)
    _leases: Leases = field(init=False)
    _may_miss_holders: bool = True

    def __post_init__(self) -> None:
        self._leases = Leases(self.sweep.machine)

    def find(self) -> list[FoundObject]:
        """Return every object once."""
        self._may_miss_holders = self.sweep.may_miss_holders()
        for facts in self.sweep.processes:
            for use in facts.uses:
                self._add_use(facts, use)
        try:
            self._add_files()
            self._add_layers()
            self._add_segments()
        except Stopped:
            self.sweep.miss_rest("files of tmpfs and System V segments not listed by then")
        return list(self._found.values())

    def open(self, item: FoundObject) -> Backing | str:
        """Open an object in the first way that works; a text says why none does."""
        reason = GONE
        for open_handle in self._ways(item):
            try:
                handle = open_handle()
            except (FileNotFoundError, ProcessLookupError, ProcessGone):
                continue
            except (OSError, MemlensError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                continue
            if isinstance(handle, str):
                reason = handle if handle not in (VANISHED, REPLACED) else reason
                continue
            try:
                status = os.fstat(handle)
                if fstatfs_type(handle) == HUGETLBFS_MAGIC:
                    # A System V segment of huge pages, which are not in Shmem.
                    return NOT_SHMEM
                if (status.st_dev, status.st_ino) != item.key[:2]:
                    continue
                if fstatfs_type(handle) != TMPFS_MAGIC:
                    reason = NOT_SHMEM
                    continue
                item.status = status
                if self._leases.has(status):
                    return "under a write lease, which opening would break"
                return reopen(handle, "shmem", self.sweep.machine, item.name)
            finally:
                os.close(handle)
        return reason

    def marks(self, item: FoundObject, backing: Backing | None) -> tuple[str, ...]:
        """
        Return what is worth knowing of an object, in a fixed order.

        :param backing: None if it was not opened.
        """
        segment = item.segment
        is_removed = segment is not None and bool(segment.permissions & SHM_DEST)
        is_deleted = is_removed or item.is_orphan
        if item.kind == "tmpfs":
            # One without links may still be mounted, which is a name, and keeps it.
            is_deleted = item.file is None and not item.links
        is_attached = segment is not None and segment.attached > 0
        may_miss = self.may_miss_holders(item)
        marks = {
            "deleted": is_deleted,
            "no_holder": not (item.uses or is_attached or may_miss),
            "detached": segment is not None and segment.attached == 0,
            "huge": item.is_huge or any(use.is_huge for _, use in item.uses),
            "sealed": backing is not None and is_sealed(backing.fd),
            "other_mount_namespace": item.is_other_mounts,
            "other_ipc_namespace": item.namespace is not None,
        }
        return tuple(name for name, holds in marks.items() if holds)

    def may_miss_holders(self, item: FoundObject) -> bool:
        """Return whether processes that were not looked at may hold an object."""
        mappings = sum(use.mappings for _, use in item.uses)
        is_attached_unseen = item.segment is not None and item.segment.attached > mappings
        return self._may_miss_holders or item.key[0] in self.layers or is_attached_unseen

    def _add_use(self, facts: ProcessFacts, use: ObjectUse) -> None:
        item = self._found.get(use.key)
        if item is None:
            kind, name = _kind_and_name(use.path, use.key)
            item = self._found[use.key] = FoundObject(use.key, kind, name)
        elif use.mapping is None and item.kind in ("memfd", "tmpfs"):
            # A link of fd is the name as it is; maps writes a newline as an escape.
            item.name = _kind_and_name(use.path, use.key)[1]
        item.uses.append((facts, use))

    def _add_files(self) -> None:
        listing = TmpfsListing(self.sweep, _own_namespace("mnt"))
        for file, is_other in listing.list_files():
            self._add_file(file, is_other)
        self.missed += listing.missed
        self.places, self.unread = listing.places, listing.unread
        self.covered = listing.covered

    def _add_layers(self) -> None:
        own = _own_namespace("mnt")
        views = self.sweep.around.views.values()
        ours = [mount for view in views if view.namespace == own for mount in view.mounts]
        for view in views:
            for overlay in view.mounts:
                if overlay.kind != "overlay":
                    continue
                # Layers are named as whoever mounted it saw them.
                for named in (view.mounts, ours):
                    for mount in layer_mounts(overlay, named):
                        if mount.kind in SHMEM_TYPES:
                            self.layers[mount.device] = mount.mount_point

    def _add_file(self, file: TmpfsFile, is_other: bool) -> None:
        if file.is_link:
            # Nothing opens it, so that it cannot be asked; several names are one link.
            self.links.setdefault(file.device, {})[file.inode] = file.blocks
            return
        key = (file.device, file.inode, 0)
        item = self._found.get(key)
        if item is None:
            item = self._found[key] = FoundObject(key, "tmpfs", file.path)
        if item.file is None:
            item.file, item.is_other_mounts, item.name = file, is_other, file.path

    def _add_segments(self) -> None:
        own = _own_namespace("ipc")
        namespaces: dict[int, Entrance | None] = {own: None}
        for number, entrance in self.sweep.around.ipc.items():
            namespaces.setdefault(number, entrance)
        device, listed = _internal_device(), set()
        for number, namespace in namespaces.items():
            self.sweep.machine.check_stop()
            try:
                segments = read_segments(self.sweep.machine, namespace)
            except (OSError, ParseError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                self.missed.append(Missed("System V segments of an IPC namespace", reason))
                continue
            listed.add(number)
            for segment in segments:
                self._add_segment((device, segment.shmid, number), segment, namespace)
        settle_segments(self._found, self.sweep.machine)
        if listed == set(namespaces):
            self._mark_orphans(listed)

    def _mark_orphans(self, listed: set[int]) -> None:
        """
        Mark segments whose IPC namespace is gone: they go with the last process that has them.

        One that no process is in lives on while it is open or mounted somewhere.
        """
        mounts = [mount for view in self.sweep.around.views.values() for mount in view.mounts]
        kept = {ipc_number(mount.root) for mount in mounts if mount.kind == "nsfs"} - {0}
        if self._may_miss_holders or (kept | self.sweep.devices.ipc) - listed:
            return
        for item in self._found.values():
            # Numbers below zero are not of namespaces: what is mapped is of none that is left.
            is_of_known = item.key[2] in listed or item.key[2] < 0
            item.is_orphan = item.kind == "sysv" and item.segment is None and is_of_known

    def _add_segment(
        self, key: ObjectKey, segment: Segment, namespace: Entrance | None
    ) -> None:
        item = self._found.get(key)
        if item is None:
            item = self._found[key] = FoundObject(key, "sysv", f"sysv:{segment.shmid}")
        item.segment, item.namespace = segment, namespace

    def _ways(self, item: FoundObject) -> Iterator[Callable[[], int | str]]:
        """Yield ways to an O_PATH descriptor of an object, the surest first."""
        for facts, use in item.uses:
            if use.mapping is not None:
                yield partial(self._hold_mapping, facts, use)
        for facts, use in item.uses:
            if use.mapping is None:
                path = f"{self.sweep.machine.root}/{use.tid or facts.pid}/fd/{use.fd}"
                yield partial(os.open, path, os.O_PATH | os.O_CLOEXEC)
        if item.file is not None:
            yield item.file.hold
        if item.segment is not None:
            yield partial(open_segment, item.segment.shmid, item.namespace)

    def _hold_mapping(self, facts: ProcessFacts, use: ObjectUse) -> int | str:
        if use.mapping is None:
            return "not mapped"
        with ProcessDir(facts.pid, self.sweep.machine) as process:
            return Opener(process).hold(use.mapping)


def _kind_and_name(path: str, key: ObjectKey) -> tuple[str, str]:
    """Return kind and name of an object from what maps or a descriptor call it."""
    name = path.replace("\\012", "\n").removesuffix(_DELETED)
    if key[0] != _internal_device():
        return "tmpfs", name
    if path.startswith("/memfd:"):
        return "memfd", name[1:]
    if path.startswith("/SYSV"):
        return "sysv", f"sysv:{key[1]}"
    # Memory of graphics drivers is shmem on the kernel's own mount too.
    return "anonymous", f"anonymous:{key[1]}" if name == "/dev/zero" else name


def _own_namespace(name: str) -> int:
    try:
        return os.stat(f"/proc/self/ns/{name}").st_ino
    except OSError:
        return 0


@lru_cache(maxsize=1)
def _internal_device() -> int:
    return internal_device()
