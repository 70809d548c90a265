"""One shared-memory object page by page, as text."""

import textwrap
from collections.abc import Iterator, Sequence

from memlens.account.inventory import Inventory
from memlens.account.sharedobject import Holder, SharedObject
from memlens.pages.classes import CLASSES, PageClass
from memlens.units import escape_text, format_size
from memlens.views.inventory import CLASS_STYLES, format_age, owner_text
from memlens.views.lines import (
    ALARM,
    BOLD,
    DIM,
    Line,
    Segment,
    cell_len,
    cut_middle,
    percent,
    render_labelled,
)
from memlens.views.strip import draw_strip
from memlens.views.table import TableColumn, TableOptions, render_summary, render_table
from memlens.views.text import TextOptions, cell_character

_MEANINGS = {
    PageClass.PRESENT: "in RAM, mapped by at least one process",
    PageClass.CACHED: "in RAM, mapped by no process",
}
# The same where processes that were not looked at may map it.
_UNSEEN_MEANINGS = _MEANINGS | {
    PageClass.CACHED: "in RAM, mapped by no process that could be looked at",
}

HOLDER_COLUMNS: tuple[TableColumn[Holder], ...] = (
    TableColumn("pid", "PID", "number", lambda row: row.pid),
    TableColumn("mapped_pages", "maps", "pages", lambda row: row.mapped_pages),
    TableColumn("present_pages", "present", "pages", lambda row: row.present_pages),
    TableColumn("is_open", "open", "text", lambda row: "open" if row.is_open else ""),
    TableColumn("ranges", "pages", "text", lambda row: _ranges_text(row.ranges), 1),
    TableColumn("name", "name", "name", lambda row: row.name),
)


def _ranges_text(ranges: Sequence[tuple[int, int]]) -> str:
    shown = ", ".join(f"{first}-{stop}" for first, stop in ranges[:2])
    return f"{shown}, +{len(ranges) - 2}" if len(ranges) > 2 else shown


def render_objects(
    inventory: Inventory, options: TableOptions, has_runs: bool = False
) -> Iterator[Line]:
    """
    Yield the lines of the objects that have one name, page by page.

    :param has_runs: whether to list their runs.
    """
    if not inventory.is_complete:
        yield [Segment("INCOMPLETE: the scan ended early", ALARM)]
    for item in inventory.objects:
        yield from _render_object(item, inventory.page_size_bytes, options, has_runs)
        yield []
    yield from render_summary(inventory.missed, (), inventory.cost, options)


def _render_object(
    item: SharedObject, size: int, options: TableOptions, has_runs: bool
) -> Iterator[Line]:
    about = f"{item.kind}, device {item.device}, inode {item.inode}"
    name = cut_middle(escape_text(item.name), options.width, options.ellipsis)
    is_short = cell_len(name) + len(about) + 2 <= options.width
    yield [Segment(name, BOLD), *([Segment(f"  {about}", DIM)] if is_short else ())]
    if not is_short:
        yield [Segment(about, DIM)]
    facts = [format_size(item.size_bytes), f"owner {owner_text(item) or 'unknown'}"]
    age = format_age(item.age_s)
    facts += [f"{age} old"] if age else []
    facts += [f"charged to {escape_text(item.cgroup)}"] if item.cgroup else []
    facts += [mark.replace("_", " ") for mark in item.marks]
    facts += _beyond_end(item, size)
    for part in textwrap.wrap(", ".join(facts), options.width):
        yield [Segment(part, DIM)]
    pages = int(item.counts().sum())
    if pages:
        yield []
        yield from _strips(item, pages, options)
        yield []
        yield from _totals(item, pages, size, options)
    if has_runs:
        yield []
        yield from _runs(item, size)
    yield []
    if item.holders:
        yield from render_table(item.holders, HOLDER_COLUMNS, size, options)
    else:
        looked = "" if "no_holder" in item.marks else " that could be looked at"
        yield [Segment(f"No process{looked} maps it or has it open.")]
    if item.reasons:
        yield []
    yield from render_labelled(
        "unknown", [escape_text(r) for r in item.reasons], options.width, ALARM
    )


def _beyond_end(item: SharedObject, size: int) -> Iterator[str]:
    """Yield what is in none of the classes, which are of its pages up to its end."""
    for pages, where in (
        (item.beyond_end_resident_pages, "in RAM"),
        (item.beyond_end_swap_pages, "on swap"),
    ):
        if pages:
            yield f"{format_size(pages * size)} {where} beyond its end"


def _strips(item: SharedObject, pages: int, options: TableOptions) -> Iterator[Line]:
    text_options = TextOptions(options.width, options.is_colored, options.is_unicode)
    line: Line = []
    for kind, is_mixed in draw_strip(item.runs, 0, pages, options.width):
        if kind is None:
            line.append(Segment(" "))
        else:
            character = cell_character(kind, is_mixed, text_options)
            line.append(Segment(character, CLASS_STYLES[kind]))
    yield line


def _totals(item: SharedObject, pages: int, size: int, options: TableOptions) -> Iterator[Line]:
    counts = item.counts()
    digits = len(str(pages))
    meanings = _UNSEEN_MEANINGS if item.may_have_more_holders else _MEANINGS
    text_options = TextOptions(options.width, options.is_colored, options.is_unicode)
    for row in CLASSES:
        count = int(counts[row.page_class])
        if not count:
            continue
        sign = cell_character(row.page_class, False, text_options)
        label = f"{sign} {row.page_class.label:<12}"
        amount = format_size(count * size)
        rest = f"{amount:>6} {count:>{digits}} pages {percent(count, pages):>4}  "
        meaning = meanings.get(row.page_class, row.meaning)
        room = max(options.width - len(label) - len(rest), 20)
        parts = textwrap.wrap(meaning, room)
        yield [
            Segment(label, CLASS_STYLES[row.page_class]),
            Segment(rest),
            Segment(parts[0], DIM),
        ]
        for part in parts[1:]:
            yield [Segment(" " * (len(label) + len(rest))), Segment(part, DIM)]


def _runs(item: SharedObject, size: int) -> Iterator[Line]:
    for first, pages, value in item.runs:
        kind = PageClass(value)
        where = f"{first}-{first + pages}"
        text = f"  {where:22}{format_size(pages * size):>6}{pages:>10} pages  "
        yield [Segment(text, DIM), Segment(kind.label, CLASS_STYLES[kind])]
