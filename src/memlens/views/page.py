"""One page explained: what was asked, what the kernel answered, and the verdict."""

from collections.abc import Iterator

from memlens.pages.classes import CLASS_OF, CLASSES, PageClass
from memlens.residency.records import (
    PageExplanation,
    PageHolder,
    PageVerdict,
    Step,
    folio_text,
)
from memlens.units import ADDRESS_LIMIT, count_of, escape_text, format_size
from memlens.views.text import (
    BOLD,
    DIM,
    Line,
    Segment,
    TableOptions,
    paragraph,
    render_foot,
    render_more,
)

_LEAST_WIDTH = 40
_WIDEST = 120
_HOLDERS_SHOWN = 20
_LABEL = 11


def render(report: PageExplanation, options: TableOptions) -> Iterator[Line]:
    """Yield the lines for a person; text that fills more than 120 cells is hard to read."""
    width = min(max(options.width, _LEAST_WIDTH), _WIDEST)
    options = options._replace(width=width)
    process, verdict = report.process, report.verdict
    if process is not None and verdict is not None:
        address = verdict.page * report.page_size_bytes
        name = escape_text(process.name)
        yield [Segment(f"Page {address:#x} of {name}, PID {process.pid}", BOLD)]
    for number, step in enumerate(report.steps, 1):
        yield []
        yield from _step(number, step, options)
    if verdict is not None:
        yield []
        yield from _verdict(verdict, width)
        yield []
        yield from _facts(report, verdict, width)
        yield from _holders(report, verdict, options)
    yield []
    yield from render_foot(report, options)


def _step(number: int, step: Step, options: TableOptions) -> Iterator[Line]:
    bar, arrow = ("│ ", "→ ") if options.is_unicode else ("| ", "> ")
    width = options.width
    yield from paragraph([Segment(f"{number:2}  ")], step.asked, width, "bold cyan")
    yield from paragraph([Segment(f"    {bar}")], step.answer, width, below=f"    {bar}")
    yield from paragraph([Segment(f"    {arrow}")], step.meaning, width, DIM)


def _verdict(verdict: PageVerdict, width: int) -> Iterator[Line]:
    row = CLASSES[CLASS_OF.get(verdict.page_class, PageClass.UNKNOWN)]
    label = Segment(f"{escape_text(verdict.page_class)}: ", f"bold {row.color}")
    text = verdict.reason or verdict.meaning
    yield from paragraph([label], text, width, below=" " * 4)


def _facts(report: PageExplanation, verdict: PageVerdict, width: int) -> Iterator[Line]:
    page_size = report.page_size_bytes
    start, stop = verdict.start_page * page_size, verdict.stop_page * page_size
    size = format_size(stop - start)
    yield from _fact("mapping", f"{start:x}-{stop:x} {verdict.permissions}, {size}", width)
    found = report.object
    if found is None:
        yield from _fact("object", "none: private anonymous memory", width)
    else:
        inode, offset = found.inode % ADDRESS_LIMIT, found.offset_bytes % ADDRESS_LIMIT
        where = f"device {found.device}, inode {inode}, offset {offset:#x}"
        yield from _fact("object", f"{found.path or '(no name)'}: {found.kind}, {where}", width)
    if verdict.pfn is not None:
        yield from _fact("frame", f"PFN {verdict.pfn:#x}", width)
    if report.swap is not None:
        swap = report.swap
        device = f" ({swap.path})" if swap.path else ""
        where = f"swap area {swap.area}{device}, slot {swap.slot}"
        if not device:
            where += ": which device this area is, the kernel does not say"
        yield from _fact("on swap", where, width)
    if report.folio is not None:
        yield from _fact("folio", folio_text(report.folio), width)
    if verdict.attributes:
        yield from _fact("also", verdict.attributes, width)


def _fact(label: str, text: str, width: int) -> Iterator[Line]:
    yield from paragraph([Segment(f"{label:{_LABEL}}", BOLD)], text, width)


def _holders(
    report: PageExplanation, verdict: PageVerdict, options: TableOptions
) -> Iterator[Line]:
    missed = verdict.missed_holders
    if report.object is None or not (len(report.holders) or missed):
        return
    yield []
    yield [Segment("Who maps this page of the object", BOLD)]
    rows = list(report.holders.top(options.top or _HOLDERS_SHOWN))
    size = report.page_size_bytes
    if rows:
        wide = max(7, *(len(f"{row.page * size:x}") for row in rows))
        yield [Segment(f"{'PID':>8}  {'name':16}  {'address':{wide}}  perm  there", DIM)]
        for row in rows:
            text = f"{row.pid:8}  {escape_text(row.name):16}  {row.page * size:{wide}x}  "
            line = [Segment(f"{text}{escape_text(row.permissions)}  "), _holder_state(row)]
            is_this = report.process is not None and row.pid == report.process.pid
            if is_this and row.page == verdict.page:
                line.append(Segment(", this one", DIM))
            yield line
    yield from render_more(len(report.holders) - len(rows))
    if missed:
        what = count_of(missed, "process", "processes")
        yield [Segment(f"{what} could not be looked at", "yellow")]


def _holder_state(row: PageHolder) -> Segment:
    if row.is_private_copy:
        return Segment("a private copy", "yellow")
    if row.is_present is None:
        return Segment("not known", "magenta")
    return Segment("mapped", "green") if row.is_present else Segment("not mapped now", DIM)
