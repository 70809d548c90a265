"""memlens flags beside the kernel's page-types, on processes that are stopped."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import driver
import numpy as np
import pytest
from driver import (
    HUGE,
    MADV_HUGEPAGE,
    MAP_ANONYMOUS,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PAGE,
    Target,
)
from kernelsource import page_types
from numpy.typing import NDArray

from memlens.account.fileflags import count_file_flags
from memlens.account.flags import count_process_flags
from memlens.account.flagworkers import FlagCounts
from memlens.account.frameflags import count_machine_flags
from memlens.pages.flags import expand_words, group_words, known_words, mask_of

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


def by_word(counts: FlagCounts, show: Show) -> dict[int, int]:
    words, pages = group_words(show(counts.words), counts.pages)
    return dict(zip(words.tolist(), pages.tolist(), strict=True))


def assert_same(count: Callable[[], FlagCounts], show: Show, *arguments: str) -> FlagCounts:
    """Compare to the page with a page-types that says the same before and after."""
    for _ in range(TRIES):
        before = page_types(*arguments)
        counts = count()
        if page_types(*arguments) == before:
            assert by_word(counts, show) == before
            return counts
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
        counts = assert_same(lambda: count_process_flags([pid]), show, *option, "-p", str(pid))
    assert counts.total_pages > 600
    assert counts.moved_pages == 0


def test_a_page_mapped_by_two_is_one_frame(many_kinds: Target) -> None:
    child = many_kinds.fork()
    both = count_process_flags([many_kinds.pid, child.pid])
    one = count_process_flags([many_kinds.pid])
    assert one.frames is not None
    assert both.frames is not None
    assert both.total_pages > both.frames + 600
    assert both.frames < one.frames + 600


def test_a_range_counts_its_pages_alone(target: Target) -> None:
    start = target.mmap(23)
    target.poke(start, range(23))
    counts = count_process_flags([target.pid], addresses=(start, start + 17 * PAGE))
    assert counts.total_pages == 17


def test_a_reservation_costs_nothing(target: Target) -> None:
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    start = target.mmap(1 << 28, flags=flags)
    target.poke(start + (1 << 39), range(3))
    began = time.monotonic()
    counts = count_process_flags([target.pid], addresses=(start, start + (1 << 40)))
    assert counts.total_pages == 3
    # 2 GiB of empty words take longer than that to read.
    assert time.monotonic() - began < 0.5


def test_cached_pages_of_a_file_equal_page_types(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(211 * PAGE))
    os.sync()
    counts = assert_same(lambda: count_file_flags([str(path)]), known_words, "-f", str(path))
    assert counts.total_pages == 211


def test_the_last_page_of_a_file_counts_though_it_is_not_full(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (2 * PAGE + 1))
    assert count_file_flags([str(path)]).total_pages == 3


def test_looking_does_not_change_the_access_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * PAGE)
    os.utime(path, ns=(0, path.stat().st_mtime_ns))
    count_file_flags([str(path)])
    assert path.stat().st_atime_ns == 0


def test_the_machine_has_as_many_frames_as_page_types_sees() -> None:
    counts = count_machine_flags()
    assert counts.total_pages == sum(page_types().values())
    reserved = int(mask_of("NOPAGE"))
    assert by_word(counts, known_words).get(reserved) == page_types().get(reserved)
