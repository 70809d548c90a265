"""Ten thousand mappings of one object: what each mapping costs, rather than each page."""

from collections.abc import Iterator

from bench.harness.context import Context
from bench.harness.rows import Row
from bench.harness.spent import of_line

TITLE = "10 000 small mappings of one memfd, none of it mapped here"


def run(ctx: Context) -> Iterator[Row]:
    """Yield the ratio to reading smaps, and the peak memory."""
    count = ctx.scale(10_000)
    with (
        ctx.target("many", count) as target,
        ctx.library(target) as library,
        ctx.floor(target, "smaps") as smaps,
    ):
        pairs = ctx.compare(library.scan, of_line(smaps))
        yield Row("library / reading smaps", pairs.ratio, "x", 1.5, pairs.note)
        yield Row("peak memory", library.peak_mib, "MiB", 80)
