"""
One pass over all processes: each one's mappings and page table are read at most once.

What is read depends on the question: the slots of private swapped pages, the shared
memory that a process maps or has open, the page frames that it maps.
"""

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from memlens.account.charges import Charges
from memlens.account.facts import Missed, ProcessFacts, Progress, Stop, Stopped, Want
from memlens.account.model import Cost
from memlens.account.reader import ProcessReader, ShmemDevices, Tools
from memlens.errors import AccessDenied, MemlensError, ProcessGone, Unsupported
from memlens.kernel import features
from memlens.kernel.kpage import KpageFile
from memlens.kernel.opening import internal_device
from memlens.kernel.process import ProcessDir
from memlens.kernel.procfs import Meter
from memlens.kernel.shm import SHMEM_TYPES, Mount, namespace_inode, parse_mounts

# How often the caller is asked whether to go on while one process is read.
_POLL_S = 0.05
_PIDS_NAMED = 5
_SPENT = "the budget was spent"
_STOPPED = "the scan was stopped"


@dataclass(slots=True)
class Sweep:
    """
    A pass over processes.

    :param proc: root of the /proc to read.
    :param want: what to read.
    :param budget_s: seconds after which it ends, with the rest missed; None for no end.
    :param on_progress: called with what is done and what there is in all.
    :param should_stop: asked often; True ends it, with the rest missed.
    :param processes: what was found.
    :param missed: what could not be looked at.
    :param mounts: of each mount namespace, and a process in it, by its number.
    :param gone: processes that ended meanwhile.
    :param is_complete: False if it was stopped, or the budget spent.
    """

    proc: str
    want: Want
    budget_s: float | None = None
    on_progress: Progress | None = None
    should_stop: Stop | None = None
    meter: Meter = field(default_factory=Meter)
    processes: list[ProcessFacts] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)
    mounts: dict[tuple[int, str], tuple[int, list[Mount]]] = field(default_factory=dict)
    gone: int = 0
    is_complete: bool = True
    devices: ShmemDevices = field(default_factory=ShmemDevices)
    charges: Charges | None = None
    _deadline: float = float("inf")
    _is_stopped: bool = False
    _total: int = 0
    _refused: dict[str, list[int]] = field(default_factory=dict)

    def run(self, pids: Iterable[int] | None = None) -> None:
        """
        Read the processes; what cannot be read is counted and named in ``missed``.

        :param pids: which, all of this /proc if None.
        """
        if self.budget_s is not None:
            self._deadline = time.monotonic() + self.budget_s
        wanted = list(pids) if pids is not None else self.list_pids()
        self._total = len(wanted)
        if self.want.objects:
            self._learn_devices(wanted)
        tools = self._tools()
        try:
            left = self._read_all(wanted, tools)
        finally:
            charged = None if tools.charges is None else tools.charges.file
            for file in (tools.flags, charged):
                if file is not None:
                    file.close()
                    self.meter.merge(file.meter)
        self._report(left)

    def list_pids(self) -> list[int]:
        """
        Return the PIDs of this /proc.

        :raises Unsupported: if it is none.
        """
        try:
            pids = sorted(int(name) for name in os.listdir(self.proc) if name.isdigit())
        except OSError as error:
            raise Unsupported(
                f"{self.proc} is not a proc file system", path=self.proc
            ) from error
        if not pids:
            raise Unsupported(f"{self.proc} is not a proc file system", path=self.proc)
        return pids

    def is_over(self) -> bool:
        """Return whether the budget is spent, or the caller wants an end."""
        if not self._is_stopped and self.should_stop is not None and self.should_stop():
            self._is_stopped = True
        return self._is_ending()

    def progress(self, done: int, total: int) -> None:
        """
        Tell how much of what comes after the processes is done.

        :param done: how much of it.
        :param total: what there is of it.
        """
        if self.on_progress is not None:
            self.on_progress(self._total + done, self._total + total)

    def check_stop(self) -> None:
        """
        Raise ``Stopped`` if the scan is to end; for loops on the caller's thread.

        :raises Stopped: if so.
        """
        if self.is_over():
            raise Stopped

    def miss_rest(self, what: str) -> None:
        """Note what is left out because the scan ended early."""
        self.is_complete = False
        self.missed.append(Missed(what, _STOPPED if self._is_stopped else _SPENT))

    def cost(self) -> Cost:
        """Return what the scan has cost so far."""
        meter = self.meter
        return Cost(meter.wall_s(), meter.read_bytes, meter.longest_read_s)

    def _is_ending(self) -> bool:
        return self._is_stopped or time.monotonic() > self._deadline

    def _check_in_thread(self) -> None:
        # Only the caller's own thread asks the caller.
        if self._is_ending():
            raise Stopped

    def _tools(self) -> Tools:
        has_scan = features.has_pagemap_scan()
        use_scan = has_scan and "pagemap_scan" not in features.read_disabled()
        has_pfns = features.is_pfn_visible()
        flags = None
        if self.want.cached:
            flags = self._kpage("kpageflags", "private pages in the swap cache")
        if self.want.present and has_pfns:
            try:
                self.charges = Charges(KpageFile("kpagecgroup", self.proc))
            except MemlensError:
                self.charges = None
        return Tools(use_scan, self.devices, flags, self.charges, self._check_in_thread)

    def _kpage(self, name: str, what: str) -> KpageFile | None:
        if not features.is_pfn_visible():
            reason = "page frame numbers are hidden: needs CAP_SYS_ADMIN"
            self.missed.append(Missed(what, reason))
            return None
        if name in features.read_disabled():
            self.missed.append(Missed(what, f"{name} is switched off"))
            return None
        try:
            return KpageFile(name, self.proc)
        except MemlensError as error:
            self.missed.append(Missed(what, str(error)))
            return None

    def _read_all(self, wanted: list[int], tools: Tools) -> int:
        """Read processes, in several threads; return how many were left out."""
        own = _own_pid(self.proc)
        left = 0
        if own in wanted:
            # Before the other threads open what is not ours to have open.
            left += self._take(lambda: self._read(own, tools))
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            futures = [pool.submit(self._read, pid, tools) for pid in wanted if pid != own]
            for done, future in enumerate(futures, 1):
                self._await(future)
                left += self._take(future.result)
                if self.on_progress is not None:
                    self.on_progress(done, self._total)
        return left

    def _take(self, result: "Callable[[], _Outcome]") -> int:
        """Keep what a reader found; return 1 if the end of the scan came first."""
        try:
            outcome = result()
        except Stopped:
            return 1
        self.meter.merge(outcome.meter)
        if outcome.facts is not None:
            self.processes.append(outcome.facts)
        elif outcome.is_gone:
            self.gone += 1
        elif outcome.refusal:
            self._refused.setdefault(outcome.refusal, []).append(outcome.pid)
        return 0

    def _await(self, future: "Future[_Outcome]") -> None:
        while not future.done():
            self.is_over()
            try:
                future.exception(_POLL_S)
            except TimeoutError:
                continue

    def _report(self, left: int) -> None:
        if left:
            self.miss_rest(_processes(left))
        for reason, pids in self._refused.items():
            self.missed.append(Missed(_name_processes(pids), reason))
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
            try:
                fd = os.open(f"{self.proc}/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                # A process in a chroot sees only the mounts below its root.
                place = namespace_inode(fd, "mnt"), os.readlink("root", dir_fd=fd)
                if place not in self.mounts:
                    self.mounts[place] = (pid, self._read_mounts(fd))
            except OSError:
                continue
            finally:
                os.close(fd)
        for _, mounts in self.mounts.values():
            for mount in mounts:
                self.devices.known[mount.device] = mount.kind in SHMEM_TYPES
        self.devices.known[internal_device()] = True

    def _read_mounts(self, process_fd: int) -> list[Mount]:
        fd = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process_fd)
        with os.fdopen(fd, "rb") as file:
            return parse_mounts(file.read())

    def _read(self, pid: int, tools: Tools) -> "_Outcome":
        self._check_in_thread()
        meter = Meter()
        try:
            with ProcessDir(pid, self.proc, meter) as process:
                facts = ProcessReader(process, self.want, tools).read()
            return _Outcome(pid, meter, facts)
        except ProcessGone:
            return _Outcome(pid, meter, is_gone=True)
        except Unsupported:
            # A kernel thread: it has no memory of its own.
            return _Outcome(pid, meter)
        except (MemlensError, OSError) as error:
            return _Outcome(pid, meter, refusal=reason_of(error))


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of reading one process."""

    pid: int
    meter: Meter
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


def _own_pid(proc: str) -> int:
    """Return our PID as this /proc numbers it, 0 if we are not in it."""
    try:
        return int(os.readlink(f"{proc}/self"))
    except (OSError, ValueError):
        return 0


def _processes(count: int) -> str:
    return f"{count} process{'es' if count != 1 else ''}"


def _name_processes(pids: list[int]) -> str:
    named = ", ".join(map(str, sorted(pids)[:_PIDS_NAMED]))
    more = ", ..." if len(pids) > _PIDS_NAMED else ""
    return f"{_processes(len(pids))} ({named}{more})"
