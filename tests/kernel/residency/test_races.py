"""
A target that does not hold still: every verdict was possible, or is ``unknown``.

What a page may be follows from what is done to it: a page that is written and pushed out,
but never punched, is never ``none``, whatever the moment.
"""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from memlens import MappingPages, PageClass, ProcessGone, map_process
from tests.kernel.support.driver import MAP_SHARED, PAGE, READ_WRITE, Target, target
from tests.kernel.support.machine import wait_until
from tests.kernel.support.target import receive, send

P = PageClass
SCANS = 120
IN_MOTION = "chang"  # "changing", "changed"

# Done to page i, by i modulo the number of rows: which acts, and what it may be seen as.
SHARED_ACTS = (
    ("write zap", {P.PRESENT, P.CACHED}),
    ("write zap out", {P.PRESENT, P.CACHED, P.SWAPPED, P.SWAP_CACHED}),
    ("", {P.NONE}),
    ("write zap punch", {P.PRESENT, P.CACHED, P.NONE}),
    ("write out punch", {P.PRESENT, P.CACHED, P.SWAPPED, P.SWAP_CACHED, P.NONE}),
    ("write out pread", {P.PRESENT, P.CACHED, P.SWAPPED, P.SWAP_CACHED}),
)
PRIVATE_ACTS = (
    ("write", {P.PRESENT}),
    ("write out", {P.PRESENT, P.SWAPPED}),
    ("", {P.NONE}),
    ("write zap", {P.PRESENT, P.NONE}),
    ("write out zap", {P.PRESENT, P.SWAPPED, P.NONE}),
    ("read zap", {P.ZERO, P.NONE}),
)

# Runs in the target until its standing order, a pipe, is closed.
HAMMER = """
import random, select
chance = random.Random(29)
todo = [(page, act) for page, acts in enumerate(plan) for act in acts.split()]
advice = {"zap": 4, "out": 21, "punch": 9}
while not select.select([order], [], [], 0)[0]:
    for page, act in chance.sample(todo, 60):
        where = ctypes.c_void_p(start + page * size)
        if act == "write":
            ctypes.memset(where, 1, 1)
        elif act == "read":
            ctypes.string_at(where, 1)
        elif act == "pread":
            os.pread(fd, 1, page * size)
        else:
            libc.madvise(where, size, advice[act])
"""


@contextmanager
def busy(driven: Target, code: str, **values: Any) -> Iterator[None]:
    """Let the target run code that ends when its ``order`` becomes readable."""
    order, ours = driven.os("pipe")
    send(driven.channel, ("run", (code, {"order": order, "size": PAGE, **values}), {}))
    writer = os.open(f"/proc/{driven.pid}/fd/{ours}", os.O_WRONLY)
    try:
        yield
    finally:
        os.write(writer, b"x")
        os.close(writer)
        is_good, answer = receive(driven.channel)
    assert is_good, answer


def find(mappings: Iterable[MappingPages], start: int) -> MappingPages:
    (found,) = [one for one in mappings if one.start <= start < one.stop]
    return found


def impossible(mapping: MappingPages, start: int, acts: Any, pages: int) -> list[str]:
    """Return what was said of pages that they can never have been."""
    reasons = {
        page: run.reason
        for run in mapping.unknown
        for page in range(run.first_page, run.first_page + run.pages)
    }
    shift = (start - mapping.start) // PAGE
    classes = mapping.classes()[shift : shift + pages].tolist()
    wrong = []
    for page, value in enumerate(classes):
        act, possible = acts[page % len(acts)]
        if value == P.UNKNOWN and IN_MOTION in reasons[page + shift]:
            continue
        if value not in possible:
            reason = reasons.get(page + shift, "")
            wrong.append(f"page {page} ({act!r}): {P(value).label} {reason}")
    return wrong


@pytest.mark.parametrize("swap", ["zram", "file"], indirect=True)
@pytest.mark.parametrize("kind", ["shared", "private"])
def test_hammered_memory(swap: str, kind: str) -> None:
    pages = 97
    acts = SHARED_ACTS if kind == "shared" else PRIVATE_ACTS
    plan = [acts[page % len(acts)][0] for page in range(pages)]
    with target(cpu=None) as driven:
        fd = driven.os("memfd_create", "memlens-test", 1)
        driven.os("ftruncate", fd, pages * PAGE)
        flags = {"flags": MAP_SHARED, "fd": fd} if kind == "shared" else {}
        start = driven.mmap(pages, **flags)
        driven.poke(start, [page for page in range(pages) if "write" in plan[page]])
        answered = 0
        with busy(driven, HAMMER, plan=plan, start=start, fd=fd):
            for _ in range(SCANS):
                result = map_process(driven.pid, start=start, stop=start + pages * PAGE)
                mapping = find(result.each, start)
                assert impossible(mapping, start, acts, pages) == []
                answered += pages - int(mapping.counts()[P.UNKNOWN])
    # Not an answer by never answering.
    assert answered > SCANS * pages // 2


# Where nobody touches a page that was written: with swap on, it may be pushed out meanwhile.
UNTOUCHED = (P.CACHED, P.SWAPPED, P.SWAP_CACHED)

# Maps one object or the other at the same address, over and over.
SWITCH = """
import select
while not select.select([order], [], [], 0)[0]:
    for fd in (full, empty):
        libc.mmap(ctypes.c_void_p(start), length, 3, 0x11, fd, 0)
"""


