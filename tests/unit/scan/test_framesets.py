"""Numbers and sets of frames beside Python's own."""

import numpy as np
import pytest

from memlens.scan import frametable
from memlens.scan.frametable import FrameRanks, FrameSet


def test_ranks_are_dense_and_stay() -> None:
    ranks = FrameRanks(0)
    first = ranks.learn(np.array([700, 5, 5, 70_000]))
    assert sorted(set(first.tolist())) == [0, 1, 2]
    assert first[1] == first[2]
    again = ranks.learn(np.array([5, 9]))
    assert (again[0], again[1], ranks.size) == (first[1], 3, 4)
    assert ranks.find(np.array([70_000, 6, 1 << 40])).tolist() == [first[3], -1, -1]


@pytest.mark.parametrize("has_bitwise_count", [True, False])
def test_sets_are_sets(has_bitwise_count: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_bitwise_count:
        monkeypatch.delattr(frametable.np, "bitwise_count", raising=False)
    random = np.random.default_rng(7)
    for _ in range(40):
        one, other = FrameSet(), FrameSet()
        plain: list[set[int]] = [set(), set()]
        for _ in range(int(random.integers(0, 4))):
            for frames, values in ((one, plain[0]), (other, plain[1])):
                low = int(random.integers(0, 3000))
                added = random.integers(low, low + 900, int(random.integers(0, 500)))
                frames.add(added)
                values.update(added.tolist())
        assert (one.count(), other.count()) == (len(plain[0]), len(plain[1]))
        assert one.count_common(other) == len(plain[0] & plain[1])
        asked = random.integers(-1, 5000, 300)
        assert one.has(asked).tolist() == [value in plain[0] for value in asked.tolist()]
        one.include(other)
        assert one.count() == len(plain[0] | plain[1])
