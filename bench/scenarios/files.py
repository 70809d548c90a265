"""The page cache of many files, beside vmtouch and fincore."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import memlens
from bench.harness.context import Context, SkipError, find_memlens
from bench.harness.rows import Row
from bench.harness.spent import Measured, of_call, of_command

TITLE = "100,000 cached pages in 1,000 files"
FILES, PAGES = 1000, 100


def run(ctx: Context) -> Iterator[Row]:
    """
    Yield the library and the command line, each against both.

    The library waits 6 to 8 ms for /proc/locks, in which it uses no CPU: to read it the
    kernel waits for an RCU grace period.  vmtouch breaks leases instead.
    """
    missing = [name for name in ("vmtouch", "fincore") if shutil.which(name) is None]
    if missing:
        raise SkipError(f"{', '.join(missing)} not installed")
    with tempfile.TemporaryDirectory(dir=Path(__file__).parents[1] / "build") as where:
        paths = _make_files(Path(where), int(ctx.scale(FILES)))
        library = of_call(lambda: memlens.read_files([where], strips=0))
        whole = of_command(find_memlens("files", where))
        rows: list[tuple[str, Measured, list[str], float | None]] = [
            ("library: files / vmtouch", library, ["vmtouch", where], 1.0),
            ("library: files / fincore", library, ["fincore", *paths], None),
            ("command line: files / vmtouch -v", whole, ["vmtouch", "-v", where], None),
        ]
        for figure, ours, theirs, limit in rows:
            _keep(paths)
            pairs = ctx.compare(ours, of_command(theirs))
            yield Row(figure, pairs.ratio, "x", limit, pairs.note)


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
