"""Which processes run in one memory: the end of one of them frees nothing of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from memlens.errors import MemlensError, ProcessGone
from memlens.kernel.syscalls import compare_memory, has_memory, is_own_namespace
from memlens.scan.facts import ProcessFacts
from memlens.scan.machine import Machine
from memlens.units import count_of


class _Row(Protocol):
    """Something about one process."""

    @property
    def pid(self) -> int: ...


_R = TypeVar("_R", bound=_Row)


@dataclass(slots=True)
class Memories:
    """
    Processes that share all of their memory with others.

    :param shared: the PID that stands for the memory, by the PID of each that runs in one
        with another process.
    :param unshown: the same of those that are not shown and run in one with one shown.
    :param doubtful: processes of which that could not be found out.
    :param reason: why not.
    """

    shared: dict[int, int] = field(default_factory=dict)
    unshown: dict[int, int] = field(default_factory=dict)
    doubtful: set[int] = field(default_factory=set)
    reason: str = ""

    def freed(self, pid: int, private_pages: int) -> int | None:
        """Return what of its private pages the end of a process frees; None if in doubt."""
        if pid in self.doubtful:
            return None
        return 0 if pid in self.shared else private_pages

    def of(self, pid: int) -> int:
        """Return the PID that stands for the memory of a process."""
        return self.shared.get(pid) or self.unshown.get(pid, pid)

    def once(self, rows: Iterable[_R]) -> list[_R]:
        """Return rows of processes, of each memory the first."""
        return list({self.of(row.pid): row for row in reversed([*rows])}.values())

    def notes(self) -> list[str]:
        """Return what to know of what exits free, one line each."""
        notes = []
        if self.shared:
            runs = "process runs" if len(self.shared) == 1 else "processes run"
            notes.append(
                f"{len(self.shared)} {runs} in one memory with another process: the end of one "
                "alone frees nothing of it"
            )
        if self.doubtful:
            doubtful = count_of(len(self.doubtful), "process", "processes")
            notes.append(
                f"{self.reason}: of {doubtful} it is not known whether they run in one memory "
                "with others, nor what their exit frees"
            )
        return notes


def find_memories(
    processes: Iterable[ProcessFacts],
    is_shown: Callable[[ProcessFacts], bool],
    machine: Machine,
) -> Memories:
    """
    Return which of the processes shown run in one memory with any process.

    :param processes: all that could be looked at.
    :param machine: what they are of.

    Only those whose arguments lie at the same addresses are compared: these belong to the
    memory.  Forked processes are alike in that, and only the kernel can tell.
    """
    found = Memories()
    alike: dict[tuple[int, int], list[ProcessFacts]] = {}
    for facts in processes:
        alike.setdefault(facts.arguments, []).append(facts)
    for group in alike.values():
        # Those shown come first: the others are compared with them alone.
        group.sort(key=lambda facts: not is_shown(facts))
        if len(group) > 1 and is_shown(group[0]):
            _compare(group, is_shown, machine, found)
    return found


def _compare(
    group: list[ProcessFacts],
    is_shown: Callable[[ProcessFacts], bool],
    machine: Machine,
    found: Memories,
) -> None:
    found.reason = found.reason or _find_obstacle(machine)
    if not found.reason:
        try:
            _join(group, is_shown, machine, found)
        except MemlensError as error:
            found.reason = str(error)
    if found.reason:
        pids = {facts.pid for facts in group if is_shown(facts)}
        found.doubtful |= pids - found.shared.keys()


def _find_obstacle(machine: Machine) -> str:
    if not machine.may("kcmp"):
        return "kcmp is switched off"
    if not is_own_namespace(machine):
        return f"processes of {machine.root} have other numbers here"
    return ""


def _join(
    group: list[ProcessFacts],
    is_shown: Callable[[ProcessFacts], bool],
    machine: Machine,
    found: Memories,
) -> None:
    """Find each process among those before it, which are kept in the kernel's order."""
    known: list[ProcessFacts] = []
    for facts in group:
        try:
            place, is_same = _find(known, facts)
        except ProcessGone:
            continue
        if not is_same:
            if is_shown(facts):
                known.insert(place, facts)
        elif has_memory(facts.tid, machine):
            # Without memory it has ended, and so had the other.
            first = known[place].pid
            found.shared[first] = first
            (found.shared if is_shown(facts) else found.unshown)[facts.pid] = first


def _find(known: list[ProcessFacts], facts: ProcessFacts) -> tuple[int, bool]:
    """
    Return where a process belongs, and whether one is there that has the same memory.

    :raises ProcessGone: if it is gone.
    """
    low, high = 0, len(known)
    while low < high:
        middle = (low + high) // 2
        try:
            order = compare_memory(facts.tid, known[middle].tid)
        except ProcessGone:
            compare_memory(facts.tid, facts.tid)
            # It is the other that is gone.
            del known[middle]
            high -= 1
            continue
        if order == 0:
            return middle, True
        low, high = (low, middle) if order < 0 else (middle + 1, high)
    return low, False
