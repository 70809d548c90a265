"""Memory cgroups of our own, to push pages out with."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.support.machine import Missing, undone_at_exit, wait_until


class Squeeze:
    """
    Makes memory cgroups: what a process touches while it is inside one can be reclaimed.

    MADV_PAGEOUT reaches only pages that the caller maps, and on a swap file leaves the copy
    in the swap cache.  Reclaim of a cgroup takes exactly the pages charged to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made = 0

    @contextmanager
    def cgroup(self) -> Iterator["Cgroup"]:
        """Make a cgroup and remove it; what was charged to it stays where it is."""
        self._made += 1
        path = self.root / f"memlens-test-{os.getpid()}-{self._made}"

        def remove() -> None:
            if path.is_dir():
                wait_until(lambda: _try_rmdir(path), f"rmdir {path}")

        with undone_at_exit(remove):
            path.mkdir()
            yield Cgroup(path)


@dataclass(frozen=True)
class Cgroup:
    """One memory cgroup of our own."""

    path: Path

    @contextmanager
    def charging(self, pid: int) -> Iterator[None]:
        """Charge to this cgroup what the process allocates in the block."""
        home = _cgroup_of(pid)
        (self.path / "cgroup.procs").write_text(str(pid))
        try:
            yield
        finally:
            (home / "cgroup.procs").write_text(str(pid))

    def reclaim(self) -> None:
        """Reclaim every page charged to this cgroup that can be."""
        try:
            if (self.path / "memory.force_empty").exists():
                (self.path / "memory.force_empty").write_text("0")
            else:
                (self.path / "memory.reclaim").write_text("1G")
        except OSError as error:
            # The kernel gave up before all was reclaimed; the caller looks and asks again.
            if error.errno not in (errno.EAGAIN, errno.EBUSY):
                raise


def _cgroup_of(pid: int) -> Path:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path("/sys/fs/cgroup/memory") / path.lstrip("/")
    unified = Path(f"/proc/{pid}/cgroup").read_text().rpartition("0::/")[2].strip()
    return Path("/sys/fs/cgroup") / unified


def squeeze() -> Squeeze:
    """Return the maker of memory cgroups on this machine."""
    root = Path("/sys/fs/cgroup/memory")
    if root.is_dir():
        return Squeeze(root)
    root = Path("/sys/fs/cgroup")
    controls = root / "cgroup.subtree_control"
    if not controls.exists() or "memory" not in controls.read_text().split():
        raise Missing("no memory cgroups")
    return Squeeze(root)


def _try_rmdir(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True
