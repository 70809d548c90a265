"""
A FUSE file system that answers for a while and then never again.

The least of the protocol (include/uapi/linux/fuse.h) that lets one file be opened and mapped.
After that, whatever asks this file system anything sleeps until the mount is given up.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.support.driver import PAGE, PROT_READ, Target, target
from tests.kernel.support.machine import wait_until

# Runs in the target.
DAEMON = """
import struct, threading

ROOT = 1
LOOKUP, GETATTR, OPEN, READ, INIT, OPENDIR = 1, 3, 14, 15, 26, 27
ENOENT, ENOSYS = 2, 38

def attributes(node):
    mode, size = (0o040755, 4096) if node == ROOT else (0o100644, 8 * 4096)
    return struct.pack("<6Q10I", node, size, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

def answer(code, node, data):
    if code == INIT:
        return struct.pack("<4I2H2I2H8I", 7, 31, 0, 0, 1, 1, 4096, 1, 1, 0, *[0] * 8)
    if code == LOOKUP:
        return struct.pack("<4Q2I", 2, 0, 0, 0, 0, 0) + attributes(2)
    if code == GETATTR:
        return struct.pack("<Q2I", 0, 0, 0) + attributes(node)
    if code in (OPEN, OPENDIR):
        return struct.pack("<Q2I", 7, 0, 0)
    if code == READ:
        return bytes(4096)
    return None

def serve(fd, state):
    while not state["hang"]:
        try:
            request = os.read(fd, 1 << 17)
        except OSError:
            return
        _, code, unique, node = struct.unpack_from("<2I2Q", request)
        if state["hang"]:
            return
        body = answer(code, node, request[40:])
        error, body = (-ENOSYS, b"") if body is None else (0, body)
        if code not in (2, 36, 42):  # FORGET, INTERRUPT, BATCH_FORGET want no answer
            os.write(fd, struct.pack("<IiQ", 16 + len(body), error, unique) + body)
        state["served"] += 1

os.memlens_state = {"hang": False, "served": 0}
os.memlens_thread = threading.Thread(target=serve, args=(fd, os.memlens_state), daemon=True)
os.memlens_thread.start()
"""

ASK = """
import contextlib, threading

def ask():
    with contextlib.suppress(OSError):
        os.stat(path)

threading.Thread(target=ask, daemon=True).start()
"""


@dataclass(frozen=True)
class Hung:
    """
    Processes around a file system that answers nobody any more.

    :param mapper: maps a file of it, has it open, and has it as its working directory.
    :param where: the mount point, in the mapper's mounts.
    """

    mapper: Target
    where: Path


@contextmanager
def hung_fuse(directory: Path) -> Iterator[Hung]:
    """Mount it in a mount namespace of its own, use it, and have it hang."""
    where = directory / "hung"
    where.mkdir()
    with target() as daemon:
        daemon.isolate_mounts()
        fd = daemon.os("open", "/dev/fuse", 0o2)
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        daemon.libc(
            *("mount", b"memlens\0", bytes(where) + b"\0", b"fuse\0", 0),
            options.encode() + b"\0",
        )
        mapper = daemon.fork()
        # The mount is given up when its last descriptor closes: only the daemon has one.
        mapper.os("close", fd)
        daemon.run(DAEMON, fd=fd)
        file = mapper.os("open", str(where / "file"), 0)
        start = mapper.mmap(3, protection=PROT_READ, flags=2, fd=file)
        mapper.ask("peek", [start, start + PAGE])
        # Another has it as its root directory.
        mapper.fork().os("chroot", str(where))
        daemon.run("os.memlens_state['hang'] = True")
        try:
            # The thread ends with the next request, which nobody answers.
            mapper.run(ASK, path=str(where / "file"))
            wait_until(
                lambda: not daemon.run("result = os.memlens_thread.is_alive()"), "it hangs"
            )
            yield Hung(mapper, where)
        finally:
            daemon.os("close", fd)
