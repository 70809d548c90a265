"""Shared memory looked at through other processes, protections, guards and offsets."""

from tests.kernel.support.driver import (
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MAP_FIXED,
    MAP_SHARED,
    PAGE,
    PROT_NONE,
    READ_WRITE,
)
from tests.kernel.workloads.base import (
    BOTH,
    PRIME,
    Expected,
    P,
    PageClass,
    Tools,
    Workload,
    entries,
)
from tests.kernel.workloads.shmem import map_mixed, memfd

ENTRIES, workload = entries()


@workload()
def mapped_by_two(tools: Tools) -> Workload:
    """Pages that only the other process maps are cached for this one."""
    driven = tools.target()
    fd = memfd(driven, PRIME)
    start = driven.mmap(PRIME, flags=MAP_SHARED, fd=fd)
    child = driven.fork()
    driven.poke(start, range(0, PRIME, 3))
    child.poke(start, range(1, PRIME, 3))
    choices = {
        driven.pid: (P.PRESENT, P.CACHED, P.NONE),
        child.pid: (P.CACHED, P.PRESENT, P.NONE),
    }
    return Workload(
        driven,
        [
            Expected(pid, start, [choice[page % 3] for page in range(PRIME)], "shmem")
            for pid, choice in choices.items()
        ],
    )


@workload("none", *BOTH)
def shared_then_changed(tools: Tools) -> Workload:
    """Protection, locks, guards and truncation over every state."""
    driven = tools.target()
    closed = map_mixed(tools, driven, memfd(driven, 61))
    driven.libc("mprotect", closed.start, 61 * PAGE, PROT_NONE)

    guarded = map_mixed(tools, driven, memfd(driven, 61))
    marked = range(0, 61, 2)
    driven.madvise(guarded.start, marked, MADV_GUARD_INSTALL)
    guarded.classes = [P.GUARD if page in marked else kind for page, kind in _pages(guarded)]
    guarded.smaps = ("Rss",)  # Swap counts what lies behind the guards

    cut = map_mixed(tools, driven, fd := memfd(driven, 61))
    driven.os("ftruncate", fd, 31 * PAGE + 7)
    cut.classes = [P.BEYOND_END if page > 31 else kind for page, kind in _pages(cut)]
    if cut.classes[31] is P.SWAPPED:
        cut.classes[31] = P.CACHED  # read in, to clear what lies behind the new end

    locked = map_mixed(tools, driven, memfd(driven, 17 + 61), pages=17 + 61)
    driven.libc("mlock", locked.start, 17 * PAGE)  # faults in every page
    locked.classes = [P.PRESENT if page < 17 else kind for page, kind in _pages(locked)]
    # mlock maps neighbours too.
    around = [page for page, kind in _pages(locked) if page >= 17 and kind is not P.PRESENT]
    driven.madvise(locked.start, around, MADV_DONTNEED)
    return Workload(driven, [closed, guarded, cut, locked])


def _pages(mapping: Expected) -> list[tuple[int, PageClass]]:
    return list(enumerate(mapping.classes))


@workload("none", *BOTH)
def rearranged(tools: Tools) -> Workload:
    """One object mapped twice, in pieces, in another order: offsets are not addresses."""
    driven = tools.target()
    fd = memfd(driven, 61)
    whole = map_mixed(tools, driven, fd)
    start = driven.mmap(61)
    mappings = [whole]
    for first, count, at in ((40, 21, 0), (19, 21, 21), (0, 19, 42)):
        where = start + at * PAGE
        # MAP_FIXED, over the mapping that held the place
        driven.libc(
            *("mmap", where, count * PAGE, READ_WRITE, MAP_SHARED | MAP_FIXED),
            *(fd, first * PAGE),
        )
        seen = whole.classes[first : first + count]
        classes = [P.CACHED if kind is P.PRESENT else kind for kind in seen]
        mappings.append(Expected(driven.pid, where, classes, "shmem", first * PAGE))
    return Workload(driven, mappings)
