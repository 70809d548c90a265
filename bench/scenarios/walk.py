"""Shared memory on swap: the page-cache walk by itself, and what it saves a scan."""

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.harness.context import GIB, MIB, Context, Target
from bench.harness.lines import BenchError, LineProcess
from bench.harness.rows import Row
from bench.harness.swap import zram_swap

TITLE = "Shared memory on swap: the page-cache walk"
_WALKER = Path(__file__).parents[1] / "walkworker.py"
# 40 and 10 million pages a second.
SHAPES = {
    "runs": ("in few runs", 25.0),
    "scattered": ("every page at a slot of its own", 100.0),
}
_PAGE_BYTES = 4096


def run(ctx: Context) -> Iterator[Row]:
    """Yield the time per page of a walk, and a scan with the walk against one without."""
    size = ctx.scale(256 * MIB)
    for shape, (meaning, limit) in SHAPES.items():
        with (
            zram_swap(2 * size + 64 * MIB),
            ctx.target("swapped", size, shape, needs_bytes=size) as target,
        ):
            yield _walk_row(ctx, target, meaning, limit)
    yield from _scan_rows(ctx, ctx.scale(4 * GIB))


def _walk_row(ctx: Context, target: Target, meaning: str, limit: float) -> Row:
    command = [sys.executable, str(_WALKER), str(target.pid), str(target.start)]
    with LineProcess(command) as walker:
        answers = [walker.ask() for _ in range(ctx.turns + 1)][1:]
    pages = target.ready["pages"]["swapped"]
    if any(answer["pages"] != pages for answer in answers):
        raise BenchError(f"wrong answer: {answers[0]['pages']} swapped pages, not {pages}")
    each = statistics.median(answer["ns"] / pages for answer in answers)
    note = f"{1e3 / each:.0f} million pages a second; {answers[0]['records']} records"
    return Row(
        f"a walk, {pages * _PAGE_BYTES // MIB} MiB {meaning}", each, "ns/page", limit, note
    )


def _scan_rows(ctx: Context, size: int) -> Iterator[Row]:
    with (
        zram_swap(size),
        ctx.target("swapped", size, "half", needs_bytes=2 * size) as target,
        ctx.library(target) as walking,
        ctx.library(target, disabled="cachewalk") as asking,
    ):
        pairs = ctx.compare(walking.scan, asking.scan)
        name = f"{size / GIB:.1f} GiB, half of it swapped: with the walk / without"
        yield Row(name, pairs.ratio, "x", 0.5, pairs.note)
