"""A process map as tables: what JSON and CSV hold, and what is read back."""

import csv
import io
import json

import jsonschema
import numpy as np
import pytest

from memlens.pages.classes import PageClass
from memlens.pages.decode import Words
from memlens.pages.slotruns import encode_slots
from memlens.record import Table
from memlens.residency.records import COUNTS, MappingPages, NodePages, ProcessMap, UnknownRun
from memlens.residency.tables import select_classes
from memlens.schema import json_schema
from tests.unit.processmaps import map_of, mapping_of


def parse(found: ProcessMap) -> dict:
    def refuse(text: str) -> None:
        raise ValueError(text)

    parsed = json.loads("".join(found.to_json()), parse_constant=refuse)
    jsonschema.validate(parsed, json_schema(ProcessMap))
    assert ProcessMap.from_json(parsed) == found
    return parsed


def test_the_json() -> None:
    found = parse(map_of(mapping_of("PPSS.?"), notes=("a note",)))
    assert found["schema"] == "memlens.map/2"
    assert found["page_size_bytes"] == 4096
    assert found["sections"]["process"] == {
        "pid": 42,
        "name": "postgres",
        "cmdline": "postgres -D /data",
        "started_at": "2024-05-06T00:00:00.000Z",
    }
    (mapping,) = found["tables"]["mappings"]
    counts = {name: pages for name in COUNTS if (pages := mapping.pop(name))}
    assert counts == {
        "present_pages": 2,
        "swapped_pages": 2,
        "none_pages": 1,
        "unknown_pages": 1,
    }
    assert mapping == {
        "start_page": 1,
        "stop_page": 7,
        "permissions": "rw-p",
        "offset_bytes": 0,
        "device": "fe:01",
        "inode": 7,
        "path": "/lib/x.so",
        "object": "file",
        "note": "",
    }
    assert found["tables"]["unknown"]["rows"] == [[1, 5, 1, "why"]]
    assert found["tables"]["runs"] == {
        "columns": ["start_page", "first_page", "pages", "page_class"],
        "rows": [
            [1, 0, 2, "present"],
            [1, 2, 2, "swapped"],
            [1, 4, 1, "none"],
            [1, 5, 1, "unknown"],
        ],
    }
    sums = found["sums"]["pages"]
    assert (sums["total_pages"], sums["explained_pages"], sums["remainder_pages"]) == (6, 5, 1)
    assert sums["swapped_pages"] == 2
    assert found["notes"] == ["a note"]


def test_words_keep_all_bits() -> None:
    words = Words(np.array([1, 2]), np.array([1 << 63, (1 << 64) - 1], np.uint64))
    found = map_of(mapping_of("PPS", words=words), mapping_of("P", start=0x9000))
    assert parse(found)["tables"]["words"]["rows"] == [[1, 1, -(1 << 63)], [1, 2, -1]]
    first, second = found.each
    assert first.words is not None
    assert first.words.word.tolist() == [1 << 63, (1 << 64) - 1]
    assert second.words is not None
    assert not len(second.words.page)
    assert map_of(mapping_of("P")).each[0].words is None


def test_slots() -> None:
    slots = encode_slots(
        np.array([2, 3, 5]), np.array([0, 0, 1], np.uint8), np.array([7, 8, 1])
    )
    words = Words(np.array([2]), np.array([1 << 62], np.uint64))
    found = map_of(
        mapping_of("PPSSPS", slots=slots, words=words), mapping_of("P", start=0x9000)
    )
    assert parse(found)["tables"]["slots"]["rows"] == [[1, 2, 2, 0, 7], [1, 5, 1, 1, 1]]
    first, second = found.each
    assert first.slots is not None
    assert list(first.slots) == [(2, 2, 0, 7), (5, 1, 1, 1)]
    assert second.slots is not None
    assert not len(second.slots)


@pytest.mark.parametrize("count", [1, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, 1 << 16])
def test_long_tables_are_whole_where_pieces_meet(count: int) -> None:
    words = Words(np.arange(count), np.arange(count, dtype=np.uint64))
    found = parse(map_of(mapping_of([n % 2 for n in range(count)], words=words)))["tables"]
    labels = ["present", "zero"]
    assert found["runs"]["rows"] == [[1, n, 1, labels[n % 2]] for n in range(count)]
    assert found["words"]["rows"] == [[1, n, n] for n in range(count)]


@pytest.mark.parametrize("path", ["/a\udcff\udc80", '/"\\', "/\x1b[2J", "/日本 (deleted)", ""])
def test_names_are_raw(path: str) -> None:
    found = map_of(mapping_of("P", path=path))
    assert "".join(found.to_json()).isascii()
    assert parse(found)["tables"]["mappings"][0]["path"] == path


