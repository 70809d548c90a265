"""What a workload is, and how its state is proven."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memlens.pages.classes import PageClass
from tests.kernel.support import oracle
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.driver import PAGE, Target, target
from tests.kernel.support.machine import StateMoved, wait_until

PRIME = 23
NO_SWAP = ("none",)
BOTH = ("zram", "file")
P = PageClass


@dataclass
class Expected:
    """
    A range of pages and the class that each must be given.

    :param pid: the process whose pages they are.
    :param start: first address.
    :param classes: a ``PageClass`` per page.
    :param proof: which reads prove it: a key of ``PROOFS``.
    :param object_offset: offset of ``start`` in the object, in bytes.
    :param states: how each page was made, for messages; by default its class.
    :param smaps: names of the smaps sums that must agree, see ``prove_sums``.
    """

    pid: int
    start: int
    classes: Sequence[PageClass]
    proof: str
    object_offset: int = 0
    states: Sequence[str] = ()
    smaps: tuple[str, ...] = ("Rss", "Swap")

    @property
    def stop(self) -> int:
        """Return the address after the last page."""
        return self.start + len(self.classes) * PAGE

    def describe(self, page: int) -> str:
        """Return page number, address and making of one page."""
        made = self.states[page] if self.states else self.classes[page].label
        return f"page {page} ({self.start + page * PAGE:#x}, made as {made!r})"


@dataclass
class Workload:
    """Memory that stands, in a process that sleeps, and what must be seen of it."""

    target: Target
    mappings: list[Expected]
    name: str = ""
    checks: list[Callable[[], None]] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        """Return the processes to look at."""
        return sorted({expected.pid for expected in self.mappings})

    def reprove(self) -> None:
        """Raise StateMoved if anything is not as it was built."""
        for expected in self.mappings:
            PROOFS[expected.proof](expected)
            prove_sums(expected)
        for check in self.checks:
            check()


@dataclass
class Tools:
    """
    What a builder may use.

    :param swap: kind of the swap that is on, ``none`` if there is none.
    :param squeeze: pushes out what was touched inside of it.
    :param directory: a fresh directory on a disk filesystem.
    """

    swap: str
    squeeze: Squeeze
    directory: Path
    name: str = ""
    stack: ExitStack = field(default_factory=ExitStack)

    def target(self) -> Target:
        """Start a target that ends with the workload."""
        return self.stack.enter_context(target())


Build = Callable[[Tools], Workload]


@dataclass(frozen=True)
class Entry:
    """One workload of the catalogue: its name, its builder, the swap it is built on."""

    name: str
    build: Build
    swap: tuple[str, ...]

    @contextmanager
    def open(self, swap: str, squeeze: Squeeze, directory: Path) -> Iterator[Workload]:
        """Build the memory, prove it, and take it away at the end."""
        directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            workload = self.build(Tools(swap, squeeze, directory, self.name, stack))
            workload.name = self.name
            settle(workload.reprove)
            yield workload


def entries() -> tuple[list[Entry], Callable[..., Callable[[Build], Build]]]:
    """Return an empty list of entries, and the decorator that adds a builder to it."""
    listed: list[Entry] = []

    def workload(*swap: str) -> Callable[[Build], Build]:
        def add(build: Build) -> Build:
            listed.append(Entry(build.__name__, build, swap or NO_SWAP))
            return build

        return add

    return listed, workload


def settle(prove: Callable[[], None], deadline_s: float = 5) -> None:
    """Wait until a proof holds; the first objection is raised if it never does."""
    objections: list[StateMoved] = []

    def holds() -> bool:
        try:
            prove()
        except StateMoved as objection:
            objections.append(objection)
            return False
        return True

    try:
        wait_until(holds, "proof", deadline_s=deadline_s)
    except AssertionError as late:
        raise (objections[0] if objections else late) from None


def kinds(*groups: tuple[PageClass, int]) -> list[PageClass]:
    """Return classes from ``(class, pages)`` groups."""
    return [kind for kind, count in groups for _ in range(count)]


def page_out(driven: Target, start: int, pages: Sequence[int]) -> None:
    """MADV_PAGEOUT exactly these pages until none of them is mapped any more."""

    def is_out() -> bool:
        driven.madvise(start, pages, 21)
        words = oracle.read_pagemap(driven.pid, start, max(pages) + 1)
        return not any(int(words[page]) & oracle.PRESENT for page in pages)

    if pages:
        wait_until(is_out, "MADV_PAGEOUT")


# Proofs: for each kind of backing, what two interfaces must say of a page of each class.


def _need(is_true: bool, expected: Expected, page: int, saw: object) -> None:
    if not is_true:
        raise StateMoved(
            f"{expected.describe(page)} should be {expected.classes[page].label}: {saw}"
        )


@dataclass
class _Look:
    """The page table's two answers for one page."""

    word: int
    scan: int
    is_present: bool
    is_zero: bool
    is_marker: bool
    is_swap: bool

    def __str__(self) -> str:
        return f"word {self.word:#018x}, scan {self.scan:#x}"


