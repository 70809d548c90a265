"""Text of swap: a ledger that closes and fits; and the report read back."""

import json
from collections.abc import Iterator
from dataclasses import replace

import jsonschema
import pytest

from memlens.record import Table
from memlens.report import Cost, Missed, Origin, make_sum
from memlens.schema import json_schema
from memlens.shm.records import Holder
from memlens.swap.records import (
    AreaSwap,
    CgroupSwap,
    DoubleClaim,
    ProcessSwap,
    SlotArea,
    SlotMapLimits,
    SlotOwner,
    SlotRun,
    SwapLedger,
    SwappedObject,
    ZswapUse,
)
from memlens.views.swap import render
from memlens.views.text import TableOptions, cell_len

EVIL = "evil\x1b[31m\nname\udcff"
ORIGIN = Origin("2026-01-31T08:15:00Z", "host", "boot", "6.18.0", 4096, "0.1.0")
AREAS = [
    AreaSwap(0, "zram", 15, 100, 9, 60000, 20000, 5, "/dev/zram0"),
    AreaSwap(None, "file", 5, 100, None, None, None, -2, f"/swap {EVIL}"),
]
LEDGER = SwapLedger.at(
    ORIGIN,
    tables={
        "processes": Table.of(
            ProcessSwap,
            [
                ProcessSwap(7, "root", 0, 6, 30000, 9, 4, 2, "/a", "postgres"),
                ProcessSwap(42, "root", 0, None, None, 3, None, 0, "/b", EVIL),
            ],
        ),
        "objects": Table.of(
            SwappedObject,
            [
                SwappedObject(0, "memfd", 3, 2, 1, 0, 36864, "00:01", 5, "7 x +1", "", EVIL),
                SwappedObject(1, "tmpfs", 3, 3, 0, 1, 8192, "00:19", 6, None, "deleted", "/x"),
            ],
        ),
        "cgroups": Table.of(
            CgroupSwap, [CgroupSwap(17, 9, 6144, "/a"), CgroupSwap(None, 3, None, f"/{EVIL}")]
        ),
        "areas": Table.of(AreaSwap, AREAS),
        "holders": Table.of(Holder, [Holder(0, 7, 9, None, False, "0-9", EVIL)]),
    },
    sections={"zswap": ZswapUse(True, 4096, None)},
    sums={
        "swap": make_sum(
            20,
            17,
            0,
            private_pages=9,
            shared_pages=6,
            swap_cache_pages=2,
            shared_swap_cached_pages=1,
        )
    },
    missed=(Missed(f"tmpfs on /{EVIL}", "Permission denied"),),
    notes=("not in reach: memfds in unread messages",),
    cost=Cost(0.5, 4096, 0.001),
)
WITH_SLOTS = replace(
    LEDGER,
    tables={
        **LEDGER.tables,
        "slot_owners": Table.of(
            SlotOwner,
            [
                SlotOwner(0, "A", 7, None, 9, 2, 4.5, 0, "process", "postgres"),
                SlotOwner(1, "B", None, 0, 3, 1, 3.0, 0, "memfd", EVIL),
            ],
        ),
        "slot_areas": Table.of(SlotArea, [SlotArea(0, 100, 15, 12, f"/long/{EVIL * 5}")]),
        "slot_runs": Table.of(SlotRun, [SlotRun(0, 1, 9, 0), SlotRun(0, 9, 3, 1)]),
        "slots_claimed_twice": Table.of(DoubleClaim, [DoubleClaim(0, 9, 1, 0, 1)]),
    },
    sections={**LEDGER.sections, "slot_map": SlotMapLimits(False, f"no BPF {EVIL}")},
)
PARTS = (None, "processes", "objects", "cgroups", "areas")


def drawn(
    report: SwapLedger, options: TableOptions, table: str | None = None, has_map: bool = False
) -> list[str]:
    lines = render(report, options, table=table, has_map=has_map)
    return ["".join(part.text for part in line) for line in lines]


def everything(options: TableOptions) -> Iterator[list[str]]:
    for report in (LEDGER, WITH_SLOTS):
        for part in PARTS:
            yield drawn(report, options, part)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("is_unicode", [False, True])
