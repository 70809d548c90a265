"""
Finding shared-memory objects: what processes map and have open, what lies in tmpfs
mounts and among System V segments, each once.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import count

from memlens.errors import MemlensError, ParseError, ProcessGone
from memlens.kernel.mounts import HUGETLBFS_MAGIC, TMPFS_MAGIC
from memlens.kernel.process import ProcessDir
from memlens.kernel.syscalls import file_handle, fstatfs_type
from memlens.objects.backing import Backing
from memlens.objects.leases import Leases
from memlens.objects.namespaces import Entrance, ipc_number
from memlens.objects.opener import REPLACED, VANISHED, Opener, internal_device, reopen
from memlens.objects.overlay import layer_mounts
from memlens.objects.references import is_sealed
from memlens.objects.sysv import SHM_DEST, Segment, open_segment, read_segments
from memlens.objects.tmpfs import SHMEM_TYPES, TmpfsFile, TmpfsListing
from memlens.report import Missed
from memlens.scan.facts import ObjectKey, ObjectUse, ProcessFacts
from memlens.scan.machine import Machine, Stopped
from memlens.scan.sweep import Sweep

NOT_SHMEM = "not shmem"
GONE = "gone"
_DELETED = " (deleted)"


@dataclass(slots=True)
class FoundObject:
    """
    An object before it is looked at.

    :param uses: the processes that hold it, and how.
    :param file: its place in a tmpfs, None if it has none.
    :param segment: its line of /proc/sysvipc/shm, None if it is no System V segment.
    :param namespace: the way into the IPC namespace of the segment, None for our own.
    :param is_orphan: whether it is a segment whose IPC namespace is gone.
    :param status: what fstat said once it was held, None before.
    """

    key: ObjectKey
    kind: str
    name: str
    uses: list[tuple[ProcessFacts, ObjectUse]] = field(default_factory=list)
    file: TmpfsFile | None = None
    segment: Segment | None = None
    namespace: Entrance | None = None
    is_other_mounts: bool = False
    is_huge: bool = False
    is_orphan: bool = False
    status: os.stat_result | None = None

    @property
    def label(self) -> str:
        """Return how messages name it."""
        return self.name if ":" in self.name else f"{self.kind} {self.name}"

    @property
    def size_bytes(self) -> int:
        """Return its size; of what can only be seen as mapped, the end of what is mapped."""
        if self.status is not None:
            return self.status.st_size
        if self.file is not None or self.segment is not None:
            return (self.file or self.segment).size_bytes  # type: ignore[union-attr]
        return max((use.end_bytes for _, use in self.uses), default=0)

    @property
    def blocks(self) -> int:
        """Return the units of 512 bytes that it owns, in RAM and on swap, as far as known."""
        if self.status is not None:
            return self.status.st_blocks
        return self.file.blocks if self.file is not None else 0

    @property
    def uid(self) -> int | None:
        """Return the owner, None if not known."""
        if self.segment is not None:
            return self.segment.uid
        if self.status is not None:
            return self.status.st_uid
        return self.file.uid if self.file is not None else None

    @property
    def links(self) -> int | None:
        """Return how many names it has in a file system, None if not known."""
        return None if self.status is None else self.status.st_nlink


@dataclass(slots=True)
class Finder:
    """
    Joins what a sweep saw of processes with what file systems and namespaces list.

    :param sweep: a sweep that has run.
    :param missed: what could not be listed.
    :param tmpfs: the files of every tmpfs.
    :param layers: place of each tmpfs that is a layer of an overlay, through which its files
        may be held unseen: there they have the overlay's device and inode.
    :param links: of each tmpfs, the blocks of its symbolic links that own memory, by inode.
    """

    sweep: Sweep
    missed: list[Missed] = field(default_factory=list)
    tmpfs: TmpfsListing = field(init=False)
    layers: dict[int, str] = field(default_factory=dict)
    links: dict[int, dict[int, int]] = field(default_factory=dict)
    _found: dict[ObjectKey, FoundObject] = field(default_factory=dict)
    _leases: Leases = field(init=False)
    _may_miss_holders: bool = True

    def __post_init__(self) -> None:
        sweep = self.sweep
        own = _own_namespace("mnt")
        self.tmpfs = TmpfsListing(sweep.around, sweep.devices.is_shmem, own)
        self._leases = Leases(sweep.machine)

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
        for file, is_other in self.tmpfs.list_files():
            self._add_file(file, is_other)
        self.missed += self.tmpfs.missed

    def _add_layers(self) -> None:
        views = self.sweep.around.views.values()
        ours = [
            mount for view in views if view.namespace == self.tmpfs.own for mount in view.mounts
        ]
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


# Which System V segment a mapping is of.
#
# Its inode is the identifier, which every IPC namespace counts anew, and a process may have
# entered another namespace since it attached.

_Use = tuple[ProcessFacts, ObjectUse]


def settle_segments(found: dict[ObjectKey, FoundObject], machine: Machine) -> None:
    """
    Move what processes map to the segment that it is, where the namespace leaves a doubt.

    :param found: every object by its key; a segment's ends in its IPC namespace.
    :param machine: whose processes they are.
    """
    same: dict[int, list[FoundObject]] = {}
    for key, item in found.items():
        if item.kind == "sysv":
            same.setdefault(key[1], []).append(item)
    for items in same.values():
        if len(items) > 1 and any(_is_doubtful(item) for item in items):
            _settle(items, found, machine)


def _is_doubtful(item: FoundObject) -> bool:
    """Return whether it is attached where nobody was found to, or the other way round."""
    is_attached = item.segment is not None and item.segment.attached > 0
    return is_attached != bool(item.uses)


def _settle(
    items: list[FoundObject], found: dict[ObjectKey, FoundObject], machine: Machine
) -> None:
    by_handle = {
        handle: item for item in items if (handle := _segment_handle(item)) is not None
    }
    is_known = all(item.segment is None or item in by_handle.values() for item in items)
    others = count(-1, -1)
    for item in items:
        for pair in list(item.uses):
            handle = _use_handle(pair, machine)
            if handle is None or by_handle.get(handle) is item:
                continue
            if handle not in by_handle:
                if not is_known:
                    continue
                # Of a namespace that no process is in any more.
                key = (*item.key[:2], next(others))
                by_handle[handle] = found[key] = FoundObject(key, item.kind, item.name)
            _move(pair, item, by_handle[handle])
    for item in items:
        if not item.uses and item.segment is None:
            del found[item.key]


def _move(pair: _Use, item: FoundObject, target: FoundObject) -> None:
    item.uses.remove(pair)
    facts, use = pair
    target.uses.append((facts, use._replace(key=target.key)))


def _segment_handle(item: FoundObject) -> bytes | None:
    if item.segment is None:
        return None
    try:
        fd = open_segment(item.segment.shmid, item.namespace)
    except (OSError, MemlensError):
        return None
    try:
        return file_handle(f"/proc/self/fd/{fd}")
    except OSError:
        return None
    finally:
        os.close(fd)


def _use_handle(pair: _Use, machine: Machine) -> bytes | None:
    facts, use = pair
    path = f"{machine.root}/{facts.pid}/map_files/{use.mapping.name}" if use.mapping else ""
    try:
        return file_handle(path or f"{machine.root}/{use.tid or facts.pid}/fd/{use.fd}")
    except OSError:
        return None
