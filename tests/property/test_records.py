"""Every page of a map is counted once, however the pages are grouped."""

from collections import Counter
from datetime import UTC, datetime

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memlens.pages.classes import PageClass, counts_by_name
from memlens.pages.runs import encode_runs
from memlens.report import Cost
from memlens.residency.records import Kernel, MappingPages, Process, ProcessMap

PAGE_SIZE = 4096
pages = st.lists(st.sampled_from(PageClass), min_size=1, max_size=60)
paths = st.sampled_from(["", "[heap]", "/usr/bin/true", "/dev/zero (deleted)"])


def mapping_of(plain: list[PageClass], path: str, start_page: int) -> MappingPages:
    return MappingPages(
        start=start_page * PAGE_SIZE,
        stop=(start_page + len(plain)) * PAGE_SIZE,
        permissions="rw-p",
        offset_bytes=0,
        device="00:00",
        inode=0,
        path=path,
        object="anonymous",
        page_size_bytes=PAGE_SIZE,
        runs=encode_runs(np.array(plain, np.uint8)),
    )


def map_of(rows: list[tuple[list[PageClass], str]]) -> ProcessMap:
    mappings = []
    position = 16
    for plain, path in rows:
        mappings.append(mapping_of(plain, path, position))
        position += len(plain) + 1
    process = Process(1, "init", (), datetime(2026, 1, 1, tzinfo=UTC))
    return ProcessMap(
        Kernel("6.18.0", PAGE_SIZE), process, {}, tuple(mappings), Cost(0.0, 0, 0.0)
    )


@given(pages)
def test_classes_partition_the_pages(plain: list[PageClass]) -> None:
    mapping = mapping_of(plain, "", 16)
    assert mapping.pages == len(plain)
    assert mapping.counts().sum() == mapping.pages
    assert mapping.classes().tolist() == plain


@given(pages)
def test_counts_equal_one_page_at_a_time(plain: list[PageClass]) -> None:
    named = counts_by_name(mapping_of(plain, "", 16).counts())
    assert named == Counter(kind.label for kind in plain)


@given(st.lists(st.tuples(pages, paths), max_size=6))
def test_tallies_sum_for_every_grouping(rows: list[tuple[list[PageClass], str]]) -> None:
    found = map_of(rows)
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
