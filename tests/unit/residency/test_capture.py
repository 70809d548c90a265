"""Lines of maps as a scan takes them."""

from types import SimpleNamespace
from typing import Any

import pytest

from memlens.residency.capture import _Capture

Rows = list[tuple[int, int]]


def parse(rows: Rows) -> Rows:
    process: Any = SimpleNamespace(path="/proc/7")
    nothing: Any = None
    raw = b"".join(b"%x-%x rw-p 00000000 00:00 0 \n" % row for row in rows)
    table = _Capture(process, nothing, nothing, nothing)._parse(raw)
    return [(mapping.start, mapping.stop) for mapping in table]


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ([], []),
        ([(1, 2), (2, 3), (5, 6)], [(1, 2), (2, 3), (5, 6)]),
        # Joined while maps was read: the kernel goes on with the whole.
        ([(1, 2), (2, 3), (1, 4), (5, 6)], [(1, 4), (5, 6)]),
        ([(0, 1), (1, 3), (1, 5)], [(0, 1), (1, 5)]),
        # Moved: neither covers the other.
        ([(1, 3), (2, 4)], [(1, 3), (2, 4)]),
    ],
)
def test_a_line_that_a_later_one_covers_is_left_out(rows: Rows, kept: Rows) -> None:
    assert parse(rows) == kept
