"""
The slots of private pages in RAM, by frame: held against pagemap, contents, and churn.

Before a page comes back its page table entry names the slot; after, only its folio does.
"""

import ctypes
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from memlens.errors import AccessDenied, MemlensError, Unsupported
from memlens.kernel.frameslots import FrameSlotReader, FrameSlotsInvalid
from memlens.kernel.procfs import Host
from memlens.scan.facts import ProcessFacts, Want
from memlens.scan.machine import Machine
from memlens.scan.sweep import Sweep
from memlens.swap.slots import CachedSlots, add_unowned, find_cached_slots
from tests.kernel.support import oracle
from tests.kernel.support.driver import MADV_PAGEOUT
from tests.kernel.support.machine import setting, wait_until
from tests.kernel.support.swapped_objects import PAGE, read_slots, written_swap_file

PAGES = 12_289
HUGE_PAGES = 24 * 512
MADV_HUGEPAGE = 14
NOBODY = 65534
STRESS_S = 4.0


@pytest.fixture(scope="module")
def area(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A swap file, which keeps pages in the swap cache that zram lets go of; no readahead."""
    path = tmp_path_factory.mktemp("swap") / "area"
    with setting(Path("/proc/sys/vm/page-cluster"), 0), written_swap_file(path, 128 << 20):
        yield path


@pytest.fixture(scope="module")
def reader(machine: None) -> Iterator[FrameSlotReader]:
    try:
        made = FrameSlotReader(Host())
    except MemlensError as reason:
        pytest.skip(str(reason))
    with made:
        yield made


class Memory:
    """Private memory of random bytes, which goes to swap and comes back."""

    def __init__(self, pages: int, is_huge: bool = False) -> None:
        # Huge pages begin where 2 MiB do.
        self._mapping = mmap.mmap(
            -1, (pages + 512) * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        begin = int(np.frombuffer(self._mapping, np.uint8).ctypes.data)
        skipped = -begin % (512 * PAGE)
        self.address, self.pages = begin + skipped, pages
        if is_huge:
            self._mapping.madvise(MADV_HUGEPAGE)
        self._range = skipped, pages * PAGE
        self.content = np.frombuffer(os.urandom(pages * PAGE), np.uint8).reshape(-1, PAGE)
        ctypes.memmove(self.address, self.content.ctypes.data, pages * PAGE)

    def page_out(self) -> None:
        self._mapping.madvise(MADV_PAGEOUT, *self._range)

    def read(self, pages: NDArray[np.int64]) -> None:
        for page in pages.tolist():
            ctypes.string_at(self.address + page * PAGE, 1)

    def words(self) -> NDArray[np.uint64]:
        return oracle.read_pagemap(os.getpid(), self.address, self.pages)

    def close(self) -> None:
        self._mapping.close()


@contextmanager
def memory(pages: int, is_huge: bool = False) -> Iterator[Memory]:
    made = Memory(pages, is_huge)
    try:
        yield made
    finally:
        made.close()


def is_set(words: NDArray[np.uint64], mask: int) -> NDArray[np.bool_]:
    return (words & np.uint64(mask)) != 0


def back_again(item: Memory) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
    """Page out and read half back: return those pages, their slots, and their frames."""
    item.page_out()
    out = item.words()
    item.read(np.flatnonzero(np.random.default_rng(5).random(item.pages) < 0.5))
    now = item.words()
    page = np.flatnonzero(is_set(out, oracle.SWAP) & is_set(now, oracle.PRESENT))
    slot = (out[page] >> np.uint64(5) & np.uint64((1 << 50) - 1)).astype(np.int64)
    pfn = now[page] & np.uint64((1 << 55) - 1)
    order = np.argsort(pfn)
    return page[order], slot[order], pfn[order]


@pytest.mark.parametrize(("pages", "is_huge"), [(PAGES, False), (HUGE_PAGES, True)])
def test_a_page_read_back_keeps_the_slot_that_its_entry_had(
    area: Path, reader: FrameSlotReader, pages: int, is_huge: bool
) -> None:
    with memory(pages, is_huge) as item:
        page, slot, pfn = back_again(item)
        found = reader.read(pfn)
        assert len(page) > 5000
        # One that the machine took in between has no slot: none is wrong.
        assert int(found.is_cached.sum()) > len(page) * 9 // 10
        kept = found.is_cached
        assert (found.slot[kept] == slot[kept]).all()
        assert not found.area.any()
        assert not found.slot[~kept].any()
        assert (read_slots(str(area), slot[kept]) == item.content[page[kept]]).all()


def test_other_frames_keep_none(area: Path, reader: FrameSlotReader) -> None:
    """Pages never swapped, of files, of the kernel, and beyond physical memory."""
    with memory(1013) as item:
        own = item.words() & np.uint64((1 << 55) - 1)
        kernels = np.arange(1 << 15, dtype=np.uint64)
        beyond = np.array([1 << 34, (1 << 52) - 1], np.uint64)
        every = np.union1d(np.union1d(own, kernels), beyond)
        found = reader.read(every)
        assert not found.is_cached[np.isin(every, np.union1d(own, beyond))].any()
        # The first page of memory is the firmware's.
        assert not found.is_cached[0]


def test_a_wrong_array_is_found_out(area: Path) -> None:
    """An answer about the next frame contradicts kpageflags; it is never given."""

    class Shifted(FrameSlotReader):
        def _look(self, pfns: NDArray[np.uint64]) -> NDArray[np.uint64]:
            return super()._look(pfns + np.uint64(1 << 15))

    with memory(1013) as item:
        _, _, pfn = back_again(item)
        with Shifted(Machine()) as reader, pytest.raises(FrameSlotsInvalid, match="contradict"):
            reader.read(pfn)


def test_slots_outside_their_area_void_the_answer(area: Path, reader: FrameSlotReader) -> None:
    with memory(1013) as item:
        _, _, pfn = back_again(item)
        with pytest.raises(FrameSlotsInvalid, match="swap areas"):
            reader.read(pfn, areas=[])


def test_slots_of_nobody_are_those_of_no_process_that_was_read(area: Path) -> None:
    with memory(1013) as item:
        _, slot, pfn = back_again(item)
        facts = replace(
            next(f for f in swept() if f.pid == os.getpid()),
            swap_words=np.empty(0, np.uint64),
            cached_pfns=pfn,
        )
        ours = {s << 5 for s in slot.tolist()}
        unread = add_unowned(CachedSlots(), [], Machine())
        assert ours <= set(unread.unowned.tolist())
        known = find_cached_slots([facts], Machine())
        assert set(known.words[facts.pid].tolist()) == ours
        assert not ours & set(add_unowned(known, [facts], Machine()).unowned.tolist())
        by_entry = replace(facts, swap_words=np.array(sorted(ours), np.uint64))
        found = add_unowned(CachedSlots(), [by_entry], Machine())
        assert not ours & set(found.unowned.tolist())


def swept() -> list[ProcessFacts]:
    sweep = Sweep(Machine(), Want(swap=True))
    sweep.run([os.getpid()])
    return sweep.processes


CHURN = """
import mmap, os, sys
size = mmap.PAGESIZE
memory = mmap.mmap(-1, 2003 * size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = os.urandom(len(memory))
print(flush=True)
while True:
    memory.madvise(21)
    for page in range(0, 2003, 3):
        memory[page * size]
    for page in range(0, 2003, 7):
        memory[page * size] = page & 255
    memory.madvise(4, 1000 * size, 20 * size)
"""


def test_churn_gives_no_impossible_answer(area: Path, reader: FrameSlotReader) -> None:
    """Pages go, come back, are written and given up while their frames are looked at."""
    with subprocess.Popen([sys.executable, "-c", CHURN], stdout=subprocess.PIPE) as churn:
        try:
            assert churn.stdout is not None
            churn.stdout.readline()
            end, seen, void = time.monotonic() + STRESS_S, 0, 0
            while time.monotonic() < end:
                pfns = frames_of(churn.pid)
                try:
                    found = reader.read(pfns)
                except FrameSlotsInvalid:
                    void += 1
                    continue
                slots = found.slot[found.is_cached]
                assert len(np.unique(slots)) == len(slots)
                seen += len(slots)
            assert seen > 1000
            assert void == 0
        finally:
            churn.kill()


def frames_of(pid: int) -> NDArray[np.uint64]:
    """Return the frames of the largest private mapping of a process."""
    sizes = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        start, stop = (int(part, 16) for part in line.split()[0].split("-"))
        if stop - start == 2003 * PAGE:
            sizes.append(start)
    words = oracle.read_pagemap(pid, sizes[0], 2003)
    return np.unique(words[is_set(words, oracle.PRESENT)] & np.uint64((1 << 55) - 1))


def test_an_ordinary_user_gets_one_reason_at_once(machine: None) -> None:
    child = os.fork()
    if not child:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        began = time.perf_counter()
        try:
            FrameSlotReader(Host())
        except (AccessDenied, Unsupported):
            os._exit(0 if time.perf_counter() - began < 0.005 else 2)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_nothing_is_left_open(machine: None, reader: FrameSlotReader) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with FrameSlotReader(Host()):
        pass
    wait_until(lambda: sorted(os.listdir("/proc/self/fd")) == before, "descriptors closed")
