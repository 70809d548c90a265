"""
Probes of other processes: another user's maps, page table and objects; soft-dirty.

proc(5), Documentation/admin-guide/mm/soft-dirty.rst.  The other process is a child
that gives up its user where that is allowed, else one that is there already.
"""

import os
import select
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from memlens.errors import AccessDenied, MemlensError
from memlens.kernel.maps import Mapping, parse_maps
from memlens.kernel.process import PF_KTHREAD, parse_stat
from memlens.kernel.procfs import raise_errno, read_file
from memlens.kernel.syscalls import compare_memory, is_own_namespace, libc
from memlens.pages.bits import PM_PRESENT, PM_SOFT_DIRTY
from memlens.scan.machine import Machine
from memlens.selftest.memory import PAGE, Region
from memlens.selftest.probe_ground import Ground, expect, open_file, read_text
from memlens.selftest.probe_own import expect_same_object, find_mapping

_OTHER_UIDS = (65534, 65533)
_OTHERS_TRIED = 8
_PR_SET_DUMPABLE = 4
_ANSWER_BYTES = 64
_ANSWER_S = 10.0
_QUIT = b"q"


class Child:
    """
    A forked child that does what one letter says: ``w`` writes its page, ``u`` gives up
    its user, ``q`` ends it; it answers with its name in /proc, or ``!`` if it could not.

    :param pages: memory that it inherits.
    :param machine: in whose /proc it looks up its own name.
    :param uid: what ``u`` makes it.
    """

    def __init__(self, pages: Region, machine: Machine, uid: int) -> None:
        order_out, self._orders = os.pipe()
        self._answers, answer_in = os.pipe()
        with warnings.catch_warnings():
            # Threads are no trouble: the child takes no lock before it ends.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _obey(
                order_out, answer_in, (self._orders, self._answers), (pages, machine.root, uid)
            )
        os.close(order_out)
        os.close(answer_in)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        # An order, not a signal: after it gave up its user that takes CAP_KILL.  Nor is
        # closing the pipe enough: a process forked meanwhile by another thread holds it too.
        try:
            os.write(self._orders, _QUIT)
        except BrokenPipeError:
            pass
        os.close(self._orders)
        os.close(self._answers)
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # The caller ignores SIGCHLD.

    def tell(self, order: bytes) -> str:
        """
        Give an order and return the answer.

        :raises MemlensError: if the child could not, or died.
        """
        os.write(self._orders, order)
        is_ready, _, _ = select.select([self._answers], [], [], _ANSWER_S)
        answer = os.read(self._answers, _ANSWER_BYTES).decode() if is_ready else ""
        if answer in ("", "!"):
            raise MemlensError("a child process could not be had to try with")
        return answer


def _obey(
    orders: int, answers: int, others: tuple[int, int], rest: tuple[Region, str, int]
) -> None:
    """Do what the parent says until it is gone; never return."""
    pages, proc, uid = rest
    try:
        for fd in others:
            os.close(fd)
        while (order := os.read(orders, 1)) not in (b"", _QUIT):
            try:
                if order == b"w":
                    pages.write()
                else:
                    _become(uid)
                answer = os.readlink(f"{proc}/self").encode()
            except OSError:
                answer = b"!"
            os.write(answers, answer)
    finally:
        os._exit(0)


def _become(uid: int) -> None:
    """Become another user's ordinary process, which a program that runs setuid is not."""
    os.setuid(uid)
    libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def ask_soft_dirty(ground: Ground) -> str:
    """After clear_refs a page is not dirty, and after a write it is."""
    with ground.pages(1) as pages:
        pages.write()
        with Child(pages, ground.machine, 0) as child:
            directory = f"{ground.machine.root}/{child.tell(b'w')}"
            _clear_soft_dirty(directory)
            is_dirty_before = _is_soft_dirty(ground, directory, pages)
            child.tell(b"w")
            is_dirty_after = _is_soft_dirty(ground, directory, pages)
    expect(not is_dirty_before, "clear_refs was written, and the page is dirty still")
    expect(is_dirty_after, "clear_refs may be written, but a page that is written stays clean")
    return "in a child, cleared and then set by a write"


def ask_other_smaps(ground: Ground) -> str:
    """The mappings of another user's process can be read."""

    def ask(other: Other) -> str:
        raw = read_text(f"{other.directory}/smaps", f"smaps of {other.what}")
        expect(bool(raw), f"smaps of {other.what} is empty")
        return f"read those of {other.what}"

    return _ask_others(ground, ask)


def ask_other_pagemap(ground: Ground) -> str:
    """A page of another user's process that was written reads present."""

    def ask(other: Other) -> str:
        words = ground.words(other.some_page(), other.directory, other.what)
        expect(len(words) == 1, f"pagemap of {other.what} is empty")
        if other.pages is None:
            return f"read that of {other.what}"
        is_present = bool(words[0] & PM_PRESENT)
        expect(is_present, f"a page that {other.what} wrote does not read present")
        return f"a page that {other.what} wrote reads present"

    return _ask_others(ground, ask)


