"""
How the program starts and ends: fast, and without a word at Ctrl-C.

Python's own answer to Ctrl-C, an exception, comes out as a traceback of half-done imports,
or is lost in a callback of the importer.
"""

import gc
import os
import signal
import sys
from typing import NoReturn

_EXIT_INTERRUPTED = 130  # as in common, which imports too much to be asked here

# Python's own, 700, runs its collector dozens of times over modules that are all kept.
_GARBAGE = 20_000


def begin() -> None:
    """Let Ctrl-C end the program at once, unless whoever started it wants it ignored."""
    gc.set_threshold(_GARBAGE)
    # numpy's library of linear algebra, unused here, starts a thread for each CPU and
    # allocates memory for it: a third of the time that numpy takes to import.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def end() -> None:
    """Let Ctrl-C be an exception again: from here on there may be something to take away."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave(code: object) -> NoReturn:
    """
    End the program without taking it apart: the kernel is quicker, by some 15 ms.

    :param code: of ``SystemExit``; one that is no number is left to Python to print.
    """
    if code is not None and not isinstance(code, int):
        sys.exit(code)  # type: ignore[arg-type]
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code or 0)


def _end_at_once(*_: object) -> None:
    os._exit(_EXIT_INTERRUPTED)
