"""Shared memory that is nearly all holes: they must cost no more than their page tables."""

from collections.abc import Iterator

from bench.harness.context import GIB, MIB, Context, Target
from bench.harness.rows import Row
from bench.harness.spent import of_line
from bench.harness.swap import zram_swap

TITLE = "64 GiB of shared memory, one page per MiB touched"
STRIDE = MIB


def run(ctx: Context) -> Iterator[Row]:
    """Yield the ratio to the floor without swap, and with half of the pages on it."""
    size = ctx.scale(64 * GIB)
    touched = size // STRIDE * 4096
    # As much again for the page tables.
    with ctx.target("spread", size, STRIDE, 0, needs_bytes=3 * touched) as target:
        yield from _measure(ctx, target, "no swap")
    with (
        zram_swap(touched),
        ctx.target("spread", size, STRIDE, 1, needs_bytes=3 * touched) as target,
    ):
        yield from _measure(ctx, target, "half of them on swap")


def _measure(ctx: Context, target: Target, where: str) -> Iterator[Row]:
    with ctx.floor(target, f"pagemap:{target.addresses}") as floor:
        with ctx.library(target) as library:
            pairs = ctx.compare(library.scan, of_line(floor))
            yield Row(f"{where}: library / floor of pagemap", pairs.ratio, "x", 1.5, pairs.note)
            yield Row(f"{where}: peak memory", library.peak_mib, "MiB", 80)
        with ctx.library(target, disabled="cachewalk") as library:
            pairs = ctx.compare(library.scan, of_line(floor))
            figure = f"{where}, without the page-cache walk: library / floor of pagemap"
            yield Row(figure, pairs.ratio, "x", note=pairs.note)
