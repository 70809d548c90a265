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

from tests.kernel.support.machine import StateMoved


def run_json(*arguments: object) -> Any:
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


NOBODY = 65534
DEADLINE_S = 60


# Everything is imported first: later it may be out of this user's reach.
AS_NOBODY = f"""
import ctypes, importlib, os, pkgutil, sys
import memlens
for module in pkgutil.walk_packages(memlens.__path__, "memlens."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, or his own /proc hides from him
from memlens.commands.main import cli
cli.main(sys.argv[1:], prog_name="memlens")
"""


def run(*arguments: str, is_nobody: bool = False) -> subprocess.CompletedProcess[str]:
    """Run memlens to its end, within the deadline."""
    program = ["-c", AS_NOBODY] if is_nobody else ["-m", "memlens"]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        errors="surrogateescape",
    )
