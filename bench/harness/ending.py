"""Ending early: by a signal, but first everything that was made is taken away."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)


def end_by_signals() -> None:
    """Have the signals raise SystemExit, so that every ``with`` is left in order."""
    for number in ENDS:
        signal.signal(number, take_away_and_end)


def ignore_signals() -> None:
    """Have no more of them: what is under way would end halfway."""
    for number in ENDS:
        signal.signal(number, signal.SIG_IGN)


def take_away_and_end(number: int, _frame: object) -> NoReturn:
    """End by a signal, but first take away what was made: processes, and swap on zram."""
    ignore_signals()
    sys.exit(128 + number)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let no signal come in between, neither here nor in a program that is started here."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
