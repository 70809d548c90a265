"""memlens huge beside the kernel's thpmaps, on a process that is stopped."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from memlens.kernel.procfs import Host
from memlens.kernel.zoneinfo import NodeRange, count_frames
from memlens.pages.flags import mask_of
from memlens.physical.flags import count_process_flags
from memlens.physical.huge import HugeReader
from memlens.physical.hugereport import list_cgroup_pids, map_huge
from memlens.physical.records import HugeReport, HugeTotal
from memlens.scan.machine import Machine
from memlens.views.huge import render
from memlens.views.text import TableOptions
from tests.kernel.support import driver
from tests.kernel.support.cgroups import Squeeze
from tests.kernel.support.driver import (
    HUGE,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    MADV_MERGEABLE,
    MADV_NOHUGEPAGE,
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_PRIVATE,
    PAGE,
    PROT_READ,
    Target,
)
from tests.kernel.support.kernel_tools import thpmaps
from tests.kernel.support.machine import setting, wait_until

MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
PAGES = HUGE // PAGE


def total_of(pid: int) -> HugeTotal:
    total = map_huge([pid]).total
    assert total is not None
    return total


def drawn(report: HugeReport) -> str:
    lines = render(report, TableOptions())
    return "\n".join("".join(part.text for part in line) for line in lines)


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
    rows = [row for row in result.counters if row.pid is None]
    ours = {row.name: row.pages * PAGE // 1024 for row in rows}
    assert {name: ours[name] for name in theirs} == theirs
    # Orders that thpmaps does not show are all that there is more.
    assert not any(ours[name] for name in ours.keys() - theirs.keys())
    assert theirs["anon-thp-pmd-aligned-2048kB"] > 0
    assert theirs["anon-thp-pte-partial"] > 0
    assert theirs["anon-thp-pte-unaligned-2048kB"] > 0
    assert result.total is not None
    assert result.total.huge_zero_pages == PAGES
    # Of the one process, and of its mappings, the same but for what is 0.
    for is_part in (
        lambda row: row.pid == target.pid and row.start is None,
        lambda row: row.start is not None,
    ):
        sums: dict[str, int] = {}
        for row in filter(is_part, result.counters):
            sums[row.name] = sums.get(row.name, 0) + row.pages
        assert sums == {row.name: row.pages for row in rows if row.pages}
    assert result.mappings.column("thp_pages").sum() == result.total.thp_pages
    assert (
        result.total.thp_pages
        == sum(row.pages for row in rows if "cont" not in row.name) - PAGES
    )


def test_zero_pages_count_in_a_mapping_without_memory() -> None:
    with driver.target() as target:
        before = total_of(target.pid).zero_pages
        start = target.mmap(31)
        target.madvise(start, range(31), MADV_NOHUGEPAGE)
        target.peek(start, range(13))
        assert total_of(target.pid).zero_pages == before + 13


def test_merged_pages_and_what_they_save() -> None:
    switch = Path("/sys/kernel/mm/ksm/run")
    if not switch.exists():
        pytest.skip("this kernel has no KSM")
    with (
        setting(Path("/sys/kernel/mm/ksm/sleep_millisecs"), 0),
        setting(Path("/sys/kernel/mm/ksm/pages_to_scan"), 10000),
        driver.target() as target,
        setting(switch, 1),
    ):
        start = target.mmap(47)
        target.madvise(start, range(47), MADV_NOHUGEPAGE)
        target.run(
            "import ctypes; result = ctypes.memset(start, 77, size)",
            start=start,
            size=47 * PAGE,
        )
        target.madvise(start, range(47), MADV_MERGEABLE)
        wait_until(lambda: total_of(target.pid).ksm_pages == 47, "47 merged pages")
        os.kill(target.pid, signal.SIGSTOP)
        result = map_huge([target.pid])
        counts = count_process_flags([target.pid], Machine())
        assert result.total is not None
        assert (result.total.ksm_pages, result.total.ksm_frames) == (47, 1)
        is_merged = (counts.words & mask_of("KSM")) != 0
        assert int(counts.pages[is_merged].sum()) == 47
        assert counts.frames == counts.total_pages - 46
        assert result.total.ksm_saved_pages == 46
        assert "saves 184K here" in " ".join(drawn(result).split())


def test_hugetlb_pages_by_size() -> None:
    pool = Path("/proc/sys/vm/nr_hugepages")
    before = int(pool.read_text())
    with setting(pool, before + 3), driver.target() as target:
        if int(pool.read_text()) < before + 3:
            pytest.skip("no memory for huge pages")
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB
        start = target.mmap(3 * PAGES, flags=flags, align=HUGE)
        target.poke(start, (0, 2 * PAGES))
        result = map_huge([target.pid])
        rows = [
            (row.pid, row.name, row.pages) for row in result.counters if row.kind == "hugetlb"
        ]
        name = f"hugetlb-{HUGE >> 10}kB"
        assert rows == [(pid, name, 2 * PAGES) for pid in (None, target.pid, target.pid)]
        assert result.processes[0].hugetlb_pages == 2 * PAGES
        counts = count_process_flags(
            [target.pid], Machine(), addresses=(start, start + 3 * HUGE)
        )
        assert counts.total_pages == 2 * PAGES
        is_huge = (counts.words & mask_of("HUGE")) != 0
        assert int(counts.pages[is_huge].sum()) == 2 * PAGES
        assert name in drawn(result)


def test_pages_of_a_node_are_all_that_is_huge(target: Target) -> None:
    """Take the two halves of this machine's memory for nodes."""
    half = count_frames(Host()) // 2
    order = PAGES.bit_length() - 1
    os.kill(target.pid, signal.SIGSTOP)
    os.waitpid(target.pid, os.WUNTRACED)
    try:
        with HugeReader(Machine(), (), order) as reader:
            reader.node_ranges = [NodeRange(0, 0, half), NodeRange(1, half, 1 << 40)]
            figures = reader.read(target.pid).figures
    finally:
        os.kill(target.pid, signal.SIGCONT)
    tally = figures.tally
    every = tally.whole.sum() + tally.partial.sum() + figures.pmd_pages.sum()
    assert sum(figures.node_pages.values()) == every - figures.huge_zero_pages


