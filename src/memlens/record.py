"""
The shape of every row that memlens tells: records, and tables of them.

A record is a row, and its fields are the columns.  A table keeps columns, and makes rows when
it is read.  Reports (``memlens.report``) put tables into one envelope.

>>> @record("example.processes", help="One process on swap.")
... class Swapped:
...     pid: int = column("PID", key=True, help="as /proc has it")
...     swap_pages: int | None = column("swap", unit="pages", help="private pages on swap")
...     name: str = column("name", unit="name", help="its comm, raw")
>>> rows = [Swapped(7, None, "cat"), Swapped(1, 3, "init"), Swapped(9, 5, "vi")]
>>> processes = Table.of(Swapped, rows)
>>> processes
<3 rows of Swapped>
>>> processes.sorted_by(["swap_pages"])[0]
Swapped(pid=9, swap_pages=5, name='vi')
>>> int(processes.column("swap_pages").sum())
8
>>> print("".join(processes.top(2).to_csv()), end="")
pid,swap_pages,name
7,,cat
1,3,init
"""

import csv
import dataclasses
import html
import importlib
import io
import json
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast, dataclass_transform

import numpy as np
from numpy.typing import NDArray

from memlens.errors import ParseError, UnknownName, Unsupported
from memlens.units import escape_text

R = TypeVar("R")
Unit = Literal["pages", "bytes", "seconds", "ratio", "number", "address", "text", "name"]
Metric = Literal["label", "gauge", "counter"]
Scalar = int | float | str | bool | None
Values = Iterable[Scalar] | NDArray[Any]

_COLUMN = "memlens column"
_ROWS_AT_ONCE = 1024
_HTML_ROWS = 20
_ABSENT = object()
# One JSON value; json.dumps would make an encoder for every call that refuses NaN.
encode = json.JSONEncoder(allow_nan=False).encode
# For each type of a column: dtype, kinds of arrays and types of values that it takes, its name
# in pandas.
_DTYPES: dict[type, Any] = {int: np.int64, float: np.float64, bool: np.bool_, str: object}
_KINDS = {int: "iu", float: "fiu", bool: "b", str: ""}
_TAKES: dict[type, tuple[type, ...]] = {
    int: (int, np.integer),
    float: (float, int, np.floating, np.integer),
    bool: (bool, np.bool_),
    str: (str,),
}
_PANDAS_TYPES = {int: "Int64", float: "Float64", bool: "boolean", str: "string"}


@dataclass(frozen=True, slots=True)
class Column:
    r"""
    One thing that is told of a row.

    :param name: in JSON, CSV and metrics; ends in its unit where that is not plain.
    :param title: for people; ``\n`` where a heading may break.
    :param unit: what its numbers count; ``name`` is text that takes the room left.
    :param help: what it is, one line.
    :param key: whether it tells rows apart, alone or with the other keys.
    :param rank: the higher, the sooner it is left out where there is no room; 0 never.
    :param metric: ``label`` names a row in metrics, ``gauge`` and ``counter`` measure it.
    :param hue: what its colour stands for, "" for none.
    :param absent: what text shows for None: not known, or that there is no such thing.
    :param default: of rows that were written before there was this column; ``MISSING`` if
        every row has it.
    :param type: of its values: int, float, str or bool.
    :param nullable: whether None may be among them.
    """

    name: str
    title: str
    unit: Unit
    help: str
    key: bool
    rank: int
    metric: Metric | None
    hue: str
    absent: str
    default: Any
    type: type = str
    nullable: bool = False


def column(
    title: str,
    *,
    unit: Unit = "number",
    help: str = "",
    key: bool = False,
    rank: int = 0,
    metric: Metric | None = None,
    hue: str = "",
    absent: str = "?",
    default: Any = dataclasses.MISSING,
) -> Any:
    """
    Return the declaration of a field of a record; ``Column`` tells what the words mean.

    Name, type and whether it may be None are taken from the field; text has unit ``text``.
    """
    found = Column("", title, unit, help, key, rank, metric, hue, absent, default)
    return dataclasses.field(default=default, metadata={_COLUMN: found})


# Every record by its name.
RECORDS: dict[str, type] = {}


