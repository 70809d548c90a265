"""
An object's verdicts, whatever its pages are and whichever interfaces are missing.

The object is a page cache in plain Python: a state per page, and the answers that the kernel
gives for each.  What the real kernel answers is asked in tests/kernel.
"""

import errno
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memlens.kernel.cacherecords import CacheObject, CacheRecords
from memlens.kernel.mounts import TMPFS_MAGIC
from memlens.pages.classes import PageClass, verdict_class
from memlens.pages.runs import decode_runs
from memlens.residency.answers import ObjectReader
from memlens.residency.walk import Walking, record_evidence
from tests.property.plainobject import STATES, PlainMachine, PlainObject

INTERFACES = ("seek_data", "cachestat", "mincore")


class ForeignObject(PlainObject):
    """An object that this reader may not write: cachestat refuses and mincore lies."""

    def cachestat(self, first: int, pages: int) -> tuple[int, int]:
        raise PermissionError(errno.EPERM, "not yours")

    def mincore(self, first: int, pages: int) -> np.ndarray:
        return np.ones(pages, bool)


def stretches(kind: str) -> st.SearchStrategy[list[str]]:
    """Return lists of states in which runs are common and blocks of cachestat differ."""
    stretch = st.tuples(st.sampled_from(sorted(STATES[kind])), st.integers(1, 700))
    return st.lists(stretch, max_size=8).map(
        lambda rows: [state for state, pages in rows for _ in range(pages)]
    )


def classes_of(item: PlainObject, disabled: Iterable[str], pages: int) -> list[PageClass]:
    reader = ObjectReader(item, PlainMachine(disabled=frozenset(disabled)))
    verdicts = decode_runs(reader.verdicts(0, pages), pages, fill=255)
    return [verdict_class(int(verdict)) for verdict in verdicts]


@pytest.mark.parametrize("kind", STATES)
@given(data=st.data())
def test_every_page_gets_its_class(kind: str, data: st.DataObject) -> None:
    states = data.draw(stretches(kind))
    expected = [STATES[kind][state][0] for state in states]
    assert classes_of(PlainObject(kind, states), (), len(states)) == expected


@pytest.mark.parametrize("kind", STATES)
@given(data=st.data(), disabled=st.sets(st.sampled_from(INTERFACES), min_size=1))
def test_without_an_interface_a_class_is_right_or_unknown(
    kind: str, data: st.DataObject, disabled: set[str]
) -> None:
    states = data.draw(stretches(kind))
    expected = [STATES[kind][state][0] for state in states]
    found = classes_of(PlainObject(kind, states), disabled, len(states))
    wrong = [
        (number, states[number], kind_found)
        for number, kind_found in enumerate(found)
        if kind_found not in (expected[number], PageClass.UNKNOWN)
    ]
    assert not wrong


@given(states=stretches("shmem"), lacks=st.sampled_from(["seek_data", "mincore"]))
def test_cachestat_and_one_other_are_enough_for_most(states: list[str], lacks: str) -> None:
    """What stays open without SEEK_DATA or mincore is what their difference alone shows."""
    found = classes_of(PlainObject("shmem", states), [lacks], len(states))
    open_states = {"on zram", "in the swap cache"} if lacks == "mincore" else set()
    unknown = {states[number] for number, kind in enumerate(found) if kind == PageClass.UNKNOWN}
    assert unknown <= open_states


@given(states=stretches("shmem"), more=st.integers(1, 50))
def test_pages_past_the_end(states: list[str], more: int) -> None:
    found = classes_of(PlainObject("shmem", states), (), len(states) + more)
    assert found[len(states) :] == [PageClass.BEYOND_END] * more


@given(states=stretches("shmem"), more=st.integers(0, 9))
def test_who_may_not_write_learns_only_the_size(states: list[str], more: int) -> None:
    found = classes_of(ForeignObject("shmem", states), (), len(states) + more)
    assert found == [PageClass.UNKNOWN] * len(states) + [PageClass.BEYOND_END] * more


def test_a_vast_hole_costs_few_calls() -> None:
    item = PlainObject("shmem", [])
    item.size_pages = lambda: 1 << 28
    reader = ObjectReader(item, PlainMachine(disabled=frozenset()))
    runs = list(reader.verdicts(0, 1 << 28))
    assert runs == [(0, 1 << 28, PageClass.NONE)]
    assert item.calls < 10


