"""
One pass over all processes: each one's mappings and page table are read at most once.

What is read depends on the question: the slots of private swapped pages, the shared
memory that a process maps or has open, the page frames that it maps.
"""

import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from memlens.account.facts import Missed, ProcessFacts, Progress, Want
from memlens.account.reader import ProcessReader, ShmemDevices
from memlens.errors import MemlensError, ParseError, ProcessGone, Unsupported
from memlens.kernel import features
from memlens.kernel.opening import internal_device
from memlens.kernel.process import ProcessDir
from memlens.kernel.procfs import Meter
from memlens.kernel.shm import Mount, namespace_inode, parse_mounts


@dataclass(slots=True)
class Sweep:
    """
    A pass over processes.

    :param proc: root of the /proc to read.
    :param want: what to read.
    :param budget_s: seconds after which it ends, with the rest missed; None for no end.
    """

    proc: str
    want: Want
    budget_s: float | None = None
    on_progress: Progress | None = None
    meter: Meter = field(default_factory=Meter)
    processes: list[ProcessFacts] = field(default_factory=list)
    missed: list[Missed] = field(default_factory=list)
    mounts: dict[int, tuple[int, list[Mount]]] = field(default_factory=dict)
    gone: int = 0
    unread: int = 0
    devices: ShmemDevices = field(default_factory=ShmemDevices)
    _deadline: float = 0.0
    _use_scan: bool = False

    def run(self, pids: Iterable[int] | None = None) -> None:
        """
        Read the processes; what cannot be read is counted and named in ``missed``.

        :param pids: which, all of this /proc if None.
        """
        disabled = features.read_disabled()
        self._use_scan = "pagemap_scan" not in disabled and features.has_pagemap_scan()
        self._deadline = time.monotonic() + (self.budget_s or float("inf"))
        wanted = list(pids) if pids is not None else self.list_pids()
        if self.want.objects:
            self._learn_devices(wanted)
        left = 0
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            for done, facts in enumerate(pool.map(self._read, wanted), 1):
                if isinstance(facts, ProcessFacts):
                    self.processes.append(facts)
                elif facts == _LEFT:
                    left += 1
                if self.on_progress is not None:
                    self.on_progress(done, len(wanted))
        self._report(left)

    def list_pids(self) -> list[int]:
        """
        Return the PIDs of this /proc.

        :raises Unsupported: if it is none.
        """
        try:
            return sorted(int(name) for name in os.listdir(self.proc) if name.isdigit())
        except OSError as error:
            raise Unsupported(
                f"{self.proc} is not a proc file system", path=self.proc
            ) from error

    def is_over(self) -> bool:
        """Return whether the budget is spent."""
        return time.monotonic() > self._deadline

    def _report(self, left: int) -> None:
        if left:
            self.missed.append(Missed(f"{left} processes", "the budget was spent"))
        if self.unread:
            self.missed.append(Missed(f"{self.unread} processes", "of other users: needs root"))
        hidden = sum(facts.is_swap_hidden for facts in self.processes)
        if hidden:
            reason = "swap slots are hidden: needs CAP_SYS_ADMIN"
            self.missed.append(Missed(f"private swapped pages of {hidden} processes", reason))

    def _learn_devices(self, pids: list[int]) -> None:
        """Collect the mounts of every mount namespace, for they tell tmpfs by its device."""
        for pid in pids:
            try:
                fd = os.open(f"{self.proc}/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                namespace = namespace_inode(fd, "mnt")
                if namespace not in self.mounts:
                    self.mounts[namespace] = (pid, self._read_mounts(fd))
            except OSError:
                continue
            finally:
                os.close(fd)
        for _, mounts in self.mounts.values():
            for mount in mounts:
                self.devices.known[mount.device] = mount.kind in ("tmpfs", "devtmpfs")
        self.devices.known[internal_device()] = True

    def _read_mounts(self, process_fd: int) -> list[Mount]:
        fd = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process_fd)
        with os.fdopen(fd, "rb") as file:
            return parse_mounts(file.read())

    def _read(self, pid: int) -> ProcessFacts | str:
        if self.is_over():
            return _LEFT
        meter = Meter()
        try:
            with ProcessDir(pid, self.proc, meter) as process:
                return ProcessReader(process, self.want, self._use_scan, self.devices).read()
        except (ProcessGone, ParseError, EOFError):
            self.gone += 1
        except Unsupported:
            pass
        except (MemlensError, OSError):
            self.unread += 1
        finally:
            self.meter.merge(meter)
        return _SKIPPED


_LEFT = "left"
_SKIPPED = "skipped"
