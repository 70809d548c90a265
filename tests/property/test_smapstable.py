"""Smaps as columns is what it is block by block."""

from hypothesis import given
from hypothesis import strategies as st

from memlens.kernel.smaps import parse_smaps, parse_smaps_table

NAMES = ["Rss", "Anonymous", "Private_Hugetlb"]
figures = st.integers(0, 1 << 33)
paths = st.sampled_from(["", "/a b", "[heap]", "/Rss:     4 kB"])
names = st.sampled_from(["Rss", "Anonymous", "Swap"])
blocks = st.lists(st.tuples(st.integers(0, 1 << 20), paths, figures, figures), max_size=6)


@given(blocks, st.lists(names, max_size=3, unique=True), st.integers(0, 3))
def test_columns_equal_blocks(
    rows: list[tuple[int, str, int, int]], more: list[str], odd: int
) -> None:
    raw = ""
    for number, (start, path, rss, other) in enumerate(rows):
        raw += f"{start << 12:08x}-{(start + 1) << 12:08x} rw-p 00000000 00:00 0    {path}\n"
        raw += f"Rss:            {rss:8d} kB\n"
        raw += "".join(f"{name}:   {other:8d} kB\n" for name in more if name != "Rss")
        # A block that is longer than the others.
        raw += "Locked:   4 kB\n" if number == odd else ""
        raw += "THPeligible:           0\nVmFlags: rd wr \n"
    expected = parse_smaps(raw.encode())
    found = parse_smaps_table(raw.encode(), NAMES)
    assert list(found.maps) == [row.mapping for row in expected]
    for name in NAMES:
        wanted = [row.size_bytes.get(name, 0) for row in expected]
        assert found.size_bytes[name].tolist() == wanted
