"""Shared memory of this process to be swapped out, and what the swap device holds of it."""

import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memlens.kernel.cacherecords import CacheRecords
from tests.kernel.support.driver import MADV_PAGEOUT, MAP_ANONYMOUS, MAP_SHARED
from tests.kernel.support.machine import undone_at_exit, wait_until

PAGE = mmap.PAGESIZE


class Object:
    """A shmem object of ours, mapped here."""

    def __init__(self, mapping: mmap.mmap, fd: int) -> None:
        self.mapping = mapping
        self.fd = fd
        self.bytes = np.frombuffer(mapping, np.uint8)
        self.address = int(self.bytes.ctypes.data)
        self.pages = len(mapping) // PAGE

    def fill(self) -> NDArray[np.uint8]:
        """Write random bytes to every page, and return a copy of them, page by page."""
        content = np.frombuffer(os.urandom(len(self.mapping)), np.uint8)
        self.bytes[:] = content
        return content.reshape(-1, PAGE)

    def page_out(self, pages: NDArray[np.int64] | None = None) -> None:
        """Page out these pages, in this order, or all."""
        if pages is None:
            self.mapping.madvise(MADV_PAGEOUT)
            return
        for page in pages.tolist():
            self.mapping.madvise(MADV_PAGEOUT, page * PAGE, PAGE)

    def close(self) -> None:
        """Unmap and close it; the memory is freed."""
        del self.bytes
        self.mapping.close()
        os.close(self.fd)


@contextmanager
def memfd(pages: int) -> Iterator[Object]:
    """A memfd, mapped."""
    fd = os.memfd_create("memlens-cachewalk", os.MFD_CLOEXEC)
    os.ftruncate(fd, pages * PAGE)
    yield from _opened(mmap.mmap(fd, pages * PAGE), fd)


@contextmanager
def shared_anonymous(pages: int) -> Iterator[Object]:
    """Shared anonymous memory, opened through map_files."""
    mapping = mmap.mmap(-1, pages * PAGE, MAP_SHARED | MAP_ANONYMOUS)
    start = int(np.frombuffer(mapping, np.uint8).ctypes.data)
    name = f"/proc/self/map_files/{start:x}-{start + pages * PAGE:x}"
    yield from _opened(mapping, os.open(name, os.O_RDONLY | os.O_CLOEXEC))


@contextmanager
def huge_shmem(pages: int) -> Iterator[Object]:
    """A file of a tmpfs that takes huge pages; unmounted at once, so it goes with its fd."""
    with ExitStack() as stack:
        where = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
        stack.callback(where.rmdir)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "huge=always", "t", where], check=True)
        stack.callback(subprocess.run, ["umount", "-l", where], check=True)
        fd = os.open(where / "object", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        os.ftruncate(fd, pages * PAGE)
    yield from _opened(mmap.mmap(fd, pages * PAGE), fd)


def _opened(mapping: mmap.mmap, fd: int) -> Iterator[Object]:
    made = Object(mapping, fd)
    try:
        yield made
    finally:
        made.close()


MAKE: dict[str, Callable[[int], AbstractContextManager[Object]]] = {
    "memfd": memfd,
    "shared anonymous": shared_anonymous,
    "huge shmem": huge_shmem,
}


def swapped_pages(records: CacheRecords) -> int:
    """Return how many pages are swapped out."""
    return int(records.pages[records.is_swap].sum())


def by_page(records: CacheRecords) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return number and slot of every swapped page."""
    lengths = np.where(records.is_swap, records.pages, 0)
    run = np.repeat(np.arange(len(records)), lengths)
    inside = np.arange(len(run)) - (np.cumsum(lengths) - lengths)[run]
    return records.index[run] + inside, records.slot[run] + inside.astype(np.uint64)


def read_slots(area: str, slots: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return what a swap area holds at these slots, past the page cache."""
    order = np.argsort(slots)
    gaps = np.flatnonzero(np.diff(slots[order]) != 1) + 1
    content = np.empty((len(slots), PAGE), np.uint8)
    fd = os.open(area, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        for run in np.split(order, gaps):
            with mmap.mmap(-1, len(run) * PAGE) as buffer:
                assert os.preadv(fd, [buffer], int(slots[run[0]]) * PAGE) == len(buffer)
                content[run] = np.frombuffer(buffer[:], np.uint8).reshape(-1, PAGE)
    finally:
        os.close(fd)
    return content


@contextmanager
def swap_on(area: Path) -> Iterator[None]:
    """Make a swap area of a file or device and use it."""

    def swap_off() -> None:
        if any(line.split()[0] == str(area) for line in swap_lines()):
            subprocess.run(["swapoff", area], check=True)

    subprocess.run(["mkswap", area], check=True, stdout=subprocess.DEVNULL)
    with undone_at_exit(swap_off):
        subprocess.run(["swapon", area], check=True)
        yield


@contextmanager
def written_swap_file(path: Path, size_bytes: int) -> Iterator[None]:
    """
    Use a swap file whose every block was written.

    Swap goes past the file system, which would read a block of a file that was only
    fallocated as zeroes, whatever swap wrote there.
    """
    with undone_at_exit(lambda: path.unlink(missing_ok=True)):
        with path.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            for _ in range(size_bytes >> 20):
                file.write(bytes(1 << 20))
            os.fsync(file.fileno())
        with swap_on(path):
            yield


@contextmanager
def zram_devices(count: int, size_bytes: int) -> Iterator[list[Path]]:
    """Add zram devices and remove them; none is swapped to yet."""
    control, block = Path("/sys/class/zram-control"), Path("/sys/block")
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            number = (control / "hot_add").read_text().strip()
            remove = partial((control / "hot_remove").write_text, number)
            stack.enter_context(undone_at_exit(remove))
            (block / f"zram{number}" / "disksize").write_text(str(size_bytes))
            made.append(Path(f"/dev/zram{number}"))
        yield made


def swap_lines() -> list[str]:
    """Return the lines of /proc/swaps that are swap areas."""
    return Path("/proc/swaps").read_text().splitlines()[1:]


def prove_slots(records: CacheRecords, content: NDArray[np.uint8]) -> None:
    """
    Compare every swapped page with what the only swap area holds at its slot.

    The kernel writes it some time after the page is called swapped.
    """
    page, slot = by_page(records)
    (line,) = swap_lines()

    def is_all_there() -> bool:
        return bool((read_slots(line.split()[0], slot) == content[page]).all())

    wait_until(is_all_there, f"{len(page)} pages at the slots that the walk gave")
