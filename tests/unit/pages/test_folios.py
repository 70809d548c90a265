"""How folios are mapped: every page counted one at a time must give the same."""

import numpy as np
import pytest

from memlens.pages.flags import mask_of
from memlens.pages.folios import (
    ALIGNED,
    ANON,
    FILE,
    UNALIGNED,
    HugePages,
    HugeTally,
    find_cut,
    join_huge,
)

HEAD, TAIL = (int(mask_of(name)) for name in ("COMPOUND_HEAD", "COMPOUND_TAIL"))


def folio(vfn: int, pfn: int, order: int, pages: range | None = None, anon: bool = True):
    """Return the mapped pages of a folio that begins at these numbers."""
    kind = int(mask_of("ANON")) if anon else 0
    return [
        (vfn + i, pfn + i, kind | (TAIL if i else HEAD)) for i in pages or range(1 << order)
    ]


def huge_of(pages: list[tuple[int, int, int]]) -> HugePages:
    columns = list(zip(*pages, strict=True)) or [(), (), ()]
    return HugePages(
        np.array(columns[0], np.int64),
        np.array(columns[1], np.int64),
        np.array(columns[2], np.uint64),
    )


def tally(pages: list[tuple[int, int, int]], tails: set[int] = frozenset(), orders=()):
    """Count; ``tails`` are frames that are not mapped here and are tails."""
    found = HugeTally(blocks={order: np.zeros(2, np.int64) for order in orders})
    huge = huge_of(pages)
    _, stops = huge.ranges()
    found.add(huge, np.array([int(huge.pfn[stop - 1]) + 1 in tails for stop in stops], bool))
    return found


def test_whole_folios_by_size_and_fit() -> None:
    found = tally(folio(16, 64, 4) + folio(33, 128, 2) + folio(48, 256, 4, anon=False))
    assert found.whole[ANON, ALIGNED, 4] == 16
    assert found.whole[ANON, UNALIGNED, 2] == 4
    assert found.whole[FILE, ALIGNED, 4] == 16
    assert found.whole.sum() == 36
    assert not found.partial.any()


def test_neighbours_in_memory_are_two_folios() -> None:
    found = tally(folio(16, 64, 2) + folio(20, 68, 2))
    assert found.whole[ANON, ALIGNED, 2] == 8


@pytest.mark.parametrize("pages", [range(3, 16), range(5), range(4, 9)])
def test_a_part_is_partial_wherever_it_is(pages: range) -> None:
    found = tally(folio(16, 64, 4, pages), tails=set(range(65, 80)) - {64 + i for i in pages})
    assert found.partial[ANON] == len(pages)
    assert not found.whole.any()


def test_a_part_behind_whole_ones() -> None:
    pages = folio(16, 64, 2) + folio(20, 68, 2, range(3))
    found = tally(pages, tails={71})
    assert found.whole[ANON, ALIGNED, 2] == 4
    assert found.partial[ANON] == 3


def test_blocks_lie_in_one_folio_and_are_aligned() -> None:
    pages = folio(16, 64, 4) + folio(34, 130, 4, range(2, 16)) + folio(64, 201, 4)
    found = tally(pages, orders=(2, 3))
    assert found.blocks[2][ANON] == 16 + 12
    assert found.blocks[3][ANON] == 16 + 8


@pytest.mark.parametrize("cut_at", range(1, 60))
def test_pieces_count_as_the_whole(cut_at: int) -> None:
    pages = (
        folio(3, 67, 3, range(2, 8))
        + folio(11, 75, 4)
        + folio(27, 91, 2)
        + folio(32, 160, 4, range(16))
        + folio(48, 176, 3, range(5))
    )
    tails = set(range(68, 75)) | {181}
    whole = tally(pages, tails, orders=(1, 2))
    before = [page for page in pages if page[0] < cut_at]
    after = [page for page in pages if page[0] >= cut_at]
    first = huge_of(before)
    cut = find_cut(first, cut_at, 16)
    second = join_huge(first.slice(cut, len(first.vfn)), huge_of(after))
    found = tally(before[:cut], tails, orders=(1, 2))
    kept = list(
        zip(second.vfn.tolist(), second.pfn.tolist(), second.flags.tolist(), strict=True)
    )
    found.merge(tally(kept, tails, orders=(1, 2)))
    assert found.whole.tolist() == whole.whole.tolist()
    assert found.partial.tolist() == whole.partial.tolist()
    assert {k: v.tolist() for k, v in found.blocks.items()} == {
        k: v.tolist() for k, v in whole.blocks.items()
    }
