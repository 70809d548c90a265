"""
Runs memlens as a process of its own, and knows whether any other began meanwhile.

The process that looks maps libraries that others map too, and is gone when smaps_rollup is
read before and after.  The process of the tests maps them throughout.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workloads.base import StateMoved


def run_apart(*arguments: object) -> Any:
    """Return the JSON that a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "memlens", *map(str, arguments), "--json"],
        check=True,
        capture_output=True,
    )
    return json.loads(done.stdout)


@contextmanager
def unless_others_begin() -> Iterator[None]:
    """
    Let one process begin, and hold what is asserted unless more do.

    :raises StateMoved: if an assertion fails, and another process began meanwhile, which may
        have mapped the same libraries and ended again.
    """
    before = _count_begun()
    try:
        yield
    except AssertionError as error:
        if _count_begun() != before + 1:
            raise StateMoved(f"others began a process: {error}") from error
        raise


def _count_begun() -> int:
    """Return how many processes and threads have ever begun on this machine."""
    lines = Path("/proc/stat").read_text().splitlines()
    (count,) = (int(line.split()[1]) for line in lines if line.startswith("processes "))
    return count


def is_rollup_pss(pss_bytes: float, rollup_kib: int, pages: int) -> bool:
    """
    Return whether a PSS is that of smaps_rollup.

    The kernel divides in units of 1/4096 byte, and rounds down for each page; then it rounds
    the sum down to KiB.
    """
    return 0 <= pss_bytes + 1e-3 - rollup_kib * 1024 < 1024 + pages / 4096 + 2e-3
