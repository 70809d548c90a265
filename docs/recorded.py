"""The recorded map of docs/examples, as text and as a picture."""

import html
import io
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from memlens.account.model import Cost, Kernel, MappingPages, Process, ProcessMap, UnknownRun
from memlens.pages.classes import PageClass
from memlens.pages.runs import Runs
from memlens.views.reasons import select_classes
from memlens.views.text import TextOptions, render_map

HERE = Path(__file__).parent
RECORD = HERE / "examples" / "map.json"
PICTURE = HERE / "map.svg"
TEXT_WIDTH = 100
PICTURE_WIDTH = 136


def read_record() -> ProcessMap:
    """Return the map that the JSON of `memlens map --json --pages` describes."""
    found = json.loads(RECORD.read_text())
    page_size_bytes = found["kernel"]["page_size_bytes"]
    process = found["process"]
    return ProcessMap(
        kernel=Kernel(**found["kernel"]),
        process=Process(
            pid=process["pid"],
            name=process["name"],
            cmdline=tuple(process["cmdline"]),
            started_at=datetime.fromisoformat(process["started_at"]),
        ),
        evidence=found["evidence"],
        mappings=tuple(mapping_of(row, page_size_bytes) for row in found["mappings"]),
        cost=Cost(**found["cost"]),
        is_complete=found["is_complete"],
        notes=tuple(found["notes"]),
    )


def mapping_of(row: dict[str, Any], page_size_bytes: int) -> MappingPages:
    """Return a mapping of the JSON."""
    runs = [(first, pages, PageClass[name.upper()]) for first, pages, name in row["runs"]]
    columns = np.array(runs, np.int64).reshape(-1, 3)
    plain = {
        key: value for key, value in row.items() if key not in ("pages", "runs", "unknown")
    }
    return MappingPages(
        **plain,
        page_size_bytes=page_size_bytes,
        runs=Runs(columns[:, 0], columns[:, 1], columns[:, 2].astype(np.uint8)),
        unknown=tuple(UnknownRun(*unknown) for unknown in row["unknown"]),
    )


def render_text(only: str = "") -> str:
    """Return what `memlens map PID [--only CLASSES]` printed, in a console block."""
    whole = read_record()
    wanted = frozenset(PageClass[name.upper()] for name in only.split(",") if name)
    shown = select_classes(whole, wanted) if wanted else whole
    lines = render_map(shown, whole, TextOptions(width=TEXT_WIDTH))
    text = "\n".join("".join(part.text for part in line).rstrip() for line in lines)
    option = f" --only {only}" if only else ""
    return f"```console\n$ memlens map {whole.process.pid}{option}\n{text}\n```\n"


def draw_picture() -> str:
    """Return the map as SVG, in colour."""
    console = Console(
        width=PICTURE_WIDTH,
        record=True,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    whole = read_record()
    options = TextOptions(width=PICTURE_WIDTH, is_colored=True, is_unicode=True)
    for line in render_map(whole, whole, options):
        console.print(Text.assemble(*line), overflow="crop", no_wrap=True)
    svg = console.export_svg(title=f"memlens map {whole.process.pid}", unique_id="memlens")
    # Fonts from the network: the viewer's own will do.
    svg = svg.replace("<svg ", '<svg xml:space="preserve" ', 1)
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
