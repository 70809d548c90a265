import csv
import io
import json
from typing import Any

import numpy as np
import pytest

from memlens.errors import ParseError, UnknownName
from memlens.record import RECORDS, Table, column, columns_of, record


@record("tests.processes", help="One process.")
class Process:
    pid: int = column("PID", key=True, help="as /proc has it")
    swap_pages: int | None = column("swap", unit="pages", rank=2, metric="gauge", hue="swap")
    share: float | None = column("share", unit="ratio", absent="")
    is_open: bool = column("open")
    name: str = column("name", unit="name")
    cgroup: str | None = column("cgroup")

    @property
    def swap_bytes(self) -> int:
        return (self.swap_pages or 0) * 4096


@record("tests.runs", help="A run.", compact=True)
class Run:
    first: int = column("first", unit="number")
    kind: str = column("class")


@record("tests.later", help="A row with a column that is new.")
class Later:
    pid: int = column("PID")
    age_s: float | None = column("age", unit="seconds")
    marks: str = column("marks", default="none")


INIT = Process(1, 3, 0.5, True, "init", "/")
CAT = Process(7, None, None, False, "cat\udcff\x1b", None)
VI = Process(9, 5, 0.25, True, "vi", "/user")
ROWS = [INIT, CAT, VI]
TABLE = Table.of(Process, ROWS)


def parsed(table: Table[Any]) -> object:
    return json.loads("".join(table.to_json()))


def test_fields_are_columns() -> None:
    swap = columns_of(Process)[1]
    assert (swap.name, swap.title, swap.unit, swap.type) == ("swap_pages", "swap", "pages", int)
    assert (swap.rank, swap.metric, swap.hue, swap.nullable) == (2, "gauge", "swap", True)
    assert [one.key for one in columns_of(Process)] == [True, *[False] * 5]
    assert [one.unit for one in columns_of(Process)][4:] == ["name", "text"]
    assert RECORDS["tests.processes"] is Process
    assert INIT.swap_bytes == 3 * 4096
    with pytest.raises(AttributeError):
        INIT.pid = 2


def test_a_record_may_extend_another() -> None:
    @record("tests.extended")
    class Extended(Run):
        pages: int = column("pages", unit="pages")

    assert [one.name for one in columns_of(Extended)] == ["first", "kind", "pages"]


def test_what_is_no_record_is_refused() -> None:
    with pytest.raises(TypeError, match="pids is of no scalar type"):

        @record("tests.wrong")
        class Several:
            pids: list[int] = column("PIDs")

    with pytest.raises(TypeError, match="pid is not declared"):

        @record("tests.wrong")
        class Bare:
            pid: int

    with pytest.raises(TypeError, match="two records are named"):

        @record("tests.runs")
        class Other:
            pid: int = column("PID")


def test_rows_come_back_from_columns() -> None:
    assert len(TABLE) == 3
    assert list(TABLE) == ROWS
    assert (TABLE[0], TABLE[-1]) == (INIT, VI)
    assert type(TABLE[0].pid) is int
    assert TABLE[1:] == Table.of(Process, [CAT, VI])
    assert TABLE[TABLE.column("is_open")] == Table.of(Process, [INIT, VI])
    with pytest.raises(IndexError):
        TABLE[3]
    assert list(Table.of(Process)) == []
    many = Table.of_columns(Run, first=np.arange(5000), kind=["none"] * 5000)
    assert [row.first for row in many] == list(range(5000))
    assert repr(many) == "<5000 rows of Run>"


def test_columns_are_arrays_masked_where_not_known() -> None:
    swap = TABLE.column("swap_pages")
    assert swap.dtype == np.int64
    assert swap.sum() == 8
    assert np.ma.getmaskarray(swap).tolist() == [False, True, False]
    assert not np.ma.isMaskedArray(TABLE.column("pid"))
    with pytest.raises(UnknownName, match="no such column: 'rss'; there are pid, swap_pages"):
        TABLE.column("rss")


