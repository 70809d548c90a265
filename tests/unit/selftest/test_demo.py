"""The demo's judgement, on maps made by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memlens.errors import Unsupported
from memlens.pages.classes import PageClass
from memlens.pages.decode import Words
from memlens.selftest import demo
from memlens.selftest.demo import Specimen, SpecimenProcess, judge
from memlens.selftest.records import Answer, Reason
from tests.unit.processmaps import PAGE, MadeMapping, map_of, mapping_of

START = 0x10000
PRESENT = 1 << 63
MARKER = 1 << 62 | 31
P, C, S, N, U = (
    PageClass.PRESENT,
    PageClass.CACHED,
    PageClass.SWAPPED,
    PageClass.NONE,
    PageClass.UNKNOWN,
)


def mapping(start: int, classes: list[int], words: list[int]) -> MadeMapping:
    is_set = [page for page, word in enumerate(words) if word]
    raw = np.array([words[page] for page in is_set], np.uint64)
    found = Words(np.array(is_set, np.int64), raw)
    return mapping_of(classes, start=start, reason="no reason", words=found)


def specimen(*expected: tuple[int, tuple[str, ...]]) -> Specimen:
    pages = sum(count for count, _ in expected)
    return Specimen(3, "memfd", "on purpose", START, pages, expected)


def test_pages_as_they_were_made_agree() -> None:
    result = map_of(mapping(START, [P, P, C, S], [PRESENT, PRESENT, 0, 0]))
    wanted = specimen((2, ("present",)), (1, ("cached",)), (1, ("swapped", "swap_cached")))
    judged = judge(wanted, result)
    assert judged.disagreements == ()
    assert judged.answers == (
        Answer(3, 2, "present", "present", False),
        Answer(3, 1, "nothing", "cached", True),
        Answer(3, 1, "nothing", "swapped", True),
    )
    assert judged.finding.misled_pages == 2


def test_every_wrong_page_is_named() -> None:
    result = map_of(mapping(START, [P, C, C, C], [PRESENT, 0, 0, 0]))
    judged = judge(specimen((2, ("present",)), (2, ("cached",))), result)
    assert [(wrong.page, wrong.found) for wrong in judged.disagreements] == [(1, "cached")]


def test_the_unknown_is_no_disagreement_and_misleads_nobody() -> None:
    result = map_of(mapping(START, [U, N], [0, 0]))
    judged = judge(specimen((2, ("none",))), result)
    assert judged.disagreements == ()
    assert (judged.finding.unknown_pages, judged.finding.misled_pages) == (1, 0)
    assert judged.reasons == (Reason(3, "no reason"),)


def test_a_marker_is_taken_for_swap_by_pagemap_alone() -> None:
    result = map_of(mapping(START, [PageClass.GUARD], [MARKER]))
    assert judge(specimen((1, ("guard",))), result).answers[0] == Answer(
        3, 1, "swapped", "guard", True
    )


def test_a_specimen_in_the_middle_of_mappings_is_found() -> None:
    before = mapping(START - 2 * PAGE, [N, N, P], [0, 0, PRESENT])
    after = mapping(START + PAGE, [C, S, P], [0, 0, PRESENT])
    judged = judge(
        specimen((1, ("present",)), (1, ("cached",)), (1, ("swapped",))),
        map_of(before, after),
    )
    assert judged.disagreements == ()
    assert [answer.naive for answer in judged.answers] == ["present", "nothing", "nothing"]


def test_pages_that_are_not_mapped_are_unknown() -> None:
    judged = judge(specimen((2, ("present",))), map_of())
    assert judged.finding.unknown_pages == 2


@pytest.mark.parametrize("kind", [P, C, N])
def test_the_order_of_expectations_counts(kind: PageClass) -> None:
    classes = [int(kind), int(PageClass.GUARD)]
    wanted = specimen((1, ("guard",)), (1, (kind.label,)))
    judged = judge(replace(wanted), map_of(mapping(START, classes, [0, 0])))
    assert len(judged.disagreements) == 2


def test_without_proc_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_PROC", str(tmp_path))
    with pytest.raises(Unsupported, match="not a proc file system"):
        SpecimenProcess("none")
