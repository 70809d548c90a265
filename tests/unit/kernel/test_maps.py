"""What a scan takes from maps without parsing every line is what parsing all gives."""

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from memlens.kernel.maps import (
    Mapping,
    mapped_ranges,
    parse_maps,
    parse_unnamed,
    private_ranges,
)

HUGE = 1 << 32


def make_maps(seed: int) -> bytes:
    """Return a file of mappings of all sorts, in the order of addresses."""
    random.seed(seed)
    lines, address = [], 0x400000
    for number in range(random.randrange(1, 300)):
        address += random.choice([0, 0, 4096, 1 << 21, 3 * HUGE, 7 * HUGE])
        stop = address + 4096 * random.choice([1, 7, 300, 1 << 20, 3 << 20])
        kind = random.choice(
            [
                "rw-p 00000000 00:00 0 ",
                "rw-p 00000000 00:00 0                          [heap]",
                "r-xp 0002a000 fe:00 1234                       /usr/lib/x s 00:01 5.so",
                "rw-s 00000000 00:01 77                         /memfd:a 00:01 9 b (deleted)",
                "rw-p 00001000 00:1b 78                         /dev/shm/rw-s 1000 0:",
                "rw-s 00000000 fe:00 99                         /srv/table",
                "rw-s 00000000 00:01 0                          /SYSV00000000 (deleted)",
            ]
        )
        lines.append(f"{address:08x}-{stop:08x} {kind}\n")
        address = stop
        assert number >= 0
    lines.append("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]\n")
    return "".join(lines).encode()


def is_unnamed(mapping: Mapping) -> bool:
    return mapping.device.startswith("00:") and mapping.has_object


def user_part(mappings: list[Mapping]) -> Iterator[Mapping]:
    return (mapping for mapping in mappings if mapping.start < 1 << 63)


@pytest.mark.parametrize("seed", range(40))
def test_unnamed_mappings_are_those_that_parsing_finds(seed: int) -> None:
    raw = make_maps(seed)
    assert parse_unnamed(raw) == [m for m in parse_maps(raw) if is_unnamed(m)]


@pytest.mark.parametrize("seed", range(40))
def test_ranges_cover_private_mappings_and_no_large_shared_one(seed: int) -> None:
    raw = make_maps(seed)
    ranges = private_ranges(raw)
    assert ranges == sorted(ranges)
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))
    for mapping in user_part(parse_maps(raw)):
        inside = sum(
            max(min(stop, mapping.stop) - max(start, mapping.start), 0)
            for start, stop in ranges
        )
        if not mapping.is_shared:
            assert inside == mapping.stop - mapping.start, mapping
        elif mapping.stop - mapping.start >= 1 << 20:
            assert inside == 0, mapping


def test_own_maps() -> None:
    raw = Path("/proc/self/maps").read_bytes()
    assert parse_unnamed(raw) == [m for m in parse_maps(raw) if is_unnamed(m)]


def test_nothing_mapped() -> None:
    assert (parse_unnamed(b""), private_ranges(b"")) == ([], [])


@pytest.mark.parametrize("seed", range(40))
def test_ranges_cover_all_but_what_is_left_out(seed: int) -> None:
    raw = make_maps(seed)
    mappings = list(user_part(parse_maps(raw)))
    left_out = [(m.start, m.stop) for m in mappings[seed % 3 :: 5]]
    ranges = mapped_ranges(raw, left_out)
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))
    for mapping in mappings:
        inside = sum(
            max(min(stop, mapping.stop) - max(start, mapping.start), 0)
            for start, stop in ranges
        )
        is_left_out = (mapping.start, mapping.stop) in left_out
        assert inside == (0 if is_left_out else mapping.stop - mapping.start), mapping
