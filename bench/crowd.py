"""
A machine's worth of processes, which sleep until stdin ends.

    crowd.py PROCESSES MAPPERS BYTES FULL

One object of BYTES, a quarter of it on swap if there is any, is mapped by MAPPERS of the
PROCESSES; FULL of these have all of what is in RAM in their page tables, the others a
sixteenth.  Each process has private memory of its own, a part of it on swap, and what a
small server in Python has: the modules below.
"""

import asyncio
import ctypes
import decimal
import email.message
import http.client
import json
import logging.handlers
import mmap
import multiprocessing
import os
import signal
import sqlite3
import ssl
import subprocess
import sys

MODULES = (asyncio, decimal, email, http, logging, multiprocessing, sqlite3, ssl)
PR_SET_PDEATHSIG = 1
MADV_PAGEOUT, MADV_POPULATE_READ = 21, 22
PRIVATE_BYTES = 256 << 10
SWAPPED_BYTES = 64 << 10

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Make the processes, say so, and end them when stdin ends."""
    processes, mappers, size, full = map(int, sys.argv[1:])
    fd, memory = make_object(size)
    readable, writable = os.pipe()
    children = []
    for number in range(processes):
        parts = 0 if number >= mappers else 16 if number < full else 1
        options = ["live", str(parts), str(size), str(fd if parts else -1), str(writable)]
        kept = (fd, writable) if parts else (writable,)
        command = [sys.executable, __file__, *options]
        children.append(subprocess.Popen(command, pass_fds=kept, stdin=subprocess.DEVNULL))
    ready = 0
    while ready < processes:
        ready += len(os.read(readable, processes))
    print(json.dumps({"pid": os.getpid(), "processes": processes, "bytes": size}), flush=True)
    sys.stdin.buffer.read()
    for child in children:
        child.kill()
    for child in children:
        child.wait()
    memory.close()


def make_object(size: int) -> tuple[int, mmap.mmap]:
    """Return a new object that is all written, and its mapping."""
    fd = os.memfd_create("crowd")
    os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size)
    piece = bytes([0x5A]) * (1 << 20)
    for start in range(0, size, 1 << 20):
        memory[start : start + len(piece)] = piece
    memory.madvise(MADV_PAGEOUT, 0, size // 4)
    return fd, memory


def live(parts: int, size: int, fd: int, writable: int) -> None:
    """Have private memory, and the object if ``parts`` sixteenths of it are wanted."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parts:
        first = size // 4
        # The mapping keeps its own descriptor, as it does in any Python.
        memory = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        os.close(fd)
        memory.madvise(MADV_POPULATE_READ, first, (size - first) * parts // 16)
    own = mmap.mmap(-1, PRIVATE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, PRIVATE_BYTES, mmap.PAGESIZE):
        own[start] = 1 + start % 251
    own.madvise(MADV_PAGEOUT, 0, SWAPPED_BYTES)
    os.write(writable, b"r")
    while True:
        signal.pause()


if __name__ == "__main__":
    if sys.argv[1] == "live":
        live(*map(int, sys.argv[2:]))
    else:
        main()
