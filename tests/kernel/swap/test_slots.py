"""Areas and slots of swapped pages: held against pagemap, and what the swap device holds."""

import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from memlens import SwapLedger, map_process
from memlens.objects.backing import Backing
from memlens.pages.classes import PageClass
from memlens.pages.slotruns import SlotRuns
from memlens.residency.records import MappingPages, ProcessMap
from memlens.residency.walk import ObjectWalk, Walking
from memlens.scan.machine import Machine
from memlens.schema import json_schema
from memlens.views.swap import render
from memlens.views.text import TableOptions
from tests.kernel.support import oracle
from tests.kernel.support.driver import MADV_PAGEOUT
from tests.kernel.support.machine import wait_until
from tests.kernel.support.standstill import (
    StillLedger,
    again_if_moved,
    hold_rise,
    read_still_ledger,
)
from tests.kernel.support.swapped_objects import (
    MAKE,
    PAGE,
    Object,
    read_slots,
    swap_lines,
    swap_on,
    written_swap_file,
    zram_devices,
)
from tests.kernel.support.verdicts import can_walk

PAGES = 3_001
KPF_WRITEBACK = 8
SWAP_BYTES = 128 << 20
ON_SWAP = (PageClass.SWAPPED, PageClass.SWAP_CACHED)


@pytest.fixture(scope="module", params=["zram", "file"])
def area(
    request: pytest.FixtureRequest, machine: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Turn on one swap area, and return its path."""
    if not can_walk():
        pytest.skip("the page-cache walk cannot be used here")
    with ExitStack() as stack:
        if request.param == "zram":
            (device,) = stack.enter_context(zram_devices(1, SWAP_BYTES))
            stack.enter_context(swap_on(device))
        else:
            path = tmp_path_factory.mktemp("swap") / "area"
            stack.enter_context(written_swap_file(path, SWAP_BYTES))
        (line,) = swap_lines()
        yield line.split()[0]


def by_page(slots: SlotRuns) -> dict[int, tuple[int, int]]:
    return {
        first + n: (number, slot + n)
        for first, pages, number, slot in slots
        for n in range(pages)
    }


def mapping_at(address: int) -> MappingPages:
    result = map_process(os.getpid(), words=True)
    return next(row for row in result.each if row.start <= address < row.stop)


def on_swap(mapping: MappingPages) -> list[int]:
    return np.flatnonzero(np.isin(mapping.classes(), ON_SWAP)).tolist()


def test_slots_of_private_pages_are_those_of_pagemap(area: str) -> None:
    memory = mmap.mmap(-1, PAGES * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    content = np.frombuffer(memory, np.uint8)
    content[::PAGE] = 7
    memory.madvise(MADV_PAGEOUT)
    address = int(content.ctypes.data)
    mapping = mapping_at(address)
    assert mapping.slots is not None
    shift = (address - mapping.start) // PAGE
    slots = {page - shift: place for page, place in by_page(mapping.slots).items()}
    words = oracle.read_pagemap(os.getpid(), address, PAGES).tolist()
    wanted = {
        page: (word & 31, word >> 5 & (1 << 50) - 1)
        for page, word in enumerate(words)
        if word & 1 << 62
    }
    assert len(wanted) > PAGES // 2
    assert {page: place for page, place in slots.items() if 0 <= page < PAGES} == wanted
    del content
    memory.close()


@pytest.mark.parametrize("kind", MAKE)
def test_slots_of_shared_pages_hold_their_contents(area: str, kind: str) -> None:
    with MAKE[kind](PAGES) as item:
        content = item.fill()
        # Huge pages go out whole, or are split.
        scattered = np.random.default_rng(7).permutation(PAGES)
        item.page_out(None if kind == "huge shmem" else scattered)
        mapping = mapping_at(item.address)
        assert mapping.slots is not None
        slots = by_page(mapping.slots)
        swapped = on_swap(mapping)
        assert len(swapped) > PAGES // 2
        assert sorted(slots) == swapped
        assert {number for number, _ in slots.values()} == {0}
        where = np.array([slots[page][1] for page in swapped], np.uint64)

        def is_there() -> bool:
            return bool((read_slots(area, where) == content[swapped]).all())

        wait_until(is_there, f"contents of {len(swapped)} pages at their slots")


def test_json_lists_the_slots_of_private_and_shared_pages(area: str) -> None:
    with MAKE["memfd"](PAGES) as item:
        item.fill()
        item.page_out()
        command = [
            sys.executable,
            "-m",
            "memlens",
            "map",
            str(os.getpid()),
            "--words",
            "--json",
        ]
        found = ProcessMap.from_json(subprocess.check_output(command, text=True))
        (mapping,) = [row for row in found.each if row.start == item.address]
        assert mapping.slots is not None
        pages = int(mapping.slots.pages.sum())
        assert pages == mapping.swapped_pages + mapping.swap_cached_pages
        assert pages > PAGES // 2


def test_the_ledger_names_every_used_slot_once(area: str) -> None:
    """
    Slots of private pages after fork, some of which the child has read back, and of objects.

    On zram a page that comes back gives its slot up; on a swap file it keeps it, and the
    parent's page table holds the same slot: for two thirds of what the child read.
    """

    def look() -> None:
        before = read_still_ledger()
        private = mmap.mmap(-1, PAGES * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        np.frombuffer(private, np.uint8)[::PAGE] = 1
        with MAKE["memfd"](PAGES) as one, MAKE["shared anonymous"](PAGES) as other:
            fill_and_page_out(one, other)
            private.madvise(MADV_PAGEOUT)
            with forked(lambda: private[:: 3 * PAGE]) as child:
                drop(private, range(0, PAGES, 9))
                ledger = read_exact_ledger(before, owners=3)
        cached = {row.pid: row.swap_cached_pages for row in ledger.processes}.get(child, 0)
        if not area.startswith("/dev/zram"):
            assert cached > PAGES // 4
            assert ledger.sums["swap"]["swap_cache_pages"] > PAGES // 12

    again_if_moved(look)


@contextmanager
def forked(act: Callable[[], object]) -> Iterator[int]:
    """Fork a child that acts and waits to be ended at the end of the block."""
    done, is_done = os.pipe()
    child = os.fork()
    if not child:
        act()
        os.write(is_done, b"1")
        signal.pause()
    try:
        os.read(done, 1)
        yield child
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(done)
        os.close(is_done)


def fill_and_page_out(*items: Object) -> None:
    for item in items:
        item.fill()
        item.page_out()


def drop(memory: mmap.mmap, pages: range) -> None:
    """Give these pages up: whoever shares them after fork has their slots alone."""
    for page in pages:
        memory.madvise(mmap.MADV_DONTNEED, page * PAGE, PAGE)


def test_exit_frees_what_the_ledger_says(area: str) -> None:
    """
    Swapped pages, pages read back, and those that the parent holds as well.

    The kernel leaves a page that is still being written to swap, with its slot, to reclaim.
    """

    def look() -> None:
        at_first = read_still_ledger()
        private = mmap.mmap(-1, PAGES * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        np.frombuffer(private, np.uint8)[::PAGE] = 1
        private.madvise(MADV_PAGEOUT)
        start = int(np.frombuffer(private, np.uint8).ctypes.data)
        with forked(lambda: private[:: 3 * PAGE]) as child:
            drop(private, range(0, PAGES, 2))
            wait_until(lambda: not is_written_back(child, start), "all pages written to swap")
            before = read_exact_ledger(at_first, owners=1)
        last = read_still_ledger()
        hold_rise(at_first, last, 0)
        (row,) = [row for row in before.processes if row.pid == child]
        assert row.freed_on_exit_pages > PAGES // 4
        # Others may have gone to swap or come back: they are named, so that they can be left
        # out.
        others = named_by_others(last.ledger, child) - named_by_others(before, child)
        used = [one.sums["swap"]["total_pages"] for one in (before, last.ledger)]
        freed = used[0] - used[1] + others
        assert freed == row.freed_on_exit_pages

    again_if_moved(look)


def is_written_back(pid: int, start: int) -> bool:
    """Return whether any page of the mapping is being written to swap."""
    words = oracle.read_pagemap(pid, start, PAGES)
    flags = oracle.read_kpageflags(words[(words >> np.uint64(63)) == 1])
    return any(flag >> KPF_WRITEBACK & 1 for flag in flags)


def named_by_others(ledger: SwapLedger, child: int) -> int:
    """Return the slots of everybody but the child and this process, its parent."""
    family = (child, os.getpid())
    return sum(owner.pages for owner in ledger.slot_owners if owner.pid not in family)


def read_exact_ledger(before: StillLedger, *, owners: int) -> SwapLedger:
    """Read a ledger in which every slot that came into use since ``before`` has one owner."""
    after = read_still_ledger()
    ledger = after.ledger
    assert ledger.slot_map is not None
    assert ledger.slot_map.is_walked
    assert not len(ledger.slots_claimed_twice)
    assert not ledger.slot_map.cache_reason
    named = sum(row.named_pages for row in ledger.slot_areas)
    assert named == ledger.sums["swap"]["explained_pages"]
    assert all(row.named_pages <= (row.used_pages or 0) for row in ledger.slot_areas)
    assert len(ledger.slot_owners) >= owners
    hold_rise(before, after, 0)
    return ledger


def test_the_map_is_drawn(area: str, tmp_path: Path) -> None:
    with MAKE["memfd"](PAGES) as item:
        fill_and_page_out(item)
        command = [sys.executable, "-m", "memlens", "swap", "--by", "area", "--map"]
        text = subprocess.check_output(command, text=True)
        assert f"Area 0 ({area})" in text
        assert "memfd:memlens-cachewalk" in text
        report = tmp_path / "report.json"
        report.write_bytes(subprocess.check_output([*command, "--json"]))
        again = SwapLedger.from_json(report.read_text())
        jsonschema.validate(json.loads(report.read_text()), json_schema(SwapLedger))
        lines = render(again, TableOptions(80), table="areas", has_map=True)
        drawn = "".join("".join(part.text for part in line) + "\n" for line in lines)
        environment = {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "ascii"}
        command_again = [*command, "--from", str(report)]
        assert drawn == subprocess.check_output(command_again, text=True, env=environment)
        refused = subprocess.run([*command, "--csv"], capture_output=True, check=False)
        assert refused.returncode == 2


def test_what_is_looked_at_again_is_not_named_twice(area: str) -> None:
    """Ranges of an object again, in any order: pages in the swap cache are asked for twice."""
    with MAKE["memfd"](PAGES) as item:
        fill_and_page_out(item)
        machine = Machine()
        backing = Backing(item.fd, "shmem", machine, True, "an object")
        walking = Walking(machine, is_eager=True)
        walk = ObjectWalk(walking, backing, has_seek=True, has_mincore=True)
        once = walk_all(walk, [(0, PAGES)])
        assert int(once.pages.sum()) > PAGES // 2
        for again in ([(700, 900), (950, 960), (5, 8)], [(2, 3), (0, PAGES), (3000, 3001)]):
            slots = walk_all(walk, [(0, PAGES), *again])
            assert by_page(slots) == by_page(once)
            assert int(slots.pages.sum()) == int(once.pages.sum())


def walk_all(walk: ObjectWalk, ranges: list[tuple[int, int]]) -> SlotRuns:
    for first, stop in ranges:
        assert walk.walk(first, stop) is not None
    return walk.take_slots()
