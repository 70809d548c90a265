"""
A process map as text: a table of mappings, totals with a legend, and what it rests on.

The strip beside a mapping is drawn from its runs; a report without runs has none.
"""

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from memlens.pages.classes import CLASSES, ClassRow, PageClass
from memlens.pages.decode import bit_names
from memlens.pages.runs import Runs
from memlens.record import Table
from memlens.residency.records import (
    Grouped,
    MappingTotals,
    ProcessMap,
    Scope,
    UnknownRun,
    counts_of,
    cut_runs,
    runs_of,
)
from memlens.units import count_of, escape_text, format_size
from memlens.views.strip import legend, render_strip
from memlens.views.text import (
    ALARM,
    BOLD,
    DIM,
    Head,
    Line,
    Part,
    Segment,
    TableOptions,
    cell_len,
    cut_middle,
    render_foot,
    render_heading,
    render_labelled,
    render_more,
    render_sum,
)

_REASONS_SHOWN = 8
_FRAMES = "pfns_visible"
_PIECE = 1 << 15

# What smaps adds to a reason differs from mapping to mapping.
_SMAPS_NOTE = " (smaps counts "

_NAME_LEAST, _STRIP_LEAST, _STRIP_MOST = 14, 10, 64

# From this width on there is room for addresses and for air between the columns.
_WIDE = 110

# Two classes, each a sign and a size; more go on another line.
_OTHER_WIDTH = 11
_MEMFD = "/memfd:"

# Wherever pages are, these are what one looks for: they keep a column of their own.
_ALWAYS = (PageClass.PRESENT, PageClass.SWAPPED, PageClass.UNKNOWN)


def render(
    report: ProcessMap, options: TableOptions, *, has_runs: bool = False
) -> Iterator[Line]:
    """
    Yield the lines for a person.

    :param has_runs: whether to list the runs of every mapping.
    """
    yield from _header(report, options)
    yield []
    if len(report.mappings):
        yield from _Mappings(report, options, has_runs).render()
        yield from _totals(report, options)
    else:
        yield [Segment("No mapping has pages of these classes.")]
    yield []
    yield from _summary(report, options)


def _header(report: ProcessMap, options: TableOptions) -> Iterator[Line]:
    process, started = report.process, ""
    if process is not None:
        title = f"{escape_text(process.name)}  PID {process.pid}"
        command = escape_text(process.cmdline)
        room = options.width - len(title) - 2
        line = [Segment(title, BOLD)]
        if command and room >= 10:
            line.append(Segment("  " + cut_middle(command, room, options.ellipsis), DIM))
        yield line
        moment = process.started_at.replace("T", " ").partition(".")[0].removesuffix("Z")
        started = f"started {escape_text(moment)} UTC, "
    kernel = escape_text(report.kernel)
    size = format_size(report.page_size_bytes)
    yield [Segment(f"{started}Linux {kernel}, pages of {size}", DIM)]


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
    own: tuple[ClassRow, ...]
    shared: tuple[ClassRow, ...]
    widths: tuple[int, ...]

    @property
    def heads(self) -> list[Head]:
        """Return the headings of all columns."""
        found = [Head("perm", 4), Head("size", 5), Head("mapping", self.name, is_left=True)]
        if self.address:
            found.insert(0, Head("address", self.address))
        titles = [(row.title, row.color) for row in self.own] + [("other", "")]
        found += [
            Head(title, width, style)
            for (title, style), width in zip(titles, self.widths, strict=False)
        ]
        return [*found, Head("where", self.strip, is_left=True)] if self.strip else found


def choose_layout(
    mappings: Table[MappingTotals], width: int, page_size_bytes: int, *, has_strip: bool = True
) -> Layout:
    """
    Return the layout of a table of these mappings.

    Every class that occurs gets a column; where there is no room, those in the fewest
    mappings share one.
    """
    is_wide = width >= _WIDE
    gap = 2 if is_wide else 1
    highest = int(mappings.column("start_page").max()) if len(mappings) else 0
    address = max(len(f"{highest * page_size_bytes:x}"), 7) if is_wide else 0
    occurs = (counts_of(mappings) != 0).sum(axis=0).tolist()
    own = [row for row in CLASSES if occurs[row.page_class]]
    shared: list[ClassRow] = []
    fixed = (address + gap if address else 0) + 4 + gap + 5 + gap + gap
    while True:
        widths = [_column_width(row) for row in own]
        if shared:
            widths.append(_OTHER_WIDTH)
        room = width - fixed - sum(widths) - gap * len(widths)
        if room >= _NAME_LEAST + _STRIP_LEAST or len(own) <= 1:
            break
        foldable = [row for row in own if row.page_class not in _ALWAYS] or own
        rarest = min(foldable, key=lambda row: (occurs[row.page_class], -row.rank))
        own.remove(rarest)
        shared.append(rarest)
    name, strip = _split(set(mappings.column("path").tolist()), max(room, _NAME_LEAST))
    if not has_strip:
        name, strip = room, 0
    return Layout(gap, address, name, strip, tuple(own), tuple(shared), tuple(widths))


