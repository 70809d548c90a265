"""
The one envelope of every answer: tables, sums, what was missed, and what it cost.

What ``to_json`` writes, ``from_json`` reads back.

>>> from memlens.record import column, record
>>> @record("sample.processes", help="One process on swap.")
... class Swapped:
...     pid: int = column("PID", key=True, help="as /proc has it")
...     swap_pages: int | None = column("swap", unit="pages", help="private pages on swap")
>>> class Sample(Report, schema="memlens.sample/2"):
...     processes = table(Swapped)
>>> report = Sample.at(
...     Origin("2026-01-31T08:15:00Z", "host", "boot", "6.18.0", 4096, "0.1.0"),
...     cost=Cost(0.5, 4096, 0.1, slowest="PID 9"),
...     tables={"processes": Table.of(Swapped, [Swapped(1, 3), Swapped(7, None)])},
...     sums={"swap": make_sum(total_pages=5, explained_pages=3)},
... )
>>> report
<memlens.sample/2 of host at 2026-01-31T08:15:00Z: 2 processes>
>>> report.processes[0].swap_pages
3
>>> Sample.from_json("".join(report.to_json())) == report
True
"""

import dataclasses
import html
import json
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

from memlens.errors import ParseError, UnknownName
from memlens.record import (
    Table,
    column,
    columns_of,
    encode,
    record,
)

R = TypeVar("R")
S = TypeVar("S")

_TEXT_SHOWN = 60
_INT_LIMIT = 1 << 63
# What JSON calls the types of sections and columns.
JSON_NAMES: dict[type, str] = {
    dict: "object",
    list: "array",
    int: "integer",
    float: "number",
    bool: "boolean",
    str: "string",
}


@record("missed", help="Something that a scan could not look at.")
class Missed:
    """Something that a scan could not look at, and why."""

    what: str = column("what", key=True, help="the process, object or file")
    reason: str = column("reason", unit="name", help="why it could not be looked at")


@record("cost", help="What a scan cost.")
class Cost:
    """What a scan cost."""

    wall_s: float = column("wall", unit="seconds", help="from the first read to the last")
    read_bytes: int = column(
        "read", unit="bytes", help="that kernel files gave, scan results included"
    )
    longest_read_s: float = column(
        "longest", unit="seconds", help="longest call that can hold the target's mmap lock"
    )
    slowest: str | None = column(
        "slowest", help="the process or object of the longest call", default=None
    )

    def plus(self, other: "Cost") -> "Cost":
        """Return what this scan and another one cost."""
        slower = max(self, other, key=lambda cost: cost.longest_read_s)
        return Cost(
            self.wall_s + other.wall_s,
            self.read_bytes + other.read_bytes,
            slower.longest_read_s,
            slower.slowest,
        )


@record("origin", help="Where and when a report was made.")
class Origin:
    """Where and when a report was made."""

    taken_at: str = column("taken", help="when the scan began: ISO 8601, UTC, with Z")
    host: str = column("host", key=True, help="name of the machine")
    boot_id: str = column("boot", help="random/boot_id of the kernel")
    kernel: str = column("kernel", help="its release, as uname -r says")
    page_size_bytes: int = column("page size", unit="bytes", help="size of a base page")
    memlens: str = column("memlens", help="version of this program")


class TableField(Generic[R]):
    """A table of a report; on the class, what was declared."""

    def __init__(self, record: type[R]) -> None:
        self.record = record
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @typing.overload
    def __get__(self, report: None, owner: type) -> Self: ...
    @typing.overload
    def __get__(self, report: "Report", owner: type) -> Table[R]: ...
    def __get__(self, report: "Report | None", owner: type) -> "Self | Table[R]":
        if report is None:
            return self
        return report.tables.get(self.name) or Table.of(self.record)


class SectionField(Generic[S]):
    """A section of a report, None if it has none; on the class, what was declared."""

    def __init__(self, kind: type[S]) -> None:
        self.kind = kind
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @typing.overload
    def __get__(self, report: None, owner: type) -> Self: ...
    @typing.overload
    def __get__(self, report: "Report", owner: type) -> S | None: ...
    def __get__(self, report: "Report | None", owner: type) -> "Self | S | None":
        return self if report is None else report.sections.get(self.name)


def table(record: type[R]) -> TableField[R]:
    """Return the declaration of a table; the name in the class is the one in JSON."""
    return TableField(record)


def section(kind: type[S]) -> SectionField[S]:
    """
    Return the declaration of what is no table.

    :param kind: a record; or dict or list, of what JSON can hold.
    """
    return SectionField(kind)


def make_sum(
    total_pages: int | None,
    explained_pages: int | None,
    drift_pages: int | None = None,
    **parts: int | None,
) -> dict[str, int | None]:
    """
    Return a sum of a ledger, which always says what it leaves unexplained.

    >>> make_sum(10, 7, private_pages=4)["remainder_pages"]
    3

    :param total_pages: as a counter of the kernel says.
    :param explained_pages: what was found of it.
    :param drift_pages: by how much the counter changed during the scan.
    :param parts: what it is made of, by name.
    """
    is_known = total_pages is not None and explained_pages is not None
    return {
        "total_pages": total_pages,
        "explained_pages": explained_pages,
        "remainder_pages": (total_pages or 0) - (explained_pages or 0) if is_known else None,
        "drift_pages": drift_pages,
        **parts,
    }


