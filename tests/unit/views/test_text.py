"""Tables fit their width, leave out what matters least, and never print a raw name."""

import pytest

from memlens.record import Table, column, record
from memlens.views.text import TableOptions, cell_len, render_table


@record("test.things")
class Thing:
    pid: int = column("PID")
    own_pages: float | None = column("own\npages", unit="pages")
    note: str = column("note", rank=2)
    name: str = column("name", unit="name")
    absent: int | None = column("absent", rank=1, default=None)


ROWS = [
    Thing(7, 2.0, "", "short"),
    Thing(4194304, None, "a note that is long", "/srv/\x1b[2Jdata/名前/" + "x" * 300),
    Thing(12, 0, "b", "with\nnewline"),
]


def draw(width: int, rows: list[Thing] = ROWS) -> list[str]:
    names = ("pid", "own_pages", "note", "absent", "name")
    lines = render_table(Table.of(Thing, rows), 4096, TableOptions(width), names)
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
