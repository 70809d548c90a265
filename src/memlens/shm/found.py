"""A shared-memory object that was found, before it is looked at."""

import os
from dataclasses import dataclass, field

from memlens.objects.namespaces import Entrance
from memlens.objects.sysv import Segment
from memlens.objects.tmpfs import TmpfsFile
from memlens.scan.facts import ObjectKey, ObjectUse, ProcessFacts


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
