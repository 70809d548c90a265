"""Private anonymous memory."""

from collections.abc import Sequence
from pathlib import Path

from tests.kernel.support import oracle
from tests.kernel.support.driver import (
    HUGE,
    MADV_DONTNEED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MADV_WILLNEED,
    MAP_ANONYMOUS,
    MAP_DROPPABLE,
    MAP_PRIVATE,
    PAGE,
    PROT_NONE,
    PROT_READ,
    Target,
    pages_where,
)
from tests.kernel.support.machine import StateMoved, setting
from tests.kernel.workloads.base import (
    BOTH,
    PRIME,
    Expected,
    P,
    Tools,
    Workload,
    entries,
    kinds,
    page_out,
    pattern,
)

ENTRIES, workload = entries()
HUGE_PAGES = HUGE // PAGE

STATES = {
    "written": P.PRESENT,
    "untouched": P.NONE,
    "read": P.ZERO,
    "given back": P.NONE,
    "locked": P.PRESENT,
    "free at will": P.PRESENT,
    "guarded": P.GUARD,
    "guarded, was written": P.GUARD,
    "swapped": P.SWAPPED,
    "zeros, swapped": P.SWAPPED,
    "will need": P.SWAPPED,
    "read back": P.PRESENT,
    "written back": P.PRESENT,
    "given back on swap": P.NONE,
    "guarded on swap": P.GUARD,
    "freed, reclaimed": P.NONE,
}
AT_HOME = ("written", "untouched", "read", "given back", "free at will", "guarded")
ON_SWAP = (
    *("swapped", "written", "untouched", "read back", "zeros, swapped", "read"),
    *("written back", "given back on swap", "freed, reclaimed", "guarded on swap"),
)


def _make(driven: Target, start: int, states: Sequence[str]) -> None:
    """Bring each page of a fresh mapping into its state."""

    def where(*wanted: str) -> list[int]:
        return pages_where(states, *wanted)

    driven.ask("poke", [start + page * PAGE for page in where("zeros, swapped")], b"\0")
    out = where("swapped", "read back", "written back", "will need")
    out += where("given back on swap", "guarded on swap")
    driven.poke(start, out + where("freed, reclaimed"))
    driven.madvise(start, where("freed, reclaimed"), MADV_FREE)
    page_out(driven, start, out + where("zeros, swapped", "freed, reclaimed"))
    driven.peek(start, where("read back"))
    driven.poke(start, where("written back"))
    driven.madvise(start, where("given back on swap"), MADV_DONTNEED)
    driven.madvise(start, where("will need"), MADV_WILLNEED)
    driven.poke(start, where("written", "given back", "free at will", "guarded, was written"))
    driven.peek(start, where("read"))
    driven.madvise(start, where("given back"), MADV_DONTNEED)
    driven.madvise(start, where("free at will"), MADV_FREE)
    driven.madvise(
        start,
        where("guarded", "guarded, was written", "guarded on swap"),
        MADV_GUARD_INSTALL,
    )
    for page in where("locked"):
        driven.libc("mlock", start + page * PAGE, PAGE)


def _mapped(driven: Target, states: Sequence[str], **how: int) -> Expected:
    start = driven.mmap(len(states), **how)
    _make(driven, start, states)
    classes = [STATES[state] for state in states]
    return Expected(driven.pid, start, classes, "anonymous", states=states)


@workload()
def private(tools: Tools) -> Workload:
    """Written, read, never touched, given back, locked, guarded, free to be dropped."""
    driven = tools.target()
    mixed = _mapped(driven, pattern(AT_HOME, PRIME))
    locked = _mapped(driven, pattern(("locked", "untouched", "written"), PRIME))
    guarded = _mapped(driven, pattern(("guarded, was written", "written", "read"), PRIME))
    droppable = _mapped(
        driven, pattern(("written", "untouched"), 7), flags=MAP_DROPPABLE | MAP_ANONYMOUS
    )
    closed = _mapped(driven, pattern(("written", "read", "untouched"), PRIME))
    driven.libc("mprotect", closed.start, PRIME * PAGE, PROT_NONE)
    half = _mapped(driven, pattern(("written", "read", "untouched", "given back"), 31))
    driven.libc("mprotect", half.start + 5 * PAGE, 11 * PAGE, PROT_READ)
    never = _mapped(driven, ["untouched"] * 97, protection=PROT_NONE)
    return Workload(driven, [mixed, locked, guarded, droppable, closed, half, never])


