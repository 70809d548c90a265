"""How slots of processes and objects are added up, from facts made by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memlens.kernel.swaps import Swap, SwapArea
from memlens.pages.classes import PageClass
from memlens.pages.runs import encode_runs
from memlens.scan.facts import ProcessFacts
from memlens.scan.machine import Machine
from memlens.shm.facts import HolderFacts, ObjectFacts, split_objects
from memlens.swap.ledger import _area_rows, _process_rows
from memlens.swap.slots import CachedSlots, _doubted, count_slots

PAGE = Machine().page_size_bytes


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
        "swap_entries": len(slots),
    }
    return ProcessFacts(**{**values, **changes})


def make_object(kind: str, holders: dict[int, int], marks: tuple[str, ...]) -> ObjectFacts:
    classes = np.array([PageClass.SWAPPED] * 4 + [PageClass.SWAP_CACHED] * 2, np.uint8)
    return ObjectFacts(
        kind=kind,
        name=kind,
        device="00:01",
        inode=1,
        size_bytes=6 * 4096,
        uid=0,
        runs=encode_runs(classes),
        holders=tuple(
            HolderFacts(pid, "x", mapped, None, not mapped) for pid, mapped in holders.items()
        ),
        marks=marks,
    )


def make_area(line: int) -> SwapArea:
    return SwapArea(line, f"/dev/{line}", "partition", 10, 5, -2)


def test_a_slot_shared_after_fork_counts_once_and_is_freed_by_neither() -> None:
    processes = [make_facts(1, [10, 11, 12]), make_facts(2, [11, 12, 13]), make_facts(3, [])]
    slots = count_slots(processes, CachedSlots())
    assert dict(zip(slots.every.tolist(), slots.holders.tolist(), strict=True)) == {
        10: 1,
        11: 2,
        12: 2,
        13: 1,
    }
    rows = {row.pid: row for row in _process_rows(processes, slots, {}, {}, Machine())}
    assert [
        (rows[pid].swap_entries_pages, rows[pid].freed_on_exit_pages) for pid in (1, 2)
    ] == [
        (3, 1),
        (3, 1),
    ]
    assert [(rows[pid].swap_only_mine_pages, rows[pid].swap_share_bytes) for pid in (1, 2)] == [
        (1, 2 * PAGE),
        (1, 2 * PAGE),
    ]
    assert 3 not in rows


def test_entries_that_name_one_slot_count_each() -> None:
    """As where KSM has merged pages: they are one slot, freed once."""
    processes = [make_facts(1, [10, 11], swap_entries=7)]
    slots = count_slots(processes, CachedSlots())
    (row,) = _process_rows(processes, slots, {}, {}, Machine())
    assert (row.swap_entries_pages, row.swap_share_bytes) == (7, 2 * PAGE)
    assert (row.swap_only_mine_pages, row.freed_on_exit_pages) == (2, 2)


def test_slots_that_a_process_unseen_may_hold_are_freed_by_nobody_known() -> None:
    """What another process that was seen holds as well is not freed in any case."""
    processes = [make_facts(1, [10, 11]), make_facts(2, [11]), make_facts(3, [])]
    slots = count_slots(processes, CachedSlots(), may_miss_holders=True)
    rows = {row.pid: row for row in _process_rows(processes, slots, {}, {}, Machine())}
    assert {pid: row.freed_on_exit_pages for pid, row in rows.items()} == {1: None, 2: 0}
    assert {pid: row.swap_only_mine_pages for pid, row in rows.items()} == {1: None, 2: 0}
    assert {row.swap_share_bytes for row in rows.values()} == {None}
    freed, share = slots.notes()
    assert "freed on exit is not known of 1 process:" in freed
    assert "share is not known of 2 processes:" in share


def test_shares_add_up_to_private_pages_and_mapped_objects() -> None:
    """Three in a family, one of which has a page back in RAM that keeps its slot."""
    processes = [make_facts(1, [10, 11, 12]), make_facts(2, [11, 12]), make_facts(3, [12])]
    slots = count_slots(processes, cached_slots(p3=[11]))
    shares, kept = split_objects([make_object("memfd", {1: 6, 3: 1}, ())])
    rows = _process_rows(processes, slots, shares, kept, Machine())
    # Each share is rounded to a byte.
    total = sum(row.swap_share_bytes or 0 for row in rows)
    assert total == pytest.approx((len(slots.private) + 6) * PAGE, abs=len(rows))


def test_where_slots_are_hidden_only_entries_are_known() -> None:
    hidden = make_facts(1, [], is_swap_hidden=True, rollup={"VmSwap": 3 * PAGE})
    nothing = make_facts(2, [], is_swap_hidden=True)
    slots = count_slots([hidden, nothing], CachedSlots())
    (row,) = _process_rows([hidden, nothing], slots, {}, {}, Machine())
    assert (row.pid, row.swap_entries_pages) == (1, 3)
    assert (row.swap_only_mine_pages, row.swap_share_bytes, row.freed_on_exit_pages) == (
        *(None, None),
        None,
    )


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


def cached_slots(**words_by_process: list[int]) -> CachedSlots:
    words = {int(n[1:]): np.array(w, np.uint64) for n, w in words_by_process.items()}
    return CachedSlots(words=words, frames=words)


def test_a_slot_in_a_page_table_and_in_ram_counts_once_and_is_freed_by_neither() -> None:
    """After fork: 2 has read back 10, whose entry 1 still has, and 12, which is its own."""
    processes = [make_facts(1, [10, 11]), make_facts(2, [])]
    slots = count_slots(processes, cached_slots(p2=[10, 12]))
    assert (len(slots.private), slots.count_cached()) == (2, 1)
    rows = {row.pid: row for row in _process_rows(processes, slots, {}, {}, Machine())}
    assert [
        (r.swap_entries_pages, r.swap_cached_pages, r.freed_on_exit_pages)
        for r in rows.values()
    ] == [
        (2, 0, 1),
        (0, 2, 1),
    ]


def test_without_slots_frames_in_the_swap_cache_count_once() -> None:
    twice = [make_cached(1, [7, 8], [100, 101], []), make_cached(2, [7, 8], [100, 101], [])]
    found = _doubted(twice, twice, "no slots")
    assert (found.frames[1].tolist(), found.doubtful) == ([7, 8], 0)
    assert count_slots(twice, found).count_cached() == 2


def test_without_slots_a_frame_whose_slot_may_be_counted_already_is_left_out() -> None:
    """After fork: one process has read page 100 back, the other's table holds its slot."""
    reader = make_cached(1, [7, 8], [100, 101], [])
    other = make_facts(2, [55], swap_pages=np.array([100], np.int64))
    found = _doubted([reader], [reader, other], "no slots")
    assert (found.frames[1].tolist(), found.doubtful, found.is_exact) == ([8], 1, False)


def test_areas_whose_number_is_not_known_have_none(tmp_path: Path) -> None:
    lines = [
        "Filename Type Size Used Priority",
        *(f"/dev/{n} partition 40 20 -2" for n in "01"),
    ]
    (tmp_path / "swaps").write_text("\n".join(lines) + "\n")
    swap = Swap((make_area(0), make_area(1)))

    def rows(*slots: int) -> list[tuple[int | None, int | None]]:
        private = np.array(slots, np.uint64)
        found = _area_rows(swap, private, [], Machine(str(tmp_path)))
        return [(row.area, row.private_pages) for row in found]

    assert rows(32, 64, 34) == [(0, 2), (2, 1)]
    assert rows(32) == [(0, 1), (None, None)]
    assert rows(33) == [(None, None)] * 2
    assert rows() == [(None, 0)] * 2
