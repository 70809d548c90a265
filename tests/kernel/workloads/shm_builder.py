"""What the kernel tells of shared memory, and how a mix of it is built; without memlens."""

import itertools
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.kernel.support import oracle
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.driver import PAGE, Target, target
from tests.kernel.support.machine import StateMoved, wait_until
from tests.kernel.support.namespaces import mount_tmpfs
from tests.kernel.workloads.base import page_out

_numbers = itertools.count()


def fresh(name: str) -> str:
    """Return a name that was not given before."""
    return f"{name}{next(_numbers)}"


@dataclass
class Made:
    """
    A shared-memory object that was built.

    :param label: how it was made, for messages.
    :param device: as in maps.
    :param out: pages of it that are on swap.
    :param resident: pages of it that are in RAM and not on swap.
    :param holders: PID -> (pages of it that are mapped, whether it is open).
    :param count_out: how many of its pages are on swap, asked of the kernel now.
    """

    label: str
    kind: str
    device: str
    inode: int
    size_bytes: int
    out: int
    resident: int = 0
    name: str = ""
    holders: dict[int, tuple[int, bool]] = field(default_factory=dict)
    marks: set[str] = field(default_factory=set)
    count_out: Callable[[], int] = lambda: -1

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Return what tells it from others; IPC namespaces may share an inode."""
        return self.kind, self.device, self.inode, self.size_bytes


@dataclass
class Mix:
    """All that was built."""

    directory: Path
    objects: list[Made] = field(default_factory=list)
    family: list[int] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        """Return every process of the mix."""
        return sorted({t.pid for t in self.targets} | set(self.family))

    @property
    def objects_out(self) -> int:
        """Return the pages of objects on swap, each object once."""
        return sum(made.out for made in self.objects)

    def reprove(self) -> None:
        """Raise StateMoved if an object has not what was built."""
        for made in self.objects:
            found = made.count_out()
            if found != made.out:
                raise StateMoved(f"{made.label}: {found} pages on swap, built {made.out}")


def maps_line(pid: int, start: int) -> list[str]:
    """Return the fields of the line of maps that begins at ``start``."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if int(line.partition("-")[0], 16) == start:
            return line.split(None, 5)
    raise StateMoved(f"no mapping at {start:#x} of {pid}")


def count_evicted(path: str) -> int:
    """Return how many pages of an object are on swap, as cachestat says."""
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC)
    try:
        return oracle.read_cachestat(fd, 0, 0)[1]
    finally:
        os.close(fd)


def count_resident(path: str) -> int:
    """Return how many pages of an object are in RAM and not on swap."""
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC)
    try:
        return oracle.read_cachestat(fd, 0, 0)[0]
    finally:
        os.close(fd)


def segment_columns(driven: Target | None, shmid: int) -> tuple[int, int, int]:
    """Return nattch, and pages in RAM and on swap, of a segment; in the target's namespace."""
    code = "result = open('/proc/sysvipc/shm').read()"
    text = driven.run(code) if driven else Path("/proc/sysvipc/shm").read_text()
    for line in text.splitlines()[1:]:
        fields = line.split()
        if int(fields[1]) == shmid:
            return int(fields[6]), int(fields[14]) // PAGE, int(fields[15]) // PAGE
    raise StateMoved(f"no segment {shmid}")


def fill(driven: Target, start: int, pages: Iterable[int]) -> None:
    """Write to each of these pages, in one request; no two get the same contents."""
    code = "for page in pages: ctypes.memmove(start + page * size, b'mix%08d' % page, 11)"
    driven.run(code, pages=list(pages), start=start, size=PAGE)


@dataclass
class Builder:
    """Makes targets and objects of a mix; all goes with the stack."""

    stack: ExitStack
    squeeze: Squeeze
    swap: str
    mix: Mix

    def target(self) -> Target:
        """Start a target."""
        made = self.stack.enter_context(target())
        self.mix.targets.append(made)
        return made

    def tmpfs(self) -> Path:
        """Mount a tmpfs in the namespace of the tests."""
        where = self.mix.directory / fresh("tmpfs")
        where.mkdir()
        mount_tmpfs(self.stack, where)
        return where

    def out(self, driven: Target, start: int, pages: int) -> None:
        """Write these pages of a mapping of shared memory, and reclaim them: swap only."""
        bounds = maps_line(driven.pid, start)[0]
        path = f"/proc/{driven.pid}/map_files/{bounds}"
        with self.squeeze.cgroup() as cgroup:
            with cgroup.charging(driven.pid):
                fill(driven, start, range(pages))
            page_out(driven, start, range(pages))

            def is_out() -> bool:
                cgroup.reclaim()
                return _is_on_swap_only(path, pages)

            wait_until(is_out, f"{pages} pages of {path} on swap")

    def add(self, driven: Target, start: int, label: str, kind: str, **rest: object) -> Made:
        """Add the object of a mapping."""
        fields = maps_line(driven.pid, start)
        path = f"/proc/{driven.pid}/map_files/{fields[0]}"
        made = Made(
            label=label,
            kind=kind,
            device=fields[3],
            inode=int(fields[4]),
            size_bytes=os.stat(path).st_size,
            count_out=lambda: count_evicted(path),
            **rest,
        )
        self.mix.objects.append(made)
        return made


def _is_on_swap_only(path: str, pages: int) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC)
    try:
        is_resident = oracle.read_mincore(fd, 0, pages).any()
        return oracle.read_cachestat(fd, 0, pages * PAGE) == (0, pages) and not is_resident
    finally:
        os.close(fd)