@dataclass_transform(frozen_default=True, field_specifiers=(column,))
def record(name: str, *, help: str = "", compact: bool = False) -> Callable[[type[R]], type[R]]:
    """
    Return a decorator that makes a class a record: a frozen dataclass of columns.

    :param name: subject and table, ``swap.processes``.
    :param help: what a row is, one line.
    :param compact: whether JSON has bare rows, for tables of very many.
    :raises TypeError: if a field is no column, or of another type than a column may be.
    """

    def decorate(cls: type[R]) -> type[R]:
        made: Any = dataclass(frozen=True, slots=True)(cls)
        hints = typing.get_type_hints(made)
        made.__schema__ = name
        made.__help__ = help
        made.__compact__ = compact
        made.__columns__ = tuple(
            _column_of(field, hints[field.name]) for field in dataclasses.fields(made)
        )
        known = RECORDS.setdefault(name, made)
        if (known.__module__, known.__qualname__) != (made.__module__, made.__qualname__):
            raise TypeError(f"two records are named {name}")
        return cast(type[R], made)

    return decorate


def _column_of(field: "dataclasses.Field[Any]", hint: Any) -> Column:
    if _COLUMN not in field.metadata:
        raise TypeError(f"field {field.name} is not declared by column()")
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    found = [one for one in typing.get_args(hint) if one is not types.NoneType]
    kind, nullable = (found[0], True) if is_union and len(found) == 1 else (hint, False)
    if kind not in _DTYPES:
        raise TypeError(f"column {field.name} is of no scalar type: {hint}")
    declared: Column = field.metadata[_COLUMN]
    unit = "text" if kind is str and declared.unit == "number" else declared.unit
    return dataclasses.replace(
        declared, name=field.name, type=kind, nullable=nullable, unit=unit
    )


def columns_of(cls: type) -> tuple[Column, ...]:
    """Return the columns of a record, in the order of its fields."""
    return cast(tuple[Column, ...], cast(Any, cls).__columns__)