def _look(expected: Expected) -> list[_Look]:
    pages = len(expected.classes)
    words = oracle.read_pagemap(expected.pid, expected.start, pages).tolist()
    scan = oracle.read_scan(expected.pid, expected.start, pages).tolist()
    looks = []
    for word, category in zip(words, scan, strict=True):
        is_out = bool(word & oracle.SWAP)
        kind = word & 31
        is_present = bool(word & oracle.PRESENT)
        if is_present != bool(category & oracle.IS_PRESENT):
            raise StateMoved(f"pagemap says {word:#x}, PAGEMAP_SCAN {category:#x}")
        looks.append(
            _Look(
                *(word, category, is_present),
                is_present and bool(category & oracle.IS_PFNZERO),
                is_out and kind == oracle.MARKER_TYPE,
                is_out and kind < oracle.FIRST_SPECIAL_TYPE,
            )
        )
    return looks


def _is_table_class(look: _Look, kind: PageClass) -> bool | None:
    """Return whether the page table proves the class, None if it leaves it open."""
    is_guard = look.is_marker and bool(look.word & oracle.GUARD)
    is_poison = look.is_marker and not look.word & (oracle.GUARD | oracle.UFFD_WP)
    if kind is P.PRESENT:
        return look.is_present and not look.is_zero
    if kind is P.ZERO:
        return look.is_zero
    if kind is P.GUARD:
        return is_guard and bool(look.scan & oracle.IS_GUARD)
    if kind is P.POISONED:
        return is_poison
    if look.is_present or is_guard or is_poison:
        return False
    return None


def prove_anonymous(expected: Expected) -> None:
    """Private memory without a file: the page table is all there is."""
    for page, look in enumerate(_look(expected)):
        kind = expected.classes[page]
        proven = _is_table_class(look, kind)
        if proven is None and kind is P.SWAPPED:
            proven = look.is_swap and bool(look.scan & oracle.IS_SWAPPED)
        if proven is None and kind is P.NONE:
            proven = look.word == 0 or (look.is_marker and bool(look.word & oracle.UFFD_WP))
        _need(bool(proven), expected, page, look)


# What cachestat's two counts, mincore and SEEK_DATA must say, per class.
SHMEM_ANSWERS = {
    P.CACHED: (True, False, True, True),
    P.SWAPPED: (False, True, False, True),
    P.SWAP_CACHED: (False, True, True, True),
    P.PREALLOCATED: (True, False, False, False),
    P.NONE: (False, False, False, False),
}
_DISK = {
    P.CACHED: (True, False, True, None),
    P.ON_DISK: (False, None, False, True),
    P.NONE: (False, None, False, False),
}
# Blocks smaller than a page: mincore calls a page absent of which only a part is cached.
_PARTS = {**_DISK, P.CACHED: (True, False, False, True)}
# overlayfs: cachestat answers for the wrong inode.
_OVERLAY = {
    P.CACHED: (None, None, True, True),
    P.ON_DISK: (None, None, False, True),
    P.SWAPPED: (None, None, False, True),
    P.NONE: (None, None, False, False),
    P.UNKNOWN: (None, None, None, None),
}
# ramfs: SEEK_DATA calls everything data.
_RAMFS = {
    P.CACHED: (True, False, True, None),
    P.NONE: (False, False, False, None),
}
# Block devices know no SEEK_DATA.
_BLOCK = {
    P.CACHED: (True, False, True, None),
    P.ON_DISK: (False, None, False, None),
}

_Answers = dict[PageClass, tuple[bool | None, bool | None, bool | None, bool | None]]


