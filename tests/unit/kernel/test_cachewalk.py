"""The records of the page-cache walk: what they decode to, and what is refused."""

import hashlib
import json
import platform
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from memlens.errors import AccessDenied, Unsupported
from memlens.kernel import bpf, cacherecords, swapareas
from memlens.kernel.cacherecords import (
    KIND_DIRTY,
    KIND_SWAP,
    KIND_UPTODATE,
    KIND_WRITEBACK,
    RECORD,
    CacheObject,
    CacheWalkInvalid,
    RawRecords,
    clip_records,
    decode_records,
    in_base_pages,
)
from memlens.kernel.mounts import HUGETLBFS_MAGIC, TMPFS_MAGIC
from memlens.kernel.swapareas import TABLE_ROW, NumberedArea, number_by_order, number_by_table
from memlens.kernel.swaps import SwapArea

ROOT = Path(__file__).parents[3]
BLOBS = Path(bpf.__file__).parent / "bpf_blobs"

Row = tuple[int, int, int, int, int, int]  # index, value, cgroup, pages, kind, order


def an_object(magic: int = TMPFS_MAGIC) -> CacheObject:
    return CacheObject(
        magic=magic,
        device=1,
        inode=7,
        size_bytes=1 << 30,
        nrpages=0,
        alloced=0,
        swapped=0,
        vma=None,
    )


def an_area(pages: int, number: int | None = None) -> NumberedArea:
    line = SwapArea(
        line=0, path="/swap", kind="file", size_pages=pages, used_pages=0, priority=-2
    )
    return NumberedArea(line, number, pages + 1)


def raw(*rows: Row, stop: int = 1 << 20) -> RawRecords:
    return RawRecords(np.array([(*row, 0) for row in rows], RECORD), 0, stop)


def swapped(index: int, pages: int, slot: int, area: int = 0) -> Row:
    return index, slot | area << 58, 0, pages, KIND_SWAP, 0


def resident(index: int, pages: int, kind: int = KIND_UPTODATE, order: int = 0) -> Row:
    return index, 0x38, 3137, pages, kind, order


def test_columns_of_swapped_and_resident_pages() -> None:
    records = decode_records(
        raw(swapped(0, 3, 100, area=2), resident(5, 4, KIND_UPTODATE | KIND_DIRTY, order=2)),
        an_object(),
        [an_area(1000, number=2)],
    )
    assert records.index.tolist() == [0, 5]
    assert records.pages.tolist() == [3, 4]
    assert records.is_swap.tolist() == [True, False]
    assert records.area.tolist() == [2, 0]
    assert records.slot.tolist() == [100, 0]
    assert records.order.tolist() == [0, 2]
    assert records.is_uptodate.tolist() == [False, True]
    assert records.is_dirty.tolist() == [False, True]
    assert records.is_writeback.tolist() == [False, False]
    assert records.flags.tolist() == [0, 0x38]
    assert records.cgroup_id.tolist() == [0, 3137]


def test_a_page_that_was_set_aside_is_not_uptodate() -> None:
    rows = raw(resident(0, 1, 0), resident(1, 1, KIND_WRITEBACK | KIND_UPTODATE))
    records = decode_records(rows, an_object(), [])
    assert records.is_uptodate.tolist() == [False, True]
    assert records.is_writeback.tolist() == [False, True]


def test_an_empty_walk() -> None:
    assert len(decode_records(raw(), an_object(), [])) == 0


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([resident(4, 1), resident(2, 1)], id="backwards"),
        pytest.param([resident(0, 3), resident(2, 1)], id="overlap"),
        pytest.param([resident(0, 1), resident(1, 0)], id="empty run"),
        pytest.param([resident(-1, 1)], id="before the start"),
        pytest.param([resident((1 << 20) - 1, 2)], id="past the stop"),
        pytest.param([resident(0, 1, order=31)], id="order"),
        pytest.param([swapped(0, 1, 0)], id="slot of the header"),
        pytest.param([swapped(0, 2, 1000)], id="past the end of the area"),
        pytest.param([swapped(0, 1, (1 << 58) - 1)], id="garbage slot"),
        pytest.param([swapped(0, 1, 5, area=1)], id="area that is not on"),
        pytest.param([swapped(0, 1, 5, area=31)], id="marker"),
    ],
)
def test_the_impossible_voids_the_whole_answer(rows: list[Row]) -> None:
    with pytest.raises(CacheWalkInvalid):
        decode_records(raw(*rows), an_object(), [an_area(1000, number=0)])


def test_the_last_slot_of_an_area_is_possible() -> None:
    decode_records(raw(swapped(0, 1, 1000)), an_object(), [an_area(1000, number=0)])


@pytest.mark.parametrize("magic", [HUGETLBFS_MAGIC, 0xEF53])
def test_only_shmem_has_swapped_pages(magic: int) -> None:
    with pytest.raises(CacheWalkInvalid):
        decode_records(raw(swapped(0, 1, 5)), an_object(magic), [an_area(1000, number=0)])


def test_more_areas_than_there_are() -> None:
    rows = raw(swapped(0, 1, 5, area=0), swapped(1, 1, 5, area=2))
    decode_records(rows, an_object(), [an_area(9), an_area(9)])
    with pytest.raises(CacheWalkInvalid):
        decode_records(rows, an_object(), [an_area(9)])


