"""Columns at any width, and names cut to fit."""

import pytest

from memlens.pages.classes import PageClass
from memlens.residency.records import ProcessMap
from memlens.views.map import Layout, choose_layout, short_name
from memlens.views.text import cell_len, cut_middle
from tests.unit.processmaps import EVERY, PAGE, map_of, mapping_of


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


def every_class() -> ProcessMap:
    others = [mapping_of("PS.c", start=0x100000 * n) for n in (1, 2, 3)]
    return map_of(mapping_of(EVERY), *others)


def layout_of(found: ProcessMap, width: int) -> Layout:
    return choose_layout(found.mappings, width, PAGE)


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_every_class_has_a_place(width: int) -> None:
    layout = layout_of(every_class(), width)
    placed = [row.page_class for row in (*layout.own, *layout.shared)]
    assert sorted(placed) == sorted(PageClass)
    assert len(layout.widths) == len(layout.own) + bool(layout.shared)


def test_what_is_common_keeps_its_column() -> None:
    layout = layout_of(every_class(), 80)
    assert {"present", "swapped", "unknown"} <= {row.label for row in layout.own}
    assert layout.shared
    assert not layout_of(every_class(), 200).shared


def test_classes_that_do_not_occur_have_none() -> None:
    layout = layout_of(map_of(mapping_of("PPS")), 80)
    assert [row.label for row in layout.own] == ["present", "swapped"]


def test_addresses_only_where_there_is_room() -> None:
    found = map_of(mapping_of("P", start=0x7FFF00001000))
    assert layout_of(found, 80).address == 0
    assert layout_of(found, 200).address == len("7fff00001000")
