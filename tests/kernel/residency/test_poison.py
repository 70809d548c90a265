"""Poison of huge pages, which words do not show."""

import pytest

from memlens import PageClass, map_process
from memlens.kernel.features import has_pagemap_scan
from tests.kernel.support.driver import HUGE, MAP_NORESERVE, MAP_SHARED, PAGE, target
from tests.kernel.workloads.hugetlb import MFD_HUGETLB, SMALL
from tests.kernel.workloads.userfault import poison, watch

# Written every other page: regions that no single call of PAGEMAP_SCAN gives.
CRUMBS = 1 << 13


def test_behind_crumbs_huge_pages_are_not_read_by_words(machine: None) -> None:
    """Where runs are short, words are read instead, until they are long again."""
    if not has_pagemap_scan():
        pytest.skip("needs PAGEMAP_SCAN")
    with target() as driven:
        fd = driven.os("memfd_create", "memlens-test", MFD_HUGETLB)
        driven.os("ftruncate", fd, HUGE)
        # A marker takes no huge page, so that no pool is needed.
        start = driven.mmap(SMALL, flags=MAP_SHARED | MAP_NORESERVE, fd=fd, align=HUGE)
        crumbs = driven.mmap(CRUMBS)
        assert crumbs < start
        driven.poke(crumbs, range(0, CRUMBS, 2))
        poison(driven, watch(driven, start, SMALL), start, range(SMALL))
        found = map_process(driven.pid, start=crumbs, stop=start + SMALL * PAGE)
    classes = {mapping.start: set(mapping.classes().tolist()) for mapping in found.each}
    assert classes[crumbs] == {PageClass.PRESENT, PageClass.NONE}
    assert classes[start] == {PageClass.UNKNOWN}
