"""What something cost: wall time, and CPU time, which a busy machine disturbs less."""

import resource
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

from bench.harness.lines import BenchError, LineProcess


class Spent(NamedTuple):
    """Wall time, and CPU time of all threads, in ns."""

    wall_ns: int
    cpu_ns: int


Measured = Callable[[], Spent]


def of_call(call: Callable[[], object]) -> Measured:
    """Return a function that calls it once and says what that cost."""

    def once() -> Spent:
        before = _now(resource.RUSAGE_SELF)
        call()
        return _since(before, resource.RUSAGE_SELF)

    return once


def of_line(process: LineProcess) -> Measured:
    """Return a function that asks a child once, and gives what it says that cost."""

    def once() -> Spent:
        answer = process.ask()
        return Spent(int(answer["ns"]), int(answer["cpu_ns"]))

    return once


def of_command(command: list[str]) -> Measured:
    """
    Return a function that runs a command, its output thrown away, and says what that cost.

    The function raises BenchError if the command fails.
    """

    def once() -> Spent:
        before = _now(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        spent = _since(before, resource.RUSAGE_CHILDREN)
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise BenchError(f"exit code {done.returncode}: {' '.join([*command, *last])}")
        return spent

    return once


def _now(who: int) -> Spent:
    used = resource.getrusage(who)
    return Spent(time.perf_counter_ns(), int((used.ru_utime + used.ru_stime) * 1e9))


def _since(before: Spent, who: int) -> Spent:
    now = _now(who)
    return Spent(now.wall_ns - before.wall_ns, now.cpu_ns - before.cpu_ns)