def _column_width(row: ClassRow) -> int:
    """Return the width of a column: its title's, and five for a size."""
    return max(5, *(len(part) for part in row.title.split("\n")))


def _split(paths: Iterable[str], room: int) -> tuple[int, int]:
    longest = max((cell_len(_full_name(path)) for path in paths), default=0)
    strip = min(_STRIP_MOST, max(_STRIP_LEAST, room // 2))
    name = max(min(longest, room - strip), min(_NAME_LEAST, room))
    strip = min(_STRIP_MOST, room - name)
    return name, strip if strip >= _STRIP_LEAST // 2 else 0


class _Mappings:
    """The table of mappings, with what was asked for below each."""

    def __init__(self, report: ProcessMap, options: TableOptions, has_runs: bool) -> None:
        self.report = report
        self.options = options
        self.size = report.page_size_bytes
        self.rows = report.mappings.top(options.top)
        self.has_runs = has_runs
        self.grouped = Grouped.of(report.runs)
        self.runs = runs_of(self.grouped.rows)
        self.layout = choose_layout(
            self.rows, options.width, self.size, has_strip="runs" in report.tables
        )
        self.parts = {name: Grouped.of(report.table(name)) for name in ("words", "slots")}
        self.unknown = Grouped.of(report.unknown)
        self.has_details = has_runs or any(len(part.rows) for part in self.parts.values())

    def render(self) -> Iterator[Line]:
        layout = self.layout
        yield from render_heading(layout.heads, layout.gap)
        before = layout.heads[: -1 if layout.strip else None]
        indent = sum(head.width + layout.gap for head in before) - layout.gap
        parts = self.grouped.places(self.rows.column("start_page"))
        counted = counts_of(self.rows).tolist()
        for row, counts, part in zip(self.rows, counted, parts, strict=True):
            runs = cut_runs(self.runs, part)
            other = self._other(counts)
            yield self._line(row, counts, runs, other[0] if other else "")
            yield from ([Segment(f"{line:>{indent}}")] for line in other[1:])
            if self.has_details:
                yield from self._details(row, runs)
        yield from render_more(len(self.report.mappings) - len(self.rows))

    def _line(self, row: MappingTotals, counts: list[int], runs: Runs, other: str) -> Line:
        layout, gap = self.layout, " " * self.layout.gap
        first, stop = scanned_pages(row, self.report.scope)
        size = format_size((stop - first) * self.size)
        address = f"{row.start_page * self.size:{layout.address}x}{gap}"
        left = address if layout.address else ""
        name = short_name(row.path, layout.name, self.options.ellipsis)
        padding = " " * (layout.name - cell_len(name))
        line = [
            Segment(f"{left}{escape_text(row.permissions):4}{gap}{size:>5}{gap}"),
            Segment(name + padding, "" if row.path else DIM),
        ]
        for one, width in zip(layout.own, layout.widths, strict=False):
            line.append(Segment(f"{gap}{self._pages(counts, one):>{width}}", one.color))
        if layout.shared:
            line.append(Segment(f"{gap}{other:>{_OTHER_WIDTH}}"))
        if layout.strip:
            line.append(Segment(gap))
            line += render_strip(runs, first, stop, layout.strip, self.options)
        return line

    def _pages(self, counts: list[int], row: ClassRow) -> str:
        pages = counts[row.page_class]
        return format_size(pages * self.size) if pages else ""

    def _other(self, counts: list[int]) -> list[str]:
        """Return the classes without a column of their own, as many on a line as fit."""
        shared = [row for row in self.layout.shared if counts[row.page_class]]
        parts = [row.sign + self._pages(counts, row) for row in shared]
        return textwrap.wrap(" ".join(parts), _OTHER_WIDTH) if parts else []

    def _details(self, row: MappingTotals, runs: Runs) -> Iterator[Line]:
        """Yield the runs, the words and the slots of a mapping, if they were asked for."""
        key = row.start_page
        if self.has_runs:
            unknown = self.unknown.of_mapping(key)
            for first, pages, kind, reason in list_runs(runs, unknown):
                where = self._range(key + first, pages)
                unit = "page " if pages == 1 else "pages"
                amount = f"{format_size(pages * self.size):>6}{pages:>10} {unit}  "
                line = [Segment(f"{where:36}{amount}", DIM)]
                line.append(Segment(kind.label, CLASSES[kind].color))
                yield [*line, Segment(f": {escape_text(reason)}")] if reason else line
        for word in self.parts["words"].of_mapping(key):
            bits = word.word % (1 << 64)
            names = ", ".join(bit_names(bits))
            where = f"  {(key + word.page) * self.size:x}"
            yield [Segment(f"{where:19} {bits:016x}  {names}", DIM)]
        for slots in self.parts["slots"].of_mapping(key):
            last = slots.slot + slots.pages - 1
            where = self._range(key + slots.first_page, slots.pages)
            place = f"swap area {slots.area}, slots {slots.slot} to {last}"
            yield [Segment(f"{where:36}{place}", DIM)]

    def _range(self, page: int, pages: int) -> str:
        return f"  {page * self.size:x}-{(page + pages) * self.size:x}"


def scanned_pages(row: MappingTotals, scope: Scope | None) -> tuple[int, int]:
    """Return the half-open range of a mapping's pages that was asked for."""
    if scope is None:
        return 0, row.stop_page - row.start_page
    first = max(scope.start_page, row.start_page)
    return first - row.start_page, min(scope.stop_page, row.stop_page) - row.start_page


def _totals(report: ProcessMap, options: TableOptions) -> Iterator[Line]:
    """Yield the total of every class, which is the legend as well."""
    counts = report.counts().tolist()
    mappings = f"in {count_of(len(report.mappings), 'mapping', 'mappings')}"
    parts = [
        *legend(counts, options),
        *(
            Part(f"  {f'node {node}':<12}", pages, "present, by NUMA node", DIM)
            for node, pages in report.node_pages().items()
        ),
        Part(f"  {'total':<12}", sum(counts), mappings, BOLD),
    ]
    yield []
    yield from render_sum(parts, sum(counts), report, options)


def _summary(report: ProcessMap, options: TableOptions) -> Iterator[Line]:
    unknown = list(_unknown_lines(report))
    style = BOLD if unknown == ["nothing"] else ALARM
    yield from render_labelled("unknown", unknown, options.width, style)
    yield from render_labelled("evidence", [_evidence_line(report)], options.width)
    yield from render_foot(report, options)


def _unknown_lines(report: ProcessMap) -> Iterator[str]:
    groups = group_unknown(report.unknown)
    size = report.page_size_bytes
    for group in groups[:_REASONS_SHOWN]:
        where = f" in {group.mappings} mappings" if group.mappings > 1 else ""
        yield f"{format_size(group.pages * size)}{where}: {escape_text(group.reason)}"
    rest = groups[_REASONS_SHOWN:]
    if rest:
        pages = sum(group.pages for group in rest)
        yield f"{format_size(pages * size)}: {len(rest)} more reasons (--json has them)"
    if not groups:
        yield "nothing"


def _evidence_line(report: ProcessMap) -> str:
    """Return what was asked, what there was no need to ask, and what could not be."""
    rows = [row for row in report.evidence if row.name != _FRAMES]
    groups = {
        "": [row.name for row in rows if row.is_used],
        "not needed: ": [row.name for row in rows if row.is_available and not row.is_used],
        "not available: ": [row.name for row in rows if not (row.is_available or row.is_used)],
    }
    parts = [title + ", ".join(names) for title, names in groups.items() if names]
    if any(row.name == _FRAMES and not row.is_available for row in report.evidence):
        parts.append("page frames are hidden")
    return escape_text("; ".join(parts))


class ListedRun(NamedTuple):
    """Consecutive pages of one class and, if it is unknown, of one reason."""

    first: int
    pages: int
    page_class: PageClass
    reason: str


def list_runs(runs: Runs, unknown: Iterable[UnknownRun]) -> Iterator[ListedRun]:
    """Yield the runs of a mapping; the unknown ones cut where the reason changes."""
    reasons = iter(unknown)
    for first, pages, value in _iterate(runs):
        if value != PageClass.UNKNOWN:
            yield ListedRun(first, pages, PageClass(value), "")
            continue
        at, stop = first, first + pages
        while at < stop:
            run = next((run for run in reasons if run.first_page + run.pages > at), None)
            if run is None:
                yield ListedRun(at, stop - at, PageClass.UNKNOWN, "")
                break
            end = min(run.first_page + run.pages, stop)
            yield ListedRun(at, end - at, PageClass.UNKNOWN, run.reason)
            at = end


def _iterate(runs: Runs) -> Iterator[tuple[int, int, int]]:
    """Iterate without making Python numbers of all runs at once."""
    for at in range(0, len(runs), _PIECE):
        part = slice(at, at + _PIECE)
        yield from Runs(runs.first[part], runs.pages[part], runs.value[part])


class Unknown(NamedTuple):
    """A reason, and how many pages it leaves unknown in how many mappings."""

    reason: str
    pages: int
    mappings: int


def group_unknown(unknown: Table[UnknownRun]) -> list[Unknown]:
    """Return why pages are unknown, the reason with most pages first."""
    pages: defaultdict[str, int] = defaultdict(int)
    mappings: defaultdict[str, set[int]] = defaultdict(set)
    # In a single mapping the note holds; it is the same for all of its pages.
    texts: defaultdict[str, set[str]] = defaultdict(set)
    for run in unknown:
        group = run.reason.partition(_SMAPS_NOTE)[0]
        pages[group] += run.pages
        mappings[group].add(run.start_page)
        texts[group].add(run.reason)
    found = [
        Unknown(texts[group].pop() if len(starts) == 1 else group, count, len(starts))
        for (group, count), starts in zip(pages.items(), mappings.values(), strict=True)
    ]
    return sorted(found, key=lambda unknown: -unknown.pages)


def _full_name(path: str) -> str:
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
    name = _full_name(path)
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
