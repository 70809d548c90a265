"""
The suite's own swap, one area at a time, and a memory cgroup to push pages out with.

The two kinds differ: on zram a page that went out is gone from RAM at once, on a swap
file the copy stays in the swap cache until something reclaims it.  With zswap before the
file, the bytes stay in RAM, compressed, and no interface tells.  Everything made here is
taken away again, also when a test fails or the run is ended by a signal.
"""

import atexit
import errno
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

LOCK = Path("/run/lock/memlens-test.lock")
ZSWAP = Path("/sys/module/zswap/parameters/enabled")
ZRAM_SIZE_BYTES = 512 << 20
FILE_SIZE_BYTES = 256 << 20


class Missing(Exception):
    """This machine lacks something that a test needs; says what."""


def wait_until(is_true: Callable[[], bool], what: str, *, deadline_s: float = 20) -> None:
    """Poll a condition; AssertionError with ``what`` when it does not come true."""
    stop = time.monotonic() + deadline_s
    while not is_true():
        assert time.monotonic() < stop, f"not within {deadline_s} s: {what}"
        time.sleep(0.002)


@contextmanager
def machine_lock(deadline_s: int = 1800) -> Iterator[None]:
    """Hold the lock that everything which changes the machine's memory set-up takes."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    # flock(1) waits in the kernel's queue, which polling would starve in; the lock is held by
    # the open file that both share.
    wait = ["flock", "--exclusive", "--timeout", str(deadline_s), str(descriptor)]
    try:
        done = subprocess.run(wait, pass_fds=[descriptor], check=False)
        assert done.returncode == 0, f"no lock on {LOCK} within {deadline_s} s"
        yield
    finally:
        os.close(descriptor)


@contextmanager
def undone_at_exit(undo: Callable[[], None]) -> Iterator[None]:
    """Run ``undo`` at the end of the block, or of the interpreter if that comes first."""
    atexit.register(undo)
    try:
        yield
    finally:
        atexit.unregister(undo)
        undo()


@contextmanager
def setting(path: Path, value: object) -> Iterator[None]:
    """Set a kernel setting and put back what was there."""
    text = path.read_text().strip()
    chosen = re.search(r"\[(\S+)\]", text)
    before = chosen[1] if chosen else text

    def put_back() -> None:
        path.write_text(before)

    with undone_at_exit(put_back):
        path.write_text(str(value))
        yield


@contextmanager
def swap_area(kind: str, directory: Path) -> Iterator[Path]:
    """
    Turn on a swap area of this kind as the only one, without readahead.

    Readahead would carry the neighbours of a page that is read back into the swap cache;
    workloads put into the swap cache what they want there.
    """
    others = Path("/proc/swaps").read_text().splitlines()[1:]
    if others:
        raise Missing(f"swap is on already: {others}")
    make = {"zram": _zram_device, "file": _swap_file, "zswap": _swap_file}[kind]
    with ExitStack() as stack:
        if kind == "zswap":
            if not ZSWAP.exists():
                raise Missing("no zswap in this kernel")
            stack.enter_context(setting(ZSWAP, "Y"))
        stack.enter_context(setting(Path("/proc/sys/vm/page-cluster"), 0))
        area = stack.enter_context(make(directory))
        _run("mkswap", str(area))
        stack.enter_context(undone_at_exit(lambda: _swap_off(area)))
        _run("swapon", str(area))
        yield area


def _run(program: str, *arguments: str) -> str:
    environment = os.environ | {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise Missing(f"{program} {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _swap_off(area: Path) -> None:
    listed = Path("/proc/swaps").read_text()
    if any(line.split()[0] == str(area) for line in listed.splitlines()):
        _run("swapoff", str(area))


@contextmanager
def _zram_device(directory: Path) -> Iterator[Path]:
    control = Path("/sys/class/zram-control")
    if not control.is_dir():
        raise Missing("no zram in this kernel")
    idle = [path for path in Path("/sys/block").glob("zram*") if _is_idle(path)]
    if idle:
        sysfs, is_added = idle[0], False
    else:
        sysfs, is_added = (
            Path(f"/sys/block/zram{(control / 'hot_add').read_text().strip()}"),
            True,
        )

    def undo() -> None:
        wait_until(lambda: _try_reset(sysfs), f"reset of {sysfs.name}")
        if is_added:
            (control / "hot_remove").write_text(sysfs.name.removeprefix("zram"))

    with undone_at_exit(undo):
        (sysfs / "disksize").write_text(str(ZRAM_SIZE_BYTES))
        yield Path("/dev") / sysfs.name


def _is_idle(sysfs: Path) -> bool:
    return (sysfs / "disksize").read_text().strip() == "0"


def _try_reset(sysfs: Path) -> bool:
    try:
        (sysfs / "reset").write_text("1")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


@contextmanager
def _swap_file(directory: Path) -> Iterator[Path]:
    area = directory / "swapfile"
    with undone_at_exit(lambda: area.unlink(missing_ok=True)):
        descriptor = os.open(area, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, FILE_SIZE_BYTES)
        finally:
            os.close(descriptor)
        yield area


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


def machine_state() -> dict[str, str]:
    """Return what the suite must leave as it found it."""
    zram = sorted(Path("/sys/block").glob("zram*/disksize"))
    ours = sorted(Path("/sys/fs/cgroup").glob("**/memlens-test-*"))
    state = {str(path): path.read_text() for path in zram}
    for path in (
        *("/proc/swaps", "/proc/self/mounts", "/proc/sys/vm/nr_hugepages"),
        *("/proc/sys/vm/page-cluster", "/sys/kernel/mm/ksm/run", str(ZSWAP)),
    ):
        if os.path.exists(path):
            state[path] = Path(path).read_text()
    state["cgroups"] = " ".join(map(str, ours))
    state["loops"] = " ".join(
        path.parent.parent.name
        for path in sorted(Path("/sys/block").glob("loop*/loop/backing_file"))
    )
    return state
