"""
Looks at swap while nothing moves on the machine.

Once swap is on, whatever idles on a machine may be pushed out, a few pages every few seconds
(DAMON does so here), and programs that go on read theirs back.  What is looked at in one such
pause must be exact; a look during which a page moved is made again.  What is pushed out may
also be shared memory of processes that nothing here can look at: those outside of a PID
namespace, or one that refuses even root (PID 1 of some virtual machines).
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from memlens import SwapLedger, read_swap_ledger
from tests.kernel.support import oracle
from tests.kernel.support.driver import PAGE
from tests.kernel.support.machine import StateMoved
from tests.kernel.support.swap import used_pages

DEADLINE_S = 90
# All ways that a page can go to swap or come back.
_COUNTERS = ("pswpin", "pswpout", "swpin_zero", "swpout_zero", "zswpin", "zswpout")
# PROC_PID_INIT_INO of the kernel: the namespace in which every process has a number.
_INIT_PID_NAMESPACE = 0xEFFFFFFC
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
    counters = oracle.read_vmstat()
    return used_pages(), *(counters.get(name, 0) for name in _COUNTERS)


@dataclass(frozen=True)
class StillLedger:
    """
    A ledger made while no page moved.

    :param unreadable: pages on swap of processes whose page tables refuse even root.
    """

    ledger: SwapLedger
    unreadable: int

    @property
    def reachable(self) -> int:
        """Pages of the remainder that are not of a process that refuses."""
        return self.ledger.sums["swap"]["remainder_pages"] - self.unreadable


def read_still_ledger() -> StillLedger:
    """Read the ledger, slots too, in a pause; each try takes part of a second."""

    def attempt() -> StillLedger:
        with standing_still():
            return StillLedger(read_swap_ledger(slots=True), _unreadable_pages())

    return again_if_moved(attempt)


def hold_rise(before: StillLedger, after: StillLedger, pages: int) -> None:
    """
    Hold that as many more pages as this have no owner, to the page.

    :raises StateMoved: if there is another reason that nothing here can rule out: shared
        memory that only a process out of sight holds has gone to swap or come back.  To be
        built again, since what the ledger itself fails to find is missing each time.
    """
    rise = after.reachable - before.reachable
    if rise != pages and _is_anybody_out_of_sight():
        raise StateMoved(f"{rise} more pages have no owner instead of {pages}")
    assert rise == pages


def _is_anybody_out_of_sight() -> bool:
    is_all = os.stat("/proc/self/ns/pid").st_ino == _INIT_PID_NAMESPACE
    return not is_all or bool(_refusing())


def _unreadable_pages() -> int:
    """Return the swapped pages of processes whose page tables refuse even root."""
    return sum(
        int(line.split()[1]) * 1024 // PAGE
        for name in _refusing()
        for line in Path(f"/proc/{name}/status").read_text().splitlines()
        if line.startswith("VmSwap:")
    )


def _refusing() -> list[str]:
    """Return the processes whose page tables and descriptors refuse even root."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            os.close(os.open(f"/proc/{name}/pagemap", os.O_RDONLY))
        except PermissionError:
            found.append(name)
        except OSError:
            continue
    return found
