"""Touched private memory, in base pages: the plain case, as fast as the kernel reads."""

from collections.abc import Iterator

from bench.harness.context import GIB, MIB, Context, SkipError, Target
from bench.harness.rows import Row
from bench.harness.spent import of_command, of_line

TITLE = "4 GiB of touched private memory"


def run(ctx: Context) -> Iterator[Row]:
    """Yield the ratio to the floor, the peers, and the peak memory."""
    size = ctx.scale(4 * GIB)
    with ctx.target("private", size, needs_bytes=size) as target:
        yield from measure_speed(ctx, target)
        yield from measure_growth(ctx, target)
        yield measure_page_types(ctx, target)


def measure_speed(ctx: Context, target: Target) -> Iterator[Row]:
    """Compare with the floor and with reading smaps."""
    with (
        ctx.library(target) as library,
        ctx.floor(target, f"pagemap:{target.addresses}") as floor,
        ctx.floor(target, "smaps") as smaps,
    ):
        pairs = ctx.compare(library.scan, of_line(floor))
        yield Row("library / floor", pairs.ratio, "x", 1.25, f"goal 1.0; {pairs.note}")
        pairs = ctx.compare(library.scan, of_line(smaps))
        yield Row("library / reading smaps", pairs.ratio, "x", note=pairs.note)
        yield Row("peak memory", library.peak_mib, "MiB", 80)
        longest_ms = float(library.last["longest_read_s"]) * 1e3
        yield Row("longest single read, as the library reports it", longest_ms, "ms")


def measure_growth(ctx: Context, target: Target) -> Iterator[Row]:
    """Compare the peak memory of a scan of all with that of a scan of a quarter."""
    quarter = target.start + (target.stop - target.start) // 4
    with ctx.library(target) as whole, ctx.library(target, (target.start, quarter)) as part:
        for _ in range(3):
            whole.scan()
            part.scan()
        grown = whole.peak_mib - part.peak_mib
        note = f"{whole.peak_mib:.1f} MiB and {part.peak_mib:.1f} MiB"
        yield Row("peak memory: all of it, more than a quarter", grown, "MiB", 2, note)
        base = float(part.ready["peak_bytes"]) / MIB
        yield Row("peak memory of interpreter and imports alone", base, "MiB")


def measure_page_types(ctx: Context, target: Target) -> Row:
    """Compare with the kernel's own tool, which reads kpageflags too."""
    figure = "library / the kernel's page-types -p PID"
    try:
        command = [ctx.program("page-types"), "-p", str(target.pid)]
    except SkipError as reason:
        return Row(figure, None, "x", note=str(reason))
    with ctx.library(target) as library:
        pairs = ctx.compare(library.scan, of_command(command))
    return Row(figure, pairs.ratio, "x", note=pairs.note)
