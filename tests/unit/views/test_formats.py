"""JSON and CSV: the schema that others read."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from memlens.pages.classes import PageClass
from memlens.pages.runs import encode_runs
from memlens.pages.slotruns import encode_slots
from memlens.residency.records import UnknownRun, Words
from memlens.views.formats import render_csv, render_json, render_runs_csv

# mypy: disable-error-code="no-untyped-def"


def parse(pieces) -> dict:
    def refuse(text: str) -> None:
        raise ValueError(text)

    return json.loads("".join(pieces), parse_constant=refuse)


def test_the_schema(make_map, make_mapping) -> None:
    result = make_map(make_mapping("PPSS.?"), notes=("a note",))
    assert parse(render_json(result)) == {
        "schema": "memlens.map/1",
        "kernel": {"release": "6.12.0", "page_size_bytes": 4096},
        "process": {
            "pid": 42,
            "name": "postgres",
            "cmdline": ["postgres", "-D", "/data"],
            "started_at": "2024-05-06T00:00:00+00:00",
        },
        "evidence": {"pagemap": True, "smaps": True, "mincore": False, "pfns_visible": False},
        "mappings": [
            {
                "start": 0x1000,
                "stop": 0x7000,
                "permissions": "rw-p",
                "offset_bytes": 0,
                "device": "fe:01",
                "inode": 7,
                "path": "/lib/x.so",
                "object": "file",
                "pages": {"present": 2, "swapped": 2, "none": 1, "unknown": 1},
                "unknown": [[5, 1, "why"]],
            }
        ],
        "pages": {"present": 2, "swapped": 2, "none": 1, "unknown": 1},
        "cost": {"wall_s": 0.0123, "read_bytes": 4096, "longest_read_s": 0.001},
        "used": ["pagemap"],
        "is_complete": True,
        "notes": ["a note"],
    }


def test_runs_only_if_asked_for(make_map, make_mapping) -> None:
    result = make_map(make_mapping("PPS"))
    assert "runs" not in parse(render_json(result))["mappings"][0]
    runs = parse(render_json(result, has_runs=True))["mappings"][0]["runs"]
    assert runs == [[0, 2, "present"], [2, 1, "swapped"]]


def test_words(make_map, make_mapping) -> None:
    words = Words(np.array([1, 2]), np.array([1 << 63, (1 << 64) - 1], np.uint64))
    result = make_map(replace(make_mapping("PPS"), words=words), make_mapping("P"))
    found = parse(render_json(result))["mappings"]
    assert found[0]["words"] == [[1, 1 << 63], [2, (1 << 64) - 1]]
    assert "words" not in found[1]


def test_slots(make_map, make_mapping) -> None:
    slots = encode_slots(
        np.array([2, 3, 5]), np.array([0, 0, 1], np.uint8), np.array([7, 8, 1])
    )
    result = make_map(replace(make_mapping("PPSSPS"), slots=slots), make_mapping("P"))
    found = parse(render_json(result))["mappings"]
    assert found[0]["slots"] == [[2, 2, 0, 7], [5, 1, 1, 1]]
    assert "slots" not in found[1]


@pytest.mark.parametrize("count", [0, 1, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, 1 << 16])
def test_long_lists_are_whole_where_pieces_meet(make_map, make_mapping, count: int) -> None:
    values = np.arange(count, dtype=np.uint64)
    pages = encode_runs((np.arange(count) % 2).astype(np.uint8))
    mapping = replace(
        make_mapping("P" * max(count, 1)), runs=pages, words=Words(values.astype(int), values)
    )
    found = parse(render_json(make_map(mapping), has_runs=True))["mappings"][0]
    labels = ["present", "zero"]
    assert found["runs"] == [[n, 1, labels[n % 2]] for n in range(count)]
    assert found["words"] == [[n, n] for n in range(count)]


@pytest.mark.parametrize("path", ["/a\udcff\udc80", '/"\\', "/\x1b[2J", "/日本 (deleted)", ""])
def test_names_are_raw(make_map, make_mapping, path: str) -> None:
    text = "".join(render_json(make_map(make_mapping("P", path=path))))
    assert text.isascii()
    assert json.loads(text)["mappings"][0]["path"] == path


def test_nothing_mapped_is_still_json(make_map) -> None:
    found = parse(render_json(make_map()))
    assert found["mappings"] == []
    assert found["pages"] == {}


def rows_of(pieces) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO("".join(pieces))))


def test_csv_has_a_row_for_a_mapping_and_a_column_for_a_class(make_map, make_mapping) -> None:
    result = make_map(make_mapping("PPS?"), make_mapping("..", path='a,"b"', start=0x9000))
    rows = rows_of(render_csv(result))
    assert [row["start"] for row in rows] == ["4096", "36864"]
    assert rows[1]["path"] == 'a,"b"'
    assert {kind.label for kind in PageClass} <= rows[0].keys()
    assert [rows[0][name] for name in ("present", "swapped", "zero")] == ["2", "1", "0"]
    assert [row["reason"] for row in rows] == ["why", ""]


def test_csv_of_runs_names_addresses_and_reasons(make_map, make_mapping) -> None:
    mapping = replace(
        make_mapping("P???S"),
        unknown=(UnknownRun(1, 2, "because"), UnknownRun(3, 1, "of this")),
    )
    rows = rows_of(render_runs_csv(make_map(mapping)))
    assert [(row["start"], row["stop"], row["pages"], row["class"]) for row in rows] == [
        ("4096", "8192", "1", "present"),
        ("8192", "16384", "2", "unknown"),
        ("16384", "20480", "1", "unknown"),
        ("20480", "24576", "1", "swapped"),
    ]
    assert [row["reason"] for row in rows] == ["", "because", "of this", ""]
    assert rows[0]["mapping_start"] == "4096"


def test_nodes_are_there_if_there_are_several(make_map, make_mapping) -> None:
    first = replace(make_mapping("PPP."), node_pages={0: 1, 2: 2})
    second = replace(make_mapping("PS"), node_pages={0: 1})
    found = parse(render_json(make_map(first, second)))
    assert [row["nodes"] for row in found["mappings"]] == [{"0": 1, "2": 2}, {"0": 1}]
    assert found["nodes"] == {"0": 2, "2": 2}
    assert "nodes" not in parse(render_json(make_map(make_mapping("P"))))
