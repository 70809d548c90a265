"""The table of the demo."""

import json

import pytest

from memlens.residency.records import Kernel
from memlens.selftest.records import Answer, DemoResult, Disagreement, Finding, LeftOut, SwapUse
from memlens.views.selftest import render_demo, render_demo_json

GOOD = Finding(
    "memfd", "swapped out", 4096, 23, (Answer(23, "nothing", "swapped", True),), (), ()
)
UNKNOWN = Finding(
    "memfd",
    "written, then unmapped",
    8192,
    23,
    (Answer(23, "nothing", "unknown", False),),
    (),
    ("it is not allowed, and this is a long sentence of why that is so, for wrapping it",),
)
WRONG = Finding(
    "tmpfs file",
    "written",
    12288,
    23,
    (Answer(23, "present", "zero", True),),
    tuple(Disagreement(page, ("present",), "zero") for page in range(23)),
    (),
)


def result(*findings: Finding, swap: SwapUse | None = None, leftovers: str = "") -> DemoResult:
    return DemoResult(
        kernel=Kernel("6.18.1", 4096),
        swap=swap or SwapUse("zram", ("/dev/zram7",), is_made=True),
        findings=findings,
        left_out=(
            LeftOut("hugetlbfs", "written", "no huge pages are free"),
            LeftOut("hugetlbfs", "cached", "no huge pages are free"),
        ),
        wall_s=0.4,
        leftovers=leftovers,
    )


def text_of(found: DemoResult, width: int = 80, is_unicode: bool = True) -> str:
    return "\n".join(line.plain for line in render_demo(found, width, is_unicode))


@pytest.mark.parametrize("width", [80, 120, 200])
def test_fits_80_columns(width: int) -> None:
    lines = text_of(result(GOOD, UNKNOWN, WRONG), width).split("\n")
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)


def test_plain_terminals_get_plain_characters() -> None:
    assert text_of(result(GOOD, UNKNOWN, WRONG), is_unicode=False).isascii()


def test_agreement_is_said_of_the_known_pages_only() -> None:
    text = text_of(result(GOOD, UNKNOWN))
    assert "agrees with how the memory was made on all 23 pages" in text
    assert "23 it says it" in text
    assert "cannot know: it is not allowed" in text
    assert "WRONG" not in text


def test_a_wrong_page_cannot_be_overlooked() -> None:
    text = text_of(result(GOOD, WRONG))
    assert "WRONG: page 0 is present, but memlens says zero" in text
    assert "and 18 pages more" in text
    assert "memlens is WRONG on 23 of 46 pages" in text
    assert "agrees with how the memory was made on" not in text


def test_swap_that_stays_is_told() -> None:
    text = text_of(result(GOOD, leftovers="cannot take /dev/zram7 away"))
    assert "LEFT BEHIND: cannot take /dev/zram7 away" in text
    assert "taken away again" not in text


def test_what_is_left_out_is_told_with_one_reason() -> None:
    text = text_of(result(GOOD, swap=SwapUse("none", reason="no swap here")))
    assert "Without swap: no swap here." in text
    assert text.count("no huge pages are free") == 1
    assert "hugetlbfs: written; hugetlbfs: cached" in text


def test_json_holds_all_of_it() -> None:
    found = json.loads(render_demo_json(result(GOOD, WRONG)))
    assert found["schema"] == "memlens.demo/1"
    assert found["totals"] == {
        "pages": 46,
        "misled_pages": 46,
        "unknown_pages": 0,
        "disagreeing_pages": 23,
    }
    assert found["findings"][1]["disagreements"][0] == {
        "page": 0,
        "expected": ["present"],
        "found": "zero",
    }