@workload(*BOTH)
def private_swapped(tools: Tools) -> Workload:
    """On swap, read back from it, given back on it; mixed page by page and in stretches."""
    driven = tools.target()
    mixed = _mapped(driven, pattern(ON_SWAP, 97))
    stretches = _mapped(driven, pattern(ON_SWAP, 101, 7))
    closed = _mapped(driven, pattern(("swapped", "written", "untouched"), PRIME))
    driven.libc("mprotect", closed.start, PRIME * PAGE, PROT_NONE)
    wanted = _mapped(driven, pattern(("will need", "untouched", "swapped"), PRIME))
    return Workload(driven, [mixed, stretches, closed, wanted])


@workload(*BOTH)
def private_swapped_then_moved(tools: Tools) -> Workload:
    """Swap entries move along with mremap."""
    driven = tools.target()
    states = pattern(("swapped", "written", "untouched", "read"), PRIME)
    old = _mapped(driven, states)
    new = driven.mmap(PRIME)
    driven.libc("mremap", old.start, PRIME * PAGE, PRIME * PAGE, 3, new)  # MAYMOVE | FIXED
    moved = Expected(driven.pid, new, old.classes, "anonymous", states=states)
    return Workload(driven, [moved])


@workload(*BOTH)
def droppable_reclaimed(tools: Tools) -> Workload:
    """MAP_DROPPABLE pages never go to swap: reclaim drops them."""
    driven = tools.target()
    start = driven.mmap(PRIME, flags=MAP_DROPPABLE | MAP_ANONYMOUS)
    states = pattern(("dropped", "written", "untouched"), PRIME)
    driven.poke(start, pages_where(states, "dropped", "written"))
    page_out(driven, start, pages_where(states, "dropped"))
    classes = [P.PRESENT if state == "written" else P.NONE for state in states]
    return Workload(driven, [Expected(driven.pid, start, classes, "anonymous", 0, states)])


@workload()
def forked(tools: Tools) -> Workload:
    """After fork both processes map the pages, until one writes."""
    driven = tools.target()
    start = driven.mmap(PRIME)
    driven.poke(start, range(0, PRIME, 2))
    child = driven.fork()
    child.poke(start, range(0, PRIME, 3))
    of_parent = [P.NONE if page % 2 else P.PRESENT for page in range(PRIME)]
    of_child = [
        P.PRESENT if page % 3 == 0 or page % 2 == 0 else P.NONE for page in range(PRIME)
    ]
    return Workload(
        driven,
        [
            Expected(driven.pid, start, of_parent, "anonymous"),
            Expected(child.pid, start, of_child, "anonymous"),
        ],
    )


@workload(*BOTH)
def forked_with_swap(tools: Tools) -> Workload:
    """One swap slot in two page tables; the child reads some back, the parent does not."""
    driven = tools.target()
    states = pattern(("swapped", "swapped, child reads", "written", "untouched"), PRIME)
    start = driven.mmap(PRIME)
    out = pages_where(states, "swapped", "swapped, child reads")
    driven.poke(start, out)
    page_out(driven, start, out)
    driven.poke(start, pages_where(states, "written"))
    child = driven.fork()
    child.peek(start, pages_where(states, "swapped, child reads"))
    of_parent = {"written": P.PRESENT, "untouched": P.NONE}
    of_child = of_parent | {"swapped, child reads": P.PRESENT}
    return Workload(
        driven,
        [
            Expected(
                *(pid, start, [known.get(state, P.SWAPPED) for state in states]),
                *("anonymous", 0, states),
            )
            for pid, known in ((driven.pid, of_parent), (child.pid, of_child))
        ],
    )


