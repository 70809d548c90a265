"""
Ctrl-C while the program starts: the end, without a word.

Python's own answer, an exception, comes out as a traceback of half-done imports, or is
lost in a callback of the importer.
"""

import os
import signal

_EXIT_INTERRUPTED = 130  # as in common, which imports too much to be asked here


def begin() -> None:
    """Let Ctrl-C end the program at once, unless whoever started it wants it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def end() -> None:
    """Let Ctrl-C be an exception again: from here on there may be something to take away."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_at_once(*_: object) -> None:
    os._exit(_EXIT_INTERRUPTED)
