"""Two thousand small processes: what each process costs, rather than its memory."""

from collections.abc import Iterator

from bench.harness.context import GIB, Context
from bench.harness.peers import beside
from bench.harness.rows import Row

TITLE = "2,000 small processes that sleep"


def run(ctx: Context) -> Iterator[Row]:
    """Yield the list of processes beside its peers."""
    with ctx.target("sleepers", ctx.scale(2000), needs_bytes=GIB):
        yield beside(ctx, "ps", "ps_mem", 1.0)
        yield beside(ctx, "ps", "smem")
