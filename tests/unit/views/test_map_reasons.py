"""What is unknown stays told, whatever is left out."""

from memlens.views.map import Unknown, group_unknown, list_runs
from tests.unit.processmaps import map_of, mapping_of


def test_unknown_pages_without_a_reason_are_still_listed() -> None:
    _, _, found = mapping_of("P??")
    assert [(run.pages, run.page_class.label) for run in list_runs(found.runs, ())] == [
        (1, "present"),
        (2, "unknown"),
    ]


def test_reasons_are_grouped_by_size() -> None:
    result = map_of(
        mapping_of("?P?", reason="a"),
        mapping_of("?????", start=0x9000, reason="b"),
        mapping_of("?", start=0xF000, reason="a"),
    )
    assert group_unknown(result.unknown) == [Unknown("b", 5, 1), Unknown("a", 3, 2)]


def test_what_smaps_adds_does_not_split_a_reason() -> None:
    note = "hidden (smaps counts {} of swap in this mapping)"
    result = map_of(
        mapping_of("?", reason=note.format("4K")),
        mapping_of("?", start=0x9000, reason=note.format("4K")),
    )
    assert group_unknown(result.unknown) == [Unknown("hidden", 2, 2)]
    alone = map_of(mapping_of("?", reason=note.format("4K")))
    assert group_unknown(alone.unknown)[0].reason == note.format("4K")
