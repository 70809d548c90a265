"""Text of sharing: widths, sums, names from outside; the same from a file."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from memlens.commands.main import cli
from memlens.record import Table
from memlens.report import Cost, Missed, Origin
from memlens.schema import json_schema
from memlens.sharing.records import (
    MappingShare,
    PairShare,
    ProcessShare,
    Sharing,
    SharingTotal,
)
from memlens.views import sharing
from memlens.views.text import TableOptions, cell_len

EVIL = "/tmp-like/\x1b[2J" + "long " * 40 + "end"
WIDTHS = (40, 80, 120, 200)


def process(pid: int, parent: int | None, copied: int | None) -> ProcessShare:
    objects = None if copied is None else 8
    new = None if copied is None else copied - 8
    since_fork = copied, copied, new, objects
    name = f"n\x07{pid}"
    return ProcessShare(pid, parent, 60, 30.5, 10, 9, 0, None, 0, *since_fork, name)


def mapping_of(row: ProcessShare) -> MappingShare:
    since_fork = (
        row.shared_with_parent_pages,
        row.copied_pages,
        row.new_private_pages,
        row.new_object_pages,
    )
    return MappingShare(row.pid, 4096, 8192, "rw-p", 60, 30.5, 10, *since_fork, EVIL)


def sharing_of(count: int) -> Sharing:
    processes = [process(1000, None, None)]
    processes += [process(1000 + n, 1000, 20 + n) for n in range(1, count)]
    pids = [item.pid for item in processes]
    pairs = [PairShare(a, b, 40) for n, a in enumerate(pids) for b in pids[n + 1 :]]
    return Sharing.at(
        Origin("2026-01-31T08:15:00Z", "host", "boot", "6.18.0", 4096, "0.1.0"),
        tables={
            "processes": Table.of(ProcessShare, processes),
            "pairs": Table.of(PairShare, pairs),
            "mappings": Table.of(MappingShare, map(mapping_of, processes)),
        },
        sections={"total": SharingTotal(99, False)},
        missed=[Missed("x", "y")],
        notes=["note"],
        cost=Cost(0.1, 4096, 0.001),
    )


def drawn(found: Sharing, width: int, table: str = "processes", top: int | None = None) -> str:
    options = TableOptions(width, is_unicode=True, top=top)
    lines = sharing.render(found, options, table=table)
    return "\n".join("".join(part.text for part in line) for line in lines) + "\n"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("table", ["processes", "pairs", "mappings"])
def test_sharing_fits(width: int, count: int, table: str) -> None:
    text = drawn(sharing_of(count), width, table)
    assert "\x1b" not in text
    assert "\x07" not in text
    lines = text.splitlines()
    head = next(n for n, line in enumerate(lines) if line.lstrip().startswith("PID"))
    assert len([line for line in lines[head + 1 : head + 1 + count] if line]) == count
    if width >= 80:
        assert max(map(cell_len, lines)) <= width
    if count == 40 and table != "pairs":
        assert "more columns" in text
    assert "note      note" in text


def test_new_memory_is_told_from_what_is_mapped_since() -> None:
    lines = drawn(sharing_of(2), 80).splitlines()
    assert lines[1].endswith(": 84K still shared, 84K copied, 52K new")
    child = next(line for line in lines if line.startswith("1001"))
    assert child.split()[5:9] == ["84K", "84K", "52K", "32K"]


def test_children_stand_right_of_their_parents() -> None:
    lines = drawn(sharing_of(2), 120).splitlines()
    parent, child = (
        next(line for line in lines if line.startswith(pid)) for pid in ("1000", "1001")
    )
    assert child.index(r"n\x071001") == parent.index(r"n\x071000") + 2


def test_a_title_is_cut_to_what_tells_processes_apart() -> None:
    result = sharing_of(2)
    first, second = result.processes
    titled = replace(second, name="server: the worker")
    tables = {**result.tables, "processes": Table.of(ProcessShare, [first, titled])}
    result = replace(result, tables=tables)
    text = drawn(result, 80)
    assert "  the worker" in text
    assert "server: the worker" not in text
    assert "  server: the worker" in drawn(result, 120)


def test_what_is_cut_is_what_was_named() -> None:
    text = drawn(sharing_of(3), 80, "pairs", 1)
    assert "shared by each pair" not in text
    assert "2 more (--top N shows more)" in text
    assert "1002 " in text
    assert "2 more (--top" in drawn(sharing_of(3), 80, top=1)


def test_mappings_are_summed_over_children() -> None:
    text = drawn(sharing_of(3), 80)
    (row,) = (line for line in text.splitlines() if "/tmp-like" in line)
    assert "by mapping, sum of 2 processes" in text
    assert row.split()[:4] == ["172K", "108K", "172K", "64K"]
    # Of one process alone it is what the process has.
    (row,) = (line for line in drawn(sharing_of(1), 80).splitlines() if "/tmp-like" in line)
    assert row.split()[:3] == ["240K", "122K", "40K"]


@pytest.mark.parametrize("words", [(), ("--table", "pairs", "--top", "2"), ("--mappings",)])
def test_a_file_shows_the_same(tmp_path: Path, words: tuple[str, ...]) -> None:
    found, path = sharing_of(3), tmp_path / "sharing.json"
    path.write_text("".join(found.to_json()))
    result = CliRunner().invoke(cli, ["sharing", "--from", str(path), *words])
    assert result.exit_code == 0, result.output
    if words:
        options = TableOptions(80, is_unicode=True, top=2 if "--top" in words else None)
        table = "pairs" if "pairs" in words else "processes"
        lines = sharing.render(found, options, table=table, has_mappings="pairs" not in words)
        text = "".join("".join(part.text for part in line) + "\n" for line in lines)
    else:
        text = drawn(found, 80)
    assert result.stdout == text


def test_sharing_json() -> None:
    report = sharing_of(3)
    found = json.loads("".join(report.to_json()))
    jsonschema.validate(found, json_schema(Sharing))
    assert Sharing.from_json(found) == report
    tables = found["tables"]
    assert tables["pairs"][0] == {"a": 1000, "b": 1001, "shared_pages": 40}
    assert tables["processes"][1]["copied_pages"] == 21
    assert tables["processes"][1]["new_object_pages"] == 8


@pytest.mark.parametrize("change", ["moved", "hidden", "missed"])
def test_strict_asks_for_more_than_an_end(change: str) -> None:
    report = replace(sharing_of(2), missed=())
    assert report.is_all_known
    if change == "moved":
        rows = [replace(row, moved_pages=1) for row in report.processes]
        tables = {**report.tables, "processes": Table.of(ProcessShare, rows)}
        report = replace(report, tables=tables)
    elif change == "hidden":
        report = replace(report, sections={"total": SharingTotal(None, True)})
    else:
        report = replace(report, missed=(Missed("x", "y"),))
    assert not report.is_all_known
