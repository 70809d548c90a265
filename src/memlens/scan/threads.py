"""Calls in other threads: shared where a core is idle, or left alone where they hang."""

import os
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

_T = TypeVar("_T")


def count_threads() -> int:
    """Return how many threads to read with."""
    return min(len(os.sched_getaffinity(0)), _THREADS_AT_MOST)


def run_threads(calls: Sequence[Callable[[], None]]) -> None:
    """
    Run all of these at once, the first in this thread, and wait for them.

    The first error of any is raised.  (concurrent.futures takes 10 ms to import.)
    """
    errors: list[BaseException] = []

    def guard(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guard, args=(call,)) for call in calls[1:]]
    for thread in threads:
        thread.start()
    for call in calls[:1]:
        guard(call)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# More would wait for each other: what Python does between reads, it does one at a time.
_THREADS_AT_MOST = 4

# A file system that takes longer to answer is not waited for.
_PATIENCE_S = 2.0


def ask_patiently(call: Callable[[], _T], otherwise: _T) -> _T | None:
    """
    Return what a call returns in another thread, None if it does not come back.

    The thread is left alone then.

    :param otherwise: what is returned if it raises OSError.

    >>> ask_patiently(lambda: os.stat("/").st_nlink > 0, False)
    True
    """
    # Not a Future: concurrent.futures imports 10 ms of other modules.
    answers: SimpleQueue[_T] = SimpleQueue()

    def run() -> None:
        try:
            answers.put(call())
        except OSError:
            answers.put(otherwise)

    threading.Thread(target=run, name="memlens-asks", daemon=True).start()
    try:
        return answers.get(timeout=_PATIENCE_S)
    except Empty:
        return None
