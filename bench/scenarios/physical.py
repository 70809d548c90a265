"""Page flags and huge pages, beside the kernel's own tools."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import memlens
from bench.harness.build import find_thpmaps
from bench.harness.context import GIB, Context, SkipError, find_memlens
from bench.harness.rows import Row
from bench.harness.spent import of_call, of_command

TITLE = "page flags and huge pages of 4 GiB"
BUILD = Path(__file__).parents[1] / "build"


def run(ctx: Context) -> Iterator[Row]:
    """Yield the library and the command line, each against the kernel's tool."""
    size = ctx.scale(4 * GIB)
    with ctx.target("private", size, needs_bytes=size) as target:
        pid = target.pid
        page_types = [ctx.program("page-types")]
        rows: list[tuple[str, Callable[[], object], list[str], list[str], float]] = [
            (
                "flags PID / page-types -p",
                lambda: memlens.count_flags([pid]),
                ["flags", str(pid)],
                [*page_types, "-p", str(pid)],
                0.33,
            ),
            (
                "flags --machine / page-types",
                memlens.count_flags,
                ["flags", "--machine"],
                page_types,
                1 / 1.5,
            ),
            (
                "huge / thpmaps",
                lambda: memlens.map_huge([pid]),
                ["huge", str(pid)],
                [sys.executable, str(_thpmaps()), "--pid", str(pid)],
                1 / 1.5,
            ),
        ]
        for figure, library, arguments, theirs, limit in rows:
            pairs = ctx.compare(of_call(library), of_command(theirs))
            yield Row(f"library: {figure}", pairs.ratio, "x", limit, pairs.note)
            pairs = ctx.compare(of_command(find_memlens(*arguments)), of_command(theirs))
            yield Row(f"command line: {figure}", pairs.ratio, "x", note=pairs.note)


def _thpmaps() -> Path:
    script = find_thpmaps(BUILD)
    if isinstance(script, str):
        raise SkipError(script)
    return script
