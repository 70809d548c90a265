"""One page explained: what was asked, what the kernel answered, and the verdict."""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.text import Text

from memlens.pages.classes import CLASSES
from memlens.residency.records import PageExplanation, PageHolder, Step, folio_text
from memlens.units import escape_text, format_size

SCHEMA = "memlens.page/1"
_LEAST_WIDTH = 40
_WIDEST = 120
_HOLDERS_SHOWN = 20
_LABEL = 11


def render_text(page: PageExplanation, width: int, is_unicode: bool = True) -> Iterator[Text]:
    """
    Yield the lines for a person.

    :param width: cells in a line; text that fills more than 120 is hard to read.
    :param is_unicode: whether characters beyond ASCII can be printed.
    """
    width = min(max(width, _LEAST_WIDTH), _WIDEST)
    name = escape_text(page.process.name)
    yield Text(f"Page {page.address:#x} of {name}, PID {page.process.pid}", "bold")
    for number, step in enumerate(page.steps, 1):
        yield Text("")
        yield from _step(number, step, width, is_unicode)
    yield Text("")
    yield from _verdict(page, width)
    yield Text("")
    yield from _facts(page, width)
    yield from _holders(page)
    for note in page.notes:
        yield Text("")
        yield from _wrap(f"note: {note}", width, "", "", "yellow")


def _step(number: int, step: Step, width: int, is_unicode: bool) -> Iterator[Text]:
    bar, arrow = ("│ ", "→ ") if is_unicode else ("| ", "> ")
    yield from _wrap(escape_text(step.asked), width, f"{number:2}  ", "    ", "bold cyan")
    yield from _wrap(escape_text(step.answer), width, f"    {bar}", f"    {bar}")
    yield from _wrap(escape_text(step.meaning), width, f"    {arrow}", "      ", "dim")


def _verdict(page: PageExplanation, width: int) -> Iterator[Text]:
    row = CLASSES[page.verdict]
    label = f"{page.verdict.label}: "
    text = page.reason if page.reason else row.meaning
    first = True
    for line in _wrap(escape_text(text), width, label, " " * 4):
        if first:
            line.stylize(f"bold {row.color}", 0, len(label) - 1)
            first = False
        yield line


def _facts(page: PageExplanation, width: int) -> Iterator[Text]:
    size = format_size(page.stop - page.start)
    mapping = f"{page.start:x}-{page.stop:x} {page.permissions}, {size}"
    yield from _fact("mapping", mapping, width)
    found = page.object
    if found is None:
        yield from _fact("object", "none: private anonymous memory", width)
    else:
        where = f"device {found.device}, inode {found.inode}, offset {found.offset_bytes:#x}"
        text = f"{found.path or '(no name)'}: {found.kind}, {where}"
        yield from _fact("object", text, width)
    if page.pfn is not None:
        yield from _fact("frame", f"PFN {page.pfn:#x}", width)
    if page.swap is not None:
        device = f" ({page.swap.path})" if page.swap.path else ""
        where = f"swap area {page.swap.area}{device}, slot {page.swap.slot}"
        if not device:
            where += ": which device this area is, the kernel does not say"
        yield from _fact("on swap", where, width)
    if page.folio is not None:
        yield from _fact("folio", folio_text(page.folio), width)
    if page.attributes:
        yield from _fact("also", ", ".join(page.attributes), width)


def _fact(label: str, text: str, width: int) -> Iterator[Text]:
    head = f"{label:{_LABEL}}"
    for line in _wrap(escape_text(text), width, head, " " * _LABEL):
        line.stylize("bold", 0, len(label) if line.plain.startswith(label) else 0)
        yield line


def _holders(page: PageExplanation) -> Iterator[Text]:
    if page.object is None or not (page.holders or page.missed_holders):
        return
    yield Text("")
    yield Text("Who maps this page of the object", "bold")
    rows = page.holders[:_HOLDERS_SHOWN]
    if rows:
        wide = max(len(f"{row.address:x}") for row in rows)
        yield Text(f"{'PID':>8}  {'name':16}  {'address':{wide}}  perm  there", "dim")
        for row in rows:
            yield _holder(row, page, wide)
    rest = len(page.holders) - len(rows)
    if rest:
        yield Text(f"          and {rest} more", "dim")
    if page.missed_holders:
        count = page.missed_holders
        what = "process" if count == 1 else "processes"
        yield Text(f"          {count} {what} could not be looked at", "yellow")


def _holder(row: PageHolder, page: PageExplanation, wide: int) -> Text:
    line = Text(f"{row.pid:8}  {escape_text(row.name):16}  {row.address:{wide}x}  ")
    line.append(f"{escape_text(row.permissions)}  ")
    line.append(*_holder_state(row))
    if (row.pid, row.address) == (page.process.pid, page.address):
        line.append(", this one", "dim")
    return line


def _holder_state(row: PageHolder) -> tuple[str, str]:
    if row.is_private_copy:
        return "a private copy", "yellow"
    if row.is_present is None:
        return "not known", "magenta"
    return ("mapped", "green") if row.is_present else ("not mapped now", "dim")


def _wrap(text: str, width: int, first: str, other: str, style: str = "") -> Iterator[Text]:
    lines = textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=other, break_on_hyphens=False
    )
    for line in lines or [first.rstrip()]:
        head = first if line.startswith(first) else other
        shown = Text(line)
        shown.stylize(style, len(head))
        yield shown


def render_json(page: PageExplanation) -> str:
    """Return the explanation as one JSON object of schema ``memlens.page/1``."""
    found: dict[str, Any] = asdict(page)
    found["process"]["started_at"] = page.process.started_at.isoformat()
    mapping = {name: found.pop(name) for name in ("start", "stop", "permissions")}
    verdict = {"verdict": page.verdict.label, "meaning": page.meaning}
    head = {
        "schema": SCHEMA,
        "process": found.pop("process"),
        "address": found.pop("address"),
        "page_size_bytes": found.pop("page_size_bytes"),
        "mapping": mapping,
    }
    found.pop("verdict")
    return json.dumps(head | verdict | found)