def _huge(driven: Target) -> int:
    start = driven.mmap(HUGE_PAGES, align=HUGE)
    driven.libc("madvise", start, HUGE, MADV_HUGEPAGE)
    driven.poke(start, [0])
    (vma,) = oracle.smaps_at(driven.pid, start, start + HUGE)
    if vma.fields["AnonHugePages"] != HUGE >> 10:
        raise StateMoved("no huge page to be had")
    return start


@workload()
def huge(tools: Tools) -> Workload:
    """A huge page, one with a hole, and the huge zero page."""
    driven = tools.target()
    whole, holed = _huge(driven), _huge(driven)
    hole = range(100, 113)
    driven.madvise(holed, hole, MADV_DONTNEED)
    zero = driven.mmap(HUGE_PAGES, align=HUGE)
    driven.libc("madvise", zero, HUGE, MADV_HUGEPAGE)
    driven.peek(zero, [3])
    of_holed = kinds((P.PRESENT, 100), (P.NONE, 13), (P.PRESENT, HUGE_PAGES - 113))
    return Workload(
        driven,
        [
            Expected(driven.pid, whole, [P.PRESENT] * HUGE_PAGES, "anonymous"),
            Expected(driven.pid, holed, of_holed, "anonymous"),
            Expected(driven.pid, zero, [P.ZERO] * HUGE_PAGES, "anonymous"),
        ],
    )


@workload(*BOTH)
def huge_swapped(tools: Tools) -> Workload:
    """A huge page on swap whole, one in part, one written again here and there."""
    driven = tools.target()
    whole, part, mixed = _huge(driven), _huge(driven), _huge(driven)
    every = list(range(HUGE_PAGES))
    # Zeros would become the zero page where the kernel has to split.
    for start, pages in ((whole, every), (part, every[64:80]), (mixed, every)):
        driven.poke(start, every)
        page_out(driven, start, pages)
    # Else khugepaged, or a fault, may put a huge page there again.
    driven.libc("madvise", mixed, HUGE, MADV_NOHUGEPAGE)
    again = every[7:HUGE_PAGES:29]
    driven.poke(mixed, again)
    of_part = kinds((P.PRESENT, 64), (P.SWAPPED, 16), (P.PRESENT, HUGE_PAGES - 80))
    of_mixed = [P.PRESENT if page in again else P.SWAPPED for page in every]
    return Workload(
        driven,
        [
            Expected(driven.pid, whole, [P.SWAPPED] * HUGE_PAGES, "anonymous"),
            Expected(driven.pid, part, of_part, "anonymous"),
            Expected(driven.pid, mixed, of_mixed, "anonymous"),
        ],
    )


@workload(*BOTH)
def huge_underused(tools: Tools) -> Workload:
    """When a huge page is split, pages of it that hold zeros become the zero page."""
    driven = tools.target()
    start = _huge(driven)
    page_out(driven, start, [0])
    classes = kinds((P.SWAPPED, 1), (P.ZERO, HUGE_PAGES - 1))
    return Workload(driven, [Expected(driven.pid, start, classes, "anonymous")])


@workload()
def merged(tools: Tools) -> Workload:
    """Pages that ksmd merged; merged zeros may become the zero page."""
    driven = tools.target()
    ksm = Path("/sys/kernel/mm/ksm")
    for name, value in (("pages_to_scan", 1000), ("sleep_millisecs", 1), ("run", 1)):
        tools.stack.enter_context(setting(ksm / name, value))
    states = pattern(("same", "untouched", "same", "own"), PRIME)
    start = driven.mmap(PRIME)
    same = pages_where(states, "same")
    driven.ask("poke", [start + page * PAGE for page in same], b"memlens the same" * 256)
    driven.poke(start, pages_where(states, "own"))
    driven.libc("madvise", start, PRIME * PAGE, MADV_MERGEABLE)
    classes = [P.NONE if state == "untouched" else P.PRESENT for state in states]

    def is_merged() -> None:
        flags = oracle.read_kpageflags(oracle.read_pagemap(driven.pid, start, PRIME))
        if not all(flags[page] >> oracle.KPF_KSM & 1 for page in same):
            raise StateMoved(f"not merged yet: {[hex(flags[page]) for page in same]}")

    mapping = Expected(driven.pid, start, classes, "anonymous", 0, states)
    return Workload(driven, [mapping], checks=[is_merged])


