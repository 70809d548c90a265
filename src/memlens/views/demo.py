"""The demo as a table: what pagemap alone says of each kind of memory, and what is true."""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.text import Text

from memlens.account.demo import Answer, DemoResult, Finding
from memlens.pages.classes import CLASSES
from memlens.units import escape_text

SCHEMA = "memlens.demo/1"

_WIDTH = 80
_HOW, _PAGES, _NAIVE, _FOUND = 40, 6, 14, 14
_STYLES = {row.page_class.label: row.color for row in CLASSES}
_WRONG_SHOWN = 5


def render_text(
    result: DemoResult, width: int = _WIDTH, is_unicode: bool = True
) -> Iterator[Text]:
    """
    Yield the lines for a person.

    :param width: cells in a line; more than 80 are not used.
    :param is_unicode: whether characters beyond ASCII can be printed.
    """
    width = min(max(width, 40), _WIDTH)
    kinds = len(result.findings)
    yield Text(f"{kinds} kinds of memory, {result.pages} pages, each made on purpose", "bold")
    about = f"Linux {escape_text(result.kernel.release)}. {_swap_text(result)}"
    yield from _wrap(about, width, "", "dim")
    yield Text("")
    yield _row("how it was made", "pages", "pagemap says", "", "memlens says", "bold")
    yield from _wrap(_legend(is_unicode), width, "", "dim")
    for family, findings in groupby(result.findings, lambda finding: finding.family):
        yield Text("")
        yield Text(family, "bold")
        for finding in findings:
            yield from _finding(finding, width, is_unicode)
    yield Text("")
    yield from _left_out(result, width)
    yield from _summary(result, width)


def _legend(is_unicode: bool) -> str:
    differs, agrees = ("≠", "✓") if is_unicode else ("!=", "ok")
    return f"{differs} pagemap alone misleads; {agrees} memlens agrees with how it was made"


def _swap_text(result: DemoResult) -> str:
    swap = result.swap
    if swap.kind == "none":
        return f"Without swap: {escape_text(swap.reason)}."
    paths = escape_text(", ".join(swap.paths))
    if swap.is_made and result.leftovers:
        return f"Swap on {paths}, made for this."
    if swap.is_made:
        return f"Swap on {paths}, made for this and taken away again."
    return f"Swap on {paths}, which was there."


def _row(how: str, pages: str, naive: str, mark: str, found: str, style: str = "") -> Text:
    text = f"{how:{_HOW}}{pages:>{_PAGES}}  {naive:{_NAIVE}}{mark:2}{found:{_FOUND}}"
    return Text(text.rstrip(), style)


def _finding(finding: Finding, width: int, is_unicode: bool) -> Iterator[Text]:
    how = "  " + finding.how
    for answer in finding.answers:
        yield _answer(how, answer, bool(finding.disagreements), is_unicode)
        how = ""
    if finding.unknown_pages:
        for reason in finding.unknown:
            yield from _wrap(f"cannot know: {escape_text(reason)}", width, " " * 6, "magenta")
    for wrong in finding.disagreements[:_WRONG_SHOWN]:
        expected = " or ".join(wrong.expected)
        text = f"WRONG: page {wrong.page} is {expected}, but memlens says {wrong.found}"
        yield from _wrap(text, width, " " * 6, "bold red")
    rest = len(finding.disagreements) - _WRONG_SHOWN
    if rest > 0:
        yield Text(f"      and {rest} pages more", "bold red")


def _answer(how: str, answer: Answer, is_wrong: bool, is_unicode: bool) -> Text:
    differs, agrees = ("≠ ", "✓") if is_unicode else ("!=", "ok")
    is_unknown = answer.found == "unknown"
    line = Text(f"{how:{_HOW}}{answer.pages:>{_PAGES}}  ")
    line.append(f"{answer.naive:{_NAIVE}}", "red" if answer.is_misleading else "dim")
    line.append(f"{differs if answer.is_misleading else '':2}", "red")
    found = "cannot know" if is_unknown else answer.found
    line.append(f"{found:{_FOUND}}", f"bold {_STYLES[answer.found]}")
    if not is_unknown and not is_wrong:
        line.append(agrees, "green")
    line.rstrip()
    return line


def _left_out(result: DemoResult, width: int) -> Iterator[Text]:
    if not result.left_out:
        return
    yield Text("Left out", "bold")
    by_reason: dict[str, list[str]] = {}
    for row in result.left_out:
        by_reason.setdefault(row.why, []).append(f"{row.family}: {row.how}")
    for why, kinds in by_reason.items():
        yield from _wrap(escape_text(why), width, "  ", "yellow")
        yield from _wrap("; ".join(kinds), width, "    ", "dim")
    yield Text("")


def _summary(result: DemoResult, width: int) -> Iterator[Text]:
    misled = sum(1 for finding in result.findings if finding.misled_pages)
    kinds = len(result.findings)
    text = (
        f"pagemap alone misleads on {result.misled_pages} of {result.pages} pages, "
        f"in {misled} of {kinds} kinds of memory."
    )
    yield from _wrap(text, width, "", "red" if misled else "")
    known = result.pages - result.unknown_pages
    if result.disagreeing_pages:
        text = (
            f"memlens is WRONG on {result.disagreeing_pages} of {known} pages: "
            "please report this."
        )
        yield from _wrap(text, width, "", "bold red")
    else:
        text = f"memlens agrees with how the memory was made on all {known} pages"
        yield from _wrap(text + _rest(result), width, "", "bold green")
    if result.leftovers:
        yield from _wrap(f"LEFT BEHIND: {escape_text(result.leftovers)}", width, "", "bold red")
    yield Text(f"Took {result.wall_s:.1f} s.", "dim")


def _rest(result: DemoResult) -> str:
    if not result.unknown_pages:
        return "."
    return f" that it says it can know; {result.unknown_pages} it says it cannot."


def _wrap(text: str, width: int, indent: str, style: str) -> Iterator[Text]:
    for line in textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    ):
        yield Text(line, style)


def render_json(result: DemoResult) -> str:
    """Return the result as one JSON object of schema ``memlens.demo/1``."""
    found: dict[str, Any] = asdict(result)
    totals = {
        "pages": result.pages,
        "misled_pages": result.misled_pages,
        "unknown_pages": result.unknown_pages,
        "disagreeing_pages": result.disagreeing_pages,
    }
    return json.dumps({"schema": SCHEMA} | found | {"totals": totals})
