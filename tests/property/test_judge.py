"""
A process whose page table is a plain list: every way to read it says the same of each page.

The page table answers as PAGEMAP_SCAN and pagemap do, the objects as in plainobject.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memlens.kernel.maps import Mapping
from memlens.kernel.maps import table_of as maps_table_of
from memlens.kernel.pagemap import (
    PAGE_IS_PFNZERO,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    SCAN_REGIONS,
)
from memlens.kernel.procfs import Meter
from memlens.objects.opener import ANONYMOUS, VANISHED, ObjectFacts
from memlens.pages.classes import Entry, PageClass, Reason
from memlens.pages.parts import part_of
from memlens.pages.runs import Runs, decode_runs
from memlens.residency.judge import Batch, Judge
from memlens.residency.spans import Spans, batches, find_facts
from memlens.scan.pagetable import PageTable
from tests.property.plainobject import SHMEM, PlainMachine, PlainObject

SIZE = 4096
ZERO_PFN = 77
PRESENT, SWAP, FILE, EXCLUSIVE = 1 << 63, 1 << 62, 1 << 61, 1 << 56
SOFT_DIRTY = 1 << 55
# Word, categories of PAGEMAP_SCAN, entry.
WORDS = {
    "empty": (0, 0, Entry.EMPTY),
    # On kernels that track soft-dirty pages one that was never touched reads so.
    "soft-dirty": (SOFT_DIRTY, 0, Entry.EMPTY),
    "written": (PRESENT | EXCLUSIVE | SOFT_DIRTY | 5, PAGE_IS_PRESENT, Entry.PRESENT),
    "forked": (PRESENT | 5, PAGE_IS_PRESENT, Entry.PRESENT),
    "zero": (PRESENT | ZERO_PFN, PAGE_IS_PRESENT | PAGE_IS_PFNZERO, Entry.ZERO),
    "swapped": (SWAP | SOFT_DIRTY | 9 << 5, PAGE_IS_SWAPPED, Entry.SWAP),
    "guard": (SWAP | 31 | 1 << 58, PAGE_IS_SWAPPED, Entry.GUARD),
    "marker": (SWAP | 31 | 1 << 57, PAGE_IS_SWAPPED, Entry.WP_MARKER),
}
EMPTY = {"empty", "soft-dirty"}
BY_CLASS = {
    "written": PageClass.PRESENT,
    "forked": PageClass.PRESENT,
    "zero": PageClass.ZERO,
    "guard": PageClass.GUARD,
}


@dataclass
class PlainPagemap:
    """The page table of a process: a name of ``WORDS`` by page, others are empty."""

    pages: dict[int, str]
    page_size_bytes: int = SIZE
    meter: Meter = field(default_factory=Meter)
    calls: int = 0

    def scan_once(
        self, first: int, stop: int, any_of: int, wanted: int
    ) -> tuple[np.ndarray, int]:
        self.calls += 1
        regions: list[list[int]] = []
        for page in range(first, stop):
            _, categories, _ = WORDS[self.pages.get(page, "empty")]
            if not categories & any_of:
                continue
            last = regions[-1] if regions else [0, 0, 0]
            if last[1] == page * SIZE and last[2] == categories & wanted:
                last[1] += SIZE
            elif len(regions) == SCAN_REGIONS:
                return np.array(regions, np.uint64), regions[-1][1] // SIZE
            else:
                regions.append([page * SIZE, (page + 1) * SIZE, categories & wanted])
        return np.array(regions, np.uint64).reshape(-1, 3), stop

    def iter_words(self, first: int, pages: int) -> Iterator[tuple[int, np.ndarray]]:
        self.calls += 1
        for begin in range(first, first + pages, 8192):
            piece = range(begin, min(begin + 8192, first + pages))
            words = [WORDS[self.pages.get(page, "empty")][0] for page in piece]
            yield begin, np.array(words, np.uint64)


def machine_of(use_scan: bool, **more: Any) -> PlainMachine:
    """Return one that has only the page table and the objects to ask."""
    absent = {"smaps", "cachewalk"} | (set() if use_scan else {"pagemap_scan"})
    return PlainMachine(page_size_bytes=SIZE, disabled=frozenset(absent), **more)


names = st.sampled_from(sorted(WORDS))
# Long stretches, and crumbs of which PAGEMAP_SCAN cannot tell many at a time.
stretches_of_words = st.lists(
    st.tuples(names, names, st.integers(1, 3000), st.sampled_from([1, 1, 2, 5])), max_size=5
).map(
    lambda rows: [
        one if page // step % 2 else other
        for one, other, pages, step in rows
        for page in range(pages)
    ]
)


@settings(max_examples=30)
@given(plain=stretches_of_words, use_scan=st.booleans(), first=st.integers(0, 9000))
def test_entries_equal_one_page_at_a_time(plain: list[str], use_scan: bool, first: int) -> None:
    table = PageTable(PlainPagemap(dict(enumerate(plain))), machine_of(use_scan), ZERO_PFN)
    stop = len(plain) + 5
    expected = [WORDS[name][2] for name in (*plain, *["empty"] * 5)][first:]
    runs = table.entries([(first, stop)])
    assert all(first <= begin for begin, _, _ in runs)
    found = decode_runs(runs, max(stop, first), fill=Entry.EMPTY)[first:]
    assert found.tolist() == expected
    assert table.read_densely(first, max(stop, first)).tolist() == expected


def test_kept_words_are_those_that_say_anything() -> None:
    pages = dict(enumerate(["soft-dirty", "written", "empty", "guard"]))
    for use_scan in (True, False):
        machine = machine_of(use_scan)
        table = PageTable(PlainPagemap(pages), machine, ZERO_PFN, keep_words=True)
        table.entries([(0, 4)])
        words = table.take_words(0, 4)
        assert words.page.tolist() == [1, 3]
        assert words.word.tolist() == [WORDS[pages[page]][0] for page in (1, 3)]


def test_crumbs_are_read_as_words() -> None:
    """Else a call of PAGEMAP_SCAN for each thousand pages."""
    pages = dict.fromkeys(range(0, 200000, 2), "written")
    pagemap = PlainPagemap(pages)
    table = PageTable(pagemap, machine_of(use_scan=True), ZERO_PFN)
    runs = table.entries([(0, 200_000)])
    assert (runs.value == Entry.PRESENT).sum() == 100_000
    assert pagemap.calls < 10


@dataclass(frozen=True)
class Plain:
    """One mapping: pages before it, its words, and its object (None: anonymous memory)."""

    gap: int
    words: list[str]
    object: int | None
    page: int


def mappings_of(words: st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[Plain]]:
    """Return mappings of three objects, one beyond the end of which they may reach."""
    one = st.builds(
        Plain,
        gap=st.sampled_from([0, 1, 5000]),
        words=words,
        object=st.none() | st.integers(0, 2),
        page=st.integers(0, 60),
    )
    return st.lists(one, min_size=1, max_size=12)


few_words = st.lists(st.sampled_from(["empty", "soft-dirty", "written", "guard"]), min_size=1)
objects = st.lists(
    st.lists(st.sampled_from(sorted(SHMEM)), max_size=70), min_size=3, max_size=3
)


class PlainOpener:
    """Opens objects that are lists; ``gone`` are mappings that have vanished since."""

    def __init__(self, states: list[list[str]], gone: frozenset[int] = frozenset()) -> None:
        self.states = states
        self.gone = gone
        self.opened: list[int] = []
        self.process: Any = SimpleNamespace(pid=1)
        self.on_open: Callable[[], None] = lambda: None

    def facts(self, mapping: Mapping) -> ObjectFacts:
        return ObjectFacts("shmem") if mapping.inode else ANONYMOUS

    def open(self, mapping: Mapping) -> Any:
        if mapping.start in self.gone:
            return VANISHED
        self.opened.append(mapping.inode)
        self.on_open()
        item = PlainObject("shmem", self.states[mapping.inode - 1])
        item.close = lambda: None
        return item


def judge_of(pagemap: PlainPagemap, opener: PlainOpener, **more: Any) -> Judge:
    return Judge(PageTable(pagemap, machine_of(**more), ZERO_PFN), opener)


def build(plain: list[Plain]) -> tuple[PlainPagemap, list[Mapping]]:
    pages: dict[int, str] = {}
    mappings = []
    address = 100
    for one in plain:
        address += one.gap
        pages |= dict(enumerate(one.words, address))
        stop = address + len(one.words)
        number = 0 if one.object is None else one.object + 1
        offset = one.page * SIZE if number else 0
        mapping = Mapping(
            address * SIZE, stop * SIZE, "rw-s" if number else "rw-p", offset, "0:1", number, ""
        )
        mappings.append(mapping)
        address = stop
    return PlainPagemap(pages), mappings


def spans_of(mappings: list[Mapping]) -> Spans:
    table = maps_table_of(mappings)
    pages = [(mapping.stop - mapping.start) // SIZE for mapping in mappings]
    return Spans(table, np.zeros(len(pages), np.int64), np.array(pages, np.int64))


def batch_of(judge: Judge, mappings: list[Mapping]) -> Batch:
    spans = spans_of(mappings)
    return Batch(judge, spans, find_facts(judge.opener, spans.mappings))


def read(batch: Batch) -> list[Runs]:
    runs, edges = batch.read()
    return [part_of(runs, low, high) for low, high in pairwise(edges.tolist())]


def class_of(one: Plain, page: int, states: list[list[str]]) -> PageClass:
    """Return the class of a page of a mapping, as it was made."""
    word = one.words[page]
    if word in BY_CLASS:
        return BY_CLASS[word]
    if one.object is None:
        return PageClass.NONE
    item, number = states[one.object], one.page + page
    return SHMEM[item[number]][0] if number < len(item) else PageClass.BEYOND_END


@pytest.mark.parametrize("use_scan", [True, False])
@given(plain=mappings_of(few_words), states=objects)
def test_a_batch_equals_one_page_at_a_time(
    use_scan: bool, plain: list[Plain], states: list[list[str]]
) -> None:
    pagemap, mappings = build(plain)
    opener = PlainOpener(states)
    judge = judge_of(pagemap, opener, use_scan=use_scan)
    batch = batch_of(judge, mappings)
    for mapping, one, runs in zip(mappings, plain, read(batch), strict=True):
        expected = [class_of(one, page, states) for page in range(len(one.words))]
        assert decode_runs(runs, len(one.words), fill=255).tolist() == expected
        alone = judge.read(mapping, 0, len(one.words))
        assert list(alone.runs) == list(runs)


@given(plain=mappings_of(few_words), states=objects, data=st.data())
def test_a_page_that_was_mapped_meanwhile_is_present(
    plain: list[Plain], states: list[list[str]], data: st.DataObject
) -> None:
    """The page table changes while the objects are asked."""
    pagemap, mappings = build(plain)
    later = [[data.draw(st.sampled_from(["empty", "written"])) for _ in p.words] for p in plain]
    opener = PlainOpener(states)
    judge = judge_of(pagemap, opener, use_scan=True)
    after, _ = build(
        [replace(one, words=words) for one, words in zip(plain, later, strict=True)]
    )
    opener.on_open = lambda: setattr(pagemap, "pages", after.pages)
    batch = batch_of(judge, mappings)
    for one, words, runs in zip(plain, later, read(batch), strict=True):
        found = decode_runs(runs, len(words), fill=255).tolist()
        for page, (was, now) in enumerate(zip(one.words, words, strict=True)):
            is_moved = one.object is not None and was in EMPTY and now == "written"
            wanted = PageClass.PRESENT if is_moved else class_of(one, page, states)
            assert found[page] == wanted


@given(plain=mappings_of(few_words), states=objects)
def test_each_object_is_opened_once(plain: list[Plain], states: list[list[str]]) -> None:
    pagemap, mappings = build(plain)
    opener = PlainOpener(states)
    judge = judge_of(pagemap, opener, use_scan=True)
    batch_of(judge, mappings).read()
    assert len(opener.opened) == len(set(opener.opened))


@given(plain=mappings_of(few_words), states=objects, data=st.data())
def test_a_mapping_that_vanished_takes_no_other_with_it(
    plain: list[Plain], states: list[list[str]], data: st.DataObject
) -> None:
    """Another mapping of the same object opens it; with none left all of it is unknown."""
    pagemap, mappings = build(plain)
    starts = [mapping.start for mapping in mappings]
    gone = data.draw(st.frozensets(st.sampled_from(starts)))
    opener = PlainOpener(states, gone)
    judge = judge_of(pagemap, opener, use_scan=True)
    batch = batch_of(judge, mappings)
    asking = {
        mapping.inode
        for mapping, one in zip(mappings, plain, strict=True)
        if EMPTY & set(one.words) and mapping.start not in gone
    }
    for one, runs in zip(plain, read(batch), strict=True):
        found = decode_runs(runs, len(one.words), fill=255).tolist()
        for page, value in enumerate(found):
            is_lost = (
                one.words[page] in EMPTY
                and one.object is not None
                and one.object + 1 not in asking
            )
            wanted = Reason.NOT_OPENED if is_lost else class_of(one, page, states)
            assert value == wanted
        assert set(batch.refusals.values()) <= {VANISHED}


@given(plain=mappings_of(few_words), states=objects, polls=st.integers(0, 6))
def test_a_batch_that_is_stopped_says_what_it_has(
    plain: list[Plain], states: list[list[str]], polls: int
) -> None:
    pagemap, mappings = build(plain)
    opener = PlainOpener(states)
    count = iter(range(1000))
    judge = judge_of(pagemap, opener, use_scan=True, should_stop=lambda: next(count) >= polls)
    batch = batch_of(judge, mappings)
    has_stopped = False
    for one, runs in zip(plain, read(batch), strict=True):
        for page, value in enumerate(decode_runs(runs, len(one.words), fill=255)):
            has_stopped |= value == Reason.STOPPED
            assert value in (Reason.STOPPED, class_of(one, page, states))
    assert batch.is_stopped or not has_stopped


# Words that change often, over an object of as many pages, some of them past its end.
crumbs = st.builds(
    lambda words, times, more: words * times + more,
    st.lists(
        st.sampled_from(["empty", "soft-dirty", "written", "marker"]), min_size=2, max_size=7
    ),
    st.integers(1, 400),
    st.lists(st.sampled_from(sorted(WORDS)), max_size=9),
)
long_objects = st.lists(
    st.tuples(st.sampled_from(sorted(SHMEM)), st.integers(1, 700)), max_size=4
).map(lambda rows: [state for state, pages in rows for _ in range(pages)])


@pytest.mark.parametrize("permissions", ["rw-s", "rw-p"])
@settings(max_examples=40)
@given(
    words=crumbs,
    states=long_objects,
    use_scan=st.booleans(),
    is_crumbled=st.booleans(),
    page=st.integers(0, 50),
)
def test_crumbs_equal_one_page_at_a_time(
    permissions: str,
    words: list[str],
    states: list[str],
    use_scan: bool,
    is_crumbled: bool,
    page: int,
) -> None:
    """Whether windows are read already, and the object is asked first, or not yet."""
    pagemap, [mapping] = build([Plain(0, words, 0, page)])
    mapping = replace_permissions(mapping, permissions)
    judge = judge_of(pagemap, PlainOpener([states]), use_scan=use_scan)
    judge.table.is_crumbled = is_crumbled
    verdicts = judge.read(mapping, 0, len(words))
    found = decode_runs(verdicts.runs, len(words), fill=255).tolist()
    for number, word in enumerate(words):
        expected: int = class_of(Plain(0, words, 0, page), number, [states])
        if word == "swapped":
            expected = PageClass.SWAPPED if permissions == "rw-p" else Reason.SHARED_SWAP
        assert found[number] == expected


def replace_permissions(mapping: Mapping, permissions: str) -> Mapping:
    fields = (mapping.offset_bytes, mapping.device, mapping.inode, mapping.path)
    return Mapping(mapping.start, mapping.stop, permissions, *fields)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 1 << 17)), max_size=20))
def test_lines_that_overlap_are_in_batches_of_their_own(rows: list[tuple[int, int]]) -> None:
    """Mappings that are joined while maps is read come twice, as they were and as they are."""
    mappings = [
        Mapping(start * SIZE, (start + pages) * SIZE, "rw-p", 0, "00:00", 0, "")
        for start, pages in rows
    ]
    found = list(batches(spans_of(mappings)))
    assert [mapping for batch in found for mapping in batch.mappings] == mappings
    for batch in found:
        assert all(one.stop <= other.start for one, other in pairwise(batch.mappings))
        assert len(batch) == 1 or batch.pages.sum() <= 1 << 18
