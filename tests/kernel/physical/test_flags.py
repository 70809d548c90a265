"""memlens flags beside the kernel's page-types, on processes that are stopped."""

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from memlens.kernel.zoneinfo import NodeRange
from memlens.pages.flags import expand_words, group_words, known_words, mask_of
from memlens.physical.flagreport import PageLister, count_flags, list_flags, resolve_cgroup
from memlens.physical.flags import (
    FlagCounts,
    count_cgroup_flags,
    count_file_flags,
    count_machine_flags,
    count_process_flags,
)
from memlens.physical.runflags import find_runs
from memlens.scan.machine import Machine
from tests.kernel.support import driver
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.driver import (
    HUGE,
    MADV_GUARD_INSTALL,
    MADV_HUGEPAGE,
    MAP_ANONYMOUS,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PAGE,
    Target,
)
from tests.kernel.support.kernel_tools import page_types
from tests.kernel.support.machine import wait_until

Show = Callable[[NDArray[np.uint64]], NDArray[np.uint64]]
# DAMON and the reclaim that it drives change these under a process that is stopped.
UNSTEADY = int(mask_of("REFERENCED", "IDLE", "ACTIVE"))
TRIES = 8


@contextmanager
def stopped(target: Target) -> Iterator[int]:
    os.kill(target.pid, signal.SIGSTOP)
    os.waitpid(target.pid, os.WUNTRACED)
    try:
        yield target.pid
    finally:
        os.kill(target.pid, signal.SIGCONT)


def word_at(path: str, index: int) -> int:
    """Read one word, by itself, without any code of ours."""
    with open(path, "rb") as file:
        return int.from_bytes(os.pread(file.fileno(), 8, index * 8), "little")


def by_word(counts: FlagCounts, show: Show) -> dict[int, int]:
    words, pages = group_words(show(counts.words), counts.pages)
    return dict(zip(words.tolist(), pages.tolist(), strict=True))


def assert_same(count: Callable[[], FlagCounts], show: Show, *arguments: str) -> FlagCounts:
    """Compare to the page with a page-types that says the same before and after."""
    nearly: tuple[FlagCounts, dict[int, int]] | None = None
    for _ in range(TRIES):
        before = page_types(*arguments)
        counts = count()
        after = page_types(*arguments)
        if after == before:
            assert by_word(counts, show) == before
            return counts
        if steady(after) == steady(before):
            nearly = counts, before
    assert nearly is not None, "page-types did not say the same twice"
    counts, before = nearly
    assert steady(by_word(counts, show)) == steady(before)
    return counts


