"""Drive a target process: memory is mapped, written and advised there, from here."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kernel.support.target import receive, send

PAGE = os.sysconf("SC_PAGE_SIZE")
HUGE = 2 << 20

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
READ_WRITE = PROT_READ | PROT_WRITE
MAP_SHARED, MAP_PRIVATE, MAP_DROPPABLE = 0x01, 0x02, 0x08
MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE, MAP_HUGETLB = 0x10, 0x20, 0x4000, 0x40000
MADV_NORMAL = 0
MADV_RANDOM, MADV_WILLNEED, MADV_DONTNEED, MADV_FREE = 1, 3, 4, 8
MADV_REMOVE, MADV_MERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE = 9, 12, 14, 15
MADV_PAGEOUT, MADV_GUARD_INSTALL = 21, 102
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
MS_REC, MS_PRIVATE, MNT_DETACH = 0x4000, 1 << 18, 2


# It runs nothing but pause(2), on a stack of its own: everything else is the target's.
_TWIN = """
libc.mmap.restype = ctypes.c_void_p
stack = libc.mmap(None, 65536, 3, 0x22, -1, 0)
clone_vm, child_signal = 0x100, 17
libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
pause = ctypes.cast(libc.pause, ctypes.c_void_p)
result = libc.clone(pause, stack + 65536, clone_vm | child_signal, None)
"""


class Target:
    """
    One process under our hand.

    :param pid: its PID here.
    :param channel: our end of the socket it serves.
    """

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self.children: list[Target] = []

    def ask(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        """Run one command there and return its answer, or raise what it raised."""
        send(self.channel, (name, arguments, keywords))
        return self._answer()

    def _answer(self) -> Any:
        is_good, answer = receive(self.channel)
        if not is_good:
            raise answer
        return answer

    def libc(self, name: str, *arguments: int | bytes | None) -> int:
        """Call a C function there; OSError if it returns -1."""
        return self.ask("libc", name, *arguments)[0]

    def ioctl(self, fd: int, request: int, data: bytes) -> bytes:
        """Do an ioctl there and return the buffer as the kernel left it."""
        return self.ask("libc", "ioctl", fd, request, data)[1][0]

    def os(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        """Call a function of ``os`` there."""
        return self.ask("os", name, *arguments, **keywords)

    def run(self, code: str, **values: Any) -> Any:
        """Run Python code there; it leaves its answer in ``result``."""
        return self.ask("run", code, values)

    def fork(self) -> "Target":
        """Fork there; the child is driven in the same way."""
        ours, theirs = socket.socketpair()
        send(self.channel, ("fork", (), {}))
        socket.send_fds(self.channel, [b"f"], [theirs.fileno()])
        theirs.close()
        child = Target(self._answer(), ours)
        self.children.append(child)
        return child

    @contextmanager
    def twin(self) -> Iterator[int]:
        """Run another process in the memory of the target, and yield its PID."""
        pid = self.run(_TWIN)
        try:
            yield pid
        finally:
            os.kill(pid, signal.SIGKILL)
            self.os("waitpid", pid, 0)

    # Memory

    def mmap(
        self,
        pages: int,
        *,
        protection: int = READ_WRITE,
        flags: int = MAP_PRIVATE | MAP_ANONYMOUS,
        fd: int = -1,
        offset_pages: int = 0,
        align: int = PAGE,
    ) -> int:
        """
        Map ``pages`` pages with a hole before and after, so that they merge with nothing.

        :return: the address.
        """
        size = pages * PAGE
        room = size + 2 * align
        base = self.libc("mmap", None, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        start = (base + align) // align * align
        self.libc("munmap", base, room)
        fixed = flags | MAP_FIXED
        return self.libc("mmap", start, size, protection, fixed, fd, offset_pages * PAGE)

    def madvise(self, start: int, pages: Iterable[int], advice: int) -> None:
        """Advise exactly these pages of the mapping at ``start``."""
        for first, count in spans(pages):
            self.libc("madvise", start + first * PAGE, count * PAGE, advice)

    def poke(self, start: int, pages: Iterable[int]) -> None:
        """Write to each of these pages; no two get the same contents."""
        for page in pages:
            self.ask("poke", [start + page * PAGE], b"memlens" + page.to_bytes(4, "little"))

    def peek(self, start: int, pages: Iterable[int]) -> None:
        """Read each of these pages."""
        self.ask("peek", [start + page * PAGE for page in pages])

    def pwrite(self, fd: int, pages: Iterable[int], size: int = PAGE) -> None:
        """Write these pages of a file, one call each so that each is a folio of its own."""
        for page in pages:
            self.os("pwrite", fd, b"memlens".ljust(size, b"%d" % (page % 10)), page * PAGE)

    def fallocate(self, fd: int, pages: Iterable[int], mode: int = FALLOC_FL_KEEP_SIZE) -> None:
        """Allocate (or punch) exactly these pages of a file."""
        for first, count in spans(pages):
            self.libc("fallocate", fd, mode, first * PAGE, count * PAGE)

    def isolate_mounts(self) -> None:
        """Give the target mounts of its own: they go when it goes."""
        self.libc("unshare", CLONE_NEWNS)
        self.libc("mount", b"none\0", b"/\0", None, MS_REC | MS_PRIVATE, None)

    def mount(self, kind: str, where: Path, options: str = "", device: str = "") -> None:
        """Mount a filesystem, in the target's own mounts only."""
        where.mkdir(exist_ok=True, parents=True)
        name, data = kind.encode() + b"\0", options.encode() + b"\0"
        source = device.encode() + b"\0" if device else name
        self.libc("mount", source, bytes(where) + b"\0", name, 0, data)

    def end(self) -> None:
        """Close the socket: the target ends, and so do those it forked."""
        for child in self.children:
            child.end()
        self.channel.close()
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def spans(pages: Iterable[int]) -> list[tuple[int, int]]:
    """
    Join page numbers into ``(first, count)``.

    >>> spans([4, 5, 9])
    [(4, 2), (9, 1)]
    """
    joined: list[tuple[int, int]] = []
    for page in sorted(pages):
        if joined and sum(joined[-1]) == page:
            joined[-1] = (joined[-1][0], joined[-1][1] + 1)
        else:
            joined.append((page, 1))
    return joined


def pages_where(states: Sequence[str], *wanted: str) -> list[int]:
    """Return the numbers of the pages whose state is one of ``wanted``."""
    return [page for page, state in enumerate(states) if state in wanted]


@contextmanager
def target(*, cpu: int | None = 0) -> Iterator[Target]:
    """
    Start a target and end it, whatever happens.

    It stays on one CPU, since pages that another CPU has just faulted in wait in that
    CPU's batch and cannot be reclaimed.
    """
    ours, theirs = socket.socketpair()
    script = str(Path(__file__).with_name("target.py"))
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", script, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    driven = Target(process.pid, ours)
    try:
        if cpu is not None:
            os.sched_setaffinity(process.pid, {cpu})
        driven.os("getpid")
        yield driven
    finally:
        driven.end()
        process.wait()