def ask_kcmp(ground: Ground) -> str:
    """This process runs in its own memory, and another user's in another."""

    def ask(other: Other) -> str:
        if not is_own_namespace(ground.machine):
            raise MemlensError(f"processes of {ground.machine.root} have other numbers here")
        pid = int(other.directory.rpartition("/")[2])
        expect(compare_memory(os.getpid(), pid) != 0, f"{other.what} has this one's memory")
        expect(compare_memory(pid, pid) == 0, f"{other.what} has not its own memory")
        return f"told the memory of {other.what} from this one's"

    return _ask_others(ground, ask)


def ask_other_map_files(ground: Ground) -> str:
    """The object of another user's shared anonymous mapping can be opened."""

    def ask(other: Other) -> str:
        what = f"map_files of {other.what}"
        if other.pages is None:
            # Held, not opened: what it is is not known.
            name = next((row.name for row in other.mappings() if row.inode), "")
            if not name:
                raise MemlensError(f"{other.what} maps no file to try with")
            os.close(open_file(f"{other.directory}/map_files/{name}", what, os.O_PATH))
            return f"reached a file that {other.what} maps"
        name = find_mapping(other.mappings(), other.pages).name
        expect_same_object(f"{other.directory}/map_files/{name}", what, other.pages)
        return f"opened shared anonymous memory of {other.what}"

    return _ask_others(ground, ask)


@dataclass(frozen=True, slots=True)
class Other:
    """
    A process of another user.

    :param directory: its directory in /proc.
    :param what: which it is, for a person.
    :param pages: memory that it has written and shares with us, None if it is not a child.
    """

    directory: str
    what: str
    pages: Region | None = None

    def mappings(self) -> list[Mapping]:
        """
        Return what it maps.

        :raises MemlensError: as ``read_text`` tells.
        """
        return parse_maps(read_text(f"{self.directory}/maps", f"maps of {self.what}"))

    def some_page(self) -> Region:
        """Return a page of its address space."""
        if self.pages is not None:
            return self.pages
        return Region(next((row.start for row in self.mappings()), 0) // PAGE * PAGE, 1)


def _ask_others(ground: Ground, ask: Callable[[Other], str]) -> str:
    """
    Return the proof for a child that gave up its user, or for a process that is there.

    :raises MemlensError: if it is refused for all that were tried, or there is none.
    """
    if "CAP_SETUID" in ground.capabilities:
        uid = next(uid for uid in _OTHER_UIDS if uid != ground.reader.uid)
        with (
            ground.pages(1, is_shared=True) as pages,
            Child(pages, ground.machine, uid) as child,
        ):
            try:
                name = child.tell(b"u")
                # What is shared is not in its page table before it touches it.
                child.tell(b"w")
            except MemlensError:
                name = ""  # No such user in this user namespace.
            if name:
                what = "a child that became another user"
                return ask(Other(f"{ground.machine.root}/{name}", what, pages))
    refusals: list[MemlensError] = []
    for pid in _others_there(ground):
        # Some processes are shielded from everybody, so that one refusal is not the end.
        try:
            return ask(Other(f"{ground.machine.root}/{pid}", f"process {pid}"))
        except MemlensError as error:
            refusals.append(error)
    if refusals:
        raise next(
            (error for error in refusals if isinstance(error, AccessDenied)), refusals[0]
        )
    raise MemlensError("no process of another user is to be seen here")


def _others_there(ground: Ground) -> list[int]:
    """Return a few processes of other users that have memory, lowest first."""
    found: list[int] = []
    for name in sorted(filter(str.isdigit, os.listdir(ground.machine.root)), key=int):
        directory = f"{ground.machine.root}/{name}"
        try:
            if os.stat(directory).st_uid == ground.reader.uid:
                continue
            stat = parse_stat(read_file(f"{directory}/stat"))
        except (OSError, ValueError, IndexError):
            continue
        if not stat.flags & PF_KTHREAD and stat.state not in "ZX":
            found.append(int(name))
        if len(found) == _OTHERS_TRIED:
            break
    return found


def _clear_soft_dirty(directory: str) -> None:
    path = f"{directory}/clear_refs"
    fd = open_file(path, "clear_refs", os.O_WRONLY)
    try:
        os.write(fd, b"4")
    except OSError as error:
        raise_errno(error, "clear_refs", path)
    finally:
        os.close(fd)


def _is_soft_dirty(ground: Ground, directory: str, pages: Region) -> bool:
    return bool(ground.words(pages, directory)[0] & PM_SOFT_DIRTY)
