"""Text and JSON of files: widths, sums, names from outside."""

import json

import pytest

from memlens.physical.files import unknown_file
from memlens.physical.records import FileCache, FileTotals, StripCell
from memlens.report import Cost
from memlens.views import files

COST = Cost(0.1, 4096, 0.001)
EVIL = "/tmp-like/\x1b[2J" + "long " * 40 + "end"
WIDTHS = (40, 80, 120, 200)


def file_row(path: str, cached: int, kind: str = "file") -> FileCache:
    return FileCache(path, kind, 100 * 4096, cached, 1, 0, 2, 1, cached // 2)


def test_top_files() -> None:
    top = files.TopFiles(2)
    rows = [file_row(str(number), pages) for number, pages in enumerate((5, 9, 0, 9))]
    for row in rows:
        top.add(row)
    assert [row.path for row in top.rows()] == ["1", "3"]
    assert top.left_out == 2
    everything = files.TopFiles(None)
    for row in (*rows, unknown_file("?", "why")):
        everything.add(row)
    assert [row.path for row in everything.rows()] == ["1", "3", "0", "?", "2"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("is_unicode", [True, False])
def test_files_fit(width: int, is_unicode: bool) -> None:
    top, totals = files.TopFiles(None), FileTotals()
    for row in (file_row(EVIL, 50), file_row("b", 100, "shmem")):
        top.add(row)
        totals.add(row, 4096)
    asked: list[int] = []

    def cells(_path: str, number: int) -> list[StripCell]:
        asked.append(number)
        return [StripCell(10, n, 1) for n in (0, 1, 5, 10)]

    text = "".join(
        files.render_text(top, totals, cells, 4096, width=width, is_unicode=is_unicode)
    )
    lines = text.splitlines()
    assert "\x1b" not in text
    assert is_unicode or text.isascii()
    # Narrower than that the table keeps its least.
    assert all(len(line) <= max(width, 80) for line in lines[:4])
    assert ("e░▒█" if is_unicode else "e.-#") in text
    assert asked[0] >= 8
    assert "2 files" in lines[3]
    assert totals.sums["cached_pages"] == 150
    assert totals.shmem_evicted_pages == 2


def test_files_json_is_one_object() -> None:
    rows = [file_row("a\udcff", 3), unknown_file("b", "gone")]
    text = "".join(files.render_json(rows, 4096, lambda: {"totals": {}, "notes": []}))
    found = json.loads(text)
    assert found["schema"] == "memlens.files/1"
    assert [row["path"] for row in found["files"]] == ["a\udcff", "b"]
    assert found["files"][1]["cached_pages"] is None
    assert (
        json.loads("".join(files.render_json([], 4096, lambda: {"notes": []})))["files"] == []
    )
