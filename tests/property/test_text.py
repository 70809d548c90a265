"""Text in and out: what is printed reads back, and nothing escapes into a terminal."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from memlens.kernel.maps import Mapping, parse_maps
from memlens.kernel.smaps import parse_smaps
from memlens.units import escape_text, format_size, parse_address, parse_range

addresses = st.integers(0, (1 << 64) - 1)
# The kernel prints a newline in a name as \012; every other byte stays as it is.
names = st.binary(max_size=30).map(lambda raw: b"/" + raw.replace(b"\n", b""))
paths = st.just(b"") | names.filter(lambda raw: b"\0" not in raw)
letters = st.tuples(*(st.sampled_from(pair) for pair in ("r-", "w-", "x-", "sp"))).map("".join)
devices = st.tuples(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF)).map(
    lambda pair: f"{pair[0]:02x}:{pair[1]:02x}"
)


@st.composite
def mappings(draw: st.DrawFn) -> tuple[Mapping, bytes]:
    """Return a mapping and its line, as the kernel prints it."""
    start, stop = sorted((draw(addresses), draw(addresses)))
    raw = draw(paths)
    row = Mapping(
        start=start,
        stop=stop,
        permissions=draw(letters),
        offset_bytes=draw(addresses),
        device=draw(devices),
        inode=draw(addresses),
        path=raw.decode("utf-8", "surrogateescape"),
    )
    line = (
        f"{row.start:08x}-{row.stop:08x} {row.permissions}"
        f" {row.offset_bytes:08x} {row.device} {row.inode} "
    )
    return row, (f"{line:<73}" if raw else line).encode() + raw + b"\n"


@given(st.lists(mappings(), max_size=5))
def test_maps_reads_back(rows: list[tuple[Mapping, bytes]]) -> None:
    assert parse_maps(b"".join(line for _, line in rows)) == [row for row, _ in rows]


@given(st.lists(st.tuples(mappings(), st.integers(0, 1 << 50)), max_size=5))
def test_smaps_reads_back(rows: list[tuple[tuple[Mapping, bytes], int]]) -> None:
    raw = b"".join(
        line + f"Rss: {kib:16} kB\nTHPeligible:           1\nVmFlags: rd mr \n".encode()
        for (_, line), kib in rows
    )
    found = parse_smaps(raw)
    assert [figures.mapping for figures in found] == [row for (row, _), _ in rows]
    assert [figures.size_bytes for figures in found] == [{"Rss": k * 1024} for _, k in rows]
    assert all(figures.vm_flags == {"rd", "mr"} for figures in found)


@given(addresses, st.sampled_from(["", "0x", "0X"]))
def test_addresses_read_back(address: int, prefix: str) -> None:
    assert parse_address(f"{prefix}{address:x}") == address


@given(addresses, addresses)
def test_ranges_read_back(one: int, other: int) -> None:
    start, stop = min(one, other), max(one, other) + 1
    assert parse_range(f"{start:x}-{stop:x}") == (start, stop)


@given(st.integers(0, (1 << 64) - 1))
def test_sizes_are_short_and_near(size_bytes: int) -> None:
    text = format_size(size_bytes)
    assert len(text) <= 5
    unit = 1024 ** " KMGTPE".index(text[-1]) if text[-1].isalpha() else 1
    # One digit after the point below ten, none from there on: half a step of either.
    step = 0.1 if unit > 1 and size_bytes < 9.95 * unit else 1
    assert abs(float(text.rstrip("KMGTPE")) * unit - size_bytes) <= step / 2 * unit * 1.0001


@given(st.text())
def test_nothing_escapes_into_a_terminal(text: str) -> None:
    shown = escape_text(text)
    assert not {unicodedata.category(letter) for letter in shown} & {"Cc", "Cs", "Zl", "Zp"}
    shown.encode("utf-8")


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_plain_text_is_left_alone(text: str) -> None:
    assert escape_text(text) == text
