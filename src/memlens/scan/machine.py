"""The context of a scan: the kernel that is asked, how a caller follows it, and ends it."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from memlens.errors import AccessDenied, MemlensError
from memlens.kernel import features
from memlens.kernel.procfs import READ_NEEDS, Host, read_file
from memlens.report import Cost, Origin

Progress = Callable[[int, int], None]
Stop = Callable[[], bool]


class Stopped(Exception):
    """The caller wants the scan to end here."""


@dataclass(slots=True, eq=False)
class Machine(Host):
    """
    The context of a scan, made once and handed down: what is asked, how, and for how long.

    The guard, which lets a scan go on where a call does not come back, belongs here as well:
    whatever may wait is asked through the machine.

    :param on_progress: called with what is done and what there is in all, 0 if that is not
        known.
    :param should_stop: asked between pieces; True ends the scan.
    :param budget_s: seconds from the making of the machine after which the scan ends, with
        the rest missed; None for no end.
    """

    on_progress: Progress | None = None
    should_stop: Stop | None = None
    budget_s: float | None = None
    _deadline: float = field(default=float("inf"), init=False)
    _is_stopped: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.budget_s is not None:
            self._deadline = time.monotonic() + self.budget_s

    def may(self, interface: str) -> bool:
        """
        Return whether an interface is not switched off, and works here.

        >>> Machine(disabled=frozenset({"mincore"})).may("mincore")
        False

        :param interface: its name among the switches, as "pagemap_scan".
        """
        works = _WORKS.get(interface)
        return interface not in self.disabled and (works is None or works())

    def require_frames(self) -> None:
        """
        Refuse if this reader may not see page frames.

        :raises AccessDenied: if they are hidden.
        """
        if not features.is_pfn_visible():
            path = f"{self.root}/self/pagemap"
            raise AccessDenied("page frames are hidden", path=path, needs="CAP_SYS_ADMIN")

    def unfollowed(self) -> "Machine":
        """Return the same for what is needed even after a stop: nobody is told of it."""
        return replace(self, on_progress=None, should_stop=None, budget_s=None)

    def tell(self, done: int, total: int) -> None:
        """Tell the caller how far the scan is."""
        if self.on_progress is not None:
            self.on_progress(done, total)

    def step(self, done: int, total: int) -> None:
        """
        Tell how far the scan is.

        :raises Stopped: if it is to end.
        """
        self.tell(done, total)
        self.check_stop()

    def is_over(self) -> bool:
        """Return whether the caller wants an end, or the budget is spent."""
        if not self._is_stopped and self.should_stop is not None and self.should_stop():
            self._is_stopped = True
        return self._is_stopped or time.monotonic() > self._deadline

    def check_stop(self) -> None:
        """
        Go on, unless the scan is to end.

        :raises Stopped: if it is over.
        """
        if self.is_over():
            raise Stopped

    def why_over(self) -> str:
        """Return why a scan ended before its end."""
        return "the scan was stopped" if self._is_stopped else "the budget was spent"

    def origin(self) -> Origin:
        """Return where and when a scan that begins now is made."""
        try:
            boot_id = read_file(f"{self.root}/sys/kernel/random/boot_id").decode().strip()
        except OSError:
            boot_id = ""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return Origin(
            taken_at=now.replace("+00:00", "Z"),
            host=os.uname().nodename,
            boot_id=boot_id,
            kernel=os.uname().release,
            page_size_bytes=self.page_size_bytes,
            memlens=sys.modules["memlens"].__version__,
        )

    def cost(self) -> Cost:
        """Return what the scan has cost so far."""
        return Cost(self.meter.wall_s(), self.meter.read_bytes, self.meter.longest_read_s)


# Interfaces that not every kernel has, and how to find out.
_WORKS: dict[str, Callable[[], bool]] = {
    "pagemap_scan": features.has_pagemap_scan,
    "cachestat": features.has_cachestat,
}


def refusal_line(error: AccessDenied) -> str:
    """
    Return what was refused and what would be needed, unless this reader has that already.

    >>> refusal_line(AccessDenied("cannot read it", needs="a key"))
    'cannot read it: needs a key'
    """
    if error.needs != READ_NEEDS or os.geteuid() != 0 or not features.can_look_at_others():
        return str(error)
    return f"{MemlensError.__str__(error)}, even to root"
