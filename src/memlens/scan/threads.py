"""Calls shared among threads, where a core is idle."""

import os
import threading
from collections.abc import Callable, Sequence


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
