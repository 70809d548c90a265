"""
A machine's worth of processes, which sleep until stdin ends.

    crowd.py PROCESSES MAPPERS BYTES FULL

One object of BYTES, a quarter of it on swap if there is any, is mapped by MAPPERS of the
PROCESSES; FULL of these have all of what is in RAM in their page tables, the others a
sixteenth.  Each process has private memory of its own, a part of it on swap.
"""

import ctypes
import json
import mmap
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
MADV_PAGEOUT, MADV_POPULATE_READ = 21, 22
PRIVATE_BYTES = 256 << 10
SWAPPED_BYTES = 64 << 10

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Make the processes, say so, and end them when stdin ends."""
    processes, mappers, size, full = map(int, sys.argv[1:])
    memory = make_object(size)
    readable, writable = os.pipe()
    children = []
    for number in range(processes):
        pid = os.fork()
        if pid == 0:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            parts = 0 if number >= mappers else 16 if number < full else 1
            live(memory, size, parts, writable)
        children.append(pid)
    ready = 0
    while ready < processes:
        ready += len(os.read(readable, processes))
    print(json.dumps({"pid": os.getpid(), "processes": processes, "bytes": size}), flush=True)
    sys.stdin.buffer.read()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    for pid in children:
        os.waitpid(pid, 0)


def make_object(size: int) -> mmap.mmap:
    """Return a mapping of a new object that is all written."""
    fd = os.memfd_create("crowd")
    os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size)
    os.close(fd)
    piece = bytes([0x5A]) * (1 << 20)
    for start in range(0, size, 1 << 20):
        memory[start : start + len(piece)] = piece
    memory.madvise(MADV_PAGEOUT, 0, size // 4)
    return memory


def live(memory: mmap.mmap, size: int, parts: int, writable: int) -> None:
    """Have private memory, and the object if ``parts`` sixteenths of it are wanted."""
    if parts:
        first = size // 4
        memory.madvise(MADV_POPULATE_READ, first, (size - first) * parts // 16)
    else:
        memory.close()
    own = mmap.mmap(-1, PRIVATE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, PRIVATE_BYTES, mmap.PAGESIZE):
        own[start] = 1 + start % 251
    own.madvise(MADV_PAGEOUT, 0, SWAPPED_BYTES)
    os.write(writable, b"r")
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