def test_every_line_fits_and_none_is_raw(width: int, is_unicode: bool) -> None:
    for lines in everything(TableOptions(width, is_unicode=is_unicode)):
        for line in lines:
            assert cell_len(line) <= width, line
            assert line.isprintable(), line
            assert is_unicode or line.isascii(), line


def test_the_ledger_closes_on_paper() -> None:
    lines = drawn(LEDGER, TableOptions(100))
    rows = {
        label: int(line[22:].split()[0])
        for line in lines
        for label in ("private pages", "shared memory", "swap cache", "remainder", "used")
        if line.startswith(f"{label} ") and " pages " in line
    }
    used = rows.pop("used")
    assert sum(rows.values()) == used == 20
    assert rows["remainder"] == 3
    assert not LEDGER.is_all_known


def test_the_remainder_is_named() -> None:
    text = "\n".join(drawn(LEDGER, TableOptions(200)))
    assert "memfds in unread messages" in text
    assert "Permission denied" in text


def test_no_swap_is_said() -> None:
    nothing = replace(LEDGER, tables={})
    assert drawn(nothing, TableOptions())[0] == "This machine has no swap area in use."


def test_what_is_asked_for_is_shown_whole() -> None:
    many = Table.of(CgroupSwap, [CgroupSwap(1, 1, 1, f"/{n}") for n in range(15)])
    report = replace(LEDGER, tables={**LEDGER.tables, "cgroups": many})
    assert "5 more (--top N shows more)" in drawn(report, TableOptions(100))
    lines = drawn(report, TableOptions(100), "cgroups")
    assert sum(line.endswith(tuple(f" /{n}" for n in range(15))) for line in lines) == 15
    assert "By process" not in lines
    assert "13 more (--top N shows more)" in drawn(report, TableOptions(100, top=2), "cgroups")


def test_areas_can_be_sorted_and_cut_as_well() -> None:
    def paths(table: str | None, sort: str, top: int | None = None) -> list[str]:
        report = LEDGER.arranged(table, sort=[sort])
        lines = drawn(report, TableOptions(80, top=top), table)
        return [
            line.rpartition(" /")[2].split()[0]
            for line in lines[1 : lines.index("")]
            if " /" in line
        ]

    assert paths("areas", "path") == ["dev/zram0", "swap"]
    assert paths("areas", "size_pages", 1) == ["dev/zram0"]
    assert paths("areas", "-used_pages") == ["swap", "dev/zram0"]
    # What is asked of another table is not about areas.
    assert paths("processes", "pid", 1) == ["dev/zram0", "swap"]


def test_the_map_names_owners_claims_and_what_is_left_out() -> None:
    text = "\n".join(drawn(WITH_SLOTS, TableOptions(100), "areas", has_map=True))
    assert ".AAAAAAAABBB." in text
    assert "area 0, slots 9 to 9 are claimed twice" in text
    assert "need the page-cache walk" in text
    assert "are left out: no BPF" in text
    without = drawn(LEDGER, TableOptions(100), "areas", has_map=True)
    assert any("made without --map" in line for line in without)


@pytest.mark.parametrize("report", [LEDGER, WITH_SLOTS])
@pytest.mark.parametrize("part", PARTS)
def test_read_back_it_looks_the_same(report: SwapLedger, part: str | None) -> None:
    again = SwapLedger.from_json("".join(report.to_json()))
    for width in (80, 200):
        options = TableOptions(width)
        assert drawn(again, options, part) == drawn(report, options, part)


@pytest.mark.parametrize("report", [LEDGER, WITH_SLOTS])
def test_json_is_as_the_schema_says(report: SwapLedger) -> None:
    found = json.loads("".join(report.to_json()))
    jsonschema.validate(found, json_schema(SwapLedger))
    swap = found["sums"]["swap"]
    parts = ("private_pages", "shared_pages", "swap_cache_pages", "remainder_pages")
    assert sum(swap[name] for name in parts) == swap["total_pages"] == 20
    assert found["tables"]["areas"][1]["compressed_bytes"] is None
    assert found["tables"]["processes"][1]["name"] == EVIL


@pytest.mark.parametrize("part", PARTS[1:])
def test_csv_has_no_raw_control(part: str) -> None:
    text = "".join(LEDGER.table(part).to_csv())
    assert "\x1b" not in text
    assert len(text.splitlines()) == 3
    text.encode()
