"""As many mappings as a process may have by default: what each mapping costs."""

from collections.abc import Iterator

from bench.harness.context import Context, Target
from bench.harness.rows import Row
from bench.harness.spent import of_line

TITLE = "65,500 mappings of 4 pages, one of them touched"
# vm.max_map_count is 65,530, and the program has some two dozen of its own.
COUNT = 65_480
KINDS = {"private": "private memory", "shared": "shared memory, an object each"}


def run(ctx: Context) -> Iterator[Row]:
    """Yield the ratios for each kind of mapping."""
    for kind, meaning in KINDS.items():
        with ctx.target("mappings", ctx.scale(COUNT), kind) as target:
            yield from measure_kind(ctx, target, meaning)


def measure_kind(ctx: Context, target: Target, meaning: str) -> Iterator[Row]:
    """Compare map and huge with reading smaps, and tell their peak memory."""
    rss = {"rss": target.ready["pages"]["present"]}
    with ctx.floor(target, "smaps") as smaps:
        for call, wanted, limit, peak in (
            ("map_process", None, 3, 80),
            ("map_huge", rss, 5, 150),
        ):
            with ctx.library(target, call=call, wanted=wanted) as library:
                pairs = ctx.compare(library.scan, of_line(smaps))
                figure = f"{meaning}: {call}"
                yield Row(f"{figure} / reading smaps", pairs.ratio, "x", limit, pairs.note)
                yield Row(f"{figure}: peak memory", library.peak_mib, "MiB", peak)
