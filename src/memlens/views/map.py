"""
A process map as text: a table of mappings, totals with a legend, and what it rests on.

Lines are pieces of text with the name of a style, as rich spells styles; rich itself is
needed only where they are coloured.
"""

import textwrap
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlens.pages.classes import CLASSES, PageClass
from memlens.pages.decode import bit_names
from memlens.pages.runs import Runs, select_runs
from memlens.pages.slotruns import restrict_slots
from memlens.residency.records import (
    CLASS_COLUMNS,
    ClassColumn,
    MappingPages,
    ProcessMap,
    Row,
    Words,
    format_value,
)
from memlens.units import escape_text, format_size
from memlens.views.lines import (
    ALARM,
    BOLD,
    DIM,
    Line,
    Segment,
    cell_len,
    cut_middle,
    format_cost,
    percent,
    render_labelled,
)
from memlens.views.strip import INTEREST, draw_strip

_REASONS_SHOWN = 8
_NOTES_SHOWN = 8
_FRAMES = "pfns_visible"
_STYLES = {row.page_class: row.color for row in CLASSES}
_GLYPHS = {row.page_class: row.glyph for row in CLASSES}

# Classes that hold something are drawn as blocks where there is colour; the others, and
# those whose colours are hard to tell apart, keep their glyph.
_BLOCKS = frozenset(
    {
        PageClass.PRESENT,
        PageClass.CACHED,
        PageClass.SWAP_CACHED,
        PageClass.SWAPPED,
        PageClass.ON_DISK,
        PageClass.PREALLOCATED,
    }
)


class TextOptions(NamedTuple):
    """
    How to draw.

    :param width: cells in a line.
    :param is_colored: whether colours will be seen; without, glyphs tell the classes.
    :param is_unicode: whether blocks and other characters beyond ASCII can be printed.
    :param addresses: the range that was asked for, None for all.
    :param has_runs: whether to list the runs of every mapping.
    """

    width: int = 80
    is_colored: bool = False
    is_unicode: bool = False
    addresses: tuple[int, int] | None = None
    has_runs: bool = False

    @property
    def ellipsis(self) -> str:
        """Return what stands for text left out."""
        return "…" if self.is_unicode else "~"


def render_map(result: ProcessMap, whole: ProcessMap, options: TextOptions) -> Iterator[Line]:
    """
    Yield the lines of a map.

    :param result: what to show, perhaps only some classes.
    :param whole: the same with everything, of which the summary tells what is unknown.
    """
    rows = [Row.of(mapping) for mapping in result.mappings]
    layout = choose_layout(rows, options.width)
    yield from _header(result, options)
    yield []
    if rows:
        yield from _heading(layout)
        for row in rows:
            other = _other_lines(row, layout)
            yield _mapping_line(row, layout, other[0] if other else "", options)
            yield from _more_other(layout, other[1:])
            yield from _details(row.mapping, options)
        yield from _totals(result, rows, options)
    else:
        yield [Segment("No mapping has pages of these classes.")]
    yield []
    yield from _summary(whole, options)


def _header(result: ProcessMap, options: TextOptions) -> Iterator[Line]:
    process = result.process
    title = f"{escape_text(process.name)}  PID {process.pid}"
    command = escape_text(" ".join(process.cmdline))
    room = options.width - len(title) - 2
    line = [Segment(title, BOLD)]
    if command and room >= 10:
        line.append(Segment("  " + cut_middle(command, room, options.ellipsis), DIM))
    yield line
    started = process.started_at.strftime("%Y-%m-%d %H:%M:%S %Z")
    about = (
        f"started {started}, Linux {escape_text(result.kernel.release)}, "
        f"pages of {format_size(result.kernel.page_size_bytes)}"
    )
    yield [Segment(about, DIM)]
    if not result.is_complete:
        yield [Segment("INCOMPLETE: the scan was stopped early", ALARM)]


class Layout(NamedTuple):
    """
    The columns of a table, in cells of the terminal.

    :param gap: between columns.
    :param address: width of the addresses, 0 to leave them out.
    :param name: width of the mapping's name.
    :param strip: width of the strip.
    :param own: classes with a column of their own.
    :param shared: classes that share the column "other".
    :param widths: widths of those columns, "other" last if there is one.
    """

    gap: int
    address: int
    name: int
    strip: int
    own: tuple[ClassColumn, ...]
    shared: tuple[ClassColumn, ...]
    widths: tuple[int, ...]


