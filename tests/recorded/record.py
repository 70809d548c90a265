"""
Record /proc files of a process whose memory is known, into a directory named after the kernel.

    unshare --mount /usr/bin/python3 tests/recorded/record.py tests/recorded/NAME

Needs root: it mounts a tmpfs on /mnt, in its own mount namespace, so that the paths recorded
are the same on every machine.  What was made stands beside the record, in made.json.
"""

import ctypes
import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

PAGES = 23
PAGE_SIZE = mmap.PAGESIZE
NAMES = ("plain", "with space", "two  spaces ", "new\nline", "tab\there", "café", "gone")
MAP_FAILED = ctypes.c_void_p(-1).value

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)


def map_memory(flags: int, fd: int, offset: int = 0) -> int:
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address = libc.mmap(None, PAGES * PAGE_SIZE, protection, flags, fd, offset)
    if address == MAP_FAILED:
        raise OSError(ctypes.get_errno(), "mmap")
    return int(address)


def touch(address: int, pages: int) -> None:
    for page in range(pages):
        ctypes.memset(address + page * PAGE_SIZE, 1, 1)


def make_all() -> list[dict[str, object]]:
    made: list[dict[str, object]] = []

    def add(name: str, address: int, touched: int, permissions: str, offset: int, inode: int):
        touch(address, touched)
        made.append(
            {
                "path": name,
                "start": address,
                "stop": address + PAGES * PAGE_SIZE,
                "permissions": permissions,
                "offset_bytes": offset,
                "inode": inode,
                "touched_pages": touched,
            }
        )

    for number, name in enumerate(NAMES):
        path = Path("/mnt") / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 100 * PAGE_SIZE)
        offset = number * PAGE_SIZE
        address = map_memory(mmap.MAP_SHARED, fd, offset)
        shown = str(path).replace("\n", "\\012")
        inode = os.fstat(fd).st_ino
        if name == "gone":
            path.unlink()
            shown += " (deleted)"
        add(shown, address, number, "rw-s", offset, inode)
    fd = os.memfd_create("a memfd")
    os.ftruncate(fd, PAGES * PAGE_SIZE)
    inode = os.fstat(fd).st_ino
    add("/memfd:a memfd (deleted)", map_memory(mmap.MAP_SHARED, fd), 5, "rw-s", 0, inode)
    add("/memfd:a memfd (deleted)", map_memory(mmap.MAP_PRIVATE, fd), 3, "rw-p", 0, inode)
    return made


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=True)
    made = make_all()
    for name in ("maps", "smaps"):
        (directory / name).write_bytes(Path("/proc/self", name).read_bytes())
    version = os.uname().release.partition("-")[0]
    kernel = {"version": version, "page_size_bytes": PAGE_SIZE}
    text = json.dumps({"kernel": kernel, "made": made}, indent=1, ensure_ascii=False)
    (directory / "made.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
