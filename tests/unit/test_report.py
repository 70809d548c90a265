import json
import pickle
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlens.errors import ParseError, UnknownName
from memlens.record import Table, column, columns_of, record
from memlens.report import (
    Cost,
    Missed,
    Origin,
    Report,
    make_sum,
    section,
    table,
)
from memlens.schema import json_schema


@record("sampled.processes", help="One process.")
class ProcessSwap:
    pid: int = column("PID", key=True)
    swap_pages: int | None = column("swap", unit="pages")
    share: float = column("share", unit="ratio")
    age_s: float | None = column("age", unit="seconds")
    is_open: bool = column("open")
    is_huge: bool | None = column("huge")
    name: str = column("name", unit="name")
    cgroup: str | None = column("cgroup")


@record("sampled.runs", help="Consecutive slots.", compact=True)
class SlotRun:
    first: int = column("first")
    owner: str | None = column("owner")


@record("sampled.zswap", help="What zswap holds.")
class Zswap:
    stored_bytes: int | None = column("stored", unit="bytes")


class Sampled(Report, schema="memlens.sampled/2"):
    """A kind of report with everything that there is."""

    processes = table(ProcessSwap)
    runs = table(SlotRun)
    zswap = section(Zswap)
    evidence = section(dict)

    @property
    def swap_pages(self) -> int:
        return int(self.processes.column("swap_pages").sum())


class Another(Report, schema="memlens.another/2"):
    """A kind of another subject."""


ORIGIN = Origin("2026-01-31T08:15:00Z", "host", "boot", "6.18.0", 4096, "0.1.0")
COST = Cost(0.5, 4096, 0.1)
ROWS = [
    ProcessSwap(1, 3, 0.5, 2.0, True, None, "init", "/"),
    ProcessSwap(7, None, 1.0, None, False, True, "cat", None),
    ProcessSwap(9, 5, 0.0, 1.0, True, False, "vi", "/user"),
]
REPORT = Sampled.at(
    ORIGIN,
    cost=COST,
    tables={
        "processes": Table.of(ProcessSwap, ROWS),
        "runs": Table.of(SlotRun, [SlotRun(1, None)]),
    },
    sections={"zswap": Zswap(None), "evidence": {"pagemap": True, "why": [1, None]}},
    sums={"swap": make_sum(9, 8, drift_pages=-1, private_pages=8)},
    missed=[Missed("PID 5", "has ended")],
    notes=["one"],
)