def test_processes_of_a_cgroup(target: Target, squeeze: Squeeze) -> None:
    child = target.fork()
    with squeeze.cgroup() as cgroup, cgroup.charging(target.pid), cgroup.charging(child.pid):
        assert list_cgroup_pids(str(cgroup.path), Machine()) == sorted([target.pid, child.pid])


def test_a_scan_of_many_misses_no_kernel_thread_and_names_who_is_gone() -> None:
    with driver.target() as target:
        result = map_huge([2, target.pid, 1 << 30], is_strict=False)
        assert [process.pid for process in result.processes] == [target.pid]
        assert [item.what for item in result.missed] == [f"PID {1 << 30}"]


def test_a_scan_that_is_ended_keeps_what_it_has(target: Target) -> None:
    child = target.fork()
    answers = iter([False, False, True])
    report = map_huge([target.pid, child.pid], should_stop=lambda: next(answers, True))
    assert not report.is_complete
    assert [process.pid for process in report.processes] == [target.pid]
    assert [item.what for item in report.missed] == [f"PID {target.pid}", f"PID {child.pid}"]
    assert not map_huge([target.pid], budget_s=1e-9).is_complete


def test_without_a_scan_the_note_says_what_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def scan_notes() -> list[str]:
        return [note for note in map_huge([os.getpid()]).notes if "PAGEMAP_SCAN" in note]

    assert scan_notes() == []
    monkeypatch.setenv("MEMLENS_DISABLE", "pagemap_scan")
    assert len(scan_notes()) == 1
