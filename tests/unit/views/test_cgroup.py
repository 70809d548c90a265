"""Text of cgroup: widths, sums, names from outside."""

from dataclasses import replace

import pytest

from memlens.physical.records import (
    CgroupPages,
    CgroupTotal,
    ElsewherePages,
    FileCharge,
    KindPages,
    ProcessCharge,
    StatLine,
)
from memlens.record import Table
from memlens.report import Cost, Missed, Origin
from memlens.views import cgroup
from memlens.views.text import TableOptions

COST = Cost(0.1, 4096, 0.001)
EVIL = "/tmp-like/\x1b[2J" + "long " * 40 + "end"
WIDTHS = (40, 80, 120, 200)


def cgroup_pages() -> CgroupPages:
    return CgroupPages.at(
        Origin("2026-01-31T08:15:00Z", "host", "boot", "6.18.0", 4096, "0.1.0"),
        tables={
            "files": Table.of(FileCharge, [FileCharge(7, 0, EVIL)]),
            "processes": Table.of(
                ProcessCharge, [ProcessCharge(3, 4, n, f"p{n}", EVIL) for n in range(1, 15)]
            ),
            "kinds": Table.of(
                KindPages,
                [
                    KindPages("anonymous", "present", 60, 1),
                    KindPages("kernel", "present", 40, 0),
                ],
            ),
            "used_elsewhere": Table.of(ElsewherePages, [ElsewherePages(3, EVIL)]),
            "charged_elsewhere": Table.of(ElsewherePages, [ElsewherePages(2, "/b")]),
            "stat": Table.of(StatLine, [StatLine("anon", 50, 60, -10)]),
        },
        sections={"total": CgroupTotal(EVIL, 2, 3, 100, 5, 1, 2)},
        is_complete=False,
        missed=[Missed("x", "y")],
        notes=["note"],
        cost=COST,
    )


def drawn(width: int) -> str:
    lines = cgroup.render(cgroup_pages(), TableOptions(width))
    return "\n".join("".join(part.text for part in line) for line in lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_cgroup_fits(width: int) -> None:
    text = drawn(width)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= max(width, 60)
    assert "-40K" in text
    assert "4 more (--top" in text
    assert "2 pages changed hands" in text


def test_cgroup_is_not_all_known_where_pages_changed_hands() -> None:
    report = replace(cgroup_pages(), is_complete=True, missed=())
    assert not report.is_all_known
