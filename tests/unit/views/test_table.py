"""Tables fit their width, leave out what matters least, and never print a raw name."""

from typing import NamedTuple

import pytest

from memlens.views.lines import cell_len
from memlens.views.table import (
    TableColumn,
    TableOptions,
    render_csv,
    render_document,
    render_rows,
    sort_names,
    sort_rows,
)


class Thing(NamedTuple):
    pid: int
    pages: float | None
    note: str
    name: str


COLUMNS: tuple[TableColumn[Thing], ...] = (
    TableColumn("pid", "PID", "number", lambda row: row.pid),
    TableColumn("own_pages", "own\npages", "pages", lambda row: row.pages),
    TableColumn("note", "note", "text", lambda row: row.note, 2),
    TableColumn("absent", "absent", "number", lambda row: None, 1),
    TableColumn("name", "name", "name", lambda row: row.name),
)
ROWS = [
    Thing(7, 2.0, "", "short"),
    Thing(4194304, None, "a note that is long", "/srv/\x1b[2Jdata/名前/" + "x" * 300),
    Thing(12, 0, "b", "with\nnewline"),
]


def draw(width: int, rows: list[Thing] = ROWS) -> list[str]:
    lines = render_rows(rows, COLUMNS, 4096, TableOptions(width))
    return ["".join(part.text for part in line) for line in lines]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120, 200])
def test_lines_fit(width: int) -> None:
    assert max(map(cell_len, draw(width))) <= width


def test_what_matters_least_goes_first() -> None:
    assert "note" in draw(80)[1]
    assert "note" not in draw(30)[1]
    assert all("PID" in draw(width)[1] for width in (30, 80))


def test_a_text_is_cut_only_where_there_is_no_room() -> None:
    rows = [Thing(7, 2.0, "a note of thirty characters, 30", "short")]
    assert "a note of thirty characters, 30" in draw(80, rows)[2]
    assert "a note of thirty characters, 30" not in draw(50, rows)[2]
    assert max(map(cell_len, draw(50, rows))) <= 50


def test_a_column_of_which_nothing_is_known_is_left_out() -> None:
    assert "absent" not in draw(200)[1]


def test_unknown_and_nothing_look_different() -> None:
    lines = draw(80)
    assert lines[2].split()[:2] == ["7", "8K"]
    assert lines[3].split()[:2] == ["4194304", "?"]
    assert lines[4].split()[:2] == ["12", "b"]


def test_names_cannot_move_the_cursor() -> None:
    text = "\n".join(draw(400))
    assert "\x1b" not in text
    assert r"\x1b[2J" in text
    assert r"with\x0anewline" in text


def test_sorting_puts_the_largest_first_and_the_unknown_last() -> None:
    assert [row.pid for row in sort_rows(ROWS, COLUMNS, "own")] == [7, 12, 4194304]
    assert [row.pid for row in sort_rows(ROWS, COLUMNS, "pid")] == [4194304, 12, 7]
    assert [row.name[:1] for row in sort_rows(ROWS, COLUMNS, "name")] == ["/", "s", "w"]
    assert sort_rows(ROWS, COLUMNS, None) == ROWS
    assert sort_names(COLUMNS) == ["pid", "own", "note", "absent", "name"]


def test_csv_has_a_row_for_each_and_no_raw_control() -> None:
    lines = "".join(render_csv(ROWS, COLUMNS)).splitlines()
    assert lines[0] == "pid,own_pages,note,absent,name"
    assert lines[1] == "7,2.0,,,short"
    assert len(lines) == 1 + len(ROWS)
    assert "\x1b" not in "".join(lines)


def test_a_document_is_json() -> None:
    import json

    value = {"a": 1, "rows": [{"n": "\x1b\udcff"}, {}], "none": [], "text": "x"}
    assert json.loads("".join(render_document(value))) == value