def test_never_the_object_of_a_neighbour(machine: None) -> None:
    """map_files has the same name for both: the verdict belongs to the inode it names."""
    pages = 23
    with target(cpu=None) as driven:
        full, empty = (driven.os("memfd_create", name, 1) for name in ("full", "empty"))
        inodes = {}
        for fd, kinds in ((full, UNTOUCHED), (empty, (P.NONE,))):
            driven.os("ftruncate", fd, pages * PAGE)
            inodes[os.stat(f"/proc/{driven.pid}/fd/{fd}").st_ino] = kinds
        driven.pwrite(full, range(pages))
        start = driven.mmap(pages, flags=MAP_SHARED, fd=full)
        known = 0
        values = {"full": full, "empty": empty, "start": start, "length": pages * PAGE}
        with busy(driven, SWITCH, **values):
            for _ in range(SCANS):
                result = map_process(driven.pid, start=start, stop=start + pages * PAGE)
                for mapping in result.each:
                    counts = mapping.counts()
                    answered = sum(int(counts[kind]) for kind in inodes[mapping.inode])
                    assert answered + counts[P.UNKNOWN] == pages, mapping
                    known += answered
    assert known > 0


# Splits, merges, unmaps and maps again.
RESHAPE = """
import random, select
chance = random.Random(31)
libc.mmap.restype = ctypes.c_void_p
while not select.select([order], [], [], 0)[0]:
    page, count = chance.randrange(pages), chance.randrange(1, 20)
    count = min(count, pages - page)
    where = ctypes.c_void_p(start + page * size)
    act = chance.randrange(3)
    if act == 0:
        libc.mprotect(where, count * size, chance.choice((0, 1, 3)))
    elif act == 1:
        libc.munmap(where, count * size)
    else:
        offset = ctypes.c_long(page * size)
        libc.mmap(where, count * size, 3, 0x11, fd, offset)
"""


def test_mappings_that_split_merge_and_vanish(machine: None) -> None:
    """Pages that were written are never seen as empty, the others never as written."""
    pages = 97
    with target(cpu=None) as driven:
        fd = driven.os("memfd_create", "memlens-test", 1)
        driven.os("ftruncate", fd, pages * PAGE)
        driven.pwrite(fd, range(0, pages, 3))
        start = driven.mmap(pages, flags=MAP_SHARED, fd=fd)
        seen = 0
        with busy(driven, RESHAPE, start=start, pages=pages, fd=fd):
            for _ in range(SCANS):
                for mapping in map_process(driven.pid).each:
                    if not start <= mapping.start < start + pages * PAGE:
                        continue
                    assert mapping.stop <= start + pages * PAGE
                    seen += 1
                    first = mapping.offset_bytes // PAGE
                    for page, value in enumerate(mapping.classes().tolist(), first):
                        wanted = (P.NONE,) if page % 3 else UNTOUCHED
                        assert value in (*wanted, P.UNKNOWN), (page, mapping)
    assert seen > SCANS


def _many(driven: Target) -> None:
    start = driven.mmap(4000)
    driven.run(
        "for page in range(0, 4000, 2):\n"
        "    libc.mprotect(ctypes.c_void_p(start + page * size), size, 1)",
        start=start,
        size=PAGE,
    )


class During:
    """Do something once, in the middle of a scan."""

    def __init__(self, act: Any) -> None:
        self.act = act
        self.is_done = False

    def __call__(self, done_pages: int, total_pages: int) -> None:
        if not self.is_done:
            self.is_done = True
            self.act()


def test_a_process_that_ends_during_the_scan(machine: None) -> None:
    with target() as driven:
        _many(driven)

        def end() -> None:
            os.kill(driven.pid, signal.SIGKILL)
            wait_until(lambda: _state(driven.pid) == "Z", "ended")

        during = During(end)
        with pytest.raises(ProcessGone):
            map_process(driven.pid, on_progress=during)
        assert during.is_done


def test_a_process_that_executes_another_program_during_the_scan(machine: None) -> None:
    with target() as driven:
        _many(driven)
        before = os.readlink(f"/proc/{driven.pid}/exe")

        def execute() -> None:
            send(driven.channel, ("os", ("execv", "/bin/sleep", ["sleep", "100"]), {}))
            wait_until(lambda: os.readlink(f"/proc/{driven.pid}/exe") != before, "executed")

        during = During(execute)
        with pytest.raises(ProcessGone):
            map_process(driven.pid, on_progress=during)
        assert during.is_done


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_scan_that_is_stopped_keeps_what_it_has(machine: None) -> None:
    with target() as driven:
        _many(driven)
        whole = map_process(driven.pid)
        polls = iter(range(10_000))
        part = map_process(driven.pid, should_stop=lambda: next(polls) >= 3)
    assert whole.is_complete
    assert not part.is_complete
    left = 0
    for one, other in zip(part.each, whole.each, strict=True):
        is_open = one.classes() == P.UNKNOWN
        assert (one.classes()[~is_open] == other.classes()[~is_open]).all()
        stopped = sum(run.pages for run in one.unknown if "stopped early" in run.reason)
        left += stopped
        assert int(is_open.sum()) - stopped <= int(other.counts()[P.UNKNOWN])
    total = sum(mapping.pages for mapping in whole.each)
    assert 0 < left < total


def test_pages_that_are_being_migrated(machine: None) -> None:
    """A page in transit is present: its entry looks like swap, and is not."""
    compact = Path("/proc/sys/vm/compact_memory")
    pages = 4099
    with target(cpu=None) as driven:
        start = driven.mmap(pages, protection=READ_WRITE)
        driven.poke(start, range(pages))
        answered = 0
        for _ in range(30):
            compact.write_text("1")
            mapping = find(
                map_process(driven.pid, start=start, stop=start + pages * PAGE).each, start
            )
            counts = mapping.counts()
            assert counts[P.PRESENT] + counts[P.UNKNOWN] == pages
            assert all(IN_MOTION in run.reason for run in mapping.unknown)
            answered += int(counts[P.PRESENT])
    assert answered > 30 * pages // 2
