"""Columns at any width, and names cut to fit."""

import pytest

from memlens.pages.classes import PageClass
from memlens.residency.records import Row
from memlens.views.lines import cell_len, cut_middle
from memlens.views.map import choose_layout, short_name


@pytest.mark.parametrize(
    ("path", "width", "shown"),
    [
        ("", 14, "(anonymous)"),
        ("[heap]", 14, "[heap]"),
        ("/usr/lib/libc.so.6", 20, "/usr/lib/libc.so.6"),
        ("/usr/lib/libc.so.6", 14, "libc.so.6"),
        ("/dev/shm/a (deleted)", 14, "a (deleted)"),
        ("/memfd:a/b/c/d/e (deleted)", 25, "memfd:a/b/c/d/e (deleted)"),
        ("/dev/shm/name.12 (deleted)", 14, "name.12"),
        ("/memfd:a long name (deleted)", 9, "memf~name"),
        ("/usr/lib/abcdefghijklmnop.so", 9, "abcd~p.so"),
        ("/ends/in/slash/", 9, "/end~ash/"),
        ("/a\x1b[2J", 14, "/a\\x1b[2J"),
        ("/\udcff", 14, "/\\udcff"),
    ],
)
def test_short_name(path: str, width: int, shown: str) -> None:
    assert short_name(path, width, "~") == shown


def test_wide_characters_take_two_cells() -> None:
    assert cell_len("日本") == 4
    cut = cut_middle("日本語の長い名前.db", 9, "~")
    assert cell_len(cut) <= 9
    assert cut.endswith(".db")


def every_class(make_mapping) -> list[Row]:
    rows = [Row.of(make_mapping("PzckSda.GXeD?"))]
    return rows + [Row.of(make_mapping("PS.c"))] * 3


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_every_class_has_a_place(make_mapping, width: int) -> None:
    layout = choose_layout(every_class(make_mapping), width)
    placed = [column.page_class for column in (*layout.own, *layout.shared)]
    assert sorted(placed) == sorted(PageClass)
    assert len(layout.widths) == len(layout.own) + bool(layout.shared)


def test_what_is_common_keeps_its_column(make_mapping) -> None:
    layout = choose_layout(every_class(make_mapping), 80)
    own = {column.page_class.label for column in layout.own}
    assert {"present", "swapped", "unknown"} <= own
    assert layout.shared
    assert not choose_layout(every_class(make_mapping), 200).shared


def test_classes_that_do_not_occur_have_none(make_mapping) -> None:
    layout = choose_layout([Row.of(make_mapping("PPS"))], 80)
    assert [column.name for column in layout.own] == ["present", "swapped"]


def test_addresses_only_where_there_is_room(make_mapping) -> None:
    rows = [Row.of(make_mapping("P", start=0x7FFF00001000))]
    assert choose_layout(rows, 80).address == 0
    assert choose_layout(rows, 200).address == len("7fff00001000")
