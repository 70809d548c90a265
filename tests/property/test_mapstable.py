"""Maps parsed as columns are what they are line by line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlens.errors import MemlensError
from memlens.kernel.maps import (
    Mapping,
    join_tables,
    overlaps,
    parse_maps,
    parse_maps_table,
    table_of,
)

paths = st.sampled_from(
    ["", "[heap]", "[vvar]", "/a b-c (deleted)", "/d\\012e", " /f", "/\xe9", "anon_inode:[x]"]
)
lines = st.builds(
    lambda start, pages, mode, offset, device, inode, pad, path: (
        f"{start << 12:08x}-{(start + pages) << 12:08x} {mode} {offset << 12:08x} "
        f"{device} {inode} {' ' * pad}{path}\n"
    ),
    st.integers(0, (1 << 52) - (1 << 20)),
    st.integers(1, 1 << 19),
    st.sampled_from(["rw-p", "r-xp", "rw-s", "---p"]),
    st.integers(0, (1 << 52) - 1),
    st.sampled_from(["00:00", "fe:01", "103:05"]),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 5),
    paths,
)
tables = st.lists(lines, max_size=9).map(lambda rows: "".join(rows).encode())


@given(tables)
def test_columns_equal_lines(raw: bytes) -> None:
    table = parse_maps_table(raw)
    assert list(table) == parse_maps(raw)
    assert len(set(table.places)) == len(table.places)
    assert list(table_of(table)) == list(table)


@given(tables, st.binary(max_size=3), st.integers(0, 400))
def test_damage_is_what_it_is_line_by_line(raw: bytes, noise: bytes, place: int) -> None:
    raw = raw[:place] + noise + raw[place:]
    try:
        expected = parse_maps(raw)
    except MemlensError as error:
        with pytest.raises(type(error)):
            parse_maps_table(raw)
        return
    if all(max(row.start, row.stop, row.offset_bytes) < 1 << 64 for row in expected):
        assert list(parse_maps_table(raw)) == expected


@given(tables, tables)
def test_what_is_found_is_the_same_mapping(one: bytes, other: bytes) -> None:
    table, others = parse_maps_table(one), parse_maps_table(other)
    joined = join_tables([table, others])
    assert list(joined) == [*table, *others]
    starts = [row.start for row in joined]
    for row, at in zip(others, joined.find(others).tolist(), strict=True):
        assert joined[at] == row if at >= 0 else starts.count(row.start) > 1


@given(tables, tables)
def test_mappings_overlap_as_each_pair_does(one: bytes, other: bytes) -> None:
    table, others = parse_maps_table(one), parse_maps_table(other)

    def is_apart(row: Mapping) -> bool:
        return all(row.stop <= at.start or at.stop <= row.start for at in others)

    assert overlaps(table, others).tolist() == [not is_apart(row) for row in table]
