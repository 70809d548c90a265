"""Shared memory, half of it not mapped here: the object has to be asked for that half."""

from collections.abc import Iterator

from bench.harness.context import GIB, Context
from bench.harness.rows import Row
from bench.harness.spent import of_line

TITLE = "4 GiB of shared memory, half of it not mapped here"
SHAPES = {
    "half": "upper half",
    "block": "every second 2 MiB",
    "page": "every second page",
}


def run(ctx: Context) -> Iterator[Row]:
    """Yield speed and peak memory for each shape of the half that is not mapped."""
    for shape, meaning in SHAPES.items():
        yield from measure_shape(ctx, shape, meaning)


def measure_shape(ctx: Context, shape: str, meaning: str) -> Iterator[Row]:
    """
    Compare with the floor, and with reading smaps.

    The floor asks the object about as little as whole calls allow: for the upper half only
    about that half, else about all of it, since a call per gap would cost more.
    """
    size = ctx.scale(4 * GIB)
    first = size // 2 if shape == "half" else 0
    with ctx.target("shared", size, shape, needs_bytes=size) as target:
        steps = (
            f"pagemap:{target.addresses}",
            f"object:{target.addresses}:{first:x}-{size:x}",
        )
        with (
            ctx.library(target) as library,
            ctx.floor(target, *steps) as floor,
            ctx.floor(target, "smaps") as smaps,
        ):
            pairs = ctx.compare(library.scan, of_line(floor))
            yield Row(f"{meaning}: library / floor", pairs.ratio, "x", 1.5, pairs.note)
            pairs = ctx.compare(library.scan, of_line(smaps))
            yield Row(f"{meaning}: library / reading smaps", pairs.ratio, "x", note=pairs.note)
            yield Row(f"{meaning}: peak memory", library.peak_mib, "MiB", 80)
