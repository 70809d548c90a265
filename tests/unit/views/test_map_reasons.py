"""What is unknown stays told, whatever is left out."""

from dataclasses import replace

import numpy as np

from memlens.pages.classes import PageClass
from memlens.residency.records import UnknownRun, Words
from memlens.views.map import Unknown, group_unknown, list_runs, select_classes

# mypy: disable-error-code="no-untyped-def"


def test_unknown_pages_without_a_reason_are_still_listed(make_mapping) -> None:
    mapping = replace(make_mapping("P??"), unknown=())
    assert [(run.pages, run.page_class.label) for run in list_runs(mapping)] == [
        (1, "present"),
        (2, "unknown"),
    ]


def test_reasons_are_grouped_by_size(make_map, make_mapping) -> None:
    result = make_map(
        make_mapping("?P?", reason="a"),
        make_mapping("?????", start=0x9000, reason="b"),
        make_mapping("?", start=0xF000, reason="a"),
    )
    assert group_unknown(result) == [Unknown("b", 5, 1), Unknown("a", 3, 2)]


def test_what_smaps_adds_does_not_split_a_reason(make_map, make_mapping) -> None:
    note = "hidden (smaps counts {} of swap in this mapping)"
    result = make_map(
        make_mapping("?", reason=note.format("4K")),
        make_mapping("?", start=0x9000, reason=note.format("4K")),
    )
    assert group_unknown(result) == [Unknown("hidden", 2, 2)]
    alone = make_map(make_mapping("?", reason=note.format("4K")))
    assert group_unknown(alone)[0].reason == note.format("4K")


def test_only_some_classes(make_map, make_mapping) -> None:
    result = make_map(make_mapping("PPSS."), make_mapping("PP", start=0x9000))
    shown = select_classes(result, frozenset({PageClass.SWAPPED, PageClass.NONE}))
    assert len(shown.mappings) == 1
    assert list(shown.mappings[0].runs) == [(2, 2, 4), (4, 1, 7)]
    assert int(shown.counts().sum()) == 3
    assert shown.notes == ()


def test_unknown_pages_left_out_are_noted(make_map, make_mapping) -> None:
    result = make_map(make_mapping("S?"), make_mapping("P??", start=0x9000))
    shown = select_classes(result, frozenset({PageClass.SWAPPED}))
    assert shown.mappings[0].unknown == (UnknownRun(1, 1, "why"),)
    assert shown.notes == ("left out: 1 mappings with 2 unknown pages",)


def test_words_follow_the_pages(make_map, make_mapping) -> None:
    words = Words(np.array([0, 1, 3, 4]), np.array([10, 11, 13, 14], np.uint64))
    result = make_map(replace(make_mapping("SPPSP"), words=words))
    shown = select_classes(result, frozenset({PageClass.SWAPPED})).mappings[0].words
    assert shown is not None
    assert (shown.page.tolist(), shown.word.tolist()) == ([0, 3], [10, 13])
