"""One page, explained as text and as JSON."""

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from memlens.pages.classes import PageClass
from memlens.record import Table
from memlens.report import Cost
from memlens.residency.records import (
    PageExplanation,
    PageHolder,
    PageObject,
    PageVerdict,
    Process,
    Step,
    SwapPlace,
)
from memlens.schema import json_schema
from memlens.views.page import render
from memlens.views.text import TableOptions
from tests.unit.processmaps import ORIGIN

VERDICT = PageVerdict(
    page=0x7F0000003,
    start_page=0x7F0000000,
    stop_page=0x7F0000017,
    permissions="rw-s",
    page_class="swapped",
    meaning="on swap only",
    reason="",
    word=0,
    pfn=None,
    attributes="uffd wp",
    kpage_flags="",
    missed_holders=2,
)
STEPS = [
    Step("/proc/42/maps: what is mapped", "7f00 rw-s " + "long-name/" * 20, "so " * 60),
    Step("cachestat", "nr_cache 0, nr_evicted 1", "on swap"),
]
HOLDERS = [
    PageHolder(42, "evil\x1b[2J", 0x7F0000003, "rw-s", False, False),
    PageHolder(43, "other", 0x5, "rw-p", True, True),
    PageHolder(44, "shy", 0x6, "rw-s", None, False),
]
SECTIONS = {
    "process": Process(42, "evil\x1b[2J", "evil -x", "2026-01-02T00:00:00.000Z"),
    "verdict": VERDICT,
    "object": PageObject("shmem", "/memfd:\x1b]0;x (deleted)", "00:01", 5, 0x3000),
    "swap": SwapPlace(1, 77, ""),
}


def page_of(holders: list[PageHolder] = HOLDERS, **sections: Any) -> PageExplanation:
    return PageExplanation.at(
        ORIGIN,
        tables={"steps": Table.of(Step, STEPS), "holders": Table.of(PageHolder, holders)},
        sections={**SECTIONS, **sections},
        notes=("the page changed during the look, which was begun 2 times",),
        cost=Cost(0.1, 4096, 0.001),
    )


PAGE = page_of()


def text_of(page: PageExplanation, width: int = 80, is_unicode: bool = True) -> str:
    lines = render(page, TableOptions(width, is_unicode=is_unicode))
    return "\n".join("".join(part.text for part in line) for line in lines)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_fits_the_width(width: int) -> None:
    assert max(map(len, text_of(PAGE, width).split("\n"))) <= width


def test_names_cannot_move_the_cursor() -> None:
    assert "\x1b" not in text_of(PAGE)


def test_plain_terminals_get_plain_characters() -> None:
    assert text_of(PAGE, is_unicode=False).isascii()


def test_steps_come_in_order_and_the_verdict_after_them() -> None:
    text = text_of(PAGE)
    places = [text.index(part) for part in (" 1  /proc", " 2  cachestat", "swapped: on swap")]
    assert places == sorted(places)


def test_holders_say_what_they_have_there() -> None:
    lines = text_of(PAGE).split("\n")
    assert next(line for line in lines if "other" in line).endswith("a private copy")
    assert next(line for line in lines if "shy" in line).endswith("not known")
    assert any(line.endswith("not mapped now, this one") for line in lines)
    assert any("2 processes could not be looked at" in line for line in lines)


def test_many_holders_are_cut_and_counted() -> None:
    rows = [PageHolder(pid, "x", 0, "rw-s", True, False) for pid in range(1, 51)]
    assert "30 more" in text_of(page_of(rows))


def test_the_unknown_gives_its_reason() -> None:
    page = page_of(verdict=replace(VERDICT, page_class="unknown", reason="needs root"))
    assert "unknown: needs root" in text_of(page)
    assert not page.is_all_known
    assert PAGE.is_all_known


def test_private_memory_has_no_object_and_no_holders() -> None:
    text = text_of(page_of(object=None))
    assert "private anonymous memory" in text
    assert "Who maps" not in text


def test_a_saved_page_is_drawn_as_it_was() -> None:
    text = "".join(PAGE.to_json())
    again = PageExplanation.from_json(text)
    assert again == PAGE
    assert text_of(again) == text_of(PAGE)


def test_json_has_numbers_and_the_raw_names() -> None:
    found = json.loads("".join(PAGE.to_json()))
    jsonschema.validate(found, json_schema(PageExplanation))
    assert found["schema"] == "memlens.page/2"
    verdict = found["sections"]["verdict"]
    assert verdict["page_class"] == PageClass.SWAPPED.label
    assert (verdict["page"], verdict["word"], verdict["pfn"]) == (0x7F0000003, 0, None)
    assert found["sections"]["process"]["name"] == "evil\x1b[2J"
    assert found["sections"]["swap"] == {"area": 1, "slot": 77, "path": ""}
    assert found["tables"]["holders"][2]["is_present"] is None
    assert found["tables"]["steps"][1]["answer"] == "nr_cache 0, nr_evicted 1"