# What surrogateescape makes of bytes that are not UTF-8, and all that is.
texts = st.text(
    st.characters(exclude_categories=["Cs"])
    | st.sampled_from([*map(chr, range(0xDC80, 0xDD00))])
)
integers = st.integers(-(1 << 63), (1 << 63) - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
SCALARS: dict[type, st.SearchStrategy[Any]] = {
    int: integers,
    float: numbers,
    bool: st.booleans(),
    str: texts,
}


def rows_of(kind: type) -> st.SearchStrategy[Any]:
    values = [
        st.none() | SCALARS[one.type] if one.nullable else SCALARS[one.type]
        for one in columns_of(kind)
    ]
    return st.builds(kind, *values)


def tables_of(kind: type) -> st.SearchStrategy[Table[Any]]:
    return st.lists(rows_of(kind), max_size=5).map(lambda rows: Table.of(kind, rows))


jsons = st.recursive(
    st.none() | st.booleans() | integers | numbers | texts,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(texts, part, max_size=3),
    max_leaves=5,
)
reports = st.builds(
    Sampled.at,
    rows_of(Origin).map(lambda origin: replace(origin, taken_at=ORIGIN.taken_at)),
    cost=rows_of(Cost),
    tables=st.fixed_dictionaries(
        {}, optional={"processes": tables_of(ProcessSwap), "runs": tables_of(SlotRun)}
    ),
    sections=st.fixed_dictionaries(
        {},
        optional={
            "zswap": rows_of(Zswap),
            "evidence": st.dictionaries(texts, jsons, max_size=3),
        },
    ),
    sums=st.dictionaries(
        texts, st.dictionaries(texts, st.none() | integers, max_size=3), max_size=3
    ),
    missed=st.lists(rows_of(Missed), max_size=3),
    notes=st.lists(texts, max_size=3),
    is_complete=st.booleans(),
)


def written(report: Report) -> str:
    return "".join(report.to_json())


@given(reports)
def test_what_is_written_is_read_back(report: Sampled) -> None:
    text = written(report)
    text.encode("ascii")
    assert Sampled.from_json(text) == report
    assert Report.from_json(json.loads(text)) == report
    jsonschema.validate(json.loads(text), json_schema(Sampled))


def test_the_envelope() -> None:
    found = json.loads(written(REPORT))
    assert list(found) == [
        "schema",
        *(one.name for one in columns_of(Origin)),
        "tables",
        "sections",
        "sums",
        "missed",
        "notes",
        "cost",
        "is_complete",
    ]
    assert found["schema"] == "memlens.sampled/2"
    assert found["taken_at"] == "2026-01-31T08:15:00Z"
    assert found["tables"]["runs"] == {"columns": ["first", "owner"], "rows": [[1, None]]}
    assert found["sums"]["swap"] == {
        "total_pages": 9,
        "explained_pages": 8,
        "remainder_pages": 1,
        "drift_pages": -1,
        "private_pages": 8,
    }
    assert found["sections"]["zswap"] == {"stored_bytes": None}
    assert found["missed"] == [{"what": "PID 5", "reason": "has ended"}]
    assert found["cost"]["slowest"] is None


def test_tables_and_sections_read_as_declared() -> None:
    assert REPORT.processes[0] == ROWS[0]
    assert REPORT.swap_pages == 8
    assert REPORT.zswap == Zswap(None)
    assert Sampled.processes.record is ProcessSwap
    bare = Sampled.at(ORIGIN, cost=COST, tables={}, sections={"zswap": None})
    assert len(bare.runs) == 0
    assert bare.zswap is None
    assert "runs" not in json.loads(written(bare))["tables"]
    assert Sampled.from_json(written(bare)) == bare


def test_what_is_not_declared_is_refused() -> None:
    runs = Table.of(SlotRun)
    for tables in ({"other": runs}, {"processes": runs}):
        with pytest.raises(TypeError, match="declares no table"):
            Sampled.at(ORIGIN, cost=COST, tables=tables)
    with pytest.raises(TypeError, match="declares no section"):
        Sampled.at(ORIGIN, cost=COST, tables={}, sections={"zswap": {}})


def test_one_table_is_sorted_and_cut() -> None:
    found = REPORT.arranged(sort=["swap_pages"], top=2)
    assert isinstance(found, Sampled)
    assert [row.pid for row in found.processes] == [9, 1]
    assert (found.sums, found.runs) == (REPORT.sums, REPORT.runs)
    assert len(REPORT.arranged("runs", top=0).runs) == 0
    with pytest.raises(UnknownName, match="no such table: 'x'; there are processes, runs"):
        REPORT.arranged("x")
    with pytest.raises(UnknownName, match="no such column"):
        REPORT.arranged(sort=["rss"])


def test_repr_is_short() -> None:
    assert repr(REPORT) == (
        "<memlens.sampled/2 of host at 2026-01-31T08:15:00Z: 3 processes, 1 runs>"
    )
    assert repr(replace(REPORT, is_complete=False)).endswith("incomplete>")
    assert "<h4>processes</h4><table>" in REPORT._repr_html_()


def test_sums_of_what_is_not_known() -> None:
    assert make_sum(None, 3)["remainder_pages"] is None
    assert make_sum(3, None)["remainder_pages"] is None
    assert make_sum(2, 3)["remainder_pages"] == -1


def test_costs_add_up_and_name_the_slowest() -> None:
    added = Cost(1.0, 10, 0.5, slowest="PID 1").plus(Cost(2.0, 20, 0.7, slowest="PID 2"))
    assert added == Cost(3.0, 30, 0.7, slowest="PID 2")


def test_what_later_versions_write_is_ignored() -> None:
    found = json.loads(written(REPORT))
    found["new"] = found["tables"]["new"] = found["sections"]["new"] = [1]
    found["cost"]["new"] = found["tables"]["processes"][0]["new"] = 1
    assert Sampled.from_json(found) == REPORT


def test_a_number_that_json_has_not_is_refused() -> None:
    wrong = replace(REPORT, cost=Cost(float("nan"), 0, 0.0))
    with pytest.raises(ValueError, match="wall_s is not finite"):
        written(wrong)
    with pytest.raises(ValueError, match="JSON"):
        written(replace(REPORT, sections={"evidence": {"x": float("inf")}}))
    with pytest.raises(ParseError, match="NaN is no number"):
        Sampled.from_json(written(REPORT).replace('"wall_s": 0.5', '"wall_s": NaN'))


def test_another_schema_is_refused() -> None:
    text = written(Another.at(ORIGIN, cost=COST, tables={}))
    assert isinstance(Report.from_json(text), Another)
    with pytest.raises(ParseError, match="schema"):
        Sampled.from_json(text, path="saved.json")
    with pytest.raises(ParseError, match=r"memlens\.sampled/1"):
        Report.from_json(written(REPORT).replace("sampled/2", "sampled/1"))


TEXTS = {"host", "boot_id", "kernel", "memlens"}


@pytest.mark.parametrize("name", json.loads(written(REPORT)))
def test_a_damaged_member_is_an_error_with_the_path(name: str) -> None:
    found = json.loads(written(REPORT))
    for wrong in (None, True, 1.5, "x", [7], {"processes": 7, "zswap": 7}):
        is_fine = wrong is True if name == "is_complete" else wrong == "x" and name in TEXTS
        if not is_fine:
            with pytest.raises(ParseError) as caught:
                Sampled.from_json({**found, name: wrong}, path="saved.json")
            assert caught.value.path == "saved.json"
    del found[name]
    with pytest.raises(ParseError):
        Sampled.from_json(found)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "7", '"x"', "{", "[" * 100_000, "9" * 5000, '{"schema": []}', "{}\n{}", "\0"],
)
def test_what_is_no_report_is_an_error(text: str) -> None:
    with pytest.raises(ParseError):
        Report.from_json(text)