def test_nothing_mapped_is_still_json() -> None:
    found = parse(map_of())
    assert found["tables"]["mappings"] == []
    assert found["sums"]["pages"]["total_pages"] == 0


def rows_of(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO("".join(table.to_csv()))))


def test_csv_has_a_row_for_a_mapping_and_a_column_for_a_class() -> None:
    found = map_of(mapping_of("PPS?"), mapping_of("..", path='a,"b"', start=0x9000))
    rows = rows_of(found.mappings)
    assert [row["start_page"] for row in rows] == ["1", "9"]
    assert rows[1]["path"] == 'a,"b"'
    names = ("present_pages", "swapped_pages", "zero_pages")
    assert [rows[0][name] for name in names] == ["2", "1", "0"]
    assert [row["reason"] for row in rows_of(found.unknown)] == ["why"]


def test_rows_with_runs_do_not_depend_on_the_order_of_the_tables() -> None:
    found = map_of(mapping_of("PS?"), mapping_of("SP.", start=0x9000))
    plain = list(found.each)
    turned = found.arranged(sort=["start_page"]).arranged("runs", sort=["first_page"])
    assert [row.start for row in turned.each] == [0x9000, 0x1000]
    for one, other in zip(reversed(plain), turned.each, strict=True):
        assert sorted(one.runs) == sorted(other.runs)
        assert one.unknown == other.unknown


def test_rows_are_made_when_they_are_read() -> None:
    found = map_of(mapping_of("PS?"), mapping_of("SP.", start=0x9000))
    assert found.each[-1].start == 0x9000
    assert [row.stop for row in found.each[:1]] == [0x4000]
    row = found.each[0]
    assert isinstance(row, MappingPages)
    assert row.unknown == (UnknownRun(1, 2, 1, "why"),)
    assert row.counts().tolist() == found.mappings[0].counts().tolist()
    with pytest.raises(IndexError):
        found.each[2]


def test_a_class_of_a_later_version_is_unknown_here() -> None:
    text = "".join(map_of(mapping_of("P")).to_json()).replace('"present"', '"telepathic"')
    assert list(ProcessMap.from_json(text).each[0].runs) == [(0, 1, PageClass.UNKNOWN)]


def test_nodes_are_there_if_there_are_several() -> None:
    plain = map_of(mapping_of("PPP."), mapping_of("PS", start=0x9000))
    nodes = [NodePages(1, 0, 1), NodePages(1, 2, 2), NodePages(9, 0, 1)]
    found = map_of(
        mapping_of("PPP."),
        mapping_of("PS", start=0x9000),
        tables={**plain.tables, "nodes": Table.of(NodePages, nodes)},
    )
    assert [row.node_pages for row in found.each] == [{0: 1, 2: 2}, {0: 1}]
    assert found.node_pages() == {0: 2, 2: 2}
    assert plain.node_pages() == {}
    swapped = select_classes(found, {PageClass.SWAPPED})
    assert swapped.node_pages() == {}


def test_only_some_classes() -> None:
    whole = map_of(mapping_of("PPSS."), mapping_of("PP", start=0x9000))
    shown = select_classes(whole, {PageClass.SWAPPED, PageClass.NONE})
    (row,) = shown.each
    assert list(row.runs) == [(2, 2, 4), (4, 1, 7)]
    assert int(shown.counts().sum()) == 3
    assert shown.notes == ()
    assert parse(shown)["sums"] == parse(whole)["sums"]


def test_unknown_pages_left_out_are_noted() -> None:
    whole = map_of(mapping_of("S?"), mapping_of("P??", start=0x9000))
    shown = select_classes(whole, {PageClass.SWAPPED})
    assert shown.each[0].unknown == (UnknownRun(1, 1, 1, "why"),)
    assert shown.notes == ("left out: 1 mappings with 2 unknown pages",)
    assert not shown.is_all_known


def test_words_and_slots_follow_the_pages() -> None:
    words = Words(np.array([0, 1, 3, 4]), np.array([10, 11, 13, 14], np.uint64))
    slots = encode_slots(np.array([0, 3]), np.zeros(2, np.uint8), np.array([5, 9]))
    whole = map_of(mapping_of("SPPkP", words=words, slots=slots))
    row = select_classes(whole, {PageClass.SWAPPED}).each[0]
    assert row.words is not None
    assert (row.words.page.tolist(), row.words.word.tolist()) == ([0], [10])
    assert row.slots is not None
    assert list(row.slots) == [(0, 1, 0, 5)]
