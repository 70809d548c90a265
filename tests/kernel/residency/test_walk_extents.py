"""
Objects of many thousand pages in many extents of every class: the walk against the others.

The catalogue has each kind of memory in 23 pages; this has 20,011 pages, so that large
ranges, pieces and the bisection of cachestat come in, and that `map` walks of its own accord.
What is true is asked of the kernel page by page, before and after.
"""

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from memlens import PageClass, ProcessMap, map_process
from tests.kernel.support import oracle
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.driver import MADV_PAGEOUT, MADV_WILLNEED
from tests.kernel.support.machine import StateMoved
from tests.kernel.support.standstill import again_if_moved
from tests.kernel.support.swapped_objects import MAKE, PAGE, Object
from tests.kernel.support.verdicts import Look, can_walk, looker, used_by

PAGES = 20_011
ON_SWAP = pytest.mark.parametrize("swap", ["zram", "file"], indirect=True)
IN_SHMEM = ("swapped", "swap_cached", "present", "cached", "preallocated", "none")
LONGEST = 400
FADV_DONTNEED = 4

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]

Extents = list[tuple[str, int, int]]
P = PageClass


def draw_extents(kinds: tuple[str, ...], seed: int) -> Extents:
    """Return (kind, first page, pages) one after the other, from one page to hundreds."""
    rng = np.random.default_rng(seed)
    extents: Extents = []
    first = 0
    while first < PAGES:
        pages = min(int(2 ** rng.uniform(0, np.log2(LONGEST))), PAGES - first)
        extents.append((str(rng.choice(kinds)), first, pages))
        first += pages
    return extents