@workload()
def merged_zeros(tools: Tools) -> Workload:
    """With use_zero_pages, ksmd maps the zero page in place of pages that hold zeros."""
    driven = tools.target()
    ksm = Path("/sys/kernel/mm/ksm")
    for name, value in (
        ("use_zero_pages", 1),
        ("pages_to_scan", 1000),
        ("sleep_millisecs", 1),
        ("run", 1),
    ):
        tools.stack.enter_context(setting(ksm / name, value))
    states = pattern(("zeros", "untouched", "zeros", "own"), PRIME)
    start = driven.mmap(PRIME)
    driven.ask("poke", [start + page * PAGE for page in pages_where(states, "zeros")], b"\0")
    driven.poke(start, pages_where(states, "own"))
    driven.libc("madvise", start, PRIME * PAGE, MADV_MERGEABLE)
    known = {"zeros": P.ZERO, "untouched": P.NONE, "own": P.PRESENT}
    classes = [known[state] for state in states]
    return Workload(driven, [Expected(driven.pid, start, classes, "anonymous", 0, states)])


@workload(*BOTH)
def heap(tools: Tools) -> Workload:
    """[heap], grown by brk."""
    driven = tools.target()
    # Room above what malloc has; malloc does not know of it.
    base = driven.libc("sbrk", 40 * PAGE)
    start = -(-base // PAGE) * PAGE + PAGE
    states = pattern(("written", "swapped", "untouched", "read"), PRIME)
    _make(driven, start, states)
    classes = [STATES[state] for state in states]
    mapping = Expected(driven.pid, start, classes, "anonymous", 0, states, smaps=())
    return Workload(driven, [mapping])


@workload()
def stack(tools: Tools) -> Workload:
    """[stack]: pages that were used are there, pages below the deepest use are not."""
    driven = tools.target()
    (vma,) = [vma for vma in oracle.read_smaps(driven.pid) if vma.path == "[stack]"]
    words = oracle.read_pagemap(driven.pid, vma.start, (vma.stop - vma.start) // PAGE).tolist()
    classes = [P.PRESENT if word & oracle.PRESENT else P.NONE for word in words]
    return Workload(driven, [Expected(driven.pid, vma.start, classes, "anonymous")])


@workload()
def ten_thousand_mappings(tools: Tools) -> Workload:
    """Every second page has other permissions, so each page is a mapping."""
    driven = tools.target()
    pages = 10_007
    start = driven.mmap(pages)
    driven.run(
        "for page in range(1, pages, 2):\n"
        "    libc.mprotect(ctypes.c_void_p(start + page * size), size, 1)\n"
        "for page in range(0, pages, 6):\n"
        "    ctypes.memset(start + page * size, 1, 1)\n",
        start=start,
        pages=pages,
        size=PAGE,
    )
    classes = [P.NONE if page % 6 else P.PRESENT for page in range(pages)]
    return Workload(driven, [Expected(driven.pid, start, classes, "anonymous")])


@workload()
def private_zero_device(tools: Tools) -> Workload:
    """/dev/zero mapped privately is private anonymous memory with a name."""
    driven = tools.target()
    fd = driven.os("open", "/dev/zero", 2)
    states = pattern(("written", "untouched", "read"), PRIME)
    named = _mapped(driven, states, flags=MAP_PRIVATE, fd=fd)
    return Workload(driven, [named])
