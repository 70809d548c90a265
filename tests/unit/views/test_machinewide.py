"""Ledger and inventory: text that closes and fits, JSON as documented, CSV."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from memlens.pages.classes import PageClass
from memlens.pages.runs import encode_runs
from memlens.report import Cost, Missed
from memlens.shm.records import Holder, Inventory, SharedObject
from memlens.swap.records import AreaSwap, CgroupSwap, ProcessSwap, SwapLedger, ZswapUse
from memlens.views import shm, swap
from memlens.views.lines import Line, cell_len
from memlens.views.shm import render_objects
from memlens.views.table import TableOptions

EVIL = "evil\x1b[31m\nname\udcff"
COST = Cost(0.5, 4096, 0.001)
MISSED = (Missed(f"tmpfs on /{EVIL}", "Permission denied"),)
P, C, K, S, A, N, U = (
    PageClass.PRESENT,
    PageClass.CACHED,
    PageClass.SWAP_CACHED,
    PageClass.SWAPPED,
    PageClass.PREALLOCATED,
    PageClass.NONE,
    PageClass.UNKNOWN,
)


def make_object(*classes: PageClass, **changes: Any) -> SharedObject:
    values: dict[str, Any] = {
        "kind": "memfd",
        "name": f"memfd:{EVIL}",
        "device": "00:01",
        "inode": 5,
        "size_bytes": len(classes) * 4096,
        "uid": 0,
        "runs": encode_runs(np.array(classes, np.uint8)),
        "holders": (
            Holder(7, "postgres", 9, 2, False, ((0, 9),)),
            Holder(42, EVIL, 2, 1, True, ((3, 5), (0, 2), (7, 8))),
        ),
        "marks": ("deleted", "sealed"),
        "age_s": 99.0,
        "cgroup": "/a",
    }
    return SharedObject(**{**values, **changes})


OBJECT = make_object(P, P, C, K, S, S, A, N, N)
LONE = make_object(
    S, S, S, kind="tmpfs", name="/dev/shm/x", inode=6, holders=(), uid=None, age_s=None
)
BLIND = make_object(U, U, inode=7, reasons=("map_files: Permission denied",))
LEDGER = SwapLedger(
    page_size_bytes=4096,
    used_pages=20,
    private_pages=9,
    shared_pages=6,
    swap_cache_pages=2,
    remainder_pages=3,
    areas=(
        AreaSwap(0, "/dev/zram0", "zram", 100, 15, 5, 9, 60000, 20000),
        AreaSwap(2, f"/swap {EVIL}", "file", 100, 5, -2, 0),
    ),
    zswap=ZswapUse(True, 4096, None),
    processes=(
        ProcessSwap(7, "postgres", 0, "/a", 9, 1.5, 4, 2),
        ProcessSwap(42, EVIL, 0, "/b", 3, 1.5, 0),
    ),
    objects=(OBJECT, LONE),
    cgroups=(CgroupSwap("/a", 17, 9, 1.5), CgroupSwap("/b", None, 3, 1.5)),
    missed=MISSED,
    notes=("not in reach: memfds in unread messages",),
    cost=COST,
)
INVENTORY = Inventory(4096, 10, (OBJECT, LONE, BLIND), MISSED, ("a note",), COST)


def render_everything(options: TableOptions) -> Iterator[tuple[str, Iterator[Line]]]:
    yield "swap", swap.render_text(LEDGER, options)
    for part in swap.PARTS:
        yield f"swap by {part}", swap.render_text(LEDGER, options, part)
    yield "shm", shm.render_text(INVENTORY, options)
    yield "object", render_objects(INVENTORY, options, has_runs=True)


def plain(lines: Iterator[Line]) -> list[str]:
    return ["".join(part.text for part in line) for line in lines]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("is_unicode", [False, True])
def test_every_line_fits_and_none_is_raw(width: int, is_unicode: bool) -> None:
    options = TableOptions(width, is_unicode=is_unicode)
    for name, lines in render_everything(options):
        for line in plain(lines):
            assert cell_len(line) <= width, (name, line)
            assert line.isprintable(), (name, line)
            assert is_unicode or line.isascii(), (name, line)


def test_the_ledger_closes_on_paper() -> None:
    lines = plain(swap.render_text(LEDGER, TableOptions(100)))
    rows = {
        label: int(line[22:].split()[0])
        for line in lines
        for label in ("private pages", "shared memory", "swap cache", "remainder", "used")
        if line.startswith(f"{label} ") and " pages " in line
    }
    used = rows.pop("used")
    assert sum(rows.values()) == used == 20
    assert rows["remainder"] == 3


def test_the_remainder_is_named() -> None:
    text = "\n".join(plain(swap.render_text(LEDGER, TableOptions(200))))
    assert "memfds in unread messages" in text
    assert "Permission denied" in text


def test_no_swap_is_said() -> None:
    nothing = replace(LEDGER, areas=(), processes=(), objects=(), cgroups=())
    assert plain(swap.render_text(nothing, TableOptions()))[0] == (
        "This machine has no swap area in use."
    )


@pytest.mark.parametrize("width", [60, 200])
def test_an_incomplete_answer_says_so_first(width: int) -> None:
    options = TableOptions(width)
    for lines in (
        swap.render_text(replace(LEDGER, is_complete=False), options),
        shm.render_text(replace(INVENTORY, is_complete=False), options),
    ):
        assert plain(lines)[0].startswith("INCOMPLETE")


def test_swap_json_is_as_fixed() -> None:
    found = json.loads("".join(swap.render_json(LEDGER)))
    assert found["schema"] == "memlens.swap/1"
    parts = ("private_pages", "shared_pages", "swap_cache_pages", "remainder_pages")
    assert sum(found[name] for name in parts) == found["used_pages"]
    assert {"area", "path", "kind", "size_pages", "used_pages"} <= set(found["areas"][0])
    assert found["areas"][1]["compressed_bytes"] is None
    process = found["processes"][0]
    assert {"pid", "name", "own_pages", "share_pages", "freed_on_exit_pages"} <= set(process)
    assert found["processes"][1]["name"] == EVIL
    item = found["objects"][0]
    assert (item["swapped_pages"], item["swap_cached_pages"]) == (2, 1)
    assert (item["holders"], item["device"], item["inode"]) == ([7, 42], "00:01", 5)
    assert sum(o["swapped_pages"] + o["swap_cached_pages"] for o in found["objects"]) == 6
    assert found["missed"] == [{"what": f"tmpfs on /{EVIL}", "reason": "Permission denied"}]
    assert set(found["cost"]) == {"wall_s", "read_bytes", "longest_read_s"}


def test_shm_json_is_as_fixed() -> None:
    found = json.loads("".join(shm.render_json(INVENTORY)))
    assert found["schema"] == "memlens.shm/1"
    # Present, cached and preallocated pages are in Shmem; swapped ones are not.
    assert (found["shmem_pages"], found["remainder_pages"]) == (10, 6)
    item = found["objects"][0]
    assert item["name"] == f"memfd:{EVIL}"
    assert item["pages"] == {
        "present": 2,
        "cached": 1,
        "swap_cached": 1,
        "swapped": 2,
        "preallocated": 1,
        "none": 2,
    }
    assert item["holders"][1]["pid"] == 42
    assert item["holders"][1]["is_open"] is True
    assert item["holders"][1]["mapped_pages"] == 2
    assert item["marks"] == ["deleted", "sealed"]
    assert "runs" not in item
    found = json.loads("".join(shm.render_json(INVENTORY, has_runs=True)))
    assert sum(pages for _, pages, _ in found["objects"][0]["runs"]) == 9


def test_top_and_sort_hold_for_every_format() -> None:
    found = json.loads("".join(swap.render_json(LEDGER, "object", "swapped", 1)))
    assert [item["inode"] for item in found["objects"]] == [6]
    assert found["shared_pages"] == 6
    rows = list(
        csv.DictReader(
            io.StringIO("".join(swap.render_ledger_csv(LEDGER, "process", "pid", 1)))
        )
    )
    assert [row["pid"] for row in rows] == ["42"]
    lines = plain(shm.render_text(INVENTORY, TableOptions(100), "size", 1))
    assert "2 more" in lines


def test_areas_can_be_sorted_and_cut_as_well() -> None:
    def paths(*choice: Any) -> list[str]:
        lines = plain(swap.render_text(LEDGER, TableOptions(80), *choice))
        table = lines[1 : lines.index("")]
        return [line.rpartition(" /")[2].split()[0] for line in table if " /" in line]

    assert paths() == ["dev/zram0", "swap"]
    assert paths("area", "path") == ["dev/zram0", "swap"]
    assert paths("area", "size", 1) == ["dev/zram0"]
    assert paths("area", "area") == ["swap", "dev/zram0"]
    # What is asked of another table is not about areas.
    assert paths("process", "pid", 1) == ["dev/zram0", "swap"]


@pytest.mark.parametrize("part", swap.PARTS)
def test_csv_has_no_raw_control(part: str) -> None:
    text = "".join(swap.render_ledger_csv(LEDGER, part))
    assert "\x1b" not in text
    assert len(list(csv.reader(io.StringIO(text)))) == 3
    text = "".join(shm.render_inventory_csv(INVENTORY))
    assert "\x1b" not in text
    text.encode()


def test_an_object_shows_who_maps_which_part() -> None:
    lines = plain(render_objects(replace(INVENTORY, objects=(OBJECT,)), TableOptions(100)))
    assert "PPckSSa.." in lines
    (row,) = (line for line in lines if line.lstrip().startswith("42 "))
    assert "3-5, 0-2, +1" in row
    assert "open" in row


def test_ages_of_oldest_first() -> None:
    young, old = replace(LONE, inode=8, age_s=1.0), replace(LONE, inode=9, age_s=100.0)
    inventory = replace(INVENTORY, objects=(young, OBJECT, old))
    found = json.loads("".join(shm.render_json(inventory, "age")))
    inodes = [item["inode"] for item in found["objects"]]
    assert (set(inodes[:2]), inodes[2]) == ({5, 9}, 8)
