"""Text of shm: widths, sums, names from outside; and the report read back."""

import csv
import io
import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from memlens.pages.classes import PageClass
from memlens.pages.runs import encode_runs
from memlens.report import Cost, Missed, Origin, make_sum
from memlens.schema import json_schema
from memlens.shm.facts import HolderFacts, ObjectFacts
from memlens.shm.inventory import make_tables
from memlens.shm.records import Inventory
from memlens.views.shm import render
from memlens.views.text import TableOptions, cell_len

EVIL = "evil\x1b[31m\nname\udcff"
ORIGIN = Origin("2026-01-31T08:15:00Z", "host", "boot", "6.18.0", 4096, "0.1.0")
P, C, K, S, A, N, U = (
    PageClass.PRESENT,
    PageClass.CACHED,
    PageClass.SWAP_CACHED,
    PageClass.SWAPPED,
    PageClass.PREALLOCATED,
    PageClass.NONE,
    PageClass.UNKNOWN,
)


def make_object(*classes: PageClass) -> ObjectFacts:
    return ObjectFacts(
        kind="memfd",
        name=f"memfd:{EVIL}",
        device="00:01",
        inode=(1 << 64) - 5,
        size_bytes=len(classes) * 4096,
        uid=0,
        runs=encode_runs(np.array(classes, np.uint8)),
        holders=(
            HolderFacts(7, "postgres", 9, 2, False, ((0, 9),)),
            HolderFacts(42, EVIL, 2, 1, True, ((3, 5), (0, 2), (7, 8))),
        ),
        marks=("deleted", "sealed"),
        age_s=99.0,
        cgroup="/a",
    )


OBJECT = make_object(P, P, C, K, S, S, A, N, N)
LONE = replace(
    make_object(S, S, S),
    kind="tmpfs",
    name="/dev/shm/x",
    inode=6,
    uid=None,
    age_s=None,
    holders=(),
)
BLIND = replace(make_object(U, U), inode=7, reasons=("map_files: Permission denied",))


def inventory(*objects: ObjectFacts, is_one: bool = False) -> Inventory:
    """Return a report of all objects, or of one that was asked for."""
    resident = sum(item.resident_pages for item in objects)
    return Inventory.at(
        ORIGIN,
        tables=make_tables(objects, has_runs=is_one),
        sums={} if is_one else {"shmem": make_sum(10, resident, 0)},
        missed=(Missed(f"tmpfs on /{EVIL}", "Permission denied"),),
        notes=("a note",),
        cost=Cost(0.5, 4096, 0.001),
    )


ALL = inventory(OBJECT, LONE, BLIND)
EACH = [inventory(item, is_one=True) for item in (OBJECT, LONE, BLIND)]


def drawn(report: Inventory, options: TableOptions, *, has_runs: bool = False) -> list[str]:
    lines = render(report, options, has_runs=has_runs)
    return ["".join(part.text for part in line) for line in lines]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("is_unicode", [False, True])
@pytest.mark.parametrize("report", [ALL, *EACH])
def test_every_line_fits_and_none_is_raw(
    report: Inventory, width: int, is_unicode: bool
) -> None:
    for line in drawn(report, TableOptions(width, is_unicode=is_unicode), has_runs=True):
        assert cell_len(line) <= width, line
        assert line.isprintable(), line
        assert is_unicode or line.isascii(), line


def test_objects_and_the_remainder_are_shmem() -> None:
    """Present, cached and preallocated pages are in Shmem; swapped ones are not."""
    lines = drawn(ALL, TableOptions(100))
    rows = {
        label: int(line[17:].split()[0])
        for line in lines
        for label in ("objects", "remainder", "Shmem")
        if line.startswith(f"{label} ") and " pages " in line
    }
    assert rows == {"objects": 4, "remainder": 6, "Shmem": 10}
    assert not ALL.is_all_known


def test_classes_of_an_object_are_columns() -> None:
    item = ALL.objects[0]
    found = {
        kind: getattr(item, f"{kind.label}_pages")
        for kind in (P, C, K, S, A, N, U)
        if getattr(item, f"{kind.label}_pages")
    }
    assert found == {P: 2, C: 1, K: 1, S: 2, A: 1, N: 2}
    assert (item.name, item.inode) == (f"memfd:{EVIL}", -5)
    assert (item.marks, item.holders) == ("deleted, sealed", "7 postgres +1")
    assert ALL.objects[1].holders is None
    assert ALL.objects[2].reason == "map_files: Permission denied"


def test_holders_and_runs_are_of_their_object() -> None:
    report = inventory(OBJECT, LONE, BLIND, is_one=True)
    assert [(row.object, row.pid) for row in report.holders] == [
        (0, 7),
        (0, 42),
        (2, 7),
        (2, 42),
    ]
    assert [(r.first, r.pages) for r in report.ranges if (r.object, r.pid) == (2, 42)] == [
        *((3, 2), (0, 2), (7, 1))
    ]
    pages = [
        int(report.runs[report.runs.column("object") == n].column("pages").sum())
        for n in (0, 1, 2)
    ]
    assert pages == [9, 3, 2]
    # Runs of one class are not one run where another object begins.
    both = inventory(LONE, LONE, is_one=True)
    assert [(r.object, r.first, r.pages) for r in both.runs] == [(0, 0, 3), (1, 0, 3)]


def test_an_object_shows_who_maps_which_part() -> None:
    lines = drawn(EACH[0], TableOptions(100), has_runs=True)
    assert "PPckSSa.." in lines
    (row,) = (line for line in lines if line.lstrip().startswith("42 "))
    assert "3-5, 0-2, +1" in row
    assert "yes" in row
    assert any(line.endswith("2 pages  swapped") for line in lines)
    assert "deleted, sealed" in " ".join(lines)
    assert "No process that could be looked at maps it or has it open." in drawn(
        EACH[1], TableOptions(100)
    )


def test_sorted_and_cut() -> None:
    found = ALL.arranged("objects", sort=["size_bytes"], top=1)
    assert "2 more (--top N shows more)" in drawn(ALL, TableOptions(100, top=1))
    assert [item.object for item in found.objects] == [0]
    ages = ALL.arranged("objects", sort=["-age_s"]).objects.column("age_s")
    assert ages.tolist() == [99.0, 99.0, None]


@pytest.mark.parametrize("report", [ALL, *EACH])
def test_read_back_it_looks_the_same_and_is_as_the_schema_says(report: Inventory) -> None:
    text = "".join(report.to_json())
    jsonschema.validate(json.loads(text), json_schema(Inventory))
    again = Inventory.from_json(text)
    for width in (80, 200):
        options = TableOptions(width)
        assert drawn(again, options, has_runs=True) == drawn(report, options, has_runs=True)


def test_csv_has_no_raw_control() -> None:
    text = "".join(ALL.objects.to_csv())
    assert "\x1b" not in text
    assert len(list(csv.reader(io.StringIO(text)))) == 4
    text.encode()


def test_without_any_object() -> None:
    assert drawn(inventory(), TableOptions(80))[0].startswith("objects")