def test_areas_seen_in_full_are_checked_one_by_one() -> None:
    """Area 2 must be the second line then, and slot 50 is past its end."""
    areas = [an_area(1000), an_area(9)]
    rows = raw(swapped(0, 1, 900, area=0), swapped(1, 1, 50, area=2))
    with pytest.raises(CacheWalkInvalid):
        decode_records(rows, an_object(), areas)
    decode_records(raw(swapped(1, 1, 50, area=2)), an_object(), areas)


def test_hugetlb_records_come_in_base_pages_whatever_the_kernel_counts() -> None:
    newer = raw(resident(512, 512, order=9), resident(1536, 512, order=9)).records
    older = raw(resident(1, 1, order=9), resident(3, 1, order=9)).records
    for records in (newer, older):
        scaled = in_base_pages(records)
        assert scaled["index"].tolist() == [512, 1536]
        assert scaled["pages"].tolist() == [512, 512]


def test_clip() -> None:
    records = raw(resident(0, 512), resident(512, 512), resident(2048, 512)).records
    clipped = clip_records(records, 500, 2049)
    assert clipped["index"].tolist() == [500, 512, 2048]
    assert clipped["pages"].tolist() == [12, 512, 1]


def test_numbers_by_order_need_every_area_seen() -> None:
    areas = [an_area(10), an_area(20)]
    numbered = number_by_order(areas, [4, 1, 4])
    assert numbered is not None
    assert [(area.number, area.slots) for area in numbered] == [(1, 11), (4, 21)]
    assert number_by_order(areas, [1, 2, 3]) is None
    assert number_by_order(areas, [23]) is None


@pytest.mark.parametrize(
    ("areas", "seen", "numbers"),
    [
        (1, [], [None]),
        (2, [1], [None, None]),  # the first, after one that is gone, or the second
        (2, [0], [0, None]),
        (3, [0, 2], None),
        (3, [0, 1], [0, 1, None]),
        (3, [2, 3], None),
        (2, [22], [None, 22]),
        (3, [21, 22], [None, 21, 22]),
        (4, [0, 1, 3], None),
    ],
)
def test_what_the_order_settles(
    areas: int, seen: list[int], numbers: list[int | None] | None
) -> None:
    """None stands for what every assignment that keeps the order must agree on."""
    rows = [an_area(10) for _ in range(areas)]
    found = number_by_order(rows, seen)
    assert found is not None
    wanted = numbers or by_trying(areas, seen)
    assert [row.number for row in found] == wanted


def by_trying(areas: int, seen: list[int]) -> list[int | None]:
    """Go through all rising numbers of the areas that hold those seen."""
    every = [c for c in combinations(range(23), areas) if set(seen) <= set(c)]
    columns = [set(column) for column in zip(*every, strict=True)]
    return [column.pop() if len(column) == 1 else None for column in columns]


def a_table(**pages_by_number: int) -> np.ndarray:
    table = np.zeros(32, TABLE_ROW)
    for number, pages in pages_by_number.items():
        table[int(number[1:])] = (1, pages + 5, pages, 0)
    return table


def test_numbers_by_the_table_of_the_kernel() -> None:
    numbered = number_by_table([an_area(10), an_area(20)], a_table(n0=10, n2=20))
    assert numbered is not None
    assert [(area.number, area.slots) for area in numbered] == [(0, 15), (2, 25)]


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(a_table(), id="not read"),
        pytest.param(a_table(n0=20, n1=10), id="another order"),
        pytest.param(a_table(n0=10, n1=20, n2=30), id="one more"),
    ],
)
def test_a_table_that_does_not_fit_the_lines_gives_no_numbers(table: np.ndarray) -> None:
    assert number_by_table([an_area(10), an_area(20)], table) is None


def test_another_architecture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    with pytest.raises(Unsupported, match="s390x"):
        bpf.raise_if_unusable()


@pytest.fixture
def x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


@pytest.mark.usefixtures("x86")
def test_a_kernel_without_btf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="describe"):
        bpf.raise_if_unusable(btf_path=str(tmp_path / "vmlinux"))


@pytest.mark.usefixtures("x86")
def test_lockdown_is_refused(tmp_path: Path) -> None:
    btf, lockdown = tmp_path / "vmlinux", tmp_path / "lockdown"
    btf.touch()
    lockdown.write_text("none integrity [confidentiality]\n")
    with pytest.raises(AccessDenied, match="locked down"):
        bpf.raise_if_unusable(btf_path=str(btf), lockdown_path=str(lockdown))


@pytest.mark.parametrize("name", ["cachewalk", "swapareas"])
def test_the_blobs_are_those_of_this_source(name: str) -> None:
    record = json.loads((BLOBS / f"{name}.json").read_text())
    for part in ("data", "insns"):
        content = (BLOBS / f"{name}.{part}").read_bytes()
        assert hashlib.sha256(content).hexdigest() == record[f"{part}_sha256"]
    sources = (ROOT / "bpf" / f"{name}.bpf.c", ROOT / "bpf" / "kernel_types.h")
    content = b"".join(source.read_bytes() for source in sources)
    assert hashlib.sha256(content).hexdigest() == record["source_sha256"]


def test_both_sides_lay_records_out_alike() -> None:
    """The C side has 8-byte members first and no holes."""
    assert (cacherecords.RECORD.itemsize, swapareas.TABLE_ROW.itemsize) == (32, 16)
