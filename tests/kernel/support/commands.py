"""
The command line of memlens, and whether any other process began meanwhile.

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

NOBODY = 65534
DEADLINE_S = 60
# Everything is imported first: later it may be out of this user's reach.
_AS_USER = """
import ctypes, importlib, os, pkgutil, sys
import memlens
from memlens.__main__ import main
for module in pkgutil.walk_packages(memlens.__path__, "memlens."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
uid, is_dumpable, *arguments = sys.argv[1:]
os.setgroups([])
os.setresgid(int(uid), int(uid), int(uid))
os.setresuid(int(uid), int(uid), int(uid))
ctypes.CDLL(None).prctl(4, int(is_dumpable), 0, 0, 0)  # PR_SET_DUMPABLE, or /proc hides him
sys.argv = ["memlens", *arguments]
sys.exit(main())
"""


def as_user(uid: int, *, is_dumpable: bool = True) -> list[str]:
    """Return the words that run memlens as an ordinary user, before its arguments."""
    return [sys.executable, "-c", _AS_USER, str(uid), str(int(is_dumpable))]


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


def run(*arguments: str, is_nobody: bool = False) -> subprocess.CompletedProcess[str]:
    """Run memlens to its end, within the deadline."""
    program = as_user(NOBODY) if is_nobody else [sys.executable, "-m", "memlens"]
    return subprocess.run(
        [*program, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        errors="surrogateescape",
    )
