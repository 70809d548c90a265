"""Text of files: widths, sums, strips, names from outside."""

from dataclasses import replace

import pytest

from memlens.physical.records import FileCache, FileReport, FileTotal, StripCell
from memlens.record import Table
from memlens.report import Cost, Missed, Origin, make_sum
from memlens.views import files
from memlens.views.text import TableOptions, cell_len

EVIL = "/tmp-like/\x1b[2J" + "long " * 40 + "end"
WIDTHS = (40, 80, 120, 200)


def file_row(path: str, cached: int | None, inode: int, reason: str = "") -> FileCache:
    return FileCache(
        cached_pages=cached,
        size_bytes=100 * 4096,
        mapped_pages=cached,
        dirty_pages=1,
        writeback_pages=0,
        evicted_pages=2,
        recently_evicted_pages=1,
        kind="file",
        reason=reason,
        device=7,
        inode=inode,
        path=path,
    )


def file_report() -> FileReport:
    rows = [file_row("b", 100, 1), file_row(EVIL, 50, -2), file_row("c", None, 3, "why not")]
    rows += [file_row(f"d{number}", 0, number) for number in range(10, 40)]
    cells = [(0, 0), (0, 1), (1, 0), (5, 0), (9, 0), (10, 0)]
    return FileReport.at(
        Origin("2026-01-31T08:15:00Z", "host", "boot", "6.18.0", 4096, "0.1.0"),
        tables={
            "files": Table.of(FileCache, rows),
            "strips": Table.of(
                StripCell,
                [StripCell(7, -2, n, 10, cached, out) for n, (cached, out) in enumerate(cells)],
            ),
        },
        sections={"total": FileTotal(33, 1, 4, 1, 5, 33 << 19, 3300, 150, 150, 33, 0, 66, 33)},
        sums={"page_cache": make_sum(400, 150, 3, shmem_pages=10, buffer_pages=20)},
        missed=[Missed("/mnt", "may not answer: not entered")],
        notes=["note"],
        cost=Cost(0.1, 4096, 0.001),
    )


def drawn(report: FileReport, options: TableOptions) -> list[str]:
    return ["".join(part.text for part in line) for line in files.render(report, options)]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("is_unicode", [True, False])
def test_files_fit(width: int, is_unicode: bool) -> None:
    lines = drawn(file_report(), TableOptions(width, is_unicode=is_unicode))
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert is_unicode or text.isascii()
    assert max(map(cell_len, lines)) <= max(width, 80)
    words = " ".join(text.split())
    assert "600K cached of" in words
    assert "33 files, 1 not known, 13 not shown" in words
    assert "not attributable: 1M" in words
    assert "or that this user may not ask about" in words
    assert "80K of block devices" in words
    assert "? why not" in words
    if width >= 80:
        assert ("·e░▒▓█" if is_unicode else "_e.-+#") in text
        assert "100%" in text


def test_a_strip_takes_the_room_there_is() -> None:
    cells = [StripCell(7, 1, n, 10, 10 * (n % 2), None) for n in range(48)]
    rows = [file_row("b", 240, 1)]
    tables = {"files": Table.of(FileCache, rows), "strips": Table.of(StripCell, cells)}
    report = replace(file_report(), tables=tables)
    wide = drawn(report, TableOptions(400))
    assert any("_#" * 24 in line for line in wide)
    assert any("-+" * 8 in line for line in drawn(report, TableOptions(80)))


def test_files_of_which_nothing_is_known_are_not_all_known() -> None:
    report = replace(file_report(), missed=())
    assert not report.is_all_known
    assert report.total is not None
    known = replace(report.total, unknown_files=0)
    assert replace(report, sections={"total": known}).is_all_known
