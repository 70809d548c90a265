"""Address space reserved far beyond what is used, as databases and sanitizers do."""

import statistics
from collections.abc import Iterator

from bench.harness.context import GIB, MIB, Context
from bench.harness.rows import Row
from bench.harness.spent import of_line

TITLE = "reservations that hold little or nothing"
STRIDE = 4 * MIB


def run(ctx: Context) -> Iterator[Row]:
    """Yield the terabyte with one page every 4 MiB, then the one that holds nothing."""
    yield from measure_sparse(ctx)
    yield from measure_reserved(ctx)


def measure_sparse(ctx: Context) -> Iterator[Row]:
    """Compare with reading smaps, which walks the same page tables once."""
    size = ctx.scale(1024 * GIB)
    touched = size // STRIDE * 4096
    # As much again for the page tables: each page has one of its own.
    with (
        ctx.target("sparse", size, STRIDE, needs_bytes=2 * touched) as target,
        ctx.library(target) as library,
        ctx.floor(target, "smaps") as smaps,
    ):
        pairs = ctx.compare(library.scan, of_line(smaps))
        figure = "1 TiB reserved, one page per 4 MiB touched"
        yield Row(f"{figure}: library / reading smaps", pairs.ratio, "x", 2, pairs.note)
        yield Row(f"{figure}: peak memory", library.peak_mib, "MiB", 80)


def measure_reserved(ctx: Context) -> Iterator[Row]:
    """Compare with a small process."""
    with (
        ctx.target("reserved", 256 * GIB) as reserved,
        ctx.target("small") as small,
        ctx.library(reserved) as library,
        ctx.library(small) as library_small,
    ):
        pairs = ctx.compare(library.scan, library_small.scan)
        more_ms = statistics.median(
            (a - b) / 1e6 for a, b in zip(pairs.ours_ns, pairs.theirs_ns, strict=True)
        )
        figure = "256 GiB reserved, never touched"
        yield Row(f"{figure}: more than a small process", more_ms, "ms", 5, pairs.note)
        yield Row(f"{figure}: peak memory", library.peak_mib, "MiB", 80)
        small_ms = statistics.median(pairs.theirs_ns) / 1e6
        yield Row("small process, through the library", small_ms, "ms")
        yield Row("small process: peak memory", library_small.peak_mib, "MiB", 80)
