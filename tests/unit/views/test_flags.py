"""Text of flags and huge: widths, long names, lists in pieces."""

from collections.abc import Iterable

import numpy as np
import pytest

from memlens.physical.records import (
    FlagCombination,
    FlagRange,
    FlagReport,
    FlagTotal,
    HugeCounter,
    HugeMapping,
    HugeProcess,
    HugeReport,
    HugeTotal,
    NodePages,
)
from memlens.record import Table
from memlens.report import Cost, Origin
from memlens.views import flags, huge
from memlens.views.text import Line, TableOptions

ORIGIN = Origin("2026-01-31T08:15:00Z", "host", "boot", "6.18.0", 4096, "0.1.0")
COST = Cost(0.1, 4096, 0.001)
EVIL = "evil\x1b[2J"
NAMES = "referenced, uptodate, dirty, lru, active, mmap, anonymous, swapbacked, mmap_exclusive"
WIDTHS = (80, 120, 200)


def drawn(lines: Iterable[Line]) -> list[str]:
    return ["".join(part.text for part in line) for line in lines]


def flag_total(pages: int) -> FlagTotal:
    return FlagTotal(f"Page cache of {EVIL}", pages, None, 0, 0, 0, 0)


@pytest.mark.parametrize("width", WIDTHS)
def test_combinations_fit_with_every_name(width: int) -> None:
    rows = [FlagCombination(999, -1 << 63, NAMES), FlagCombination(1, 0, "(none)")]
    report = FlagReport.at(
        ORIGIN,
        tables={
            "combinations": Table.of(FlagCombination, rows),
            "nodes": Table.of(NodePages, [NodePages(0, 600), NodePages(3, 400)]),
        },
        sections={"total": flag_total(1000)},
        cost=COST,
    )
    lines = drawn(flags.render(report, TableOptions(width)))
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= width
    assert "\x1b" not in text
    assert all(name in text for name in NAMES.split(", "))
    assert ">99% 0x8000000000000000" in text
    assert "1000 pages (3.9M) in all" in text
    assert "400 pages (1.6M) on node 3" in text
    (cut,) = [
        line
        for line in drawn(flags.render(report, TableOptions(width, top=1)))
        if "--top" in line
    ]
    assert cut == "1 more (--top N shows more)"


@pytest.mark.parametrize("width", WIDTHS)
def test_a_long_list_has_one_heading_and_columns_that_stay(width: int) -> None:
    count = 3000
    numbers = np.arange(count, dtype=np.int64)
    table = Table.of_columns(
        FlagRange,
        address=numbers << 12,
        pages=numbers + 1,
        pfn=np.ma.masked_array(numbers, numbers % 2 == 0),
        map_count=numbers % 7,
        word=numbers,
        cgroup=["/a" if number % 2 else None for number in range(count)],
        flags=["lru, mmap"] * count,
    )
    report = FlagReport.at(
        ORIGIN, tables={"ranges": table}, sections={"total": flag_total(9)}, cost=COST
    )
    lines = drawn(flags.render(report, TableOptions(width)))
    assert max(map(len, lines)) <= width
    assert sum("address" in line for line in lines) == 1
    assert len({line.index("lru") for line in lines if "lru" in line}) == 1
    assert sum("lru, mmap" in line for line in lines) == count
    assert sum("[/a]" in line for line in lines) == count // 2


@pytest.mark.parametrize("width", WIDTHS)
def test_huge_fits(width: int) -> None:
    figures = {
        "thp_pages": 512,
        "hugetlb_pages": 1024,
        "anonymous_pages": 1000,
        "file_pages": 0,
        "ksm_pages": 7,
        "zero_pages": 5,
        "huge_zero_pages": 0,
        "moved_pages": 0,
    }
    name = "anon-thp-pmd-aligned-2048kB"
    where = (7, 0x7F0000000000)
    report = HugeReport.at(
        ORIGIN,
        tables={
            "processes": Table.of(
                HugeProcess,
                [
                    HugeProcess(pid=n, ksm_profit_bytes=None, name=EVIL, **figures)
                    for n in (7, 9)
                ],
            ),
            "mappings": Table.of(
                HugeMapping,
                [HugeMapping(*where, where[1] + 4096, "rw-p", path="/x" * 150, **figures)],
            ),
            "counters": Table.of(
                HugeCounter,
                [
                    HugeCounter(None, None, "anon", name, 512),
                    HugeCounter(None, None, "hugetlb", "hugetlb-2048kB", 1024),
                    HugeCounter(*where, "anon", name, 512),
                ],
            ),
        },
        sections={"total": HugeTotal(processes=2, ksm_frames=1, ksm_saved_pages=6, **figures)},
        cost=COST,
    )
    lines = drawn(huge.render(report, TableOptions(width)))
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= width
    assert "\x1b" not in text
    assert text.count(f"{name} 512 pages 2M 51.2% of anon") == 2
    assert "hugetlb-2048kB 1024 pages 4M" in text
    assert "Total of 2 processes" in text
    rolled = drawn(huge.render(report, TableOptions(width), has_mappings=False))
    assert rolled[0] == "Total of 2 processes"
    assert "1 more (--top N shows more)" in drawn(
        huge.render(report, TableOptions(width, top=1))
    )
