"""What keeps a shared-memory object beside the processes that hold it."""

from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Thread

from memlens.objects.references import (
    has_message_counts,
    list_deleted_backing_files,
    read_backing_inode,
    read_message_descriptors,
)
from memlens.scan.machine import Machine
from memlens.shm.facts import ObjectFacts
from memlens.shm.found import FoundObject
from memlens.shm.sources import Finder

# The file of a loop device may be on a file system that does not answer.
_PATIENCE_S = 2.0
_IN_MESSAGES = "that may be in messages that nobody has read, too"
_NOT_TOLD = (
    "that may be in messages that nobody has read, too: "
    "this kernel (before Linux 5.6) does not tell"
)
_UNDER_LOOPS = "that loop devices which could not be asked may hold, too"
_MOUNTED = "that may be mounted where another mount covers them"


@dataclass(slots=True)
class Keepers:
    """
    Asks what may keep objects that have one holder and no name, once there is any.

    :param finder: one that has found all objects.
    """

    finder: Finder
    _loops: "_Loops | None" = field(default=None, init=False)
    _in_message: str | None = field(default=None, init=False)

    def settle(self, item: FoundObject, shared: ObjectFacts) -> ObjectFacts:
        """
        Return an object with what may keep it once its only holder has ended.

        :raises Stopped: if the scan is to end.
        """
        has_memory = shared.resident_pages or shared.swap_pages
        if shared.sole_keeper is None or not has_memory:
            return shared
        if self._loops is None:
            self._loops = _ask_loops(self.finder.sweep.machine)
        if item.key[:2] in self._loops.files:
            return replace(shared, is_kept=True)
        doubt = self._doubt(item, self._loops)
        return replace(shared, doubt=doubt) if doubt else shared

    def _doubt(self, item: FoundObject, loops: "_Loops") -> str:
        if item.key[0] in self.finder.covered:
            return _MOUNTED
        if not loops.is_complete:
            return _UNDER_LOOPS
        if self._in_message is None:
            may_ask = self.finder.sweep.machine.may("scm_fds")
            self._in_message = self._ask_sockets() if may_ask else _NOT_TOLD
        return self._in_message

    def _ask_sockets(self) -> str:
        """Say whether any descriptor is in a message: of which file is not to be known."""
        sweep, asked, is_told = self.finder.sweep, set(), False
        for facts in sweep.processes:
            for link, place in facts.sockets.items():
                if link in asked:
                    continue
                sweep.machine.check_stop()
                try:
                    count = read_message_descriptors(f"{sweep.machine.root}/{place}")
                except OSError:
                    # Closed here, but another process may have it as well.
                    continue
                if count:
                    return _IN_MESSAGES
                is_told = is_told or count is not None
                asked.add(link)
        return "" if is_told or not asked or has_message_counts() else _NOT_TOLD


@dataclass(slots=True)
class _Loops:
    """
    The files without a name that loop devices have.

    :param files: device and inode of each.
    :param is_complete: whether every loop device said which it has.
    """

    files: set[tuple[int, int]] = field(default_factory=set)
    is_complete: bool = True


def _ask_loops(machine: Machine) -> _Loops:
    """Ask in another thread, which is left alone if it does not come back."""
    names = [name for name, _ in list_deleted_backing_files(machine)]
    if not names:
        return _Loops()
    # Not a Future: concurrent.futures imports 10 ms of other modules.
    answers: SimpleQueue[_Loops] = SimpleQueue()

    def run() -> None:
        found = _Loops()
        for name in names:
            try:
                found.files.add(read_backing_inode(name, machine))
            except OSError:
                found.is_complete = False
        answers.put(found)

    Thread(target=run, name="memlens-loops", daemon=True).start()
    try:
        return answers.get(timeout=_PATIENCE_S)
    except Empty:
        return _Loops(is_complete=False)
