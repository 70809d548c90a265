"""What a scenario is given: programs to start, how often to measure, and pairs."""

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness.lines import BenchError, LineProcess
from bench.harness.spent import Measured, Spent

WORKER = Path(__file__).parents[1] / "worker.py"
GIB = 1 << 30
MIB = 1 << 20


class SkipError(Exception):
    """The machine cannot run the scenario; the message says why."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """
    What two things cost, measured in turns; the first turn is left out.

    Each turn's ratio compares neighbours in time, so that a machine that slows down for a
    while slows both.
    """

    ours: list[Spent]
    theirs: list[Spent]

    @property
    def ratio(self) -> float:
        """Return the median over the turns of ours / theirs."""
        return _median_ratio(self.ours_ns, self.theirs_ns)

    @property
    def ours_ns(self) -> list[int]:
        """Return our wall times."""
        return [spent.wall_ns for spent in self.ours]

    @property
    def theirs_ns(self) -> list[int]:
        """Return their wall times."""
        return [spent.wall_ns for spent in self.theirs]

    @property
    def note(self) -> str:
        """Return both medians, and the ratios of the best times and of CPU time."""
        ours, theirs = (statistics.median(ns) / 1e6 for ns in (self.ours_ns, self.theirs_ns))
        best = min(self.ours_ns) / min(self.theirs_ns)
        cpu = _median_ratio([s.cpu_ns for s in self.ours], [s.cpu_ns for s in self.theirs])
        return f"{ours:.1f} ms / {theirs:.1f} ms; best / best {best:.2f}; CPU {cpu:.2f}"


def _median_ratio(ours: Sequence[int], theirs: Sequence[int]) -> float:
    return statistics.median(a / max(b, 1) for a, b in zip(ours, theirs, strict=True))


class Target(LineProcess):
    """A process to look at; see ``targets.c`` for its kinds."""

    @property
    def pid(self) -> int:
        """Return its PID."""
        return int(self.ready["pid"])

    @property
    def pids(self) -> list[int]:
        """Return the PIDs of those that hold what it made: its own, or its children's."""
        return [int(pid) for pid in self.ready.get("pids", [self.pid])]

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
    """
    The library at work in a process of its own; see ``worker.py``.

    :param wanted: pages of each class that are true of the target, or another answer that
        the worker gives; None if only a part of the target is looked at.
    """

    def __init__(
        self, command: Sequence[str], target: Target, wanted: dict[str, int] | None
    ) -> None:
        super().__init__(command)
        self._target = target
        self._wanted = wanted
        self.last: dict[str, Any] = {}

    def scan(self) -> Spent:
        """
        Scan once and say what that cost.

        :raises BenchError: if the answer is not true: a wrong answer has no speed.
        """
        self.last = self.ask(f"{self._target.start} {self._target.stop}")
        found = self.last["pages"]
        if self._wanted is not None and found != self._wanted:
            swap = "; swap is on, it may have been paged out" if _is_swap_on() else ""
            raise BenchError(f"wrong answer: {found} instead of {self._wanted}{swap}")
        return Spent(int(self.last["ns"]), int(self.last["cpu_ns"]))

    @property
    def peak_mib(self) -> float:
        """Return its peak memory so far."""
        return float((self.last or self.ready)["peak_bytes"]) / MIB


@dataclass(frozen=True, slots=True)
class Context:
    """
    :param programs: the built C programs by name; a text says why one is missing.
    :param is_quick: an eighth of the memory and fewer turns, to try things out.
    :param is_long: more turns of what takes seconds, and peers that do.
    """

    programs: dict[str, Path | str]
    is_quick: bool = False
    is_long: bool = False

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

    def library(
        self,
        target: Target,
        addresses: tuple[int, int] | None = None,
        *,
        call: str = "map_process",
        wanted: dict[str, int] | None = None,
        disabled: str = "",
    ) -> Library:
        """
        Start a process that scans the target, or a part of it, with the library.

        :param call: of the library; see ``worker.py``.
        :param wanted: the true answer, if it is not the pages of the target.
        :param disabled: what MEMLENS_DISABLE names.
        """
        pids = ",".join(map(str, target.pids))
        limits = [str(address) for address in addresses or ()]
        command = ["env", f"MEMLENS_DISABLE={disabled}"]
        command += [sys.executable, str(WORKER), call, pids, *limits]
        true = {label: pages for label, pages in target.ready["pages"].items() if pages}
        return Library(command, target, wanted or (None if addresses else true))

    def compare(self, ours: Measured, theirs: Measured) -> Pairs:
        """
        Measure both in turns, A B A B.

        What is slow is measured less often, but thrice unless that takes too long.
        """
        enough_s, most_s = (30, 1e9) if self.is_long else (4, 8)
        ours(), theirs()
        turns: list[tuple[Spent, Spent]] = []
        began = time.monotonic()
        took = 0.0
        while len(turns) < self.turns and took < (enough_s if len(turns) > 2 else most_s):
            turns.append((ours(), theirs()))
            took = time.monotonic() - began
        return Pairs([a for a, _ in turns], [b for _, b in turns])


def find_memlens(*arguments: str) -> list[str]:
    """Return the command as installed beside this interpreter."""
    script = Path(sys.executable).parent / "memlens"
    if not script.exists():
        raise BenchError(f"{script.name} is not installed beside {Path(sys.executable).name}")
    return [str(script), *arguments]


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _is_swap_on() -> bool:
    return len(Path("/proc/swaps").read_text().splitlines()) > 1
