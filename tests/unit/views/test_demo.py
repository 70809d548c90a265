"""The table of the demo."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from memlens.commands.demo import command
from memlens.record import Table
from memlens.report import Cost, Origin, Report
from memlens.selftest.demo import Judged, total_of
from memlens.selftest.records import (
    Answer,
    DemoResult,
    Disagreement,
    Finding,
    LeftOut,
    Reason,
    SwapUse,
)
from memlens.views.demo import render
from memlens.views.text import TableOptions

GOOD = Judged(
    Finding(1, "memfd", "swapped out", 1, 23, 23, 0, 0),
    (Answer(1, 23, "nothing", "swapped", True),),
    (),
    (),
)
UNKNOWN = Judged(
    Finding(2, "memfd", "written, then unmapped", 2, 23, 0, 23, 0),
    (Answer(2, 23, "nothing", "unknown", False),),
    (),
    (Reason(2, "it is not allowed, and this is a long sentence of why that is so, for it"),),
)
WRONG = Judged(
    Finding(3, "tmpfs file", "written", 3, 23, 23, 0, 23),
    (Answer(3, 23, "present", "zero", True),),
    tuple(Disagreement(3, page, "present", "zero") for page in range(23)),
    (),
)


def result(
    *judged: Judged, swap: SwapUse | None = None, is_complete: bool = True
) -> DemoResult:
    reason = "no huge pages are free"
    return DemoResult.at(
        Origin("2026-01-31T08:15:00Z", "host", "boot", "6.18.1", 4096, "0.1.0"),
        tables={
            "specimens": Table.of(Finding, [one.finding for one in judged]),
            "answers": Table.of(Answer, [row for one in judged for row in one.answers]),
            "disagreements": Table.of(
                Disagreement, [row for one in judged for row in one.disagreements]
            ),
            "reasons": Table.of(Reason, [row for one in judged for row in one.reasons]),
            "left_out": Table.of(
                LeftOut,
                [LeftOut(n, "hugetlbfs", how, reason) for n, how in ((8, "a"), (9, "b"))],
            ),
        },
        sections={
            "swap": swap or SwapUse("zram", "/dev/zram7", is_made=True),
            "total": total_of([one.finding for one in judged]),
        },
        is_complete=is_complete,
        cost=Cost(0.4, 4096, 0.001),
    )


def text_of(found: DemoResult, width: int = 80, is_unicode: bool = True, **more: int) -> str:
    lines = render(found, TableOptions(width, is_unicode=is_unicode, **more))
    return "\n".join("".join(part.text for part in line) for line in lines)


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
    found = result(GOOD, WRONG)
    assert found.is_wrong
    text = text_of(found)
    assert "WRONG: page 0 is present, but memlens says zero" in text
    assert "and 18 pages more" in text
    assert "memlens is WRONG on 23 of 46 pages" in text
    assert "agrees with how the memory was made on" not in text


def test_swap_that_stays_is_told() -> None:
    stays = SwapUse("zram", "/dev/zram7", True, leftovers="cannot take /dev/zram7 away")
    found = result(GOOD, swap=stays)
    assert found.is_wrong
    text = text_of(found)
    assert "LEFT BEHIND: cannot take /dev/zram7 away" in text
    assert "taken away again" not in text


def test_what_is_left_out_is_told_with_one_reason() -> None:
    text = text_of(result(GOOD, swap=SwapUse("none", reason="no swap here")))
    assert "Without swap: no swap here." in text
    assert text.count("no huge pages are free") == 1
    assert "hugetlbfs: a; hugetlbfs: b" in text


def test_rows_that_are_cut_are_counted_and_stay_in_the_sums() -> None:
    text = text_of(result(GOOD, UNKNOWN, WRONG), top=1)
    assert "2 more (--top N" in text
    assert "tmpfs file" not in text
    assert "69 pages, each made on purpose" in text


def test_what_was_ended_before_a_look_claims_nothing() -> None:
    text = text_of(result(is_complete=False))
    assert "agrees with how the memory was made on" not in text
    assert "misleads on" not in text


def test_nothing_wrong_is_not_all_known() -> None:
    assert not result(GOOD).is_wrong
    assert not result(GOOD).is_all_known  # Kinds were left out.


@pytest.mark.parametrize(("judged", "code"), [(GOOD, 0), (WRONG, 1)])
def test_a_report_of_a_wrong_page_is_an_error_wherever_it_is_read(
    judged: Judged, code: int, tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    file.write_text("".join(result(judged).to_json()))
    for option in ("--json", "--csv", "--no-color"):
        shown = CliRunner().invoke(command, ["--from", str(file), option])
        assert shown.exit_code == code
    strict = CliRunner().invoke(command, ["--from", str(file), "--strict"])
    assert strict.exit_code == (code or 3)


def test_json_holds_all_of_it() -> None:
    found = result(GOOD, UNKNOWN, WRONG)
    document = json.loads("".join(found.to_json()))
    assert document["schema"] == "memlens.demo/2"
    assert document["sections"]["total"] == {
        "kinds": 3,
        "pages": 69,
        "misled_kinds": 2,
        "misled_pages": 46,
        "unknown_pages": 23,
        "wrong_pages": 23,
    }
    assert document["tables"]["disagreements"][0] == {
        "number": 3,
        "page": 0,
        "expected": "present",
        "found": "zero",
    }
    again = Report.from_json(document)
    assert again == found
    assert text_of(DemoResult.from_json(document)) == text_of(found)
