"""What ``memlens doctor`` shows: the interfaces, and what follows from them."""

from collections.abc import Iterator
from itertools import groupby

from memlens.selftest.records import Features, Gap, Probe
from memlens.units import format_size
from memlens.views.text import ALARM, BOLD, DIM, Line, Segment, TableOptions, render_foot, wrap

_LEAST_WIDTH = 40
_INDENT = " " * 10

# Marks are words, so that they are told apart without colour.
_MARKS = {"ok": "bold green", "missing": ALARM, "off": "bold yellow"}
_LEVELS = {"everything": "bold green", "part": "bold yellow", "nothing": ALARM}
_GROUPS = {
    "own": "Processes of this user",
    "other": "Processes of other users",
    "frames": "Page frames",
    "tracking": "Which pages are used or written",
    "swap": "Swap",
}

# Those that decide what a reader of memory sees; a full list helps nobody.
_TELLING = (
    "CAP_SYS_ADMIN",
    "CAP_SYS_PTRACE",
    "CAP_DAC_READ_SEARCH",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_PERFMON",
    "CAP_BPF",
)


def render(report: Features, options: TableOptions) -> Iterator[Line]:
    """Yield the lines for a person."""
    options = options._replace(width=max(options.width, _LEAST_WIDTH))
    width = options.width
    yield from wrap(_header(report), width)
    probes = list(report.interfaces.top(options.top))
    swap_lines = list(_swap_lines(report))
    for group, title in _GROUPS.items():
        found = [probe for probe in probes if probe.group == group]
        if found or (group == "swap" and swap_lines):
            yield []
            yield [Segment(title, BOLD)]
        for probe in found:
            yield from _interface(probe, width)
    for line in swap_lines:
        yield from wrap(line, width, _INDENT)
    if len(report.outlooks):
        yield []
        yield [Segment("What memlens can say", BOLD)]
    gaps = list(report.gaps)
    for outlook in report.outlooks:
        yield [Segment(f"  {outlook.title}: "), Segment(outlook.level, _LEVELS[outlook.level])]
        yield from _left_open([gap for gap in gaps if gap.scope == outlook.scope], width)
    yield []
    yield from render_foot(report, options)


def _header(report: Features) -> str:
    has = set(report.capabilities.column("name"))
    telling = ", ".join(name for name in _TELLING if name in has)
    size = format_size(report.page_size_bytes)
    user = f", user {report.reader.uid}" if report.reader is not None else ""
    able = telling or "no capability that counts here"
    return f"Linux {report.kernel}, pages of {size}{user}, {able}"


def _interface(probe: Probe, width: int) -> Iterator[Line]:
    mark = "ok" if probe.is_available else "off" if probe.is_switched_off else "missing"
    yield [
        Segment("  "),
        Segment(f"{mark:8}", _MARKS[mark]),
        Segment(f"{probe.name:17}", BOLD),
        Segment(probe.title),
    ]
    needs = f"; needs {probe.needs}" if probe.needs else ""
    style = DIM if probe.is_available else ""
    yield from wrap((probe.proof or probe.reason) + needs, width, _INDENT, style)


def _left_open(gaps: list[Gap], width: int) -> Iterator[Line]:
    for needs, alike in groupby(gaps, key=lambda gap: gap.needs):
        text = "; ".join(gap.text for gap in alike)
        tail = f" (needs {needs})" if needs else ""
        yield from wrap(f"left open: {text}{tail}", width, _INDENT)


def _swap_lines(report: Features) -> Iterator[str]:
    size = report.page_size_bytes
    for area in report.areas:
        first, last = area.first_number, area.last_number
        number = f"{first}" if first == last else f"{first} or, after a swapoff, higher"
        yield (
            f"{area.path}: {area.kind}, {format_size(area.used_pages * size)} of "
            f"{format_size(area.size_pages * size)} used, priority {area.priority}, "
            f"area number {number}"
        )
    for zram in report.zram:
        yield (
            f"{zram.device} holds {format_size(zram.stored_bytes)} "
            f"in {format_size(zram.used_bytes)} of RAM"
        )
    zswap = report.zswap
    if zswap is not None:
        state = f"on ({zswap.compressor})" if zswap.is_enabled else "off"
        if zswap.stored_bytes and zswap.pool_bytes is not None:
            stored, pool = format_size(zswap.stored_bytes), format_size(zswap.pool_bytes)
            state += f", and holds {stored} of swapped pages in {pool} of RAM"
        yield f"zswap is {state}"
