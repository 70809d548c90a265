"""What was recorded in docs/examples, drawn by the program's own views."""

import html
import io
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.text import Text

from memlens.pages.classes import PageClass
from memlens.physical.records import FlagReport
from memlens.report import Report
from memlens.residency.records import PageExplanation, ProcessMap
from memlens.residency.tables import select_classes
from memlens.selftest.records import DemoResult, Features
from memlens.sharing.records import ProcessList, Sharing
from memlens.shm.records import Inventory
from memlens.swap.records import SwapLedger
from memlens.views import demo, doctor, flags, page, ps, sharing, shm, swap
from memlens.views.map import render as render_map
from memlens.views.text import Line, TableOptions

HERE = Path(__file__).parent
EXAMPLES = HERE / "examples"
PICTURE = HERE / "map.svg"
TEXT_WIDTH = 96
PICTURE_WIDTH = 136
TABLE = TableOptions(width=TEXT_WIDTH)

_Report = TypeVar("_Report", bound=Report)


def write_report(name: str, report: Report) -> None:
    """Write a report to docs/examples, without what tells this machine from others."""
    kernel = report.kernel.partition("-")[0]
    known = replace(report, host="example", boot_id="", kernel=kernel)
    (EXAMPLES / f"{name}.json").write_text("".join(known.to_json()))


def read_report(name: str, kind: type[_Report]) -> _Report:
    """Return a report that ``write_report`` wrote."""
    path = EXAMPLES / f"{name}.json"
    return kind.from_json(path.read_text(), path=str(path))


def render_map_text(only: str = "") -> str:
    """Return what `memlens map PID [--only CLASSES]` prints."""
    whole = read_report("map", ProcessMap)
    wanted = frozenset(PageClass[name.upper()] for name in only.split(",") if name)
    shown = select_classes(whole, wanted) if wanted else whole
    option = f" --only {only}" if only else ""
    lines = join_segments(render_map(shown, TABLE))
    return block(f"memlens map {whole.process.pid}{option}", lines)


def render_page_text() -> str:
    """Return what `memlens page PID ADDRESS` prints."""
    found = read_report("page", PageExplanation)
    address = found.verdict.page * found.page_size_bytes
    lines = join_segments(page.render(found, TABLE._replace(is_unicode=True)))
    return block(f"memlens page {found.process.pid} {address:x}", lines)


def render_doctor_text(first: str = "") -> str:
    """Return what `memlens doctor` prints, all or from the section that begins so."""
    lines = join_segments(doctor.render(read_report("doctor", Features), TABLE))
    if first:
        start = next(number for number, line in enumerate(lines) if line.startswith(first))
        lines = ["...", *lines[start:]]
    return block("memlens doctor", lines)


def render_demo_text(first: str = "") -> str:
    """Return what `memlens demo` prints, all or a section and the end."""
    options = TableOptions(is_unicode=True)
    lines = join_segments(demo.render(read_report("demo", DemoResult), options))
    if first:
        start = next(number for number, line in enumerate(lines) if line.startswith(first))
        end = lines.index("", start)
        last = max(n for n, line in enumerate(lines) if line.startswith("pagemap alone"))
        lines = [*lines[:5], "...", *lines[start:end], "...", *lines[last:]]
    return block("memlens demo", lines)


def render_swap_text() -> str:
    """Return what `memlens swap` prints."""
    found = read_report("swap", SwapLedger)
    return block("memlens swap", join_segments(swap.render(found, TABLE)))


def render_shm_text() -> str:
    """Return what `memlens shm` prints."""
    found = read_report("shm", Inventory)
    return block("memlens shm", join_segments(shm.render(found, TABLE)))


def render_ps_text() -> str:
    """Return what `memlens ps` prints of processes of one name, and of them together."""
    found = read_report("ps", ProcessList)
    group = join_segments(ps.render(found, TABLE))
    alone = {"processes": found.processes}
    each = join_segments(ps.render(replace(found, tables=alone), TABLE))
    name = found.processes[0].name
    return block(f"memlens ps --name {name}", each) + block(
        f"memlens ps --name {name} --group-by name", group
    )


def render_sharing_text() -> str:
    """Return what `memlens sharing --tree PID` prints."""
    found = read_report("sharing", Sharing)
    lines = join_segments(sharing.render(found, TABLE))
    return block(f"memlens sharing --tree {found.processes[0].pid}", lines)


def render_flags_text() -> str:
    """Return what `memlens flags PID` prints."""
    found = read_report("flags", FlagReport)
    pid = read_report("sharing", Sharing).processes[0].pid
    return block(f"memlens flags {pid}", join_segments(flags.render(found, TABLE)))


def join_segments(lines: Iterable[Line]) -> list[str]:
    return ["".join(part.text for part in line) for line in lines]


def plain_lines(lines: Iterable[Text]) -> list[str]:
    return [line.plain for line in lines]


def block(command: str, lines: Iterable[str]) -> str:
    text = "\n".join(line.rstrip() for line in lines)
    return f"```console\n$ {command}\n{text}\n```\n"


def draw_picture() -> str:
    """Return the map as SVG, in colour."""
    console = Console(
        width=PICTURE_WIDTH,
        record=True,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    whole = read_report("map", ProcessMap)
    options = TableOptions(width=PICTURE_WIDTH, is_colored=True, is_unicode=True)
    for line in render_map(whole, options):
        console.print(Text.assemble(*line), overflow="crop", no_wrap=True)
    svg = console.export_svg(title=f"memlens map {whole.process.pid}", unique_id="memlens")
    svg = svg.replace("<svg ", '<svg xml:space="preserve" ', 1)
    # Fonts from the network: the viewer's own will do.
    return re.sub(r"\n *@font-face {.*?\n *}", "", svg, flags=re.DOTALL)


def text_of_picture(svg: str) -> list[str]:
    """Return the words of a picture: how rich draws around them differs by version."""
    texts = re.findall(r"<text[^>]*>(.*?)</text>", svg)
    return " ".join(html.unescape(text) for text in texts).split()


def is_picture_current() -> bool:
    """Return whether the picture shows the recorded map."""
    if not PICTURE.exists():
        return False
    return text_of_picture(PICTURE.read_text()) == text_of_picture(draw_picture())
