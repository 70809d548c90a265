"""
Finding shared-memory objects: what processes map and have open, what lies in tmpfs
mounts and among System V segments, each once.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial

from memlens.account.facts import Missed, ObjectKey, ObjectUse, ProcessFacts
from memlens.account.foundobject import FoundObject
from memlens.account.segments import settle_segments
from memlens.account.sweep import Sweep
from memlens.errors import MemlensError, ParseError, ProcessGone
from memlens.kernel import features
from memlens.kernel.backing import Backing
from memlens.kernel.filesystems import HUGETLBFS_MAGIC, TMPFS_MAGIC
from memlens.kernel.leases import Leases
from memlens.kernel.mounts import UNNAMED, Mount
from memlens.kernel.opening import REPLACED, VANISHED, Opener, internal_device, reopen
from memlens.kernel.overlay import layer_mounts
from memlens.kernel.process import ProcessDir
from memlens.kernel.seals import is_sealed
from memlens.kernel.shm import (
    SHM_DEST,
    SHMEM_TYPES,
    Segment,
    TmpfsFile,
    open_segment,
    read_segments,
    walk_tmpfs,
)
from memlens.kernel.syscalls import fstatfs_type

NOT_SHMEM = "not shmem"
GONE = "gone"
_DELETED = " (deleted)"


@dataclass(slots=True)
class Finder:
    """
    Joins what a sweep saw of processes with what file systems and namespaces list.

    :param sweep: a sweep that has run.
    :param missed: what could not be listed.
    :param places: root of a process and mount point of every tmpfs that was listed.
    :param layers: place of each tmpfs that is a layer of an overlay, through which its files
        may be held unseen: there they have the overlay's device and inode.
    :param links: of each tmpfs, the blocks of its symbolic links that own memory, by inode.
    :param covered: tmpfs of which a file without a name is mounted out of reach.
    """

    sweep: Sweep
    missed: list[Missed] = field(default_factory=list)
    places: dict[int, tuple[str, str]] = field(default_factory=dict)
    layers: dict[int, str] = field(default_factory=dict)
    covered: set[int] = field(default_factory=set)
    links: dict[int, dict[int, int]] = field(default_factory=dict)
    _found: dict[ObjectKey, FoundObject] = field(default_factory=dict)
    _leases: Leases = field(init=False)
    _may_miss_holders: bool = True

    def __post_init__(self) -> None:
        self._leases = Leases(self.sweep.proc)

    def find(self) -> list[FoundObject]:
        """Return every object once."""
        self._may_miss_holders = self.sweep.may_miss_holders()
        for facts in self.sweep.processes:
            for use in facts.uses:
                self._add_use(facts, use)
        self._add_files()
        self._add_layers()
        self._add_segments()
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
                size = features.page_size_bytes()
                return reopen(handle, "shmem", size, self.sweep.meter, item.name)
            finally:
                os.close(handle)
        return reason

    def marks(self, item: FoundObject, backing: Backing | None) -> tuple[str, ...]:
        """
        Return what is worth knowing of an object, in a fixed order.

        :param backing: None if it was not opened.
        """
        segment = item.segment
        is_deleted = segment is not None and bool(segment.permissions & SHM_DEST)
        if item.kind == "tmpfs":
            # A file that is mounted alone has a place without any name in a directory.
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
            "other_ipc_namespace": bool(item.namespace),
        }
        return tuple(name for name, holds in marks.items() if holds)

    def may_miss_holders(self, item: FoundObject) -> bool:
        """Return whether processes that were not looked at may hold an object."""
        mappings = sum(use.mapping is not None for _, use in item.uses)
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
        """List every tmpfs once, through a namespace where all of it is mounted if any."""
        own = self._own_namespace("mnt")
        walked: set[int] = set()
        ways: list[tuple[bool, bool, int, int, Mount, list[Mount]]] = []
        for (namespace, _), (pid, mounts) in self.sweep.mounts.items():
            for mount in mounts:
                if mount.kind in SHMEM_TYPES:
                    is_part = mount.root != "/"
                    ways.append((is_part, namespace != own, namespace, pid, mount, mounts))
        ways.sort(key=lambda way: way[:3])
        failed: dict[int, Missed] = {}
        for is_part, is_other, _, pid, mount, mounts in ways:
            # No directory has a file that lost its name, so that no other mount shows it.
            if mount.device in walked and not mount.root.endswith(UNNAMED):
                continue
            base = f"{self.sweep.proc}/{pid}/root"
            try:
                for file in walk_tmpfs(base, mount, mounts):
                    self._add_file(file, is_other)
            except OSError as error:
                reason = error.strerror or str(error)
                failed[mount.device] = Missed(f"tmpfs on {mount.mount_point}", reason)
                if mount.root.endswith(UNNAMED):
                    self.covered.add(mount.device)
                continue
            failed.pop(mount.device, None)
            self.places.setdefault(mount.device, (base, mount.mount_point))
            if not is_part:
                walked.add(mount.device)
        self.missed += failed.values()

    def _add_layers(self) -> None:
        own = self._own_namespace("mnt")
        every = self.sweep.mounts.items()
        ours = [mount for (ns, _), (_, mounts) in every if ns == own for mount in mounts]
        for _, mounts in self.sweep.mounts.values():
            for overlay in mounts:
                if overlay.kind != "overlay":
                    continue
                # Layers are named as whoever mounted it saw them.
                for named in (mounts, ours):
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
        own = self._own_namespace("ipc")
        namespaces = {own: ""}
        for facts in self.sweep.processes:
            if facts.ipc_namespace:
                path = f"{self.sweep.proc}/{facts.pid}/ns/ipc"
                namespaces.setdefault(facts.ipc_namespace, path)
        device = _internal_device()
        for namespace, path in namespaces.items():
            try:
                segments = read_segments(self.sweep.proc, path)
            except (OSError, ParseError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                self.missed.append(Missed("System V segments of an IPC namespace", reason))
                continue
            for segment in segments:
                self._add_segment((device, segment.shmid, namespace), segment, path)
        settle_segments(self._found, self.sweep.proc)

    def _own_namespace(self, name: str) -> int:
        try:
            return os.stat(f"/proc/self/ns/{name}").st_ino
        except OSError:
            return 0

    def _add_segment(self, key: ObjectKey, segment: Segment, namespace: str) -> None:
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
                path = f"{self.sweep.proc}/{use.tid or facts.pid}/fd/{use.fd}"
                yield partial(os.open, path, os.O_PATH | os.O_CLOEXEC)
        if item.file is not None:
            flags = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW
            yield partial(os.open, item.file.reach, flags)
        if item.segment is not None:
            yield partial(open_segment, item.segment.shmid, item.namespace)

    def _hold_mapping(self, facts: ProcessFacts, use: ObjectUse) -> int | str:
        if use.mapping is None:
            return "not mapped"
        with ProcessDir(facts.pid, self.sweep.proc, self.sweep.meter) as process:
            opener = Opener(process, features.read_disabled(), features.page_size_bytes())
            return opener.hold(use.mapping)


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


@lru_cache(maxsize=1)
def _internal_device() -> int:
    return internal_device()
