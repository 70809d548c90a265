"""Page flags and huge pages, beside the kernel's own tools."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.harness.build import find_thpmaps
from bench.harness.context import GIB, Context, SkipError
from bench.harness.cpu import cpu_of, cpu_of_program
from bench.harness.rows import Row
from memlens.physical.flags import count_process_flags
from memlens.physical.frameflags import count_machine_flags
from memlens.physical.huge import map_huge

TITLE = "page flags and huge pages of 4 GiB"
BUILD = Path(__file__).parents[1] / "build"


def run(ctx: Context) -> Iterator[Row]:
    """Yield the library and the command line, each against the kernel's tool."""
    size = ctx.scale(4 * GIB)
    with ctx.target("private", size, needs_bytes=size) as target:
        pid = target.pid
        page_types = [ctx.program("page-types")]
        rows: list[tuple[str, Callable[[], object], list[str], list[str], float]] = [
            (
                "flags PID / page-types -p",
                lambda: count_process_flags([pid]),
                ["flags", str(pid)],
                [*page_types, "-p", str(pid)],
                1 / 3,
            ),
            (
                "flags --machine / page-types",
                count_machine_flags,
                ["flags", "--machine"],
                page_types,
                1 / 1.5,
            ),
            (
                "huge / thpmaps",
                lambda: map_huge([pid]),
                ["huge", str(pid)],
                [sys.executable, str(_thpmaps()), "--pid", str(pid)],
                1 / 1.5,
            ),
        ]
        for figure, library, arguments, theirs, limit in rows:
            pairs = ctx.compare(_timed(library), _timed_program(theirs))
            yield Row(f"library: {figure}", pairs.ratio, "x", limit, pairs.note)
            pairs = ctx.compare(cpu_of(library), cpu_of_program(theirs))
            yield Row(f"library, CPU time: {figure}", pairs.ratio, "x", note=pairs.note)
            ours = [str(Path(sys.executable).with_name("memlens")), *arguments]
            pairs = ctx.compare(_timed_program(ours), _timed_program(theirs))
            yield Row(f"command line: {figure}", pairs.ratio, "x", note=pairs.note)


def _thpmaps() -> Path:
    script = find_thpmaps(BUILD)
    if isinstance(script, str):
        raise SkipError(script)
    return script


def _timed(call: Callable[[], object]) -> Callable[[], int]:
    def run_once() -> int:
        began = time.perf_counter_ns()
        call()
        return time.perf_counter_ns() - began

    return run_once


def _timed_program(command: list[str]) -> Callable[[], int]:
    def run_once() -> int:
        with open(os.devnull, "w") as nowhere:
            began = time.perf_counter_ns()
            subprocess.run(command, check=True, stdout=nowhere)
            return time.perf_counter_ns() - began

    return run_once
