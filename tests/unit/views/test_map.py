"""The text of a map at any width, with and without colour."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from memlens.pages.classes import CLASSES, PageClass
from memlens.pages.decode import Words
from memlens.record import Table
from memlens.residency.records import NodePages, Process, ProcessMap, Scope
from memlens.residency.tables import select_classes
from memlens.views.map import render, scanned_pages
from memlens.views.text import TableOptions, cell_len, format_seconds
from tests.unit.processmaps import EVERY, map_of, mapping_of


def text_of(found: ProcessMap, has_runs: bool = False, **options: Any) -> str:
    lines = render(found, TableOptions(**options), has_runs=has_runs)
    return "\n".join("".join(part.text for part in line) for line in lines)


@pytest.mark.parametrize("width", [80, 100, 132, 200])
@pytest.mark.parametrize("is_colored", [False, True])
def test_no_line_is_wider_than_the_terminal(width: int, is_colored: bool) -> None:
    path = "/very/long/" + "d" * 150 + "/name-that-is-long-too-日本語.so (deleted)"
    result = map_of(
        mapping_of(EVERY * 50, path=path, reason="a long reason " * 20),
        mapping_of("PS.c" * 100, start=0xFFFFFFFFFF600000, path=""),
        notes=("a long note " * 30,),
    )
    text = text_of(result, width=width, is_colored=is_colored, is_unicode=is_colored)
    wide = [line for line in text.split("\n") if cell_len(line) > width]
    assert not wide


def test_no_class_is_lost_where_columns_are_shared() -> None:
    result = map_of(mapping_of(EVERY, path="[heap]"), mapping_of("PS"))
    lines = text_of(result, width=80).split("\n")
    first = next(n for n, line in enumerate(lines) if "[heap]" in line)
    last = next(n for n, line in enumerate(lines) if "/lib/x.so" in line)
    words = " ".join(lines[first:last]).split()
    cells = [word for word in words if word.endswith("4K")]
    assert len(cells) == len(EVERY)
    assert len({cell for cell in cells if cell != "4K"}) >= 3


def test_the_numbers_of_a_mapping_stand_under_their_class() -> None:
    lines = text_of(map_of(mapping_of("PPSSS."), mapping_of("PP", path="")), width=80)
    heading, first, second = lines.split("\n")[3:6]
    assert heading.split() == ["perm", "size", "mapping", "present", "swapped", "none", "where"]
    assert first.split() == ["rw-p", "24K", "/lib/x.so", "8K", "12K", "4K", "PPSSS."]
    assert second.split() == ["rw-p", "8K", "(anonymous)", "8K", "PP"]
    assert first.index("12K") + 3 == heading.index("swapped") + 7


def test_totals_are_the_legend() -> None:
    text = text_of(map_of(mapping_of(EVERY)), width=200)
    for row in CLASSES:
        line = next(
            line for line in text.split("\n") if line.startswith(f"{row.sign} ")
        ).split()
        assert line[1] == row.page_class.label
        assert line[2:4] == ["4K", "1"]
        assert row.meaning in text
    assert f"total {'':14} 52K 13 pages 100%".split() == [
        word for line in text.split("\n") if "100%" in line for word in line.split()[:5]
    ]


@pytest.mark.parametrize(("pages", "share"), [("P" * 999 + "S", ">99%"), ("PS", "50%")])
def test_a_share_never_rounds_to_all(pages: str, share: str) -> None:
    text = text_of(map_of(mapping_of(pages)), width=80)
    assert share in next(line for line in text.split("\n") if line.startswith("P "))


def test_blocks_only_with_colour() -> None:
    result = map_of(mapping_of("P" * 8 + "S" * 8))
    assert "PPPPPPPPSSSSSSSS" in text_of(result, is_unicode=True)
    assert "PPPPPPPPSSSSSSSS" in text_of(result, is_colored=True)
    colored = list(render(result, TableOptions(80, True, True)))
    strip = [part for line in colored for part in line if part.text == "█" * 8]
    assert [part.style for part in strip] == ["green", "red"]


def test_a_mixed_cell_is_shaded() -> None:
    result = map_of(mapping_of("PS" * 500))
    assert "▒" in text_of(result, is_colored=True, is_unicode=True)


def test_the_summary_tells_what_is_unknown_and_of_all() -> None:
    whole = map_of(mapping_of("P???"))
    text = text_of(select_classes(whole, {PageClass.SWAPPED}))
    assert "unknown   12K: why" in text
    evidence = (
        "evidence pagemap; not needed: smaps; not available: mincore; page frames are hidden"
    )
    assert evidence in " ".join(text.split())
    assert "cost      12.3 ms, 4K read, longest single read 1 ms" in text
    assert "No mapping has pages of these classes." in text
    assert "unknown   nothing" in text_of(map_of(mapping_of("P")))


def test_too_many_reasons_and_notes_are_counted() -> None:
    mappings = [mapping_of("?", start=0x1000 * n, reason=f"reason {n}") for n in range(1, 21)]
    text = text_of(map_of(*mappings, notes=tuple(f"note {n}" for n in range(20))))
    assert "48K: 12 more reasons" in text
    assert "12 more (--json has them)" in text


def test_nothing_from_a_process_reaches_the_terminal() -> None:
    result = map_of(mapping_of("P?", path="/\x1b[2J\udcff\u202e", reason="\x07"))
    hostile = Process(42, "\x1b]0;x\x07", "\x1b[31m \n", "\x1b[3J")
    sections = {**result.sections, "process": hostile}
    result = replace(result, sections=sections, notes=("\x1b[1m\n",), kernel="\x1b[0m")
    for width in (80, 200):
        text = text_of(result, width=width, has_runs=True)
        assert all(line.isprintable() for line in text.split("\n"))
        text.encode("utf-8")


def test_runs_and_words_follow_their_mapping() -> None:
    words = Words(np.array([1]), np.array([1 << 63 | 5], np.uint64))
    result = map_of(mapping_of("PP?", words=words))
    lines = [line.split() for line in text_of(result, has_runs=True).split("\n")]
    assert ["1000-3000", "8K", "2", "pages", "present"] in lines
    assert ["3000-4000", "4K", "1", "page", "unknown:", "why"] in lines
    assert ["2000", "8000000000000005", "present"] in lines


@pytest.mark.parametrize(
    ("scope", "pages"),
    [
        (None, (0, 4)),
        (Scope(0, 1 << 52), (0, 4)),
        (Scope(2, 3), (1, 2)),
        (Scope(2, 4), (1, 3)),
    ],
)
def test_a_range_cuts_a_mapping(scope: Scope | None, pages: tuple[int, int]) -> None:
    assert scanned_pages(map_of(mapping_of("P..S")).mappings[0], scope) == pages


def test_a_cut_mapping_shows_the_size_it_was_cut_to() -> None:
    whole = map_of(mapping_of(" PS  "))
    text = text_of(replace(whole, sections={**whole.sections, "scope": Scope(2, 4)}))
    line = next(line for line in text.split("\n") if line.startswith("rw-p")).split()
    assert line == ["rw-p", "8K", "/lib/x.so", "4K", "4K", "PS"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 ms"), (0.9994, "999 ms"), (0.9996, "1 s"), (1.0, "1 s"), (1234.5, "1234 s")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_every_class_has_a_colour_that_rich_knows() -> None:
    from rich.style import Style

    assert len({row.page_class for row in CLASSES}) == len(PageClass)
    for row in CLASSES:
        assert Style.parse(f"bold {row.color}").color is not None


def test_nodes_stand_above_the_total() -> None:
    result = map_of(mapping_of("PPP."))
    nodes = Table.of(NodePages, [NodePages(1, 0, 1), NodePages(1, 2, 2)])
    result = replace(result, tables={**result.tables, "nodes": nodes})
    lines = text_of(result, width=80).split("\n")
    at = next(n for n, line in enumerate(lines) if line.startswith("  total"))
    assert lines[at - 2].split()[:5] == ["node", "0", "4K", "1", "page"]
    assert lines[at - 1].split()[:5] == ["node", "2", "8K", "2", "pages"]
    hidden = select_classes(result, frozenset({PageClass.NONE}))
    assert "node" not in text_of(hidden, width=80)


@pytest.mark.parametrize("width", [80, 200])
def test_a_saved_map_is_drawn_as_it_was(width: int) -> None:
    words = Words(np.array([1]), np.array([1 << 63 | 5], np.uint64))
    found = map_of(
        mapping_of(EVERY * 30, words=words), mapping_of("PS?", start=0x900000, path="[heap]")
    )
    again = ProcessMap.from_json("".join(found.to_json()))
    assert text_of(again, width=width, has_runs=True) == text_of(
        found, width=width, has_runs=True
    )


def test_without_runs_there_is_no_strip() -> None:
    found = map_of(mapping_of("PPS", path="/" + "long " * 20))
    tables = {name: table for name, table in found.tables.items() if name != "runs"}
    text = text_of(replace(found, tables=tables), width=80)
    assert "where" not in text
    assert max(map(len, text.split("\n"))) <= 80


def test_the_first_rows_are_those_of_the_order_that_was_asked_for() -> None:
    found = map_of(mapping_of("PPS", path="[heap]"), mapping_of("SSS", start=0x9000))
    text = text_of(found.arranged(sort=["swapped_pages"]), top=1)
    assert "SSS" in text
    assert "[heap]" not in text
    assert "1 more (--top N shows more)" in text
    assert " 24K 6 pages 100% in 2 mappings" in " ".join(["", *text.split()])
