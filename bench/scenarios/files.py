"""The page cache of many files, beside vmtouch and fincore."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.harness.context import Context, SkipError
from bench.harness.cpu import cpu_of, cpu_of_program
from bench.harness.rows import Row
from memlens.physical.files import FileScan

TITLE = "100,000 cached pages in 1,000 files"
FILES, PAGES = 1000, 100


def run(ctx: Context) -> Iterator[Row]:
    """Yield the library and the command line, each against both."""
    missing = [name for name in ("vmtouch", "fincore") if shutil.which(name) is None]
    if missing:
        raise SkipError(f"{', '.join(missing)} not installed (tests/install-packages --bench)")
    with tempfile.TemporaryDirectory(dir=Path(__file__).parents[1] / "build") as where:
        paths = _make_files(Path(where), int(ctx.scale(FILES)))
        memlens = str(Path(sys.executable).with_name("memlens"))
        rows: list[tuple[str, Callable[[], int], list[str], float | None]] = [
            ("library: files / vmtouch", lambda: _library(where), ["vmtouch", where], 1.0),
            ("library: files / fincore", lambda: _library(where), ["fincore", *paths], None),
            (
                "command line: files / vmtouch -v",
                lambda: _program([memlens, "files", where]),
                ["vmtouch", "-v", where],
                None,
            ),
        ]
        for figure, ours, theirs, limit in rows:
            _keep(paths)
            pairs = ctx.compare(ours, lambda theirs=theirs: _program(theirs))
            yield Row(figure, pairs.ratio, "x", limit, pairs.note)
        # The library waits 6 to 8 ms for /proc/locks, in which it uses no CPU: to read it the
        # kernel waits for an RCU grace period.  vmtouch breaks leases instead.
        _keep(paths)
        pairs = ctx.compare(cpu_of(lambda: _library(where)), cpu_of_program(["vmtouch", where]))
        yield Row("library, CPU time: files / vmtouch", pairs.ratio, "x", note=pairs.note)


def _make_files(directory: Path, files: int) -> list[str]:
    paths = [str(directory / f"{number:04}") for number in range(files)]
    for path in paths:
        with open(path, "wb") as file:
            file.write(os.urandom(PAGES * os.sysconf("SC_PAGE_SIZE")))
    return paths


def _keep(paths: list[str]) -> None:
    """Read the files, so that they are cached."""
    for path in paths:
        with open(path, "rb") as file:
            file.read()


def _library(where: str) -> int:
    began = time.perf_counter_ns()
    scan = FileScan([where])
    for _ in scan.rows():
        pass
    scan.close()
    return time.perf_counter_ns() - began


def _program(command: list[str]) -> int:
    with open(os.devnull, "w") as nowhere:
        began = time.perf_counter_ns()
        subprocess.run(command, check=True, stdout=nowhere)
        return time.perf_counter_ns() - began
