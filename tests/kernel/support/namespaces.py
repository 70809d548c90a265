"""Namespaces, mounts and threads of a target's own."""

import ctypes
import platform
from contextlib import ExitStack
from pathlib import Path

from tests.kernel.support.driver import CLONE_NEWNS, MNT_DETACH, Target
from tests.kernel.support.machine import undone_at_exit
from tests.kernel.support.oracle import libc

CLONE_FILES = 0x400
CLONE_NEWIPC = 0x08000000
MS_BIND = 4096
# System calls that libc has no function for.
NR_EXIT = {"x86_64": 60}.get(platform.machine(), 93)


def start_thread(driven: Target, flags: int, work: str = "", **values: object) -> int:
    """
    Start a thread that first unshares this from the others, and then only waits.

    :param work: what it runs in between; of ``values``, and what it sets stays with the target.
    """
    code = """
import threading
ready = threading.Event()
values.update(os=os, ctypes=ctypes, libc=libc)
os.memlens_thread_values = values
def run():
    if libc.unshare(flags) == 0:
        exec(work, values)
        ready.set()
    threading.Event().wait()
thread = threading.Thread(target=run, daemon=True)
thread.start()
result = thread.native_id if ready.wait(10) else None
"""
    tid: int | None = driven.run(code, flags=flags, work=work, values=values)
    if tid is None:
        raise OSError("no thread")
    return tid


def mount_in_a_thread(driven: Target, where: Path, name: str) -> int:
    """Mount a tmpfs in the mount namespace of one thread, make a file there, and return it."""
    work = """
libc.mount(b"none", b"/", None, 0x44000, None)
libc.mount(b"tmpfs", where, b"tmpfs", 0, None)
fd = os.open(os.path.join(where, name), os.O_RDWR | os.O_CREAT, 0o600)
"""
    where.mkdir()
    return start_thread(driven, CLONE_NEWNS, work, where=bytes(where), name=name.encode())


def mount_tmpfs(stack: ExitStack, where: Path, options: str = "") -> None:
    """Mount a tmpfs here until the stack ends."""
    if libc.mount(b"memlens", bytes(where), b"tmpfs", 0, options.encode()) == -1:
        raise OSError(ctypes.get_errno(), f"mount {where}")
    stack.enter_context(undone_at_exit(lambda: libc.umount2(bytes(where), MNT_DETACH)))
