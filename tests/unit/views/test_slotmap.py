"""Who has which slot: made of facts by hand."""

import numpy as np
import pytest

from memlens.pages.runs import EMPTY
from memlens.pages.slotruns import SlotRuns
from memlens.scan.facts import ProcessFacts
from memlens.scan.machine import Machine
from memlens.shm.facts import ObjectFacts
from memlens.swap.slots import (
    CachedSlots,
    SlotMap,
    confirm_claims,
    count_slots,
    make_slot_map,
)
from memlens.views.swap import count_cells

NO_PROC = "/nowhere"


def process(pid: int, *slots: tuple[int, int]) -> ProcessFacts:
    words = np.array(sorted(slot << 5 | area for area, slot in slots), np.uint64)
    facts = object.__new__(ProcessFacts)
    for name, value in (("pid", pid), ("name", f"p{pid}"), ("swap_words", words)):
        object.__setattr__(facts, name, value)
    return facts


def shared(name: str, *runs: tuple[int, int, int, int]) -> ObjectFacts:
    columns = [np.array(column, np.int64) for column in zip(*runs, strict=True)]
    slots = SlotRuns(columns[0], columns[1], columns[2].astype(np.uint8), columns[3])
    return ObjectFacts("memfd", name, "00:01", 1, 0, 0, EMPTY, (), (), slots=slots)


def slot_map(
    processes: list[ProcessFacts],
    objects: list[ObjectFacts],
    cached: CachedSlots | None = None,
) -> SlotMap:
    slots = count_slots(processes, cached or CachedSlots())
    return make_slot_map(processes, slots, objects, Machine(NO_PROC), is_walked=True)


def test_every_slot_has_its_owner_and_stretches_are_counted() -> None:
    found = slot_map(
        [process(7, (0, 1), (0, 2), (0, 9)), process(8, (0, 2), (1, 5))],
        [shared("memfd:a", (0, 3, 0, 3), (10, 2, 0, 7))],
    )
    assert [(o.name, o.pages, o.extents, o.also_held_pages) for o in found.owners] == [
        ("memfd:a", 5, 2, 0),
        ("p7", 3, 2, 1),
        ("p8", 1, 1, 0),
    ]
    assert not len(found.twice)
    assert [(o.pid, o.object, o.sign) for o in found.owners] == [
        *((None, 0, "A"), (7, None, "B"), (8, None, "C")),
    ]
    assert [(run.area, run.slot, run.pages, run.owner) for run in found.runs] == [
        *((0, 1, 2, 1), (0, 3, 3, 0), (0, 7, 2, 0), (0, 9, 1, 1)),
        (1, 5, 1, 2),
    ]
    assert [(area.area, area.named_pages) for area in found.areas] == [(0, 8), (1, 1)]


@pytest.mark.parametrize(
    ("processes", "objects", "claims"),
    [
        ([process(7, (0, 4))], [shared("a", (0, 3, 0, 3))], [(0, 4, 1)]),
        ([], [shared("a", (0, 5, 2, 3)), shared("b", (0, 9, 2, 5))], [(2, 5, 3)]),
        ([], [shared("a", (0, 5, 0, 3), (9, 1, 0, 4))], [(0, 4, 1)]),
        ([], [shared("a", (0, 9, 0, 1), (9, 1, 0, 2)), shared("b", (0, 1, 0, 7))], None),
        ([process(7, (0, 4)), process(8, (0, 4))], [], []),
        ([process(7, (0, 4))], [shared("a", (0, 3, 1, 3))], []),
    ],
)
def test_a_slot_that_two_claim_is_told(
    processes: list[ProcessFacts],
    objects: list[ObjectFacts],
    claims: list[tuple[int, int, int]] | None,
) -> None:
    found = slot_map(processes, objects)
    seen = [(claim.area, claim.slot, claim.pages) for claim in found.twice]
    assert seen == ([(0, 2, 1), (0, 7, 1)] if claims is None else claims)


def test_cells_add_up_to_the_slots() -> None:
    found = slot_map([process(7, (0, 1), (0, 99))], [shared("a", (0, 50, 0, 20))])
    (area,) = found.areas
    for cells in (1, 7, 100, 5000):
        table, per_cell = count_cells(found.runs, area.slots, cells)
        assert len(table) <= cells
        assert len(table) * per_cell >= area.slots
        assert table[:, 0].sum() == 50
        assert table[:, 1].sum() == 2


def test_a_claim_names_both_owners() -> None:
    (claim,) = slot_map([process(7, (0, 4))], [shared("a", (0, 3, 0, 3))]).twice
    assert (claim.area, claim.slot, claim.pages) == (0, 4, 1)
    assert (claim.owner, claim.other_owner) == (0, 1)


def test_slots_of_pages_in_ram_are_named_as_those_of_their_process() -> None:
    words = {8: np.array([2 << 5, 3 << 5], np.uint64)}
    found = slot_map([process(7, (0, 1), (0, 2)), process(8)], [], CachedSlots(words=words))
    rows = [(o.pid, o.pages, o.also_held_pages) for o in found.owners]
    assert rows == [(7, 2, 1), (8, 1, 0)]
    assert not len(found.twice)
    assert not found.limits.cache_reason


def test_a_claim_counts_if_two_looks_agree() -> None:
    first = slot_map([process(7, (0, 4), (0, 9))], [shared("a", (0, 3, 0, 3), (9, 1, 0, 9))])
    second = slot_map([process(6), process(7, (0, 5), (0, 9))], [shared("a", (0, 7, 0, 3))])
    assert [(claim.slot, claim.pages) for claim in first.twice] == [(4, 1), (9, 1)]
    assert [claim.slot for claim in second.twice] == [5, 9]
    assert [claim.slot for claim in confirm_claims(first, second).twice] == [9]
    assert not len(confirm_claims(slot_map([], []), second).twice)
