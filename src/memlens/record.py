"""One shape for every answer: columns, what was missed, what it cost."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar


@dataclass(frozen=True, slots=True)
class Cost:
    """
    What a scan cost.

    :param wall_s: seconds from the first read to the last.
    :param read_bytes: bytes that kernel files gave, scan results included.
    :param longest_read_s: longest single call that can hold the target's mmap lock.
    """

    wall_s: float
    read_bytes: int
    longest_read_s: float

    def plus(self, other: "Cost") -> "Cost":
        """Return what this scan and another one cost."""
        return Cost(
            self.wall_s + other.wall_s,
            self.read_bytes + other.read_bytes,
            max(self.longest_read_s, other.longest_read_s),
        )


T = TypeVar("T")
Value = int | float | str | None
Unit = Literal["pages", "bytes", "number", "text", "name"]


class TableColumn(NamedTuple, Generic[T]):
    r"""
    One thing that is told of a row.

    :param name: in JSON and CSV; ends in its unit where that is not plain.
    :param title: for people; ``\n`` where a heading may break.
    :param unit: what its numbers count; ``name`` is text that takes the room left.
    :param read: takes the value from a row; None is not known.
    :param rank: the higher, the sooner it is left out where there is no room; 0 never.
    :param style: as rich spells it.
    :param absent: what text shows for None: not known, or that there is no such thing.
    """

    name: str
    title: str
    unit: Unit
    read: Callable[[T], Value]
    rank: int = 0
    style: str = ""
    absent: str = "?"


def sort_rows(
    rows: Iterable[T], columns: Sequence[TableColumn[T]], name: str | None
) -> list[T]:
    """
    Return rows in the order of a column: numbers from the largest, text from the first.

    :param name: as ``sort_names`` lists it; None keeps the order.
    """
    found = list(rows)
    column = {_plain(column.name): column for column in columns}.get(_plain(name or ""))
    if column is None:
        return found
    read = column.read
    if column.unit in ("text", "name"):
        return sorted(found, key=lambda row: str(read(row) or ""))
    return sorted(found, key=lambda row: -_number(read(row)))


def sort_names(columns: Sequence[TableColumn[Any]]) -> list[str]:
    """Return what columns are called on the command line."""
    return [_plain(column.name) for column in columns]


def _plain(name: str) -> str:
    name = name.replace("_", "-")
    return name.removesuffix("-pages").removesuffix("-bytes")


def _number(value: Value) -> float:
    # What is not known comes last.
    return float("-inf") if value is None or isinstance(value, str) else float(value)


def json_rows(rows: Iterable[T], columns: Sequence[TableColumn[T]]) -> list[dict[str, Any]]:
    """Return rows as JSON has them."""
    return [{column.name: column.read(row) for column in columns} for row in rows]


@dataclass(frozen=True, slots=True)
class Missed:
    """Something that a run could not look at, and why."""

    what: str
    reason: str
