"""Every page of a map is counted once, however the pages are grouped."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memlens.pages.classes import PageClass, counts_by_name
from memlens.residency.records import MappingPages, ProcessMap, counts_of
from memlens.residency.tables import select_classes
from tests.unit.processmaps import PAGE, map_of, mapping_of

pages = st.lists(st.sampled_from(PageClass), min_size=1, max_size=60)
paths = st.sampled_from(["", "[heap]", "/usr/bin/true", "/dev/zero (deleted)"])


def whole_of(rows: list[tuple[list[PageClass], str]]) -> ProcessMap:
    mappings = []
    position = 16
    for plain, path in rows:
        mappings.append(mapping_of(plain, path, position * PAGE))
        position += len(plain) + 1
    return map_of(*mappings)


def single(plain: list[PageClass]) -> MappingPages:
    return whole_of([(plain, "")]).each[0]


@given(pages)
def test_classes_partition_the_pages(plain: list[PageClass]) -> None:
    mapping = single(plain)
    assert mapping.pages == len(plain)
    assert mapping.counts().sum() == mapping.pages
    assert mapping.classes().tolist() == plain


@given(pages)
def test_counts_equal_one_page_at_a_time(plain: list[PageClass]) -> None:
    named = counts_by_name(single(plain).counts())
    assert named == Counter(kind.label for kind in plain)


@given(st.lists(st.tuples(pages, paths), max_size=6))
def test_tallies_sum_for_every_grouping(rows: list[tuple[list[PageClass], str]]) -> None:
    found = whole_of(rows)
    total = found.counts()
    by_mapping = sum(mapping.counts() for mapping in found.mappings) if rows else total
    by_path = np.zeros(len(PageClass), np.int64)
    for path in {mapping.path for mapping in found.mappings}:
        for mapping in found.mappings:
            if mapping.path == path:
                by_path += mapping.counts()
    by_class = [sum(plain.count(kind) for plain, _ in rows) for kind in PageClass]
    assert np.array_equal(by_mapping, total)
    assert np.array_equal(by_path, total)
    assert total.tolist() == by_class
    assert np.array_equal(counts_of(found.mappings).sum(axis=0), total)
    sums = found.sums["pages"]
    assert [sums[f"{kind.label}_pages"] for kind in PageClass] == by_class


@given(
    st.lists(st.tuples(pages, paths), max_size=6),
    st.sets(st.sampled_from(PageClass), min_size=1),
)
def test_some_classes_are_those_pages_and_no_others(
    rows: list[tuple[list[PageClass], str]], wanted: set[PageClass]
) -> None:
    whole = whole_of(rows)
    shown = select_classes(whole, wanted)
    expected = [
        [(page, kind) for page, kind in enumerate(plain) if kind in wanted] for plain, _ in rows
    ]
    found = [
        [
            (page, value)
            for first, count, value in row.runs
            for page in range(first, first + count)
        ]
        for row in shown.each
    ]
    assert found == [row for row in expected if row]
    assert shown.sums == whole.sums
    kept = [kind if kind in wanted else None for plain, _ in rows for kind in plain]
    assert shown.counts().tolist() == [kept.count(kind) for kind in PageClass]


@given(st.lists(st.tuples(pages, paths), max_size=6))
def test_what_is_read_back_is_what_was_written(rows: list[tuple[list[PageClass], str]]) -> None:
    found = whole_of(rows)
    again = ProcessMap.from_json("".join(found.to_json()))
    assert again == found
    assert [list(row.runs) for row in again.each] == [list(row.runs) for row in found.each]