def steady(rows: dict[int, int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for word, pages in rows.items():
        found[word & ~UNSTEADY] = found.get(word & ~UNSTEADY, 0) + pages
    return found


@pytest.fixture
def target() -> Iterator[Target]:
    with driver.target() as made:
        yield made


@pytest.fixture
def many_kinds(target: Target) -> Target:
    """Make private, shared, huge, locked, zero and guarded pages in one process."""
    private = target.mmap(23)
    target.poke(private, range(19))
    huge = target.mmap(4 * HUGE // PAGE, align=HUGE)
    target.libc("madvise", huge, 2 * HUGE, MADV_HUGEPAGE)
    target.poke(huge, range(600))
    locked = target.mmap(7)
    target.libc("mlock", locked, 7 * PAGE)
    target.peek(target.mmap(5), range(5))
    return target


@pytest.mark.parametrize(
    ("show", "option"), [(known_words, []), (expand_words, ["-r"])], ids=["known", "raw"]
)
def test_counts_equal_page_types(many_kinds: Target, show: Show, option: list[str]) -> None:
    with stopped(many_kinds) as pid:
        counts = assert_same(
            lambda: count_process_flags([pid], Machine()), show, *option, "-p", str(pid)
        )
    assert counts.total_pages > 600
    assert counts.moved_pages == 0


def test_a_page_mapped_by_two_is_one_frame(many_kinds: Target) -> None:
    child = many_kinds.fork()
    both = count_process_flags([many_kinds.pid, child.pid], Machine())
    one = count_process_flags([many_kinds.pid], Machine())
    assert one.frames is not None
    assert both.frames is not None
    assert both.total_pages > both.frames + 600
    assert both.frames < one.frames + 600


def test_a_range_counts_its_pages_alone(target: Target) -> None:
    start = target.mmap(23)
    target.poke(start, range(23))
    counts = count_process_flags([target.pid], Machine(), addresses=(start, start + 17 * PAGE))
    assert counts.total_pages == 17


def test_a_reservation_costs_nothing(target: Target) -> None:
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    start = target.mmap(1 << 28, flags=flags)
    target.poke(start + (1 << 39), range(3))
    began = time.monotonic()
    counts = count_process_flags([target.pid], Machine(), addresses=(start, start + (1 << 40)))
    assert counts.total_pages == 3
    # 2 GiB of empty words take longer than that to read.
    assert time.monotonic() - began < 0.5


def test_cached_pages_of_a_file_equal_page_types(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(211 * PAGE))
    os.sync()
    counts = assert_same(
        lambda: count_file_flags([str(path)], Machine()), known_words, "-f", str(path)
    )
    assert counts.total_pages == 211


def test_the_last_page_of_a_file_counts_though_it_is_not_full(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (2 * PAGE + 1))
    assert count_file_flags([str(path)], Machine()).total_pages == 3


def test_looking_does_not_change_the_access_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * PAGE)
    os.utime(path, ns=(0, path.stat().st_mtime_ns))
    count_file_flags([str(path)], Machine())
    assert path.stat().st_atime_ns == 0


def test_the_machine_has_as_many_frames_as_page_types_sees() -> None:
    counts = count_machine_flags(Machine())
    assert counts.total_pages == sum(page_types().values())
    reserved = int(mask_of("NOPAGE"))
    assert by_word(counts, known_words).get(reserved) == page_types().get(reserved)


@pytest.mark.parametrize("swap", ["zram", "file"], indirect=True)
def test_swapped_pages_have_no_frame_and_one_flag(
    swap: str, squeeze: Squeeze, target: Target
) -> None:
    start = target.mmap(23)
    with squeeze.cgroup() as cgroup:
        with cgroup.charging(target.pid):
            target.poke(start, range(19))
        with stopped(target) as pid:

            def is_out() -> bool:
                cgroup.reclaim()
                where = range(start // PAGE, start // PAGE + 19)
                return all(word_at(f"/proc/{pid}/pagemap", page) >> 62 == 1 for page in where)

            wait_until(is_out, "all pages are swapped")
            counts = count_process_flags([pid], Machine(), addresses=(start, start + 23 * PAGE))
            assert is_out()
    assert (counts.swapped_pages, counts.marker_pages, counts.total_pages) == (19, 0, 19)
    assert by_word(counts, expand_words) == {int(mask_of("SWAP")): 19}
    assert by_word(counts, known_words) == {0: 19}
    assert counts.frames == 0


def test_guards_are_markers_and_no_swap(target: Target) -> None:
    start = target.mmap(23)
    try:
        target.madvise(start, range(7), MADV_GUARD_INSTALL)
    except OSError:
        pytest.skip("this kernel has no guard regions")
    counts = count_process_flags([target.pid], Machine(), addresses=(start, start + 23 * PAGE))
    assert (counts.marker_pages, counts.swapped_pages) == (7, 0)


def test_frames_of_a_cgroup_equal_page_types(squeeze: Squeeze, target: Target) -> None:
    start = target.mmap(211)
    with squeeze.cgroup() as cgroup:
        with cgroup.charging(target.pid):
            target.poke(start, range(211))
        with stopped(target):
            inode = resolve_cgroup(str(cgroup.path), Machine())
            inside = "/" + str(cgroup.path.relative_to(squeeze.root))
            assert resolve_cgroup(inside, Machine()) == inode
            counts = assert_same(
                lambda: count_cgroup_flags(inode, Machine()),
                known_words,
                "-c",
                str(cgroup.path),
            )
            anonymous = counts.words & mask_of("ANON") != 0
            assert int(counts.pages[anonymous].sum()) >= 211
            pfn = word_at(f"/proc/{target.pid}/pagemap", start // PAGE) & ((1 << 55) - 1)
            where = (pfn * PAGE, (pfn + 1) * PAGE)
            assert count_cgroup_flags(inode, Machine(), addresses=where).total_pages == 1
            with PageLister(lambda words: words != 0, Machine(), inode) as lister:
                (found,) = lister.list_machine(where)
                assert lister.cgroup_names()[inode].endswith(cgroup.path.name)
            assert found.pfn is not None
            assert found.cgroup is not None
            assert (found.pfn.tolist(), found.cgroup.tolist()) == ([pfn], [inode])
            (row,) = list_flags(cgroup=str(cgroup.path), addresses=where).ranges
            assert (row.address, row.pfn, row.pages) == (None, pfn, 1)
            assert row.cgroup is not None
            assert row.cgroup.endswith(cgroup.path.name)
        target.libc("munmap", start, 211 * PAGE)


def test_a_page_table_that_never_stands_still_counts_as_moved(tmp_path: Path) -> None:
    """Random words stand for a page table: each look sees other frames."""
    proc = tmp_path / "proc"
    process = proc / "1"
    process.mkdir(parents=True)
    for name in ("stat", "statm"):
        (process / name).write_bytes(Path(f"/proc/self/{name}").read_bytes())
    (process / "maps").write_text("10000000-10017000 rw-p 00000000 00:00 0\n")
    (process / "pagemap").symlink_to("/dev/urandom")
    (proc / "kpageflags").write_bytes(bytes(8 << 10))
    counts = count_process_flags([1], Machine(str(proc)))
    assert (counts.total_pages, counts.moved_pages) == (0, 23)
    assert counts.is_complete


def test_pages_that_stay_are_counted_beside_pages_that_move(target: Target) -> None:
    still = target.mmap(1009)
    target.poke(still, range(1009))
    busy = target.mmap(1009)
    child = target.fork()
    moving = """
import ctypes, threading
libc = ctypes.CDLL(None)
def move():
    while True:
        libc.madvise(ctypes.c_void_p(start), size, 4)
        ctypes.memset(start, 1, size)
threading.Thread(target=move, daemon=True).start()
result = None
"""
    child.run(moving, start=busy, size=1009 * PAGE)
    seen = set()

    def has_moved() -> bool:
        counts = count_process_flags(
            [child.pid], Machine(), addresses=(still, still + 1009 * PAGE)
        )
        assert (counts.total_pages, counts.moved_pages) == (1009, 0)
        counts = count_process_flags(
            [child.pid], Machine(), addresses=(busy, busy + 1009 * PAGE)
        )
        assert counts.total_pages + counts.moved_pages <= 1009
        seen.add(counts.total_pages)
        return len(seen) > 1

    wait_until(has_moved, "something moves while it is counted")


def test_holes_between_memory_hold_no_page() -> None:
    lines = Path("/proc/iomem").read_text().splitlines()
    rows = [line.split(" : ")[0].split("-") for line in lines if line.endswith("System RAM")]
    ranges = [(int(first, 16), int(last, 16) + 1) for first, last in rows]
    holes = [
        (one[1], other[0])
        for one, other in itertools.pairwise(ranges)
        if other[0] - one[1] >= 1 << 28
    ]
    if not holes:
        pytest.skip("this machine's memory has no hole of 256 MiB")
    start, stop = holes[0][0] + (1 << 27), holes[0][1]
    counts = count_machine_flags(Machine(), addresses=(start, stop))
    # Older kernels say NOPAGE; v6.18 gives 0, as for a page without flags.
    (word,) = by_word(counts, expand_words)
    assert word in (0, int(mask_of("NOPAGE")))
    frames = f"{start // PAGE},{stop // PAGE}"
    assert by_word(counts, known_words) == page_types("-a", frames)
    assert counts.total_pages == (stop - start) // PAGE


def test_beyond_memory_is_nothing() -> None:
    stop = count_machine_flags(Machine()).total_pages * PAGE
    assert (
        count_machine_flags(
            Machine(), addresses=(stop + (1 << 40), stop + (1 << 41))
        ).total_pages
        == 0
    )


def test_pages_of_a_node_add_up(many_kinds: Target) -> None:
    """Take the two halves of this machine's memory for nodes."""
    frames = count_machine_flags(Machine()).total_pages
    counts = FlagCounts(Machine())
    counts.node_ranges = [NodeRange(0, 0, frames // 2), NodeRange(3, frames // 2, 1 << 40)]
    with stopped(many_kinds) as pid:
        words = []
        for mapping in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, stop = (int(text, 16) for text in mapping.split()[0].split("-"))
            if stop < 1 << 47:
                words += [
                    word_at(f"/proc/{pid}/pagemap", page)
                    for page in range(start // PAGE, stop // PAGE)
                ]
    counts.note_runs(find_runs(np.array(words, np.uint64)))
    pfns = [word & ((1 << 55) - 1) for word in words if word >> 63]
    low = sum(pfn < frames // 2 for pfn in pfns)
    assert counts.node_pages == {0: low, 3: len(pfns) - low}


def test_a_list_that_is_ended_keeps_what_it_has() -> None:
    answers = iter([False, False, False])
    report = list_flags(should_stop=lambda: next(answers, True))
    assert not report.is_complete
    assert 0 < report.ranges.column("pages").sum() <= 4 << 16
    assert report.total is not None
    assert report.total.total_pages == report.ranges.column("pages").sum()


def test_a_budget_ends_a_count(many_kinds: Target) -> None:
    assert not count_flags(budget_s=1e-9).is_complete
    assert not count_flags([many_kinds.pid], budget_s=1e-9).is_complete
    assert not list_flags([many_kinds.pid], budget_s=1e-9).is_complete


def test_a_list_and_a_count_say_the_same(many_kinds: Target) -> None:
    """The same pages by the same flags, for those whose flags stand still."""
    with stopped(many_kinds) as pid:
        counted = count_flags([pid], where="anon and thp", is_raw=True)
        listed = list_flags([pid], where="anon and thp", is_raw=True)
    assert counted.total is not None
    assert listed.total is not None
    assert counted.total.total_pages == listed.total.total_pages == 1024
    assert counted.combinations.column("pages").sum() == 1024
    assert listed.ranges.column("pages").sum() == 1024
