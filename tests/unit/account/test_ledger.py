"""How slots of processes and objects are added up, from facts made by hand."""

from typing import Any

import numpy as np

from memlens.account.facts import ProcessFacts
from memlens.account.ledger import (
    _cached_pages,
    _count_slots,
    _number_areas,
    _process_rows,
    split_objects,
)
from memlens.account.sharedobject import Holder, SharedObject
from memlens.kernel.swaps import SwapArea
from memlens.pages.classes import PageClass
from memlens.pages.runs import encode_runs


def make_facts(pid: int, slots: list[int], **changes: Any) -> ProcessFacts:
    values: dict[str, Any] = {
        "pid": pid,
        "name": f"p{pid}",
        "uid": 0,
        "cgroup": "/",
        "start_ticks": 1,
        "uses": (),
        "swap_words": np.array(slots, np.uint64),
        "swap_pages": np.array(slots, np.int64),
        "is_swap_hidden": False,
        "frames": None,
        "ipc_namespace": 0,
    }
    return ProcessFacts(**{**values, **changes})


def make_object(kind: str, holders: dict[int, int], marks: tuple[str, ...]) -> SharedObject:
    classes = np.array([PageClass.SWAPPED] * 4 + [PageClass.SWAP_CACHED] * 2, np.uint8)
    return SharedObject(
        kind=kind,
        name=kind,
        device="00:01",
        inode=1,
        size_bytes=6 * 4096,
        uid=0,
        runs=encode_runs(classes),
        holders=tuple(
            Holder(pid, "x", mapped, None, not mapped) for pid, mapped in holders.items()
        ),
        marks=marks,
    )


def make_area(line: int) -> SwapArea:
    return SwapArea(line, f"/dev/{line}", "partition", 10, 5, -2)


def test_a_slot_shared_after_fork_counts_once_and_is_freed_by_neither() -> None:
    processes = [make_facts(1, [10, 11, 12]), make_facts(2, [11, 12, 13]), make_facts(3, [])]
    slots, holders = _count_slots(processes)
    assert dict(zip(slots.tolist(), holders.tolist(), strict=True)) == {
        10: 1,
        11: 2,
        12: 2,
        13: 1,
    }
    rows = {row.pid: row for row in _process_rows(processes, slots, holders, {}, {}, {})}
    assert [(rows[pid].own_pages, rows[pid].freed_on_exit_pages) for pid in (1, 2)] == [
        (3, 1),
        (3, 1),
    ]
    assert 3 not in rows


def test_an_object_is_split_evenly_over_those_who_map_it() -> None:
    shares, kept = split_objects([make_object("memfd", {1: 6, 2: 1, 3: 0}, ())])
    assert shares == {1: 3.0, 2: 3.0}
    assert kept == {}


def test_what_goes_with_its_only_holder() -> None:
    for kind, marks, expected in (
        ("memfd", (), {1: 6}),
        ("anonymous", (), {1: 6}),
        ("tmpfs", (), {}),
        ("tmpfs", ("deleted",), {1: 6}),
        ("sysv", (), {}),
        ("sysv", ("deleted",), {1: 6}),
    ):
        assert split_objects([make_object(kind, {1: 6}, marks)])[1] == expected, (kind, marks)


def make_cached(pid: int, pfns: list[int], pages: list[int], slots: list[int]) -> ProcessFacts:
    return make_facts(
        pid,
        slots,
        cached_pfns=np.array(pfns, np.uint64),
        cached_pages=np.array(pages, np.int64),
    )


def test_frames_in_the_swap_cache_count_once() -> None:
    found, doubtful = _cached_pages([make_cached(1, [7, 8], [100, 101], [])] * 2)
    assert (found[1].tolist(), doubtful) == ([7, 8], 0)


def test_a_frame_whose_slot_may_be_counted_already_is_left_out() -> None:
    """After fork: one process has read page 100 back, the other's table holds its slot."""
    reader = make_cached(1, [7, 8], [100, 101], [])
    other = make_facts(2, [55], swap_pages=np.array([100], np.int64))
    found, doubtful = _cached_pages([reader, other])
    assert (found[1].tolist(), doubtful) == ([8], 1)


def test_area_numbers_after_one_was_switched_off() -> None:
    two = (make_area(0), make_area(1))
    assert _number_areas(two, [0]) == [0, 1]
    assert _number_areas(two, [2, 0]) == [0, 2]
    assert _number_areas((), []) == []