def _heading(layout: Layout) -> Iterator[Line]:
    titles = [column.title.split("\n") for column in layout.own]
    titles += [["other"]] if layout.shared else []
    styles = [f"bold {_STYLES[column.page_class]}" for column in layout.own]
    styles += [BOLD] if layout.shared else []
    left, gap = _left_heading(layout), " " * layout.gap
    height = max((len(title) for title in titles), default=1)
    for level in range(height - 1, -1, -1):
        is_last = level == 0
        line = [Segment(left if is_last else " " * len(left), BOLD)]
        for title, style, width in zip(titles, styles, layout.widths, strict=True):
            part = title[len(title) - 1 - level] if level < len(title) else ""
            line.append(Segment(f"{gap}{part:>{width}}", style))
        if is_last and layout.strip:
            line.append(Segment(f"{gap}where", BOLD))
        yield line


def _left_heading(layout: Layout) -> str:
    gap = " " * layout.gap
    left = f"{'address':>{layout.address}}{gap}" if layout.address else ""
    return f"{left}perm{gap} size{gap}{'mapping':{layout.name}}"


def _mapping_line(row: Row, layout: Layout, other: str, options: TextOptions) -> Line:
    mapping, gap = row.mapping, " " * layout.gap
    first, stop = scanned_pages(mapping, options.addresses)
    size = format_size((stop - first) * mapping.page_size_bytes)
    left = f"{mapping.start:{layout.address}x}{gap}" if layout.address else ""
    name = short_name(mapping.path, layout.name, options.ellipsis)
    padding = " " * (layout.name - cell_len(name))
    line = [
        Segment(f"{left}{escape_text(mapping.permissions):4}{gap}{size:>5}{gap}"),
        Segment(name + padding, "" if mapping.path else DIM),
    ]
    line += _class_cells(row, layout, other)
    if layout.strip:
        line.append(Segment(gap))
        line += _strip(mapping, first, stop, layout.strip, options)
    return line


def _class_cells(row: Row, layout: Layout, other: str) -> Line:
    gap, size = " " * layout.gap, row.mapping.page_size_bytes
    line = []
    for column, width in zip(layout.own, layout.widths, strict=False):
        text = format_value(column.unit, column.read(row), size)
        line.append(Segment(f"{gap}{text:>{width}}", _STYLES[column.page_class]))
    if layout.shared:
        line.append(Segment(f"{gap}{other:>{OTHER_WIDTH}}"))
    return line


def _other_lines(row: Row, layout: Layout) -> list[str]:
    """Return the classes without a column of their own, as many on a line as fit."""
    parts = [
        _GLYPHS[column.page_class]
        + format_value(column.unit, column.read(row), row.mapping.page_size_bytes)
        for column in layout.shared
        if row.counts[column.page_class]
    ]
    return textwrap.wrap(" ".join(parts), OTHER_WIDTH)


def _more_other(layout: Layout, lines: list[str]) -> Iterator[Line]:
    indent = len(_left_heading(layout)) + sum(layout.widths) + layout.gap * len(layout.widths)
    for line in lines:
        yield [Segment(f"{line:>{indent}}")]


def _strip(
    mapping: MappingPages, first: int, stop: int, width: int, options: TextOptions
) -> Line:
    line: Line = []
    text, style = "", ""
    for kind, is_mixed in draw_strip(mapping.runs, first, stop, width):
        character = " " if kind is None else cell_character(kind, is_mixed, options)
        wanted = "" if kind is None else _STYLES[kind]
        if wanted != style and text:
            line.append(Segment(text, style))
            text = ""
        text, style = text + character, wanted
    return [*line, Segment(text, style)]


def cell_character(kind: PageClass, is_mixed: bool, options: TextOptions) -> str:
    """Return the character of a cell: a block where colour tells the class, else its glyph."""
    if options.is_colored and options.is_unicode and kind in _BLOCKS:
        return "▒" if is_mixed else "█"
    return _GLYPHS[kind]