def test_sums_hold_64_bits() -> None:
    for wrong in (1 << 63, 1.5, True, "7"):
        found = {**json.loads(written(REPORT)), "sums": {"swap": {"total_pages": wrong}}}
        with pytest.raises(ParseError, match=r"sums\.swap"):
            Sampled.from_json(found)


@given(st.data())
def test_text_cut_anywhere_is_an_error(data: st.DataObject) -> None:
    text = written(REPORT)
    place = data.draw(st.integers(0, len(text) - 2))
    with pytest.raises(ParseError):
        Sampled.from_json(text[:place])


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ('"pid": 1,', '"pid": "1",'),
        ('"pid": 1,', '"pid": 9223372036854775808,'),
        ('"pid": 1,', '"pid": null,'),
        ('"pid": 1,', ""),
        ('"first", "owner"', '"owner", "first"'),
        ("[1, null]]", '["1", null]]'),
        ('"is_complete": true', '"is_complete": 1'),
        ("sampled/2", "sampled/3"),
    ],
)
def test_json_schema_refuses_what_is_wrong(was: str, becomes: str) -> None:
    schema = json_schema(Sampled)
    jsonschema.Draft202012Validator.check_schema(schema)
    text = written(REPORT)
    assert was in text
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(json.loads(text))
    assert not validator.is_valid(json.loads(text.replace(was, becomes, 1)))


def test_reports_can_be_handed_to_other_processes() -> None:
    bare = Sampled.at(ORIGIN, cost=COST, tables={})
    assert [pickle.loads(pickle.dumps(one)) for one in (REPORT, bare)] == [REPORT, bare]
