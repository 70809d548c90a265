"""
THE table of what is told of a mapping: name, title, unit, kind of metric, how to read it.

Text, JSON and CSV all read it, so that a column is one row here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.account.model import MappingPages
from memlens.pages.classes import PageClass
from memlens.units import escape_text, format_size

Value = int | str
Unit = Literal["address", "bytes", "pages", "number", "text"]
Metric = Literal["label", "gauge"]


class Row(NamedTuple):
    """A mapping and its pages in each class, ``(len(PageClass),)`` int64."""

    mapping: MappingPages
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, mapping: MappingPages) -> "Row":
        """Return the row of a mapping."""
        return cls(mapping, mapping.counts())


@dataclass(frozen=True, slots=True)
class Column:
    r"""
    One thing that is told of a mapping.

    :param name: in JSON, CSV and metrics; ends in its unit where that is not plain.
    :param title: for people; ``\n`` where a heading may break.
    :param unit: what its numbers count; says how text shows them.
    :param metric: ``label`` names a mapping, ``gauge`` measures it.
    :param read: takes the value from a row.
    """

    name: str
    title: str
    unit: Unit
    metric: Metric
    read: Callable[[Row], Value]


@dataclass(frozen=True, slots=True)
class ClassColumn(Column):
    """The pages of one class."""

    page_class: PageClass


MAPPING_COLUMNS = (
    Column("start", "address", "address", "label", lambda row: row.mapping.start),
    Column("stop", "end", "address", "label", lambda row: row.mapping.stop),
    Column("permissions", "perm", "text", "label", lambda row: row.mapping.permissions),
    Column("offset_bytes", "offset", "bytes", "label", lambda row: row.mapping.offset_bytes),
    Column("device", "device", "text", "label", lambda row: row.mapping.device),
    Column("inode", "inode", "number", "label", lambda row: row.mapping.inode),
    Column("path", "mapping", "text", "label", lambda row: row.mapping.path),
    Column("object", "object", "text", "label", lambda row: row.mapping.object),
)

_CLASS_TITLES = {
    PageClass.SWAP_CACHED: "swap\ncached",
    PageClass.ON_DISK: "on\ndisk",
    PageClass.PREALLOCATED: "pre-\nalloc",
    PageClass.POISONED: "poi-\nsoned",
    PageClass.BEYOND_END: "beyond\nend",
}


def _class_column(kind: PageClass) -> ClassColumn:
    return ClassColumn(
        name=kind.label,
        title=_CLASS_TITLES.get(kind, kind.label),
        unit="pages",
        metric="gauge",
        read=lambda row: int(row.counts[kind]),
        page_class=kind,
    )


CLASS_COLUMNS = tuple(_class_column(kind) for kind in PageClass)


def format_value(unit: Unit, value: Value, page_size_bytes: int) -> str:
    """
    Return a value as text shows it; no pages are nothing to see.

    >>> [format_value("pages", 4, 4096), format_value("pages", 0, 4096)]
    ['16K', '']
    >>> format_value("address", 4096, 4096)
    '1000'
    """
    if unit == "text" or isinstance(value, str):
        return escape_text(str(value))
    if unit == "address":
        return f"{value:x}"
    if unit == "bytes":
        return format_size(value)
    if unit == "pages":
        return format_size(value * page_size_bytes) if value else ""
    return str(value)
