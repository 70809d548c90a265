"""Flags of the pages of a process, read and counted in parts."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from memlens.kernel.kpage import KpageFile
from memlens.kernel.procfs import Host
from memlens.pages.bits import PM_FILE, PM_PFN, PM_PRESENT
from memlens.pages.flags import PAGEMAP_PART
from memlens.pages.wordcounts import WordCounts
from memlens.physical import runflags
from memlens.physical.runflags import ReadBuffer, RunFlags, find_runs

FRAMES = 5000


@pytest.fixture
def file(tmp_path: Path) -> KpageFile:
    """Return a kpageflags of a small machine, open."""
    pfns = np.arange(FRAMES, dtype=np.uint64)
    (pfns // np.uint64(7) % np.uint64(5) + np.uint64(1)).tofile(tmp_path / "kpageflags")
    return KpageFile("kpageflags", Host(str(tmp_path)))


def words_of(pfns: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Return pagemap words of pages, some absent, some of files."""
    random = np.random.default_rng(seed)
    words = pfns.astype(np.uint64) | PM_PRESENT
    words[random.random(len(words)) < 0.1] = 0
    words[random.random(len(words)) < 0.2] |= PM_FILE if seed % 2 else np.uint64(0)
    return words


def slow_flags(words: NDArray[np.uint64]) -> list[int]:
    """Return the flags of each page, one at a time."""
    found = []
    for word in words.tolist():
        pfn = word & int(PM_PFN) if word >> 63 else 0
        beyond = 1 << 20
        found.append(0 if not pfn else pfn // 7 % 5 + 1 if pfn < FRAMES else beyond)
    return found


# In order, shuffled, with frames that several pages share, and beyond the end of memory.
LAYOUTS = {
    "in order": np.arange(1, FRAMES),
    "shuffled": np.random.default_rng(5).permutation(np.arange(1, FRAMES)),
    "shared": np.random.default_rng(6).integers(1, 300, 900),
    "gaps": np.arange(1, FRAMES, 40),
    "beyond": np.arange(FRAMES - 50, FRAMES + 200),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("part_pfns", [1, 64, 1 << 16])
def test_parts_count_every_page_once(
    file: KpageFile, layout: str, seed: int, part_pfns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runflags, "_PART_PFNS", part_pfns)
    words = words_of(LAYOUTS[layout], seed)
    slow = slow_flags(words)
    found = RunFlags.reserve(find_runs(words), ReadBuffer())
    # Threads read and count parts in any order.
    for part in reversed(range(found.parts)):
        found.read_part(file, part)
    assert found.by_page(len(words)).tolist() == slow
    counts = WordCounts()
    counted = sum(
        int(found.count_part(counts, part).pages.sum()) for part in range(found.parts)
    )
    parts = zip(slow, (words & PAGEMAP_PART).tolist(), strict=True)
    wanted = Counter(flags | high for flags, high in parts if flags)
    assert dict(zip(*(column.tolist() for column in counts.totals()), strict=True)) == wanted
    assert counted == wanted.total()
    file.close()


def test_a_reader_uses_its_memory_again(file: KpageFile) -> None:
    buffer = ReadBuffer()
    first = RunFlags.read(words_of(LAYOUTS["in order"], 0), file, buffer)
    second = RunFlags.read(words_of(LAYOUTS["gaps"], 1), file, buffer)
    assert np.shares_memory(first.words, second.words)
    assert second.by_page(len(LAYOUTS["gaps"])).tolist() == slow_flags(
        words_of(LAYOUTS["gaps"], 1)
    )
    file.close()
