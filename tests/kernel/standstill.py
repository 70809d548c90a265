"""
Looks at swap while nothing moves on the machine.

Once swap is on, whatever idles on a machine may be pushed out, a few pages every few seconds
(DAMON does so here), and programs that go on read theirs back.  What is looked at in one such
pause must be exact; a look during which a page moved is made again.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import raw
from driver import PAGE
from shm_made import used_pages
from workloads.base import StateMoved

from memlens import SwapLedger, read_swap_ledger

DEADLINE_S = 90
# All ways that a page can go to swap or come back.
_COUNTERS = ("pswpin", "pswpout", "swpin_zero", "swpout_zero", "zswpin", "zswpout")
T = TypeVar("T")


def again_if_moved(attempt: Callable[[], T], seconds: float = DEADLINE_S) -> T:
    """Try until nothing moved meanwhile; what is raised at the deadline is raised."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            return attempt()
        except StateMoved:
            continue
    return attempt()


@contextmanager
def standing_still() -> Iterator[None]:
    """Raise StateMoved if a page went to swap or came back in the block."""
    before = _read_counters()
    yield
    after = _read_counters()
    if after != before:
        raise StateMoved(f"something was swapped meanwhile: {before}, {after}")


def _read_counters() -> tuple[int, ...]:
    counters = raw.read_vmstat()
    return used_pages(), *(counters.get(name, 0) for name in _COUNTERS)


@dataclass(frozen=True)
class StillLedger:
    """
    A ledger made while no page moved.

    :param unreadable: pages on swap of processes whose page tables refuse even root.
    """

    ledger: SwapLedger
    unreadable: int


def read_still_ledger() -> StillLedger:
    """Read the ledger, slots too, in a pause; each try takes part of a second."""

    def attempt() -> StillLedger:
        with standing_still():
            return StillLedger(read_swap_ledger(slots=True), unreadable_pages())

    return again_if_moved(attempt)


def unreadable_pages() -> int:
    """Return the swapped pages of processes whose page tables refuse even root."""
    found = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            os.close(os.open(f"/proc/{name}/pagemap", os.O_RDONLY))
        except PermissionError:
            status = Path(f"/proc/{name}/status").read_text()
            found += sum(
                int(line.split()[1]) * 1024 // PAGE
                for line in status.splitlines()
                if line.startswith("VmSwap:")
            )
        except OSError:
            continue
    return found
