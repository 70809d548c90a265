"""CPU time, which neighbours on the machine disturb less than they disturb wall time."""

import os
import resource
import subprocess
from collections.abc import Callable


def cpu_of(call: Callable[[], object]) -> Callable[[], int]:
    """Return a function that calls it and gives the CPU time of all our threads in ns."""

    def once() -> int:
        began = _ns(resource.RUSAGE_SELF)
        call()
        return _ns(resource.RUSAGE_SELF) - began

    return once


def cpu_of_program(command: list[str]) -> Callable[[], int]:
    """Return a function that runs a command, its output thrown away, and gives its ns."""

    def once() -> int:
        with open(os.devnull, "w") as nowhere:
            began = _ns(resource.RUSAGE_CHILDREN)
            subprocess.run(command, check=True, stdout=nowhere)
            return _ns(resource.RUSAGE_CHILDREN) - began

    return once


def _ns(who: int) -> int:
    used = resource.getrusage(who)
    return int((used.ru_utime + used.ru_stime) * 1e9)