class Table(Generic[R]):
    """
    Rows of one record, kept as columns.

    ``len``, iteration and ``table[3]`` make rows; a slice, a mask or an array of row numbers
    gives a table.

    :param record: the class of the rows.
    """

    __slots__ = ("_arrays", "record")

    def __init__(self, record: type[R], arrays: Mapping[str, NDArray[Any]]) -> None:
        self.record = record
        self._arrays = dict(arrays)

    @classmethod
    def of(cls, record: type[R], rows: Iterable[R] = ()) -> "Table[R]":
        """
        Return a table of rows.

        :raises TypeError: if a value is not of its column's type.
        :raises ValueError: if a value is not finite, or needs more than signed 64 bits.
        """
        found = list(rows)
        names = [column.name for column in columns_of(record)]
        return cls.of_columns(record, **{n: [getattr(r, n) for r in found] for n in names})

    @classmethod
    def of_columns(cls, record: type[R], /, **arrays: Values) -> "Table[R]":
        """
        Return a table of columns.

        :param arrays: ``(n,)`` each: an array, masked where not known, or a list with None
            there.  uint64 is taken as a bit pattern.  Columns left out are not known or have
            their default.
        :raises TypeError: if a value is not of its column's type, or a column is missing.
        :raises ValueError: as ``of``, or if lengths differ.
        """
        columns = {column.name: column for column in columns_of(record)}
        if arrays.keys() - columns.keys():
            raise TypeError(f"no columns of {record.__name__}: {[*arrays]}")
        made = {name: _make_array(columns[name], given) for name, given in arrays.items()}
        lengths = {len(array) for array in made.values()} or {0}
        if len(lengths) > 1:
            raise ValueError(f"columns of {record.__name__} differ in length: {lengths}")
        rows = lengths.pop()
        for name, column in columns.items():
            if name not in made:
                # Of no rows nothing is missing.
                made[name] = _make_array(column, [_fallback(column)] * rows if rows else [])
        return cls(record, {name: made[name] for name in columns})

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values()), ()))

    def __iter__(self) -> Iterator[R]:
        for rows in self._values():
            for values in rows:
                yield self.record(*values)

    @typing.overload
    def __getitem__(self, place: int) -> R: ...
    @typing.overload
    def __getitem__(self, place: slice | NDArray[Any]) -> "Table[R]": ...
    def __getitem__(self, place: int | slice | NDArray[Any]) -> "R | Table[R]":
        if isinstance(place, slice | np.ndarray):
            return Table(self.record, {n: array[place] for n, array in self._arrays.items()})
        if not -len(self) <= place < len(self):
            raise IndexError(f"no row {place} in {self!r}")
        place %= len(self)
        return next(iter(self[place : place + 1]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table) or self.record is not other.record:
            return NotImplemented
        return len(self) == len(other) and all(
            bool(np.array_equal(np.ma.getmaskarray(a), np.ma.getmaskarray(b)))
            and bool(np.array_equal(np.ma.getdata(a), np.ma.getdata(b)))
            for a, b in zip(self._arrays.values(), other._arrays.values(), strict=True)
        )

    def __repr__(self) -> str:
        return f"<{len(self)} rows of {self.record.__name__}>"

    @property
    def columns(self) -> tuple[Column, ...]:
        """Return what its columns are."""
        return columns_of(self.record)

    def column(self, name: str) -> NDArray[Any]:
        """
        Return a column, ``(n,)`` int64, float64, bool or object; masked if it is nullable.

        :raises UnknownName: if there is none of that name.
        """
        if name not in self._arrays:
            raise UnknownName("column", name, tuple(self._arrays))
        return self._arrays[name]

    def sorted_by(self, names: Sequence[str]) -> "Table[R]":
        """
        Return the rows in another order; what is not known comes last.

        :param names: columns, the first one decides: numbers from the largest, text from the
            first in the alphabet; ``-`` before a name reverses it.
        :raises UnknownName: if there is no such column.
        """
        keys: list[NDArray[np.int64]] = []
        for name in reversed(names):
            array = self.column(name.removeprefix("-"))
            _, ranks = np.unique(np.ma.getdata(array), return_inverse=True)
            is_falling = (array.dtype != object) != name.startswith("-")
            ranks = -ranks if is_falling else ranks
            keys.append(np.where(np.ma.getmaskarray(array), len(self), ranks))
        return self[np.lexsort(keys)] if keys else self

    def top(self, count: int | None) -> "Table[R]":
        """Return the first rows; None is all."""
        return self[:count]

    def to_json(self) -> Iterator[str]:
        """Yield the pieces of a list of objects; of a compact table, of columns and rows."""
        names = [column.name for column in self.columns]
        is_bare = is_compact(self.record)
        yield f'{{"columns": {encode(names)}, "rows": [' if is_bare else "["
        before = "\n"
        for rows in self._values():
            named = (row if is_bare else dict(zip(names, row, strict=True)) for row in rows)
            yield before + ",\n".join(map(encode, named))
            before = ",\n"
        yield "]}" if is_bare else "]"

    @classmethod
    def from_json(
        cls, record: type[R], found: Any, *, path: str = "", place: str = "table"
    ) -> "Table[R]":
        """
        Return the table that ``to_json`` wrote.

        Columns that are not known here are ignored; those not there are not known, or have
        their default.

        :param found: what a JSON parser made of the text.
        :param path: the file it is from, for errors.
        :param place: where it is in the file, for errors.
        :raises ParseError: if anything is not as the record says.
        """
        read = _read_compact if is_compact(record) else _read_objects
        try:
            return cls.of_columns(record, **read(columns_of(record), found))
        except (TypeError, ValueError) as error:
            raise ParseError(f"{place}: {error}", path=path) from error

    def to_csv(self) -> Iterator[str]:
        """Yield CSV with a line of names; what is not known is empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.name for column in self.columns])
        for rows in self._values():
            writer.writerows([_csv_cell(value) for value in row] for row in rows)
            yield text.getvalue()
            text.seek(0)
            text.truncate()
        yield text.getvalue()

    def to_pandas(self) -> Any:
        """
        Return a pandas DataFrame; bytes that are not UTF-8 are ``\\udcff`` there.

        :raises Unsupported: if pandas is not installed.
        """
        pandas = _import("pandas")
        found = {
            column.name: pandas.array(
                list(map(_as_utf8, array.tolist())), dtype=_PANDAS_TYPES[column.type]
            )
            for column, array in zip(self.columns, self._arrays.values(), strict=True)
        }
        return pandas.DataFrame(found)

    def to_arrow(self) -> Any:
        """
        Return a pyarrow Table; bytes that are not UTF-8 are ``\\udcff`` there.

        :raises Unsupported: if pyarrow is not installed.
        """
        arrow = _import("pyarrow")
        kinds = {int: arrow.int64(), float: arrow.float64(), bool: arrow.bool_()}
        found = {
            column.name: arrow.array(
                map(_as_utf8, array.tolist()), kinds.get(column.type, arrow.string())
            )
            for column, array in zip(self.columns, self._arrays.values(), strict=True)
        }
        return arrow.table(found)

    def _repr_html_(self) -> str:
        """Return the first rows as an HTML table, for notebooks."""
        head = "".join(
            f'<th title="{html.escape(column.help)}">{html.escape(column.title)}</th>'
            for column in self.columns
        )
        body = "".join(
            "<tr>" + "".join(map(_html_cell, self.columns, row)) + "</tr>"
            for rows in self[:_HTML_ROWS]._values()
            for row in rows
        )
        more = f"<p>{len(self) - _HTML_ROWS} more rows</p>" if len(self) > _HTML_ROWS else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"

    def _values(self) -> Iterator[list[tuple[Any, ...]]]:
        """Yield some rows at a time, as tuples with None for what is not known."""
        arrays = list(self._arrays.values())
        for at in range(0, len(self), _ROWS_AT_ONCE):
            parts = [array[at : at + _ROWS_AT_ONCE].tolist() for array in arrays]
            yield list(zip(*parts, strict=True))


def help_of(cls: type) -> str:
    """Return what a row of a record is."""
    return cast(str, cast(Any, cls).__help__)


def is_compact(cls: type) -> bool:
    """Return whether JSON has bare rows of a record."""
    return bool(cast(Any, cls).__compact__)


def _fallback(column: Column) -> Any:
    """Return the value of a column that was not given."""
    if column.default is not dataclasses.MISSING:
        return column.default
    if not column.nullable:
        raise TypeError(f"column {column.name} is missing")
    return None


def _read_objects(columns: Sequence[Column], found: Any) -> dict[str, list[Any]]:
    """Return the values of each column of a list of objects."""
    if not isinstance(found, list) or not all(isinstance(row, Mapping) for row in found):
        raise TypeError("not an object for each row")
    given = {c.name: [row.get(c.name, _ABSENT) for row in found] for c in columns}
    for column in columns:
        values = given[column.name]
        if _ABSENT in values:
            other = _fallback(column)
            given[column.name] = [other if value is _ABSENT else value for value in values]
    return given


def _read_compact(columns: Sequence[Column], found: Any) -> dict[str, list[Any]]:
    """Return the values of each column of ``columns`` and ``rows``."""
    if not isinstance(found, Mapping):
        raise TypeError("not an object of columns and rows")
    names, rows = found.get("columns"), found.get("rows")
    if not isinstance(names, list) or not isinstance(rows, list):
        raise TypeError("no lists of columns and rows")
    if not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        raise TypeError("not a value for each column")
    return {
        column.name: [row[names.index(column.name)] for row in rows]
        if column.name in names
        else [_fallback(column)] * len(rows)
        for column in columns
    }


def _make_array(column: Column, given: Values) -> NDArray[Any]:
    """Return the values of a column as a table keeps them."""
    if isinstance(given, np.ndarray) and given.dtype.kind in "iufb":
        if given.dtype.kind not in _KINDS[column.type] or given.ndim != 1:
            raise TypeError(f"column {column.name} takes no array of {given.dtype}")
        mask, data = np.ma.getmaskarray(given), np.ma.getdata(given)
    else:
        # Of a million runs the names of their classes need no copy.
        is_text = column.type is str and getattr(given, "dtype", np.dtype("i8")).kind == "O"
        if is_text and not column.nullable and set(map(type, given)) <= {str}:
            return cast(NDArray[Any], given)
        values = given.tolist() if isinstance(given, np.ndarray) else list(given)
        for kind in set(map(type, values)) - {types.NoneType}:
            is_bool = kind is bool and column.type is not bool
            if is_bool or not issubclass(kind, _TAKES[column.type]):
                raise TypeError(f"column {column.name} takes no {kind.__name__}")
        mask = np.array([value is None for value in values], np.bool_)
        data = np.empty(len(values), _DTYPES[column.type])
        try:
            data[:] = [column.type() if value is None else value for value in values]
        except OverflowError as error:
            raise ValueError(f"column {column.name} is beyond 64 bits") from error
    data = data.astype(_DTYPES[column.type], copy=False)
    if mask.any():
        if not column.nullable:
            raise TypeError(f"column {column.name} may not be unknown")
        # What stands where nothing is known is no matter, and must not tell tables apart.
        data = np.where(mask, column.type(), data).astype(data.dtype, copy=False)
    if column.type is float and not np.isfinite(data).all():
        raise ValueError(f"column {column.name} is not finite")
    return np.ma.MaskedArray(data, mask=mask) if column.nullable else data


def _csv_cell(value: Scalar) -> Scalar:
    # Names that are not UTF-8 cannot be written as they are.
    if isinstance(value, bool):
        return "true" if value else "false"
    return escape_text(value) if isinstance(value, str) else value


def _html_cell(column: Column, value: Scalar) -> str:
    shown = column.absent if value is None else escape_text(str(value))
    align = ' style="text-align: left"' if column.type is str else ""
    return f"<td{align}>{html.escape(shown)}</td>"


def _as_utf8(value: Scalar) -> Scalar:
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unsupported(f"{name} is not installed") from error
