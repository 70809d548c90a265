"""One page, explained as text and as JSON."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from memlens.pages.classes import PageClass
from memlens.residency.records import (
    PageExplanation,
    PageHolder,
    PageObject,
    Process,
    Step,
    SwapPlace,
)
from memlens.views.page import render_json, render_text

PAGE = PageExplanation(
    process=Process(42, "evil\x1b[2J", ("evil", "-x"), datetime(2026, 1, 2, tzinfo=UTC)),
    address=0x7F0000003000,
    page_size_bytes=4096,
    start=0x7F0000000000,
    stop=0x7F0000017000,
    permissions="rw-s",
    steps=(
        Step("/proc/42/maps: what is mapped", "7f00 rw-s " + "long-name/" * 20, "so " * 60),
        Step("cachestat", "nr_cache 0, nr_evicted 1", "on swap"),
    ),
    verdict=PageClass.SWAPPED,
    object=PageObject("shmem", "/memfd:\x1b]0;x (deleted)", "00:01", 5, 0x3000),
    word=0,
    swap=SwapPlace(1, 77, ""),
    attributes=("uffd wp",),
    holders=(
        PageHolder(42, "evil\x1b[2J", 0x7F0000003000, "rw-s", False, False),
        PageHolder(43, "other", 0x5000, "rw-p", True, True),
        PageHolder(44, "shy", 0x6000, "rw-s", None, False),
    ),
    missed_holders=2,
    notes=("the page changed during the look, which was begun 2 times",),
)


def text_of(page: PageExplanation, width: int = 80, is_unicode: bool = True) -> str:
    return "\n".join(line.plain for line in render_text(page, width, is_unicode))


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
    rows = tuple(PageHolder(pid, "x", 0, "rw-s", True, False) for pid in range(1, 51))
    text = text_of(replace(PAGE, holders=rows))
    assert "and 30 more" in text


def test_the_unknown_gives_its_reason() -> None:
    page = replace(PAGE, verdict=PageClass.UNKNOWN, reason="needs root")
    assert "unknown: needs root" in text_of(page)


def test_private_memory_has_no_object_and_no_holders() -> None:
    text = text_of(replace(PAGE, object=None))
    assert "private anonymous memory" in text
    assert "Who maps" not in text


def test_json_has_numbers_and_the_raw_names() -> None:
    found = json.loads(render_json(PAGE))
    assert found["schema"] == "memlens.page/1"
    assert found["verdict"] == "swapped"
    assert found["address"] == 0x7F0000003000
    assert found["mapping"] == {
        "start": 0x7F0000000000,
        "stop": 0x7F0000017000,
        "permissions": "rw-s",
    }
    assert found["process"]["started_at"] == "2026-01-02T00:00:00+00:00"
    assert found["swap"] == {"area": 1, "slot": 77, "path": ""}
    assert found["holders"][2]["is_present"] is None
    assert found["steps"][1]["answer"] == "nr_cache 0, nr_evicted 1"