def test_columns_may_be_arrays_or_lists() -> None:
    made = Table.of_columns(
        Process,
        pid=np.array([1, 7, 9], np.uint32),
        swap_pages=np.ma.MaskedArray([3, 99, 5], mask=[False, True, False]),
        share=[0.5, None, 0.25],
        is_open=np.array([True, False, True]),
        name=np.array([row.name for row in ROWS]),
        cgroup=["/", None, "/user"],
    )
    assert made == TABLE
    bits = Table.of_columns(Run, first=np.array([(1 << 64) - 1], np.uint64), kind=[""])
    assert bits[0].first == -1
    assert Table.of_columns(Later, pid=[5])[0] == Later(5, None, "none")


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"pid": [1.5]}, TypeError),
        ({"pid": [True]}, TypeError),
        ({"pid": ["1"]}, TypeError),
        ({"pid": [None]}, TypeError),
        ({"pid": np.array([1.0])}, TypeError),
        ({"pid": np.array([True])}, TypeError),
        ({"pid": np.ma.MaskedArray([1], mask=[True])}, TypeError),
        ({"pid": [1 << 63]}, ValueError),
        ({"pid": [np.uint64(1 << 63)]}, ValueError),
        ({"pid": [1], "age_s": [float("nan")]}, ValueError),
        ({"pid": [1], "age_s": np.array([np.inf])}, ValueError),
        ({"pid": [1, 2], "age_s": [1.0]}, ValueError),
        ({"pid": [1], "marks": [b"x"]}, TypeError),
        ({"pid": [1], "other": [1]}, TypeError),
        ({"marks": ["x"]}, TypeError),
    ],
)
def test_values_of_another_type_are_refused(
    values: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Table.of_columns(Later, **values)


def test_what_stands_where_nothing_is_known_is_no_matter() -> None:
    masked = [np.ma.MaskedArray([value], mask=[True]) for value in (1.0, np.nan)]
    one, other = (Table.of_columns(Later, pid=[1], age_s=age) for age in masked)
    assert one == other == Table.of(Later, [Later(1, None)])
    assert one != Table.of(Later, [Later(1, 0.0)])


@pytest.mark.parametrize(
    ("names", "pids"),
    [
        (["swap_pages"], [9, 1, 7]),
        (["-swap_pages"], [1, 9, 7]),
        (["name"], [7, 1, 9]),
        (["-name"], [9, 1, 7]),
        (["cgroup"], [1, 9, 7]),
        (["-cgroup"], [9, 1, 7]),
        (["is_open", "pid"], [9, 1, 7]),
        (["-is_open", "-pid"], [7, 1, 9]),
        (["is_open"], [1, 9, 7]),
        ([], [1, 7, 9]),
    ],
)
def test_sorts_by_names_with_the_unknown_last(names: list[str], pids: list[int]) -> None:
    assert [row.pid for row in TABLE.sorted_by(names)] == pids


def test_sorts_the_extremes() -> None:
    edges = [-(1 << 63), 0, (1 << 63) - 1]
    made = Table.of_columns(Process, pid=edges, is_open=[True] * 3, name=["x"] * 3)
    assert made.sorted_by(["pid"]).column("pid").tolist() == edges[::-1]
    assert made.sorted_by(["-pid"]).column("pid").tolist() == edges
    with pytest.raises(UnknownName):
        made.sorted_by(["-rss"])


def test_takes_the_first_rows() -> None:
    assert TABLE.top(2) == TABLE[:2]
    assert TABLE.top(None) == TABLE.top(9) == TABLE


def test_json_is_a_line_for_every_row() -> None:
    lines = "".join(TABLE.to_json()).splitlines()
    assert len(lines) == 1 + len(ROWS)
    assert json.loads(lines[1].rstrip(",")) == {
        "pid": 1,
        "swap_pages": 3,
        "share": 0.5,
        "is_open": True,
        "name": "init",
        "cgroup": "/",
    }
    assert r"cat\udcff\u001b" in lines[2]
    assert Table.from_json(Process, parsed(TABLE)) == TABLE
    assert "".join(Table.of(Process).to_json()) == "[]"


def test_large_tables_come_in_pieces() -> None:
    many = Table.of_columns(Run, first=np.arange(100_000), kind=["none"] * 100_000)
    assert max(map(len, many.to_json())) < 100_000
    assert max(map(len, many.to_csv())) < 100_000


def test_compact_tables_name_columns_once() -> None:
    runs = Table.of(Run, [Run(0, "none"), Run(4, "swapped")])
    assert parsed(runs) == {"columns": ["first", "kind"], "rows": [[0, "none"], [4, "swapped"]]}
    assert Table.from_json(Run, parsed(runs)) == runs
    assert Table.from_json(Run, parsed(runs[:0])) == runs[:0]
    other = {"columns": ["new", "kind", "first"], "rows": [[{}, "none", 0]]}
    assert Table.from_json(Run, other) == runs[:1]


def test_columns_of_other_versions() -> None:
    assert Table.from_json(Later, [{"pid": 1, "new": {}}]) == Table.of(Later, [Later(1, None)])
    with pytest.raises(ParseError, match="pid is missing"):
        Table.from_json(Later, [{"marks": "x"}])
    assert len(Table.from_json(Later, [])) == 0


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (Later, None),
        (Later, {}),
        (Later, [[]]),
        (Later, [{"pid": "1"}]),
        (Later, [{"pid": None}]),
        (Later, [{"pid": True}]),
        (Later, [{"pid": 1.0}]),
        (Later, [{"pid": 1 << 63}]),
        (Later, [{"pid": [1]}]),
        (Later, [{"pid": 1, "age_s": float("inf")}]),
        (Later, [{"pid": 1, "age_s": 10**400}]),
        (Run, []),
        (Run, {"columns": ["first", "kind"]}),
        (Run, {"columns": "fk", "rows": []}),
        (Run, {"columns": ["first", "kind"], "rows": [[1]]}),
        (Run, {"columns": ["first", "kind"], "rows": [1]}),
        (Run, {"columns": ["first"], "rows": [[1]]}),
    ],
)
def test_damage_is_an_error_that_says_where(kind: type, found: object) -> None:
    with pytest.raises(ParseError, match=r"tables\.x: ") as caught:
        Table.from_json(kind, found, path="saved.json", place="tables.x")
    assert caught.value.path == "saved.json"