# Every kind of report by its schema.
REPORTS: dict[str, type["Report"]] = {}


@dataclass(frozen=True, kw_only=True)
class Report(Origin):
    """
    An answer: tables in an envelope.  Each subject has its own kind, with a schema.

    :param tables: by name; one that was not asked for is not there, and reads empty.
    :param sections: what is no table, by name: records, or what JSON can hold.
    :param sums: of ledgers, by name, as ``make_sum`` makes them.
    :param missed: what could not be looked at.
    :param notes: what to know, one line each.
    :param is_complete: False if the scan was stopped early.
    :raises TypeError: if a table or a section is not as the kind declares it.
    """

    cost: Cost
    tables: Mapping[str, Table[Any]]
    sections: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sums: Mapping[str, Mapping[str, int | None]] = dataclasses.field(default_factory=dict)
    missed: tuple[Missed, ...] = ()
    notes: tuple[str, ...] = ()
    is_complete: bool = True

    SCHEMA: ClassVar[str] = ""

    def __init_subclass__(cls, schema: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if schema:
            cls.SCHEMA = schema
            REPORTS[schema] = cls

    def __post_init__(self) -> None:
        tables, sections = self.table_fields(), self.section_fields()
        for name, table in self.tables.items():
            if name not in tables or tables[name].record is not table.record:
                raise TypeError(f"{self.SCHEMA} declares no table {name}: {table!r}")
        for name, found in self.sections.items():
            if name not in sections or not isinstance(found, sections[name].kind):
                raise TypeError(f"{self.SCHEMA} declares no section {name}: {found!r}")

    @classmethod
    def at(
        cls,
        origin: Origin,
        *,
        cost: Cost,
        tables: Mapping[str, Table[Any]],
        sections: Mapping[str, Any] = MappingProxyType({}),
        sums: Mapping[str, Mapping[str, int | None]] = MappingProxyType({}),
        missed: Iterable[Missed] = (),
        notes: Iterable[str] = (),
        is_complete: bool = True,
    ) -> Self:
        """
        Return a report from where and when it was made, and what ``Report`` says.

        :param sections: those that are None are left out.
        """
        return cls(
            **{column.name: getattr(origin, column.name) for column in columns_of(Origin)},
            cost=cost,
            tables=tables,
            sections={n: f for n, f in sections.items() if f is not None},
            sums=dict(sums),
            missed=tuple(missed),
            notes=tuple(notes),
            is_complete=is_complete,
        )

    @classmethod
    def table_fields(cls) -> dict[str, TableField[Any]]:
        """Return the tables that this kind declares, by name."""
        return {n: f for n, f in _declared(cls) if isinstance(f, TableField)}

    @classmethod
    def section_fields(cls) -> dict[str, SectionField[Any]]:
        """Return the sections that this kind declares, by name."""
        return {n: f for n, f in _declared(cls) if isinstance(f, SectionField)}

    def __repr__(self) -> str:
        rows = ", ".join(f"{len(table)} {name}" for name, table in self.tables.items())
        ended = "" if self.is_complete else ", incomplete"
        return f"<{self.SCHEMA} of {self.host} at {self.taken_at}: {rows}{ended}>"

    def _repr_html_(self) -> str:
        """Return its tables as HTML, for notebooks."""
        return f"<p>{html.escape(repr(self))}</p>" + "".join(
            f"<h4>{html.escape(name)}</h4>{table._repr_html_()}"
            for name, table in self.tables.items()
        )

    @property
    def is_all_known(self) -> bool:
        """Return whether nothing is missed or unknown: what ``--strict`` asks."""
        return self.is_complete and not self.missed

    @property
    def is_wrong(self) -> bool:
        """Return whether it shows memlens at fault, for which a command ends with 1."""
        return False

    def table(self, name: str | None = None) -> Table[Any]:
        """
        Return a table by name; None is the first that is declared.

        :raises UnknownName: if there is none of that name.
        """
        names = tuple(self.table_fields())
        name = names[0] if name is None else name
        if name not in names:
            raise UnknownName("table", name, names)
        return cast(Table[Any], getattr(self, name))

    def arranged(
        self, name: str | None = None, *, sort: Sequence[str] = (), top: int | None = None
    ) -> Self:
        """
        Return the report with one table sorted and cut; sums stay those of all rows.

        :param name: of the table, None for the first.
        :raises UnknownName: if there is no such table or column.
        """
        table = self.table(name).sorted_by(sort).top(top)
        name = next(iter(self.table_fields())) if name is None else name
        return dataclasses.replace(self, tables={**self.tables, name: table})

    def to_json(self) -> Iterator[str]:
        """Yield the pieces of one JSON object, a line for every member and every row."""
        yield f'{{"schema": {encode(self.SCHEMA)}'
        for one in columns_of(Origin):
            yield f',\n"{one.name}": {encode(getattr(self, one.name))}'
        yield ',\n"tables": {'
        for number, (name, table) in enumerate(self.tables.items()):
            yield f"{',' if number else ''}\n{encode(name)}: "
            yield from table.to_json()
        sections = {name: _plain(found) for name, found in self.sections.items()}
        yield f'}},\n"sections": {encode(sections)}'
        yield f',\n"sums": {encode({name: dict(part) for name, part in self.sums.items()})}'
        yield ',\n"missed": '
        yield from Table.of(Missed, self.missed).to_json()
        yield f',\n"notes": {encode(list(self.notes))}'
        yield f',\n"cost": {encode(_plain(self.cost))}'
        yield f',\n"is_complete": {encode(self.is_complete)}}}\n'

    @classmethod
    def from_json(cls, source: str | Mapping[str, Any], *, path: str = "") -> Self:
        """
        Return the report that ``to_json`` wrote.

        Called on ``Report`` it gives the kind that the schema names, if that is imported.
        What is not known here, as later versions may write, is ignored.

        :param source: the text, or what a JSON parser made of it.
        :param path: the file it is from, for errors.
        :raises ParseError: if it is damaged, or of another schema.
        """
        found = _parse(source, path)
        schema = found.get("schema")
        kind = REPORTS.get(schema) if isinstance(schema, str) else None
        if kind is None or not issubclass(kind, cls):
            raise ParseError("schema: not one that is wanted here", path=path, text=str(schema))
        return kind._read(found, path)

    @classmethod
    def _read(cls, found: Mapping[str, Any], path: str) -> Self:
        origin = _read_row(Origin, found, path, "report")
        if not _is_moment(origin.taken_at):
            raise ParseError("taken_at: no moment", path=path, text=origin.taken_at)
        tables, sections = cls.table_fields(), cls.section_fields()
        return cls.at(
            origin,
            cost=_read_row(Cost, found.get("cost"), path, "cost"),
            tables={
                name: Table.from_json(
                    tables[name].record, rows, path=path, place=f"tables.{name}"
                )
                for name, rows in _member(found, "tables", dict, path).items()
                if name in tables
            },
            sections={
                name: _read_section(sections[name].kind, part, path, f"sections.{name}")
                for name, part in _member(found, "sections", dict, path).items()
                if name in sections and part is not None
            },
            sums=_read_sums(_member(found, "sums", dict, path), path),
            missed=Table.from_json(Missed, found.get("missed"), path=path, place="missed"),
            notes=_read_notes(_member(found, "notes", list, path), path),
            is_complete=_member(found, "is_complete", bool, path),
        )


def _declared(cls: type) -> Iterator[tuple[str, Any]]:
    for base in reversed(cls.__mro__):
        yield from vars(base).items()


def _plain(found: Any) -> Any:
    """Return a record as JSON has it, once it is sure to be read back."""
    if not hasattr(found, "__columns__"):
        return found
    row = Table.of(type(found), [found])
    return {column.name: row.column(column.name).tolist()[0] for column in row.columns}


def _parse(source: str | Mapping[str, Any], path: str) -> Mapping[str, Any]:
    found: Any = source
    if isinstance(source, str):
        try:
            found = json.loads(source, parse_constant=_refuse)
        except json.JSONDecodeError as error:
            line = error.doc.splitlines()[error.lineno - 1 : error.lineno]
            raise ParseError(
                f"not JSON: {error.msg}",
                path=path,
                line_number=error.lineno,
                text="".join(line)[:_TEXT_SHOWN],
            ) from error
        # Nested too deep, no number, or one of thousands of digits.
        except (RecursionError, ValueError) as error:
            raise ParseError(f"not JSON: {error}", path=path) from error
    if not isinstance(found, Mapping):
        raise ParseError("not a report", path=path)
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _is_moment(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return text.endswith("Z")


def _member(found: Mapping[str, Any], name: str, kind: type[S], path: str) -> S:
    value = found.get(name)
    if not isinstance(value, kind):
        raise ParseError(f"{name}: not of type {JSON_NAMES[kind]}", path=path)
    return value


def _read_row(record: type[S], found: Any, path: str, place: str) -> S:
    return Table.from_json(record, [found], path=path, place=place)[0]


def _read_section(kind: type[Any], found: Any, path: str, place: str) -> Any:
    if kind in JSON_NAMES:
        return _member({place: found}, place, kind, path)
    return _read_row(kind, found, path, place)


def _read_sums(found: dict[str, Any], path: str) -> dict[str, dict[str, int | None]]:
    for name in found:
        for value in _member(found, name, dict, path).values():
            is_number = type(value) is int and -_INT_LIMIT <= value < _INT_LIMIT
            if value is not None and not is_number:
                raise ParseError(f"sums.{name}: no integer of 64 bits", path=path)
    return found


def _read_notes(found: list[Any], path: str) -> list[str]:
    if not all(isinstance(note, str) for note in found):
        raise ParseError("notes: not all are text", path=path)
    return found
