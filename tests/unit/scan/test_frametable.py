"""What the kernel says of frames is asked once, and kept."""

from pathlib import Path

import numpy as np
import pytest

from memlens.kernel.kpage import KpageFile
from memlens.scan.frametable import ANSWER_LIMIT, Frames, FrameTable
from memlens.scan.machine import Machine
from memlens.scan.mapcounts import FrameSums, MapCounts

ZONE = "Node 0, zone DMA\n  spanned {pages}\n  start_pfn: 0\n"


def make(path: Path, words: list[int], pages: int) -> KpageFile:
    (path / "kpagecount").write_bytes(np.array(words, np.uint64).tobytes())
    (path / "zoneinfo").write_text(ZONE.format(pages=pages))
    return KpageFile("kpagecount", Machine(str(path)))


@pytest.mark.parametrize("pages", [0, 3, 100_000])
def test_answers_whatever_is_known_of_memory(tmp_path: Path, pages: int) -> None:
    words = [number % 7 for number in range(9000)]
    asked: list[int] = []

    def reduce(found: np.ndarray, pfns: np.ndarray) -> np.ndarray:
        assert len(pfns) == len(found)
        asked.append(len(found))
        return found.astype(np.uint16)

    with make(tmp_path, words, pages) as file:
        table = FrameTable(file, reduce)
        for pfns in ([5, 8999, 5, 0], [8999, 20, 0], [5], []):
            answers = table.of(np.array(pfns, np.uint32))
            assert answers.tolist() == [pfn % 7 for pfn in pfns]
    assert asked == [3, 1]


def test_some_are_asked_about_again(tmp_path: Path) -> None:
    with make(tmp_path, [3, 4, 5, 6], 2) as file:
        table = FrameTable(file, lambda words, _pfns: words.astype(np.uint16))
        table.of(np.array([1, 3], np.uint32))
        (tmp_path / "kpagecount").write_bytes(np.arange(4, dtype=np.uint64).tobytes())
        assert not table.ask_again(np.array([2, 1 << 40]))
        assert table.ask_again(np.array([2, 3]))
        assert table.of(np.arange(4, dtype=np.uint32)).tolist() == [0, 4, 2, 3]


def frames(pfns: list[int], is_alone: list[bool]) -> Frames:
    return Frames(
        np.array(pfns, np.uint32),
        np.array([False, True, False, True, False])[: len(pfns)],
        np.array(is_alone),
        np.empty(0, np.uint64),
    )


def sum_up(file: KpageFile, found: Frames) -> FrameSums:
    counts = MapCounts(file, Machine())
    counts.add(7, found)
    return counts.sums()[7]


def test_counts_have_a_least_and_a_most(tmp_path: Path) -> None:
    with make(tmp_path, [0, 1, ANSWER_LIMIT + 1, 1 << 40], 4) as file:
        sums = sum_up(file, frames([0, 1, 2, 3], [False] * 4))
    assert sums == (4, 2 + 2 / ANSWER_LIMIT, 2, 1)


def test_the_page_table_and_the_counts_give_one_answer(tmp_path: Path) -> None:
    every = [0, 1, 2, 3, 4]
    with make(tmp_path, [1, 1, 1, 4, 2], 5) as file:
        sums = [
            sum_up(file, frames(every, is_alone))
            for is_alone in ([False] * 5, [True, True, False, False, False])
        ]
    assert sums[0] == sums[1] == (5, 3.75, 3, 2)


def test_what_is_mapped_once_is_not_asked_about(tmp_path: Path) -> None:
    with make(tmp_path, [9, 9, 9, 9, 9], 5) as file:
        sums = sum_up(file, frames([0, 1, 2, 3, 4], [True] * 5))
        assert file.host.meter.read_bytes == 0
    assert sums == (5, 5.0, 5, 3)
