"""
One pass over all processes: each one's mappings and page table are read at most once.

What is read depends on the question: the slots of private swapped pages, the shared
memory that a process maps or has open, the page frames that it maps.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from memlens.errors import AccessDenied, MemlensError, ProcessGone, Unsupported
from memlens.kernel import features
from memlens.kernel.kpage import KpageFile
from memlens.kernel.process import ProcessDir
from memlens.kernel.processes import has_all_processes
from memlens.objects.namespaces import Surroundings
from memlens.objects.opener import internal_device
from memlens.objects.tmpfs import SHMEM_TYPES
from memlens.report import Missed
from memlens.scan.facts import ProcessFacts, Want
from memlens.scan.frametable import find_swap_cached
from memlens.scan.machine import Machine, Stopped
from memlens.scan.process import ProcessReader, ShmemDevices, Tools
from memlens.units import count_of

_PIDS_NAMED = 5
_HIDDEN = "processes that this /proc does not show"
_WHY_HIDDEN = "they are outside of its PID namespace, or hidden by hidepid"


@dataclass(slots=True)
class Sweep:
    """
    A pass over processes.

    :param machine: what is asked; when it is over, the rest is missed.
    :param want: what to read.
    :param processes: what was found.
    :param missed: what could not be looked at.
    :param around: root directories and namespaces of processes, kept open until it is closed.
    :param gone: processes that ended meanwhile.
    :param is_complete: False if it was stopped, or the budget spent.
    """

    machine: Machine
    want: Want
    processes: list[ProcessFacts] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)
    around: Surroundings = field(init=False)
    gone: int = 0
    is_complete: bool = True
    devices: ShmemDevices = field(default_factory=ShmemDevices)
    _total: int = 0
    _refused: dict[str, list[int]] = field(default_factory=dict)
    _has_all: bool = True

    def __post_init__(self) -> None:
        self.around = Surroundings(self.machine)

    def run(self, pids: Iterable[int] | None = None) -> None:
        """
        Read the processes; what cannot be read is counted and named in ``missed``.

        :param pids: which, all of this /proc if None.
        """
        wanted = list(pids) if pids is not None else self.list_pids()
        self._total = len(wanted)
        self._has_all = pids is None and has_all_processes(self.machine)
        if self.want.objects:
            self._learn_devices(wanted)
        tools = self._tools()
        try:
            left = self._read_all(wanted, tools)
        except BaseException:
            self.around.close()
            raise
        finally:
            if tools.flags is not None:
                tools.flags.file.close()
        self._report(left)

    def list_pids(self) -> list[int]:
        """
        Return the PIDs of this /proc.

        :raises Unsupported: if it is none.
        """
        proc = self.machine.root
        try:
            pids = sorted(int(name) for name in os.listdir(proc) if name.isdigit())
        except OSError as error:
            raise Unsupported(f"{proc} is not a proc file system", path=proc) from error
        if not pids:
            raise Unsupported(f"{proc} is not a proc file system", path=proc)
        return pids

    def progress(self, done: int, total: int) -> None:
        """
        Tell how much of what comes after the processes is done.

        :param done: how much of it.
        :param total: what there is of it.
        """
        self.machine.tell(self._total + done, self._total + total)

    def miss_rest(self, what: str) -> None:
        """Note what is left out because the scan ended early."""
        self.is_complete = False
        self.missed.append(Missed(what, self.machine.why_over()))

    def may_miss_holders(self) -> bool:
        """
        Return whether an object may be in the hands of processes that were not looked at.

        A process that refuses itself even to the highest privilege is in ``missed`` alone.
        """
        is_refused = bool(self._refused) and not features.can_look_at_others()
        return is_refused or not (self._has_all and self.is_complete)

    def notes(self) -> list[str]:
        """Return what happened during the scan, one line each."""
        if not self.gone:
            return []
        return [f"{_processes(self.gone)} had ended, or did during the scan"]

    def _tools(self) -> Tools:
        flags = None
        if self.want.cached:
            file = self._kpage("kpageflags", "private pages in the swap cache")
            flags = None if file is None else find_swap_cached(file)
        return Tools(self.machine, self.devices, flags)

    def _kpage(self, name: str, what: str) -> KpageFile | None:
        try:
            self.machine.require_frames()
        except AccessDenied as error:
            self.missed.append(Missed(what, f"{error.message}: needs {error.needs}"))
            return None
        if not self.machine.may(name):
            self.missed.append(Missed(what, f"{name} is switched off"))
            return None
        try:
            return KpageFile(name, self.machine)
        except MemlensError as error:
            self.missed.append(Missed(what, str(error)))
            return None

    def _read_all(self, wanted: list[int], tools: Tools) -> int:
        """
        Read processes and return how many were left out.

        In one thread: docs/decisions/0010-one-thread-sweeps.md has the measurements.
        """
        for done, pid in enumerate(wanted):
            if self.machine.is_over():
                return len(wanted) - done
            try:
                self._take(self._read(pid, tools))
            except Stopped:
                return len(wanted) - done
            self.machine.tell(done + 1, self._total)
        return 0

    def _take(self, outcome: "_Outcome") -> None:
        """Keep what came of a process."""
        if outcome.facts is not None:
            self.processes.append(outcome.facts)
        elif outcome.is_gone:
            self.gone += 1
        elif outcome.refusal:
            self._refused.setdefault(outcome.refusal, []).append(outcome.pid)

    def _report(self, left: int) -> None:
        if left:
            self.miss_rest(_processes(left))
        for reason, pids in self._refused.items():
            self.missed.append(Missed(_name_processes(pids), reason))
        if not self._has_all:
            self.missed.append(Missed(_HIDDEN, _WHY_HIDDEN))
        if not self.want.rollup:
            hidden = sum(facts.is_swap_hidden for facts in self.processes)
            if hidden:
                reason = "swap slots are hidden: needs CAP_SYS_ADMIN"
                what = f"private pages on swap of {_processes(hidden)}"
                self.missed.append(Missed(what, reason))
        for device in sorted(self.devices.silent):
            what = f"objects on device {os.major(device):02x}:{os.minor(device):02x}"
            self.missed.append(Missed(what, "its file system does not answer"))

    def _learn_devices(self, pids: list[int]) -> None:
        """Collect the mounts of every mount namespace, for they tell tmpfs by its device."""
        for pid in pids:
            if self.machine.is_over():
                break
            self.around.add(pid)
        for view in self.around.views.values():
            for mount in view.mounts:
                self.devices.known[mount.device] = mount.kind in SHMEM_TYPES
        self.devices.internal = internal_device()
        self.devices.known[self.devices.internal] = True

    def _read(self, pid: int, tools: Tools) -> "_Outcome":
        try:
            with ProcessDir(pid, self.machine) as process:
                return _Outcome(pid, ProcessReader(process, self.want, tools).read())
        except ProcessGone:
            return _Outcome(pid, is_gone=True)
        except Unsupported:
            # A kernel thread: it has no memory of its own.
            return _Outcome(pid)
        except (MemlensError, OSError) as error:
            return _Outcome(pid, refusal=reason_of(error))


class _Outcome(NamedTuple):
    """What came of reading one process."""

    pid: int
    facts: ProcessFacts | None = None
    is_gone: bool = False
    refusal: str = ""


def reason_of(error: Exception) -> str:
    """Return what the kernel said, and what would be needed unless this is root."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    said = getattr(cause, "strerror", None) or str(cause)
    if not isinstance(error, AccessDenied):
        return said
    place = error.path.rpartition("/")[2]
    said = f"{place}: {said}" if not place.isdigit() else said
    return f"{said}: needs {error.needs}" if os.geteuid() else f"{said}, even to root"


def _processes(count: int) -> str:
    return count_of(count, "process", "processes")


def _name_processes(pids: list[int]) -> str:
    named = ", ".join(map(str, sorted(pids)[:_PIDS_NAMED]))
    more = ", ..." if len(pids) > _PIDS_NAMED else ""
    return f"{_processes(len(pids))} ({named}{more})"
