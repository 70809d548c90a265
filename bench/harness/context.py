"""What a scenario is given: programs to start, how often to measure, and pairs."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness.lines import BenchError, LineProcess

WORKER = Path(__file__).parents[1] / "worker.py"
GIB = 1 << 30
MIB = 1 << 20


class SkipError(Exception):
    """The machine cannot run the scenario; the message says why."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """
    Times of two things measured in turns, in ns; the first turn is left out.

    Each turn's ratio compares neighbours in time, so that a machine that slows down for a
    while slows both.
    """

    ours: list[int]
    theirs: list[int]

    @property
    def ratio(self) -> float:
        """Return the median over the turns of ours / theirs."""
        return statistics.median(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def best_ratio(self) -> float:
        """Return our best time / their best time."""
        return min(self.ours) / min(self.theirs)

    @property
    def note(self) -> str:
        """Return both medians, and the ratio of the best times."""
        ours, theirs = (statistics.median(times) / 1e6 for times in (self.ours, self.theirs))
        return f"{ours:.1f} ms / {theirs:.1f} ms; best / best {self.best_ratio:.2f}"


class Target(LineProcess):
    """A process to look at; see ``targets.c`` for its kinds."""

    @property
    def pid(self) -> int:
        """Return its PID."""
        return int(self.ready["pid"])

    @property
    def start(self) -> int:
        """Return the first address of what it made."""
        return int(self.ready["start"])

    @property
    def stop(self) -> int:
        """Return the address after the last of what it made."""
        return int(self.ready["stop"])

    @property
    def addresses(self) -> str:
        """Return ``start-stop`` as in /proc/PID/maps."""
        return f"{self.start:x}-{self.stop:x}"


class Library(LineProcess):
    """The library at work in a process of its own; see ``worker.py``."""

    def __init__(self, command: Sequence[str], target: Target, is_partial: bool) -> None:
        super().__init__(command)
        self._target = target
        self._is_partial = is_partial
        self.last: dict[str, Any] = {}

    def scan(self) -> int:
        """
        Scan once and return the time in ns.

        :raises BenchError: if the answer is not true: a wrong answer has no speed.
        """
        self.last = self.ask()
        found = self._found()
        wanted = self._target.ready["pages"]
        if not self._is_partial and found != wanted:
            swap = "; swap is on, it may have been paged out" if _is_swap_on() else ""
            raise BenchError(f"wrong answer: {found} instead of {wanted}{swap}")
        return int(self.last["ns"])

    @property
    def peak_mib(self) -> float:
        """Return its peak memory so far."""
        return float((self.last or self.ready)["peak_bytes"]) / MIB

    def _found(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for start, stop, counts in self.last["mappings"]:
            if start >= self._target.start and stop <= self._target.stop:
                for label, count in zip(self.ready["labels"], counts, strict=True):
                    found[label] = found.get(label, 0) + count
        return {label: count for label, count in found.items() if count}


@dataclass(frozen=True, slots=True)
class Context:
    """
    :param programs: the built C programs by name; a text says why one is missing.
    :param is_quick: an eighth of the memory and fewer turns, to try things out.
    """

    programs: dict[str, Path | str]
    is_quick: bool = False

    @property
    def turns(self) -> int:
        """Return how many turns to measure, after one that does not count."""
        return 4 if self.is_quick else 11

    @property
    def watch_s(self) -> float:
        """Return how long to watch for a worst case."""
        return 1.0 if self.is_quick else 8.0

    def scale(self, amount: int) -> int:
        """Return the bytes, or number, to use in place of the full one."""
        return amount // 8 if self.is_quick else amount

    def program(self, name: str) -> str:
        """Return the path of a program, or raise SkipError."""
        program = self.programs[name]
        if isinstance(program, str):
            raise SkipError(program)
        return str(program)

    def target(self, kind: str, *arguments: object, needs_bytes: int = 0) -> Target:
        """Start a process to look at, if the machine has the memory for it."""
        available = _available_bytes()
        if needs_bytes + 2 * GIB > available:
            raise SkipError(f"needs {needs_bytes / GIB:.1f} GiB and 2 more to spare")
        return Target([self.program("targets"), kind, *map(str, arguments)])

    def floor(self, target: Target, *steps: str) -> LineProcess:
        """Start the reader that only reads; see ``floor.c`` for the steps."""
        return LineProcess([self.program("floor"), str(target.pid), *steps])

    def library(self, target: Target, addresses: tuple[int, int] | None = None) -> Library:
        """Start a process that scans the target, or a part of it, with the library."""
        limits = [str(address) for address in addresses or ()]
        command = [sys.executable, str(WORKER), str(target.pid), *limits]
        return Library(command, target, is_partial=addresses is not None)

    def compare(self, ours: Callable[[], int], theirs: Callable[[], int]) -> Pairs:
        """
        Measure both in turns, A B A B; each gives its time in ns.

        What is so slow that it takes half a minute is measured less often, but thrice.
        """
        ours(), theirs()
        turns: list[tuple[int, int]] = []
        until = time.monotonic() + 30
        while len(turns) < self.turns and (len(turns) < 3 or time.monotonic() < until):
            turns.append((ours(), theirs()))
        return Pairs([a for a, _ in turns], [b for _, b in turns])


def timed(floor: LineProcess) -> Callable[[], int]:
    """Return a function that runs the floor once and gives its time in ns."""
    return lambda: int(floor.ask()["ns"])


def timed_command(command: list[str]) -> Callable[[], int]:
    """Return a function that runs a command, its output thrown away, and gives its ns."""

    def once() -> int:
        began = time.perf_counter_ns()
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        took = time.perf_counter_ns() - began
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise BenchError(f"exit code {done.returncode}: {' '.join([*command, *last])}")
        return took

    return once


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _is_swap_on() -> bool:
    return len(Path("/proc/swaps").read_text().splitlines()) > 1