def build_shmem(item: Object, fd: int, squeeze: Squeeze) -> None:
    """Bring the object into a state of many extents; what came of it, ``ask`` says."""
    extents = draw_extents(IN_SHMEM, 11)

    def each(kind: str) -> Iterator[tuple[int, int]]:
        return ((first * PAGE, pages * PAGE) for name, first, pages in extents if name == kind)

    with squeeze.cgroup() as cgroup:
        with cgroup.charging(os.getpid()):
            for kind in ("swapped", "swap_cached"):
                for start, length in each(kind):
                    item.bytes[start : start + length : PAGE] = 1 + (start // PAGE) % 250
        for kind in ("swapped", "swap_cached"):
            for start, length in each(kind):
                item.mapping.madvise(MADV_PAGEOUT, start, length)
        cgroup.reclaim()
    for start, length in each("swap_cached"):
        item.mapping.madvise(MADV_WILLNEED, start, length)
    for start, length in each("present"):
        item.bytes[start : start + length : PAGE] = 7
    for start, length in each("cached"):
        os.pwrite(fd, b"x" * length, start)
    for start, length in each("preallocated"):
        assert libc.fallocate(fd, 0, start, length) == 0


def ask(address: int, fd: int, is_shmem: bool) -> NDArray[np.uint8]:
    """Return the class of each page as the kernel's own interfaces tell it, one by one."""
    is_present = (oracle.read_pagemap(os.getpid(), address, PAGES) >> np.uint64(63)) == 1
    found = oracle.read_object(fd, 0, PAGES)
    assert found.cached is not None
    assert found.evicted is not None
    assert found.resident is not None
    assert found.data is not None
    rows = [
        (is_present, PageClass.PRESENT),
        (found.cached & found.data, PageClass.CACHED),
        (found.cached, PageClass.PREALLOCATED),
        (found.evicted & found.resident & is_shmem, PageClass.SWAP_CACHED),
        (found.evicted & is_shmem, PageClass.SWAPPED),
        (found.data, PageClass.ON_DISK),
    ]
    masks, values = zip(*rows, strict=True)
    return np.select(masks, values, PageClass.NONE).astype(np.uint8)


def compare(address: int, fd: int, without: Look, is_shmem: bool = True) -> NDArray[np.uint8]:
    """Hold both looks against what is true; raise StateMoved if that changed meanwhile."""
    before = ask(address, fd, is_shmem)
    walked = map_process(os.getpid(), words=True)
    plain = map_process(os.getpid())
    asked = without(os.getpid())
    if not (ask(address, fd, is_shmem) == before).all():
        raise StateMoved("pages moved meanwhile")
    assert "cachewalk" in used_by(walked)
    assert "cachewalk" not in used_by(asked)
    for result in (walked, plain, asked):
        assert not any("void" in note for note in result.notes)
        wrong = np.flatnonzero(classes_at(result, address) != before)
        assert not len(wrong), (used_by(result), wrong[:9], before[wrong[:9]])
    return before


def classes_at(result: ProcessMap, address: int) -> NDArray[np.uint8]:
    (row,) = [row for row in result.each if row.start <= address < row.stop]
    shift = (address - row.start) // PAGE
    return row.classes()[shift : shift + PAGES]


def count_extents(classes: NDArray[np.uint8], kind: PageClass) -> int:
    is_kind = np.concatenate([[False], classes == kind])
    return int((is_kind[1:] & ~is_kind[:-1]).sum())


@pytest.fixture(scope="module")
def without(machine: None) -> Iterator[Look]:
    """Return a reader that may not walk."""
    if not can_walk():
        pytest.skip("the page-cache walk cannot be used here")
    with looker(["cachewalk"]) as look:
        yield look


@contextmanager
def opened_again(item: Object) -> Iterator[int]:
    """Open the object for writing."""
    fd = os.open(f"/proc/self/fd/{item.fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@ON_SWAP
@pytest.mark.parametrize("kind", list(MAKE))
def test_shared_memory_in_many_extents(
    swap: str, kind: str, squeeze: Squeeze, without: Look
) -> None:
    with MAKE[kind](PAGES) as item, opened_again(item) as fd:
        build_shmem(item, fd, squeeze)
        found = again_if_moved(lambda: compare(item.address, fd, without))
    wanted = [P.SWAPPED, P.PRESENT, P.CACHED, P.PREALLOCATED, P.NONE]
    if swap == "file":
        wanted.append(P.SWAP_CACHED)
    if kind == "huge shmem":
        # A huge page is allocated whole: none of it is a hole, or set aside.
        wanted = [P.SWAPPED, P.PRESENT, P.CACHED]
    assert {kind: count_extents(found, kind) > 5 for kind in wanted} == dict.fromkeys(
        wanted, True
    )


@pytest.mark.parametrize("swap", ["none"], indirect=True)
def test_a_disk_file_in_many_extents(swap: str, without: Look, tmp_path: Path) -> None:
    with mapped_file(tmp_path / "file") as (address, fd, touch):
        for kind, first, pages in draw_extents(("on_disk", "cached", "present", "none"), 12):
            if kind != "none":
                os.pwrite(fd, b"x" * (pages * PAGE), first * PAGE)
            if kind == "on_disk":
                os.fsync(fd)
                os.posix_fadvise(fd, first * PAGE, pages * PAGE, FADV_DONTNEED)
            if kind == "present":
                touch(first, pages)
        found = again_if_moved(lambda: compare(address, fd, without, is_shmem=False))
    for kind in (P.ON_DISK, P.CACHED, P.PRESENT, P.NONE):
        assert count_extents(found, kind) > 5, kind


@contextmanager
def mapped_file(path: Path) -> Iterator[tuple[int, int, Callable[[int, int], None]]]:
    """Map a sparse file; yield its address, descriptor, and what touches pages of it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, PAGES * PAGE)
        with mmap.mmap(fd, PAGES * PAGE) as mapping:
            mapping.madvise(mmap.MADV_RANDOM)  # no readahead into what is to stay on disk
            view = np.frombuffer(mapping, np.uint8)

            def touch(first: int, pages: int) -> None:
                view[first * PAGE : (first + pages) * PAGE : PAGE] = 3

            yield int(view.ctypes.data), fd, touch
            view = np.empty(0, np.uint8)  # or the mapping cannot be closed
    finally:
        os.close(fd)
