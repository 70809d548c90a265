"""Text and JSON of cgroup: widths, sums, names from outside."""

import json

import pytest

from memlens.account.cgroupmodel import (
    CgroupPages,
    ElsewherePages,
    KindPages,
    OwnerPages,
    StatLine,
)
from memlens.account.cost import Cost
from memlens.account.facts import Missed
from memlens.views import cgroup

COST = Cost(0.1, 4096, 0.001)
EVIL = "/tmp-like/\x1b[2J" + "long " * 40 + "end"
WIDTHS = (40, 80, 120, 200)


def cgroup_pages() -> CgroupPages:
    return CgroupPages(
        path=EVIL,
        version=2,
        page_size_bytes=4096,
        cgroups=3,
        charged_pages=100,
        kinds=(KindPages("anonymous", "present", 60, 1), KindPages("kernel", "present", 40, 0)),
        files=(OwnerPages(EVIL, 0, "", 7, 0),),
        processes=tuple(OwnerPages(f"p{n}", n, EVIL, 3, 4) for n in range(1, 15)),
        unowned_pages=5,
        used_elsewhere=(ElsewherePages(EVIL, 3),),
        only_elsewhere_pages=1,
        charged_elsewhere=(ElsewherePages("/b", 2),),
        stat=(StatLine("anon", 50, 60),),
        moved_pages=2,
        is_complete=False,
        missed=(Missed("x", "y"),),
        notes=("note",),
        cost=COST,
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_cgroup_fits(width: int) -> None:
    text = "".join(cgroup.render_text(cgroup_pages(), width))
    assert "\x1b" not in text
    table = [line for line in text.splitlines() if not line.startswith("note")]
    assert width < 80 or max(map(len, table)) <= width
    assert "-40K" in text
    assert "4 more (--top)" in text
    assert "stopped early" in text


def test_cgroup_json() -> None:
    found = json.loads(cgroup.render_json(cgroup_pages()))
    assert found["stat"] == [
        {"name": "anon", "stat_pages": 50, "found_pages": 60, "difference_pages": -10}
    ]
