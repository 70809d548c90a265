"""Verdicts of memlens, also from processes of their own, against what was built."""

import ctypes
import importlib
import os
import pickle
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import memlens
from memlens import MemlensError, PageClass, ProcessMap, map_process
from memlens.kernel.cachewalk import walker
from tests.kernel.support import oracle
from tests.kernel.support.machine import ROOT
from tests.kernel.workloads.base import Entry, Expected, Workload, as_array

ATTEMPTS = 4
# The fixture ``reports_of``: builds a workload, has it looked at, returns what was wrong.
ReportsOf = Callable[[Entry, Callable[[Workload], list[str]]], str]
# Code for a target (Target.run): it becomes an ordinary user's.
GIVE_AWAY = """
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: whoever changes user becomes unreadable
libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, which it also forgets
"""
# What stays unknown without the page-cache walk: classes, by kind of proof.
WALK_ALONE_TELLS = {
    "hugetlb": {PageClass.CACHED, PageClass.NONE},
    "hugetlb, watched": {PageClass.CACHED, PageClass.NONE},
    "copied up": {PageClass.CACHED},
    # Through an overlay the others do not tell a copy in the swap cache from a cached page,
    # nor what was set aside from a hole; totals of the mapping do where all are alike.
    "layer on tmpfs": {
        *(PageClass.CACHED, PageClass.SWAP_CACHED, PageClass.SWAPPED),
        *(PageClass.PREALLOCATED, PageClass.NONE),
    },
}


@dataclass(frozen=True)
class Seen:
    """What memlens said of one range: a class per page, and the reasons for ``unknown``."""

    classes: NDArray[np.uint8]
    reasons: dict[int, str]


def seen_of(result: ProcessMap, expected: Expected) -> Seen:
    """Return the classes of the expected range; -1 (255) where no mapping covers it."""
    pages = len(expected.classes)
    classes = np.full(pages, 255, np.uint8)
    reasons: dict[int, str] = {}
    for mapping in result.each:
        if mapping.stop <= expected.start or mapping.start >= expected.stop:
            continue
        shift = (mapping.start - expected.start) // oracle.PAGE
        for first, count, value in mapping.runs:
            low, high = max(shift + first, 0), min(shift + first + count, pages)
            if low < high:
                classes[low:high] = value
        for run in mapping.unknown:
            for page in range(shift + run.first_page, shift + run.first_page + run.pages):
                reasons[page] = run.reason
    return Seen(classes, reasons)


def used_by(result: ProcessMap) -> set[str]:
    """Return the names of the interfaces that were used."""
    return {row.name for row in result.evidence if row.is_used}


def differences(expected: Expected, seen: Seen) -> str:
    """Return a report of the pages that differ, "" if none does."""
    wanted = as_array(expected)
    wrong = np.flatnonzero(seen.classes != wanted)
    if not len(wrong):
        return ""
    lines = [f"{len(wrong)} of {len(wanted)} pages differ; the first are:"]
    for page in wrong[:6].tolist():
        lines.append(
            f"  {expected.describe(page)}: expected {expected.classes[page].label}, "
            f"got {_label(int(seen.classes[page]))} {seen.reasons.get(page, '')}; "
            f"{_evidence(expected, page)}"
        )
    return "\n".join(lines)


def _label(value: int) -> str:
    return PageClass(value).label if value < len(PageClass) else "nothing"


def _evidence(expected: Expected, page: int) -> str:
    where = expected.start + page * oracle.PAGE
    words = oracle.read_pagemap(expected.pid, where, 1).tolist()
    text = f"word {words[0]:#018x}" if words else "no word"
    try:
        fd = oracle.open_object(expected.pid, where)
    except (OSError, ValueError):
        return text
    try:
        offset = expected.object_offset + page * oracle.PAGE
        return f"{text}, {oracle.read_object(fd, offset, 1)}"
    finally:
        os.close(fd)


def can_walk() -> bool:
    """Return whether memlens can walk the page cache on this kernel."""
    try:
        walker()
    except MemlensError:
        return False
    return True


def as_far_as_known(expected: Expected, seen: Seen) -> Seen:
    """Excuse what is unknown on kernels without the walk, where nothing else tells."""
    return seen if can_walk() else excused(expected, seen)


def excused(expected: Expected, seen: Seen) -> Seen:
    """Excuse what is unknown and only the walk can tell."""
    wanted = as_array(expected)
    open_classes = list(WALK_ALONE_TELLS.get(expected.proof, ()))
    is_excused = (seen.classes == PageClass.UNKNOWN) & np.isin(wanted, open_classes)
    return Seen(np.where(is_excused, wanted, seen.classes), seen.reasons)


class Look:
    """map_process, in this process."""

    def __call__(self, pid: int) -> ProcessMap:
        return map_process(pid)


def look_while_it_stands(workload: Workload, look: Look) -> list[tuple[Expected, Seen]]:
    """
    Look at a workload, and return what was seen if its state stood all the while.

    :raises StateMoved: if the kernel changed the state: build it again and retry.
    """
    workload.reprove()
    results = {pid: look(pid) for pid in workload.pids}
    workload.reprove()
    return [
        (expected, seen_of(results[expected.pid], expected)) for expected in workload.mappings
    ]


class LookElsewhere(Look):
    """map_process in a process of its own, with interfaces switched off."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process

    def __call__(self, pid: int) -> ProcessMap:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"%d\n" % pid)
        self.process.stdin.flush()
        answer = pickle.load(self.process.stdout)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, ProcessMap)
        return answer


@contextmanager
def looker(disabled: Iterable[str] = (), *, uid: int = 0) -> Iterator[LookElsewhere]:
    """Start a process that maps others as this user, with these interfaces switched off."""
    environment = os.environ | {"MEMLENS_DISABLE": ",".join(disabled)}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kernel.support.verdicts", str(uid)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        try:
            yield LookElsewhere(process)
        finally:
            process.kill()


def become(uid: int) -> None:
    """
    Turn into an ordinary user, who need not be able to read this Python's libraries.

    Everything is imported before, and nothing probed, which would be remembered.
    """
    for module in pkgutil.walk_packages(memlens.__path__, "memlens."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as one who logged in has it


def _serve(uid: int) -> None:
    if uid:
        become(uid)
    for line in sys.stdin.buffer:
        try:
            answer: object = map_process(int(line))
        except Exception as error:
            answer = error
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
