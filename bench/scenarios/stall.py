"""
How long a scan makes its target wait.

A reader of the page tables holds the target's mmap lock, and a thread that maps or unmaps
waits for it.  Short reads are not enough: a reader that comes back at once takes the lock
before the waiting thread does, until the kernel hands it over after 4 ms
(RWSEM_WAIT_TIMEOUT).  The wait for a CPU counts too, so the same work is also done on
another process.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from bench.harness.context import GIB, Context, Library, SkipError, Target
from bench.harness.rows import Row
from bench.harness.spent import of_command

TITLE = "worst mmap+munmap of a process with 4 GiB while it is scanned in a loop"


def run(ctx: Context) -> Iterator[Row]:
    """Yield the worst latency without a reader, with the library, and with its peers."""
    size = ctx.scale(4 * GIB)
    with ctx.target("private", size, needs_bytes=size) as target:
        yield watch(ctx, target, "no scan", lambda: time.sleep(0.1))
        with ctx.target("private", size // 4) as other, ctx.library(other) as library:
            yield watch(ctx, target, "library, on another process", library.scan)
        with ctx.library(target) as library:
            yield watch_library(ctx, target, library)
        yield from watch_peers(ctx, target)


def watch_library(ctx: Context, target: Target, library: Library) -> Row:
    """
    Return the worst latency while the library scans in a loop.

    Beside it stands the longest read that the library saw: one far longer than usual lost
    its CPU to some other process while it held the lock, and that machine was too busy.
    """
    longest_s = 0.0

    def scan() -> None:
        nonlocal longest_s
        library.scan()
        longest_s = max(longest_s, float(library.last["longest_read_s"]))

    scan()
    longest_s = 0.0
    row = watch(ctx, target, "library", scan, 4.0)
    return replace(row, note=f"{row.note}; longest read {longest_s * 1e3:.2f} ms")


def watch_peers(ctx: Context, target: Target) -> Iterator[Row]:
    """Yield the worst latency while other readers are at work."""
    with ctx.floor(target, f"pagemap:{target.addresses}") as floor:
        yield watch(ctx, target, "floor (pagemap in 64 KiB pieces)", floor.ask)
    with ctx.floor(target, "smaps") as smaps:
        yield watch(ctx, target, "reading smaps", smaps.ask)
    with ctx.floor(target, f"scan:{target.addresses}") as scan:
        yield watch(ctx, target, "one PAGEMAP_SCAN over all", scan.ask)
    figure = "the kernel's page-types -p PID"
    try:
        command = [ctx.program("page-types"), "-p", str(target.pid)]
    except SkipError as reason:
        yield Row(figure, None, "ms", note=str(reason))
        return
    yield watch(ctx, target, figure, of_command(command))


def watch(
    ctx: Context,
    target: Target,
    figure: str,
    once: Callable[[], object],
    limit_ms: float | None = None,
) -> Row:
    """
    Return the target's worst latency while something is done over and over.

    What has no limit to keep is watched for half the time: it can only look better.
    """
    target.ask("watch")
    until = time.monotonic() + (ctx.watch_s if limit_ms else ctx.watch_s / 2)
    rounds = 0
    while time.monotonic() < until:
        once()
        rounds += 1
    worst = target.ask("worst")
    note = f"{worst['loops']} times, {rounds} scans"
    return Row(figure, worst["worst_ns"] / 1e6, "ms", limit_ms, note)
