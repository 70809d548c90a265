"""The three files of page frames, on files made here."""

import random
from pathlib import Path

import numpy as np
import pytest

from memlens.errors import Unsupported
from memlens.kernel.kpage import (
    GAP_PFNS,
    KPAGE_FILES,
    PIECE_PFNS,
    KpageFile,
    merge_pfns,
    read_kpagecgroup,
    read_kpagecount,
    read_kpageflags,
)
from memlens.kernel.procfs import Host

KPF_NOPAGE = 1 << 20
FRAMES = 2 * PIECE_PFNS + 101


def word_of(pfn: int) -> int:
    return (pfn * 0x9E3779B97F4A7C15) % (1 << 64)


@pytest.fixture
def proc(tmp_path: Path) -> str:
    """Return a /proc in which the word of each frame tells its number."""
    words = np.array([word_of(pfn) for pfn in range(FRAMES)], np.uint64)
    for name in KPAGE_FILES:
        (tmp_path / name).write_bytes(words.tobytes())
    return str(tmp_path)


def test_a_range_longer_than_a_piece_is_whole(proc: str) -> None:
    with KpageFile("kpagecount", Host(proc)) as file:
        words = file.read_range(5, PIECE_PFNS + 50)
    assert words.dtype == np.uint64
    assert words.tolist() == [word_of(pfn) for pfn in range(5, PIECE_PFNS + 55)]


@pytest.mark.parametrize(
    ("first", "pages", "found"),
    [(FRAMES - 3, 10, 3), (FRAMES, 10, 0), (1 << 54, 4, 0), (1 << 60, 4, 0), (7, 0, 0)],
)
def test_a_range_ends_with_memory(proc: str, first: int, pages: int, found: int) -> None:
    with KpageFile("kpageflags", Host(proc)) as file:
        assert file.read_range(first, pages).tolist() == [
            word_of(pfn) for pfn in range(first, first + found)
        ]


@pytest.mark.parametrize("seed", range(5))
def test_any_pfns_in_any_order(proc: str, seed: int) -> None:
    source = random.Random(seed)
    pfns = [source.randrange(FRAMES) for _ in range(300)]
    pfns += pfns[:20] + list(range(4000, 4300)) + [0, FRAMES - 1]
    source.shuffle(pfns)
    asked = np.array(pfns, np.uint64)
    before = asked.copy()
    with KpageFile("kpageflags", Host(proc)) as file:
        found = file.read_pfns(asked)
    assert found.tolist() == [word_of(pfn) for pfn in pfns]
    assert (asked == before).all()


@pytest.mark.parametrize(
    ("read", "beyond"),
    [(read_kpageflags, KPF_NOPAGE), (read_kpagecount, 0), (read_kpagecgroup, 0)],
)
def test_beyond_memory_there_is_no_page(proc: str, read: object, beyond: int) -> None:
    pfns = np.array([FRAMES + 5, 3, FRAMES - 1, 1 << 58], np.uint64)
    found = read(pfns, Host(proc))
    assert found.tolist() == [beyond, word_of(3), word_of(FRAMES - 1), beyond]


def test_no_pfns_is_no_read(proc: str) -> None:
    host = Host(proc)
    assert len(read_kpagecount(np.empty(0, np.uint64), host)) == 0
    assert host.meter.read_bytes == 0
    assert not host.meter.used


def test_far_pfns_are_read_alone_and_near_ones_together(proc: str) -> None:
    host = Host(proc)
    read_kpagecount(np.array([0, 10_000], np.uint64), host)
    assert host.meter.read_bytes == 2 * 8
    assert host.meter.used == {"kpagecount"}
    read_kpagecount(np.array([0, GAP_PFNS + 1], np.uint64), host)
    assert host.meter.read_bytes == 2 * 8 + (GAP_PFNS + 2) * 8


@pytest.mark.parametrize(
    ("pfns", "runs"),
    [
        ([], []),
        ([7], [[7, 8]]),
        ([0, 1, 2], [[0, 3]]),
        ([0, GAP_PFNS + 1], [[0, GAP_PFNS + 2]]),
        ([0, GAP_PFNS + 2], [[0, 1], [GAP_PFNS + 2, GAP_PFNS + 3]]),
        ([1, (1 << 55) - 1], [[1, 2], [(1 << 55) - 1, 1 << 55]]),
    ],
)
def test_merge_pfns(pfns: list[int], runs: list[list[int]]) -> None:
    assert merge_pfns(np.array(pfns, np.uint64)).tolist() == runs


@pytest.mark.parametrize("name", KPAGE_FILES)
def test_a_kernel_without_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(Unsupported, match="CONFIG_PROC_PAGE_MONITOR") as caught:
        KpageFile(name, Host(str(tmp_path)))
    assert caught.value.path == str(tmp_path / name)


def test_another_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kpagestuff"):
        KpageFile("kpagestuff", Host(str(tmp_path)))


def test_close_twice(proc: str) -> None:
    file = KpageFile("kpagecount", Host(proc))
    file.close()
    file.close()
