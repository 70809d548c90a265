"""Addresses, ranges, sizes and text for a terminal."""

import pytest

from memlens.units import escape_text, format_size, parse_address, parse_range


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0", 0),
        ("7fff00001000", 0x7FFF00001000),
        ("0x1000", 0x1000),
        ("0XAB", 0xAB),
        (" 1000\n", 0x1000),
        ("ffffffffffffffff", (1 << 64) - 1),
    ],
)
def test_parse_address(text: str, address: int) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", " ", "0x", "-1", "+1", "1_0", "12g", "1000-2000", "0x0x1", "\u0661", "1 0"]
)
def test_parse_address_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="not a hexadecimal address"):
        parse_address(text)


@pytest.mark.parametrize("text", ["10000000000000000", "f" * 100])
def test_parse_address_refuses_more_than_64_bits(text: str) -> None:
    with pytest.raises(ValueError, match="beyond 64 bits"):
        parse_address(text)


def test_parse_range() -> None:
    assert parse_range("0x1000-0x3000") == (0x1000, 0x3000)


def test_parse_range_may_end_where_addresses_end() -> None:
    assert parse_range("0-10000000000000000") == (0, 1 << 64)


@pytest.mark.parametrize(
    "text",
    [
        "1000",
        "1000-1000",
        "3000-1000",
        "-1000",
        "1000-",
        "1000-2000-3000",
        "0-10000000000000001",
    ],
)
def test_parse_range_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"range|address"):
        parse_range(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0"),
        (1, "1"),
        (999, "999"),
        (1000, "1K"),
        (1024, "1K"),
        (4096, "4K"),
        (9 << 10, "9K"),
        (10188, "9.9K"),
        (10189, "10K"),
        (1023 << 10, "1M"),
        (999 << 10, "999K"),
        (1 << 20, "1M"),
        ((1 << 30) * 3 // 2, "1.5G"),
        ((1 << 64) - 1, "16E"),
    ],
)
def test_format_size(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


def test_format_size_fits_its_column() -> None:
    edges = {(1 << shift) + step for shift in range(64) for step in (-1, 0, 1)}
    edges |= {10**power + step for power in range(19) for step in (-1, 0, 1)}
    assert max(len(format_size(size)) for size in edges if size >= 0) <= 5


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/usr/bin/python3", "/usr/bin/python3"),
        ("naïve 名", "naïve 名"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\tc\r", "a\\x0ab\\x09c\\x0d"),
        ("\x7f\x9b", "\\x7f\\x9b"),
        ("abc\u202etxt", "abc\\u202etxt"),
        ("\udcff", "\\udcff"),
    ],
)
def test_escape_text(text: str, shown: str) -> None:
    assert escape_text(text) == shown