def scanned_pages(mapping: MappingPages, addresses: tuple[int, int] | None) -> tuple[int, int]:
    """Return the half-open range of a mapping's pages that was asked for."""
    if addresses is None:
        return 0, mapping.pages
    size = mapping.page_size_bytes
    first = max((addresses[0] - mapping.start) // size, 0)
    stop = min(-(-(addresses[1] - mapping.start) // size), mapping.pages)
    return first, stop


def _details(mapping: MappingPages, options: TextOptions) -> Iterator[Line]:
    """Yield the runs and the words of a mapping, if they were asked for."""
    size = mapping.page_size_bytes
    if options.has_runs:
        for first, pages, kind, reason in list_runs(mapping):
            start = mapping.start + first * size
            where = f"  {start:x}-{start + pages * size:x}"
            unit = "page " if pages == 1 else "pages"
            amount = f"{format_size(pages * size):>6}{pages:>10} {unit}  "
            line = [Segment(f"{where:36}{amount}", DIM), Segment(kind.label, _STYLES[kind])]
            yield [*line, Segment(f": {escape_text(reason)}")] if reason else line
    if mapping.words is not None:
        words = zip(mapping.words.page.tolist(), mapping.words.word.tolist(), strict=True)
        for page, word in words:
            where = f"  {mapping.start + page * size:x}"
            yield [Segment(f"{where:19} {word:016x}  {', '.join(bit_names(word))}", DIM)]
    for first, pages, area, slot in mapping.slots or ():
        start = mapping.start + first * size
        where = f"  {start:x}-{start + pages * size:x}"
        place = f"swap area {area}, slots {slot} to {slot + pages - 1}"
        yield [Segment(f"{where:36}{place}", DIM)]


def _totals(result: ProcessMap, rows: list[Row], options: TextOptions) -> Iterator[Line]:
    """Yield the total of every class, which is the legend as well."""
    counts = result.counts()
    size = result.kernel.page_size_bytes
    total = int(counts.sum())
    digits = len(str(total))

    def amount(pages: int) -> str:
        share = percent(pages, total)
        unit = "page " if pages == 1 else "pages"
        return f"{format_size(pages * size):>6} {pages:>{digits}} {unit} {share:>4}  "

    yield []
    for row in CLASSES:
        pages = int(counts[row.page_class])
        if pages:
            sign = cell_character(row.page_class, False, options)
            label, style = f"{sign} {row.page_class.label:<12}", _STYLES[row.page_class]
            yield from _total_line(label, style, amount(pages), row.meaning, options.width)
    for node, pages in result.node_pages().items():
        yield from _total_line(
            f"  {f'node {node}':<12}",
            DIM,
            amount(pages),
            "present, by NUMA node",
            options.width,
        )
    mappings = f"in {len(rows)} mapping{'s' if len(rows) != 1 else ''}"
    yield from _total_line(f"  {'total':<12}", BOLD, amount(total), mappings, options.width)


def _total_line(
    label: str, style: str, amount: str, meaning: str, width: int
) -> Iterator[Line]:
    indent = len(label) + len(amount)
    parts = textwrap.wrap(meaning, max(width - indent, 20)) or [""]
    yield [Segment(label, style), Segment(amount), Segment(parts[0], DIM)]
    for part in parts[1:]:
        yield [Segment(" " * indent), Segment(part, DIM)]


def _summary(whole: ProcessMap, options: TextOptions) -> Iterator[Line]:
    for title, lines in (
        ("unknown", list(_unknown_lines(whole))),
        ("evidence", [_evidence_line(whole)]),
        ("cost", [format_cost(whole.cost)]),
        ("note", _note_lines(whole.notes)),
    ):
        is_alarm = title == "unknown" and lines != ["nothing"]
        yield from render_labelled(title, lines, options.width, ALARM if is_alarm else BOLD)


def _unknown_lines(whole: ProcessMap) -> Iterator[str]:
    groups = group_unknown(whole)
    size = whole.kernel.page_size_bytes
    for group in groups[:_REASONS_SHOWN]:
        where = f" in {group.mappings} mappings" if group.mappings > 1 else ""
        yield f"{format_size(group.pages * size)}{where}: {escape_text(group.reason)}"
    rest = groups[_REASONS_SHOWN:]
    if rest:
        pages = sum(group.pages for group in rest)
        yield f"{format_size(pages * size)}: {len(rest)} more reasons (--json has them)"
    if not groups:
        yield "nothing"


def _evidence_line(whole: ProcessMap) -> str:
    """Return what was asked, what there was no need to ask, and what could not be."""
    interfaces = {name: can for name, can in whole.evidence.items() if name != _FRAMES}
    groups = {
        "": [name for name in interfaces if name in whole.used],
        "not needed: ": [n for n, can in interfaces.items() if can and n not in whole.used],
        "not available: ": [n for n, can in interfaces.items() if not can],
    }
    parts = [title + ", ".join(names) for title, names in groups.items() if names]
    if not whole.evidence.get(_FRAMES, True):
        parts.append("page frames are hidden")
    return "; ".join(parts)


def _note_lines(notes: tuple[str, ...]) -> list[str]:
    lines = [escape_text(note) for note in notes[:_NOTES_SHOWN]]
    if len(notes) > _NOTES_SHOWN:
        lines.append(f"{len(notes) - _NOTES_SHOWN} more (--json has them)")
    return lines


_PIECE = 1 << 15

# What smaps adds to a reason differs from mapping to mapping.
_SMAPS_NOTE = " (smaps counts "


class ListedRun(NamedTuple):
    """Consecutive pages of one class and, if it is unknown, of one reason."""

    first: int
    pages: int
    page_class: PageClass
    reason: str


class Unknown(NamedTuple):
    """A reason, and how many pages it leaves unknown in how many mappings."""

    reason: str
    pages: int
    mappings: int


def list_runs(mapping: MappingPages) -> Iterator[ListedRun]:
    """Yield the runs of a mapping; the unknown ones cut where the reason changes."""
    reasons = iter(mapping.unknown)
    for first, pages, value in _iterate(mapping.runs):
        if value != PageClass.UNKNOWN:
            yield ListedRun(first, pages, PageClass(value), "")
            continue
        at, stop = first, first + pages
        while at < stop:
            run = next((run for run in reasons if run.first + run.pages > at), None)
            if run is None:
                yield ListedRun(at, stop - at, PageClass.UNKNOWN, "")
                break
            end = min(run.first + run.pages, stop)
            yield ListedRun(at, end - at, PageClass.UNKNOWN, run.reason)
            at = end


def _iterate(runs: Runs) -> Iterator[tuple[int, int, int]]:
    """Iterate without making Python numbers of all runs at once."""
    for at in range(0, len(runs), _PIECE):
        part = slice(at, at + _PIECE)
        yield from Runs(runs.first[part], runs.pages[part], runs.value[part])


def group_unknown(result: ProcessMap) -> list[Unknown]:
    """Return why pages are unknown, the reason with most pages first."""
    pages: defaultdict[str, int] = defaultdict(int)
    mappings: defaultdict[str, set[int]] = defaultdict(set)
    # In a single mapping the note holds; it is the same for all of its pages.
    texts: defaultdict[str, set[str]] = defaultdict(set)
    for mapping in result.mappings:
        for run in mapping.unknown:
            group = run.reason.partition(_SMAPS_NOTE)[0]
            pages[group] += run.pages
            mappings[group].add(mapping.start)
            texts[group].add(run.reason)
    found = [
        Unknown(texts[group].pop() if len(starts) == 1 else group, count, len(starts))
        for (group, count), starts in zip(pages.items(), mappings.values(), strict=True)
    ]
    return sorted(found, key=lambda unknown: -unknown.pages)


def select_classes(result: ProcessMap, wanted: frozenset[PageClass]) -> ProcessMap:
    """
    Return only the mappings that have pages of some classes, and of them only those pages.

    What is unknown in a mapping that stays remains listed; pages unknown in mappings that
    are left out may be of the wanted classes, and a note tells how many they are.
    """
    is_wanted = np.zeros(len(PageClass), bool)
    is_wanted[list(wanted)] = True
    kept = []
    hidden_pages = hidden_mappings = 0
    for mapping in result.mappings:
        runs = select_runs(mapping.runs, is_wanted[mapping.runs.value])
        if len(runs):
            words = _select_words(mapping.words, runs)
            slots = None if mapping.slots is None else restrict_slots(mapping.slots, runs)
            nodes = mapping.node_pages if PageClass.PRESENT in wanted else {}
            kept.append(replace(mapping, runs=runs, words=words, slots=slots, node_pages=nodes))
        elif mapping.unknown:
            hidden_mappings += 1
            hidden_pages += sum(run.pages for run in mapping.unknown)
    notes = result.notes
    if hidden_mappings:
        notes += (f"left out: {hidden_mappings} mappings with {hidden_pages} unknown pages",)
    return replace(result, mappings=tuple(kept), notes=notes)


def _select_words(words: Words | None, runs: Runs) -> Words | None:
    if words is None:
        return None
    index: NDArray[np.intp] = np.searchsorted(runs.first, words.page, side="right") - 1
    inside = (index >= 0) & (words.page < runs.stop[np.maximum(index, 0)])
    return Words(words.page[inside], words.word[inside])


_NAME_LEAST, _STRIP_LEAST, _STRIP_MOST = 14, 10, 64

# From this width on there is room for addresses and for air between the columns.
_WIDE = 110

# Two classes, each a glyph and a size; more go on another line.
OTHER_WIDTH = 11
_MEMFD = "/memfd:"

# Wherever pages are, these are what one looks for: they keep a column of their own.
_ALWAYS = (PageClass.PRESENT, PageClass.SWAPPED, PageClass.UNKNOWN)


def choose_layout(rows: list[Row], width: int) -> Layout:
    """
    Return the layout of a table of these mappings.

    Every class that occurs gets a column; where there is no room, those in the fewest
    mappings share one.
    """
    is_wide = width >= _WIDE
    gap = 2 if is_wide else 1
    address = max((len(f"{row.mapping.start:x}") for row in rows), default=7) if is_wide else 0
    occurs = {
        column: sum(1 for row in rows if row.counts[column.page_class])
        for column in CLASS_COLUMNS
    }
    own = [column for column in CLASS_COLUMNS if occurs[column]]
    shared: list[ClassColumn] = []
    fixed = (address + gap if address else 0) + 4 + gap + 5 + gap + gap
    while True:
        widths = [column_width(column) for column in own]
        if shared:
            widths.append(OTHER_WIDTH)
        room = width - fixed - sum(widths) - gap * len(widths)
        if room >= _NAME_LEAST + _STRIP_LEAST or len(own) <= 1:
            break
        foldable = [column for column in own if column.page_class not in _ALWAYS] or own
        rarest = min(
            foldable,
            key=lambda column: (occurs[column], -INTEREST.index(column.page_class)),
        )
        own.remove(rarest)
        shared.append(rarest)
    name, strip = _split(rows, max(room, _NAME_LEAST))
    return Layout(gap, address, name, strip, tuple(own), tuple(shared), tuple(widths))


def column_width(column: ClassColumn) -> int:
    """Return the width of a column: its title's, and five for a size."""
    return max(5, *(len(part) for part in column.title.split("\n")))


def _split(rows: list[Row], room: int) -> tuple[int, int]:
    longest = max((cell_len(full_name(row.mapping.path)) for row in rows), default=0)
    strip = min(_STRIP_MOST, max(_STRIP_LEAST, room // 2))
    name = max(min(longest, room - strip), min(_NAME_LEAST, room))
    strip = min(_STRIP_MOST, room - name)
    return name, strip if strip >= _STRIP_LEAST // 2 else 0


def full_name(path: str) -> str:
    """Return the path of a mapping as text shows it."""
    return escape_text(path) if path else "(anonymous)"


def short_name(path: str, width: int, ellipsis: str) -> str:
    """
    Return the name of a mapping in a width: the path, else its last part, cut in the middle.

    >>> short_name("/usr/lib/x86_64-linux-gnu/libc.so.6", 12, "~")
    'libc.so.6'
    >>> short_name("/usr/lib/a-long-library-name.so.1.2.3", 16, "~")
    'a-long-l~o.1.2.3'
    """
    name = full_name(path)
    if cell_len(name) <= width:
        return name
    if name.startswith(_MEMFD):
        name = name[1:]
    elif name.startswith("/"):
        name = name.rpartition("/")[2] or name
    if cell_len(name) > width:
        # All shared memory without a name in a file system is "deleted".
        name = name.removesuffix(" (deleted)")
    return cut_middle(name, width, ellipsis)
