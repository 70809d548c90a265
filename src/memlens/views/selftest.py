"""What `memlens doctor` shows: the interfaces, and what follows, as text and as JSON."""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.text import Text

from memlens.pages.classes import CLASSES
from memlens.selftest.records import Abilities, Answer, DemoResult, Finding, Outlook
from memlens.units import escape_text, format_size

DOCTOR_SCHEMA = "memlens.doctor/1"
_LEAST_WIDTH = 40
_INDENT = " " * 10

# Marks are words, so that they are told apart without colour.
_MARKS = {"ok": "bold green", "missing": "bold red", "off": "bold yellow"}
_LEVELS = {"everything": "bold green", "part": "bold yellow", "nothing": "bold red"}
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


def render_doctor(abilities: Abilities, width: int) -> Iterator[Text]:
    """
    Yield the lines for a person.

    :param width: cells in a line.
    """
    width = max(width, _LEAST_WIDTH)
    yield from _wrap(_header(abilities), width)
    for note in abilities.features.notes:
        yield from _wrap(f"note: {note}", width)
    for group, title in _GROUPS.items():
        yield Text("")
        yield Text(title, "bold")
        yield from _interfaces(abilities, group, width)
    for line in _swap_lines(abilities):
        yield from _wrap(line, width, _INDENT)
    yield Text("")
    yield Text("What memlens can say", "bold")
    for outlook in abilities.outlooks:
        yield from _outlook(outlook, width)


def render_doctor_json(abilities: Abilities) -> str:
    """Return everything as one JSON object, on one line."""
    return json.dumps(_document(abilities))


def _header(abilities: Abilities) -> str:
    features = abilities.features
    has = features.reader.capabilities
    telling = [name for name in _TELLING if name in has]
    return (
        f"Linux {features.kernel_release}, pages of {format_size(features.page_size_bytes)}, "
        f"user {features.reader.uid}, {', '.join(telling) or 'no capability that counts here'}"
    )


def _interfaces(abilities: Abilities, group: str, width: int) -> Iterator[Text]:
    for probe in abilities.features.probes:
        if probe.group != group:
            continue
        mark = _mark(probe.is_available, probe.is_switched_off)
        yield Text.assemble(
            "  ", (f"{mark:8}", _MARKS[mark]), (f"{probe.name:17}", "bold"), probe.title
        )
        needs = f"; needs {probe.needs}" if probe.needs else ""
        style = "dim" if probe.is_available else ""
        yield from _wrap((probe.proof or probe.reason) + needs, width, _INDENT, style)


def _outlook(outlook: Outlook, width: int) -> Iterator[Text]:
    yield Text.assemble("  ", f"{outlook.title}: ", (outlook.level, _LEVELS[outlook.level]))
    for needs, gaps in groupby(outlook.gaps, key=lambda gap: gap.needs):
        text = "; ".join(gap.text for gap in gaps)
        tail = f" (needs {needs})" if needs else ""
        yield from _wrap(f"left open: {text}{tail}", width, _INDENT)


def _wrap(text: str, width: int, indent: str = "", style: str = "") -> Iterator[Text]:
    """Yield the lines of a paragraph; words that are too long are cut, not lost."""
    for line in textwrap.wrap(
        escape_text(text), width, initial_indent=indent, subsequent_indent=indent
    ):
        yield Text(line, style)


def _mark(is_available: bool, is_switched_off: bool) -> str:
    return "ok" if is_available else "off" if is_switched_off else "missing"


def _swap_lines(abilities: Abilities) -> Iterator[str]:
    swap = abilities.features.swap
    size = abilities.features.page_size_bytes
    for area, (first, last) in zip(swap.areas, abilities.area_numbers, strict=True):
        number = f"{first}" if first == last else f"{first} or, after a swapoff, higher"
        yield (
            f"{area.path}: {area.kind}, {format_size(area.used_pages * size)} of "
            f"{format_size(area.size_pages * size)} used, priority {area.priority}, "
            f"area number {number}"
        )
    for zram in swap.zram:
        yield (
            f"{zram.device} holds {format_size(zram.stored_bytes)} "
            f"in {format_size(zram.used_bytes)} of RAM"
        )
    if swap.zswap is not None:
        yield f"zswap is {_zswap_state(abilities)}"
    yield from swap.notes


def _zswap_state(abilities: Abilities) -> str:
    zswap = abilities.features.swap.zswap
    if zswap is None:
        return "not there"
    state = f"on ({zswap.compressor})" if zswap.is_enabled else "off"
    if zswap.stored_bytes and zswap.pool_bytes is not None:
        stored, pool = format_size(zswap.stored_bytes), format_size(zswap.pool_bytes)
        return f"{state}, and holds {stored} of swapped pages in {pool} of RAM"
    return state


def _document(abilities: Abilities) -> dict[str, Any]:
    features = abilities.features
    return {
        "schema": DOCTOR_SCHEMA,
        "kernel": {
            "release": features.kernel_release,
            "page_size_bytes": features.page_size_bytes,
        },
        "proc": features.proc,
        "reader": asdict(features.reader),
        "interfaces": [asdict(probe) for probe in features.probes],
        "swap": _swap_document(abilities),
        "outlooks": [asdict(outlook) for outlook in abilities.outlooks],
        "notes": list(features.notes),
    }


def _swap_document(abilities: Abilities) -> dict[str, Any]:
    document = asdict(abilities.features.swap)
    for area, numbers in zip(document["areas"], abilities.area_numbers, strict=True):
        area["numbers"] = list(numbers)
    return document


DEMO_SCHEMA = "memlens.demo/1"
_WIDTH = 80
_HOW, _PAGES, _NAIVE, _FOUND = 40, 6, 14, 14
_STYLES = {row.page_class.label: row.color for row in CLASSES}
_WRONG_SHOWN = 5


def render_demo(
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


def render_demo_json(result: DemoResult) -> str:
    """Return the result as one JSON object of schema ``memlens.demo/1``."""
    found: dict[str, Any] = asdict(result)
    totals = {
        "pages": result.pages,
        "misled_pages": result.misled_pages,
        "unknown_pages": result.unknown_pages,
        "disagreeing_pages": result.disagreeing_pages,
    }
    return json.dumps({"schema": DEMO_SCHEMA} | found | {"totals": totals})
