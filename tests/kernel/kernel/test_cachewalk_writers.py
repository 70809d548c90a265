"""The page-cache walk while writers swap, punch and dirty the object under it."""

import ctypes
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from memlens.kernel.cacherecords import CacheRecords, CacheWalkInvalid
from memlens.kernel.cachewalk import CacheWalker
from tests.kernel.support.driver import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, MADV_PAGEOUT
from tests.kernel.support.swapped_objects import (
    MAKE,
    PAGE,
    Object,
    by_page,
    read_slots,
    swap_lines,
    swapped_pages,
)

HAMMER_S = 4.0
WRITERS = 2

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


@contextmanager
def writers(made: Object, pages: list[int], span: int, until: float) -> Iterator[None]:
    """Hammer these pages from other processes, each act on up to ``span`` of them."""
    pids = []
    try:
        for seed in range(WRITERS):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    hammer(made, pages, span, until, random.Random(seed))
                    status = 0
                finally:
                    os._exit(status)
            pids.append(pid)
        yield
    finally:
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]  # they end by the clock
    assert statuses == [0] * WRITERS


def hammer(made: Object, pages: list[int], span: int, until: float, rng: random.Random) -> None:
    while time.monotonic() < until:
        page = rng.choice(pages)
        count = rng.randint(1, span - page % span)
        start, length = page * PAGE, count * PAGE
        act = rng.randrange(6)
        if act < 2:
            made.mapping.madvise(MADV_PAGEOUT, start, length)
        elif act == 2:
            mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
            libc.fallocate(made.fd, mode, start, length)
        elif act == 3:
            libc.fallocate(made.fd, 0, start, length)
        else:
            made.bytes[start : start + length : PAGE] = rng.randrange(1, 256)


@pytest.mark.parametrize("swap", ["zram"], indirect=True)
@pytest.mark.parametrize(("kind", "span"), [("memfd", 8), ("huge shmem", 512)], ids=str)
def test_a_walk_among_writers(swap: str, walker: CacheWalker, kind: str, span: int) -> None:
    """
    Every other block of pages is left alone: it must be seen the same by every walk.

    The others change all the time: what a walk says of them is accepted only if it can
    be, and after the last change it must be what the kernel says too.
    """
    with MAKE[kind](16 * 512) as made:
        made.fill()
        made.page_out()
        page, slot = by_page(walker.walk_fd(made.fd))
        assert len(page) == made.pages
        hammered = (np.arange(made.pages) // span) % 2 == 1
        quiet_slot = slot[~hammered]
        walks = voids = changed = 0
        until = time.monotonic() + HAMMER_S
        with writers(made, np.flatnonzero(hammered).tolist(), span, until):
            while time.monotonic() < until:
                try:
                    records = walker.walk_fd(made.fd)
                except CacheWalkInvalid:
                    voids += 1
                    continue
                walks += 1
                assert (quiet_slots(by_page(records), hammered) == quiet_slot).all()
                changed += swapped_pages(records) != made.pages
        assert walks > 50
        assert changed > walks // 2
        assert voids <= walks // 100
        last = walker.walk_fd(made.fd)
        assert swapped_pages(last) == last.object.swapped
        assert last.pages.sum() == last.object.alloced
        slots = by_page(last)[1]
        assert len(np.unique(slots)) == len(slots)
        prove_against_memory(made, last)


def prove_against_memory(made: Object, records: CacheRecords) -> None:
    """
    Read the slots from the device, then the pages through the mapping: they must agree.

    A page of zeroes owns a slot that newer kernels never write, and cannot be compared.
    """
    page, slot = by_page(records)
    (line,) = swap_lines()
    on_device = read_slots(line.split()[0], slot)
    in_memory = made.bytes.reshape(-1, PAGE)[page]
    is_zero = ~in_memory.any(axis=1)
    assert (on_device == in_memory).all(axis=1)[~is_zero].all()
    assert (~is_zero).sum() > made.pages // 2


def quiet_slots(
    found: tuple[NDArray[np.int64], NDArray[np.uint64]], hammered: NDArray[np.bool_]
) -> NDArray[np.uint64]:
    """Return the slot of every page that no writer touches, 0 where it has none."""
    dense = np.zeros(len(hammered), np.uint64)
    dense[found[0]] = found[1]
    return dense[~hammered]
