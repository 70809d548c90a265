"""A browser: processes that have the same libraries, each of which is asked about once."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.harness.context import Context
from bench.harness.rows import Row
from bench.harness.spent import of_line

TITLE = "20 processes of the same 300 libraries, 30,000 mappings"
PROCESSES, LIBRARIES = 20, 300
# As targets.c maps them: five parts of 16 pages.
PAGES = 5 * 16
BUILD = Path(__file__).parents[1] / "build"


def run(ctx: Context) -> Iterator[Row]:
    """Yield a map of all of them against reading smaps of each."""
    files = ctx.scale(LIBRARIES)
    with tempfile.TemporaryDirectory(dir=BUILD) as where:
        for number in range(files):
            _make_library(Path(where, str(number)))
        with ctx.target("libraries", where, files, PROCESSES) as target:
            smaps = [f"smaps:{pid}" for pid in target.pids]
            with ctx.library(target) as library, ctx.floor(target, *smaps) as floor:
                pairs = ctx.compare(library.scan, of_line(floor))
                figure = "a map of all / reading smaps of all"
                yield Row(figure, pairs.ratio, "x", 2, pairs.note)
                yield Row("peak memory", library.peak_mib, "MiB")


def _make_library(path: Path) -> None:
    """Write a file, and have it on disk: what is dirty is not what libraries are."""
    with path.open("wb") as file:
        file.write(os.urandom(PAGES * os.sysconf("SC_PAGE_SIZE")))
        file.flush()
        os.fdatasync(file.fileno())
