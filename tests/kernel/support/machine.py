"""The machine as the suite finds it and leaves it: its lock, its settings, waits."""

import atexit
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Where programs of the tests start, so that they import what the tests import.
ROOT = Path(__file__).parents[3]
LOCK = Path("/run/lock/memlens-test.lock")
ZSWAP = Path("/sys/module/zswap/parameters/enabled")


class Missing(Exception):
    """This machine lacks something that a test needs; says what."""


class StateMoved(AssertionError):
    """The memory is no longer (or was never) in the state that was built."""


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