def _open_mapped(expected: Expected) -> int:
    return oracle.open_object(expected.pid, expected.start)


def object_proof(
    table: _Answers, open_object: Callable[[Expected], int] = _open_mapped
) -> Callable[[Expected], None]:
    """
    Return the proof for mappings of an object that answers as ``table`` says.

    :param open_object: opens the object that is to answer, by default what is mapped.
    """

    def prove(expected: Expected) -> None:
        looks = _look(expected)
        fd = open_object(expected)
        try:
            size = os.lseek(fd, 0, os.SEEK_END)
            evidence = oracle.read_object(fd, expected.object_offset, len(looks))
        finally:
            os.close(fd)
        columns = (evidence.cached, evidence.evicted, evidence.resident, evidence.data)
        for page, look in enumerate(looks):
            kind = expected.classes[page]
            is_past = expected.object_offset + page * PAGE >= size
            answers = [None if column is None else bool(column[page]) for column in columns]
            saw = f"{look}, cached/evicted/resident/data {answers}, past the end {is_past}"
            proven = _is_table_class(look, kind)
            if proven is None and kind is P.SWAPPED and look.is_swap:
                proven = True  # a private copy
            if proven is None and look.is_swap:
                proven = False
            if proven is None and (is_past or kind is P.BEYOND_END):
                proven = is_past and kind is P.BEYOND_END
            if proven is None:
                proven = _agrees(table[kind], answers)
            _need(proven, expected, page, saw)

    return prove


def _agrees(wanted: Sequence[bool | None], seen: Sequence[bool | None]) -> bool:
    return all(want is None or want == got for want, got in zip(wanted, seen, strict=True))


def prove_table_only(expected: Expected) -> None:
    """Memory that nothing but the page table tells of: present or not."""
    for page, look in enumerate(_look(expected)):
        kind = expected.classes[page]
        _need(look.is_present == (kind is P.PRESENT), expected, page, look)
        _need(look.is_present or look.word == 0, expected, page, look)


def prove_pfn_mapping(expected: Expected) -> None:
    """A mapping of frames that pagemap leaves out: VmFlags pf, all words zero."""
    (vma,) = oracle.smaps_at(expected.pid, expected.start, expected.stop)
    _need("pf" in vma.flags, expected, 0, vma)
    for page, word in enumerate(
        oracle.read_pagemap(expected.pid, expected.start, len(expected.classes))
    ):
        _need(word == 0, expected, page, hex(word))


def prove_beyond_user_space(expected: Expected) -> None:
    """Addresses that pagemap does not reach."""
    words = oracle.read_pagemap(expected.pid, expected.start, len(expected.classes))
    _need(len(words) == 0, expected, 0, words)


PROOFS: dict[str, Callable[[Expected], None]] = {
    "anonymous": prove_anonymous,
    "shmem": object_proof(SHMEM_ANSWERS),
    "disk": object_proof(_DISK),
    "parts": object_proof(_PARTS),
    "overlay": object_proof(_OVERLAY),
    "ramfs": object_proof(_RAMFS),
    "block": object_proof(_BLOCK),
    "table": prove_table_only,
    "pfn": prove_pfn_mapping,
    "outside": prove_beyond_user_space,
}


def prove_sums(expected: Expected) -> None:
    """Hold the classes against smaps, the kernel's own sum over the same pages."""
    if not expected.smaps:
        return
    mappings = oracle.smaps_at(expected.pid, expected.start, expected.stop)
    counts = np.bincount(np.array(expected.classes, np.int64), minlength=len(P))
    wanted = {
        "Rss": counts[P.PRESENT],
        "Swap": counts[P.SWAPPED] + counts[P.SWAP_CACHED],
    }
    for name in expected.smaps:
        total = sum(vma.fields.get(name, 0) for vma in mappings) * 1024 // PAGE
        if total != wanted[name]:
            raise StateMoved(
                f"smaps {name} at {expected.start:#x}: {total} pages, built {wanted[name]}"
            )


def pattern(states: Sequence[str], pages: int, step: int = 1) -> list[str]:
    """Return ``pages`` states taken in turn, ``step`` pages of each."""
    return [states[page // step % len(states)] for page in range(pages)]


def as_array(expected: Expected) -> NDArray[np.uint8]:
    """Return the expected classes as an array."""
    return np.array(expected.classes, np.uint8)
