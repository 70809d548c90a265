"""Swap of our own on zram, for scenarios that need pages on swap; taken away afterwards."""

import fcntl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.harness.context import SkipError
from bench.harness.ending import undisturbed

_CONTROL = Path("/sys/class/zram-control")
_SWAPS = Path("/proc/swaps")
# One at a time on a machine: the kernel tests hold it too.
_LOCK = Path("/run/lock/memlens-test.lock")


@contextmanager
def zram_swap(size_bytes: int) -> Iterator[None]:
    """
    Swap to a zram device that nothing else uses.

    :raises SkipError: if there is no zram, this user may not, or swap is on already.
    """
    try:
        lock = _LOCK.open("w")
    except OSError as error:
        raise SkipError(f"swap needs root: {error.strerror}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if len(_SWAPS.read_text().splitlines()) > 1:
            raise SkipError("swap is on already")
        yield from _with_device(size_bytes)


def _with_device(size_bytes: int) -> Iterator[None]:
    with ExitStack() as made:
        with undisturbed():
            try:
                number = (_CONTROL / "hot_add").read_text().strip()
            except OSError as error:
                raise SkipError(f"no zram here: {error.strerror}") from error
            made.callback((_CONTROL / "hot_remove").write_text, number)
        device = f"/dev/zram{number}"
        Path(f"/sys/block/zram{number}/disksize").write_text(str(size_bytes))
        _run("mkswap", device)
        # Before it is on: a signal may come as soon as it is.
        made.callback(_switch_off, device)
        _run("swapon", device)
        yield


def _switch_off(device: str) -> None:
    with undisturbed():
        if any(line.startswith(f"{device} ") for line in _SWAPS.read_text().splitlines()):
            _run("swapoff", device)


def _run(program: str, device: str) -> None:
    done = subprocess.run([program, device], capture_output=True, text=True)
    if done.returncode:
        raise SkipError(f"{program} {device}: {done.stderr.strip()}")
