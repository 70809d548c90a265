"""memlens huge beside the kernel's thpmaps, on a process that is stopped."""

import os
import signal
from collections.abc import Iterator

import driver
import pytest
from driver import (
    HUGE,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    PAGE,
    PROT_READ,
    Target,
)
from kernelsource import thpmaps

from memlens.account.huge import map_huge
from memlens.views.huge import list_rows

MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
PAGES = HUGE // PAGE


@pytest.fixture
def target() -> Iterator[Target]:
    """Make huge pages that are whole, in part, split, moved, and the zero page."""
    with driver.target() as made:
        start = made.mmap(12 * PAGES, align=HUGE)
        made.libc("madvise", start, 12 * HUGE, MADV_HUGEPAGE)
        made.poke(start, range(0, 7 * PAGES, PAGES))
        made.madvise(start + HUGE, range(5, 8), MADV_DONTNEED)
        made.libc("munmap", start + 2 * HUGE + 100 * PAGE, 50 * PAGE)
        made.libc("mprotect", start + 3 * HUGE + 64 * PAGE, 64 * PAGE, PROT_READ)
        made.peek(start, [10 * PAGES])
        elsewhere = made.mmap(4 * PAGES, align=HUGE) + 37 * PAGE
        flags = MREMAP_MAYMOVE | MREMAP_FIXED
        made.libc("mremap", start + 5 * HUGE, HUGE, HUGE, flags, elsewhere)
        small = made.mmap(29)
        made.madvise(small, range(29), MADV_NOHUGEPAGE)
        made.poke(small, range(23))
        yield made


@pytest.mark.parametrize("disabled", ["", "pagemap_scan"])
def test_counters_equal_thpmaps(
    target: Target, monkeypatch: pytest.MonkeyPatch, disabled: str
) -> None:
    monkeypatch.setenv("MEMLENS_DISABLE", disabled)
    os.kill(target.pid, signal.SIGSTOP)
    os.waitpid(target.pid, os.WUNTRACED)
    try:
        theirs = thpmaps("--pid", str(target.pid), "--cont", "64K", "--cont", "2M")
        result = map_huge([target.pid], block_orders=(4, 9))
    finally:
        os.kill(target.pid, signal.SIGCONT)
    rows = list_rows(result.figures, result, has_empty=True)
    ours = {row.name: row.pages * PAGE // 1024 for row in rows}
    assert {name: ours[name] for name in theirs} == theirs
    # Orders that thpmaps does not show are all that there is more.
    assert not any(ours[name] for name in ours.keys() - theirs.keys())
    assert theirs["anon-thp-pmd-aligned-2048kB"] > 0
    assert theirs["anon-thp-pte-partial"] > 0
    assert theirs["anon-thp-pte-unaligned-2048kB"] > 0
    assert result.figures.huge_zero_pages == PAGES


def test_zero_pages_count_in_a_mapping_without_memory() -> None:
    with driver.target() as target:
        before = map_huge([target.pid]).figures.zero_pages
        start = target.mmap(31)
        target.madvise(start, range(31), MADV_NOHUGEPAGE)
        target.peek(start, range(13))
        assert map_huge([target.pid]).figures.zero_pages == before + 13