# By the page-cache walk: records of the same plain pages.

ON_SWAP = (PageClass.SWAPPED, PageClass.SWAP_CACHED)
FIRST_SLOT = 1000


class PlainWalking(Walking):
    """Records of a ``PlainObject``: a page is at the slot of its number, plus 1000."""

    def __init__(self, item: PlainObject, is_eager: bool, void: frozenset[int]) -> None:
        super().__init__(PlainMachine("/nowhere", disabled=frozenset()), is_eager=is_eager)
        self.item = item
        self.void = void
        self.walks = 0

    def is_usable(self) -> bool:
        return True

    def has_swap(self) -> bool:
        return True

    def walk_fd(self, fd: int, first: int, stop: int, name: str) -> CacheRecords | None:
        self.walks += 1
        if self.walks in self.void:
            return None
        return records_of(self.item, first, stop)


def records_of(item: PlainObject, first: int, stop: int) -> CacheRecords:
    rows = item.rows[first:stop]
    kept = np.flatnonzero([row[3] or (row[4] and item.kind == "shmem") for row in rows])
    is_swap = np.array([rows[page][4] for page in kept], bool)
    count = len(kept)
    zeros = np.zeros(count, np.uint8)
    return CacheRecords(
        object=CacheObject(TMPFS_MAGIC, 1, 1, 0, 0, 0, 0, None),
        index=kept + first,
        pages=np.ones(count, np.int64),
        is_swap=is_swap,
        area=zeros,
        slot=np.where(is_swap, kept + first + FIRST_SLOT, 0).astype(np.uint64),
        order=zeros,
        is_uptodate=np.array([rows[page][1] for page in kept], bool),
        is_dirty=zeros.astype(bool),
        is_writeback=zeros.astype(bool),
        flags=zeros.astype(np.uint64),
        cgroup_id=zeros.astype(np.uint64),
    )


def reader_of(item: PlainObject, walking: Walking) -> ObjectReader:
    return ObjectReader(item, walking.machine, walking)


@pytest.mark.parametrize("kind", STATES)
@given(data=st.data(), void=st.frozensets(st.integers(1, 4)))
def test_every_page_gets_its_class_and_its_slot(
    kind: str, data: st.DataObject, void: frozenset[int]
) -> None:
    states = data.draw(stretches(kind))
    item = PlainObject(kind, states)
    walking = PlainWalking(item, is_eager=True, void=void)
    reader = reader_of(item, walking)
    pages = len(states)
    found = decode_runs(reader.verdicts(0, pages), pages, fill=255)
    wanted = [STATES[kind][state][0] for state in states]
    assert [verdict_class(int(value)) for value in found] == wanted
    assert reader.walk is not None
    slots = {
        page + n: (area, slot + n)
        for page, count, area, slot in reader.walk.take_slots()
        for n in range(count)
    }
    on_swap = {page: (0, page + FIRST_SLOT) for page, k in enumerate(wanted) if k in ON_SWAP}
    assert slots == on_swap if not void else slots.items() <= on_swap.items()
    assert not len(reader.walk.take_slots())


@settings(max_examples=15)
@given(
    order=st.lists(  # each makes 40,000 pages
        st.sampled_from(["written", "on zram", "hole", "fallocated", "in the swap cache"]),
        min_size=2,
        max_size=4,
    )
)
def test_long_stretches_are_walked_or_asked_and_come_out_the_same(order: list[str]) -> None:
    states = [state for state in order for _ in range(40_000)]
    item = PlainObject("shmem", states)
    walking = PlainWalking(item, is_eager=False, void=frozenset())
    runs = reader_of(item, walking).verdicts(0, len(states))
    found = decode_runs(runs, len(states), fill=255)
    wanted = np.array([STATES["shmem"][state][0] for state in states], np.uint8)
    assert (found == wanted).all()
    assert walking.walks


def test_small_ranges_are_not_worth_the_walk() -> None:
    item = PlainObject("shmem", ["on zram"] * 100)
    walking = PlainWalking(item, is_eager=False, void=frozenset())
    reader_of(item, walking).verdicts(0, 100)
    assert not walking.walks


def test_records_fill_the_range_that_was_walked() -> None:
    item = PlainObject("shmem", ["hole"] * 8)
    assert list(record_evidence(records_of(item, 2, 5), "shmem", 2, 5)) == [(2, 3, 64 | 2)]
