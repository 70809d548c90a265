"""The command line on a small process: what a user waits for."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator

from bench.harness.context import GIB, MIB, WORKER, Context, find_memlens
from bench.harness.lines import BenchError
from bench.harness.rows import Row
from bench.harness.spent import of_command

TITLE = "the command line"


def run(ctx: Context) -> Iterator[Row]:
    """Yield start-up, a small process whole, and the peak memory of a large one."""
    python = [sys.executable, "-c", "pass"]
    pairs = ctx.compare(of_command(find_memlens("--version")), of_command(python))
    yield Row("memlens --version / python3 -c pass", pairs.ratio, "x", 3, pairs.note)
    with ctx.target("small") as small:
        command = find_memlens("map", str(small.pid))
        pairs = ctx.compare(of_command(command), of_command(python))
        whole_s = statistics.median(pairs.ours_ns) / 1e9
        yield Row("memlens map of a small process, whole", whole_s, "s", 0.35)
    size = ctx.scale(4 * GIB)
    with ctx.target("shared", size, "page", needs_bytes=size) as target:
        for options in ([], ["--json", "--pages"]):
            yield measure_peak(["map", *options, str(target.pid)])


def measure_peak(arguments: list[str]) -> Row:
    """Return the peak memory of a command on shared memory with a run for every page."""
    command = [sys.executable, str(WORKER), "--cli", *arguments]
    answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    if answer["code"] != 0:
        raise BenchError(f"memlens {' '.join(arguments)}: exit code {answer['code']}")
    shown = " ".join(["memlens", *arguments[:-1], "PID"])
    note = f"4 GiB shared, every second page not mapped; {answer['ns'] / 1e9:.2f} s"
    limit = None if "--pages" in arguments else 80
    return Row(f"{shown}: peak memory", answer["peak_bytes"] / MIB, "MiB", limit, note)
