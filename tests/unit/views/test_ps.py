"""Text of ps: widths, names from outside, processes or groups; the same from a file."""

import csv
import io
import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from memlens.commands.main import cli
from memlens.record import Table
from memlens.report import Cost, Missed, Origin
from memlens.schema import json_schema
from memlens.sharing.records import ProcessGroup, ProcessList, ProcessMemory
from memlens.views import ps
from memlens.views.text import TableOptions, cell_len

EVIL = "evil\x1b[31m\nname\udcff"
ROWS = [
    ProcessMemory(7, "root", 0, 100, 60.5, 50, 9, 6144, 40, 2, "/a", "postgres"),
    ProcessMemory(42, EVIL, 5, 90, 45.0, 40, 3, None, None, 1, "/b", EVIL),
]
GROUPS = [
    ProcessGroup("user", 2, 120, 105.5, 90, 11, 12288, "root"),
    ProcessGroup("user", 1, None, 0.0, 0, None, None, EVIL),
]


def report(*, is_grouped: bool = False, is_complete: bool = True) -> ProcessList:
    tables = {"processes": Table.of(ProcessMemory, ROWS)}
    groups = {"groups": Table.of(ProcessGroup, GROUPS)} if is_grouped else {}
    return ProcessList.at(
        Origin("2026-01-31T08:15:00Z", "host", "boot", "6.18.0", 4096, "0.1.0"),
        tables={**tables, **groups},
        missed=[Missed(f"tmpfs on /{EVIL}", "Permission denied")],
        cost=Cost(0.5, 4096, 0.001),
        is_complete=is_complete,
    )


def drawn(found: ProcessList, options: TableOptions) -> list[str]:
    return ["".join(part.text for part in line) for line in ps.render(found, options)]


def of_file(path: Path, found: ProcessList, *words: str) -> str:
    path.write_text("".join(found.to_json()), errors="surrogateescape")
    result = CliRunner().invoke(cli, ["ps", "--from", str(path), *words])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("is_unicode", [False, True])
@pytest.mark.parametrize("is_grouped", [False, True])
def test_every_line_fits_and_none_is_raw(
    width: int, is_unicode: bool, is_grouped: bool
) -> None:
    options = TableOptions(width, is_unicode=is_unicode)
    for line in drawn(report(is_grouped=is_grouped), options):
        assert cell_len(line) <= width
        assert line.isprintable()
        assert is_unicode or line.isascii()


def test_both_figures_of_swap_are_shown() -> None:
    lines = drawn(report(), TableOptions(120))
    assert lines[1].split()[:7] == ["PID", "user", "RSS", "PSS", "USS", "swap", "share"]
    first, second = lines[2:4]
    assert first.split() == [
        "7",
        "root",
        "400K",
        "242K",
        "200K",
        "36K",
        "6K",
        "160K",
        "8K",
        "/a",
        "postgres",
    ]
    assert second.split()[5:8] == ["12K", "?", "?"]


def test_groups_stand_for_their_processes() -> None:
    lines = drawn(report(is_grouped=True), TableOptions(80, top=1))
    assert lines[2].split() == ["2", "480K", "422K", "360K", "44K", "12K", "root"]
    assert lines[3] == "1 more (--top N shows more)"


@pytest.mark.parametrize("is_grouped", [False, True])
def test_a_file_shows_the_same(tmp_path: Path, is_grouped: bool) -> None:
    found = report(is_grouped=is_grouped)
    lines = drawn(found, TableOptions(80, is_unicode=True))
    assert of_file(tmp_path / "ps.json", found) == "\n".join(lines) + "\n"
    jsonschema.validate(json.loads("".join(found.to_json())), json_schema(ProcessList))
    assert ProcessList.from_json("".join(found.to_json())) == found


def test_an_incomplete_answer_says_so_first(tmp_path: Path) -> None:
    text = of_file(tmp_path / "ps.json", report(is_complete=False))
    assert text.startswith("INCOMPLETE")


def test_top_and_sort_hold_for_every_format(tmp_path: Path) -> None:
    words = "--sort", "-pss_pages", "--top", "1"
    for table, names in (("processes", ["42"]), ("groups", ["1"])):
        csv_text = of_file(
            tmp_path / "x", report(is_grouped=True), "--csv", "--table", table, *words
        )
        assert "\x1b" not in csv_text
        (row,) = csv.DictReader(io.StringIO(csv_text))
        assert [row.get("pid") or row["processes"]] == names
    found = json.loads(of_file(tmp_path / "x", report(), "--json", *words))
    assert [row["pid"] for row in found["tables"]["processes"]] == [42]
    assert found["tables"]["processes"][0]["swap_share_bytes"] is None


@pytest.mark.parametrize(
    "words", [["7"], ["--user", "0"], ["--name", "x"], ["--group-by", "name"]]
)
def test_a_file_is_not_filtered(tmp_path: Path, words: list[str]) -> None:
    result = CliRunner().invoke(cli, ["ps", "--from", str(tmp_path / "x"), *words])
    assert result.exit_code == 2
    assert "--from shows what is in the file" in result.stderr