def test_csv_escapes_and_leaves_the_unknown_empty() -> None:
    rows = list(csv.reader(io.StringIO("".join(TABLE.to_csv()))))
    assert rows[0] == [one.name for one in columns_of(Process)]
    assert rows[1:3] == [
        ["1", "3", "0.5", "true", "init", "/"],
        ["7", "", "", "false", r"cat\udcff\x1b", ""],
    ]


def test_html_is_short_and_escaped() -> None:
    wild = Process(1, None, None, True, "<b>\x1b", None)
    text = Table.of(Process, [wild] * 30)._repr_html_()
    assert r"&lt;b&gt;\x1b" in text
    assert text.count("<tr>") == 21
    assert "10 more rows" in text
    assert ">?<" in text


def test_pandas_keeps_types_and_what_is_not_known() -> None:
    frame = TABLE.to_pandas()
    assert list(frame.columns) == [one.name for one in columns_of(Process)]
    assert [str(kind) for kind in frame.dtypes[:4]] == ["Int64", "Int64", "Float64", "boolean"]
    assert frame["swap_pages"].isna().tolist() == [False, True, False]
    assert frame["name"].tolist() == ["init", "cat\\udcff\x1b", "vi"]
    assert frame["cgroup"].isna().tolist() == [False, True, False]
    assert len(Table.of(Process).to_pandas()) == 0


def test_arrow_keeps_types_and_what_is_not_known() -> None:
    found = TABLE.to_arrow()
    assert [str(field.type) for field in found.schema] == [
        "int64",
        "int64",
        "double",
        "bool",
        "string",
        "string",
    ]
    assert found.column("swap_pages").to_pylist() == [3, None, 5]
    assert found.column("name").to_pylist()[1] == "cat\\udcff\x1b"
    assert len(Table.of(Process).to_arrow()) == 0
