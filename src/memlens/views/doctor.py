"""What `memlens doctor` shows: the interfaces, and what follows, as text and as JSON."""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.text import Text

from memlens.account.abilities import Abilities, Outlook
from memlens.units import escape_text, format_size

SCHEMA = "memlens.doctor/1"

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


def render_text(abilities: Abilities, width: int) -> Iterator[Text]:
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


def render_json(abilities: Abilities) -> str:
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
        "schema": SCHEMA,
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
