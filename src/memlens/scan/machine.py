"""How a caller follows a scan, and ends it."""

import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from memlens.errors import AccessDenied, MemlensError
from memlens.kernel import features
from memlens.kernel.processes import can_look_at_others
from memlens.kernel.procfs import READ_NEEDS, read_file
from memlens.report import Origin

Progress = Callable[[int, int], None]
Stop = Callable[[], bool]


class Stopped(Exception):
    """The caller wants the scan to end here."""


class Follow(NamedTuple):
    """
    What a caller is told of a scan, and asked.

    :param on_progress: called with what is done and what there is in all, 0 if that is not
        known.
    :param should_stop: asked between pieces; True ends the scan.
    """

    on_progress: Progress | None = None
    should_stop: Stop | None = None

    def step(self, done: int, total: int) -> None:
        """
        Tell how far it is.

        :raises Stopped: if the caller wants an end.
        """
        if self.on_progress is not None:
            self.on_progress(done, total)
        if self.should_stop is not None and self.should_stop():
            raise Stopped


def stop_after(should_stop: Stop | None, budget_s: float | None) -> Stop | None:
    """Return a question that is also answered with yes once a budget is spent."""
    if budget_s is None:
        return should_stop
    deadline = time.monotonic() + budget_s
    return lambda: time.monotonic() > deadline or bool(should_stop and should_stop())


def refusal_line(error: AccessDenied) -> str:
    """
    Return what was refused and what would be needed, unless this reader has that already.

    >>> refusal_line(AccessDenied("cannot read it", needs="a key"))
    'cannot read it: needs a key'
    """
    if error.needs != READ_NEEDS or os.geteuid() != 0 or not can_look_at_others():
        return str(error)
    return f"{MemlensError.__str__(error)}, even to root"


def read_origin(proc: str) -> Origin:
    """Return where and when a scan that begins now is made."""
    try:
        boot_id = read_file(f"{proc}/sys/kernel/random/boot_id").decode().strip()
    except OSError:
        boot_id = ""
    return Origin(
        taken_at=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        host=os.uname().nodename,
        boot_id=boot_id,
        kernel=os.uname().release,
        page_size_bytes=features.page_size_bytes(),
        memlens=sys.modules["memlens"].__version__,
    )
