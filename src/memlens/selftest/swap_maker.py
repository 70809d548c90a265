"""
The process that makes swap for the demo, and takes it away when its input ends.

swapon(2), swapoff(2), mkswap's header (include/linux/swap.h, union swap_header) and
/sys/class/zram-control (Documentation/admin-guide/blockdev/zram.rst).  It is a process
of its own so that the swap goes away also if the demo is killed.
"""

import errno
import json
import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

from memlens.kernel.syscalls import libc, raise_last_errno

SWAP_BYTES = 32 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CONTROL = "/sys/class/zram-control"
_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class MadeSwap:
    """
    Swap that was switched on.

    :param kind: ``zram`` or ``slow``.
    :param path: of the device or file.
    :param remove: takes away what is left once it is switched off.
    """

    kind: str
    path: str
    remove: Callable[[], None]


def main(kinds: list[str]) -> None:
    """
    Make swap, tell where, wait for the end of the input, and take it away.

    :param kinds: ``zram`` or ``file``, of which the first that can be is made.
    """
    makes = {"zram": _make_zram, "file": _make_file}
    reasons = []
    for kind in kinds:
        try:
            made = makes[kind]()
            break
        except OSError as error:
            reasons.append(f"{kind}: {error.strerror or error}")
    else:
        print(json.dumps({"error": "; ".join(reasons)}), flush=True)
        return
    try:
        print(json.dumps({"kind": made.kind, "path": made.path}), flush=True)
        sys.stdin.read()
    finally:
        _take_away(made)


def _make_zram() -> MadeSwap:
    with open(f"{_CONTROL}/hot_add") as file:
        number = int(file.read())
    path, settings = f"/dev/zram{number}", f"/sys/block/zram{number}"

    def remove() -> None:
        _write(f"{settings}/reset", "1")
        _write(f"{_CONTROL}/hot_remove", str(number))

    try:
        _write(f"{settings}/disksize", str(SWAP_BYTES))
        _wait_for(path)
        _write_header(path)
        _switch_on(path)
    except OSError:
        remove()
        raise
    return MadeSwap("zram", path, remove)


def _make_file() -> MadeSwap:
    failure = OSError(errno.ENOENT, "no directory for it")
    for place in dict.fromkeys((tempfile.gettempdir(), "/var/tmp", os.path.expanduser("~"))):
        try:
            return _make_file_in(place)
        except OSError as error:
            failure = error
    raise failure


def _make_file_in(place: str) -> MadeSwap:
    directory = tempfile.mkdtemp(prefix="memlens-swap-", dir=place)
    path = os.path.join(directory, "swap")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Really written: a swap file may have no holes, on any file system.
            for _ in range(SWAP_BYTES >> 20):
                os.write(fd, bytes(1 << 20))
            os.fsync(fd)
        finally:
            os.close(fd)
        _write_header(path)
        _switch_on(path)
    except OSError:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return MadeSwap("slow", path, lambda: shutil.rmtree(directory))


def _write_header(path: str) -> None:
    """Write what mkswap(8) writes: version, last page, no bad pages, and the magic."""
    header = bytearray(_PAGE)
    struct.pack_into("=III", header, 1024, 1, SWAP_BYTES // _PAGE - 1, 0)
    header[-10:] = b"SWAPSPACE2"
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, header)
        os.fsync(fd)
    finally:
        os.close(fd)


def _switch_on(path: str) -> None:
    if libc.swapon(path.encode(), 0) != 0:
        raise_last_errno(path)


def _take_away(made: MadeSwap) -> None:
    """Switch it off and remove it; what is left over is told with the last words."""
    deadline = time.monotonic() + _DEADLINE_S
    is_on = True
    while True:
        try:
            if is_on and libc.swapoff(made.path.encode()) != 0:
                raise_last_errno(made.path)
            is_on = False
            made.remove()
            return
        except OSError as error:
            # Somebody may hold the device open for a moment, as udev does.
            if time.monotonic() > deadline:
                print(f"cannot take {made.path} away: {error.strerror or error}", flush=True)
                return
        time.sleep(0.05)


def _wait_for(path: str) -> None:
    """Wait until udev has made the device node, where the kernel does not itself."""
    deadline = time.monotonic() + _DEADLINE_S
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        time.sleep(0.01)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
