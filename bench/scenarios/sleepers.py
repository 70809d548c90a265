"""Two thousand small processes: what each process costs, rather than its memory."""

from collections.abc import Iterator

import memlens
from bench.harness.context import GIB, Context, Target
from bench.harness.lines import BenchError
from bench.harness.peers import beside
from bench.harness.rows import Row

TITLE = "2,000 small processes that sleep"


def run(ctx: Context) -> Iterator[Row]:
    """Yield the list of processes beside its peers; smem takes seconds."""
    with ctx.target("sleepers", ctx.scale(2000), needs_bytes=GIB) as target:
        prove(target)
        yield beside(ctx, "ps", "ps_mem", 1.0)
        if ctx.is_long:
            yield beside(ctx, "ps", "smem")


def prove(target: Target) -> None:
    """Raise BenchError unless all are listed: a wrong answer has no speed."""
    listed = {process.pid for process in memlens.list_processes().processes}
    missing = set(target.pids) - listed
    if missing:
        raise BenchError(f"{len(missing)} processes are not listed")
