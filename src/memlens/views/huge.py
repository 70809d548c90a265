"""What ``memlens huge`` shows; transparent huge pages under the names of thpmaps."""

from collections.abc import Iterator, Sequence

from memlens.physical.records import HugeCounter, HugeMapping, HugeReport, HugeTotal
from memlens.units import ADDRESS_LIMIT, count_of, escape_text, format_size
from memlens.views.text import (
    BOLD,
    Line,
    Segment,
    TableOptions,
    cut_middle,
    render_foot,
    render_more,
)

_Counters = dict[tuple[int | None, int | None], list[HugeCounter]]


def render(
    report: HugeReport, options: TableOptions, has_mappings: bool = True
) -> Iterator[Line]:
    """
    Yield the lines for a person.

    :param has_mappings: whether to show processes and mappings, not only the sum.
    """
    counters: _Counters = {}
    for row in report.counters:
        counters.setdefault((row.pid, row.start), []).append(row)
    if has_mappings:
        yield from _processes(report, counters, options)
    total = report.total
    if total is not None:
        yield [Segment(f"Total of {count_of(total.processes, 'process', 'processes')}", BOLD)]
        lines = list(_figures(total, counters.get((None, None), ()), "  ", report))
        yield from lines or [[Segment("  no huge, merged or zero pages")]]
        yield []
    yield from render_foot(report, options)


def _processes(
    report: HugeReport, counters: _Counters, options: TableOptions
) -> Iterator[Line]:
    mappings: dict[int, list[HugeMapping]] = {}
    for mapping in report.mappings:
        mappings.setdefault(mapping.pid, []).append(mapping)
    shown = report.processes.top(options.top)
    for process in shown:
        yield [Segment(f"{escape_text(process.name)}  PID {process.pid}", BOLD)]
        for mapping in mappings.get(process.pid, ()):
            yield _mapping_head(mapping, options)
            rows = counters.get((process.pid, mapping.start), ())
            yield from _figures(mapping, rows, "    ", report)
        yield []
    if len(report.processes) > len(shown):
        yield from render_more(len(report.processes) - len(shown))
        yield []


def _mapping_head(mapping: HugeMapping, options: TableOptions) -> Line:
    start, stop = (number & ADDRESS_LIMIT - 1 for number in (mapping.start, mapping.stop))
    head = f"  {start:x}-{stop:x} {mapping.permissions} "
    path = cut_middle(escape_text(mapping.path), options.width - len(head), options.ellipsis)
    return [Segment(f"{head}{path}".rstrip())]


def _figures(
    found: HugeMapping | HugeTotal,
    counters: Sequence[HugeCounter],
    indent: str,
    report: HugeReport,
) -> Iterator[Line]:
    """Yield what there is of a mapping or of all, nothing for what is 0."""
    wholes = {"anon": found.anonymous_pages, "file": found.file_pages}
    for row in counters:
        whole = wholes.get(row.kind)
        share = f"{row.pages / whole:6.1%} of {row.kind}" if whole else ""
        yield from _figure(row.name, row.pages, indent, report, share)
    yield from _figure("merged by KSM", found.ksm_pages, indent, report)
    yield from _figure("zero page", found.zero_pages, indent, report)
    yield from _figure("huge zero page", found.huge_zero_pages, indent, report)


def _figure(
    name: str, pages: int | None, indent: str, report: HugeReport, share: str = ""
) -> Iterator[Line]:
    if pages:
        size = format_size(pages * report.page_size_bytes)
        line = f"{indent}{name:<32} {pages:>10} pages {size:>6} {share}"
        yield [Segment(line.rstrip())]
