"""Text and JSON of files, sharing and cgroup: widths, sums, names from outside."""

import json
from dataclasses import replace

import pytest

from memlens.physical.files import unknown_file
from memlens.physical.records import (
    CgroupPages,
    CgroupTotal,
    ElsewherePages,
    FileCache,
    FileCharge,
    FileTotals,
    KindPages,
    ProcessCharge,
    StatLine,
    StripCell,
)
from memlens.record import Table
from memlens.report import Cost, Missed, Origin
from memlens.sharing.records import MappingShare, PairShare, ProcessShare, Sharing
from memlens.views import cgroup, files, sharing
from memlens.views.table import TableOptions

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


def process(pid: int, parent: int | None, copied: int | None) -> ProcessShare:
    objects = None if copied is None else 8
    since_fork = copied, copied, copied, objects
    mapping = MappingShare(4096, 8192, "rw-p", EVIL, 60, 30.5, 10, *since_fork)
    name = f"n\x07{pid}"
    return ProcessShare(pid, name, parent, 60, 30.5, 10, 9, 0, 0, *since_fork, (mapping,))


def sharing_of(count: int) -> Sharing:
    processes = [process(1000, None, None)]
    processes += [process(1000 + n, 1000, 20 + n) for n in range(1, count)]
    pids = [item.pid for item in processes]
    pairs = [PairShare(a, b, 40) for n, a in enumerate(pids) for b in pids[n + 1 :]]
    return Sharing(
        4096,
        tuple(processes),
        tuple(pairs),
        99,
        False,
        True,
        (Missed("x", "y"),),
        ("note",),
        COST,
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [1, 3, 40])
def test_sharing_fits(width: int, count: int) -> None:
    text = "".join(sharing.render_text(sharing_of(count), width=width))
    assert "\x1b" not in text
    assert "\x07" not in text
    lines = text.splitlines()
    head = next(n for n, line in enumerate(lines) if line.lstrip().startswith("PID"))
    assert len(lines[head + 1 : head + 1 + count]) == count
    if width >= 80:
        assert max(map(len, lines)) <= width
    if count == 40:
        assert "more columns" in text
    assert "note: note" in text


def test_new_memory_is_told_from_what_is_mapped_since() -> None:
    lines = "".join(sharing.render_text(sharing_of(2))).splitlines()
    assert lines[1].endswith(": 84K still shared, 84K copied, 52K new")
    child = next(line for line in lines if line.lstrip().startswith("1001"))
    assert child.split()[5:9] == ["84K", "84K", "52K", "32K"]


def test_a_title_is_cut_to_what_tells_processes_apart() -> None:
    result = sharing_of(2)
    first, second = result.processes
    titled = replace(second, name="server: the worker")
    text = "".join(sharing.render_text(replace(result, processes=(first, titled)), width=80))
    assert "  the worker" in text
    assert "server: the worker" not in text
    text = "".join(sharing.render_text(replace(result, processes=(first, titled)), width=99))
    assert "  server: the worker" in text


def test_sharing_json() -> None:
    found = json.loads(sharing.render_json(sharing_of(3)))
    assert found["pairs"][0] == {"a": 1000, "b": 1001, "shared_pages": 40}
    assert found["processes"][1]["copied_pages"] == 21
    assert found["processes"][1]["new_object_pages"] == 8


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
