"""What ``memlens demo`` shows: how memory was made, and what was said of it."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from memlens.pages.classes import CLASSES
from memlens.selftest.records import Answer, DemoResult, DemoTotal, Finding
from memlens.units import escape_text
from memlens.views.text import (
    ALARM,
    BOLD,
    DIM,
    Line,
    Segment,
    TableOptions,
    render_foot,
    render_more,
    strip_line,
    wrap,
)

_WIDTH, _LEAST_WIDTH = 80, 40
_HOW, _PAGES, _NAIVE, _FOUND = 40, 6, 14, 14
_STYLES = {row.page_class.label: row.color for row in CLASSES}
_WRONG_SHOWN = 5
_INDENT = " " * 6


def render(report: DemoResult, options: TableOptions) -> Iterator[Line]:
    """Yield the lines for a person; more than 80 cells are not used."""
    options = options._replace(width=min(max(options.width, _LEAST_WIDTH), _WIDTH))
    width = options.width
    total = report.total or DemoTotal(0, 0, 0, 0, 0, 0)
    title = f"{total.kinds} kinds of memory, {total.pages} pages, each made on purpose"
    yield [Segment(title, BOLD)]
    yield from wrap(f"Linux {report.kernel}. {_swap_text(report)}", width, "", DIM)
    yield []
    heads = f"{'how it was made':{_HOW}}{'pages':>{_PAGES}}  {'pagemap says':{_NAIVE + 2}}"
    yield [Segment(f"{heads}memlens says", BOLD)]
    differs, agrees = ("≠", "✓") if options.is_unicode else ("!=", "ok")
    legend = f"{differs} pagemap alone misleads; {agrees} memlens agrees with how it was made"
    yield from wrap(legend, width, "", DIM)
    answers = _by_number(report.answers)
    findings = report.specimens.top(options.top)
    for family, alike in groupby(findings, lambda finding: finding.family):
        yield []
        yield [Segment(escape_text(family), BOLD)]
        for finding in alike:
            how = "  " + escape_text(finding.how)
            for answer in answers.get(finding.number, []):
                yield _answer(how, answer, bool(finding.wrong_pages), options)
                how = ""
            yield from _faults(finding, report, width)
    yield from render_more(len(report.specimens) - len(findings))
    yield []
    yield from _left_out(report, width)
    yield from _summary(report, total, width)
    yield []
    yield from render_foot(report, options)


def _by_number(answers: Iterable[Answer]) -> dict[int, list[Answer]]:
    found: dict[int, list[Answer]] = {}
    for answer in answers:
        found.setdefault(answer.number, []).append(answer)
    return found


def _swap_text(report: DemoResult) -> str:
    swap = report.swap
    if swap is None or swap.kind == "none":
        return f"Without swap: {swap.reason if swap is not None else 'not known why'}."
    if swap.is_made and swap.leftovers:
        return f"Swap on {swap.paths}, made for this."
    if swap.is_made:
        return f"Swap on {swap.paths}, made for this and taken away again."
    return f"Swap on {swap.paths}, which was there."


def _faults(finding: Finding, report: DemoResult, width: int) -> Iterator[Line]:
    if finding.unknown_pages:
        for row in report.reasons:
            if row.number == finding.number:
                yield from wrap(f"cannot know: {row.reason}", width, _INDENT, "magenta")
    if finding.wrong_pages:
        wrong = [row for row in report.disagreements if row.number == finding.number]
        for one in wrong[:_WRONG_SHOWN]:
            text = f"WRONG: page {one.page} is {one.expected}, but memlens says {one.found}"
            yield from wrap(text, width, _INDENT, ALARM)
        if len(wrong) > _WRONG_SHOWN:
            yield [Segment(f"{_INDENT}and {len(wrong) - _WRONG_SHOWN} pages more", ALARM)]


def _answer(how: str, answer: Answer, is_wrong: bool, options: TableOptions) -> Line:
    differs, agrees = ("≠ ", "✓") if options.is_unicode else ("!=", "ok")
    is_unknown = answer.found == "unknown"
    found = "cannot know" if is_unknown else answer.found
    return strip_line(
        [
            Segment(f"{how:{_HOW}}{answer.pages:>{_PAGES}}  "),
            Segment(f"{answer.naive:{_NAIVE}}", "red" if answer.is_misleading else DIM),
            Segment(f"{differs if answer.is_misleading else '':2}", "red"),
            Segment(f"{found:{_FOUND}}", f"bold {_STYLES.get(answer.found, '')}".strip()),
            Segment("" if is_unknown or is_wrong else agrees, "green"),
        ]
    )


def _left_out(report: DemoResult, width: int) -> Iterator[Line]:
    if not len(report.left_out):
        return
    yield [Segment("Left out", BOLD)]
    by_reason: dict[str, list[str]] = {}
    for row in report.left_out:
        by_reason.setdefault(row.reason, []).append(f"{row.family}: {row.how}")
    for reason, kinds in by_reason.items():
        yield from wrap(reason, width, "  ", "yellow")
        yield from wrap("; ".join(kinds), width, "    ", DIM)
    yield []


def _summary(report: DemoResult, total: DemoTotal, width: int) -> Iterator[Line]:
    if total.pages:
        yield from _verdict(total, width)
    if report.swap is not None and report.swap.leftovers:
        yield from wrap(f"LEFT BEHIND: {report.swap.leftovers}", width, "", ALARM)


def _verdict(total: DemoTotal, width: int) -> Iterator[Line]:
    text = (
        f"pagemap alone misleads on {total.misled_pages} of {total.pages} pages, "
        f"in {total.misled_kinds} of {total.kinds} kinds of memory."
    )
    yield from wrap(text, width, "", "red" if total.misled_pages else "")
    known = total.pages - total.unknown_pages
    if total.wrong_pages:
        text = f"memlens is WRONG on {total.wrong_pages} of {known} pages: please report this."
        yield from wrap(text, width, "", ALARM)
    else:
        text = f"memlens agrees with how the memory was made on all {known} pages"
        rest = (
            f" that it says it can know; {total.unknown_pages} it says it cannot."
            if total.unknown_pages
            else "."
        )
        yield from wrap(text + rest, width, "", "bold green")
